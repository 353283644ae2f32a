"""Masks given as xarray objects, put into the order of a grid's points by their coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from scisparse.errors import GridError

if TYPE_CHECKING:
    import xarray as xr

    from scisparse.grids.base import FloatArray, Grid

__all__ = ["DEGREES", "has_coordinates", "in_order_of", "is_data_array"]

# Coordinates are often in single precision, 3e-5 degrees apart near 360, and two forms of one may
# be rounded to neighbouring numbers: about 17 m.
DEGREES = 1.5e-4
_METRES, _SHARE = 1.0, 1e-6


def is_data_array(mask: object) -> TypeGuard[xr.DataArray]:
    """Whether this is a DataArray, told without an import of xarray."""
    return all(hasattr(mask, name) for name in ("coords", "dims", "dtype"))


def has_coordinates(given: object) -> TypeGuard[xr.DataArray]:
    """Whether this is a DataArray that says where its values are."""
    return is_data_array(given) and any(coord.ndim for coord in given.coords.values())


def in_order_of(grid: Grid, mask: xr.DataArray, what: str = "mask") -> NDArray[Any]:
    """Values of `mask`, of the shape of `grid`, at the grid's points; it may cover more of them.

    Messages call it `what`.

    Raises
    ------
    GridError
        Its coordinates are not known, or of another kind, or lack points of the grid.
    """
    from scisparse.grids.discovery import from_xarray, grid_dims

    try:
        theirs, dims = from_xarray(mask), grid_dims(mask)
    except GridError as error:
        raise GridError(
            f"`{what}` is a DataArray whose points are not known ({error}); give it the "
            "coordinates of the grid, or take .values in the order of the grid's axes"
        ) from error
    extra = [str(dim) for dim in mask.dims if dim not in dims]
    if extra:
        raise GridError(
            f"`{what}` has dims {extra} beside those of its grid; select one value of each first"
        )
    if type(theirs) is not type(grid):
        raise GridError(f"`{what}` is on {theirs!r} but the grid is {grid!r}; interpolate it first")
    values: NDArray[Any] = mask.transpose(*dims).values
    for axis, (own, other, turn) in enumerate(_axes(grid, theirs)):
        values = np.take(values, _places(own, other, turn, grid, theirs, what), axis=axis)
    return values


def _axes(grid: Grid, theirs: Grid) -> list[tuple[FloatArray, FloatArray, float | None]]:
    """Coordinates ``[n, 1 or 3]`` along each axis of both, and after how much they repeat."""
    names = {"lat_lon": ("lat_axis", "lon_axis"), "projected": ("y_axis", "x_axis")}
    if grid.kind not in names:
        return [(grid.positions(), theirs.positions(), None)]
    turns = (None, 2 * np.pi if grid.kind == "lat_lon" else None)
    pairs = ((getattr(each, name)[:, None] for each in (grid, theirs)) for name in names[grid.kind])
    return [(*pair, turn) for pair, turn in zip(pairs, turns, strict=True)]


def _places(
    own: FloatArray, other: FloatArray, turn: float | None, grid: Grid, theirs: Grid, what: str
) -> NDArray[np.int64]:
    """Index in `other` of each of `own`."""
    from scipy.spatial import cKDTree

    tolerance = np.deg2rad(DEGREES) if grid.spherical else _METRES + _SHARE * np.abs(own).max()
    if own.shape == other.shape and np.abs(own - other).max() <= tolerance:
        return np.arange(len(own))  # also where points repeat
    if turn is not None:
        own, other = own % turn % turn, other % turn % turn  # the first may round to a whole turn
    distance, index = cKDTree(other, boxsize=turn).query(own)
    missing = int((distance > tolerance).sum())
    if missing:
        raise GridError(
            f"`{what}` is on {theirs!r}, which lacks {missing} of {len(own)} coordinates of "
            f"{grid!r}; interpolate it to that grid first"
        )
    return np.asarray(index, dtype=np.int64)
