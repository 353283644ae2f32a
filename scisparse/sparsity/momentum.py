"""Running means of gradients, as growth by momentum needs them."""

from __future__ import annotations

from torch import Tensor

__all__ = ["running_mean"]

_SHARE = 0.1  # of the newest gradient


def running_mean(
    before: Tensor | None, recorded: Tensor, own: Tensor, used: Tensor | None, scale: Tensor | None
) -> Tensor:
    """Add the gradients of a step to their running mean.

    What backward passes told is larger than what the optimizer uses where a ``GradScaler``
    multiplies the loss, by a factor that changes, or gradients were clipped. The ratio over the
    weights that have both is taken out, so that no step counts more for its scale.

    Parameters
    ----------
    before
        The mean so far, if there is any.
    recorded
        Gradients of this step, averaged over the ranks, of weights and of what may become one.
    own
        Those of `recorded` that belong to weights.
    used
        Gradients of these weights as the optimizer is about to use them.
    scale
        What `used` is still multiplied by: fused optimizers divide by it themselves.

    Examples
    --------
    >>> import torch
    >>> gradient = torch.tensor([1.0, 2.0, 4.0])
    >>> running_mean(None, 8 * gradient, 8 * gradient[:2], gradient[:2], None).tolist()
    [1.0, 2.0, 4.0]
    """
    if used is not None:
        used, own = used.double().flatten(), own.to(used).double().flatten()
        ratio = (own @ used / (used @ used)).item() if bool(used.any()) else 1.0
        ratio *= 1.0 if scale is None else float(scale)
        if ratio > 0 and abs(ratio - 1) > 1e-3:  # not by rounding alone
            recorded = recorded / ratio
    return recorded if before is None else before.lerp(recorded, _SHARE)
