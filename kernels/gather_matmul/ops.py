"""The two registered operators, their shape rules and their derivatives.

``gather_matmul`` and ``edge_outer`` are each other's derivatives, over the pattern or over the
transposed pattern, so that every order of derivative exists and none of them scatters.  With ``P``
the edges and ``P'`` the transposed edges::

    y = G(x, W; P)         dx = G'(dy, W; P')      dW = D(x, dy; P)
    y = G'(x, W; P)        dx = G(dy, W; P')       dW = D(dy, x; P')
    D = D(x, g; P)         dx = G'(g, dD; P')      dg = G(x, dD; P)

where ``G'`` reads its weights transposed.  Both operators carry both edge lists, which makes the
swap a change of order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from scisparse.errors import PatternError
from scisparse.kernels import _backends
from scisparse.kernels.gather_matmul import cpu, reference, triton

__all__ = [
    "GATHER_IMPLEMENTATIONS",
    "OUTER_IMPLEMENTATIONS",
    "Edges",
    "run_edge_outer",
    "run_gather_matmul",
    "transpose_edges",
]


_INT32_EDGES = 2**31


class Edges(NamedTuple):
    """One direction of a pattern: ``row_ptr [M + 1]``, ``col [E]`` and ``tie [E]``, edge to weight.

    ``tie=None`` means that edge ``e`` has weight ``e``.
    """

    row_ptr: Tensor
    col: Tensor
    tie: Tensor | None

    def to(self, device: torch.device | str) -> Edges:
        """Return the same edges on `device`."""
        tie = None if self.tie is None else self.tie.to(device)
        return Edges(self.row_ptr.to(device), self.col.to(device), tie)


def transpose_edges(
    row_ptr: Tensor, col: Tensor, num_sources: int, tie: Tensor | None = None
) -> Edges:
    """Return the same edges seen from the sources: row `j` lists the sites that read source `j`.

    Examples
    --------
    >>> import torch
    >>> row_ptr, col = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 2])
    >>> edges = transpose_edges(row_ptr, col, num_sources=3)
    >>> edges.row_ptr.tolist(), edges.col.tolist(), edges.tie.tolist()
    ([0, 1, 1, 3], [0, 0, 1], [0, 1, 2])
    """
    site = reference.site_of_edge(row_ptr, col.numel())
    col_sorted, order = torch.sort(col.long(), stable=True)
    bounds = torch.arange(num_sources + 1, device=col.device)
    if tie is None:
        tie_t = order.to(torch.int32) if col.numel() < _INT32_EDGES else order
    else:
        tie_t = tie[order]
    return Edges(torch.searchsorted(col_sorted, bounds), site[order].to(col.dtype), tie_t)


_EDGES = "Tensor row_ptr, Tensor col, Tensor? tie"
_EDGES_T = "Tensor? row_ptr_t, Tensor? col_t, Tensor? tie_t"
_GATHER = "scisparse::gather_matmul"
_OUTER = "scisparse::edge_outer"
torch.library.define(
    _GATHER,
    f"(Tensor x, Tensor weight, {_EDGES}, {_EDGES_T}, bool transpose_weight, str backend)"
    " -> Tensor",
)
torch.library.define(
    _OUTER,
    f"(Tensor x, Tensor grad, {_EDGES}, {_EDGES_T}, SymInt num_weights, str backend) -> Tensor",
)

GATHER_IMPLEMENTATIONS = (
    _backends.Implementation("cpu", cpu.can_run, cpu.gather_matmul),
    _backends.Implementation("triton", triton.can_run, triton.gather_matmul),
    _backends.Implementation("reference", lambda device, dtype: None, reference.gather_matmul),
)
OUTER_IMPLEMENTATIONS = (
    _backends.Implementation("cpu", cpu.can_run, cpu.edge_outer),
    _backends.Implementation("triton", triton.can_run, triton.edge_outer),
    _backends.Implementation("reference", lambda device, dtype: None, reference.edge_outer),
)


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
    return _bilinear(lambda a, b: torch.ops.scisparse.gather_matmul(a, b, *rest), x, weight)


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
    return _bilinear(lambda a, b: torch.ops.scisparse.edge_outer(a, b, *rest), x, grad)


def _bilinear(run: Callable[[Tensor, Tensor], Tensor], first: Tensor, second: Tensor) -> Tensor:
    """Run an operator that is linear in both tensors, with their tangents where they carry any.

    Registered operators know no forward mode, and would drop the tangents without a word.
    """
    if torch.compiler.is_compiling():
        return run(first, second)
    (a, da), (b, db) = forward_ad.unpack_dual(first), forward_ad.unpack_dual(second)
    if da is None and db is None:
        return run(first, second)
    value = run(a, b)
    tangent = torch.zeros_like(value)
    if da is not None:
        tangent = tangent + run(da, b)
    if db is not None:
        tangent = tangent + run(a, db)
    dual: Tensor = forward_ad.make_dual(value, tangent)
    return dual


@torch.library.impl(_GATHER, "default")
def _gather_matmul(
    x: Tensor,
    weight: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    tie: Tensor | None,
    row_ptr_t: Tensor | None,
    col_t: Tensor | None,
    tie_t: Tensor | None,
    transpose_weight: bool,
    backend: str,
) -> Tensor:
    _check_rows(row_ptr, col)
    run = _backends.choose("gather_matmul", GATHER_IMPLEMENTATIONS, backend, x.device, x.dtype).run
    return run(x, weight, row_ptr, col, tie, transpose_weight)


@torch.library.impl(_OUTER, "default")
def _edge_outer(
    x: Tensor,
    grad: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    tie: Tensor | None,
    row_ptr_t: Tensor | None,
    col_t: Tensor | None,
    tie_t: Tensor | None,
    num_weights: int,
    backend: str,
) -> Tensor:
    _check_rows(row_ptr, col)
    run = _backends.choose("edge_outer", OUTER_IMPLEMENTATIONS, backend, x.device, x.dtype).run
    return run(x, grad, row_ptr, col, tie, num_weights)


def _check_rows(row_ptr: Tensor, col: Tensor) -> None:
    """The last row must end where `col` does, or memory is misread; elsewhere it costs a wait."""
    if row_ptr.device.type == "cpu" and (int(row_ptr[0]) != 0 or int(row_ptr[-1]) != col.numel()):
        raise PatternError(
            f"`row_ptr` runs from {int(row_ptr[0])} to {int(row_ptr[-1])} but `col` has "
            f"{col.numel()} edges; it must run from 0 to the number of edges"
        )


def _gather_matmul_fake(x: Tensor, weight: Tensor, row_ptr: Tensor, *rest: Any) -> Tensor:
    transpose_weight = rest[-2]
    channels_out = weight.shape[1 if transpose_weight else 2]
    return x.new_empty(x.shape[0], row_ptr.shape[0] - 1, channels_out)


def _edge_outer_fake(x: Tensor, grad: Tensor, *rest: Any) -> Tensor:
    num_weights = rest[-2]
    return x.new_empty(num_weights, x.shape[2], grad.shape[2])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save both tensors and both edge lists; the two operators have the same arguments."""
    ctx.save_for_backward(*inputs[:8])
    ctx.option, ctx.backend = inputs[8:]


