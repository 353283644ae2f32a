"""What attention is made of, with derivatives of every order, forward mode and ``torch.func``.

``spmm`` and ``sddmm`` are each other's derivatives, over the edges or the transposed edges, so that
every order of derivative is again one of the two, and nothing scatters.  With ``P`` the edges and
``P'`` the transposed edges::

    y = S(value, x; P)     dvalue = D(dy, x; P)    dx = S(value, dy; P')
    value = D(x, z; P)     dx = S(dvalue, z; P)    dz = S(dvalue, x; P')

Sums over the rows of numbers that edges carry, and the way back, are the same two over the
*incidence* of edges: every edge reads itself.  The softmax ``p`` over each row has, with ``<a, b>``
the sum over the row::

    ds = B(p, dp) = p (dp - <p, dp>)
    d of B(p, g), given u:    dg = B(p, u)    dp = u (g - <p, g>) - g <p, u>

Both products are linear in each tensor, and ``B`` is its own transpose, which is all that forward
mode needs.  Under ``vmap`` the mapped dimension joins the batch.

Arguments are taken to be valid, and autocast is left out: made for the other modules of this folder
and for those who watch backward passes (``_watch``), whose tensors have come from one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scisparse.kernels._bilinear import bilinear, on_common_edges, on_edges
from scisparse.kernels._edges import Edges, transpose_edges
from scisparse.kernels._modes import is_transformed
from scisparse.kernels._segments import site_of_edge

__all__ = [
    "incidence",
    "join_copies",
    "run_sddmm",
    "run_segment_softmax",
    "run_softmax_slope",
    "run_spmm",
    "save_slope",
    "save_softmax",
    "sddmm_backward",
    "slope_backward",
    "softmax_backward",
    "spmm_backward",
    "spread_rows",
    "sum_rows",
]


def run_spmm(
    value: Tensor, x: Tensor, edges: Edges, edges_t: Edges | None, backend: str = "auto"
) -> Tensor:
    """Call the registered operator; arguments are taken to be valid."""
    call = _SPMM.apply if is_transformed() else torch.ops.scisparse.spmm
    y: Tensor = call(value, x, *edges, *(edges_t or (None, None, None)), backend)
    return y


def run_sddmm(
    x: Tensor, z: Tensor, edges: Edges, edges_t: Edges | None, backend: str = "auto"
) -> Tensor:
    """Call the registered operator; arguments are taken to be valid."""
    call = _SDDMM.apply if is_transformed() else torch.ops.scisparse.sddmm
    value: Tensor = call(x, z, *edges, *(edges_t or (None, None, None)), backend)
    return value


def run_segment_softmax(score: Tensor, row_ptr: Tensor, backend: str = "auto") -> Tensor:
    """Call the registered operator; arguments are taken to be valid."""
    call = _Softmax.apply if is_transformed() else torch.ops.scisparse.segment_softmax
    weight: Tensor = call(score, row_ptr, backend)
    return weight


def run_softmax_slope(
    weight: Tensor, grad: Tensor, row_ptr: Tensor, backend: str = "auto"
) -> Tensor:
    """Call the registered operator; arguments are taken to be valid."""
    ops = torch.ops.scisparse
    call = _SoftmaxSlope.apply if is_transformed() else ops.segment_softmax_backward
    slope: Tensor = call(weight, grad, row_ptr, backend)
    return slope


def _saved_product(ctx: Any) -> tuple[Tensor, Tensor, Edges, Edges]:
    """Both tensors and both edge lists; saved tensors may be unpacked only once."""
    first, second, *saved = ctx.saved_tensors
    edges = Edges(*saved[:3])
    if saved[3] is not None:
        return first, second, edges, Edges(*saved[3:])
    edges_t = transpose_edges(edges.row_ptr, edges.col, second.shape[1], edges.tie)
    return first, second, edges, edges_t


def spmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of ``spmm``."""
    value, x, edges, edges_t = _saved_product(ctx)
    grad_value = grad_x = None
    if ctx.needs_input_grad[0]:
        grad_value = run_sddmm(grad, x, edges, edges_t, *ctx.options).sum_to_size(value.shape)
    if ctx.needs_input_grad[1]:
        grad_x = run_spmm(value, grad, edges_t, edges, *ctx.options)
    return grad_value, grad_x, *(None,) * 7


def sddmm_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of ``sddmm``."""
    x, z, edges, edges_t = _saved_product(ctx)
    grad_x = grad_z = None
    if ctx.needs_input_grad[0]:
        grad_x = run_spmm(grad, z, edges, edges_t, *ctx.options)
    if ctx.needs_input_grad[1]:
        grad_z = run_spmm(grad, x, edges_t, edges, *ctx.options)
    return grad_x, grad_z, *(None,) * 7


def save_softmax(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save the weights."""
    ctx.save_for_backward(output, inputs[1])
    ctx.backend = inputs[2]


def softmax_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    """Return the gradients of all arguments of ``segment_softmax``."""
    weight, row_ptr = ctx.saved_tensors
    return run_softmax_slope(weight, grad, row_ptr, ctx.backend), None, None


