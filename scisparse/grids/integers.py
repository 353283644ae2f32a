"""Numbers as callers write them: whole ones, Python's, numpy's, torch's, one or several.

``True`` and ``False`` are none: who writes them means another argument.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Real
from typing import SupportsIndex

from scisparse.errors import ScisparseError

__all__ = ["integer", "integer_from", "integers", "integers_per_axis", "is_finite"]


def _index(value: object) -> int:
    whole = operator.index(value)  # type: ignore[arg-type]
    # Tensors take their booleans for numbers.
    if isinstance(value.item() if hasattr(value, "item") else value, bool):
        raise TypeError
    return whole


def integer(name: str, value: SupportsIndex, error: type[ScisparseError]) -> int:
    """Give `value` as an ``int``, or raise `error`: a float is not rounded, even a whole one."""
    try:
        return _index(value)
    except TypeError:
        raise error(f"`{name}` (={value!r}) must be an integer") from None


def integer_from(name: str, value: SupportsIndex, least: int, error: type[ScisparseError]) -> int:
    """Give `value` as an ``int``, or raise `error`, also where it is below `least`."""
    whole = integer(name, value, error)
    if whole < least:
        raise error(f"`{name}` (={whole}) must be at least {least}")
    return whole


def integers(values: Sequence[SupportsIndex]) -> tuple[int, ...] | None:
    """Give several integers; ``None`` when these are not several, or not integers."""
    try:
        return tuple(_index(value) for value in values)
    except TypeError:
        return None


def integers_per_axis(
    value: SupportsIndex | Sequence[SupportsIndex], axes: int
) -> tuple[int, ...] | None:
    """Give an integer for each axis, from one for all or one each; ``None`` when it is neither."""
    try:
        return (_index(value),) * axes
    except TypeError:
        values = integers(value)  # type: ignore[arg-type]
    return values if values is not None and len(values) == axes else None


def is_finite(value: object) -> bool:
    """Whether `value` is a number, whole or not, and finite."""
    return not isinstance(value, bool) and isinstance(value, Real) and math.isfinite(value)
