"""Operators that are linear in each of their first two tensors, under ``torch.func``.

All have eight tensors, two that they are linear in and six that say where (edges and transposed
edges, or a choice and these), and options after them. The derivative along tangents ``d`` is then
``f(d_first, second) + f(first, d_second)``, which is all that forward mode needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scisparse.errors import ShapeError
from scisparse.kernels._edges import Edges

__all__ = ["bilinear", "on_common_edges", "on_edges", "save", "tangent", "with_gradient"]

_Run = Callable[..., Tensor]


def bilinear(name: str, run: _Run, backward: Callable[..., Any], vmap: Callable[..., Any]) -> Any:
    """Make ``scisparse::name`` known to ``torch.func`` and forward mode.

    Parameters
    ----------
    name
        Of the registered operator.
    run
        Calls it with all its arguments, by what this returns where transforms are at work.
    backward
        The derivative that it is registered with, beside :func:`save`.
    vmap
        As of ``torch.autograd.Function``.

    Returns
    -------
    type
        A ``torch.autograd.Function``.
    """

    def forward(*inputs: Any) -> Tensor:
        result: Tensor = getattr(torch.ops.scisparse, name)(*inputs)
        return result

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        save(ctx, inputs, output)
        ctx.save_for_forward(*inputs[:8])

    def jvp(ctx: Any, d_first: Tensor | None, d_second: Tensor | None, *_: Any) -> Tensor:
        return tangent(run, (*ctx.saved_tensors, *ctx.options), d_first, d_second)

    rules: dict[str, Any] = {
        "forward": forward,
        "setup_context": setup_context,
        "backward": backward,
        "jvp": jvp,
        "vmap": vmap,
    }
    static = {rule: staticmethod(function) for rule, function in rules.items()}
    return type(name, (torch.autograd.Function,), static)


def with_gradient(name: str, run: _Run, backward: Callable[..., Any]) -> Any:
    """Give `run`, which autograd does not see, a derivative: for calls that bypass the dispatcher.

    A ``torch.autograd.Function``, which is faster to call than a registered operator.
    """

    def forward(ctx: Any, *inputs: Any) -> Tensor:
        result = run(*inputs)
        save(ctx, inputs, result)
        return result

    rules = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), rules)


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save the eight tensors and the options of a call."""
    ctx.save_for_backward(*inputs[:8])
    ctx.options = inputs[8:]


def tangent(
    run: _Run, inputs: tuple[Any, ...], d_first: Tensor | None, d_second: Tensor | None
) -> Tensor:
    """Derivative of ``run(*inputs)`` along tangents of the first two, one of which may be 0."""
    first, second, *rest = inputs
    if d_first is None or d_second is None:
        return run(first, d_second, *rest) if d_first is None else run(d_first, second, *rest)
    return run(d_first, second, *rest) + run(first, d_second, *rest)


def on_edges(run: _Run) -> _Run:
    """Call `run`, which takes edges and transposed edges, with the six tensors of these."""

    def call(first: Tensor, second: Tensor, *rest: Any) -> Tensor:
        edges_t = None if rest[3] is None else Edges(*rest[3:6])
        return run(first, second, Edges(*rest[:3]), edges_t, *rest[6:])

    return call


def on_common_edges(first: int, last: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a rule for ``vmap`` that maps values take edges that are mapped too, but all the same.

    ``torch.func.stack_module_state`` stacks the index buffers of layers beside their weights.

    Parameters
    ----------
    first, last
        Of the inputs of the operator, edges are those from number `first` to ``last - 1``.

    Raises
    ------
    ShapeError
        When the rule is called: edges differ from sample to sample.
    """

    def decorate(rule: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(rule)
        def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> Any:
            dims, values = list(in_dims), list(inputs)
            for n in range(first, last):
                if dims[n] is not None:
                    values[n], dims[n] = _common(values[n].movedim(dims[n], 0)), None
            if all(dim is None for dim in dims):  # a rule maps something
                values[0], dims[0] = values[0].expand(info.batch_size, *values[0].shape), 0
            return rule(info, tuple(dims), *values)

        return vmap

    return decorate


def _common(stacked: Tensor) -> Tensor:
    if not bool((stacked == stacked[:1]).all()):
        raise ShapeError(
            "vmap maps over edges (`row_ptr`, `col` or `tie`) that differ from sample to sample; "
            "map over values alone, or loop over the samples"
        )
    return stacked[0]
