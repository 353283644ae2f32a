"""Bring predictions and observations onto shared coordinates, and find the areas of cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.arrays import find_dim, same_points
from scisparse.errors import DataError, GridError, OptionError
from scisparse.grids import Grid, LatLonGrid, from_xarray
from scisparse.grids.discovery import grid_dims

__all__ = ["area_weights", "match", "place_weights"]

FloatArray = NDArray[np.float64]


def match(
    base: xr.Dataset, others: Sequence[xr.Dataset], names: Sequence[str], own: Sequence[str]
) -> list[xr.Dataset]:
    """Return all on the coordinates that all share.

    Parameters
    ----------
    base
        Data whose names of dims, and whose form of coordinates, the others get.
    others
        Other data.
    names
        Names for errors, of `base` and of the others.
    own
        Dims that are not shared, such as members.

    Raises
    ------
    DataError
        Coordinates have nothing in common, or grids without axes differ; both are named.
    """
    placed = [
        _onto(base, other, names[0], name) for other, name in zip(others, names[1:], strict=True)
    ]
    for other, name in zip(placed, names[1:], strict=True):
        for dim in set(base.dims) & set(other.dims) - set(own):
            _check_overlap(str(dim), base, other, names[0], name)
    aligned = xr.align(base, *placed, join="inner", exclude=list(own))
    if any(size == 0 for data in aligned for size in data.sizes.values()):
        raise DataError(
            f"{', '.join(names)} overlap in pairs, but have no coordinates all in common"
        )
    return list(aligned)


def area_weights(data: xr.Dataset) -> xr.DataArray | None:
    """Areas of the grid's cells, of mean 1; ``None`` when there is no grid."""
    grid = _grid(data)
    if grid is None:
        return None
    dims = grid_dims(data)
    areas = grid.areas.reshape([data.sizes[dim] for dim in dims])
    coords = {dim: data.coords[dim] for dim in dims if dim in data.indexes}
    return xr.DataArray(areas / areas.mean(), dims=dims, coords=coords)


def place_weights(weights: xr.DataArray, base: xr.Dataset) -> xr.DataArray:
    """Return the caller's weights on the coordinates of `base`.

    Raises
    ------
    OptionError
        They have other dims.
    DataError
        They are negative or missing somewhere.
    """
    data = _onto(base, weights.to_dataset(name="weights"), "the prediction", "`weights`")
    extra = [str(dim) for dim in data.dims if dim not in base.dims]
    if extra:
        raise OptionError(
            f"`weights` has dims {extra}; the scores have {list(map(str, base.dims))}"
        )
    data = data.reindex({dim: base.indexes[dim] for dim in data.dims if dim in data.indexes})
    placed = data["weights"].astype(np.float64)
    bad = int((~(placed >= 0)).sum())
    if bad or not bool((placed > 0).any()):
        raise DataError(
            f"`weights` is negative or missing at {bad} of {placed.size} points, and must be at "
            "least 0 on all points of the prediction, not all 0; fill or select them"
        )
    return placed


def _onto(base: xr.Dataset, other: xr.Dataset, base_name: str, name: str) -> xr.Dataset:
    """Give `other` the names of dims of `base`, and its coordinates where they differ by rounding.

    Longitudes count as equal when they differ by whole turns.
    """
    grids = _grid(base), _grid(other)
    pairs = [(find_dim(other, "time"), find_dim(base, "time"))]
    if grids[0] is not None and grids[1] is not None:
        pairs += list(zip(grid_dims(other), grid_dims(base), strict=False))
    other = other.rename({old: new for old, new in pairs if old and new and old != new})
    if grids[0] is None or grids[1] is None:
        return other
    for axis, dim in enumerate(grid_dims(base)):
        if dim in base.indexes and dim in other.indexes:
            turn = 360.0 if isinstance(grids[0], LatLonGrid) and axis == 1 else None
            values = _snapped(other[dim].values, base[dim].values, turn)
            other = other.assign_coords({dim: (dim, values, other[dim].attrs)})
        elif base.sizes[dim] != other.sizes[dim] or not same_points(grids[0], grids[1]):
            raise DataError(
                f"{name} is on {grids[1]!r} but {base_name} on {grids[0]!r}; bring both to one grid"
            )
    return other


def _snapped(values: FloatArray, base: FloatArray, turn: float | None) -> FloatArray:
    """Replace values by those of `base` within a thousandth of its spacing."""
    values, base = values.astype(np.float64), base.astype(np.float64)
    distance = values[:, None] - base
    if turn is not None:
        distance = (distance + 0.5 * turn) % turn - 0.5 * turn
    nearest = np.abs(distance).argmin(1)
    spacing = np.abs(np.diff(base)).min() if base.size > 1 else 0.1
    close = np.abs(distance[np.arange(values.size), nearest]) <= 1e-3 * spacing
    return np.where(close, base[nearest], values)


def _check_overlap(
    dim: str, base: xr.Dataset, other: xr.Dataset, base_name: str, name: str
) -> None:
    if dim not in base.indexes or dim not in other.indexes:
        if base.sizes[dim] != other.sizes[dim]:
            raise DataError(
                f"{dim!r} has {base.sizes[dim]} points in {base_name} and {other.sizes[dim]} in "
                f"{name}, and no coordinate to match them by; assign one"
            )
        return
    indexes = base.indexes[dim], other.indexes[dim]
    if not indexes[0].isin(indexes[1]).any():
        ranges = [f"{index[0]} to {index[-1]} ({index.size} values)" for index in indexes]
        raise DataError(
            f"{dim!r} is {ranges[0]} in {base_name} and {ranges[1]} in {name}, with no value in "
            "common; select or shift one of them"
        )


def _grid(data: xr.Dataset) -> Grid | None:
    try:
        return from_xarray(data)
    except GridError:  # stations, series, means over the grid: no grid is nothing wrong
        return None
