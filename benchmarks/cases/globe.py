"""Patterns on the sphere, found with numpy alone: a bare machine with a GPU has no scipy."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from scisparse.grids import EARTH_RADIUS, Grid, icosahedral, reduced_gaussian
from scisparse.grids.base import unit_vectors
from scisparse.pattern import Pattern
from scisparse.patterns import mesh

__all__ = ["closest", "decoder", "encoder", "n320", "within"]

CUTOFF = 0.6  # of the spacing of the mesh: at level 6 every point of N320 is near some vertex
NEAREST = 3  # vertices that a point of the grid reads
CHUNK = 512
SLACK = 1 + 1e-9  # as in `scisparse.patterns.radius`: far above rounding

# Rows of N320 with so many points, from a pole to the equator.
# fmt: off
_N320 = {
    18: 1, 25: 1, 36: 1, 40: 1, 45: 1, 50: 1, 60: 1, 64: 1, 72: 2, 75: 1, 81: 1, 90: 1, 96: 1,
    100: 1, 108: 1, 120: 2, 125: 1, 135: 1, 144: 2, 150: 1, 160: 1, 180: 3, 192: 2, 200: 1, 216: 3,
    225: 1, 240: 3, 250: 1, 256: 1, 270: 2, 288: 3, 300: 2, 320: 3, 324: 1, 360: 6, 375: 2, 384: 2,
    400: 2, 405: 1, 432: 4, 450: 3, 480: 5, 486: 1, 500: 3, 512: 2, 540: 5, 576: 6, 600: 4, 640: 7,
    648: 2, 675: 4, 720: 9, 729: 1, 750: 4, 768: 4, 800: 6, 810: 2, 864: 11, 900: 8, 960: 14,
    972: 2, 1000: 8, 1024: 6, 1080: 14, 1125: 14, 1152: 9, 1200: 18, 1215: 7, 1280: 74,
}
# fmt: on

Index = NDArray[np.int64]


@cache
def n320() -> Grid:
    """The reduced Gaussian grid of ERA5, 542,080 points."""
    half = np.repeat(list(_N320), list(_N320.values()))
    return reduced_gaussian([*half.tolist(), *half[::-1].tolist()])


@cache
def encoder(level: int, grid: str | None = None) -> Pattern:
    """Vertices of a mesh read the points of a grid, N320 if not named, that are near.

    Near is within ``CUTOFF`` of the longest distance from a vertex to the vertex next to it.
    """
    spacing = mesh(level)
    distance, infinite = spacing.distance, torch.full((spacing.num_sites,), torch.inf)
    assert distance is not None
    shortest = infinite.scatter_reduce(0, spacing.rows(), distance, "amin")
    return within(_grid(grid), CUTOFF * float(shortest.max()), sites=icosahedral(level))


@cache
def decoder(level: int, grid: str | None = None) -> Pattern:
    """Points of a grid, N320 if not named, read the ``NEAREST`` vertices of a mesh."""
    return closest(icosahedral(level), NEAREST, sites=_grid(grid))


def _grid(name: str | None) -> Grid:
    return n320() if name is None else reduced_gaussian(name)


def within(sources: Grid, metres: float, *, sites: Grid | None = None) -> Pattern:
    """Read every source within a distance, as `scisparse.patterns.radius` does."""
    sites = sources if sites is None else sites
    site, source, _ = _near(sources, sites, metres)
    return _pattern(site, source, sources, sites)


def closest(sources: Grid, k: int, *, sites: Grid) -> Pattern:
    """Read the `k` nearest sources, spread evenly, as `scisparse.patterns.nearest` does."""
    spacing = EARTH_RADIUS * np.sqrt(4 * np.pi / sources.size)
    site, source, cosine = _near(sources, sites, np.sqrt(k) * spacing)
    order = np.lexsort((-cosine, site))
    first = np.searchsorted(site, np.arange(sites.size))  # sorted by site before and after
    kept = np.sort(order[np.arange(len(site)) - first[site] < k])
    if len(kept) != k * sites.size:
        raise ValueError(f"`sources` ({sources!r}) must be spread evenly; use patterns.nearest")
    return _pattern(site[kept], source[kept], sources, sites)


def _near(sources: Grid, sites: Grid, metres: float) -> tuple[Index, Index, NDArray[np.float64]]:
    """Pairs within a distance, sorted by (site, source), and the cosines of their angles.

    A chunk of sites of similar latitude looks at the sources of these latitudes alone.
    """
    angle = min(metres / EARTH_RADIUS * SLACK, np.pi)
    points, places = (unit_vectors(grid.lat, grid.lon) for grid in (sources, sites))
    by_lat, order = (np.argsort(grid.lat, kind="stable") for grid in (sources, sites))
    lat = sources.lat[by_lat]
    found: list[tuple[Index, Index, NDArray[np.float64]]] = []
    for start in range(0, sites.size, CHUNK):
        chunk = order[start : start + CHUNK]
        ends = sites.lat[chunk[[0, -1]]] + np.array([-angle, angle]) * SLACK
        near = by_lat[slice(*np.searchsorted(lat, ends))]
        cosine = places[chunk] @ points[near].T
        i, j = np.nonzero(cosine >= np.cos(angle))
        found.append((chunk[i], near[j], cosine[i, j]))
    site, source, cosines = (np.concatenate(part) for part in zip(*found, strict=True))
    ranked = np.argsort(site * sources.size + source)
    return site[ranked], source[ranked], cosines[ranked]


def _pattern(site: Index, source: Index, sources: Grid, sites: Grid) -> Pattern:
    row_ptr = np.concatenate([[0], np.bincount(site, minlength=sites.size).cumsum()])
    return Pattern(
        row_ptr=torch.from_numpy(row_ptr),
        col=torch.from_numpy(source.astype(np.int32)),
        num_sources=sources.size,
        site_grid=sites,
        source_grid=sources,
    )
