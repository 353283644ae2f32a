"""Derivatives of every kind along random directions, to compare two backends of one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from kernel_cases import generator
from torch import Tensor
from torch.autograd import forward_ad


def assert_derivatives_of_the_reference(
    call: Callable[..., Tensor], inputs: Sequence[Tensor], backend: str
) -> None:
    """`call(*inputs, backend=backend)` has the derivatives that it has with the reference.

    For Triton's interpreter, which takes minutes for the finite differences of `gradcheck`; whoever
    calls this checks those of the reference.
    """
    actual, expected = (
        derivatives(partial(call, backend=name), inputs) for name in (backend, "reference")
    )
    torch.testing.assert_close(actual, expected)


def derivatives(run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Value, gradients, gradients of gradients, tangents of the value and of the gradients."""
    gen = generator(11)

    def like(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=gen, dtype=torch.float64).to(t)

    def pull(*tensors: Tensor) -> tuple[Tensor, ...]:
        *values, grad = tensors
        return torch.autograd.grad(run(*values), values, grad, create_graph=True)

    value = run(*(t.detach() for t in inputs))
    every = [t.detach().clone().requires_grad_() for t in (*inputs, like(value))]
    first = pull(*every)
    second = torch.autograd.grad(first, every, [like(t) for t in first], materialize_grads=True)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, like(t)) for t in every]
        forward = [run(*duals[:-1]), *pull(*duals)]
        tangents = [forward_ad.unpack_dual(t).tangent for t in forward]
    return {"value": [value], "first": [*first], "second": [*second], "tangents": tangents}
