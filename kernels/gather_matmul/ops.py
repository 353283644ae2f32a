"""The two registered operators: schemas, implementations, shape rules, derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scisparse.kernels import _bilinear
from scisparse.kernels.gather_matmul import calculus, direct
from scisparse.kernels.gather_matmul.direct import GATHER_IMPLEMENTATIONS, OUTER_IMPLEMENTATIONS

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

torch.library.impl(_GATHER, "default")(direct.gather_matmul)
torch.library.impl(_OUTER, "default")(direct.edge_outer)


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
    _GATHER, calculus.gather_matmul_backward, setup_context=_bilinear.save
)
torch.library.register_autograd(_OUTER, calculus.edge_outer_backward, setup_context=_bilinear.save)
