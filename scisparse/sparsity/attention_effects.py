"""What edges of attention are worth, those that a layer has and those that it may get.

Give every edge a gate ``z`` that multiplies its weight before the softmax is normalised::

    p[e] = z[e] exp(s[e]) / sum over the row of z[e'] exp(s[e'])        y[i] = sum p[e] v[e]

Edges of the layer have ``z = 1``, candidates ``z = 0``. With ``g`` the gradient of the loss at the
sites, and sums over batch entries and heads, which share an edge,

    dL/dz[e] = sum p[e] g[i] . (v[e] - y[i])        edges of the layer
    dL/dz[e] = sum exp(s[e] - lse[i]) g[i] . (v[e] - y[i])        candidates, at z = 0

where ``lse`` is the logarithm of the denominator. The first is the gradient of the edge's score,
too. The second grows without bound where a candidate would outweigh its row, as an edge can not: it
takes the share ``a = exp(s) / (exp(lse) + exp(s))`` and leaves ``1 - a`` to the others. So what
counts for a candidate is the mean slope on the way from ``z = 0`` to ``z = 1``, which is exact in
the softmax, and the change of the loss to first order in the output:

    effect[e] = sum a[e] g[i] . (v[e] - y[i]) = sum g[i] . (y with the edge - y without it)

For small shares it is the gradient at 0. A site without edges reads 0, and the share of its first
edge is 1. For the only edge of a site ``dL/dz`` is 0, as its weight is 1 whatever its gate is,
but not when it is gone: ``sum g[i] . v[e]`` counts instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scisparse.kernels import Edges
from scisparse.kernels.graph_attention.calculus import spread_heads
from scisparse.kernels.graph_attention.primitives import run_sddmm, run_segment_softmax, sum_rows
from scisparse.kernels.graph_attention.reference import Inputs
from scisparse.layers.edges import BiasWeights
from scisparse.pattern import Pattern
from scisparse.sparsity.candidates import (
    CandidateEdges,
    Chunk,
    Listed,
    is_finite_at,
    missing_as_nan,
)

__all__ = [
    "ActiveEdges",
    "AttentionPass",
    "Prospects",
    "measure_active",
    "prospects_of",
    "sum_of",
]

_NUMBERS_AT_ONCE = 1 << 22


class AttentionPass(NamedTuple):
    """What one backward pass of attention knew; shapes in :mod:`scisparse.kernels`."""

    inputs: Inputs
    grad: Tensor  #: at the sites, ``[B, M, H, V]``
    lse: Tensor  #: logarithm of the denominators, ``[B, M, H]``
    scale: float
    learned: BiasWeights  #: what the bias of the edges was made of
    pattern: Pattern  #: of the layer

    def kept(self) -> AttentionPass:
        """Copy what may be written over later: compiled code uses memory again.

        Sites without edges and sources that none reads may be missing, as over land: they are NaN
        then, and so is the effect of the candidates that would join them.
        """

        def copied(tensor: Tensor) -> Tensor:
            return tensor.detach().clone()

        q, k, v, *rest = self.inputs
        sites, sources = self._used()
        parts = (None if t is None else copied(t) for t in rest)
        learned = BiasWeights(*(None if t is None else copied(t) for t in self.learned))
        return self._replace(
            inputs=Inputs(
                missing_as_nan(q.detach(), sites),
                missing_as_nan(k.detach(), sources),
                missing_as_nan(v.detach(), sources),
                *parts,
            ),
            grad=copied(self.grad),
            lse=copied(self.lse),
            learned=learned,
        )

    def state(self) -> tuple[Any, ...]:
        """Everything but the pattern, in plain tuples."""
        return (tuple(self.inputs), self.grad, self.lse, self.scale, tuple(self.learned))

    @classmethod
    def of(cls, state: tuple[Any, ...], pattern: Pattern) -> AttentionPass:
        """Make it anew of what :meth:`state` gave."""
        inputs, grad, lse, scale, learned = state
        return cls(Inputs(*inputs), grad, lse, scale, BiasWeights(*learned), pattern)

    def deviations(self) -> AttentionPass:
        """The same with gradients and values less their means over the batch."""
        grad, v = (t - t.mean(0, keepdim=True) for t in (self.grad, self.inputs.v))
        return self._replace(grad=grad, inputs=self.inputs._replace(v=v))

    def is_finite(self) -> bool:
        """Whether gradients are, and queries, keys and values that edges join."""
        sites, sources = self._used()
        q, k, v = self.inputs[:3]
        parts = ((q, sites), (k, sources), (v, sources))
        return bool(self.grad.isfinite().all()) and all(is_finite_at(*part) for part in parts)

    def _used(self) -> tuple[Tensor, Tensor]:
        """Which sites have an edge, and which sources are read, booleans ``[M]``, ``[N]``."""
        sources = torch.zeros(self.pattern.num_sources, dtype=torch.bool)
        sources[self.pattern.col.long()] = True
        device = self.grad.device
        return (self.pattern.fan_in > 0).to(device), sources.to(device)


class ActiveEdges(NamedTuple):
    """The edges that a layer has, over all passes.

    Parameters
    ----------
    weight
        Mean of their softmax weights over batch entries and heads, float64 ``[E]``.
    effect
        Gradients of their gates, float64 ``[E]``.
    squares
        Sums of the squares of what batch entries have added to them, float64 ``[E]``.
    slope
        ``g . y`` of the sites, of each pass, ``[B, M, H]``.
    """

    weight: Tensor
    effect: Tensor
    squares: Tensor
    slope: list[Tensor]


class Prospects(NamedTuple):
    """What some batch entries say of candidates, ``[b, n, H]`` each.

    Parameters
    ----------
    share
        ``a``, the weight that each would take.
    gain
        ``g . v`` of each.
    slope
        ``g . y`` of its site.
    deviation
        Gives ``(g - mean of g) . (v - mean of v)`` of each, means over the batch.
    """

    share: Tensor
    gain: Tensor
    slope: Tensor
    deviation: Callable[[], Tensor]

    @property
    def effects(self) -> Tensor:
        """``sum over the heads of a g . (v - y)``, ``[b, n]``."""
        return (self.share * (self.gain - self.slope)).sum(2)

    @property
    def news(self) -> Tensor:
        """What means over the batch cannot tell, ``[b, n]``.

        ``sum over the heads of a (g - mean of g) . (v - mean of v)``
        """
        return (self.share * self.deviation()).sum(2)


class _Rows(NamedTuple):
    """Edges of some sites, and some batch entries."""

    edges: Edges
    site: Tensor  # int64 [n], from 0 on
    sites: slice
    batch: slice


def measure_active(passes: list[AttentionPass], pattern: Pattern) -> ActiveEdges:
    """Weights and gradients of the edges that a layer has.

    Parameters
    ----------
    passes
        Its backward passes.
    pattern
        Its edges.
    """
    weight, effect, squares = torch.zeros(3, pattern.num_edges, dtype=torch.float64)
    slopes, count = [], 0
    candidates = Listed(pattern)
    for one in passes:
        slope = torch.zeros_like(one.lse)
        for chunk in candidates.chunks(one.lse.shape[2]):
            places = slice(chunk.first, chunk.last)
            bias = one.inputs.bias
            for rows in _rows(one, _edges_of(candidates, chunk), chunk):
                score, gain = _products(one, rows)
                if bias is not None:
                    score = score + bias[rows.batch if len(bias) > 1 else slice(None), places]
                p = run_segment_softmax(score, rows.edges.row_ptr)
                mean = sum_rows(p * gain, rows.edges.row_ptr)
                slope[rows.batch, rows.sites] = mean
                alone = rows.edges.row_ptr.diff()[rows.site] == 1
                without = mean[:, rows.site].masked_fill(alone[:, None], 0)
                weight[places] += p.sum((0, 2)).cpu()
                sample = (p * (gain - without)).sum(2)
                effect[places] += sample.sum(0).cpu()
                squares[places] += sample.square().sum(0).cpu()
        slopes.append(slope)
        count += one.lse.shape[0] * one.lse.shape[2]
    return ActiveEdges(weight / max(count, 1), effect, squares, slopes)


def prospects_of(
    passes: list[AttentionPass],
    slopes: list[Tensor],
    candidates: CandidateEdges,
    chunk: Chunk,
    bias_of: Callable[[Pattern, BiasWeights], Tensor | None],
) -> Iterator[Prospects]:
    """What the candidates in a chunk would do, for some batch entries after others.

    Parameters
    ----------
    passes
        Backward passes of the layer.
    slopes
        Those of :func:`measure_active`.
    candidates
        All of them.
    chunk
        Whole rows.
    bias_of
        Gives what is added to the scores of a pattern's edges.
    """
    some = _edges_of(candidates, chunk)
    for one, slope in zip(passes, slopes, strict=True):
        deviations = cache(one.deviations)  # for those who ask
        bias = bias_of(some, one.learned)
        for rows in _rows(one, some, chunk):
            score, gain = _products(one, rows)
            score = score if bias is None else score + bias
            lse = one.lse[rows.batch, rows.sites][:, rows.site]
            share = torch.sigmoid(score - lse).masked_fill(score == -torch.inf, 0)
            own = slope[rows.batch, rows.sites][:, rows.site]
            yield Prospects(share, gain, own, partial(_deviation, deviations, rows))


def sum_of(prospects: Iterable[Prospects], count: int) -> Tensor:
    """Sum over all batch entries of the effects of so many candidates, float64 ``[n]``."""
    total = torch.zeros(count, dtype=torch.float64)
    for some in prospects:
        total += some.effects.sum(0).cpu()
    return total


def _edges_of(candidates: CandidateEdges, chunk: Chunk) -> Pattern:
    """The candidates in a chunk, over all sites."""
    return candidates.select(torch.arange(chunk.first, chunk.last))


def _rows(one: AttentionPass, some: Pattern, chunk: Chunk) -> Iterator[_Rows]:
    """The edges of a chunk, with as many batch entries at a time as memory should hold."""
    device = one.lse.device
    row_ptr = some.row_ptr[chunk.first_site : chunk.last_site + 1]
    site = torch.arange(row_ptr.numel() - 1).repeat_interleave(row_ptr.diff()).to(device)
    edges = Edges(row_ptr.to(device), some.col.to(device), None)
    batch, _, heads = one.lse.shape
    step = max(1, _NUMBERS_AT_ONCE // max(1, chunk.count * heads))
    for first in range(0, batch, step):
        sites = slice(chunk.first_site, chunk.last_site)
        yield _Rows(edges, site, sites, slice(first, first + step))


def _products(one: AttentionPass, rows: _Rows) -> tuple[Tensor, Tensor]:
    """Scores without bias, and ``g . v``, of edges, ``[b, n, H]``."""
    q, k = (t[rows.batch] for t in one.inputs[:2])
    sites = q[:, rows.sites].contiguous()
    score = one.scale * run_sddmm(sites, spread_heads(k, q.shape[2]), rows.edges, None)
    return score, _gains(one, rows)


def _deviation(deviations: Callable[[], AttentionPass], rows: _Rows) -> Tensor:
    return _gains(deviations(), rows)


def _gains(one: AttentionPass, rows: _Rows) -> Tensor:
    """``g . v`` of edges, ``[b, n, H]``."""
    grad, v = one.grad[rows.batch, rows.sites].contiguous(), one.inputs.v[rows.batch]
    return run_sddmm(grad, spread_heads(v, grad.shape[2]), rows.edges, None)
