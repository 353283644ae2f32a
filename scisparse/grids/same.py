"""Whether two grids have the same points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scisparse.grids.base import EARTH_RADIUS, FloatArray, Grid
from scisparse.grids.discovery import grid_dims
from scisparse.grids.masks import DEGREES
from scisparse.grids.unstructured import UnstructuredGrid

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Labels", "difference", "farthest", "has_twins", "labels_of", "order_of", "same_points"]

# Names of points, by the coordinate that they are of.
Labels = Mapping[str, Sequence[str]]
_NEAR = np.deg2rad(DEGREES)
# Unit vector along which few points of any usual grid, in rows or rings, are at one place.
_ACROSS = np.sqrt([1.0, 2.0, 3.0]) / np.sqrt(6.0)


def same_points(first: Grid, second: Grid) -> bool:
    """Whether two canonical grids have the same points in the same order.

    Masks and areas do not count, nor rounding of coordinates.
    """
    if type(first) is not type(second) or first.shape != second.shape:
        return False
    if not first.spherical:
        return bool(np.allclose(first.positions(), second.positions(), rtol=1e-6, atol=1.0))
    return bool(farthest(first, second) < _NEAR)


def labels_of(data: xr.Dataset | xr.DataArray) -> dict[str, list[str]]:
    """Coordinates that name every point, no two alike: words or whole numbers along their dim.

    Examples
    --------
    >>> import xarray as xr
    >>> places = {"lat": ("n", [50.0, 50.0]), "lon": ("n", [8.0, 8.0])}
    >>> labels_of(xr.Dataset({"t2m": ("n", [1.0, 2.0])}, places | {"wmo": ("n", [10637, 10640])}))
    {'wmo': ['10637', '10640']}
    """
    dims = grid_dims(data)
    found = {
        str(name): _words(coordinate.values)
        for name, coordinate in data.coords.items()
        if coordinate.dims == dims and coordinate.dtype.kind in "iuOSTU"
    }
    return {name: labels for name, labels in found.items() if len({*labels}) == len(labels)}


def _words(values: NDArray[Any]) -> list[str]:
    plain = values.astype(str) if values.dtype.kind == "S" else values
    return [str(value) for value in plain.tolist()]


def order_of(
    grid: Grid, wanted: Grid, labels: tuple[Labels, Labels] = ({}, {})
) -> NDArray[np.int64] | None:
    """Number in `grid` of each point of `wanted`, where they have the same points in any order.

    Points are known by their place. Those that lie at one place are told apart by labels of one
    name, else, where nothing else is in another order, by their number.

    Parameters
    ----------
    grid, wanted
        Canonical grids.
    labels
        What :func:`labels_of` says of both.

    Returns
    -------
    NDArray or None
        ``None`` where they have not the same points or lie on rows and columns, or points at one
        place cannot be told apart.
    """
    from scipy.spatial import cKDTree

    if not all(isinstance(each, UnstructuredGrid) for each in (grid, wanted)):
        return None
    if grid.size != wanted.size:
        return None
    ours, theirs = grid.positions(), wanted.positions()
    for name in labels[0].keys() & labels[1].keys():
        place = {label: number for number, label in enumerate(labels[0][name])}
        if place.keys() == {*labels[1][name]}:
            named = np.array([place[label] for label in labels[1][name]], dtype=np.int64)
            if np.linalg.norm(ours[named] - theirs, axis=1).max() < _NEAR:
                return named
    if np.array_equal(ours, theirs):
        return np.arange(grid.size)
    # By their number first only where no other point can be nearer.
    rounding = np.linalg.norm(ours - theirs, axis=1).max()
    if rounding < _NEAR and _lie_apart(ours, 2.0 * rounding):
        return np.arange(grid.size)
    distance, index = cKDTree(ours).query(theirs, distance_upper_bound=_NEAR, workers=-1)
    if np.isfinite(distance).all() and np.unique(index).size == grid.size:
        return np.asarray(index, dtype=np.int64)
    return np.arange(grid.size) if rounding < _NEAR else None


def _lie_apart(positions: FloatArray, distance: float) -> bool:
    """Whether points are seen to be farther apart than `distance`; not if it takes long to see."""
    along = positions @ _ACROSS
    order = np.argsort(along)
    along, positions = along[order], positions[order]
    for skip in range(1, 64):
        close = np.flatnonzero(along[skip:] - along[:-skip] <= distance)
        if not close.size:
            return True
        between = positions[close + skip] - positions[close]
        if np.linalg.norm(between, axis=1).min() <= distance:
            return False
    return False


def has_twins(grid: Grid) -> bool:
    """Whether points lie at one place, so that it does not tell them apart."""
    from scipy.spatial import cKDTree

    if not isinstance(grid, UnstructuredGrid) or grid.size < 2:
        return False
    positions = grid.positions()
    return bool(cKDTree(positions).query(positions, k=2)[0][:, 1].min() < _NEAR)


def difference(first: Grid, second: Grid) -> str:
    """How far apart two grids of one shape are, and how to bring both to one, in words."""
    points = [isinstance(each, UnstructuredGrid) for each in (first, second)]
    remedy = "interpolate it to that grid first, for example with .interp_like"
    if points[1]:
        remedy = "select the same points, or interpolate it to them first"
    elif points[0]:
        remedy = "interpolate what is on rows and columns to the points first, for example with "
        remedy += ".interp(lat=points['lat'], lon=points['lon'])"
    if type(first) is not type(second) or first.shape != second.shape:
        return f"; {remedy}"
    if all(points):
        remedy += "; where they stand for the same stations, give both the same coordinates"
    if all(map(has_twins, (first, second))):
        remedy += ", and those that lie at one place a coordinate of names, along the dim of points"
    metres = farthest(first, second) * (EARTH_RADIUS if first.spherical else 1.0)
    return f" (points are up to {metres / 1000:.3g} km apart); {remedy}"


def farthest(first: Grid, second: Grid) -> float:
    """Largest distance between the points of two grids of one shape, in their units."""
    return float(np.linalg.norm(first.positions() - second.positions(), axis=1).max())
