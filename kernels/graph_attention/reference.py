"""The truth in tests: plain torch, any device, any floating dtype, no tricks.

Letters: B batch, M sites, N sources, E edges, H heads, G heads of the sources, D width, A numbers
that an edge carries. What belongs to edges is in float32 where tensors have 16 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scisparse.kernels._edges import Edges
from scisparse.kernels._segments import accumulator, segment_sum, site_of_edge
from scisparse.kernels.graph_attention.inputs import Inputs, spread_heads

__all__ = [
    "attention",
    "attention_backward",
    "choice_edges",
    "choice_sites",
    "choice_sources",
    "sddmm",
    "segment_softmax",
    "segment_softmax_backward",
    "spmm",
    "spmm_extreme",
]


def spmm(value_BEH: Tensor, x_BNHD: Tensor, edges: Edges) -> Tensor:
    """``y[b,i,h] = sum over edges e of site i of value[b,tie[e],h] * x[b,col[e],h]``."""
    value = value_BEH if edges.tie is None else value_BEH[:, edges.tie.long()]
    terms = value[..., None] * x_BNHD[:, edges.col.long()].to(value.dtype)
    return _sum_rows(terms, edges).to(x_BNHD.dtype)


def sddmm(x_BMHD: Tensor, z_BNHD: Tensor, edges: Edges) -> Tensor:
    """``value[b,tie[e],h] = x[b,row(e),h] . z[b,col[e],h]``, ``[B, E, H]``."""
    dtype = accumulator(x_BMHD.dtype)
    x_BEHD = x_BMHD[:, site_of_edge(edges.row_ptr, edges.col.numel())].to(dtype)
    value = (x_BEHD * z_BNHD[:, edges.col.long()].to(dtype)).sum(-1)
    if edges.tie is None:
        return value
    return torch.empty_like(value).index_copy_(1, edges.tie.long(), value)


def spmm_extreme(
    value_BEH: Tensor, x_BNHD: Tensor, edges: Edges, smallest: bool
) -> tuple[Tensor, Tensor]:
    """Largest or smallest product of each row, 0 of nothing; which edge of the row has it, or -1.

    The first of several, or the first NaN. The choice is int32 and counts from the start of the
    row.
    """
    terms = value_BEH[..., None] * x_BNHD[:, edges.col.long()].to(value_BEH.dtype)
    count = edges.col.numel()
    site = site_of_edge(edges.row_ptr, count)
    index = site[None, :, None, None].expand_as(terms)
    empty = terms.new_zeros(x_BNHD.shape[0], edges.row_ptr.numel() - 1, *terms.shape[2:])
    how = "amin" if smallest else "amax"
    best = empty.scatter_reduce(1, index, terms, how, include_self=False)
    # Where a row has NaN it is the best, and no other term equals it.
    has_best = (terms == best[:, site]) | terms.isnan()
    edge = torch.arange(count, device=site.device)[None, :, None, None]
    edge = edge.masked_fill(~has_best, count)
    first = torch.full_like(best, count, dtype=torch.int64)
    first = first.scatter_reduce(1, index, edge, "amin")
    choice = first - edges.row_ptr[:-1, None, None]
    choice = choice.masked_fill((edges.row_ptr.diff() == 0)[:, None, None], -1)
    return best.to(x_BNHD.dtype), choice.to(torch.int32)


def choice_sites(value_BEH: Tensor, x_BNHD: Tensor, choice_BMHD: Tensor, edges: Edges) -> Tensor:
    """``value[b,k,h] * x[b,col[k],h,d]`` with ``k`` the edge that each number has chosen."""
    if edges.col.numel() == 0:
        return x_BNHD.new_zeros(choice_BMHD.shape)
    nothing = choice_BMHD < 0
    edge = (choice_BMHD + edges.row_ptr[:-1, None, None]).masked_fill(nothing, 0)
    value = value_BEH.expand(x_BNHD.shape[0], -1, -1)[..., None].expand(-1, -1, -1, edge.shape[3])
    x = x_BNHD.gather(1, edges.col.long()[edge]).to(value.dtype)
    return (value.gather(1, edge) * x).masked_fill(nothing, 0).to(x_BNHD.dtype)


def choice_sources(
    value_BEH: Tensor, y_BMHD: Tensor, choice_BMHD: Tensor, edges: Edges, edges_t: Edges
) -> Tensor:
    """Sum over the edges of each source of ``value[b,e,h] * y[b,i,h,d]``, where `e` is chosen."""
    edge, site = _tie(edges_t), edges_t.col.long()
    terms = value_BEH[:, edge, :, None] * y_BMHD[:, site].to(value_BEH.dtype)
    terms = terms.masked_fill(~_chosen(choice_BMHD, edges, edge, site), 0)
    return _sum_rows(terms, edges_t).to(y_BMHD.dtype)


def choice_edges(y_BMHD: Tensor, x_BNHD: Tensor, choice_BMHD: Tensor, edges: Edges) -> Tensor:
    """Sum over ``d`` of ``y[b,i,h,d] * x[b,col[e],h,d]`` where `e` is chosen, ``[B, E, H]``."""
    dtype, count = accumulator(x_BNHD.dtype), edges.col.numel()
    edge, site = torch.arange(count, device=edges.col.device), site_of_edge(edges.row_ptr, count)
    terms = y_BMHD[:, site].to(dtype) * x_BNHD[:, edges.col.long()].to(dtype)
    return terms.masked_fill(~_chosen(choice_BMHD, edges, edge, site), 0).sum(-1)


def segment_softmax(score_BEH: Tensor, row_ptr_M1: Tensor) -> Tensor:
    """Softmax over the edges of each site; 0 where all its scores are -infinity."""
    weight, _ = _softmax(score_BEH, row_ptr_M1)
    return weight


def segment_softmax_backward(weight_BEH: Tensor, grad_BEH: Tensor, row_ptr_M1: Tensor) -> Tensor:
    """Gradient of the scores, ``p (dp - sum over the row of p dp)``."""
    terms = (weight_BEH * grad_BEH).transpose(0, 1)
    mean = segment_sum(terms, row_ptr_M1).transpose(0, 1)
    return weight_BEH * (grad_BEH - mean[:, site_of_edge(row_ptr_M1, weight_BEH.shape[1])])


def attention(inputs: Inputs, edges: Edges, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Attention; the same sum of what edges carry; logarithm of the sum of exp(score)."""
    weight, lse = _softmax(_scores(inputs, edges, scale), edges.row_ptr)
    out = spmm(weight, spread_heads(inputs.v, inputs.q.shape[2]), edges)
    edge_out = out.new_empty(0)
    if inputs.edge_attr is not None:
        terms = weight[..., None] * inputs.edge_attr.to(weight.dtype)[:, None]
        edge_out = inputs.with_room(_sum_rows(terms, edges).to(out.dtype))
    return out, edge_out, lse


