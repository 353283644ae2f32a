"""Neighbours by distance: all within a radius, or the nearest few."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from scisparse.errors import OptionError
from scisparse.grids import Grid
from scisparse.grids.base import FloatArray
from scisparse.grids.integers import integer
from scisparse.pattern import Pattern
from scisparse.pattern.geometry import (
    Cloud,
    Index,
    bearing,
    chord_length,
    clouds,
    compass,
    great_circle,
)

if TYPE_CHECKING:
    from scipy.spatial import cKDTree

__all__ = ["nearest", "pattern_of", "radius"]

# Edges held at once in double precision while searching: bounds memory at some 100 MB.
_CHUNK_EDGES = 1_000_000
# One site in this many is counted beforehand to size the chunks.
_SAMPLE = 16
# Distances that equal the radius on paper must count as inside for every site, whatever the
# rounding: relative, and in metres.
_SLACK, _SLACK_METRES = 1 + 1e-9, 1e-6
# A full turn in whole micro-radians.
_TURN = 6_283_185

# Sites, sources (places in their clouds) and straight distances of some edges, sorted by (site,
# source).
_Edges = tuple[Index, Index, FloatArray]


def radius(
    sources_grid: Grid,
    metres: float,
    *,
    sites: Grid | None = None,
    max_fan_in: int | None = None,
    include_self: bool = True,
) -> Pattern:
    """Read every source within a distance of the site.

    Distances are great circles on the sphere, and straight lines between two projected grids.
    Masked sources are never read, and masked sites have no edges.

    Parameters
    ----------
    sources_grid
        Where the sources are.
    metres
        Largest distance, itself included.
    sites
        Where the sites are; the sources' grid when ``None``.
    max_fan_in
        Keep at most this many sources of each site, the nearest ones, as :func:`nearest` does.
    include_self
        Whether a point reads itself; false needs sites on the sources' grid.

    Returns
    -------
    Pattern
        With ``distance`` and ``bearing``, and without taps.

    Raises
    ------
    OptionError
        If a grid is no ``Grid``, ``metres`` is no number, negative or not finite, ``max_fan_in`` is
        not positive, or ``include_self=False`` comes with another grid.
    GridError
        If one grid is projected, without latitude and longitude, and the other is not.

    Examples
    --------
    >>> from scisparse.grids import LatLonGrid
    >>> radius(LatLonGrid.regular(19, 36), 1_200_000)
    Pattern(684 sites x 684 sources, 12204 edges, fan-in 5 to 72)
    """
    try:
        fits = bool(np.isfinite(metres) and metres >= 0)
    except TypeError:
        fits = False
    if not fits:
        raise OptionError(f"`metres` (={metres!r}) must be finite and not negative, a number")
    if max_fan_in is not None:
        max_fan_in = integer("max_fan_in", max_fan_in, OptionError)
        if max_fan_in < 1:
            raise OptionError(
                f"`max_fan_in` (={max_fan_in}) must be at least 1, or None for no limit"
            )
    target = _sites(sources_grid, sites, include_self)
    sources, places = clouds(sources_grid, target)
    reach = chord_length(metres * _SLACK + _SLACK_METRES, sources.spherical)
    tree = _tree(sources)
    if max_fan_in is None:
        found = _within(tree, places, reach, include_self)
    else:
        found = _closest(tree, sources, places, min(max_fan_in, tree.n), reach, include_self)
    return pattern_of(found, sources, places, sources_grid, target)


def nearest(
    sources_grid: Grid, k: int, *, sites: Grid | None = None, include_self: bool = True
) -> Pattern:
    """Read the k sources nearest to the site.

    Distances are great circles on the sphere, and straight lines between two projected grids.
    Masked sources are never read, and masked sites have no edges. Of sources at the same distance,
    such as those to the east and to the west, the first ones clockwise from north are read (at one
    place, the first ones eastward), so that all longitudes choose alike.

    Parameters
    ----------
    sources_grid
        Where the sources are.
    k
        Fan-in of each site.
    sites
        Where the sites are; the sources' grid when ``None``.
    include_self
        Whether a point counts as its own nearest; false needs sites on the sources' grid.

    Returns
    -------
    Pattern
        With ``distance`` and ``bearing``, and without taps.

    Raises
    ------
    OptionError
        If a grid is no ``Grid``, ``k`` is not positive or more than there are valid sources, or
        ``include_self=False`` comes with another grid.
    GridError
        If one grid is projected, without latitude and longitude, and the other is not.

    Examples
    --------
    >>> from scisparse.grids import LatLonGrid
    >>> nearest(LatLonGrid.regular(18, 36, poles=False), 4, sites=LatLonGrid.regular(10, 20))
    Pattern(200 sites x 648 sources, 800 edges, fan-in 4)
    """
    k = integer("k", k, OptionError)
    target = _sites(sources_grid, sites, include_self)
    sources, places = clouds(sources_grid, target)
    most = len(sources.index) - (not include_self)
    if not 1 <= k <= most:
        raise OptionError(
            f"`k` (={k}) must lie between 1 and the {most} sources there are to choose from"
        )
    found = _closest(_tree(sources), sources, places, k, np.inf, include_self)
    return pattern_of(found, sources, places, sources_grid, target)


def _sites(sources_grid: Grid, sites: Grid | None, include_self: bool) -> Grid:
    for name, grid in (("sources_grid", sources_grid), ("sites", sites)):
        if not isinstance(grid, Grid) and (name, grid) != ("sites", None):
            raise OptionError(
                f"`{name}` ({type(grid).__name__}) must be a grid, such as "
                "scisparse.grids.LatLonGrid.regular(19, 36)"
            )
    if sites is None or sites is sources_grid:
        return sources_grid
    if not include_self and sites != sources_grid:
        raise OptionError(
            "`include_self` (=False) needs sites on the sources' grid: leave it True between grids"
        )
    return sites


def _tree(sources: Cloud) -> cKDTree:
    from scipy.spatial import cKDTree

    # Grids are spread evenly: splitting at the middle builds several times faster than at the
    # median.
    return cKDTree(sources.points, balanced_tree=False, compact_nodes=False)


def _within(tree: cKDTree, sites: Cloud, reach: float, include_self: bool) -> Iterator[_Edges]:
    """Find all pairs within reach, in chunks of sites that hold a bounded number of edges."""
    from scipy.spatial import cKDTree

    sample = sites.points[::_SAMPLE]
    counts = tree.query_ball_point(sample, reach, return_length=True, workers=-1)
    ends = np.cumsum(np.repeat(counts, _SAMPLE)[: len(sites.index)])
    start = 0
    while start < ends.size:
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _CHUNK_EDGES, side="right")))
        chunk = cKDTree(sites.points[start:stop], balanced_tree=False, compact_nodes=False)
        pairs = chunk.sparse_distance_matrix(tree, reach, output_type="ndarray")
        i, j, chord = pairs["i"] + start, pairs["j"], pairs["v"]
        if not include_self:
            other = i != j
            i, j, chord = i[other], j[other], chord[other]
        order = np.argsort(i * tree.n + j)
        yield i[order], j[order], chord[order]
        start = stop


def _closest(
    tree: cKDTree, sources: Cloud, sites: Cloud, k: int, reach: float, include_self: bool
) -> Iterator[_Edges]:
    """Find the k nearest within reach, in chunks of sites."""
    if tree.n == 0:
        return
    asked = k if include_self else min(k + 1, tree.n)
    # One more shows whether the last is alone at its distance, two more that a pair is no more.
    wide = min(asked + 2, tree.n)
    step = max(1, _CHUNK_EDGES // wide)
    # The bound of the tree is exclusive.
    bound = np.nextafter(reach, np.inf)
    for start in range(0, len(sites.index), step):
        part = slice(start, start + step)
        some = Cloud(sites.index[part], sites.points[part], sites.spherical)
        chord, j = _query(tree, some.points, wide, bound)
        _settle_ties(tree, sources, some, (chord, j), asked, bound)
        chord, j = chord[:, :asked], j[:, :asked]
        i = np.broadcast_to(np.arange(start, start + len(j))[:, None], j.shape)
        found = j < tree.n
        if not include_self:
            itself = j == i
            # Where other points coincide with the site it may not be among those found: drop the
            # farthest.
            itself[~itself.any(axis=1) & found.all(axis=1), -1] = asked > k
            found &= ~itself
        order = np.argsort(np.where(found, j, tree.n), axis=1)
        i, j, chord, found = i, *(np.take_along_axis(a, order, axis=1) for a in (j, chord, found))
        yield i[found], j[found], chord[found]


def _query(tree: cKDTree, points: FloatArray, k: int, bound: float) -> tuple[FloatArray, Index]:
    """Straight distance and place of the k nearest, ``[n, k]``; infinity where there are fewer."""
    chord, j = tree.query(points, k, distance_upper_bound=bound, workers=-1)
    return chord.reshape(-1, k), j.reshape(-1, k)


def _settle_ties(
    tree: cKDTree,
    sources: Cloud,
    sites: Cloud,
    found: tuple[FloatArray, Index],
    asked: int,
    bound: float,
) -> None:
    """Choose anew, in place, where more sources are as far away as the last of those asked for.

    The tree chooses among them by the rounding of their positions.
    """
    chord, j = found
    slack = chord_length(_SLACK_METRES, sites.spherical)
    rim = chord[:, asked - 1]
    near, far = rim / _SLACK - slack, rim * _SLACK + slack
    more = chord[:, asked:]
    rows = np.flatnonzero(((more <= far[:, None]) & np.isfinite(more)).any(axis=1))
    width, wider = chord.shape[1], iter([(rows, chord[rows], j[rows])])
    while rows.size:
        left = []
        for some, apart, place in wider:
            whole = (apart[:, -1] > far[some]) | (width == tree.n)
            left.append(some[~whole])
            some, apart, place = some[whole], apart[whole], place[whole]
            key = np.where(apart > far[some, None], 1 + 2 * _TURN**2, np.zeros_like(place))
            row, column = np.nonzero((key == 0) & (apart >= near[some, None]))
            tied = some[row], place[row, column], apart[row, column] <= slack
            key[row, column] = 1 + _direction(sources, sites, *tied)
            best = np.lexsort((place, key))[:, :asked]
            chord[some, :asked] = np.take_along_axis(apart, best, axis=1)
            j[some, :asked] = np.take_along_axis(place, best, axis=1)
        rows, width = np.concatenate(left), min(2 * width, tree.n)
        wider = _queries(tree, sites, rows, width, bound)


def _queries(
    tree: cKDTree, sites: Cloud, rows: Index, width: int, bound: float
) -> Iterator[tuple[Index, FloatArray, Index]]:
    """The nearest of some sites, chunk by chunk."""
    step = max(1, _CHUNK_EDGES // width)
    for first in range(0, rows.size, step):
        some = rows[first : first + step]
        yield some, *_query(tree, sites.points[some], width, bound)


def _direction(
    sources: Cloud, sites: Cloud, i: Index, j: Index, coincide: NDArray[np.bool_]
) -> Index:
    """Rank of edges by bearing, then by longitude eastward from the site, below ``2 _TURN**2``.

    In whole micro-radians, as rounding differs from one longitude to the next. At one place a point
    comes before others, where sites are sources.
    """
    points, ends = sites.points[i], sources.points[j]
    east, north = compass(Cloud(i, points, sites.spherical))
    turn = bearing(ends - points, east, north)
    turn[coincide] = 0  # there is no direction between two points at one place
    angles = [turn]
    if sites.spherical:
        angles.append(np.subtract(*(np.arctan2(p[:, 1], p[:, 0]) for p in (ends, points))))
    other = np.asarray(sources.index[j] != sites.index[i], dtype=np.int64)
    whole = [np.rint(a % (2 * np.pi) * 1e6).astype(np.int64) % _TURN for a in angles]
    return (whole[0] * _TURN + (whole[1] if len(whole) > 1 else 0)) * 2 + other


def pattern_of(
    found: Iterator[_Edges], sources: Cloud, sites: Cloud, source_grid: Grid, site_grid: Grid
) -> Pattern:
    """Make a pattern, with distances and bearings, of edges sorted by (site, source)."""
    fan_in = np.zeros(site_grid.size + 1, dtype=np.int64)
    east, north = compass(sites)
    parts: list[tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]] = []
    for i, j, chord in found:
        step = np.take(sources.points, j, axis=0) - np.take(sites.points, i, axis=0)
        direction = bearing(step, np.take(east, i, axis=0), np.take(north, i, axis=0))
        fan_in[1:] += np.bincount(sites.index[i], minlength=site_grid.size)
        parts.append(
            (
                sources.index[j].astype(np.int32),
                great_circle(chord, sources.spherical).astype(np.float32),
                direction.astype(np.float32),
            )
        )
    empty = (np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.float32))
    col, distance, towards = (
        torch.from_numpy(np.concatenate(a)) for a in zip(empty, *parts, strict=True)
    )
    return Pattern(
        row_ptr=torch.from_numpy(fan_in.cumsum()),
        col=col,
        num_sources=source_grid.size,
        distance=distance,
        bearing=towards,
        site_grid=site_grid,
        source_grid=source_grid,
    )
