"""Patterns: who reads whom."""

from __future__ import annotations

from scisparse.pattern.value import Pattern as Pattern
from scisparse.pattern.window_spec import WindowSpec as WindowSpec

__all__ = ["Pattern", "WindowSpec"]
