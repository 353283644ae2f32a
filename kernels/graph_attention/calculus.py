"""Derivatives of attention and of the products that it is made of.

``spmm`` and ``sddmm`` are each other's derivatives, over the edges or the transposed edges, so that
every order of derivative is again one of the two, and nothing scatters.  With ``P`` the edges and
``P'`` the transposed edges::

    y = S(value, x; P)     dvalue = D(dy, x; P)    dx = S(value, dy; P')
    value = D(x, z; P)     dx = S(dvalue, z; P)    dz = S(dvalue, x; P')

Sums over the rows of numbers that edges carry, and the way back, are the same two over the
*incidence* of edges: every edge reads itself.  The fused attention has a fused backward pass; the
derivative of that goes through the products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scisparse.kernels._edges import Edges, transpose_edges
from scisparse.kernels._segments import site_of_edge
from scisparse.kernels.graph_attention.reference import Inputs

__all__ = [
    "attention_backward",
    "attention_backward_backward",
    "incidence",
    "run_attention",
    "run_sddmm",
    "run_segment_softmax",
    "run_softmax_slope",
    "run_spmm",
    "run_weights",
    "save_attention",
    "save_attention_backward",
    "save_product",
    "sddmm_backward",
    "spmm_backward",
    "spread_rows",
    "sum_rows",
]


def run_attention(
    inputs: Inputs, edges: Edges, edges_t: Edges | None, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    """Call the registered operator; arguments are taken to be valid."""
    edges_t_or_none = edges_t or (None, None, None)
    out, edge_out, _ = torch.ops.scisparse.graph_attention(
        *inputs, *edges[:2], *edges_t_or_none, scale, backend
    )
    return out, edge_out


def run_spmm(
    value: Tensor, x: Tensor, edges: Edges, edges_t: Edges | None, backend: str = "auto"
) -> Tensor:
    """Call the registered operator; arguments are taken to be valid."""
    y: Tensor = torch.ops.scisparse.spmm(
        value, x, *edges, *(edges_t or (None, None, None)), backend
    )
    return y


def run_sddmm(
    x: Tensor, z: Tensor, edges: Edges, edges_t: Edges | None, backend: str = "auto"
) -> Tensor:
    """Call the registered operator; arguments are taken to be valid."""
    value: Tensor = torch.ops.scisparse.sddmm(
        x, z, *edges, *(edges_t or (None, None, None)), backend
    )
    return value


def run_segment_softmax(score: Tensor, row_ptr: Tensor, backend: str = "auto") -> Tensor:
    """Call the registered operator; arguments are taken to be valid."""
    weight: Tensor = torch.ops.scisparse.segment_softmax(score, row_ptr, backend)
    return weight


def run_softmax_slope(
    weight: Tensor, grad: Tensor, row_ptr: Tensor, backend: str = "auto"
) -> Tensor:
    """Call the registered operator; arguments are taken to be valid."""
    slope: Tensor = torch.ops.scisparse.segment_softmax_backward(weight, grad, row_ptr, backend)
    return slope


def save_product(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save both tensors and both edge lists; ``spmm`` and ``sddmm`` have the same arguments."""
    ctx.save_for_backward(*inputs[:8])
    ctx.backend = inputs[8]


def _saved_product(ctx: Any) -> tuple[Tensor, Tensor, Edges, Edges]:
    """Both tensors and both edge lists; saved tensors may be unpacked only once."""
    first, second, *saved = ctx.saved_tensors
    edges = Edges(*saved[:3])
    if saved[3] is not None:
        return first, second, edges, Edges(*saved[3:])
    edges_t = transpose_edges(edges.row_ptr, edges.col, second.shape[1], edges.tie)
    return first, second, edges, edges_t


def spmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of ``spmm``."""
    value, x, edges, edges_t = _saved_product(ctx)
    grad_value = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_value = run_sddmm(grad, x, edges, edges_t, ctx.backend).sum_to_size(value.shape)
    if ctx.needs_input_grad[1]:
        grad_x = run_spmm(value, grad, edges_t, edges, ctx.backend)
    return grad_value, grad_x, *(None,) * 7


def sddmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of ``sddmm``."""
    x, z, edges, edges_t = _saved_product(ctx)
    grad_x = grad_z = None
    if ctx.needs_input_grad[0]:
        grad_x = run_spmm(grad, z, edges, edges_t, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_z = run_spmm(grad, x, edges_t, edges, ctx.backend)
    return grad_x, grad_z, *(None,) * 7


def incidence(row_ptr: Tensor, num_edges: int) -> tuple[Edges, Edges]:
    """Edges that read themselves, and the same from the side of what is read."""
    count = torch.arange(num_edges + 1, device=row_ptr.device)
    site = site_of_edge(row_ptr, num_edges)
    return Edges(row_ptr, count[:-1], None), Edges(count, site, count[:-1])


def sum_rows(value: Tensor, row_ptr: Tensor, backend: str = "auto") -> Tensor:
    """Sums over the edges of each site, ``[B, M, H]`` of ``[B, E, H]``."""
    edges, edges_t = incidence(row_ptr, value.shape[1])
    return run_spmm(value, _ones(value), edges, edges_t, backend)[..., 0]


def spread_rows(total: Tensor, row_ptr: Tensor, num_edges: int, backend: str = "auto") -> Tensor:
    """Give each edge the number of its site, ``[B, E, H]`` of ``[B, M, H]``."""
    edges, edges_t = incidence(row_ptr, num_edges)
    ones = total.new_ones(1, 1, 1, 1).expand(total.shape[0], num_edges, total.shape[2], 1)
    return run_sddmm(total[..., None], ones, edges, edges_t, backend)


def _ones(value: Tensor) -> Tensor:
    return torch.ones_like(value)[..., None]


def run_weights(
    inputs: Inputs, edges: Edges, edges_t: Edges | None, scale: float, backend: str = "auto"
) -> Tensor:
    """Softmax of the scores, ``[B, E, H]``, by operators that are differentiable to any order."""
    q, k, _, edge_q, attr, bias = inputs
    score = scale * run_sddmm(q, spread_heads(k, q.shape[2]), edges, edges_t, backend)
    if attr is not None and edge_q is not None:
        per_edge = incidence(edges.row_ptr, edges.col.shape[0])
        score = score + run_sddmm(edge_q, spread_attr(attr, q), *per_edge, backend)
    score = score if bias is None else score + bias
    return run_segment_softmax(score, edges.row_ptr, backend)


def spread_heads(x: Tensor, heads: int) -> Tensor:
    """Heads of sources, each for its group of heads: ``[B, N, H, D]`` of ``[B, N, G, D]``."""
    group = heads // x.shape[2]
    return x if group == 1 else x.repeat_interleave(group, dim=2)


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
    q, k, v, edge_q, attr, bias = inputs
    heads, groups = q.shape[2], k.shape[2]
    weight = run_weights(inputs, edges, edges_t, scale, backend)
    slope = run_sddmm(grad, spread_heads(v, heads), edges, edges_t, backend)
    if attr is not None and edge_q is not None:
        per_edge, per_edge_t = incidence(edges.row_ptr, edges.col.shape[0])
        spread = spread_attr(attr, q)
        if grad_edge is not None:
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
        grad_edge_q = run_spmm(slope, spread, per_edge, per_edge_t, backend)
        terms = run_spmm(slope, edge_q, per_edge_t, per_edge, backend)
        if grad_edge is not None:
            terms = terms + run_spmm(weight, grad_edge, per_edge_t, per_edge, backend)
        grad_attr = terms.sum((0, 2))
    grad_bias = None if bias is None else slope.sum_to_size(bias.shape)
    return Inputs(grad_q, grad_k, grad_v, grad_edge_q, grad_attr, grad_bias)
