"""Binding of the Triton kernels: which tiles, on which grid, how many batch entries at once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from scisparse.kernels._edges import Edges
from scisparse.kernels._segments import accumulator, site_of_edge
from scisparse.kernels._triton import Call, accumulator_type, can_run, ceil_div, is_wide
from scisparse.kernels.graph_attention.inputs import Inputs, steps_of
from scisparse.kernels.graph_attention.plans import RowPlan, plan_edges
from scisparse.kernels.graph_attention.triton_launch import plan_of, tensors_of, tile_of, widths_of
from scisparse.kernels.graph_attention.triton_product_calls import (
    choice_edges,
    choice_sources,
    sddmm,
    segment_softmax,
    segment_softmax_backward,
    spmm,
    spmm_extreme,
)

__all__ = [
    "attention",
    "attention_backward",
    "attention_call",
    "can_run",
    "choice_edges",
    "choice_sources",
    "edges_call",
    "pairs_shape",
    "sddmm",
    "segment_softmax",
    "segment_softmax_backward",
    "sites_call",
    "sources_call",
    "spmm",
    "spmm_extreme",
]

_KERNELS = "scisparse.kernels.graph_attention.triton_kernels"
WORKSPACE = 256 << 20  # bytes for the weights and slopes of some batch entries


def attention(inputs: Inputs, edges: Edges, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Run a Triton kernel; see :func:`scisparse.kernels.graph_attention.reference.attention`."""
    wide, inputs, edges = inputs, inputs.narrow().dense(), edges.dense()
    q, v = inputs.q, inputs.v
    out = q.new_empty(*q.shape[:3], v.shape[3])
    edge_out = q.new_empty(0) if inputs.edge_q is None else torch.empty_like(inputs.edge_q)
    lse = q.new_empty(q.shape[:3], dtype=accumulator(q.dtype))
    if edges.col.numel() == 0 or lse.numel() == 0:
        return out.zero_(), wide.with_room(edge_out.zero_()), lse.fill_(-torch.inf)
    attention_call(inputs, edges, scale, (out, edge_out, lse)).run(q.device)
    return out, wide.with_room(edge_out), lse