def attention_backward(
    grad: Tensor,
    grad_edge: Tensor | None,
    inputs: Inputs,
    lse: Tensor,
    edges: Edges,
    edges_t: Edges,
    wanted: tuple[bool, bool],
    scale: float,
) -> Inputs:
    """Gradients of all inputs, of `edge_attr` and `bias` if `wanted` and in the dtype of scores."""
    q, k, v, edge_q, attr, bias = inputs.narrow()
    heads, groups = q.shape[2], k.shape[2]
    site = site_of_edge(edges.row_ptr, edges.col.numel())
    lse = lse[:, site]
    weight = torch.exp(_scores(inputs, edges, scale) - lse).masked_fill(lse == -torch.inf, 0)
    # The sum is 1 but for the rounding of `lse`, which is coarse where scores are large.
    total = _sum_rows(weight, edges)
    weight = weight / total.masked_fill(total == 0, 1)[:, site]
    slope = sddmm(grad, spread_heads(v, heads), edges)
    if grad_edge is not None and attr is not None:
        grad_edge = grad_edge[..., : attr.shape[1]]
        slope = slope + torch.einsum("beha,ea->beh", *_wide(grad_edge[:, site], attr))
    mean = _sum_rows(weight * slope, edges)
    slope = weight * (slope - mean[:, site])
    grad_k = _gather(spmm(scale * slope, q, edges_t), groups)
    grad_v = _gather(spmm(weight, grad, edges_t), groups)
    grad_edge_q = grad_attr = None
    if attr is not None and edge_q is not None:
        terms = slope[..., None] * attr.to(slope.dtype)[:, None]
        grad_edge_q = inputs.with_room(_sum_rows(terms, edges).to(q.dtype))
        grad_attr = torch.einsum("beh,beha->ea", *_wide(slope, edge_q[:, site]))
        if grad_edge is not None:
            grad_attr += torch.einsum("beh,beha->ea", *_wide(weight, grad_edge[:, site]))
    grad_bias = slope.sum_to_size(bias.shape) if bias is not None and wanted[1] else None
    grad_q = spmm(scale * slope, spread_heads(k, heads), edges)
    return Inputs(grad_q, grad_k, grad_v, grad_edge_q, grad_attr if wanted[0] else None, grad_bias)


