"""Curves through the plane and through space that visit near points one after the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.grids import Grid

__all__ = ["hilbert", "morton"]

_Ints = NDArray[np.int64]

# Coordinates, as parts of the extent, that differ by less are equal but for rounding.
_DECIMALS = 12


def hilbert(points: Grid | ArrayLike) -> Tensor:
    """Sort points along a Hilbert curve, so that points with near numbers are near each other.

    Points on the sphere are sorted along a curve through the cube around it: there is no seam at
    the date line, and the points of a pole follow each other. The order pays where the fast memory
    holds less than the latitudes that a stencil spans; where it holds them, latitude by latitude is
    as good or better. ``sparsity.reordering.simulated_io`` counts both, for tiles
    ``Pattern.tile_occupancy``.

    Parameters
    ----------
    points
        A grid, masked points included, or positions ``[n, 2]`` or ``[n, 3]`` in any unit.

    Returns
    -------
    torch.Tensor
        int64 ``[n]``: the number of the point that comes first, second and so on. Points closer
        than one part in ``2**31`` of the extent (``2**20`` in three dimensions: 12 m on the globe)
        may stay in their old order.

    Raises
    ------
    OptionError
        `points` are no numbers, have another shape, or are not finite.

    References
    ----------
    Hamilton, C. H., Rau-Chaplin, A. (2008). Compact Hilbert indices: Space-filling curves for
    domains with unequal side lengths. https://doi.org/10.1016/j.ipl.2007.08.034

    Examples
    --------
    >>> hilbert([[0, 0], [0, 1], [1, 0], [1, 1]]).tolist()
    [0, 1, 3, 2]
    """
    return _along(points, _hilbert)


def morton(points: Grid | ArrayLike) -> Tensor:
    """Sort points along a Morton curve (Z order): by the bits of their coordinates, interleaved.

    Every aligned square or cube of ``2**k`` cells is one run of numbers, as along a Hilbert curve,
    but one run may end far from where the next begins.

    Parameters
    ----------
    points
        A grid, masked points included, or positions ``[n, 2]`` or ``[n, 3]`` in any unit. Points on
        the sphere are sorted in the cube around it.

    Returns
    -------
    torch.Tensor
        int64 ``[n]``: the number of the point that comes first, second and so on; as fine as
        :func:`hilbert`.

    Raises
    ------
    OptionError
        `points` are no numbers, have another shape, or are not finite.

    References
    ----------
    Morton, G. M. (1966). A computer oriented geodetic data base and a new technique in file
    sequencing. IBM, Ottawa.

    Examples
    --------
    >>> morton([[0, 0], [0, 1], [1, 0], [1, 1]]).tolist()
    [0, 2, 1, 3]
    """
    return _along(points, _morton)


def _along(points: Grid | ArrayLike, curve: Callable[[_Ints, int], _Ints]) -> Tensor:
    """Sort points by their place on a curve through cells ``[n, D]`` of so many bits an axis."""
    try:
        positions = np.asarray(
            points.positions() if isinstance(points, Grid) else points, np.float64
        )
    except (TypeError, ValueError):
        raise OptionError(
            f"`points` is a {type(points).__name__}; give a grid (of a pattern, its site_grid), or "
            "positions [n, 2] or [n, 3]"
        ) from None
    if positions.ndim != 2 or positions.shape[1] not in (2, 3):
        raise OptionError(f"`points` (shape {positions.shape}) must be a grid, [n, 2] or [n, 3]")
    if not np.isfinite(positions).all():
        point = int(np.flatnonzero(~np.isfinite(positions).all(1))[0])
        raise OptionError(
            f"`points` must be finite, but point {point} is at {positions[point].tolist()}; "
            "leave missing points out"
        )
    if not len(positions):
        return torch.empty(0, dtype=torch.int64, device="cpu")
    bits = 62 // positions.shape[1]
    place = curve(_cells(positions, bits), bits)
    return torch.from_numpy(np.argsort(place, kind="stable"))


def _cells(positions: NDArray[np.float64], bits: int) -> _Ints:
    """Cell of each point along each axis, int64 ``[n, D]`` from 0 to ``2**bits - 1``."""
    low = positions.min(0)
    extent = (positions.max(0) - low).max() or 1.0
    part = np.round((positions - low) / extent, _DECIMALS)
    cells: _Ints = np.minimum(np.floor(part * 2.0**bits), 2**bits - 1).astype(np.int64)
    return cells


def _morton(cells: _Ints, bits: int) -> _Ints:
    """Place of each cell on the Morton curve: bit `level` of axis `d` becomes bit ``D level + d``.

    The last axis counts most, as in the order of its coordinates.
    """
    dims = cells.shape[1]
    place = np.zeros(len(cells), np.int64)
    for level in range(bits):
        for axis in range(dims):
            place |= ((cells[:, axis] >> level) & 1) << (dims * level + axis)
    return place


def _hilbert(cells: _Ints, bits: int) -> _Ints:
    """Place of each cell on the Hilbert curve through ``2**bits`` cells an axis.

    At each level the curve runs through the corners of a cube in the order of a Gray code, which
    starts at the corner `start` and leaves along `axis`; both change from corner to corner so that
    the curve inside one corner ends where that inside the next begins.
    """
    dims = cells.shape[1]
    corner_of, start_of, axis_of = _corners(dims)
    rank = np.argsort(corner_of)
    place, start, axis = (np.zeros(len(cells), np.int64) for _ in range(3))
    for level in reversed(range(bits)):
        corner = (((cells >> level) & 1) << np.arange(dims)).sum(1)
        step = rank[_rotate(corner ^ start, axis + 1, dims)]
        start ^= _rotate(start_of[step], dims - (axis + 1) % dims, dims)
        axis = (axis + axis_of[step] + 1) % dims
        place = (place << dims) | step
    return place


def _corners(dims: int) -> tuple[_Ints, _Ints, _Ints]:
    """Corners of a cube along the curve, as bits; where the curve inside each starts; its axis."""
    steps = np.arange(2**dims)
    gray = steps ^ (steps >> 1)
    start = gray[np.maximum(0, (steps - 1) // 2 * 2)]
    odd = steps - (steps % 2 == 0)  # the odd number at or before
    changed = ~odd & (odd + 1)  # lowest bit that is not set
    axis = np.where(steps == 0, 0, np.log2(np.maximum(1, changed)).astype(np.int64)) % dims
    return gray, start, axis


def _rotate(bits: _Ints, by: _Ints, dims: int) -> _Ints:
    """Move `dims` bits to the right by some places; those that fall out come in on the left."""
    by = by % dims
    turned: _Ints = ((bits >> by) | (bits << (dims - by))) & (2**dims - 1)
    return turned
