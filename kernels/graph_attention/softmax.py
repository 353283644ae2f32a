"""The registered operators of the softmax over rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scisparse.errors import ShapeError
from scisparse.kernels import _backends, _debug
from scisparse.kernels._operators import register
from scisparse.kernels.graph_attention import primitives
from scisparse.kernels.graph_attention.ops import IMPLEMENTATIONS

__all__: list[str] = []


def _choose(op: str, backend: str, like: Tensor, row_ptr: Tensor) -> Any:
    """Return the function that runs `op` on `backend`; rows are checked in debug mode."""
    count = like.shape[1]
    if _debug.is_debugging():
        each = torch.arange(count, device=row_ptr.device)
        _debug.check_edges(row_ptr, each, None, count, count)
    chosen = _backends.choose(op, IMPLEMENTATIONS[op], backend, like.device, like.dtype)
    _debug.check_ends_for(chosen.name, row_ptr, count)
    return chosen.run


def _softmax(score: Tensor, row_ptr: Tensor, backend: str) -> Any:
    return _choose("segment_softmax", backend, score, row_ptr)(score, row_ptr)


def _slope(weight: Tensor, grad: Tensor, row_ptr: Tensor, backend: str) -> Any:
    if weight.shape != grad.shape or weight.dtype != grad.dtype:
        raise ShapeError(
            f"`weight` {weight.dtype} {list(weight.shape)} and `grad` {grad.dtype} "
            f"{list(grad.shape)} must be alike"
        )
    return _choose("segment_softmax_backward", backend, weight, row_ptr)(weight, grad, row_ptr)


register(
    "segment_softmax",
    "(Tensor score, Tensor row_ptr, str backend) -> Tensor",
    _softmax,
    lambda score, row_ptr, backend: torch.empty_like(score, memory_format=torch.contiguous_format),
    primitives.softmax_backward,
    primitives.save_softmax,
)
register(
    "segment_softmax_backward",
    "(Tensor weight, Tensor grad, Tensor row_ptr, str backend) -> Tensor",
    _slope,
    lambda weight, grad, row_ptr, backend: torch.empty_like(
        weight, memory_format=torch.contiguous_format
    ),
    primitives.slope_backward,
    primitives.save_slope,
)
