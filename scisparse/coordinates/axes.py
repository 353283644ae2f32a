"""Axes of grids, compared in units of the grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.coordinates.numbers import ROUNDING, converted, number_values, of_two_units
from scisparse.errors import DataError, GridError
from scisparse.grids import Grid, LatLonGrid, ProjectedGrid, from_xarray
from scisparse.grids.masks import DEGREES
from scisparse.grids.same import difference

__all__ = ["Axis", "axes_of", "grid_of", "other_grid", "rounded", "snapped"]

FloatArray = NDArray[np.float64]
_Object = TypeVar("_Object", xr.Dataset, xr.DataArray)

# As of `scisparse.grids.same.same_points`, whose rule a test compares.
_METRES, _SHARE = 1.0, 1e-6


@dataclass(frozen=True)
class Axis:
    """Values along an axis of a grid, and how near two count as equal.

    Attributes
    ----------
    values
        In degrees or metres.
    unit
        Unit of `values`.
    turn
        After how much a value is the same again, if it is.
    """

    values: FloatArray
    unit: str
    turn: float | None = None

    def distances(self, other: Axis) -> FloatArray:
        """Signed distance from each value of `other` to each of these, ``[other, these]``."""
        found = other.values[:, None] - self.values
        if self.turn is None:
            return found
        return np.asarray((found + 0.5 * self.turn) % self.turn - 0.5 * self.turn)

    def tolerance(self, other: Axis) -> FloatArray:
        """How far from each value one of `other` may lie to count as equal.

        As of `scisparse.grids.same.same_points`, so that what can be fitted can be scored, but less
        than half a step, lest two values become one.
        """
        rounding = DEGREES if self.unit == "degrees" else _METRES + _SHARE * np.abs(self.values)
        half = 0.499 * min(self.step(), other.step())
        return np.broadcast_to(np.minimum(rounding, half), self.values.shape)

    def steps(self) -> FloatArray:
        """Distance from each value to the next larger one, NaN at the end.

        On a circle the end is at the widest gap.
        """
        turn = np.inf if self.turn is None else self.turn
        placed = self.values if self.turn is None else self.values % self.turn
        order = np.argsort(placed)
        gaps = np.diff(placed[order], append=placed[order[:1]] + turn)
        gaps[gaps.argmax()] = np.nan
        return np.asarray(gaps[np.argsort(order)])

    def step(self) -> float:
        """Return the smallest step."""
        return float(np.abs(np.diff(self.values)).min()) if self.values.size > 1 else np.inf


def axes_of(grid: Grid) -> list[Axis]:
    """Return the axes of a grid that has such."""
    if isinstance(grid, LatLonGrid):
        lat, lon = np.rad2deg(grid.lat_axis), np.rad2deg(grid.lon_axis)
        return [Axis(lat, "degrees"), Axis(lon, "degrees", 360.0)]
    if isinstance(grid, ProjectedGrid):
        return [Axis(grid.y_axis, "m"), Axis(grid.x_axis, "m")]
    return []


def snapped(
    written: NDArray[Any], base: Axis, other: Axis, names: tuple[str, str, str]
) -> FloatArray:
    """Values of `other` as `base` has `written` them: the same ones where they count as equal."""
    distances = np.abs(base.distances(other))
    nearest = distances.argmin(1)
    close = distances.min(1) <= base.tolerance(other)[nearest]
    half = 0.5 * base.step()
    same_extent = base.values.size == other.values.size and all(
        distances[end].min() < half and distances[:, end].min() < half for end in (0, -1)
    )
    if same_extent and close.any() and not close.all():
        dim, base_name, name = names
        place = int(np.argmin(close))
        allowed = base.tolerance(other)[nearest[place]]
        raise DataError(
            f"{dim!r} has the same extent in {base_name} and {name}, but {(~close).sum()} of "
            f"{close.size} values differ, such as {base.values[nearest[place]]:.9g} and "
            f"{other.values[place]:.9g}; they must agree within {allowed:.3g} {base.unit}: bring "
            "both to one grid, for example with .interp_like"
        )
    _check_steps(base, other, nearest, close, names)
    written = np.asarray(written, dtype=np.float64)
    largest = int(np.abs(base.values).argmax())
    unit = written[largest] / base.values[largest] if base.values[largest] != 0 else 1.0
    return np.where(close, written[nearest], other.values * unit)


def _check_steps(
    base: Axis,
    other: Axis,
    nearest: NDArray[np.int64],
    close: NDArray[np.bool_],
    names: tuple[str, str, str],
) -> None:
    """Raise where values in common are no neighbours in one of both: a finer grid has some of them.

    Then the rest would be left out without a word. A part of a grid has its steps.
    """
    ours, theirs = base.steps()[nearest[close]], other.steps()[close]
    differ = np.abs(ours - theirs) > 2.0 * base.tolerance(other)[nearest[close]]
    known = np.isfinite(ours) & np.isfinite(theirs)
    if not known.any() or not differ[known].all():
        return
    dim, base_name, name = names
    place = int(np.argmax(known))
    raise DataError(
        f"{dim!r} is on two grids: after {other.values[close][place]:.6g} the next value is "
        f"{ours[place]:.6g} {base.unit} away in {base_name} but {theirs[place]:.6g} in {name}; "
        "bring both to one grid, for example with .interp_like, or select the same values of both"
    )


def rounded(
    base: xr.Dataset | xr.DataArray, data: _Object, dim: str, names: tuple[str, str]
) -> _Object:
    """Give `data` the values of `base` along a dim where they are the same in single precision.

    So are levels that one file has in single and another in double precision. Those in another unit
    (hPa and Pa, hours and durations) come in that of `base`.

    Raises
    ------
    DataError
        Units are not of one kind; both are named, and what has them by `names`.
    """
    if dim not in base.indexes or dim not in data.indexes:
        return data
    first, other = base[dim], data[dim]
    if _of_two_units(first, other):
        return data.assign_coords({dim: (dim, _in_unit(first, other, names), first.attrs)})
    kinds = first.dtype, other.dtype
    if kinds[0] == kinds[1] or any(kind.kind != "f" for kind in kinds):
        return data
    narrow = min(kinds, key=lambda kind: kind.itemsize)
    ours, theirs = first.values.astype(narrow), other.values.astype(narrow)
    if not ours.size or any(np.unique(each).size < each.size for each in (ours, theirs)):
        return data
    order = np.argsort(ours)
    nearest = order[np.searchsorted(ours, theirs, sorter=order).clip(max=ours.size - 1)]
    values = np.where(ours[nearest] == theirs, first.values[nearest], other.values)
    return data.assign_coords({dim: (dim, values, other.attrs)})


def _of_two_units(first: xr.DataArray, other: xr.DataArray) -> bool:
    """Whether both are finite numbers or durations of units that are told and differ."""
    if any(each.dtype.kind not in "fium" for each in (first, other)):
        return False
    ours, theirs = number_values(first), number_values(other)
    finite = 0 < len(ours[0]) == first.size and len(theirs[0]) == other.size
    return finite and of_two_units(ours, theirs)


def _in_unit(first: xr.DataArray, other: xr.DataArray, names: tuple[str, str]) -> NDArray[Any]:
    """Values of `other` in the unit of `first`, and its own ones where they are the same."""
    ours, theirs = number_values(first), number_values(other)
    values = converted(theirs, ours[1])
    if values is None:
        told = " but ".join(
            f"{each.attrs.get('units', 'durations')!r} in {name}"
            for each, name in zip((first, other), names, strict=True)
        )
        raise DataError(f"{first.name!r} is in {told}; bring both to one unit")
    near = np.isclose(values[:, None], np.asarray(ours[0]), rtol=ROUNDING, atol=0.0)
    if first.dtype.kind == "m":
        values = (1e9 * values).round().astype("m8[ns]")
    return np.where(near.any(1), first.values[near.argmax(1)], values)


def grid_of(data: xr.Dataset) -> Grid | None:
    """Return the grid, if there is a regular one."""
    try:
        return from_xarray(data)
    except GridError:  # series, means over the grid, curvilinear ones: values are matched as such
        return None


def other_grid(grid: Grid, other: Grid, base_name: str, name: str) -> DataError:
    """Error of two grids that cannot be matched."""
    told = difference(other, grid)
    return DataError(f"{name} is on {other!r} but {base_name} on {grid!r}{told}")
