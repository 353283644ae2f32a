"""Coordinates of one value without a dim, as ``.isel(time=0)`` leaves them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr

from scisparse.arrays import has_role
from scisparse.coordinates.axes import Axis, axes_of, grid_of, other_grid
from scisparse.coordinates.numbers import (
    Numbers,
    number_values,
    same_numbers,
    written_numbers,
)
from scisparse.coordinates.valid import compared_times, is_ahead, is_date
from scisparse.errors import DataError
from scisparse.grids.discovery import grid_dims, role_of

__all__ = ["check_scalars", "check_trained", "described", "numbers_of"]

_Pair = tuple[xr.Dataset, xr.Dataset]
# Of these a later forecast has others: the part of a date, and the version of an archive.
_PARTS = (
    "year", "season", "month", "week", "weekofyear", "day", "dayofyear", "doy", "dayofweek",
    "weekday", "hour", "minute", "second", "expver",
)  # fmt: skip

# Parts of names of levels, as of cfgrib and CF.
_VERTICAL = (
    "lev", "height", "depth", "altitude", "pressure", "isobaric", "hybrid", "sigma", "theta",
)  # fmt: skip


def check_scalars(data: Sequence[xr.Dataset], names: Sequence[str], own: Sequence[str]) -> None:
    """Raise unless coordinates of one value are the same in all that have them.

    Parameters
    ----------
    data
        What is to be matched.
    names
        Names for errors.
    own
        Dims that are not shared, such as members.

    Raises
    ------
    DataError
        One differs; it and both values are named.
    """
    for pair, (name, other_name) in zip(combinations(data, 2), combinations(names, 2), strict=True):
        _check_single_times(pair, (name, other_name))
        wide = _widened(pair[0], own), _widened(pair[1], own)
        scalars = [{*w.dims} - {*p.dims} for w, p in zip(wide, pair, strict=True)]
        if not any(scalars):
            continue
        for first, second, equal in _compared(pair, wide, (name, other_name)):
            if equal or not (first in scalars[0] or second in scalars[1]):
                continue
            ours, theirs = described(wide[0].indexes[first]), described(wide[1].indexes[second])
            units = [w[n].attrs.get("units") for w, n in zip(wide, (first, second), strict=True)]
            if units[0] != units[1]:
                ours, theirs = (
                    f"{text} {u or ''}".rstrip()
                    for text, u in zip((ours, theirs), units, strict=True)
                )
            raise DataError(
                f"{first!r} is {ours} in {name} and {theirs} in {other_name}, and must be the same "
                f"in both; select the same one, or drop it with .drop_vars({first!r}) where it "
                "does not matter"
            )


def _check_single_times(pair: _Pair, names: tuple[str, str]) -> None:
    times = compared_times(*pair)
    if times is None:
        return
    indexes = [xr.Variable("time", time.values.ravel()).to_index() for time in times]
    if indexes[0].isin(indexes[1]).all() and indexes[1].isin(indexes[0]).all():
        return
    ours, theirs = (described(index) for index in indexes)
    what = "the valid time" if times[0].name is None else repr(times[0].name)
    if times[1].size > 1 and not times[0].ndim and not indexes[0].isin(indexes[1]).any():
        raise DataError(
            f"{what} is {ours} in {names[0]}, which is none of {theirs} in {names[1]}; select a "
            "time that both have"
        )
    raise DataError(
        f"{what} is {ours} in {names[0]} and {theirs} in {names[1]}, and must be the same in both; "
        "select the same one"
    )


def described(index: Any) -> str:
    """Value or range of an index, in words."""
    if len(index) == 1:
        return f"{index[0]}"
    return f"{index[0]} to {index[-1]} ({len(index)} values)"


def numbers_of(data: xr.DataArray) -> dict[str, Numbers]:
    """Values that a model is trained at, such as of level and lead time, with their units.

    These are numbers of one value, and dims of levels and lead times; durations are in seconds.
    Places, members and dates are not among them.

    Examples
    --------
    >>> import xarray as xr
    >>> level = ((), 850, {"units": "hPa"})
    >>> numbers_of(xr.DataArray([280.0], {"level": level, "lat": 5.0}, ("time",)))
    {'level': ([850.0], 'hPa')}
    """
    found = {}
    for name, coordinate in data.coords.items():
        passing = is_date(coordinate) or str(name).lower() in _PARTS
        if passing or role_of(coordinate) or coordinate.ndim > 1 or _of_itself(coordinate):
            continue
        # Other dims may number cases, of which a later forecast has others.
        if coordinate.ndim and (name not in data.dims or not _is_level_or_lead(coordinate)):
            continue
        numbers = number_values(coordinate)
        if numbers[0]:
            found[str(name)] = numbers
    return found


def check_trained(data: xr.DataArray, trained: Mapping[str, Numbers]) -> None:
    """Raise where a forecast is of another level, lead time or the like than in training.

    Raises
    ------
    DataError
        A value of :func:`numbers_of` is none of the training; both are named.
    """
    for name, numbers in numbers_of(data).items():
        expected = trained.get(name)
        if expected is None or (same := same_numbers(numbers, expected)).all():
            continue
        other = numbers[0][int(np.argmin(same))]
        raise DataError(
            f"{name!r} is {written_numbers(([other], numbers[1]))} in the forecast, but the model "
            f"was trained at {written_numbers(expected)}; give a forecast like those of the "
            f"training, or drop it with .drop_vars({name!r}) where it does not matter"
        )


def _is_level_or_lead(coordinate: xr.DataArray) -> bool:
    attrs = coordinate.attrs
    vertical = attrs.get("axis") == "Z" or "positive" in attrs
    named = any(part in str(coordinate.name).lower() for part in _VERTICAL)
    return vertical or named or has_role(coordinate, "lead")


def _widened(data: xr.Dataset, own: Sequence[str]) -> xr.Dataset:
    """Make dims of length 1 of the coordinates that are to be compared."""
    return data.expand_dims(
        [
            name
            for name, coordinate in data.coords.items()
            if not (coordinate.ndim or name in own or _of_itself(coordinate) or is_date(coordinate))
        ]
    )


def _of_itself(coordinate: xr.DataArray) -> bool:
    """Whether a coordinate tells which of several values, which projection or archive, or names it.

    Names such as that of a model or a station describe, and are written in many ways.
    """
    if coordinate.dtype.kind not in "fium" or coordinate.name == "expver":
        return True
    projection = {"grid_mapping_name", "crs_wkt"} & {*coordinate.attrs}
    own = coordinate.name in ("quantile", "threshold") or has_role(coordinate, "member")
    return own or bool(projection)


def _compared(pair: _Pair, wide: _Pair, names: tuple[str, str]) -> Iterator[tuple[str, str, bool]]:
    """Coordinates of both that mean the same, and whether they are equal."""
    grids = grid_of(wide[0]), grid_of(wide[1])
    spatial: set[str] = set()
    if grids[0] is not None and grids[1] is not None:
        if type(grids[0]) is not type(grids[1]):
            raise other_grid(grids[0], grids[1], *names)
        dims = grid_dims(wide[0]), grid_dims(wide[1])
        axes = axes_of(grids[0]), axes_of(grids[1])
        spatial = {*dims[0]}
        for first, second, axis, other in zip(*dims, *axes, strict=False):
            yield first, second, _equal_axes(axis, other)
    for name in map(str, wide[0].indexes):
        shared = name in pair[0].dims and name in pair[1].dims
        if name in spatial or shared or name not in wide[1].indexes:
            continue
        coordinates = wide[0][name], wide[1][name]
        if all(coordinate.dtype.kind in "fium" for coordinate in coordinates):
            yield name, name, _equal(*coordinates)


def _equal_axes(axis: Axis, other: Axis) -> bool:
    """Whether every value has its equal on the other axis."""
    close = np.abs(axis.distances(other)) <= axis.tolerance(other)
    return bool(close.any(0).all() and close.any(1).all())


def _analysed(coordinate: xr.DataArray) -> bool:
    """Whether a coordinate is a lead time of 0, that of an analysis: truth at any lead time."""
    return has_role(coordinate, "lead") and not is_ahead(coordinate)


def _equal(first: xr.DataArray, second: xr.DataArray) -> bool:
    """Whether both have the same values, or say that they tell of something else."""
    told = [
        each.attrs["standard_name"] for each in (first, second) if "standard_name" in each.attrs
    ]
    if len({*told}) > 1 or _analysed(first) or _analysed(second):
        return True
    ours, theirs = number_values(first), number_values(second)
    return bool(same_numbers(ours, theirs).all() and same_numbers(theirs, ours).all())
