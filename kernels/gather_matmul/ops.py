"""The two registered operators: schemas, implementations, shape rules, derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scisparse.errors import PatternError
from scisparse.kernels import _backends, _debug
from scisparse.kernels.gather_matmul import calculus, cpu, cuda, reference, triton
from scisparse.kernels.gather_matmul.edges import Edges, is_transpose

__all__ = ["GATHER_IMPLEMENTATIONS", "OUTER_IMPLEMENTATIONS"]


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


@torch.library.impl(_GATHER, "default")
def _gather_matmul(
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
    edges_t = None if row_ptr_t is None else Edges(row_ptr_t, col_t, tie_t)
    _check(Edges(row_ptr, col, tie), edges_t, x.shape[1], weight.shape[0])
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
    col_t: Tensor,  # there when `row_ptr_t` is
    tie_t: Tensor | None,
    num_weights: int,
    backend: str,
) -> Tensor:
    edges_t = None if row_ptr_t is None else Edges(row_ptr_t, col_t, tie_t)
    _check(Edges(row_ptr, col, tie), edges_t, x.shape[1], num_weights)
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


torch.library.register_fake(_GATHER, _gather_matmul_fake)
torch.library.register_fake(_OUTER, _edge_outer_fake)
torch.library.register_autograd(
    _GATHER, calculus.gather_matmul_backward, setup_context=calculus.save
)
torch.library.register_autograd(_OUTER, calculus.edge_outer_backward, setup_context=calculus.save)
