"""Points, distances and bearings between two grids, on the sphere or in the plane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scisparse.errors import GridError
from scisparse.grids import EARTH_RADIUS, Grid
from scisparse.grids.base import FloatArray, unit_vectors

__all__ = [
    "Cloud",
    "bearing",
    "chord_length",
    "clouds",
    "compass",
    "edge_geometry",
    "great_circle",
    "on_sphere",
    "points_of",
]

Index = NDArray[np.int64]

# Edges in double precision at once: bounds memory at some 100 MB.
_EDGES_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Cloud:
    """Valid points of a grid.

    Parameters
    ----------
    index
        Place of each point in the grid ``[n]``.
    points
        Unit vectors ``[n, 3]``, or metres ``[n, 2]`` in the plane.
    spherical
        Whether the points lie on the sphere.
    """

    index: Index
    points: FloatArray
    spherical: bool


def clouds(sources: Grid, sites: Grid) -> tuple[Cloud, Cloud]:
    """Take the valid points of both grids: in the plane if both are projected, else the sphere."""
    spherical = on_sphere(sources, sites)
    source_cloud = _cloud(sources, spherical)
    return source_cloud, source_cloud if sites is sources else _cloud(sites, spherical)


def edge_geometry(
    sources: Grid, sites: Grid, source: Index, site: Index
) -> tuple[FloatArray, FloatArray]:
    """Metres from site to source and the bearing there, ``[E]`` each, of edges ``[E]``."""
    spherical = on_sphere(sources, sites)
    ends = points_of(sources, spherical)
    starts = Cloud(np.arange(sites.size), points_of(sites, spherical), spherical)
    east, north = compass(starts)
    metres, direction = np.empty((2, len(site)))
    for first in range(0, len(site), _EDGES_AT_ONCE):
        part = slice(first, first + _EDGES_AT_ONCE)
        i, j = site[part], source[part]
        step = ends[j] - starts.points[i]
        metres[part] = great_circle(np.linalg.norm(step, axis=1), spherical)
        direction[part] = bearing(step, east[i], north[i])
    return metres, direction


def on_sphere(sources: Grid, sites: Grid) -> bool:
    """Whether distances between two grids are great circles: unless both are in the plane.

    Raises
    ------
    GridError
        One is on the sphere, and the other does not know where it is.
    """
    spherical = sources.spherical or sites.spherical
    if spherical and not (sources.has_lat_lon and sites.has_lat_lon):
        raise GridError(
            f"`sites` ({sites!r}) and the sources ({sources!r}) must both be projected or both on "
            "the sphere; give the ProjectedGrid its lat= and lon="
        )
    return spherical


def points_of(grid: Grid, spherical: bool) -> FloatArray:
    """Unit vectors ``[size, 3]``, or positions in the plane, ``[size, 2]`` in metres."""
    return unit_vectors(grid.lat, grid.lon) if spherical else grid.positions()


def _cloud(grid: Grid, spherical: bool) -> Cloud:
    points, index = points_of(grid, spherical), np.flatnonzero(grid.valid)
    return Cloud(index, points if index.size == grid.size else points[index], spherical)


def chord_length(metres: float, spherical: bool) -> float:
    """Turn a distance in metres into the straight one: ``2 sin(metres / 2 R)`` of unit vectors."""
    if not spherical:
        return metres
    angle = metres / EARTH_RADIUS
    # From half the circumference on all points are inside, those rounded beyond a diameter too.
    return float(2 * np.sin(angle / 2)) if angle < np.pi else 2.1


def great_circle(chord: FloatArray, spherical: bool) -> FloatArray:
    """Turn straight distances into metres: the inverse of :func:`chord_length`."""
    if not spherical:
        return chord
    return np.asarray(2 * EARTH_RADIUS * np.arcsin(np.minimum(chord / 2, 1)))


def compass(sites: Cloud) -> tuple[FloatArray, FloatArray]:
    """Give unit vectors to the east and to the north of each site, each ``[n, 2 or 3]``."""
    if not sites.spherical:
        east, north = np.eye(2)
        return np.broadcast_to(east, sites.points.shape), np.broadcast_to(north, sites.points.shape)
    x, y, z = sites.points.T
    # Never zero: no float64 latitude has a cosine of exactly zero, so a pole keeps its longitude.
    across = np.hypot(x, y)
    cos_lon, sin_lon = x / across, y / across
    east = np.stack([-sin_lon, cos_lon, np.zeros_like(x)], axis=1)
    north = np.stack([-cos_lon * z, -sin_lon * z, across], axis=1)
    return east, north


def bearing(step: FloatArray, east: FloatArray, north: FloatArray) -> FloatArray:
    """Find the direction of each step: radians clockwise from north in [0, 2 pi), 0 for no step.

    Parameters
    ----------
    step
        Source minus site ``[E, 2 or 3]``. On the sphere its part along the surface points along the
        great circle between the two.
    east, north
        Vectors of :func:`compass` at the site ``[E, 2 or 3]``.
    """
    # Adding zero turns -0.0 into 0.0, whose direction would be south.
    along_east = np.einsum("ek,ek->e", step, east) + 0.0
    along_north = np.einsum("ek,ek->e", step, north) + 0.0
    angle = np.arctan2(along_east, along_north)
    # Rounding may leave a bearing due north just under a full turn.
    return np.asarray(np.where(angle < -1e-9, angle + 2 * np.pi, np.abs(angle)))
