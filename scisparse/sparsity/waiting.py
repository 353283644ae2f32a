"""Says when a change has waited so long that it will not come by itself."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from scisparse.sparsity.target import Target

__all__ = ["PATIENCE", "warn_of_waiting"]

#: Steps with gradients that are not finite: a gradient scaler comes down from 2^16 to 1 in 16.
PATIENCE = 20


def warn_of_waiting(steps: int, targets: Sequence[Target]) -> None:
    """Warn once, when a change has waited for so many steps.

    Parameters
    ----------
    steps
        In a row, in which a change was due and gradients were not finite.
    targets
        Layers, some of which are the reason.
    """
    if steps != PATIENCE:
        return
    names = [target.name for target in targets if not target.finite()]
    warnings.warn(
        f"no connection has changed for {steps} steps, as gradients of "
        f"{', '.join(names) or 'another rank'} are not finite; look for NaN or infinity in the "
        "loss and in what these layers read",
        stacklevel=4,
    )
