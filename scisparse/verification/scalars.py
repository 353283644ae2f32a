"""Coordinates of one value without a dim, as ``.isel(time=0)`` leaves them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr

from scisparse.arrays import find_dim
from scisparse.errors import DataError
from scisparse.grids.discovery import grid_dims
from scisparse.verification.axes import Axis, axes_of, grid_of, other_grid

__all__ = ["check_scalars", "described"]

_Pair = tuple[xr.Dataset, xr.Dataset]


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
        wide = _widened(pair[0], own), _widened(pair[1], own)
        scalars = [{*w.dims} - {*p.dims} for w, p in zip(wide, pair, strict=True)]
        if not any(scalars):
            continue
        for first, second, equal in _compared(pair, wide, (name, other_name)):
            if equal or not (first in scalars[0] or second in scalars[1]):
                continue
            ours, theirs = described(wide[0].indexes[first]), described(wide[1].indexes[second])
            raise DataError(
                f"{first!r} is {ours} in {name} and {theirs} in {other_name}, and must be the same "
                f"in both; select the same one, or drop it with .drop_vars({first!r}) where it "
                "does not matter"
            )


def described(index: Any) -> str:
    """Value or range of an index, in words."""
    if len(index) == 1:
        return f"{index[0]}"
    return f"{index[0]} to {index[-1]} ({len(index)} values)"


def _widened(data: xr.Dataset, own: Sequence[str]) -> xr.Dataset:
    """Make dims of length 1 of the coordinates that are to be compared."""
    return data.expand_dims(
        [
            name
            for name, coordinate in data.coords.items()
            if coordinate.ndim == 0 and name not in own and not _of_itself(coordinate)
        ]
    )


def _of_itself(coordinate: xr.DataArray) -> bool:
    """Whether a coordinate tells which of several values, or which projection it is."""
    wide = coordinate.expand_dims(coordinate.name)
    projection = {"grid_mapping_name", "crs_wkt"} & {*coordinate.attrs}
    own = coordinate.name in ("quantile", "threshold") or find_dim(wide, "member") is not None
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
    times = [find_dim(p, "time") or find_dim(w, "time") for p, w in zip(pair, wide, strict=True)]
    pairs = {str(name): str(name) for name in wide[0].indexes if name in wide[1].indexes}
    if times[0] is not None and times[1] is not None and not {*times} & {*pairs}:
        pairs[times[0]] = times[1]
    for first, second in pairs.items():
        if first not in spatial and first in wide[0].indexes and second in wide[1].indexes:
            yield first, second, _equal(wide[0][first], wide[1][second])


def _equal_axes(axis: Axis, other: Axis) -> bool:
    """Whether every value has its equal on the other axis."""
    close = np.abs(axis.distances(other)) <= axis.tolerance(other)
    return bool(close.any(0).all() and close.any(1).all())


def _equal(first: xr.DataArray, second: xr.DataArray) -> bool:
    """Whether both have the same values, or say that they tell of something else."""
    told = [
        each.attrs["standard_name"] for each in (first, second) if "standard_name" in each.attrs
    ]
    # `time` may name the start in one and the valid time in the other.
    if len({*told}) > 1:
        return True
    if first.dtype.kind == second.dtype.kind == "f":
        narrow = min(first.dtype, second.dtype, key=lambda dtype: dtype.itemsize)
        first, second = first.astype(narrow), second.astype(narrow)
    values = first.to_index(), second.to_index()
    return bool(values[0].isin(values[1]).all() and values[1].isin(values[0]).all())
