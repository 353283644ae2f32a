"""Points in the one form that all forms of a field have in common."""

from __future__ import annotations

import numpy as np

from scisparse.errors import GridError
from scisparse.grids.base import EARTH_RADIUS, FloatArray, Grid
from scisparse.grids.unstructured import UnstructuredGrid

__all__ = ["canonical_points", "with_areas"]


def canonical_points(grid: Grid) -> UnstructuredGrid:
    """Points with longitudes from 0 to 360, whose areas are not derived yet."""
    lon = np.round(np.mod(np.rad2deg(grid.lon), 360.0), 9) % 360.0
    return UnstructuredGrid(grid.lat, np.deg2rad(lon), dims=grid.dims[:1])


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
