"""Attention over the edges of a pattern, and the products that it is made of.

Contract
--------
Letters: B batch, M sites, N sources, E edges, H heads, G heads of the sources (H is a multiple of
G: grouped queries), D width of queries and keys, V width of values, A numbers that an edge carries.

- Sites ``[B, M, H, D]`` and sources ``[B, N, G, D]`` are dense and contiguous in their last
  dimension.
- ``row_ptr [M + 1]`` int64 runs from 0 to E; ``col [E]`` int32 or int64 is the source that each
  edge reads; edges are sorted by (row, col). Rows may be empty: such a site gets 0.
- float64, float32, bfloat16 and float16; 16-bit types accumulate in float32, and what belongs to
  edges (scores, weights, bias) is float32 with them.
- Deterministic, forward and backward: nothing scatters, every sum runs in the order of its row.
- Memory: the forward pass saves one number a site and head; the backward pass needs two numbers an
  edge and head of some batch entries. With dropout, in forward mode and under derivatives of
  ``torch.func`` the scores and weights are formed instead, ``[B, E, H]`` each.
- Indices are trusted; :meth:`scisparse.Pattern.validate` checks them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from scisparse.errors import ShapeError
from scisparse.kernels._edges import Edges, check_edges, check_places, check_transpose
from scisparse.kernels._modes import autocast_dtype
from scisparse.kernels.graph_attention import ops as ops
from scisparse.kernels.graph_attention import softmax as softmax
from scisparse.kernels.graph_attention.calculus import (
    run_attention,
    run_weights,
    sum_values,
)
from scisparse.kernels.graph_attention.checks import (
    check_attention,
    check_dropout,
    check_edge_features,
    check_number,
    full_bias,
)
from scisparse.kernels.graph_attention.inputs import Inputs
from scisparse.kernels.graph_attention.products import sddmm as sddmm
from scisparse.kernels.graph_attention.products import segment_softmax as segment_softmax
from scisparse.kernels.graph_attention.products import spmm as spmm

# Room for A numbers: a matrix whose columns fill whole vectors is up to six times as fast in BLAS.
_COLUMNS = 16

__all__ = ["attention_weights", "graph_attention", "sddmm", "segment_softmax", "spmm"]


def graph_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    *,
    scale: float | None = None,
    edge_attr: Tensor | None = None,
    edge_weight: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    transpose: Edges | None = None,
    backend: str = "auto",
) -> Tensor:
    """Let every site attend to the sources that it reads.

    ``y[b,i,h] = sum_{e in row i} p[b,e,h] (v[b,j,g] + W[h] a[e])`` with ``j = col[e]``, and ``p``
    the softmax over the row of ``scale * q[b,i,h] . (k[b,j,g] + W[h] a[e]) + bias[b,e,h]``.

    Keys and values with edge features are never formed: ``q . W a = (W' q) . a``, and
    ``sum p W a = W sum p a``.

    Parameters
    ----------
    q
        Queries of the sites, ``[B, M, H, D]``.
    k, v
        Keys and values of the sources, ``[B, N, G, D]`` and ``[B, N, G, V]``; query head ``h``
        reads head ``g = h // (H / G)``.
    row_ptr, col
        Edges in compressed-row form, ``[M + 1]`` int64 and ``[E]`` int32 or int64.
    scale
        ``1 / sqrt(D)`` where not given.
    edge_attr, edge_weight
        Features ``a`` of the edges, ``[E, A]``, and the map ``W`` into the heads, ``[H, D, A]``;
        both or none, and V is D with them.
    bias
        Added to the scores: ``[E]``, ``[E, H]`` or ``[B, E, H]``, B and H also 1. The logarithm of
        cell areas makes the sum an integral; -infinity hides an edge, unless its source is NaN.
    dropout
        Part of the weights ``p`` that are set to 0, the others raised to make up for it: random
        numbers of torch. Scores, weights and what is kept of them are then in memory.
    transpose
        :func:`transpose_edges` of the same edges; computed in each backward pass when not given.
    backend
        ``"auto"``, ``"cpu"``, ``"triton"`` or ``"reference"``.

    Returns
    -------
    Tensor
        ``[B, M, H, V]``, of the dtype of `q`; 0 for a site that reads nothing.

    Raises
    ------
    ShapeError
        Shapes or dtypes do not fit together.
    BackendError
        The named backend cannot run on this device or dtype.

    References
    ----------
    Vaswani, A. et al. (2017). Attention is all you need. https://doi.org/10.48550/arXiv.1706.03762

    Shi, Y. et al. (2021). Masked label prediction: unified message passing model for
    semi-supervised classification. https://doi.org/10.24963/ijcai.2021/214

    Examples
    --------
    >>> import torch
    >>> k = v = torch.tensor([[[[1.0]], [[2.0]], [[4.0]]]])
    >>> row_ptr, col = torch.tensor([0, 2, 2]), torch.tensor([0, 2])
    >>> graph_attention(torch.zeros(1, 2, 1, 1), k, v, row_ptr, col).flatten()
    tensor([2.5000, 0.0000])
    """
    inputs, edges, scale, edge_weight = _prepare(
        (q, k, v), Edges(row_ptr, col, None), scale, (edge_attr, edge_weight), bias
    )
    check_dropout(dropout)
    check_transpose(transpose, edges, k.shape[1])
    if dropout > 0:
        weight = F.dropout(run_weights(inputs, edges, transpose, scale, backend), dropout)
        out, edge_out = sum_values(weight, inputs, edges, transpose, backend)
    else:
        out, edge_out = run_attention(inputs, edges, transpose, scale, backend)
    if edge_weight is None:
        return out
    return out + torch.einsum("bmha,hda->bmhd", edge_out, edge_weight)


def attention_weights(
    q: Tensor,
    k: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    *,
    scale: float | None = None,
    edge_attr: Tensor | None = None,
    edge_weight: Tensor | None = None,
    bias: Tensor | None = None,
    transpose: Edges | None = None,
    backend: str = "auto",
) -> Tensor:
    """Softmax weights ``p`` of :func:`graph_attention`, ``[B, E, H]``: who listens to whom.

    Arguments are those of :func:`graph_attention`; float32 for 16-bit types.

    Examples
    --------
    >>> import torch
    >>> q, k = torch.zeros(1, 2, 1, 4), torch.zeros(1, 3, 1, 4)
    >>> attention_weights(q, k, torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1])).flatten()
    tensor([0.5000, 0.5000, 1.0000])
    """
    inputs, edges, scale, _ = _prepare(
        (q, k, k), Edges(row_ptr, col, None), scale, (edge_attr, edge_weight), bias
    )
    check_transpose(transpose, edges, k.shape[1])
    return run_weights(inputs, edges, transpose, scale, backend)


def _prepare(
    heads: tuple[Tensor, Tensor, Tensor],
    edges: Edges,
    scale: float | None,
    features: tuple[Tensor | None, Tensor | None],
    bias: Tensor | None,
) -> tuple[Inputs, Edges, float, Tensor | None]:
    """Check and complete the arguments; the map of edge features goes into the queries."""
    q, k, v, attr, weight = _autocast(heads, *features)
    check_edges(edges.row_ptr, edges.col)
    check_attention(q, k, v, edges.row_ptr.shape[0] - 1)
    check_places(
        row_ptr=edges.row_ptr, col=edges.col, q=q, edge_attr=attr, edge_weight=weight, bias=bias
    )
    if (attr is None) != (weight is None):
        raise ShapeError("`edge_attr` and `edge_weight` go together; give both or none")
    scale = 1 / math.sqrt(max(q.shape[3], 1)) if scale is None else scale
    check_number("scale", scale)
    edge_q = None
    if attr is not None and weight is not None:
        check_edge_features(q, v, attr, weight, edges.col.shape[0])
        # Scaled before it is rounded, as scores are: 16-bit types overflow early.
        weight = F.pad(weight, (0, -weight.shape[2] % _COLUMNS))
        edge_q = torch.einsum("bmhd,hda->bmha", q, weight * scale)
    if bias is not None:
        bias = full_bias(bias, q, edges.col.shape[0])
    return Inputs(q, k, v, edge_q, attr, bias), edges, scale, weight


def _autocast(
    heads: tuple[Tensor, Tensor, Tensor], *features: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Cast all to the autocast dtype."""
    q, k, v = heads
    attr, weight = features
    dtype = autocast_dtype(*heads)
    if dtype is None:
        return q, k, v, attr, weight
    attr = None if attr is None else attr.to(dtype)
    weight = None if weight is None else weight.to(dtype)
    return q.to(dtype), k.to(dtype), v.to(dtype), attr, weight
