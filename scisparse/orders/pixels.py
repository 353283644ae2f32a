"""The order of HEALPix pixels, for any points on the sphere."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scisparse.errors import GridError
from scisparse.grids import Grid
from scisparse.grids.base import FloatArray

__all__ = ["healpix_nested"]

_LEVEL = 29  # the finest whose numbers, below 12 * 4**29, fit into int64
_DECIMALS = 12  # coordinates that differ by less are equal but for rounding


def healpix_nested(grid: Grid) -> Tensor:
    """Sort points by the nested HEALPix pixel that they lie in (Gorski et al., 2005).

    The sphere is cut into 12 base pixels, and each pixel into four, again and again. All points of
    a pixel, of whatever size, follow each other. There is no seam at the date line; from one base
    pixel to the next the order jumps.

    Parameters
    ----------
    grid
        Any points on the sphere, masked ones included.

    Returns
    -------
    torch.Tensor
        int64 ``[n]``: the number of the point that comes first, second and so on. Points in one
        pixel of 2**29 along a base pixel (12 mm) stay in their old order.

    Raises
    ------
    GridError
        `grid` is no ``Grid``, or latitude and longitude of its points are not known.

    References
    ----------
    Gorski, K. M., et al. (2005). HEALPix: A framework for high-resolution discretization and fast
    analysis of data distributed on the sphere. https://doi.org/10.1086/427976

    Examples
    --------
    >>> from scisparse.grids import healpix
    >>> healpix_nested(healpix(2, "ring"))[:8].tolist()
    [13, 5, 4, 0, 15, 7, 6, 1]
    """
    if not isinstance(grid, Grid):
        raise GridError(
            f"`grid` is a {type(grid).__name__}; give a grid, of a pattern its site_grid"
        )
    if not grid.has_lat_lon:
        raise GridError(
            f"`grid` ({grid!r}) must have latitudes and longitudes; give it lat= and lon="
        )
    return torch.from_numpy(np.argsort(_pixel(grid.lat, grid.lon), kind="stable"))


def _pixel(lat: FloatArray, lon: FloatArray) -> NDArray[np.int64]:
    """Number of the nested pixel of each point at the finest level.

    With `t` the distance from the north pole in rings over nside (1 and 3 where the caps end) and
    `east` the longitude in units of 45 degrees, the edges of pixels are the lines on which ``east +
    t`` or ``east - t`` is constant. In the caps, where rings get shorter towards the pole, `east`
    is drawn in towards the middle of its quarter first.
    """
    half = np.sin((np.pi / 2 - np.abs(lat)) / 2)  # no cancellation near the poles
    cap = np.sqrt(6) * half
    to_pole = np.where(cap < 1, cap, 2 - 1.5 * (1 - 2 * half**2))
    t = np.round(np.where(lat >= 0, to_pole, 4 - to_pole), _DECIMALS)
    east = np.mod(np.round(lon / (np.pi / 4), _DECIMALS), 8)
    width = np.minimum(1, np.minimum(t, 4 - t))
    middle = 2 * np.floor(east / 2) + 1
    east = np.where(width < 1, middle + width * (east - middle), east)
    # Corners of the base pixel to the south and in longitude: where both edges are whole numbers.
    rises, falls = np.floor((east + t + 1) / 2), np.floor((east - t + 1) / 2)
    south = np.where(t < 1, 2, np.where(t > 3, 4, 1 + rises - falls))
    centre = np.where(width < 1, middle, rises + falls)
    along = [(south - t + step * (east - centre)) / 2 for step in (1, -1)]
    u, v = (
        np.clip(np.floor(part * 2.0**_LEVEL), 0, 2**_LEVEL - 1).astype(np.int64) for part in along
    )
    base = (4 * (south - 2) + np.mod(centre, 8) // 2).astype(np.int64)
    within = np.zeros(len(base), np.int64)
    for level in range(_LEVEL):
        within |= ((u >> level) & 1) << (2 * level) | ((v >> level) & 1) << (2 * level + 1)
    pixel: NDArray[np.int64] = (base << (2 * _LEVEL)) | within
    return pixel
