"""Whether two grids have the same points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scisparse.grids.base import Grid
from scisparse.grids.masks import DEGREES
from scisparse.grids.unstructured import UnstructuredGrid

__all__ = ["farthest", "order_of", "same_points"]


def same_points(first: Grid, second: Grid) -> bool:
    """Whether two canonical grids have the same points in the same order.

    Masks and areas do not count, nor rounding of coordinates.
    """
    if type(first) is not type(second) or first.shape != second.shape:
        return False
    if not first.spherical:
        return bool(np.allclose(first.positions(), second.positions(), rtol=1e-6, atol=1.0))
    return bool(farthest(first, second) < np.deg2rad(DEGREES))


def order_of(grid: Grid, wanted: Grid) -> NDArray[np.int64] | None:
    """Number in `grid` of each point of `wanted`, where they have the same points in other orders.

    ``None`` where they have not, or lie on rows and columns.
    """
    from scipy.spatial import cKDTree

    if not all(isinstance(each, UnstructuredGrid) for each in (grid, wanted)):
        return None
    if grid.size != wanted.size:
        return None
    distance, index = cKDTree(grid.positions()).query(wanted.positions())
    same = distance.max() < np.deg2rad(DEGREES) and np.unique(index).size == grid.size
    return np.asarray(index, dtype=np.int64) if same else None


def farthest(first: Grid, second: Grid) -> float:
    """Largest distance between the points of two grids of one shape, in their units."""
    return float(np.linalg.norm(first.positions() - second.positions(), axis=1).max())