def attention_call(
    inputs: Inputs, edges: Edges, scale: float, results: tuple[Tensor, Tensor, Tensor]
) -> Call:
    """Return the call that fills output, sums of what edges carry, and logarithms."""
    q, k, v, edge_q, attr, bias = inputs
    plan = plan_of(q, v, edges, q.shape[2], 4, 0 if attr is None else attr.shape[1])
    constants = _constants(plan, inputs, (*inputs, *edges, *results))
    blocks = ceil_div(q.shape[2], plan.heads)
    tensors = tensors_of(q, k, v, edge_q, attr, bias, *edges[:2], *results)
    rows = q.shape[0] * q.shape[1]
    sizes = (float(scale), q.shape[1], k.shape[1], rows, blocks, *steps_of(bias))
    programs = ceil_div(rows, plan.sites) * blocks
    return Call(_KERNELS, "attention_rows", programs, (*tensors, *sizes), constants, plan.warps)


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
    """Run the Triton kernels; see the function of the same name in ``reference``."""
    wide, inputs = inputs, inputs.narrow().dense()
    edges, edges_t = edges.dense(), edges_t.dense()
    q, attr = inputs.q, inputs.edge_attr
    grad, lse = grad.contiguous(), lse.contiguous()
    if grad_edge is not None and attr is not None:
        grad_edge = grad_edge[..., : attr.shape[1]].contiguous()
    real, (batch, _, heads, _), count = accumulator(q.dtype), q.shape, edges.col.numel()
    out = inputs.empty_gradients(wanted)
    if count == 0 or batch == 0:
        out = Inputs(*(None if t is None else t.zero_() for t in out))  # type: ignore[arg-type]
        return out if out.edge_q is None else out._replace(edge_q=wide.with_room(out.edge_q))
    site = None if out.edge_attr is None else site_of_edge(edges.row_ptr, count).to(edges.col.dtype)
    step = max(1, min(batch, WORKSPACE // (2 * real.itemsize * count * heads)))
    pairs = q.new_empty(step, *pairs_shape(heads, count), dtype=real)
    for first in range(0, batch, step):
        part = slice(first, min(first + step, batch))
        some = _batches(inputs, part)
        to = _batches(out, part)
        space = pairs[: some.q.shape[0]]
        grads = grad[part], None if grad_edge is None else grad_edge[part]
        sites_call(grads, lse[part], some, edges, scale, (to.q, to.edge_q), space).run(q.device)
        sources_call(grads[0], some.q, edges_t, scale, space, (to.k, to.v)).run(q.device)
        if out.edge_attr is not None and site is not None and out.edge_attr.numel():
            one = torch.empty_like(out.edge_attr)
            edges_call(space, some.edge_q, grads[1], site, one).run(q.device)
            out.edge_attr.add_(one)
        if to.bias is not None:
            slopes = space[..., 1].transpose(1, 2).flatten(2)  # [B, E, H]
            to.bias.add_(slopes.sum_to_size(to.bias.shape))
    return out if out.edge_q is None else out._replace(edge_q=wide.with_room(out.edge_q))


def pairs_shape(heads: int, edges: int) -> tuple[int, ...]:
    """Weight and slope of each edge and head: ``[H / P, E, P, 2]``, P of up to 4 heads together."""
    together = math.gcd(heads, 4)
    return heads // together, edges, together, 2


def sites_call(
    grads: tuple[Tensor, Tensor | None],
    lse: Tensor,
    inputs: Inputs,
    edges: Edges,
    scale: float,
    results: tuple[Tensor, Tensor | None],
    space: Tensor,
) -> Call:
    """Return the call that fills gradients at the sites; weights and slopes of `pairs_shape`."""
    q, k, v, edge_q, attr, bias = inputs
    plan = plan_of(q, v, edges, q.shape[2], 2, 0 if attr is None else attr.shape[1])
    constants = _constants(plan, inputs, (*inputs, *edges, *results, *grads, space))
    constants |= {"CARRIED": grads[1] is not None and constants["A"] > 0}
    blocks = ceil_div(q.shape[2], plan.heads)
    tensors = tensors_of(*grads, lse, q, k, v, edge_q, attr, bias, *edges[:2], *results, space)
    rows = q.shape[0] * q.shape[1]
    sizes = (float(scale), q.shape[1], k.shape[1], edges.col.numel(), rows, blocks, *steps_of(bias))
    programs = ceil_div(rows, plan.sites) * blocks
    return Call(_KERNELS, "attention_sites", programs, (*tensors, *sizes), constants, plan.warps)


def sources_call(
    grad: Tensor,
    q: Tensor,
    edges_t: Edges,
    scale: float,
    space: Tensor,
    results: tuple[Tensor, Tensor],
) -> Call:
    """Return the call that fills the gradients of keys and values."""
    (batch, sources, groups, _), heads = results[0].shape, q.shape[2]
    plan = plan_of(q, grad, edges_t, groups, 2)
    tensors = tensors_of(space, q, grad, *edges_t, *results)
    constants = {"H": heads, "GROUP": heads // groups} | widths_of(D=q.shape[3], V=grad.shape[3])
    constants |= tile_of(plan, q.dtype, tensors)
    blocks, rows = ceil_div(groups, plan.heads), batch * sources
    sizes = (float(scale), sources, q.shape[1], edges_t.col.numel(), rows, blocks)
    programs = ceil_div(rows, plan.sites) * blocks
    return Call(_KERNELS, "attention_sources", programs, (*tensors, *sizes), constants, plan.warps)


def edges_call(
    space: Tensor,
    edge_q: Tensor | None,
    grad_edge: Tensor | None,
    site: Tensor,
    out: Tensor,
) -> Call:
    """Return the call that fills the gradient ``[E, A]`` of what edges carry."""
    batch, blocks, count, together, _ = space.shape
    heads = blocks * together
    plan = plan_edges(heads, out.shape[1])
    tensors = tensors_of(space, edge_q, grad_edge, site, out)
    constants = {"H": heads, "CARRIED": grad_edge is not None} | widths_of(A=out.shape[1])
    constants |= {"ACC": accumulator_type(out.dtype), "WIDE": is_wide(*tensors)}
    constants |= {"K": plan.edges, "BH": plan.heads}
    sites = 0 if edge_q is None else edge_q.shape[1]
    arguments: tuple[Tensor | int, ...] = (*tensors, batch, sites, count)
    programs = ceil_div(count, plan.edges)
    return Call(_KERNELS, "attention_edges", programs, arguments, constants, plan.warps)


def _constants(plan: RowPlan, inputs: Inputs, tensors: tuple[Tensor | None, ...]) -> dict[str, Any]:
    q, k, v, _, attr, bias = inputs
    heads, carried = q.shape[2], 0 if attr is None else attr.shape[1]
    constants = {"H": heads, "GROUP": heads // k.shape[2], "BIASED": bias is not None}
    constants |= widths_of(D=q.shape[3], V=v.shape[3], A=carried)
    return constants | tile_of(plan, q.dtype, tensors)


def _batches(inputs: Inputs, part: slice) -> Inputs:
    """Some batch entries of all that have any."""
    q, k, v, edge_q, attr, bias = inputs
    if bias is not None and bias.shape[0] > 1:
        bias = bias[part]
    return Inputs(q[part], k[part], v[part], None if edge_q is None else edge_q[part], attr, bias)
