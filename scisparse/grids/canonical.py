"""Points in the one form that all forms of a field have in common."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from scisparse.errors import DataError, GridError, ShapeError
from scisparse.grids.base import EARTH_RADIUS, FloatArray, Grid
from scisparse.grids.unstructured import UnstructuredGrid

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["canonical_points", "check_shape", "check_values", "eastward", "with_areas"]

# Of a degree, about 11 m: coordinates are often in single precision, 3e-5 degrees apart near 360.
_DIGITS = 4


def canonical_points(grid: Grid) -> UnstructuredGrid:
    """Points with longitudes from 0 to 360, whose areas are not derived yet."""
    lon = np.round(np.mod(np.rad2deg(grid.lon), 360.0), 9) % 360.0
    return UnstructuredGrid(grid.lat, np.deg2rad(lon), dims=grid.dims[:1])


def eastward(longitude: FloatArray) -> FloatArray:
    """Longitudes counted eastward without a jump, from the first one after the widest gap.

    Rounded, so that forms of one longitude a turn apart are the same number, also in single
    precision where steps are 1/20 of a degree or more; below, to about a thousandth of the usual
    step, lest areas differ.
    """
    exact = np.mod(longitude, 360.0)
    step = float(np.median(np.diff(np.sort(exact)))) if exact.size > 1 else 360.0
    digits = int(np.clip(np.round(3 - np.log10(step)), _DIGITS, 12)) if step > 0 else _DIGITS
    circle = np.round(exact, digits) % 360.0
    circle[circle > 360.0 - 0.5 * 10.0**-_DIGITS] -= 360.0  # in single precision, it may be zero
    rising = np.sort(circle)
    gaps = np.diff(rising, prepend=rising[-1] - 360.0)
    first = rising[np.argmax(gaps > gaps.max() - 1e-3)]
    return np.where(circle < first, circle + 360.0, circle)


def with_areas(points: Grid) -> Grid:
    """The same points with areas, if in any order: equal ones where they leave gaps."""
    if not isinstance(points, UnstructuredGrid):
        return points
    try:
        areas = points.areas
    except GridError:
        areas = np.full(points.size, _usual_distance(points.positions()) ** 2)
    return UnstructuredGrid(points.lat, points.lon, areas=areas, dims=points.dims)


def _usual_distance(positions: FloatArray) -> float:
    """Median distance in metres from a point on the sphere to the next; 1 if there is no other."""
    from scipy.spatial import cKDTree

    unique = np.unique(positions, axis=0)
    if len(unique) == 1:
        return 1.0
    return EARTH_RADIUS * float(np.median(cKDTree(unique).query(unique, k=2)[0][:, 1]))


def check_values(array: xr.DataArray, leading: Sequence[str], space: Sequence[str]) -> None:
    """Raise unless an array holds numbers, and every dim of it leads or is one of the grid's."""
    if array.dtype.kind not in "fiub":  # a date that is missing would be a large number
        raise DataError(
            f"the array has dtype {array.dtype}; it must hold numbers: convert it first"
        )
    rest = [dim for dim in array.dims if dim not in (*leading, *space)]
    if rest:
        raise DataError(
            f"the array has dims {rest}, neither of the grid nor in `leading` (={[*leading]}); "
            "name them there, or take one value of each with .isel"
        )


def check_shape(
    shape: tuple[int, ...], leading: Sequence[Hashable], grid_shape: tuple[int, ...]
) -> None:
    """Raise unless canonical values have an axis for each of `leading`, then those of the grid."""
    if len(shape) != len(leading) + len(grid_shape) or shape[len(leading) :] != grid_shape:
        expected = ", ".join(map(str, (*leading, *grid_shape)))
        raise ShapeError(
            f"`values` {list(shape)} must be [{expected}], on the grid that the frame has; reshape "
            "them, or name in `leading` every axis before the grid's"
        )
