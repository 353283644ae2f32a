"""Options of the training of a post-processor."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from scisparse.errors import OptionError

__all__ = ["Options"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of training by gradient descent; regressions choose theirs by cross-validation.

    Parameters
    ----------
    width, depth
        Channels at full resolution and halvings of the U-Net.
    epochs
        At most this many passes over the training cases.
    patience
        Stop after this many epochs without a better score on the validation cases.
    validation
        Share of the times, the last ones, that is held out to stop on.
    batch_size
        Cases a step.
    learning_rate, weight_decay
        Step size and weight decay of AdamW.
    smoothness
        Weight of the penalty on differences between the heads of neighbouring points.

    Raises
    ------
    OptionError
        A value is out of range.

    Examples
    --------
    >>> Options(epochs=50).patience
    10
    """

    width: int = 8
    depth: int = 2
    epochs: int = 100
    patience: int = 10
    validation: float = 0.2
    batch_size: int = 16
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    smoothness: float = 1e-2

    def __post_init__(self) -> None:
        least = {"width": 1, "depth": 0, "epochs": 1, "patience": 1, "batch_size": 1}
        for name, value in asdict(self).items():
            if name in least and (not isinstance(value, int) or value < least[name]):
                raise OptionError(
                    f"`{name}` (={value!r}) must be a whole number, at least {least[name]}"
                )
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise OptionError(f"`{name}` (={value!r}) must be a finite number, at least 0")
        if not 0 < self.validation < 1:
            raise OptionError(f"`validation` (={self.validation!r}) must lie between 0 and 1")
