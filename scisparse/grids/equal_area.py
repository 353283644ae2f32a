"""HEALPix: pixels of equal area on rings of latitude."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scisparse.errors import GridError
from scisparse.grids.base import EARTH_RADIUS, FloatArray
from scisparse.grids.integers import integer
from scisparse.grids.unstructured import UnstructuredGrid

__all__ = ["healpix"]

# Distance of the southern corner of each base pixel from the north pole, in rings / nside, and
# longitude of its middle, in units of 45 degrees.
_SOUTH_CORNER = np.repeat([2, 3, 4], 4)
_MIDDLE = np.array([1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7])


def healpix(nside: int, order: str = "nested") -> UnstructuredGrid:
    r"""Build the pixel centres of HEALPix (Gorski et al., 2005).

    A centre lies ``t`` rings (in units of nside) from the north pole, at

    .. math:: z = 1 - t^2 / 3 \; (t < 1), \quad z = \tfrac{2}{3} (2 - t) \; (1 \le t \le 3)

    and mirrored to the south.

    Parameters
    ----------
    nside
        Pixels along the side of a base pixel; a power of two when nested. There are ``12 nside**2``
        pixels.
    order
        ``"nested"`` or ``"ring"``.

    Returns
    -------
    UnstructuredGrid
        Its axis is named ``"cell"``; all areas are equal.

    Raises
    ------
    GridError
        If ``nside`` is not positive, or not a power of two when nested, or ``order`` is unknown.

    References
    ----------
    Gorski, K. M., et al. (2005). HEALPix: A framework for high-resolution discretization and fast
    analysis of data distributed on the sphere. Astrophys. J. 622, 759. doi:10.1086/427976

    Examples
    --------
    >>> healpix(32)
    UnstructuredGrid(12288 points, lat -88.538 to 88.538)
    """
    if order not in ("nested", "ring"):
        raise GridError(f"`order` (={order!r}) must be 'nested' or 'ring'")
    nside = integer("nside", nside, GridError)
    if nside < 1 or (order == "nested" and nside & (nside - 1)):
        raise GridError(f"`nside` (={nside}) must be at least 1, and a power of two when nested")
    rings, lon = _nested(nside) if order == "nested" else _ring(nside)
    size = 12 * nside**2
    areas = np.full(size, 4 * np.pi * EARTH_RADIUS**2 / size)
    return UnstructuredGrid(_latitude(rings), lon, areas=areas, dims=("cell",))


def _latitude(t: FloatArray) -> FloatArray:
    # In the caps 1 - z = t^2 / 3 = 2 sin(colatitude / 2)^2: no cancellation near the poles.
    to_pole = np.minimum(t, 4 - t)
    cap = np.pi / 2 - 2 * np.arcsin(to_pole / np.sqrt(6))
    return np.where(
        to_pole < 1, np.copysign(cap, 2 - t), np.arcsin(np.clip((2 - t) * 2 / 3, -1, 1))
    )


def _nested(nside: int) -> tuple[FloatArray, FloatArray]:
    """Rings from the pole and longitude of each pixel, by base pixel and place in it."""
    face, within = np.divmod(np.arange(12 * nside**2), nside**2)
    u, v = (_even_bits(bits) + 0.5 for bits in (within, within >> 1))
    t = _SOUTH_CORNER[face] - (u + v) / nside
    # In the caps a base pixel narrows towards the pole.
    width = np.minimum(1, np.minimum(t, 4 - t))
    lon = np.pi / 4 * (_MIDDLE[face] + (u - v) / (nside * width))
    return t, np.mod(lon, 2 * np.pi)


def _ring(nside: int) -> tuple[FloatArray, FloatArray]:
    """Rings from the pole and longitude of each pixel, from north to south and eastward."""
    ring = np.arange(1, 4 * nside)
    quarter = np.minimum(nside, np.minimum(ring, 4 * nside - ring))
    # Every second ring of the equatorial belt starts on the prime meridian.
    on_meridian = (quarter == nside) & ((ring - nside) % 2 == 1)
    start = np.where(on_meridian, 0.0, 0.5)
    of_pixel = np.repeat(np.arange(ring.size), 4 * quarter)
    first = np.cumsum(4 * quarter) - 4 * quarter
    place = np.arange(of_pixel.size) - first[of_pixel]
    lon = (place + start[of_pixel]) * (np.pi / 2) / quarter[of_pixel]
    return ring[of_pixel] / nside, lon


def _even_bits(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Gather bits 0, 2, 4, ... into bits 0, 1, 2, ..."""
    bits = values & 0x5555555555555555
    for shift, keep in (
        (1, 0x3333333333333333),
        (2, 0x0F0F0F0F0F0F0F0F),
        (4, 0x00FF00FF00FF00FF),
        (8, 0x0000FFFF0000FFFF),
        (16, 0x00000000FFFFFFFF),
    ):
        bits = (bits | bits >> shift) & keep
    return bits
