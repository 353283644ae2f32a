"""Running means of gradients, as growth by momentum needs them, and the scale of the loss."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["running_mean", "scale_of"]

_SHARE = 0.1  # of the newest gradient


def running_mean(before: Tensor | None, gradient: Tensor) -> Tensor:
    """Add the gradient of a step to the mean of those before, if there is any.

    Where a source was missing (NaN) it is not known: the mean is that of the steps in which it was.
    """
    if before is None:
        return gradient
    before = before.to(gradient)  # where the model is now, in its precision
    mean = before.lerp(gradient, _SHARE)
    return torch.where(mean.isnan(), torch.where(before.isnan(), gradient, before), mean)


def scale_of(made: Tensor, used: Tensor | None, left: Tensor | None) -> float:
    """Return what backward passes have multiplied gradients by, in units of those in use.

    It is above 1 where a ``GradScaler`` multiplies the loss, by a factor that changes, or gradients
    are clipped. Without it no step counts more for its scale.

    Parameters
    ----------
    made
        Gradient of some weights after the backward pass, averaged over the ranks.
    used
        The same as the optimizer uses it: all that lies between is scaling and clipping.
    left
        What `used` is still multiplied by: fused optimizers divide by it themselves.

    Examples
    --------
    >>> import torch
    >>> gradient = torch.tensor([1.0, 2.0, 4.0])
    >>> scale_of(8 * gradient, gradient, None)
    8.0
    """
    if used is None or used.shape != made.shape or not bool(used.any()):
        return 1.0
    used, made = used.double().flatten(), made.double().flatten()
    ratio = (made @ used / (used @ used)).item() * (1.0 if left is None else float(left))
    return ratio if ratio > 0 and abs(ratio - 1) > 1e-3 else 1.0  # not by rounding alone
