"""Runs the two operators: checks, choice of a backend, and when torch need not know of a call."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from scisparse.errors import PatternError
from scisparse.kernels import _backends, _debug, _watch
from scisparse.kernels.gather_matmul import cpu, cuda, reference, triton
from scisparse.kernels.gather_matmul.edges import Edges, is_transpose

__all__ = [
    "GATHER_IMPLEMENTATIONS",
    "OUTER_IMPLEMENTATIONS",
    "edge_outer",
    "gather_matmul",
    "is_plain",
]

# Best first; "cuda" comes after what can always run, so that it must be named.
GATHER_IMPLEMENTATIONS = (
    _backends.Implementation("cpu", cpu.can_run, cpu.gather_matmul),
    _backends.Implementation("triton", triton.can_run, triton.gather_matmul),
    _backends.Implementation("reference", lambda device, dtype: None, reference.gather_matmul),
    _backends.Implementation("cuda", cuda.can_run, cuda.gather_matmul),
)
OUTER_IMPLEMENTATIONS = (
    _backends.Implementation("cpu", cpu.can_run, cpu.edge_outer),
    _backends.Implementation("triton", triton.can_run, triton.edge_outer),
    _backends.Implementation("reference", lambda device, dtype: None, reference.edge_outer),
    _backends.Implementation("cuda", cuda.can_run, cuda.edge_outer),
)


def gather_matmul(
    x: Tensor,
    weight: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    tie: Tensor | None,
    row_ptr_t: Tensor | None,
    col_t: Tensor,  # there when `row_ptr_t` is
    tie_t: Tensor | None,
    transpose_weight: bool,
    backend: str,
) -> Tensor:
    """Run the operator on the backend that `backend` stands for."""
    edges_t = None if row_ptr_t is None else Edges(row_ptr_t, col_t, tie_t)
    _check(Edges(row_ptr, col, tie), edges_t, x.shape[1], weight.shape[0])
    run = _backends.choose("gather_matmul", GATHER_IMPLEMENTATIONS, backend, x.device, x.dtype).run
    return run(x, weight, row_ptr, col, tie, transpose_weight)


def edge_outer(
    x: Tensor,
    grad: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    tie: Tensor | None,
    row_ptr_t: Tensor | None,
    col_t: Tensor,  # there when `row_ptr_t` is
    tie_t: Tensor | None,
    num_weights: int,
    backend: str,
) -> Tensor:
    """Run the operator on the backend that `backend` stands for."""
    edges_t = None if row_ptr_t is None else Edges(row_ptr_t, col_t, tie_t)
    _check(Edges(row_ptr, col, tie), edges_t, x.shape[1], num_weights)
    _watch.tell(col, x, grad)
    run = _backends.choose("edge_outer", OUTER_IMPLEMENTATIONS, backend, x.device, x.dtype).run
    return run(x, grad, row_ptr, col, tie, num_weights)


def _check(edges: Edges, edges_t: Edges | None, num_sources: int, num_weights: int) -> None:
    """Check every index in debug mode.

    Else, and not on a GPU, where it would be a wait, check only that the last row ends where `col`
    does, as memory is misread without.
    """
    row_ptr, col = edges.row_ptr, edges.col
    if _debug.is_debugging():
        _debug.check_edges(*edges, num_sources, num_weights)
        if edges_t is not None and not is_transpose(edges_t, edges, num_sources):
            raise PatternError(
                "`transpose` is not the transpose of the edges; make it with transpose_edges()"
            )
    if row_ptr.device.type != "cpu":
        return
    ends = row_ptr[:: max(row_ptr.shape[0] - 1, 1)].tolist()
    if ends[0] != 0 or ends[-1] != col.shape[0]:
        raise PatternError(
            f"`row_ptr` runs from {ends[0]} to {ends[-1]} but `col` has "
            f"{col.shape[0]} edges; it must run from 0 to the number of edges"
        )


_PLAIN = {Tensor, Parameter, type(None)}


def is_plain(first: Tensor, second: Tensor, *edges: Tensor | None) -> bool:
    """Whether a call on the CPU wants values alone: no gradient, no mode, no trace, no profile.

    Then the operator may run without torch's dispatcher, which takes longer than a small product.
    ``torch.func`` and forward mode are for the caller to rule out.
    """
    if torch.compiler.is_compiling():
        return False
    wants_gradient = torch.is_grad_enabled() and (first.requires_grad or second.requires_grad)
    return (
        not wants_gradient
        and first.is_cpu
        and _PLAIN.issuperset(map(type, (first, second, *edges)))
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and torch._C._get_tracing_state() is None
        and not torch._C._autograd._profiler_enabled()
        and not (first.is_neg() or second.is_neg())
    )
