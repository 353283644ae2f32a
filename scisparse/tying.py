"""Which edges share a weight: the ladder from convolution to fully untied.

A *tie* numbers the weight of every edge. Each rung refines the one below, so that a layer can climb
exactly: ``"all"`` (one weight a tap: convolution), ``"longitude"`` (a tap at one latitude), region
labels (a tap inside a region), ``None`` (a weight of its own on every edge).
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.grids import Grid, LatLonGrid
from scisparse.grids.masks import has_coordinates, in_order_of
from scisparse.pattern import Pattern
from scisparse.pattern.edges import index_dtype, pick, row_ptr_of_fan_in

__all__ = [
    "Tie",
    "Tying",
    "parents",
    "refine",
    "site_shape",
    "source_shape",
    "split_channels",
    "tie_edges",
    "tie_name",
]

#: What users write: ``None``, ``"longitude"``, ``"all"``, or an array of region labels, one a site.
Tie: TypeAlias = str | ArrayLike | Tensor | None

# Steps of longitude that differ by less, relative to the step, are equal.
_STEP_TOLERANCE = 1e-3


class Tying(NamedTuple):
    """Weights of the edges, and the groups of sites that share a bias.

    Attributes
    ----------
    edge
        Weight of each edge, int64 ``[E]``; ``None``: edge ``e`` has weight ``e``.
    num_weights
        Number of weights T.
    group
        Group of each site, int64 ``[M]``.
    num_groups
        Number of groups.
    tie
        What it was made from; labels as int64 ``[M]``, numbered from 0.
    """

    edge: Tensor | None
    num_weights: int
    group: Tensor
    num_groups: int
    tie: str | Tensor | None = None

    def of_edges(self, num_edges: int) -> Tensor:
        """Weight of each edge, written out, int64 ``[E]``."""
        return _numbers(num_edges) if self.edge is None else self.edge


def tie_edges(pattern: Pattern, tie: Tie) -> Tying:
    """Give each edge of `pattern` the number of its weight.

    Parameters
    ----------
    pattern
        The pattern, on the CPU; all ties but ``None`` need its taps, or evenly spaced
        latitude-longitude grids for ``"longitude"``.
    tie
        ``None``, ``"longitude"``, ``"all"``, or region labels ``[M]`` or in the shape of the sites.
        A DataArray with coordinates is matched by them where the sites have a grid.

    Raises
    ------
    OptionError
        `tie` is another word, or has NaN labels.
    PatternError
        The pattern has no taps, or its sites have no latitude.
    ShapeError
        There is not one label a site.

    Examples
    --------
    >>> from scisparse.patterns import window
    >>> pattern = window((4, 6), 3, padding=1, padding_mode=("zeros", "circular"))
    >>> regions = [[0] * 6, [0] * 6, [1] * 6, [1] * 6]
    >>> [tie_edges(pattern, tie).num_weights for tie in ("all", "longitude", regions, None)]
    [9, 30, 18, 180]
    """
    sites = _numbers(pattern.num_sites)
    if tie is None:
        return Tying(None, pattern.num_edges, sites, len(sites))
    if not isinstance(tie, str):
        labels = _labels(pattern, tie)
        return _tie_taps(pattern, labels, labels)
    if tie == "all":
        edge, num_groups = _taps(pattern, tie), min(1, len(sites))
        return Tying(edge, pattern.num_taps, torch.zeros_like(sites), num_groups, tie)
    if tie != "longitude":
        raise OptionError(
            f"`tie` is {tie!r}; choose None, 'longitude', 'all' or an array of region labels"
        )
    latitude = sites // _latitude_length(pattern)
    if pattern.tap is None:
        return _tie_keys(_zonal_keys(pattern), latitude, tie)
    return _tie_taps(pattern, latitude, tie)


def tie_name(tie: Tie) -> str:
    """Write a tie for messages.

    Examples
    --------
    >>> tie_name("all"), tie_name([0, 0, 1])
    ("tie='all'", 'tie=labels')
    """
    return f"tie={tie!r}" if tie is None or isinstance(tie, str) else "tie=labels"


def refine(coarse: Tying, fine: Tying, num_edges: int) -> tuple[Tensor, Tensor]:
    """Weight and group of `coarse` that each weight and group of `fine` comes from.

    Raises
    ------
    PatternError
        `fine` ties edges that `coarse` tells apart.

    Examples
    --------
    >>> from scisparse.patterns import window
    >>> pattern = window((2, 2), 1)
    >>> coarse, fine = tie_edges(pattern, "longitude"), tie_edges(pattern, None)
    >>> refine(coarse, fine, pattern.num_edges)[0]
    tensor([0, 0, 1, 1])
    """
    coarse_edge, fine_edge = coarse.of_edges(num_edges), fine.of_edges(num_edges)
    weight = parents(coarse_edge, fine_edge, fine.num_weights)
    group = parents(coarse.group, fine.group, fine.num_groups)
    if torch.equal(weight[fine_edge], coarse_edge) and torch.equal(group[fine.group], coarse.group):
        return weight, group
    below = tie_name(coarse.tie)
    raise PatternError(
        f"{tie_name(fine.tie)} shares weights that {below} tells apart; choose labels that split "
        f"the groups of {below}, or None"
    )


def parents(coarse: Tensor, fine: Tensor, num_fine: int) -> Tensor:
    """Coarse number that lies under each fine number, int64 ``[num_fine]``; 0 where none does.

    Parameters
    ----------
    coarse, fine
        Number of each item under both numberings, int64.
    num_fine
        Number of fine numbers.
    """
    parent = torch.zeros(num_fine, dtype=torch.int64, device=fine.device)
    parent[fine] = coarse
    return parent


def split_channels(pattern: Pattern, tying: Tying, groups: int) -> tuple[Pattern, Tying]:
    """Pattern and tying of a layer whose channels come in `groups` that do not mix.

    Site ``i`` becomes ``groups`` sites ``i * groups + g``, each reading the sources ``j * groups +
    g``: activations ``[B, N, C]`` are seen as ``[B, N * groups, C / groups]`` without a copy.
    """
    if groups == 1:
        return pattern, tying
    fan_in = pattern.fan_in.repeat_interleave(groups)
    row_ptr = row_ptr_of_fan_in(fan_in)
    num_edges, num_sources = pattern.num_edges * groups, pattern.num_sources * groups
    site = torch.repeat_interleave(_numbers(len(fan_in)), fan_in, output_size=num_edges)
    edge = pattern.row_ptr[site // groups] + _numbers(num_edges) - row_ptr[site]
    channel_group = site % groups
    split = Pattern(
        row_ptr=row_ptr,
        col=(pattern.col.long()[edge] * groups + channel_group).to(index_dtype(num_sources)),
        num_sources=num_sources,
        tap=pick(pattern.tap, edge),
        tap_count=pattern.num_taps,
    )
    group = (tying.group[:, None] * groups + _numbers(groups)).flatten()
    num_weights, num_groups = tying.num_weights * groups, tying.num_groups * groups
    weight = None if tying.edge is None else tying.edge[edge] * groups + channel_group
    return split, Tying(weight, num_weights, group, num_groups, tying.tie)


def site_shape(pattern: Pattern) -> tuple[int, ...]:
    """Shape of the sites: of the window's output, of the grid, or ``(M,)``."""
    if pattern.window is not None:
        return pattern.window.site_size
    if pattern.site_grid is not None:
        return pattern.site_grid.shape
    return (pattern.num_sites,)


