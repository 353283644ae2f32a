"""Largest and smallest products of rows, and their derivatives with the chosen edges held fixed.

With ``k(b,i,h,d)`` the edge that a number of a site has chosen, this is linear in edges, sites and
sources::

    f = sum_(b,i,h,d) value[b,k,h] * y[b,i,h,d] * x[b,col[k],h,d]

``choice_sites`` is its derivative by ``y``, ``choice_sources`` by ``x`` and ``choice_edges`` by
``value``. A choice is constant but where it jumps, so that every order of derivative is again one
of the three. Sources gather over the transposed edges, and nothing scatters. Choices are int32 and
count from the start of a row, which has fewer than 2^31 edges.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scisparse.errors import ShapeError
from scisparse.kernels._bilinear import bilinear, on_common_edges, save, tangent
from scisparse.kernels._edges import Edges, check_transpose, transpose_edges
from scisparse.kernels._modes import is_transformed
from scisparse.kernels._operators import register
from scisparse.kernels._segments import accumulator
from scisparse.kernels.graph_attention import reference
from scisparse.kernels.graph_attention.checks import check_value
from scisparse.kernels.graph_attention.ops import choose
from scisparse.kernels.graph_attention.primitives import join_copies

__all__ = ["run_extreme"]


def run_extreme(
    value: Tensor,
    x: Tensor,
    edges: Edges,
    edges_t: Edges | None,
    smallest: bool,
    backend: str = "auto",
) -> Tensor:
    """Call the registered operator; arguments are taken to be valid, and edges have no tie."""
    call = _Extreme.apply if is_transformed() else torch.ops.scisparse.spmm_extreme
    y: Tensor
    y, _ = call(value, x, *edges[:2], *(edges_t or (None, None, None)), smallest, backend)
    return y


def _run(name: str, first: Tensor, second: Tensor, *rest: Any) -> Tensor:
    """Call one of the three operators; `rest` is choice, both edge lists and backend."""
    call = _RULES[name].apply if is_transformed() else getattr(torch.ops.scisparse, name)
    result: Tensor = call(first, second, *rest)
    return result


_run_sites, _run_sources, _run_edges = (
    partial(_run, name) for name in ("choice_sites", "choice_sources", "choice_edges")
)


def _extreme(
    value: Tensor,
    x: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    row_ptr_t: Tensor | None,
    col_t: Tensor | None,
    tie_t: Tensor | None,
    smallest: bool,
    backend: str,
) -> Any:
    edges = Edges(row_ptr, col, None)
    check_value(value, x, col.shape[0])
    return choose("spmm_extreme", backend, x, edges, x.shape[1])(value, x, edges, smallest)


def _sites(value: Tensor, x: Tensor, choice: Tensor, *rest: Any) -> Any:
    """On every backend in plain torch: one number is read for each that is written."""
    edges, _ = _checked(choice, rest, sources=x)
    check_value(value, x, edges.col.shape[0])
    return reference.choice_sites(value, x, choice, edges)


def _sources(value: Tensor, y: Tensor, choice: Tensor, *rest: Any) -> Any:
    edges, edges_t = _checked(choice, rest, sites=y)
    check_value(value, y, edges.col.shape[0])
    sources = edges_t.row_ptr.shape[0] - 1
    run = choose("choice_sources", rest[5], y, edges, sources, edges_t)
    return run(value, y, choice, edges, edges_t)


def _edges(y: Tensor, x: Tensor, choice: Tensor, *rest: Any) -> Any:
    edges, edges_t = _checked(choice, rest, sites=y, sources=x)
    run = choose("choice_edges", rest[5], x, edges, x.shape[1], edges_t)
    return run(y, x, choice, edges)


def _checked(
    choice: Tensor,
    rest: tuple[Any, ...],
    *,
    sites: Tensor | None = None,
    sources: Tensor | None = None,
) -> tuple[Edges, Edges]:
    """Both edge lists, whose sizes and types fit: otherwise kernels read out of bounds."""
    edges, edges_t = Edges(rest[0], rest[1], None), Edges(*rest[2:5])
    check_transpose(edges_t, edges, edges_t.row_ptr.shape[0] - 1)
    batch, num_sites, *ends = choice.shape
    fits = (
        choice.dtype == torch.int32
        and num_sites == edges.row_ptr.shape[0] - 1
        and (sites is None or sites.shape == choice.shape)
        and (sources is None or [sources.shape[0], *sources.shape[2:]] == [batch, *ends])
    )
    if not fits:
        raise ShapeError(
            f"`choice` is {choice.dtype} {list(choice.shape)}; it must be int32 [B, M, H, D], as "
            "spmm_extreme has returned it for the same edges"
        )
    return edges, edges_t


def _extreme_fake(value: Tensor, x: Tensor, row_ptr: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape[0], row_ptr.shape[0] - 1, *x.shape[2:])
    return y, torch.empty_like(y, dtype=torch.int32)


def _sites_fake(value: Tensor, x: Tensor, choice: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(choice.shape)


def _sources_fake(value: Tensor, y: Tensor, choice: Tensor, *rest: Any) -> Tensor:
    return y.new_empty(y.shape[0], rest[2].shape[0] - 1, *y.shape[2:])


def _edges_fake(y: Tensor, x: Tensor, choice: Tensor, row_ptr: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape[0], rest[0].shape[0], x.shape[2], dtype=accumulator(x.dtype))


def _save_extreme(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    value, x, *places = inputs[:7]
    ctx.save_for_backward(value, x, output[1], *places)
    ctx.options = inputs[8:]  # `smallest` is in the choice
    ctx.mark_non_differentiable(output[1])


def _sites_backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gradients of ``choice_sites``, and of ``spmm_extreme`` with its choice held fixed."""
    value, x, *places = ctx.saved_tensors
    if places[3] is None:
        places[3:] = transpose_edges(places[1], places[2], x.shape[1])
    rest = (*places, *ctx.options)
    of_value, of_x = ctx.needs_input_grad[:2]
    grad_value = grad_x = None
    if of_value:
        grad_value = _run_edges(grad, x, *rest).sum_to_size(value.shape)
    if of_x:
        grad_x = _run_sources(value, grad, *rest)
    return grad_value, grad_x, *(None,) * 7


