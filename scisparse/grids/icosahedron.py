"""Icosahedral meshes: an icosahedron whose faces are cut in four again and again."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scisparse.errors import GridError
from scisparse.grids.base import FloatArray, unit_vectors
from scisparse.grids.integers import integer
from scisparse.grids.unstructured import UnstructuredGrid

__all__ = ["icosahedral", "icosahedral_faces"]

_DEEPEST = 10


def icosahedral(level: int) -> UnstructuredGrid:
    """Build the vertices of a refined icosahedron, two of them at the poles.

    Each level cuts every face into four at the middles of its sides. The vertices of a level come
    first among those of the next. There are ``10 * 4**level + 2``.

    Parameters
    ----------
    level
        Times to cut the icosahedron, 0 to 10.

    Returns
    -------
    UnstructuredGrid
        Its axis is named ``"vertex"``; areas are those of the Voronoi cells.

    Raises
    ------
    GridError
        If the level is out of range.

    Examples
    --------
    >>> icosahedral(3)
    UnstructuredGrid(642 points, lat -90 to 90)
    """
    vertices, _ = _refined(level)
    lat = np.arctan2(vertices[:, 2], np.hypot(vertices[:, 0], vertices[:, 1]))
    lon = np.arctan2(vertices[:, 1], vertices[:, 0])
    return UnstructuredGrid(lat, lon, dims=("vertex",))


def icosahedral_faces(level: int) -> NDArray[np.int64]:
    """Give the triangles between the vertices of :func:`icosahedral`, anticlockwise from outside.

    Parameters
    ----------
    level
        Times to cut the icosahedron, 0 to 10.

    Returns
    -------
    numpy.ndarray
        Vertices of each face, ``[20 * 4**level, 3]``.

    Raises
    ------
    GridError
        If the level is out of range.

    Examples
    --------
    >>> icosahedral_faces(2).shape
    (320, 3)
    """
    return _refined(level)[1]


def _refined(level: int) -> tuple[FloatArray, NDArray[np.int64]]:
    level = integer("level", level, GridError)
    if not 0 <= level <= _DEEPEST:
        raise GridError(f"`level` (={level}) must lie between 0 and {_DEEPEST}")
    vertices, faces = _icosahedron()
    for _ in range(level):
        vertices, faces = _cut(vertices, faces)
    return vertices, faces


def _icosahedron() -> tuple[FloatArray, NDArray[np.int64]]:
    fifth = np.arange(5)
    lat = np.concatenate(
        [[np.pi / 2], np.full(5, np.arctan(0.5)), np.full(5, -np.arctan(0.5)), [-np.pi / 2]]
    )
    lon = np.concatenate([[0], fifth * 0.4 * np.pi, (fifth + 0.5) * 0.4 * np.pi, [0]])
    upper, upper_next = 1 + fifth, 1 + (fifth + 1) % 5
    lower, lower_next = 6 + fifth, 6 + (fifth + 1) % 5
    north, south = np.zeros(5, dtype=np.int64), np.full(5, 11)
    faces = [
        (north, upper, upper_next),
        (upper, lower, upper_next),
        (upper_next, lower, lower_next),
        (lower, south, lower_next),
    ]
    return unit_vectors(lat, lon), np.concatenate([np.stack(face, axis=1) for face in faces])


def _cut(vertices: FloatArray, faces: NDArray[np.int64]) -> tuple[FloatArray, NDArray[np.int64]]:
    sides = np.stack([faces, np.roll(faces, -1, axis=1)], axis=-1)
    low, high = sides.min(axis=-1), sides.max(axis=-1)
    keys, middle = np.unique(low * len(vertices) + high, return_inverse=True)
    first, second = np.divmod(keys, len(vertices))
    added = vertices[first] + vertices[second]
    added /= np.linalg.norm(added, axis=1, keepdims=True)
    ab, bc, ca = (len(vertices) + middle.reshape(faces.shape)).T
    a, b, c = faces.T
    parts = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    return np.concatenate([vertices, added]), np.concatenate(
        [np.stack(part, axis=1) for part in parts]
    )
