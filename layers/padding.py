"""Padding of fields, one mode an axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from scisparse.errors import OptionError, ShapeError
from scisparse.patterns.windows import PADDING_MODES

__all__ = ["pad_axes"]


def pad_axes(x: Tensor, widths: Sequence[tuple[int, int]], modes: Sequence[str]) -> Tensor:
    """Pad each spatial axis in its own mode.

    Parameters
    ----------
    x
        ``[B, C, *space]``.
    widths
        (before, after) for each spatial axis, in points.
    modes
        One mode a spatial axis: ``"zeros"``, ``"circular"``, ``"reflect"`` or ``"replicate"``, as
        in :class:`torch.nn.Conv2d`.

    Raises
    ------
    OptionError
        A mode is unknown.
    ShapeError
        `widths` and `modes` do not have one entry a spatial axis, or an axis is too short to be
        continued so far in its mode.

    Examples
    --------
    >>> import torch
    >>> x = torch.arange(4.0).view(1, 1, 1, 4)
    >>> pad_axes(x, [(0, 0), (1, 1)], ["zeros", "circular"]).flatten()
    tensor([3., 0., 1., 2., 3., 0.])
    """
    axes = x.dim() - 2
    if len(widths) != axes or len(modes) != axes:
        raise ShapeError(
            f"{len(widths)} widths and {len(modes)} modes for an input of shape {list(x.shape)}; "
            f"give one for each of its {axes} spatial axes"
        )
    for axis, (width, mode) in enumerate(zip(widths, modes, strict=True)):
        _check_width(x.shape[axis + 2], width, mode, axis)
        if any(width):
            pad = [(0, 0)] * axes
            pad[axis] = width
            # torch counts axes from the last one.
            flat = [points for both_ends in reversed(pad) for points in both_ends]
            x = F.pad(x, flat, mode="constant" if mode == "zeros" else mode)
    return x


def _check_width(length: int, width: tuple[int, int], mode: str, axis: int) -> None:
    if mode not in PADDING_MODES:
        raise OptionError(f"padding mode {mode!r} is unknown; choose one of {PADDING_MODES}")
    limit = {"circular": length, "reflect": length - 1}.get(mode, max(width))
    if min(width) < 0 or max(width) > limit:
        raise ShapeError(
            f"padding of {width} on axis {axis} of {length} points must be at least 0, and at most "
            f"{limit} in mode {mode!r}; pad less, or choose 'replicate'"
        )
