"""The registered operators of the softmax over rows, and their calculus.

With ``p = softmax(s)`` over each row and ``<a, b>`` the sum over the row::

    ds = B(p, dp) = p (dp - <p, dp>)
    d of B(p, g), given u:    dg = B(p, u)    dp = u (g - <p, g>) - g <p, u>

Sums over rows, and the way back, are products over the incidence of edges, so that every order of
derivative follows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scisparse.errors import ShapeError
from scisparse.kernels import _backends, _debug
from scisparse.kernels.graph_attention.calculus import run_softmax_slope, spread_rows, sum_rows
from scisparse.kernels.graph_attention.ops import IMPLEMENTATIONS, register

__all__: list[str] = []


def _choose(op: str, backend: str, like: Tensor, row_ptr: Tensor) -> Any:
    """Return the function that runs `op` on `backend`; rows are checked in debug mode."""
    count = like.shape[1]
    if _debug.is_debugging():
        each = torch.arange(count, device=row_ptr.device)
        _debug.check_edges(row_ptr, each, None, count, count)
    chosen = _backends.choose(op, IMPLEMENTATIONS[op], backend, like.device, like.dtype)
    if chosen.name != "cpu" and row_ptr.is_cpu:
        _debug.check_ends(row_ptr, count)
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


def _save_softmax(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output, inputs[1])
    ctx.backend = inputs[2]


def _softmax_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    weight, row_ptr = ctx.saved_tensors
    return run_softmax_slope(weight, grad, row_ptr, ctx.backend), None, None


def _save_slope(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.backend = inputs[3]


def _slope_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, given, row_ptr = ctx.saved_tensors
    grad_weight = grad_given = None
    if ctx.needs_input_grad[0]:

        def mean(values: Tensor) -> Tensor:
            total = sum_rows(weight * values, row_ptr, ctx.backend)
            return spread_rows(total, row_ptr, weight.shape[1], ctx.backend)

        grad_weight = grad * (given - mean(given)) - given * mean(grad)
    if ctx.needs_input_grad[1]:
        grad_given = run_softmax_slope(weight, grad, row_ptr, ctx.backend)
    return grad_weight, grad_given, None, None


register(
    "segment_softmax",
    "(Tensor score, Tensor row_ptr, str backend) -> Tensor",
    _softmax,
    lambda score, row_ptr, backend: torch.empty_like(score, memory_format=torch.contiguous_format),
    _softmax_backward,
    _save_softmax,
)
register(
    "segment_softmax_backward",
    "(Tensor weight, Tensor grad, Tensor row_ptr, str backend) -> Tensor",
    _slope,
    lambda weight, grad, row_ptr, backend: torch.empty_like(
        weight, memory_format=torch.contiguous_format
    ),
    _slope_backward,
    _save_slope,
)
