"""Derivatives of attention.

The fused attention has a fused backward pass; the derivative of that goes through the unfused
primitives, as does everything under ``torch.func`` and in forward mode.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scisparse.kernels._edges import Edges, transpose_edges
from scisparse.kernels._modes import lacks_rules
from scisparse.kernels.graph_attention.inputs import Inputs, spread_heads
from scisparse.kernels.graph_attention.primitives import (
    incidence,
    join_copies,
    run_sddmm,
    run_segment_softmax,
    run_softmax_slope,
    run_spmm,
)

__all__ = [
    "attention_backward",
    "attention_backward_backward",
    "attention_vmap",
    "run_attention",
    "run_weights",
    "save_attention",
    "save_attention_backward",
    "spread_attr",
    "sum_values",
]


def run_attention(
    inputs: Inputs, edges: Edges, edges_t: Edges | None, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    """Call the registered operator, or the primitives; arguments are taken to be valid."""
    if lacks_rules():
        return sum_values(
            run_weights(inputs, edges, edges_t, scale, backend), inputs, edges, edges_t, backend
        )
    edges_t_or_none = edges_t or (None, None, None)
    out, edge_out, _ = torch.ops.scisparse.graph_attention(
        *inputs, *edges[:2], *edges_t_or_none, scale, backend
    )
    return out, edge_out


def attention_vmap(
    info: Any, in_dims: tuple[int | None, ...], *inputs: Any
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """Let the mapped dimension join the batch; what has no batch, if mapped, is a call each."""
    call, copies = torch.ops.scisparse.graph_attention, info.batch_size
    if any(dim is not None for dim in (in_dims[4], *in_dims[6:])):
        each = [
            call(
                *(t if d is None else t.select(d, n) for t, d in zip(inputs, in_dims, strict=True))
            )
            for n in range(copies)
        ]
        return tuple(torch.stack(results) for results in zip(*each, strict=True)), (0, 0, 0)
    attr, bias = inputs[4:6]
    q, dim = inputs[0], in_dims[0]
    batch = q.shape[0] if dim is None else q.movedim(dim, 0).shape[1]
    heads = (
        None if t is None else join_copies(t, d, copies, batch)
        for t, d in zip(inputs[:4], in_dims[:4], strict=True)
    )
    if bias is not None and (in_dims[5] is not None or bias.shape[0] > 1):
        bias = join_copies(bias, in_dims[5], copies, batch)
    out, edge_out, lse = call(*heads, attr, bias, *inputs[6:])
    out, lse = (t.unflatten(0, (copies, batch)) for t in (out, lse))
    if inputs[3] is None:
        return (out, edge_out, lse), (0, None, 0)
    return (out, edge_out.unflatten(0, (copies, batch)), lse), (0, 0, 0)


def sum_values(
    weight: Tensor, inputs: Inputs, edges: Edges, edges_t: Edges | None, backend: str
) -> tuple[Tensor, Tensor]:
    """Weighted sums of values and of edge features; without features the first in both places."""
    q, _, v, _, attr, _ = inputs
    out = run_spmm(weight, spread_heads(v, q.shape[2]), edges, edges_t, backend)
    if attr is None:
        return out, out
    per_edge = incidence(edges.row_ptr, edges.col.shape[0])
    edge_out = run_spmm(weight, spread_attr(attr, q), *per_edge, backend)
    return out, inputs.with_room(edge_out)


def run_weights(
    inputs: Inputs, edges: Edges, edges_t: Edges | None, scale: float, backend: str = "auto"
) -> Tensor:
    """Softmax of the scores, ``[B, E, H]``, by operators that are differentiable to any order."""
    q, k, _, edge_q, attr, bias = inputs.narrow()
    score = scale * run_sddmm(q, spread_heads(k, q.shape[2]), edges, edges_t, backend)
    if attr is not None and edge_q is not None:
        per_edge = incidence(edges.row_ptr, edges.col.shape[0])
        score = score + run_sddmm(edge_q, spread_attr(attr, q), *per_edge, backend)
    score = score if bias is None else score + bias
    return run_segment_softmax(score, edges.row_ptr, backend)


def spread_attr(attr: Tensor, like: Tensor) -> Tensor:
    """What edges carry, for all batch entries and heads of `like`, ``[B, E, H, A]``."""
    return attr[None, :, None].expand(like.shape[0], -1, like.shape[2], -1)


def save_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save the inputs and the logarithm of the denominators."""
    ctx.save_for_backward(output[2], *inputs[:11])
    ctx.scale, ctx.backend = inputs[11:]
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def attention_backward(
    ctx: Any, grad: Tensor | None, grad_edge: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of ``graph_attention``."""
    lse, *saved = ctx.saved_tensors
    inputs, (row_ptr, col), edges_t = Inputs(*saved[:6]), saved[6:8], saved[8:]
    if grad is None and grad_edge is None:
        return (None,) * 13
    if grad is None:
        grad = inputs.q.new_zeros(*inputs.q.shape[:3], inputs.v.shape[3])
    if edges_t[0] is None:
        edges_t = transpose_edges(row_ptr, col, inputs.k.shape[1])
    if inputs.edge_attr is None:
        grad_edge = None
    needed = ctx.needs_input_grad
    grads = torch.ops.scisparse.graph_attention_backward(
        *(grad, grad_edge, lse, *inputs, row_ptr, col, *edges_t),
        *(needed[4], needed[5], ctx.scale, ctx.backend),
    )
    return *(g if n else None for g, n in zip(grads, needed, strict=False)), *(None,) * 7


def save_attention_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Save all tensors."""
    ctx.save_for_backward(*inputs[:14])
    ctx.scale, ctx.backend = inputs[16:]
    ctx.set_materialize_grads(False)


def attention_backward_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of the backward pass, through the unfused products."""
    again = torch.is_grad_enabled()
    grad, grad_edge, _, *rest = ctx.saved_tensors
    edges, edges_t = Edges(rest[6], rest[7], None), Edges(*rest[8:])
    needed = [*ctx.needs_input_grad[:2], *ctx.needs_input_grad[3:9]]
    with torch.enable_grad():
        # As tensors of their own: one may have been made of another.
        tensors = [
            t.view_as(t) if t is not None and n else t
            for t, n in zip((grad, grad_edge, *rest[:6]), needed, strict=True)
        ]
        results = _unfused_backward(
            tensors[0], tensors[1], Inputs(*tensors[2:]), edges, edges_t, ctx.scale, ctx.backend
        )
        pairs = [
            (r, g)
            for r, g in zip(results, grads, strict=True)
            if r is not None and g is not None and r.requires_grad
        ]
        wanted = [t for t, n in zip(tensors, needed, strict=True) if n]
        found = iter(
            torch.autograd.grad(
                [r for r, _ in pairs],
                wanted,
                [g for _, g in pairs],
                create_graph=again,
                allow_unused=True,
            )
            if pairs
            else [None] * len(wanted)
        )
    of_grad, of_grad_edge, *of_inputs = (next(found) if n else None for n in needed)
    return of_grad, of_grad_edge, None, *of_inputs, *(None,) * 9


def _unfused_backward(
    grad: Tensor,
    grad_edge: Tensor | None,
    inputs: Inputs,
    edges: Edges,
    edges_t: Edges,
    scale: float,
    backend: str,
) -> Inputs:
    """What the fused backward pass makes, by operators that are differentiable to any order."""
    q, k, v, edge_q, attr, bias = inputs.narrow()
    heads, groups = q.shape[2], k.shape[2]
    weight = run_weights(inputs, edges, edges_t, scale, backend)
    slope = run_sddmm(grad, spread_heads(v, heads), edges, edges_t, backend)
    if attr is not None and edge_q is not None:
        per_edge, per_edge_t = incidence(edges.row_ptr, edges.col.shape[0])
        spread = spread_attr(attr, q)
        if grad_edge is not None:
            grad_edge = grad_edge[..., : attr.shape[1]]
            slope = slope + run_sddmm(grad_edge, spread, per_edge, per_edge_t, backend)
    slope = run_softmax_slope(weight, slope, edges.row_ptr, backend)
    scaled = scale * slope
    grad_q = run_spmm(scaled, spread_heads(k, heads), edges, edges_t, backend)
    grad_k = run_spmm(scaled, q, edges_t, edges, backend)
    grad_v = run_spmm(weight, grad, edges_t, edges, backend)
    if groups != heads:
        grad_k, grad_v = (g.unflatten(2, (groups, -1)).sum(3) for g in (grad_k, grad_v))
    grad_edge_q = grad_attr = None
    if attr is not None and edge_q is not None:
        grad_edge_q = inputs.with_room(run_spmm(slope, spread, per_edge, per_edge_t, backend))
        terms = run_spmm(slope, edge_q, per_edge_t, per_edge, backend)
        if grad_edge is not None:
            terms = terms + run_spmm(weight, grad_edge, per_edge_t, per_edge, backend)
        grad_attr = terms.sum((0, 2))
    grad_bias = None if bias is None else slope.sum_to_size(bias.shape)
    return Inputs(grad_q, grad_k, grad_v, grad_edge_q, grad_attr, grad_bias)