def _sources_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, y, *places = ctx.saved_tensors
    rest = (*places, *ctx.options)
    of_value, of_y = ctx.needs_input_grad[:2]
    grad_value = grad_y = None
    if of_value:
        grad_value = _run_edges(y, grad, *rest).sum_to_size(value.shape)
    if of_y:
        grad_y = _run_sites(value, grad, *rest)
    return grad_value, grad_y, *(None,) * 7


def _edges_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    y, x, *places = ctx.saved_tensors
    rest = (*places, *ctx.options)
    of_y, of_x = ctx.needs_input_grad[:2]
    grad_y = _run_sites(grad, x, *rest) if of_y else None
    return grad_y, _run_sources(grad, y, *rest) if of_x else None, *(None,) * 7


class _Extreme(torch.autograd.Function):
    """The best products as ``torch.func`` and forward mode need them."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor]:
        best: tuple[Tensor, Tensor] = torch.ops.scisparse.spmm_extreme(*inputs)
        return best

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _save_extreme(ctx, inputs, output)
        value, x, *places = inputs[:7]
        if places[2] is None:
            places[2:] = transpose_edges(places[0], places[1], x.shape[1])
        ctx.save_for_forward(value, x, output[1], *places)

    backward = staticmethod(_sites_backward)

    @staticmethod
    def jvp(ctx: Any, dvalue: Tensor | None, dx: Tensor | None, *_: Any) -> tuple[Tensor, None]:
        return tangent(_run_sites, (*ctx.saved_tensors, *ctx.options), dvalue, dx), None

    @staticmethod
    @on_common_edges(2, 7)
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
        (value, x), batch = _joined(info.batch_size, in_dims[:2], inputs[:2], 1)
        best = _Extreme.apply(value, x, *inputs[2:])
        return tuple(t.unflatten(0, (info.batch_size, batch)) for t in best), (0, 0)


def _mapped(
    run: Callable[..., Tensor], info: Any, in_dims: tuple[int | None, ...], *inputs: Any
) -> tuple[Tensor, int]:
    three, batch = _joined(info.batch_size, in_dims[:3], inputs[:3], 2)
    return run(*three, *inputs[3:]).unflatten(0, (info.batch_size, batch)), 0


def _joined(
    copies: int, dims: tuple[int | None, ...], tensors: tuple[Tensor, ...], whole: int
) -> tuple[tuple[Tensor, ...], int]:
    """Tensors with copies and batch as one dimension; the batch is that of number `whole`."""
    dim, like = dims[whole], tensors[whole]
    batch = like.shape[0] if dim is None else like.movedim(dim, 0).shape[1]
    pairs = zip(tensors, dims, strict=True)
    return tuple(join_copies(t, d, copies, batch) for t, d in pairs), batch


_RULES = {
    name: bilinear(name, run, backward, on_common_edges(3, 8)(partial(_mapped, run)))
    for name, run, backward in (
        ("choice_sites", _run_sites, _sites_backward),
        ("choice_sources", _run_sources, _sources_backward),
        ("choice_edges", _run_edges, _edges_backward),
    )
}

_BOTH = "Tensor choice, Tensor row_ptr, Tensor col, Tensor row_ptr_t, Tensor col_t, Tensor tie_t"

register(
    "spmm_extreme",
    "(Tensor value, Tensor x, Tensor row_ptr, Tensor col, Tensor? row_ptr_t, Tensor? col_t, "
    "Tensor? tie_t, bool smallest, str backend) -> (Tensor, Tensor)",
    _extreme,
    _extreme_fake,
    _sites_backward,
    _save_extreme,
)
register(
    "choice_sites",
    f"(Tensor value, Tensor x, {_BOTH}, str backend) -> Tensor",
    _sites,
    _sites_fake,
    _sites_backward,
    save,
)
register(
    "choice_sources",
    f"(Tensor value, Tensor y, {_BOTH}, str backend) -> Tensor",
    _sources,
    _sources_fake,
    _sources_backward,
    save,
)
register(
    "choice_edges",
    f"(Tensor y, Tensor x, {_BOTH}, str backend) -> Tensor",
    _edges,
    _edges_fake,
    _edges_backward,
    save,
)