def _saved(ctx: Any, num_sources: int) -> tuple[Edges, Edges]:
    """Edges and transposed edges of a call; the latter are made here when they were not given."""
    edges, edges_t = Edges(*ctx.saved_tensors[2:5]), ctx.saved_tensors[5:8]
    if edges_t[0] is None:
        return edges, transpose_edges(edges.row_ptr, edges.col, num_sources, edges.tie)
    return edges, Edges(*edges_t)


def _gather_matmul_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors[:2]
    transpose_weight = ctx.option
    edges, edges_t = _saved(ctx, x.shape[1])
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = run_gather_matmul(grad, weight, edges_t, edges, not transpose_weight, ctx.backend)
    if ctx.needs_input_grad[1]:
        read, write, forth, back = (
            (grad, x, edges_t, edges) if transpose_weight else (x, grad, edges, edges_t)
        )
        grad_weight = run_edge_outer(read, write, forth, back, weight.shape[0], ctx.backend)
    return grad_x, grad_weight, *(None,) * 8


def _edge_outer_backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    x, grad = ctx.saved_tensors[:2]
    edges, edges_t = _saved(ctx, x.shape[1])
    grad_x = grad_grad = None
    if ctx.needs_input_grad[0]:
        grad_x = run_gather_matmul(grad, grad_out, edges_t, edges, True, ctx.backend)
    if ctx.needs_input_grad[1]:
        grad_grad = run_gather_matmul(x, grad_out, edges, edges_t, False, ctx.backend)
    return grad_x, grad_grad, *(None,) * 8


torch.library.register_fake(_GATHER, _gather_matmul_fake)
torch.library.register_fake(_OUTER, _edge_outer_fake)
torch.library.register_autograd(_GATHER, _gather_matmul_backward, setup_context=_save)
torch.library.register_autograd(_OUTER, _edge_outer_backward, setup_context=_save)
