"""The two registered operators: schemas, implementations, shape rules, derivatives."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from scisparse.kernels._bilinear import save
from scisparse.kernels._operators import register
from scisparse.kernels.gather_matmul import calculus, direct
from scisparse.kernels.gather_matmul.direct import GATHER_IMPLEMENTATIONS, OUTER_IMPLEMENTATIONS

__all__ = ["GATHER_IMPLEMENTATIONS", "OUTER_IMPLEMENTATIONS"]


def _gather_matmul_fake(x: Tensor, weight: Tensor, row_ptr: Tensor, *rest: Any) -> Tensor:
    transpose_weight = rest[-2]
    channels_out = weight.shape[1 if transpose_weight else 2]
    return x.new_empty(x.shape[0], row_ptr.shape[0] - 1, channels_out)


def _edge_outer_fake(x: Tensor, grad: Tensor, *rest: Any) -> Tensor:
    num_weights = rest[-2]
    return x.new_empty(num_weights, x.shape[2], grad.shape[2])


_EDGES = "Tensor row_ptr, Tensor col, Tensor? tie"
_EDGES_T = "Tensor? row_ptr_t, Tensor? col_t, Tensor? tie_t"

register(
    "gather_matmul",
    f"(Tensor x, Tensor weight, {_EDGES}, {_EDGES_T}, bool transpose_weight, str backend)"
    " -> Tensor",
    direct.gather_matmul,
    _gather_matmul_fake,
    calculus.gather_matmul_backward,
    save,
)
register(
    "edge_outer",
    f"(Tensor x, Tensor grad, {_EDGES}, {_EDGES_T}, SymInt num_weights, str backend) -> Tensor",
    direct.edge_outer,
    _edge_outer_fake,
    calculus.edge_outer_backward,
    save,
)
