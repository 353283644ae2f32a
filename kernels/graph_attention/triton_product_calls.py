"""Bindings of the Triton kernels of products over edges, of their extremes, and of the softmax."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scisparse.kernels._edges import Edges
from scisparse.kernels._segments import accumulator
from scisparse.kernels._triton import Call, ceil_div, is_wide, power_of_two
from scisparse.kernels.graph_attention.plans import RowPlan, plan_edges
from scisparse.kernels.graph_attention.triton_launch import plan_of, tensors_of, tile_of, widths_of

__all__ = [
    "choice_edges",
    "choice_sources",
    "extreme_call",
    "sddmm",
    "sddmm_call",
    "segment_softmax",
    "segment_softmax_backward",
    "slope_call",
    "softmax_call",
    "spmm",
    "spmm_call",
    "spmm_extreme",
]

_PRODUCTS = "scisparse.kernels.graph_attention.triton_products"
_CHOICES = "scisparse.kernels.graph_attention.triton_choices"


def spmm(value: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """Run a Triton kernel; see the function of the same name in ``reference``."""
    value, x, edges = value.contiguous(), x.contiguous(), edges.dense()
    y = x.new_empty(x.shape[0], edges.row_ptr.shape[0] - 1, *x.shape[2:])
    if edges.col.numel() == 0 or y.numel() == 0:
        return y.zero_()
    spmm_call(value, x, edges, y).run(x.device)
    return y


def spmm_call(
    value: Tensor,
    x: Tensor,
    edges: Edges,
    y: Tensor,
    choice: Tensor | None = None,
    first_edge: Tensor | None = None,
) -> Call:
    """Return the call that fills `y`, of chosen edges alone if there is a choice; nothing is empty.

    A choice is one of each number of `x`, and counts from the `first_edge` that its place has.
    """
    plan = plan_of(x, x, edges, x.shape[2], 4 if choice is None else 2)
    constants = {"SHARED": value.shape[0] == 1, "TIED": edges.tie is not None}
    constants |= {"CHOSEN": choice is not None}
    tensors = tensors_of(value, x, *edges, choice, first_edge, y)
    return _call(_PRODUCTS, "spmm_rows", plan, tensors, x, y.shape[1], edges, constants)


def sddmm(x: Tensor, z: Tensor, edges: Edges) -> Tensor:
    """Run a Triton kernel; see the function of the same name in ``reference``."""
    x, z, edges = x.contiguous(), z.contiguous(), edges.dense()
    value = x.new_empty(x.shape[0], edges.col.shape[0], x.shape[2], dtype=accumulator(x.dtype))
    if value.numel():
        sddmm_call(x, z, edges, value).run(x.device)
    return value


def sddmm_call(
    x: Tensor, z: Tensor, edges: Edges, value: Tensor, choice: Tensor | None = None
) -> Call:
    """Return the call that fills `value`, over numbers whose `choice` is the edge if there is one.

    Nothing is empty.
    """
    plan = plan_of(x, z, edges, x.shape[2], 4)
    tensors = tensors_of(x, z, *edges, choice, value)
    constants = {"TIED": edges.tie is not None, "CHOSEN": choice is not None}
    return _call(_PRODUCTS, "sddmm_rows", plan, tensors, z, x.shape[1], edges, constants)


def segment_softmax(score: Tensor, row_ptr: Tensor) -> Tensor:
    """Run a Triton kernel; see the function of the same name in ``reference``."""
    score = score.contiguous()
    weight = torch.empty_like(score)
    if weight.numel():
        softmax_call(score, row_ptr.contiguous(), weight).run(score.device)
    return weight


def softmax_call(score: Tensor, row_ptr: Tensor, weight: Tensor) -> Call:
    """Return the call that fills `weight`; nothing is empty."""
    return _rows_call("softmax_rows", (score, row_ptr, weight), row_ptr)


def segment_softmax_backward(weight: Tensor, grad: Tensor, row_ptr: Tensor) -> Tensor:
    """Run a Triton kernel; see the function of the same name in ``reference``."""
    weight, grad = weight.contiguous(), grad.contiguous()
    slope = torch.empty_like(weight)
    if slope.numel():
        slope_call(weight, grad, row_ptr.contiguous(), slope).run(weight.device)
    return slope


def slope_call(weight: Tensor, grad: Tensor, row_ptr: Tensor, slope: Tensor) -> Call:
    """Return the call that fills `slope`; nothing is empty."""
    return _rows_call("slope_rows", (weight, grad, row_ptr, slope), row_ptr)


def _rows_call(kernel: str, tensors: tuple[Tensor, ...], row_ptr: Tensor) -> Call:
    batch, edges, heads = tensors[0].shape
    plan, sites = plan_edges(heads, 1), row_ptr.numel() - 1
    blocks = ceil_div(heads, plan.heads)
    fan_in = power_of_two(ceil_div(edges, max(sites, 1)))
    constants = {"H": heads, "WIDE": is_wide(*tensors), "BH": plan.heads}
    constants |= {"EDGES": min(plan.edges, fan_in)}
    arguments: tuple[Tensor | int, ...] = (*tensors, sites, edges, blocks)
    return Call(_PRODUCTS, kernel, batch * sites * blocks, arguments, constants, 1)


def spmm_extreme(value: Tensor, x: Tensor, edges: Edges, smallest: bool) -> tuple[Tensor, Tensor]:
    """Run a Triton kernel; see the function of the same name in ``reference``."""
    value, x, edges = value.contiguous(), x.contiguous(), edges.dense()
    y = x.new_empty(x.shape[0], edges.row_ptr.shape[0] - 1, *x.shape[2:])
    choice = torch.empty_like(y, dtype=torch.int32)
    if edges.col.numel() == 0 or y.numel() == 0:
        return y.zero_(), choice.fill_(-1)
    extreme_call(value, x, edges, smallest, (y, choice)).run(x.device)
    return y, choice


def extreme_call(
    value: Tensor, x: Tensor, edges: Edges, smallest: bool, results: tuple[Tensor, Tensor]
) -> Call:
    """Return the call that fills the best products and the choice; nothing is empty."""
    constants = {"SHARED": value.shape[0] == 1, "SMALLEST": smallest}
    tensors = (value, x, *edges[:2], *results)
    plan = plan_of(x, x, edges, x.shape[2], 1)
    return _call(_CHOICES, "extreme_rows", plan, tensors, x, results[0].shape[1], edges, constants)


def choice_sources(
    value: Tensor, y: Tensor, choice: Tensor, edges: Edges, edges_t: Edges
) -> Tensor:
    """Run a Triton kernel; see the function of the same name in ``reference``."""
    value, y, choice = value.contiguous(), y.contiguous(), choice.contiguous()
    edges, edges_t = edges.dense(), edges_t.dense()
    x = y.new_empty(y.shape[0], edges_t.row_ptr.shape[0] - 1, *y.shape[2:])
    if edges.col.numel() == 0 or x.numel() == 0:
        return x.zero_()
    spmm_call(value, y, edges_t, x, choice, edges.row_ptr).run(y.device)
    return x


def choice_edges(y: Tensor, x: Tensor, choice: Tensor, edges: Edges) -> Tensor:
    """Run a Triton kernel; see the function of the same name in ``reference``."""
    y, x, choice, edges = y.contiguous(), x.contiguous(), choice.contiguous(), edges.dense()
    value = x.new_empty(x.shape[0], edges.col.shape[0], x.shape[2], dtype=accumulator(x.dtype))
    if x.shape[3] == 0:
        return value.zero_()
    if value.numel():
        sddmm_call(y, x, edges, value, choice).run(x.device)
    return value


def _call(
    module: str,
    kernel: str,
    plan: RowPlan,
    tensors: tuple[Tensor, ...],
    x: Tensor,
    sites: int,
    edges: Edges,
    constants: dict[str, Any],
) -> Call:
    """A kernel over rows of edges, one for each site and batch entry; `x` are the sources."""
    batch, sources, heads, width = x.shape
    constants |= {"H": heads} | widths_of(D=width) | tile_of(plan, x.dtype, tensors)
    rows, blocks = batch * sites, ceil_div(heads, plan.heads)
    sizes = (sites, sources, edges.col.numel(), rows, blocks)
    programs = ceil_div(rows, plan.sites) * blocks
    return Call(module, kernel, programs, (*tensors, *sizes), constants, plan.warps)
