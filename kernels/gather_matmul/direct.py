"""Runs the two operators: checks, and the choice of a backend."""

from __future__ import annotations

from torch import Tensor

from scisparse.kernels import _backends, _debug, _watch
from scisparse.kernels._edges import Edges, check_is_transpose
from scisparse.kernels.gather_matmul import cpu, cuda, reference, triton

__all__ = [
    "GATHER_IMPLEMENTATIONS",
    "OUTER_IMPLEMENTATIONS",
    "edge_outer",
    "gather_matmul",
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
    if _debug.is_debugging():
        edges_t = None if row_ptr_t is None else Edges(row_ptr_t, col_t, tie_t)
        _check(Edges(row_ptr, col, tie), edges_t, x.shape[1], weight.shape[0])
    chosen = _backends.choose("gather_matmul", GATHER_IMPLEMENTATIONS, backend, x.device, x.dtype)
    _debug.check_ends_for(chosen.name, row_ptr, col.shape[0])
    y: Tensor = chosen.run(x, weight, row_ptr, col, tie, transpose_weight)
    return y


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
    if _debug.is_debugging():
        edges_t = None if row_ptr_t is None else Edges(row_ptr_t, col_t, tie_t)
        _check(Edges(row_ptr, col, tie), edges_t, x.shape[1], num_weights)
    _watch.tell(col, x, grad)
    chosen = _backends.choose("edge_outer", OUTER_IMPLEMENTATIONS, backend, x.device, x.dtype)
    _debug.check_ends_for(chosen.name, row_ptr, col.shape[0])
    out: Tensor = chosen.run(x, grad, row_ptr, col, tie, num_weights)
    return out


def _check(edges: Edges, edges_t: Edges | None, num_sources: int, num_weights: int) -> None:
    """Check every index, in debug mode."""
    _debug.check_edges(*edges, num_sources, num_weights)
    if edges_t is not None:
        check_is_transpose(edges_t, edges, num_sources)
