"""Roughness of weights over space: a graph Laplacian over the weights of neighbouring sites."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scisparse.adjacency import tied_pairs
from scisparse.pattern import Pattern
from scisparse.tying import Tying, split_channels

__all__ = ["WeightPairs", "roughness", "weight_pairs"]

# Bytes of weights compared at once: as fast as all together, without their memory.
_CHUNK_BYTES = 2**22


class WeightPairs(NamedTuple):
    """Weights of one tap at neighbouring sites.

    Attributes
    ----------
    first, second
        Weights, int64 ``[P]``, each pair once.
    strength
        How strongly each pair is coupled, float64 ``[P]``.
    """

    first: Tensor
    second: Tensor
    strength: Tensor

    def to(self, device: torch.device) -> WeightPairs:
        """Give the pairs on another device."""
        return WeightPairs(*(tensor.to(device) for tensor in self))


def weight_pairs(
    pattern: Pattern, tying: Tying, groups: int = 1, *, sites: Pattern | None = None
) -> WeightPairs:
    """Pair the weights of neighbouring sites.

    Parameters
    ----------
    pattern
        The pattern of the layer.
    tying
        Its edges that share a weight.
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
    >>> from scisparse.tying import tie_edges
    >>> pattern = window((3,), 1)
    >>> weight_pairs(pattern, tie_edges(pattern, [4, 4, 8]))
    WeightPairs(first=tensor([0]), second=tensor([1]), strength=tensor([1.], dtype=torch.float64))
    """
    first, second, strength = tied_pairs(pattern, sites)
    index = _weights_by_edge(pattern, tying, groups)
    first, second = index[first].flatten(), index[second].flatten()
    strength = strength.repeat_interleave(groups)
    if tying.edge is None:
        return WeightPairs(first, second, strength)
    # A weight is not paired with itself, and weights that many sites share meet many times.
    apart = first != second
    span = max(1, tying.num_weights * groups)
    key, meeting = torch.unique((first * span + second)[apart], return_inverse=True)
    total = strength.new_zeros(len(key)).index_add_(0, meeting, strength[apart])
    return WeightPairs(key // span, key % span, total)


def roughness(weight: Tensor, pairs: WeightPairs) -> Tensor:
    """Sum over `pairs` of ``strength * |weight[first] - weight[second]|^2``.

    Differentiable any number of times in `weight`, and with no buffer beyond one gradient.

    Parameters
    ----------
    weight
        ``[T, ...]``.
    pairs
        On the device of `weight`.

    Returns
    -------
    Tensor
        A scalar of the dtype of `weight`, float32 for 16-bit weights.
    """
    wide = weight.float() if weight.dtype.itemsize < 4 else weight
    energy: Tensor = _Energy.apply(wide.flatten(1), *pairs)
    return energy


def _weights_by_edge(pattern: Pattern, tying: Tying, groups: int) -> Tensor:
    """Weight of each edge and group of channels, int64 ``[E, groups]``."""
    weights = split_channels(pattern, tying, groups)[1].of_edges(pattern.num_edges * groups)
    # All edges of a site come once for each group.
    site = pattern.rows()
    start = torch.arange(pattern.num_edges, device="cpu") + pattern.row_ptr[site] * (groups - 1)
    step = pattern.fan_in[site]
    return weights[start[:, None] + step[:, None] * torch.arange(groups, device="cpu")]


def _chunks(weight: Tensor, pairs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    """Pairs, and the strengths in the dtype of `weight`, a few at a time."""
    first, second, strength = pairs
    rows = max(1, _CHUNK_BYTES // max(1, weight.shape[1] * weight.element_size()))
    strength = strength.to(weight.dtype)
    parts = (torch.split(tensor, rows) for tensor in (first, second, strength))
    return zip(*parts, strict=True)


def _differences(weight: Tensor, first: Tensor, second: Tensor) -> Tensor:
    # index_select is several times faster than indexing where rows are short.
    return weight.index_select(0, first).sub_(weight.index_select(0, second))


class _Energy(torch.autograd.Function):
    """``sum of strength * |weight[first] - weight[second]|^2`` for ``weight [T, C]``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, *pairs: Tensor) -> Tensor:
        ctx.save_for_backward(weight, *pairs)
        total = weight.new_zeros(())
        for first, second, strength in _chunks(weight, pairs):
            # Not in place: the compiler of torch 2.11 would lose the gradient.
            total = total + strength @ _differences(weight, first, second).square_().sum(1)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, *pairs = ctx.saved_tensors
        pull: Tensor = _Laplacian.apply(weight, *pairs)
        return 2 * grad * pull, None, None, None


class _Laplacian(torch.autograd.Function):
    """Half the gradient of the energy: linear in ``weight [T, C]``, and symmetric."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, *pairs: Tensor) -> Tensor:
        ctx.save_for_backward(*pairs)
        out = torch.zeros_like(weight)
        for first, second, strength in _chunks(weight, pairs):
            pull = _differences(weight, first, second).mul_(strength[:, None])
            # Twice with alpha=1: any other takes torch's slow path.
            out.index_add_(0, first, pull).index_add_(0, second, pull.neg_())
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pull: Tensor = _Laplacian.apply(grad, *ctx.saved_tensors)
        return pull, None, None, None
