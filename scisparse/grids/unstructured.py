"""Points on the sphere in any order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scisparse.errors import GridError
from scisparse.grids.base import (
    EARTH_RADIUS,
    FloatArray,
    Grid,
    float_axis,
    pack_floats,
    pack_mask,
    unpack_floats,
    unpack_mask,
)

__all__ = ["UnstructuredGrid", "voronoi_areas"]

# A tetrahedron, the sparsest set that covers the sphere evenly, leaves holes of 70.5 degrees.
_LARGEST_HOLE = np.deg2rad(75.0)
# A hole so many times as wide as the usual gaps at its rim is one where points were left out, such
# as those on land: up to 100,000 random points leave 7, and a mesh eight times as fine inside 6.
_WIDEST_RATIO = 8.0
_REMEDY = "give `areas` when building the grid"


class UnstructuredGrid(Grid):
    """Points on the sphere in a fixed order, such as the cells of a triangular grid.

    Parameters
    ----------
    lat, lon
        Position of each point in radians, ``[size]``.
    mask
        Booleans ``[size]``, true at valid points.
    areas
        Area of each cell in square metres ``[size]``; when ``None``, the areas of the spherical
        Voronoi cells of the points, computed on first use (needs points all around the sphere).
        Points that coincide, as on a pole or at the seam of an ocean grid, share their cell.
    dims
        Name of the one axis.

    Raises
    ------
    GridError
        If the arrays differ in size, are not finite, lie beyond the poles, or an area is negative.

    Examples
    --------
    >>> from scisparse.grids import UnstructuredGrid
    >>> UnstructuredGrid([0.0, 0.1], [0.0, 3.1])
    UnstructuredGrid(2 points, lat 0 to 5.72958)
    """

    kind = "unstructured"

    def __init__(
        self,
        lat: ArrayLike,
        lon: ArrayLike,
        mask: ArrayLike | None = None,
        areas: ArrayLike | None = None,
        dims: tuple[str, ...] = ("point",),
    ) -> None:
        self._lat, self._lon = float_axis("lat", lat), float_axis("lon", lon)
        if self._lon.size != self._lat.size:
            raise GridError(
                f"`lon` ({self._lon.size} values) must have as many as `lat` ({self._lat.size})"
            )
        super().__init__(self._lat.shape, mask)
        largest = float(np.abs(self._lat).max())
        if largest > np.pi / 2 + 1e-6:
            raise GridError(
                f"`lat` ({largest:.6g}) must lie between -pi/2 and pi/2 radians; convert degrees"
            )
        if len(dims) != 1:
            raise GridError(f"`dims` (={dims}) must name one axis")
        self._dims = tuple(dims)
        self._given_areas = None if areas is None else _checked_areas(areas, self.size)
        self._areas = self._given_areas

    @classmethod
    def from_grid(cls, grid: Grid, order: ArrayLike) -> UnstructuredGrid:
        """Put the points of a grid in another order; mask and areas go with their points.

        Parameters
        ----------
        grid
            On the sphere.
        order
            Integers ``[size]``: number of the point that comes first, second and so on.

        Raises
        ------
        GridError
            The grid lies in the plane, or the order is no permutation.

        Examples
        --------
        >>> grid = UnstructuredGrid([0.0, 0.1, 0.2], [0.0, 3.1, 2.0], areas=[1.0, 2.0, 3.0])
        >>> UnstructuredGrid.from_grid(grid, [2, 0, 1]).areas.tolist()
        [3.0, 1.0, 2.0]
        """
        if not grid.spherical:
            raise GridError(f"`grid` ({grid!r}) must lie on the sphere: points do in any order")
        index = np.asarray(order)
        if index.dtype.kind not in "iu" or not np.array_equal(np.sort(index), np.arange(grid.size)):
            raise GridError(
                f"`order` ({index.dtype} {list(index.shape)}) must be a permutation: name each "
                f"point below {grid.size} once"
            )
        mask = None if grid.mask is None else grid.valid[index]
        lat, lon = grid.lat[index], grid.lon[index]
        if not isinstance(grid, UnstructuredGrid):
            return cls(lat, lon, mask, grid.areas[index])
        given = None if grid._given_areas is None else grid._given_areas[index]
        return cls(lat, lon, mask, given, grid.dims)

    @property
    def dims(self) -> tuple[str, ...]:
        """Name of the one axis."""
        return self._dims

    @property
    def lat(self) -> FloatArray:
        """Latitude of each point in radians, ``[size]``."""
        return self._lat

    @property
    def lon(self) -> FloatArray:
        """Longitude of each point in radians, ``[size]``."""
        return self._lon

    @property
    def areas(self) -> FloatArray:
        """Area of each cell in square metres, ``[size]``; masked cells count too."""
        if self._areas is None:
            self._areas = voronoi_areas(self.positions())
            self._areas.setflags(write=False)
        return self._areas

    def with_mask(self, mask: ArrayLike | None) -> UnstructuredGrid:
        """Give the same points with another mask: an array, or a DataArray by its coordinates."""
        grid = UnstructuredGrid(self._lat, self._lon, mask, self._given_areas, self._dims)
        grid._areas = self._areas
        return grid

    def to_dict(self) -> dict[str, Any]:
        """Write the grid as values that JSON can hold; large arrays as base64 of their bytes."""
        return {
            "kind": self.kind,
            "lat": pack_floats(self._lat),
            "lon": pack_floats(self._lon),
            "mask": pack_mask(self._mask),
            "areas": None if self._given_areas is None else pack_floats(self._given_areas),
            "dims": list(self._dims),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> UnstructuredGrid:
        """Read what :meth:`to_dict` wrote."""
        lat, lon = unpack_floats(values["lat"]), unpack_floats(values["lon"])
        areas = None if values["areas"] is None else unpack_floats(values["areas"])
        return cls(lat, lon, unpack_mask(values["mask"], lat.shape), areas, tuple(values["dims"]))

    def _arrays(self) -> tuple[NDArray[Any] | None, ...]:
        return (self._lat, self._lon, self._mask, self._given_areas)

    def __reduce__(self) -> tuple[Any, ...]:
        return (UnstructuredGrid, (*self._arrays(), self._dims))

    def _describe(self) -> str:
        lat = np.rad2deg([self._lat.min(), self._lat.max()])
        return f"{self.size} points, lat {lat[0]:.6g} to {lat[1]:.6g}"


def voronoi_areas(points: FloatArray, radius: float = EARTH_RADIUS) -> FloatArray:
    """Compute the areas of the spherical Voronoi cells of unit vectors.

    The convex hull of the points is their Delaunay triangulation on the sphere. Each triangle is
    cut into six by its circumcentre and the middles of its sides; the two that touch a corner
    belong to the cell of that corner. Signed areas make this exact where the circumcentre lies
    outside. Points that coincide have equal parts of their cell.

    Parameters
    ----------
    points
        Unit vectors ``[size, 3]``.
    radius
        Radius of the sphere in metres.

    Returns
    -------
    numpy.ndarray
        Areas ``[size]`` in square metres; they sum to ``4 pi radius**2``.

    Raises
    ------
    GridError
        If there are fewer than four points, or they leave a hole: then cells at its rim would be
        far too large.
    """
    from scipy.spatial import ConvexHull, QhullError

    try:
        hull = ConvexHull(points)
    except (QhullError, ValueError) as error:
        raise GridError(
            f"`areas` of {len(points)} points cannot be derived (all in one plane); {_REMEDY}"
        ) from error
    faces = hull.simplices
    corners = points[faces]
    centres = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    inward = np.einsum("fk,fk->f", centres, hull.equations[:, :3]) < 0
    corners[inward] = corners[inward][:, [0, 2, 1]]
    faces[inward] = faces[inward][:, [0, 2, 1]]
    centres[inward] *= -1
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    _check_covered(faces, np.einsum("fk,fk->f", centres, corners[:, 0]), len(points))
    areas = np.zeros(len(points))
    for k in range(3):
        here, after, before = corners[:, k], corners[:, (k + 1) % 3], corners[:, (k + 2) % 3]
        part = _triangle_area(here, here + after, centres) + _triangle_area(
            here, centres, here + before
        )
        areas += np.bincount(faces[:, k], weights=part, minlength=len(points))
    return _shared(areas, faces, points) * radius**2


def _check_covered(faces: NDArray[np.int32], cosines: FloatArray, size: int) -> None:
    """Raise where a face, given the cosine of its circumscribed circle, spans a hole."""
    radii = np.arccos(np.clip(cosines, -1, 1))
    nearest = np.full(size, np.pi)
    np.minimum.at(nearest, faces, radii[:, None])
    usual = nearest[faces].max(axis=1)
    holes = (radii > _LARGEST_HOLE) | (radii > _WIDEST_RATIO * usual)
    if holes.any():
        raise GridError(
            "`areas` cannot be derived: the points leave a hole of "
            f"{np.rad2deg(radii[holes].max()):.3g} degrees radius and do not cover the sphere; "
            f"{_REMEDY}"
        )


def _shared(areas: FloatArray, faces: NDArray[np.int32], points: FloatArray) -> FloatArray:
    """Divide cells among points that coincide, of which only one is a corner of faces."""
    from scipy.spatial import cKDTree

    corners = np.unique(faces)
    if corners.size == len(points):
        return areas
    corner = corners[cKDTree(points[corners]).query(points)[1]]
    return np.asarray((areas / np.maximum(1, np.bincount(corner, minlength=len(points))))[corner])


def _triangle_area(a: FloatArray, b: FloatArray, c: FloatArray) -> FloatArray:
    """Signed solid angles of triangles of vectors (van Oosterom and Strackee, 1983)."""
    a, b, c = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (a, b, c))
    volume = np.einsum("fk,fk->f", a, np.cross(b, c))
    cosines = (np.einsum("fk,fk->f", u, v) for u, v in ((a, b), (b, c), (c, a)))
    return np.asarray(2 * np.arctan2(volume, 1 + sum(cosines)), dtype=np.float64)


def _checked_areas(areas: ArrayLike, size: int) -> FloatArray:
    array = float_axis("areas", areas)
    if array.size != size:
        raise GridError(
            f"`areas` ({array.size} values) must have one value for each of the {size} points"
        )
    if (array < 0).any():
        raise GridError(f"`areas` ({array.min():.6g}) must not be negative")
    return array
