"""Which sites lie beside each other, and which of their edges correspond."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scisparse.errors import PatternError
from scisparse.grids import LatLonGrid, ProjectedGrid
from scisparse.pattern import Pattern
from scisparse.tying import site_shape

__all__ = ["neighbouring_sites", "tied_pairs"]

_Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]


def tied_pairs(pattern: Pattern, sites: Pattern | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of edges with the same tap at neighbouring sites.

    Those of a transposed window, whose sites may be closer than its steps, are at neighbouring
    sources: no tap of it belongs to two sites side by side.

    Parameters
    ----------
    pattern
        Its edges have taps.
    sites
        Pattern over the same points whose grid or window says which are neighbours, where `pattern`
        has lost its own with other edges.

    Returns
    -------
    first, second
        Edges, int64 ``[P]``.
    strength
        How strongly each pair is coupled, float64 ``[P]``; see :func:`neighbouring_sites`.

    Raises
    ------
    PatternError
        The pattern has no taps, or one of them twice at a site, or its sites are not on a grid with
        rows and columns.

    Examples
    --------
    >>> from scisparse.patterns import window
    >>> first, second, strength = tied_pairs(window((3,), 1))
    >>> first.tolist(), second.tolist(), strength.tolist()
    ([0, 1], [1, 2], [1.0, 1.0])
    """
    pattern, placed = pattern.to("cpu"), pattern if sites is None else sites
    if placed.window is not None and placed.window.transposed:
        sources, edge = pattern.transpose()
        *pair, coupling = tied_pairs(sources, placed.transpose()[0])
        return edge[pair[0]], edge[pair[1]], coupling
    if pattern.tap is None:
        raise PatternError(
            f"smoothness needs the taps of the edges and {pattern!r} has none; use "
            "patterns.window, or give Pattern.from_edge_index its tap="
        )
    first_sites, others, strength = neighbouring_sites(placed)
    edge_MK = np.full((pattern.num_sites, max(1, pattern.num_taps)), -1)
    edge_MK[pattern.rows().numpy(), pattern.tap.numpy()] = np.arange(pattern.num_edges)
    if np.count_nonzero(edge_MK >= 0) < pattern.num_edges:
        raise PatternError(
            f"smoothness needs a tap at most once a site, and {pattern!r} has sites that read "
            "several sources by one tap; number their edges apart"
        )
    first, second = edge_MK[first_sites], edge_MK[others]
    both = (first >= 0) & (second >= 0)
    strength_PK = np.broadcast_to(strength[:, None], both.shape)
    return (
        torch.from_numpy(first[both]),
        torch.from_numpy(second[both]),
        torch.from_numpy(strength_PK[both]),
    )


def neighbouring_sites(pattern: Pattern) -> _Pairs:
    """Pairs of sites that share a face, each once, and how strongly they are coupled.

    The coupling is the length of the face over the distance of the centres, the finite-volume form
    of the integral of a squared gradient, on grids with coordinates; 1 on index spaces. No face
    lies at a pole: cells that meet in the point of the pole are not coupled across it. Longitude is
    closed where the grid, or a window's circular padding, closes it.

    Returns
    -------
    tuple of arrays
        Sites ``[P]``, their neighbours ``[P]``, coupling ``[P]``.

    Raises
    ------
    PatternError
        The sites are not on a grid with rows and columns.
    GridError
        Its columns are not in order, as in :func:`scisparse.patterns.window`.
    """
    shape = site_shape(pattern)
    index = np.arange(pattern.num_sites).reshape(shape)
    parts = []
    for axis, (closed, coupling) in enumerate(_axes(pattern)):
        # Two points on a ring are neighbours once, not twice.
        last = shape[axis] if closed and shape[axis] > 2 else shape[axis] - 1
        arrays = (index, np.roll(index, -1, axis), np.broadcast_to(coupling, shape))
        parts.append([array.take(np.arange(last), axis).reshape(-1) for array in arrays])
    sites, others, strength = (np.concatenate(part) for part in zip(*parts, strict=True))
    return sites, others, strength


def _axes(pattern: Pattern) -> Iterator[tuple[bool, NDArray[np.float64]]]:
    """For each axis whether it closes, and the coupling of each site with the next along it.

    Couplings broadcast to the shape of the sites; where an axis does not close the last is not
    used.
    """
    grid, window = pattern.site_grid, pattern.window
    if isinstance(grid, LatLonGrid):
        grid.check_columns_in_order()
        yield from zip(grid.periodic, _sphere_coupling(grid), strict=True)
    elif isinstance(grid, ProjectedGrid):
        yield from zip(grid.periodic, _plane_coupling(grid), strict=True)
    elif grid is None and window is not None:
        for axis, mode in enumerate(window.padding_modes):
            # A window without padding ends before it comes round.
            sites, sources = window.output_size[axis], window.input_size[axis]
            around = window.transposed or sites * window.stride[axis] >= sources
            yield mode == "circular" and around, np.ones(1)
    else:
        raise PatternError(
            f"smoothness needs sites with rows and columns, and {pattern!r} is on "
            f"{'no grid' if grid is None else repr(grid)}; use patterns.window, "
            "or give Pattern.from_edge_index a site_grid= with rows and columns"
        )


def _sphere_coupling(grid: LatLonGrid) -> tuple[NDArray[np.float64], ...]:
    bounds, widths = grid.lat_bounds, grid.column_widths
    faces = np.cos(np.append(bounds[1:-1], np.pi / 2))
    north = faces / np.abs(_steps(grid.lat_axis))
    heights = np.abs(np.diff(bounds))
    # Mean cosine of latitude over a row: at a pole the cosine at the centre would be 0.
    cosine = np.abs(np.diff(np.sin(bounds))) / heights
    turn = _steps(grid.lon_axis, closing=grid.lon_axis[0])
    distance = np.abs(np.arctan2(np.sin(turn), np.cos(turn)))
    return north[:, None] * widths, (heights / cosine)[:, None] / np.where(distance, distance, 1)


def _plane_coupling(grid: ProjectedGrid) -> tuple[NDArray[np.float64], ...]:
    heights, widths = (_extents(axis) for axis in (grid.y_axis, grid.x_axis))
    north, east = (np.abs(_steps(axis)) for axis in (grid.y_axis, grid.x_axis))
    return widths / north[:, None], heights[:, None] / east


def _steps(axis: NDArray[np.float64], closing: float | None = None) -> NDArray[np.float64]:
    """Step from each value to the next; from the last one to `closing`, or 1."""
    after = axis[-1] + 1 if closing is None else closing
    return np.diff(axis, append=after)


def _extents(axis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Extent of each cell along its axis; 1 where there is but one."""
    return np.abs(np.gradient(axis)) if len(axis) > 1 else np.ones(1)
