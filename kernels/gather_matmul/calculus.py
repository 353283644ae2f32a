"""Derivatives of the two operators, and what ``torch.func`` does with them.

``gather_matmul`` and ``edge_outer`` are each other's derivatives, over the pattern or over the
transposed pattern, so that every order of derivative exists and none of them scatters.  With ``P``
the edges and ``P'`` the transposed edges::

    y = G(x, W; P)         dx = G'(dy, W; P')      dW = D(x, dy; P)
    y = G'(x, W; P)        dx = G(dy, W; P')       dW = D(dy, x; P')
    D = D(x, g; P)         dx = G'(g, dD; P')      dg = G(x, dD; P)

where ``G'`` reads its weights transposed.  Both operators carry both edge lists, which makes the
swap a change of order.  Both are linear in each tensor, which is all that forward mode needs.
Under ``vmap`` the mapped dimension joins the batch or, where weights are mapped too, there are as
many copies of the pattern side by side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scisparse.kernels._bilinear import bilinear, on_common_edges, on_edges, with_gradient
from scisparse.kernels._edges import Edges, side_by_side, transpose_edges
from scisparse.kernels._modes import is_plain, is_transformed, wants_gradient
from scisparse.kernels.gather_matmul import direct

__all__ = [
    "edge_outer_backward",
    "gather_matmul_backward",
    "run_edge_outer",
    "run_gather_matmul",
]


def run_gather_matmul(
    x: Tensor,
    weight: Tensor,
    edges: Edges,
    edges_t: Edges | None,
    transpose_weight: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Call the registered operator; arguments are taken to be valid."""
    rest = (*edges, *(edges_t or (None, None, None)), transpose_weight, backend)
    y: Tensor
    if is_transformed():
        y = _GATHER_MATMUL.apply(x, weight, *rest)
    elif is_plain(x, weight, *rest[:6]):
        run = _DIRECT_MATMUL.apply if wants_gradient(x, weight) else direct.gather_matmul
        y = run(x, weight, *rest)
    else:
        y = torch.ops.scisparse.gather_matmul(x, weight, *rest)
    return y


def run_edge_outer(
    x: Tensor,
    grad: Tensor,
    edges: Edges,
    edges_t: Edges | None,
    num_weights: int,
    backend: str = "auto",
) -> Tensor:
    """Call the registered operator; arguments are taken to be valid."""
    rest = (*edges, *(edges_t or (None, None, None)), num_weights, backend)
    out: Tensor
    if is_transformed():
        out = _EDGE_OUTER.apply(x, grad, *rest)
    elif is_plain(x, grad, *rest[:6]):
        run = _DIRECT_OUTER.apply if wants_gradient(x, grad) else direct.edge_outer
        out = run(x, grad, *rest)
    else:
        out = torch.ops.scisparse.edge_outer(x, grad, *rest)
    return out


def _saved(ctx: Any, needs_transpose: bool) -> tuple[Tensor, Tensor, Edges, Any]:
    """Both tensors, edges and transposed edges of a call: saved tensors may be unpacked only once.

    The transposed edges are made here if they were not given and are needed.
    """
    first, second, *saved = ctx.saved_tensors
    edges = Edges(*saved[:3])
    if saved[3] is not None:
        return first, second, edges, Edges(*saved[3:])
    if not needs_transpose:
        return first, second, edges, None
    edges_t = transpose_edges(edges.row_ptr, edges.col, first.shape[1], edges.tie)
    return first, second, edges, edges_t


