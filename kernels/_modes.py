"""What torch does around a call: transforms, and whether it need know of the call at all."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

__all__ = ["autocast_dtype", "is_plain", "is_transformed", "lacks_rules"]

_PLAIN = {Tensor, Parameter, type(None)}


def is_transformed() -> bool:
    """Whether forward mode or ``torch.func`` is at work, which registered operators do not know."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def autocast_dtype(*tensors: Tensor) -> torch.dtype | None:
    """Type that autocast computes in, as in torch's own products; float64 is left alone."""
    device = tensors[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
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


def is_plain(first: Tensor, second: Tensor, *edges: Tensor | None) -> bool:
    """Whether a call on the CPU wants values alone: no gradient, no mode, no trace, no profile.

    Then the operator may run without torch's dispatcher, which takes longer than a small product.
    ``torch.func`` and forward mode are for the caller to rule out.
    """
    if torch.compiler.is_compiling():
        return False
    wants_gradient = torch.is_grad_enabled() and (first.requires_grad or second.requires_grad)
    return (
        not wants_gradient
        and first.is_cpu
        and _PLAIN.issuperset(map(type, (first, second, *edges)))
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._len_torch_function_stack() == 0
        and torch._C._get_tracing_state() is None
        and not torch._C._autograd._profiler_enabled()
        and not (first.is_neg() or second.is_neg())
    )
