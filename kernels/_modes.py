"""What torch does around a call: transforms, and whether it need know of the call at all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch._functorch import pyfunctorch
from torch.autograd import forward_ad
from torch.nn import Parameter

from scisparse.errors import BackendError

__all__ = [
    "autocast_dtype",
    "has_transforms",
    "is_mapped",
    "is_plain",
    "is_transformed",
    "lacks_rules",
    "outside_transforms",
    "values_of",
    "wants_gradient",
]

_PLAIN = {Tensor, Parameter, type(None)}
_is_batched = torch._C._functorch.is_legacy_batchedtensor
_has_storage = torch._C._has_storage


def is_transformed() -> bool:
    """Whether forward mode or ``torch.func`` is at work, which registered operators do not know.

    Raises
    ------
    BackendError
        It is at work in a way in which torch gives wrong numbers, or none.
    """
    if torch.compiler.is_compiling():
        if _levels("Jvp") + _levels("Grad"):
            raise BackendError(
                "torch.compile does not know derivatives of torch.func of operators that are not "
                "torch's own; call torch.func.jvp, grad and the like outside of compiled code, or "
                "compile the function that they are given"
            )
        return False
    if torch._C._are_functorch_transforms_active():
        if _levels("Jvp") > 1:
            raise BackendError(
                "forward mode inside forward mode gives wrong numbers in torch where functions "
                "have derivatives of their own; use one level: torch.func.jacfwd(torch.func.jacrev"
                "(...)), or torch.func.hessian"
            )
        return True
    return forward_ad._current_level >= 0


def has_transforms() -> bool:
    """Whether forward mode or ``torch.func`` is at work, outside of compiled code."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _levels(kind: str) -> int:
    """How many levels of a transform of ``torch.func`` there are: ``"Jvp"``, ``"Grad"``."""
    functorch = torch._C._functorch
    stack = functorch.get_interpreter_stack() or []
    wanted = getattr(functorch.TransformType, kind)
    return sum(level.key() == wanted for level in stack)


# The compiler calls it while it traces, in place of tracing it; assume_constant_result of
# torch.compiler sets this as well, but imports the compiler.
_levels._dynamo_marked_constant = True  # type: ignore[attr-defined]


@contextlib.contextmanager
def outside_transforms() -> Iterator[None]:
    """Compute with what :func:`values_of` gives as if ``torch.func`` were not at work."""
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        yield
        return
    with pyfunctorch.temporarily_clear_interpreter_stack():
        yield


def values_of(tensor: Tensor) -> Tensor:
    """The tensor behind the wrappers of ``torch.func`` for derivatives: for choices and caches."""
    functorch = torch._C._functorch
    while not torch.compiler.is_compiling() and functorch.is_gradtrackingtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


def is_mapped(tensor: Tensor) -> bool:
    """Whether ``torch.vmap`` maps over the tensor, outside of compiled code."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_batchedtensor(tensor)


def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


_has_autocast._dynamo_marked_constant = True  # type: ignore[attr-defined]


def autocast_dtype(*tensors: Tensor) -> torch.dtype | None:
    """Type that autocast computes in, as in torch's own products; float64 is left alone."""
    if not (torch.compiler.is_compiling() or torch._C._is_any_autocast_enabled()):
        return None
    device = tensors[0].device.type
    if not _has_autocast(device) or not torch.is_autocast_enabled(device):
        return None
    if any(t.dtype == torch.float64 for t in tensors):
        return None
    return torch.get_autocast_dtype(device)


def lacks_rules() -> bool:
    """Whether forward mode, or a derivative of ``torch.func``, is at work; vmap alone is not."""
    if not is_transformed():
        return False
    if forward_ad._current_level >= 0:
        return True
    functorch = torch._C._functorch
    stack = functorch.get_interpreter_stack() or []
    return any(level.key() != functorch.TransformType.Vmap for level in stack)


def wants_gradient(first: Tensor, second: Tensor) -> bool:
    """Whether autograd is to know of a call."""
    return torch.is_grad_enabled() and (first.requires_grad or second.requires_grad)


def is_plain(first: Tensor, second: Tensor, *edges: Tensor | None) -> bool:
    """Whether nothing but autograd watches a call on the CPU: no mode, no trace, no profile.

    Then the operator may run without torch's dispatcher, which takes longer than a small product.
    ``torch.func`` and forward mode are for the caller to rule out.
    """
    if torch.compiler.is_compiling():
        return False
    return (
        first.is_cpu
        and _PLAIN.issuperset(map(type, (first, second, *edges)))
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and torch._C._get_tracing_state() is None
        and not torch._C._autograd._profiler_enabled()
        and not (first.is_neg() or second.is_neg())
        and _has_storage(first)  # not so what a finished torch.func.vjp has saved
        and _has_storage(second)
        and not (_is_batched(first) or _is_batched(second))  # by autograd, for a whole Jacobian
    )