def save_slope(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save all tensors."""
    ctx.save_for_backward(*inputs[:3])
    ctx.backend = inputs[3]


def slope_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of all arguments of ``segment_softmax_backward``."""
    weight, given, row_ptr = ctx.saved_tensors
    grad_weight = grad_given = None
    if ctx.needs_input_grad[0]:
        mean, mean_grad = (_means(weight, t, row_ptr, ctx.backend) for t in (given, grad))
        grad_weight = grad * (given - mean) - given * mean_grad
    if ctx.needs_input_grad[1]:
        grad_given = run_softmax_slope(weight, grad, row_ptr, ctx.backend)
    return grad_weight, grad_given, None, None


def _means(weight: Tensor, values: Tensor, row_ptr: Tensor, backend: str) -> Tensor:
    """``<weight, values>``, at each edge of the row."""
    total = sum_rows(weight * values, row_ptr, backend)
    return spread_rows(total, row_ptr, values.shape[1], backend)


def incidence(row_ptr: Tensor, num_edges: int) -> tuple[Edges, Edges]:
    """Edges that read themselves, and the same from the side of what is read."""
    count = torch.arange(num_edges + 1, device=row_ptr.device)
    site = site_of_edge(row_ptr, num_edges)
    return Edges(row_ptr, count[:-1], None), Edges(count, site, count[:-1])


def sum_rows(value: Tensor, row_ptr: Tensor, backend: str = "auto") -> Tensor:
    """Sums over the edges of each site, ``[B, M, H]`` of ``[B, E, H]``."""
    edges, edges_t = incidence(row_ptr, value.shape[1])
    return run_spmm(value, _ones(value), edges, edges_t, backend)[..., 0]


def spread_rows(total: Tensor, row_ptr: Tensor, num_edges: int, backend: str = "auto") -> Tensor:
    """Give each edge the number of its site, ``[B, E, H]`` of ``[B, M, H]``."""
    edges, edges_t = incidence(row_ptr, num_edges)
    ones = total.new_ones(1, 1, 1, 1).expand(total.shape[0], num_edges, total.shape[2], 1)
    return run_sddmm(total[..., None], ones, edges, edges_t, backend)


def _ones(value: Tensor) -> Tensor:
    return torch.ones_like(value)[..., None]


def _mapped(
    run: Callable[..., Tensor], info: Any, in_dims: tuple[int | None, ...], *inputs: Any
) -> tuple[Tensor, int]:
    """A product of tensors with a mapped dimension, which comes first in the result."""
    first, second, *rest = inputs
    copies = info.batch_size
    # Of the second: the first may be shared by the batch.
    batch = second.shape[0] if in_dims[1] is None else second.movedim(in_dims[1], 0).shape[1]
    first, second = (
        join_copies(t, dim, copies, batch) for t, dim in zip((first, second), in_dims, strict=False)
    )
    y = on_edges(run)(first, second, *rest)
    return y.unflatten(0, (copies, batch)), 0


def join_copies(x: Tensor, dim: int | None, copies: int, batch: int) -> Tensor:
    """``[copies * B, ...]`` of ``[B or 1, ...]`` with a mapped dimension, if any."""
    x = x[None] if dim is None else x.movedim(dim, 0)
    return x.expand(copies, batch, *x.shape[2:]).flatten(0, 1)


_SPMM, _SDDMM = (
    bilinear(name, on_edges(run), backward, on_common_edges(2, 8)(partial(_mapped, run)))
    for name, run, backward in (
        ("spmm", run_spmm, spmm_backward),
        ("sddmm", run_sddmm, sddmm_backward),
    )
)


class _Softmax(torch.autograd.Function):
    """The softmax as ``torch.func`` and forward mode need it."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        weight: Tensor = torch.ops.scisparse.segment_softmax(*inputs)
        return weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save_softmax(ctx, inputs, output)
        ctx.save_for_forward(output, inputs[1])

    backward = staticmethod(softmax_backward)

    @staticmethod
    def jvp(ctx: Any, dscore: Tensor, *_: Any) -> Tensor:
        weight, row_ptr = ctx.saved_tensors
        return run_softmax_slope(weight, dscore, row_ptr, ctx.backend)

    @staticmethod
    @on_common_edges(1, 2)
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], score: Tensor, row_ptr: Tensor, backend: str
    ) -> tuple[Tensor, int]:
        score = score.movedim(in_dims[0] or 0, 0)
        weight = run_segment_softmax(score.flatten(0, 1), row_ptr, backend)
        return weight.unflatten(0, score.shape[:2]), 0


class _SoftmaxSlope(torch.autograd.Function):
    """The derivative of the softmax, likewise."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        slope: Tensor = torch.ops.scisparse.segment_softmax_backward(*inputs)
        return slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save_slope(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:3])

    backward = staticmethod(slope_backward)

    @staticmethod
    def jvp(ctx: Any, dweight: Tensor | None, dgiven: Tensor | None, *_: Any) -> Tensor:
        weight, given, row_ptr = ctx.saved_tensors
        backend = ctx.backend
        parts = []
        if dweight is not None:
            mean = _means(weight, given, row_ptr, backend)
            parts.append(
                dweight * (given - mean) - weight * _means(dweight, given, row_ptr, backend)
            )
        if dgiven is not None:
            parts.append(run_softmax_slope(weight, dgiven, row_ptr, backend))
        tangent: Tensor = sum(parts[1:], parts[0])
        return tangent

    @staticmethod
    @on_common_edges(2, 3)
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        weight: Tensor,
        given: Tensor,
        row_ptr: Tensor,
        backend: str,
    ) -> tuple[Tensor, int]:
        mapped = next(
            t.movedim(dim, 0)
            for t, dim in zip((weight, given), in_dims, strict=False)
            if dim is not None
        )
        copies, batch = mapped.shape[:2]
        weight, given = (
            join_copies(t, dim, copies, batch)
            for t, dim in zip((weight, given), in_dims, strict=False)
        )
        slope = run_softmax_slope(weight, given, row_ptr, backend)
        return slope.unflatten(0, (copies, batch)), 0
