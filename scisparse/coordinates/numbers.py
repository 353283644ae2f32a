"""Levels, lead times and the like: numbers with units, compared in one unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.units import spelled

__all__ = [
    "ROUNDING",
    "Numbers",
    "converted",
    "in_seconds",
    "is_duration",
    "number_values",
    "of_two_units",
    "same_numbers",
    "written_numbers",
]

# Values, and their unit as `scisparse.units.spelled` writes it.
Numbers = tuple[Sequence[float], str]
# Unit -> the unit that it is compared in, and how many of these it is.
_FACTORS = {
    "s": ("s", 1.0), "min": ("s", 60.0), "h": ("s", 3600.0), "d": ("s", 86400.0),
    "Pa": ("Pa", 1.0), "hPa": ("Pa", 100.0), "kPa": ("Pa", 1000.0),
    "m": ("m", 1.0), "cm": ("m", 0.01), "km": ("m", 1000.0),
}  # fmt: skip
# What `spelled` makes of no units.
_UNKNOWN = "1"
# Of the value: one in single precision is the same.
ROUNDING = 2e-7


def number_values(coordinate: xr.DataArray) -> Numbers:
    """Finite values of a coordinate, and their unit; durations are in seconds."""
    values: Any = np.atleast_1d(coordinate.values)
    units = spelled(str(coordinate.attrs.get("units", "")))
    if values.dtype.kind == "m":
        values, units = values / np.timedelta64(1, "s"), "s"
    return values[np.isfinite(values)].astype(np.float64).tolist(), units


def same_numbers(first: Numbers, second: Numbers) -> NDArray[np.bool_]:
    """Whether each value of `first` is one of `second`, in whatever unit each is.

    Where one has no unit, values are the same if they are so in any unit.

    Examples
    --------
    >>> same_numbers(([850.0, 85000.0], "hPa"), ([85000.0], "Pa"))
    array([ True, False])
    >>> same_numbers(([86400.0], "s"), ([24.0], "1"))
    array([ True])
    """
    (values, base), (others, their_base) = _converted(first), _converted(second)
    close = np.zeros((len(values), len(others)), dtype=bool)
    known = _UNKNOWN not in (base, their_base)
    for unit, factor in _FACTORS.values() if not known else ():
        if unit == base:
            close |= np.isclose(values[:, None], factor * others, rtol=ROUNDING)
        elif unit == their_base:
            close |= np.isclose(factor * values[:, None], others, rtol=ROUNDING)
    if base == their_base or not known:
        close |= np.isclose(values[:, None], others, rtol=ROUNDING)
    return np.asarray(close.any(1))


def of_two_units(first: Numbers, second: Numbers) -> bool:
    """Whether both tell their unit, not the same one, and one at least is known."""
    units = {first[1], second[1]}
    return len(units) == 2 and _UNKNOWN not in units and not units.isdisjoint(_FACTORS)


def converted(numbers: Numbers, unit: str) -> NDArray[np.float64] | None:
    """Values in another unit; ``None`` where the two are not of one kind.

    Examples
    --------
    >>> converted(([1.0, 2.0], "d"), "h")
    array([24., 48.])
    """
    (values, base), (factor, wanted) = _converted(numbers), _converted(([1.0], unit))
    return values / factor if base == wanted else None


def in_seconds(numbers: Numbers) -> float | None:
    """A duration; ``None`` where it is not one value of a unit of time."""
    values, base = _converted(numbers)
    return float(values[0]) if base == "s" and len(values) == 1 else None


def is_duration(numbers: Numbers) -> bool:
    """Whether the unit is one of time."""
    return _FACTORS.get(numbers[1], ("",))[0] == "s"


def written_numbers(numbers: Numbers) -> str:
    """Write value or range with the unit, as errors do."""
    values, units = numbers
    ends = [f"{value:.9g}" for value in (min(values), max(values))]
    text = ends[0] if len(values) == 1 else f"{ends[0]} to {ends[1]} ({len(values)} values)"
    return f"{text} {units}".removesuffix(f" {_UNKNOWN}")


def _converted(numbers: Numbers) -> tuple[NDArray[np.float64], str]:
    values, units = numbers
    base, factor = _FACTORS.get(units, (units, 1.0))
    return factor * np.asarray(values, dtype=np.float64), base
