"""Where the points of an unstructured grid lie on a map, and how large their markers are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scisparse.grids import UnstructuredGrid
from scisparse.grids.canonical import eastward

__all__ = ["Markers", "Places"]

FloatArray = NDArray[np.float64]
_GLOBE = 300.0  # points over more degrees of longitude are drawn from -180 to 180
_POLE = 90.0 - 1e-3  # latitude from which on a point has no longitude
_MARGIN, _LEAST = 0.05, 0.02  # around points, of that side of the map and of the longer one
# Heights of markers in points of 1/72 inch: cells of a field, and dots that show where points are.
_LARGEST_CELL, _LARGEST_DOT = 20.0, 9.0
_OVERLAP = 1.6  # of a cell's height to the spacing; sqrt(2) leaves no gaps on a square lattice
_DOT = 0.7  # height of a dot in terms of the mean spacing
_DIGITS = 4  # of a degree; latitudes of one row differ by less
_FEWEST = 12  # fewer points make no field; those of the smallest grids around the globe


@dataclass(frozen=True)
class Places:
    """Points on a map, longitudes in one piece, and the ends of the map; all in degrees.

    Attributes
    ----------
    lon, lat
        Of each point, ``[size]``.
    limits
        West and east end, south and north end.
    """

    lon: FloatArray
    lat: FloatArray
    limits: tuple[tuple[float, float], tuple[float, float]]

    @classmethod
    def of(cls, grid: UnstructuredGrid) -> Places:
        """Lay out points: a region from its own first meridian, the globe from -180 to 180."""
        lon, lat = np.rad2deg(grid.lon) % 360.0, np.rad2deg(grid.lat)
        placed = np.abs(lat) < _POLE
        placed = placed if placed.any() else np.full(lat.shape, True)
        east = eastward(lon[placed])
        west_end, east_end = float(east.min()), float(east.max())
        middle = 0.5 * (west_end + east_end)
        globe = east_end - west_end > _GLOBE
        if globe:
            east, west_end, east_end, middle = (east + 180.0) % 360.0 - 180.0, -180.0, 180.0, 0.0
        # Those of a pole stay where they are if that is on the map, and never widen it.
        lon = (lon - middle + 180.0) % 360.0 + middle - 180.0
        lon = np.where((lon < west_end) | (lon > east_end), middle, lon)
        lon[placed] = east
        south, north = float(lat.min()), float(lat.max())
        least = _LEAST * max(east_end - west_end, north - south) or 0.5
        around = 0.0 if globe else max(_MARGIN * (east_end - west_end), least)
        beyond = max(_MARGIN * (north - south), least)
        columns = (west_end - around, east_end + around)
        return cls(lon, lat, (columns, (max(south - beyond, -90.0), min(north + beyond, 90.0))))

    @property
    def area(self) -> float:
        """Area of the map on the sphere, in degrees squared."""
        (west, east), ends = self.limits
        south, north = np.sin(np.deg2rad(ends))
        return float((east - west) * np.rad2deg(north - south))


@dataclass(frozen=True)
class Markers:
    """Ellipses on a map, in degrees: discs on the sphere that make up a field, or round dots.

    Attributes
    ----------
    widths, heights
        Diameters along longitude and latitude, ``[size]``.
    outline
        Width of the outlines of dots in points of 1/72 inch; 0 where the markers make up a field.
    """

    widths: FloatArray
    heights: FloatArray
    outline: float

    @classmethod
    def of(cls, grid: UnstructuredGrid, places: Places, unit: float, stretch: float) -> Markers:
        """Choose cells for points that are evenly spaced and dense enough, dots for others.

        Parameters
        ----------
        grid, places
            Points, and where they lie on the map.
        unit
            Length that a degree of longitude is drawn with, in points of 1/72 inch.
        stretch
            How much longer a degree of latitude is drawn.
        """
        row = unit * stretch
        spacing = _spacing(grid)
        if spacing is not None and _OVERLAP * float(spacing.max()) * row <= _LARGEST_CELL:
            heights = _OVERLAP * np.maximum(spacing, _to_next_rows(grid, float(np.median(spacing))))
            return cls(_widths(grid.lat, _OVERLAP * spacing), heights, 0.0)
        height = min(_DOT * float(np.sqrt(places.area / grid.size)), _LARGEST_DOT / row)
        heights = np.full(grid.size, height)
        return cls(heights * stretch, heights, 0.05 * height * row)


def _widths(lat: FloatArray, heights: FloatArray) -> FloatArray:
    """Degrees of longitude over which discs at these latitudes (radians) reach.

    A disc of radius r reaches over ``arcsin(sin(r) / cos(lat))`` to either side; one that holds a
    pole gets a right angle, so that it hides no other of the ring around the pole. At a pole itself
    the ellipse is twice as wide as the globe: one as wide would leave the corners of the map empty.
    """
    sines = np.sin(0.5 * np.deg2rad(heights)) / np.maximum(np.cos(lat), 1e-9)
    widths = np.rad2deg(2.0 * np.arcsin(np.minimum(sines, 1.0)))
    return np.where(np.abs(np.rad2deg(lat)) < _POLE, widths, 720.0)


def _spacing(grid: UnstructuredGrid) -> FloatArray | None:
    """Degrees from each point to the next row of a field; ``None`` if the points make up none.

    In a field most points have two neighbours that are about equally far; of points thrown at
    random one in three has. The third lies in another row where rows are closer than columns. The
    mean of the third and the fourth is larger only where a point has three neighbours, as triangles
    have, between which larger holes are to be covered.
    """
    from scipy.spatial import cKDTree

    if grid.size < _FEWEST:
        return None
    positions = grid.positions()
    distances = np.rad2deg(cKDTree(positions).query(positions, k=5)[0])
    if np.mean(distances[:, 1] > 0.8 * distances[:, 2]) < 0.6:
        return None
    spacing = distances[:, 3:].mean(1)
    # A point alone has far neighbours, but its cell is no larger for that.
    return np.asarray(np.minimum(spacing, np.median(spacing)), dtype=np.float64)


def _to_next_rows(grid: UnstructuredGrid, most: float) -> FloatArray:
    """Degrees, `most` at the utmost, from each point to the farther of the rows beside its own.

    Near the poles the nearest points may all lie in the row: so do those of a grid of rows and
    columns. Points that lie in no rows have close latitudes, which say nothing.
    """
    rows, row = np.unique(np.round(np.rad2deg(grid.lat), _DIGITS), return_inverse=True)
    gaps = np.pad(np.diff(rows), 1, mode="edge") if rows.size > 1 else np.zeros(2)
    return np.asarray(np.minimum(np.maximum(gaps[:-1], gaps[1:])[row], most), dtype=np.float64)