def source_shape(pattern: Pattern) -> tuple[int, ...]:
    """Shape of the sources: of the window's input, of the grid, or ``(N,)``."""
    if pattern.window is not None:
        return pattern.window.source_size
    if pattern.source_grid is not None:
        return pattern.source_grid.shape
    return (pattern.num_sources,)


def _numbers(count: int) -> Tensor:
    # Patterns of layers lie on the CPU, whatever the default device is.
    return torch.arange(count, device="cpu")


def _taps(pattern: Pattern, tie: str | Tensor) -> Tensor:
    if pattern.tap is None:
        raise PatternError(
            f"{tie_name(tie)} needs the taps of the edges and {pattern!r} has none; use "
            "patterns.window, give Pattern.from_edge_index its tap=, or use tie=None"
        )
    return pattern.tap.long()


def _latitude_length(pattern: Pattern) -> int:
    shape = site_shape(pattern)
    if len(shape) < 2:
        raise PatternError(
            f"tie='longitude' needs sites on (latitude, longitude) and {pattern!r} has sites of "
            f"shape {shape}; use tie='all', an array of region labels, or tie=None"
        )
    return shape[-1]


def _zonal_keys(pattern: Pattern) -> Tensor:
    """One key for the edges that a turn about the axis maps on each other."""
    length, periodic = _common_longitudes(pattern)
    row, col = pattern.rows().long(), pattern.col.long()
    turn = col % length - row % length
    # Where longitude does not close, a turn east is no turn west.
    turn = turn % length if periodic else turn + length
    return (row // length * (pattern.num_sources // length) + col // length) * 2 * length + turn


def _common_longitudes(pattern: Pattern) -> tuple[int, bool]:
    """Count the longitudes that sites and sources have in common; tell whether they close."""
    site, source = pattern.site_grid, pattern.source_grid
    if isinstance(site, LatLonGrid) and isinstance(source, LatLonGrid):
        steps = np.array([_longitude_step(site), _longitude_step(source)])
        even = site.uniform_longitude and source.uniform_longitude
        alike = np.ptp(steps) <= _STEP_TOLERANCE * np.abs(steps).max()
        if even and alike and site.shape[1] == source.shape[1]:
            return site.shape[1], site.periodic[1]
    raise PatternError(
        f"tie='longitude' needs taps, or sites and sources with the same evenly spaced longitudes; "
        f"{pattern!r} has no taps, sites on {_named(site)} and sources on {_named(source)}"
    )


def _longitude_step(grid: LatLonGrid) -> float:
    """First step along longitude in radians, between -pi and pi."""
    step = grid.lon_axis[:2][-1] - grid.lon_axis[0]
    return float(np.arctan2(np.sin(step), np.cos(step)))


def _named(grid: Grid | None) -> str:
    return "no grid" if grid is None else repr(grid)


def _labels(pattern: Pattern, tie: ArrayLike | Tensor) -> Tensor:
    """Region of each site, from 0 on, int64 ``[M]``."""
    given = tie.detach().cpu() if isinstance(tie, Tensor) else tie
    if pattern.site_grid is not None and has_coordinates(given):
        given = in_order_of(pattern.site_grid, given, "tie")
    labels: NDArray[np.generic] = np.asarray(given)
    shapes = {(pattern.num_sites,), site_shape(pattern)}
    if labels.shape not in shapes:
        raise ShapeError(
            f"`tie` has labels of shape {list(labels.shape)}; it needs one for each of "
            f"{pattern.num_sites} sites, in shape {' or '.join(str(list(s)) for s in shapes)}"
        )
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise OptionError("`tie` has NaN labels; give masked sites a label of their own")
    return torch.from_numpy(np.unique(labels.reshape(-1), return_inverse=True)[1].reshape(-1))


def _tie_taps(pattern: Pattern, group: Tensor, tie: str | Tensor) -> Tying:
    keys = group[pattern.rows()] * pattern.num_taps + _taps(pattern, tie)
    return _tie_keys(keys, group, tie)


def _tie_keys(keys: Tensor, group: Tensor, tie: str | Tensor) -> Tying:
    used, edge = torch.unique(keys, return_inverse=True)
    return Tying(edge, len(used), group, int(group.max()) + 1 if len(group) else 0, tie)
