"""How far attention over a pattern is from attention to everything."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from scisparse.errors import ShapeError
from scisparse.kernels import graph_attention
from scisparse.kernels._segments import accumulator
from scisparse.pattern import Pattern

__all__ = ["Approximation", "approximation_error"]

_NUMBERS_AT_ONCE = 1 << 24


class Approximation(NamedTuple):
    """How good a pattern is for some queries, keys and values."""

    #: root mean square of the difference over that of attention to everything; infinite where the
    #: latter is 0 and the former is not
    error: float
    weight: float  #: mean part of the softmax weight that lies on the edges; 1: nothing is missed


def approximation_error(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, *, scale: float | None = None
) -> Approximation:
    """Compare attention over a pattern with attention of all sites to all sources.

    Patterns are often called approximations of dense attention. Whether one is depends on what is
    attended to: this says so for given tensors, those of a trained model best of all. For random
    tensors the weight is about the density of the pattern.

    Parameters
    ----------
    q, k, v
        Queries ``[B, M, H, D]``, keys ``[B, N, G, D]`` and values ``[B, N, G, V]``; G divides H
        (grouped queries).
    pattern
        M sites and N sources.
    scale
        ``1 / sqrt(D)`` where not given.

    Returns
    -------
    Approximation
        ``error`` and ``weight``; computed in bands of sites, in time ``M N``, and in float32 where
        tensors have 16 bits.

    Raises
    ------
    ShapeError
        Shapes do not fit together.

    Examples
    --------
    >>> import torch
    >>> from scisparse.patterns import sliding_window
    >>> q, k, v = torch.randn(3, 1, 64, 2, 8)
    >>> all_of_it = approximation_error(q, k, v, sliding_window(64, 127))
    >>> all_of_it.error < 1e-6, round(all_of_it.weight, 4)
    (True, 1.0)
    """
    if (q.shape[1:2], k.shape[1:2]) != ((pattern.num_sites,), (pattern.num_sources,)):
        raise ShapeError(
            f"`q` {list(q.shape)} and `k` {list(k.shape)} must be [B, M, H, D] and [B, N, G, D] "
            f"with the pattern's {pattern.shape} sites and sources"
        )
    pattern = pattern.to(q.device)
    # Of 16 bits, scores overflow and squares of small differences are 0.
    q, k, v = (t.to(accumulator(t.dtype)) for t in (q, k, v))
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        sparse = graph_attention(q, k, v, pattern.row_ptr, pattern.col, scale=scale)
        k, v = (t.repeat_interleave(q.shape[2] // t.shape[2], dim=2) for t in (k, v))
        scale = 1 / math.sqrt(max(q.shape[3], 1)) if scale is None else scale
        band = max(1, _NUMBERS_AT_ONCE // max(1, q.shape[0] * q.shape[2] * k.shape[1]))
        row, col = pattern.rows(), pattern.col.long()
        difference = size = caught = 0.0
        for first in range(0, pattern.num_sites, band):
            last = min(first + band, pattern.num_sites)
            score = scale * torch.einsum("bmhd,bnhd->bhmn", q[:, first:last], k)
            weight = torch.softmax(score, -1)
            dense = torch.einsum("bhmn,bnhd->bmhd", weight, v)
            edges = slice(int(pattern.row_ptr[first]), int(pattern.row_ptr[last]))
            on_edges = weight.new_zeros(weight.shape[-2:], dtype=torch.bool)
            on_edges[row[edges] - first, col[edges]] = True
            caught += float((weight * on_edges).sum(dtype=torch.float64))
            difference += _sum_of_squares(sparse[:, first:last] - dense)
            size += _sum_of_squares(dense)
    rows = q.shape[0] * q.shape[1] * q.shape[2]
    # Not 1 or 0: where attention to everything is 0, any difference is infinitely large beside it.
    error = math.sqrt(difference / size) if size else math.inf if difference else 0.0
    return Approximation(error, caught / max(rows, 1))


def _sum_of_squares(x: Tensor) -> float:
    return float(x.double().square().sum())
