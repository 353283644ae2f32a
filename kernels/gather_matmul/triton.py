"""Binding of the Triton kernels: which one runs, on which grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scisparse.kernels._edges import Edges, sort_by_tie
from scisparse.kernels._segments import accumulator
from scisparse.kernels._triton import (
    Call,
    accumulator_type,
    can_run,
    ceil_div,
    is_interpreted,
    is_wide,
    larger_tiles,
)
from scisparse.kernels.gather_matmul.plans import THREADS, Shape, plan_gather, plan_outer, plan_ties

__all__ = [
    "Call",
    "can_run",
    "edge_outer",
    "gather_call",
    "gather_matmul",
    "outer_call",
    "ties_call",
]

_KERNELS = "scisparse.kernels.gather_matmul.triton_kernels"


def gather_matmul(
    x_BNC: Tensor,
    weight_TCO: Tensor,
    row_ptr_M1: Tensor,
    col_E: Tensor,
    tie_E: Tensor | None,
    transpose_weight: bool,
) -> Tensor:
    """Run a Triton kernel; contract in :mod:`scisparse.kernels.gather_matmul`."""
    channels_out = weight_TCO.shape[1 if transpose_weight else 2]
    y = x_BNC.new_empty(x_BNC.shape[0], row_ptr_M1.numel() - 1, channels_out)
    if y.numel() == 0 or col_E.numel() == 0 or x_BNC.shape[2] == 0:
        return y.zero_()
    edges = Edges(row_ptr_M1, col_E, tie_E).dense()
    gather_call(x_BNC.contiguous(), weight_TCO.contiguous(), *edges, y, transpose_weight).run(
        y.device
    )
    return y


def gather_call(
    x: Tensor,
    weight: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    tie: Tensor | None,
    y: Tensor,
    transpose_weight: bool,
) -> Call:
    """Return the call that fills `y`; nothing is empty."""
    (batch, sources, channels_in), (sites, channels_out) = x.shape, y.shape[1:]
    plan = plan_gather(_shape(x, y, col, transpose_weight), larger_tiles(16) * THREADS)
    groups, blocks = ceil_div(batch, plan.batches), ceil_div(channels_out, plan.outputs)
    tensors = (x, weight, row_ptr, col, col if tie is None else tie, y)
    sizes: tuple[int, ...] = (sites, sources, batch, groups, blocks)
    constants: dict[str, Any] = {"TIED": tie is not None, "WIDE": is_wide(*tensors)}
    if plan.kernel in ("singles", "vectors"):
        sizes = sizes[:-1]
    else:
        constants |= {"O": channels_out, "TRANSPOSED": transpose_weight, "BO": plan.outputs}
    if plan.kernel != "singles":
        constants |= {"C": channels_in, "R": plan.rows}
    if plan.kernel == "dots":
        constants |= {"OPERAND": _operand(x.dtype), "BB": plan.batches}
    else:
        constants |= {"ACC": accumulator_type(x.dtype), "S": plan.sites, "NB": plan.batches}
    if plan.kernel in ("tiles", "vectors"):
        constants |= {"UNROLL": plan.unroll}
    programs = ceil_div(sites, plan.sites) * groups * blocks
    return Call(
        _KERNELS, f"gather_{plan.kernel}", programs, (*tensors, *sizes), constants, plan.warps
    )


def edge_outer(
    x_BNC: Tensor,
    grad_BMO: Tensor,
    row_ptr_M1: Tensor,
    col_E: Tensor,
    tie_E: Tensor | None,
    num_weights: int,
) -> Tensor:
    """Run a Triton kernel; contract in :mod:`scisparse.kernels.gather_matmul`."""
    x, grad = x_BNC.contiguous(), grad_BMO.contiguous()
    out = x.new_empty(num_weights, x.shape[2], grad.shape[2])
    if out.numel() == 0 or col_E.numel() == 0 or x.shape[0] == 0:
        return out.zero_()
    row_ptr, col = row_ptr_M1.contiguous(), col_E.contiguous()
    if tie_E is None:
        outer_call(x, grad, row_ptr, col, out).run(x.device)
        return out
    call, parts = ties_call(x, grad, *sort_by_tie(row_ptr, col, tie_E, num_weights), out)
    call.run(x.device)
    return out.copy_(parts.sum(0))


def outer_call(x: Tensor, grad: Tensor, row_ptr: Tensor, col: Tensor, out: Tensor) -> Call:
    """Return the call that fills `out` where every edge has its own weight; nothing is empty."""
    (batch, sources, channels_in), (sites, channels_out) = x.shape, grad.shape[1:]
    plan = plan_outer(_shape(x, grad, col), larger_tiles(16) * THREADS)
    blocks = ceil_div(channels_out, plan.outputs)
    tensors = (x, grad, row_ptr, col, out)
    constants = {"C": channels_in, "O": channels_out, "ACC": accumulator_type(x.dtype)}
    constants |= {"WIDE": is_wide(*tensors), "S": plan.sites, "R": plan.rows, "BO": plan.outputs}
    arguments = (*tensors, sites, sources, batch, blocks)
    programs = ceil_div(sites, plan.sites) * blocks
    return Call(_KERNELS, "outer_tiles", programs, arguments, constants, plan.warps)


def ties_call(
    x: Tensor, grad: Tensor, tie_ptr: Tensor, col: Tensor, site: Tensor, out: Tensor
) -> tuple[Call, Tensor]:
    """Return a call, and the tensor ``[parts, T, C, O]`` that it fills; nothing is empty.

    `col` and `site` are those of the edges sorted by tie; `tie_ptr` is where each tie begins.
    """
    (batch, sources, channels_in), (sites, channels_out) = x.shape, grad.shape[1:]
    weights = out.shape[0]
    plan = plan_ties(_shape(x, grad, col), col.numel(), weights)
    parts = x.new_empty(plan.parts, *out.shape, dtype=accumulator(x.dtype))
    blocks = (ceil_div(channels_in, plan.inputs), ceil_div(channels_out, plan.outputs))
    tensors = (x, grad, tie_ptr, col, site, parts)
    constants = {"C": channels_in, "O": channels_out, "ACC": accumulator_type(x.dtype)}
    constants |= {"WIDE": is_wide(*tensors)}
    constants |= {"K": plan.edges, "BC": plan.inputs, "BO": plan.outputs}
    arguments = (*tensors, sites, sources, batch, weights, plan.parts, *blocks)
    programs = weights * plan.parts * blocks[0] * blocks[1]
    return Call(_KERNELS, "outer_ties", programs, arguments, constants, plan.warps), parts


def _shape(x: Tensor, y: Tensor, col: Tensor, transposed: bool = False) -> Shape:
    return Shape(
        batch=x.shape[0],
        channels_in=x.shape[2],
        channels_out=y.shape[2],
        fan_in=col.numel() / y.shape[1],
        itemsize=x.element_size(),
        transposed=transposed,
    )


def _operand(dtype: torch.dtype) -> Any:
    """Type in which tensor cores multiply; the interpreter knows no 16-bit arithmetic."""
    import triton.language as tl

    if is_interpreted() or dtype == torch.float32:
        return tl.float32
    return tl.bfloat16 if dtype == torch.bfloat16 else tl.float16
