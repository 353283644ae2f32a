"""Builders of patterns: stencils on grids, neighbours by distance, random ones."""

from __future__ import annotations

from scisparse.patterns.drawn import constant_fan_in as constant_fan_in
from scisparse.patterns.neighbours import nearest as nearest
from scisparse.patterns.neighbours import radius as radius
from scisparse.patterns.windows import window as window

__all__ = ["constant_fan_in", "nearest", "radius", "window"]
