"""A fully tied window as torch's own convolution."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from scisparse.layers.padding import pad_axes
from scisparse.pattern import WindowSpec

__all__ = ["convolve", "is_convolution"]

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def is_convolution(window: WindowSpec) -> bool:
    """Whether torch has a convolution for `window`; transposed, it knows no padding but zeros."""
    if len(window.kernel_size) not in _CONVOLUTIONS:
        return False
    return not window.transposed or set(window.padding_modes) == {"zeros"}


def convolve(x: Tensor, weight: Tensor, window: WindowSpec, groups: int) -> Tensor:
    """Convolve sources with one weight a tap.

    Parameters
    ----------
    x
        Sources ``[B, N, C]``.
    weight
        ``[K * groups, C / groups, O / groups]``.
    window
        One that :func:`is_convolution`.
    groups
        Groups of channels.

    Returns
    -------
    Tensor
        Sites ``[B, M, O]``.
    """
    batch, _, channels_in = x.shape
    axes, channels_out = len(window.kernel_size), weight.shape[2] * groups
    fields = x.view(batch, *window.source_size, channels_in).movedim(-1, 1)
    # [K * groups, C / groups, O / groups] to [kernel, group, C / groups, O / groups]
    kernel = weight.reshape(*window.kernel_size, groups, *weight.shape[1:])
    if window.transposed:
        kernel = kernel.movedim((-3, -2, -1), (0, 1, 2)).flatten(0, 1)
        y = _transposed(fields, _in_order(kernel), window, groups)
    else:
        kernel = kernel.movedim((-3, -1, -2), (0, 1, 2)).flatten(0, 1)
        fields = pad_axes(fields, window.padding, window.padding_modes)
        options = window.stride, 0, window.dilation, groups
        y = _CONVOLUTIONS[axes](fields, _in_order(kernel), None, *options)
    return y.movedim(1, -1).reshape(batch, math.prod(window.site_size), channels_out)


def _in_order(kernel: Tensor) -> Tensor:
    """Copy a kernel whose first size is 1: as channels_last, torch may find no gradient of it."""
    return kernel.contiguous() if kernel.shape[0] == 1 else kernel


def _transposed(fields: Tensor, kernel: Tensor, window: WindowSpec, groups: int) -> Tensor:
    """Write all that the sources reach, then cut or extend it to the sites, as padding tells."""
    run = _TRANSPOSED[len(window.kernel_size)]
    y: Tensor = run(fields, kernel, None, window.stride, 0, 0, groups, window.dilation)
    cut: list[int] = []
    sizes = zip(window.site_size, y.shape[2:], window.padding, strict=True)
    for sites, reached, (before, _) in sizes:
        cut = [-before, sites + before - reached, *cut]
    return F.pad(y, cut)