def gather_matmul_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of ``gather_matmul``."""
    transpose_weight, backend = ctx.options
    x, weight, edges, edges_t = _saved(ctx, ctx.needs_input_grad[0] or transpose_weight)
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = run_gather_matmul(grad, weight, edges_t, edges, not transpose_weight, backend)
    if ctx.needs_input_grad[1]:
        read, write, forth, back = (
            (grad, x, edges_t, edges) if transpose_weight else (x, grad, edges, edges_t)
        )
        grad_weight = run_edge_outer(read, write, forth, back, weight.shape[0], backend)
    return grad_x, grad_weight, *(None,) * 8


def edge_outer_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of ``edge_outer``."""
    _, backend = ctx.options
    x, grad, edges, edges_t = _saved(ctx, ctx.needs_input_grad[0])
    grad_x = grad_grad = None
    if ctx.needs_input_grad[0]:
        grad_x = run_gather_matmul(grad, grad_out, edges_t, edges, True, backend)
    if ctx.needs_input_grad[1]:
        grad_grad = run_gather_matmul(x, grad_out, edges, edges_t, False, backend)
    return grad_x, grad_grad, *(None,) * 8


@on_common_edges(2, 8)
def _map_gather_matmul(
    info: Any, in_dims: tuple[int | None, ...], *inputs: Any
) -> tuple[Tensor, int]:
    x, weight, *rest = inputs
    edges, edges_t, transpose_weight, backend = _split(rest)
    copies, x_dim, weight_dim = info.batch_size, *in_dims[:2]
    if weight_dim is None:
        x = x.movedim(x_dim, 0)
        y = run_gather_matmul(x.flatten(0, 1), weight, edges, edges_t, transpose_weight, backend)
        return y.unflatten(0, x.shape[:2]), 0
    weight = weight.movedim(weight_dim, 0)
    num_weights, sites = weight.shape[1], edges.row_ptr.numel() - 1
    x, edges, edges_t = _copied(x, x_dim, edges, edges_t, copies, num_weights)
    y = run_gather_matmul(x, weight.flatten(0, 1), edges, edges_t, transpose_weight, backend)
    return y.unflatten(1, (copies, sites)), 1


@on_common_edges(2, 8)
def _map_edge_outer(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
    x, grad, *rest = inputs
    edges, edges_t, num_weights, backend = _split(rest)
    copies, x_dim, grad_dim = info.batch_size, *in_dims[:2]
    grad = grad[None].expand(copies, *grad.shape) if grad_dim is None else grad.movedim(grad_dim, 0)
    x, edges, edges_t = _copied(x, x_dim, edges, edges_t, copies, num_weights)
    grad = grad.transpose(0, 1).flatten(1, 2)
    out = run_edge_outer(x, grad, edges, edges_t, copies * num_weights, backend)
    return out.unflatten(0, (copies, num_weights)), 0


def _split(rest: list[Any]) -> tuple[Edges, Edges | None, Any, str]:
    """Edges, transposed edges and options of a call."""
    edges_t = None if rest[3] is None else Edges(*rest[3:6])
    return Edges(*rest[:3]), edges_t, *rest[6:]


def _copied(
    x: Tensor, dim: int | None, edges: Edges, edges_t: Edges | None, copies: int, weights: int
) -> tuple[Tensor, Edges, Edges | None]:
    """Copies of the pattern side by side, with sources ``[B, copies * N, C]`` or shared ones."""
    if dim is None:
        return x, side_by_side(edges, copies, 0, weights), None
    x = x.movedim(dim, 1)
    if edges_t is not None:
        edges_t = side_by_side(edges_t, copies, edges.row_ptr.numel() - 1, weights)
    return x.flatten(1, 2), side_by_side(edges, copies, x.shape[2], weights), edges_t


_GATHER_MATMUL, _EDGE_OUTER = (
    bilinear(name, on_edges(run), backward, vmap)
    for name, run, backward, vmap in (
        ("gather_matmul", run_gather_matmul, gather_matmul_backward, _map_gather_matmul),
        ("edge_outer", run_edge_outer, edge_outer_backward, _map_edge_outer),
    )
)
_DIRECT_MATMUL, _DIRECT_OUTER = (
    with_gradient("gather_matmul", direct.gather_matmul, gather_matmul_backward),
    with_gradient("edge_outer", direct.edge_outer, edge_outer_backward),
)
