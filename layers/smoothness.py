"""Roughness of weights over space: a graph Laplacian over the weights of neighbouring sites."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scisparse.adjacency import tied_pairs
from scisparse.kernels._modes import outside_transforms
from scisparse.kernels.laplacian import dirichlet_energy
from scisparse.pattern import Pattern
from scisparse.tying import Tie, Tying, split_channels, tie_edges

__all__ = ["WeightCouplings", "couple_weights", "roughness"]


class WeightCouplings(NamedTuple):
    """Weights of one tap at neighbouring sites, each pair in both directions.

    Attributes
    ----------
    row_ptr, col
        For each weight those that it is coupled with, int64 ``[T + 1]``; int32 or int64 ``[P]``.
    strength
        How strongly each pair is coupled, float64 ``[P]``.
    """

    row_ptr: Tensor
    col: Tensor
    strength: Tensor

    def to(self, device: torch.device) -> WeightCouplings:
        """Give the couplings on another device."""
        return WeightCouplings(*(tensor.to(device) for tensor in self))


@torch.inference_mode(False)  # they are kept for other calls, whatever this one is made in
@outside_transforms()
def couple_weights(
    pattern: Pattern, tie: Tie = None, groups: int = 1, *, sites: Pattern | None = None
) -> WeightCouplings:
    """Couple the weights of neighbouring sites.

    Parameters
    ----------
    pattern
        The pattern of the layer.
    tie
        Which of its edges share a weight, as in :func:`scisparse.tying.tie_edges`.
    groups
        Groups of channels.
    sites
        Pattern whose sites these are, as in :func:`scisparse.adjacency.tied_pairs`.

    Raises
    ------
    PatternError
        The pattern has no taps, or sites without rows and columns.

    Examples
    --------
    >>> from scisparse.patterns import window
    >>> couplings = couple_weights(window((3,), 1), [4, 4, 8])
    >>> couplings.row_ptr.tolist(), couplings.col.tolist(), couplings.strength.tolist()
    ([0, 1, 2], [1, 0], [1.0, 1.0])
    """
    first, second, strength = tied_pairs(pattern, sites)
    tying = tie_edges(pattern, tie)
    index = _weights_by_edge(pattern, tying, groups)
    first, second = index[first].flatten(), index[second].flatten()
    strength = strength.repeat_interleave(groups)
    # A weight is not coupled with itself, and weights that many sites share meet many times.
    apart = first != second
    first, second, strength = first[apart], second[apart], strength[apart]
    size = tying.num_weights * groups
    key, order = torch.cat([first * size + second, second * size + first]).sort(stable=True)
    key, meeting = torch.unique_consecutive(key, return_inverse=True)
    total = strength.new_zeros(len(key)).index_add_(0, meeting, strength.repeat(2)[order])
    row_ptr = torch.searchsorted(key, size * torch.arange(size + 1, device="cpu"))
    return WeightCouplings(row_ptr, (key % max(1, size)).to(torch.int32), total)


def roughness(weight: Tensor, couplings: WeightCouplings) -> Tensor:
    """Sum over coupled pairs of ``strength * |weight[first] - weight[second]|^2``.

    Differentiable any number of times in `weight`, and with no buffer beyond one gradient.

    Parameters
    ----------
    weight
        ``[T, ...]``, or more rows.
    couplings
        On the device of `weight`.

    Returns
    -------
    Tensor
        A scalar of the dtype of `weight`, float32 for 16-bit weights.
    """
    rows = len(couplings.row_ptr) - 1  # spare ones, of edges to come, lie behind
    return dirichlet_energy(weight[:rows].flatten(1), *couplings)


def _weights_by_edge(pattern: Pattern, tying: Tying, groups: int) -> Tensor:
    """Weight of each edge and group of channels, int64 ``[E, groups]``."""
    weights = split_channels(pattern, tying, groups)[1].of_edges(pattern.num_edges * groups)
    # All edges of a site come once for each group.
    site = pattern.rows()
    start = torch.arange(pattern.num_edges, device="cpu") + pattern.row_ptr[site] * (groups - 1)
    step = pattern.fan_in[site]
    return weights[start[:, None] + step[:, None] * torch.arange(groups, device="cpu")]