def _scores(inputs: Inputs, edges: Edges, scale: float) -> Tensor:
    q, k, _, edge_q, attr, bias = inputs.narrow()
    score = scale * sddmm(q, spread_heads(k, q.shape[2]), edges)
    if attr is not None and edge_q is not None:
        site = site_of_edge(edges.row_ptr, edges.col.numel())
        score = score + torch.einsum("beha,ea->beh", *_wide(edge_q[:, site], attr))
    return score if bias is None else score + bias


def _softmax(score_BEH: Tensor, row_ptr_M1: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over rows, and the logarithm of its denominator; 0 and -infinity of nothing."""
    batch, edges, heads = score_BEH.shape
    site = site_of_edge(row_ptr_M1, edges)
    index = site[None, :, None].expand_as(score_BEH)
    most = score_BEH.new_full((batch, row_ptr_M1.numel() - 1, heads), -torch.inf)
    most = most.scatter_reduce(1, index, score_BEH, "amax")
    finite = most.masked_fill(most == -torch.inf, 0)
    weight = torch.exp(score_BEH - finite[:, site])
    total = segment_sum(weight.transpose(0, 1), row_ptr_M1).transpose(0, 1)
    lse = most + torch.log(total)
    return weight / total.masked_fill(total == 0, 1)[:, site], lse


def _sum_rows(terms: Tensor, edges: Edges) -> Tensor:
    """Sums over the edges of each site, ``[B, M, ...]``, of ``[B, E, ...]``."""
    return segment_sum(terms.transpose(0, 1), edges.row_ptr).transpose(0, 1).contiguous()


def _tie(edges: Edges) -> Tensor:
    """Places of edges in arrays of them."""
    if edges.tie is None:
        return torch.arange(edges.col.numel(), device=edges.col.device)
    return edges.tie.long()


def _chosen(choice_BMHD: Tensor, edges: Edges, edge: Tensor, site: Tensor) -> Tensor:
    """Whether the numbers of `site` have chosen `edge`."""
    return choice_BMHD[:, site] == (edge - edges.row_ptr[site])[:, None, None]


def _wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.to(accumulator(t.dtype)) for t in tensors)


def _gather(x: Tensor, groups: int) -> Tensor:
    """Sum over the heads of each group."""
    if x.shape[2] == groups:
        return x
    wide = x.unflatten(2, (groups, -1)).to(accumulator(x.dtype))
    total: Tensor = wide.sum(3)
    return total.to(x.dtype)
