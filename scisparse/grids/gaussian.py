"""Gaussian latitudes, and reduced Gaussian grids, whose rows are shorter towards the poles."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np

from scisparse.errors import GridError
from scisparse.grids.base import EARTH_RADIUS, FloatArray
from scisparse.grids.unstructured import UnstructuredGrid

__all__ = ["gaussian_bounds", "gaussian_latitudes", "reduced_gaussian"]

# Colatitudes of the first two of n rows, times n + 1/2: zeros of the Bessel function J0.
_FIRST, _SECOND = 2.404826, 5.520078
# Rounded latitudes in files are so close, in terms of the distance of rows; even rows are not.
_NEAR = 2e-3


def reduced_gaussian(name: str | Sequence[int]) -> UnstructuredGrid:
    r"""Build a reduced Gaussian grid, from north to south and eastward from the prime meridian.

    Row j of the octahedral grid O\ *N* has 20 + 4 j points, counted from 0 at the pole (Malardel et
    al., 2016). A row's area is its Gaussian weight times :math:`2 \pi R^2`.

    Parameters
    ----------
    name
        ``"O96"`` and the like, or the points of every row from north to south (``pl`` in GRIB),
        which also describes the older grids N80, N320, ... that follow no formula.

    Returns
    -------
    UnstructuredGrid
        Its axis is named ``"values"``.

    Raises
    ------
    GridError
        If the name is not octahedral, or there is no even number of rows with points each.

    References
    ----------
    Malardel, S., et al. (2016). A new grid for the IFS. ECMWF Newsletter 146. doi:10.21957/zwdu9u5i

    Examples
    --------
    >>> reduced_gaussian("O96")
    UnstructuredGrid(40320 points, lat -89.2842 to 89.2842)
    """
    points = _octahedral(name) if isinstance(name, str) else np.asarray(name)
    if points.size and points.dtype.kind not in "iu":
        raise GridError(f"`name` (dtype {points.dtype}) must be integers, the points of each row")
    points = points.astype(np.int64)
    if points.ndim != 1 or points.size < 2 or points.size % 2 or points.min() < 1:
        raise GridError(
            f"`name` (points of {points.size} rows) must give an even number of rows, at least one "
            "point each"
        )
    lat, weight = gaussian_latitudes(points.size)
    row = np.repeat(np.arange(points.size), points)
    first = np.cumsum(points) - points
    lon = (np.arange(row.size) - first[row]) * (2 * np.pi / points[row])
    areas = 2 * np.pi * EARTH_RADIUS**2 * (weight / points)[row]
    return UnstructuredGrid(lat[row], lon, areas=areas, dims=("values",))


def gaussian_bounds(lat: FloatArray) -> FloatArray | None:
    """Find latitudes between rows, such that the areas of the rows are Gaussian weights.

    Parameters
    ----------
    lat
        Latitudes in radians ``[n]``, rising or falling.

    Returns
    -------
    numpy.ndarray or None
        Radians ``[n + 1]``; ``None`` unless these are Gaussian latitudes, all of them or those from
        a pole on.
    """
    if abs(lat[0]) < abs(lat[-1]):
        bounds = gaussian_bounds(lat[::-1])
        return None if bounds is None else bounds[::-1]
    pole = np.copysign(1.0, lat[0])
    from_pole = np.pi / 2 - pole * lat[:2]
    if lat.size < 2 or abs(from_pole[1] * _FIRST - from_pole[0] * _SECOND) > 0.02 * from_pole[1]:
        return None
    rows = int(np.rint(_FIRST / from_pole[0] - 0.5))
    if rows % 2 or rows < lat.size:
        return None
    exact, weight = gaussian_latitudes(rows)
    if np.abs(pole * lat - exact[: lat.size]).max() > _NEAR * np.pi / rows:
        return None
    half = np.arcsin(1.0 - np.cumsum(weight[: rows // 2 - 1]))
    bounds = np.concatenate([[np.pi / 2], half, [0.0], -half[::-1], [-np.pi / 2]])
    return np.asarray(pole * bounds[: lat.size + 1], dtype=np.float64)


@functools.lru_cache(maxsize=8)
def gaussian_latitudes(rows: int) -> tuple[FloatArray, FloatArray]:
    """Find latitudes (radians, north to south) and weights (sum 2) of an even number of rows.

    Sines of the latitudes are the roots of the Legendre polynomial of that degree, by Newton's
    method.
    """
    angle = np.pi * (np.arange(1, rows // 2 + 1) - 0.25) / (rows + 0.5)
    x = np.cos(angle)
    for _ in range(4):
        value, slope = _legendre(rows, x)
        x = x - value / slope
    _, slope = _legendre(rows, x)
    weight = 2 / ((1 - x**2) * slope**2)
    lat = np.arcsin(x)
    found = np.concatenate([lat, -lat[::-1]]), np.concatenate([weight, weight[::-1]])
    for array in found:
        array.setflags(write=False)
    return found


def _legendre(degree: int, x: FloatArray) -> tuple[FloatArray, FloatArray]:
    before, value = np.ones_like(x), x
    for n in range(2, degree + 1):
        before, value = value, ((2 * n - 1) * x * value - (n - 1) * before) / n
    return value, degree * (before - x * value) / (1 - x**2)


def _octahedral(name: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    match = re.fullmatch(r"[Oo]([1-9]\d*)", name)
    if match is None:
        raise GridError(
            f"`name` (={name!r}) must be an octahedral grid such as 'O96'; give the points of each "
            "row (pl) for others"
        )
    northern = 20 + 4 * np.arange(int(match[1]), dtype=np.int64)
    return np.concatenate([northern, northern[::-1]])
