"""Builders of patterns: stencils on grids, neighbours by distance."""

from __future__ import annotations

from scisparse.patterns.neighbours import nearest as nearest
from scisparse.patterns.neighbours import radius as radius
from scisparse.patterns.windows import window as window

__all__ = ["nearest", "radius", "window"]
