"""Attention inside windows that cut a grid into boxes, with a bias that knows the earth.

Letters beside the usual ones: W windows that differ in bias or parts, L places of a window, B' the
batch times windows that are alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scisparse.errors import PatternError
from scisparse.layers.heads import (
    attend_to_all,
    check_cells,
    check_heads,
    check_mask,
    draw_maps,
)
from scisparse.patterns.shifted import ShiftedAxis, shifted_axes

__all__ = ["ShiftedWindowAttention"]


class ShiftedWindowAttention(nn.Module):
    """Multi-head attention of each cell to the cells of its window (Swin, Pangu-Weather).

    ``y[b,i] = Z sum_j p[b,i,j,h] V x[b,j]`` over the cells ``j`` in the window of cell ``i``, with
    ``p`` the softmax of ``(Q x[b,i]) . (K x[b,j]) / sqrt(D) + bias[tap(i,j),h]``, head by head.

    It is ``SparseAttention(shifted_window(...), ..., scores=Scores(taps=True))``, each loads the
    state of the other as long as no edge has moved, and computes whole windows as dense blocks by
    torch's ``scaled_dot_product_attention``. Windows that meet the end of an axis, the bias and its
    earth-specific taps are described at :func:`scisparse.patterns.shifted_window`. By default the
    bias has numbers of its own for each window and pair of places along latitude and height, and
    for each offset along longitude, as in Pangu-Weather.

    Parameters
    ----------
    embed_dim
        C, channels in and out.
    num_heads
        H, which share the channels, D each.
    window
        Cells of a window along each axis.
    input_size
        Cells of the grid along each axis.
    shift
        ``True`` for half a window along axes that have several windows, or cells for each axis,
        less than a window.
    periodic
        For each axis: whether its ends meet, as those of longitude do.
    earth_specific
        For each axis: whether the bias knows windows and places, or offsets alone. Where not given,
        it does on axes that are not periodic; ``False`` for the relative bias of Swin.

    Shapes
    ------
    Input and output ``[..., *input_size, C]``; ``bias.tap_weight`` ``[taps, H]``.

    Raises
    ------
    OptionError
        If heads do not divide the channels, a window does not fit into its axis or does not divide
        a periodic one, or a shift is not less than a window.

    Notes
    -----
    The two parts of a window at the ends of an axis are multiplied together and masked. So a NaN in
    one reaches the other; say with `source_mask` which cells are missing. While the bias is
    trained, torch computes scores and weights of all windows at once on CPUs:
    ``B M H prod(window)`` numbers. Second derivatives are those of torch's ``SDPBackend.MATH``,
    which ``torch.nn.attention.sdpa_kernel`` chooses where a fused kernel would run.

    References
    ----------
    Liu, Z. et al. (2021). Swin transformer: hierarchical vision transformer using shifted windows.
    https://doi.org/10.1109/ICCV48922.2021.00986

    Bi, K. et al. (2023). Accurate medium-range global weather forecasting with 3D neural networks.
    Nature 619, 533-538. https://doi.org/10.1038/s41586-023-06185-3

    Examples
    --------
    >>> import torch
    >>> attend = ShiftedWindowAttention(
    ...     8, 2, (6, 12), input_size=(24, 72), shift=True, periodic=(False, True)
    ... )
    >>> attend(torch.randn(2, 24, 72, 8)).shape
    torch.Size([2, 24, 72, 8])
    >>> attend.bias.tap_weight.shape  # 4 windows, 6 x 6 latitudes and 23 offsets; heads
    torch.Size([3312, 2])

    Three axes, height first, a point short of whole windows along latitude:

    >>> attend = ShiftedWindowAttention(
    ...     8, 2, (2, 6, 12), input_size=(4, 23, 72), shift=(1, 3, 6), periodic=(False, False, True)
    ... )
    >>> attend(torch.randn(1, 4, 23, 72, 8)).shape
    torch.Size([1, 4, 23, 72, 8])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        window: int | Sequence[int],
        *,
        input_size: int | Sequence[int],
        shift: int | Sequence[int] = 0,
        periodic: bool | Sequence[bool] = False,
        earth_specific: bool | Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        check_heads(embed_dim, num_heads, num_heads)
        size = input_size if isinstance(input_size, Sequence) else (input_size,)
        axes = shifted_axes(
            *(size, window),
            shift=shift,
            periodic=periodic,
            earth_specific=earth_specific,
            name="input_size",
        )
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.input_size, self.axes = tuple(axis.size for axis in axes), axes
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.bias = _WindowBias(axes, num_heads)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the maps as ``nn.MultiheadAttention`` does (Xavier); biases are 0."""
        draw_maps(self.q_proj, self.k_proj, self.v_proj, self.out_proj)
        self.bias.reset_parameters()

    def forward(self, x: Tensor, *, source_mask: Tensor | None = None) -> Tensor:
        """Attend.

        Parameters
        ----------
        x
            ``[..., *input_size, C]``.
        source_mask
            Booleans ``[*input_size]`` or ``[..., *input_size]``, true at cells that count. Others
            may hold anything, NaN as well, and ask as zeros would; a cell that has no other in its
            window reads 0.
        """
        self._check(x, source_mask)
        bias, unread = self.bias(), None
        reads = None if all(axis.whole for axis in self.axes) else _reads(self.axes, x.device)
        if source_mask is not None:
            x = x.masked_fill(~source_mask[..., None], 0)
            counts = _cut(source_mask.expand(x.shape[:-1])[..., None], self.axes).transpose(2, 3)
            reads = counts if reads is None else counts & reads
            unread = ~reads.any(-1, keepdim=True)
            reads = reads | unread  # what the softmax of nothing is depends on the kernel
        if reads is not None:
            bias = bias.masked_fill(~reads[..., None, :, :], -torch.inf)
        windows = _cut(x, self.axes)
        q, k, v = (self._heads(m(windows)) for m in (self.q_proj, self.k_proj, self.v_proj))
        y = attend_to_all(q, k, v, bias.flatten(1, 2))
        if not windows.shape[0]:  # torch then leaves the bias out: its gradient is 0, not absent
            y = y + 0 * self.bias.tap_weight.sum()
        y = y.unflatten(1, (-1, self.num_heads)).transpose(2, 3).flatten(-2)
        if unread is not None:
            y = y.masked_fill(unread, 0)
        out: Tensor = self.out_proj(_join(y, self.axes, x.shape[:-1]))
        return out

    def _heads(self, windows: Tensor) -> Tensor:
        """From ``[B', W, L, C]`` to ``[B', W H, L, D]``, which torch's fused kernels take."""
        heads: Tensor = windows.unflatten(-1, (self.num_heads, -1))
        return heads.transpose(2, 3).flatten(1, 2)

    def _check(self, x: Tensor, mask: Tensor | None) -> None:
        size = self.input_size
        check_cells("x", x, size, self.embed_dim)
        if mask is not None:
            check_mask(mask, size, x.shape[: -len(size) - 1], "cells")

    def get_extra_state(self) -> Tensor:
        """Nothing: its edges do not move, and this is how ``SparseAttention`` says so."""
        return torch.empty(0, dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Raise where saved edges come along: they have moved."""
        if state.numel():
            raise PatternError(
                "the saved state has edges that were moved, and those of a ShiftedWindowAttention "
                "cannot be; load it into SparseAttention(shifted_window(...), ...)"
            )

    def extra_repr(self) -> str:
        """Sizes, for ``print(layer)``."""
        axes = zip(
            *((a.window, a.shift, a.periodic, a.earth_specific) for a in self.axes), strict=True
        )
        named = zip(("window", "shift", "periodic", "earth_specific"), axes, strict=True)
        rest = ", ".join(f"{name}={values}" for name, values in named)
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, "
            f"input_size={self.input_size}, {rest}"
        )


class _WindowBias(nn.Module):
    """``tap_weight[tap,h]`` for the windows that differ, ``[1, W, H, L, L]``."""

    def __init__(self, axes: tuple[ShiftedAxis, ...], num_heads: int) -> None:
        super().__init__()
        self.axes = axes
        taps = math.prod([axis.taps for axis in axes])
        self.tap_weight = nn.Parameter(torch.zeros(taps, num_heads))

    def reset_parameters(self) -> None:
        """Set what is learned to 0."""
        nn.init.zeros_(self.tap_weight)

    def forward(self) -> Tensor:
        """Spread the table over pairs of places."""
        count = len(self.axes)
        bias: Tensor = self.tap_weight.unflatten(0, [axis.taps for axis in self.axes])
        for n, axis in reversed(list(enumerate(self.axes))):  # taps to [window, site, source]
            width = axis.window
            if axis.earth_specific:
                bias = bias.unflatten(n, (axis.windows, width, width))
            else:
                # Site i reads the taps from width - 1 - i on.
                bias = bias.unfold(n, width, 1).flip(n).movedim(-1, n + 1).unsqueeze(n)
        window, site, source = (range(k, 3 * count, 3) for k in range(3))
        bias = bias.permute(*window, 3 * count, *site, *source)
        kinds = [axis.kinds for axis in self.axes]
        bias = bias.expand(*kinds, *bias.shape[count:])
        length = math.prod([axis.window for axis in self.axes])
        return bias.reshape(1, math.prod(kinds), -1, length, length)


def _reads(axes: Sequence[ShiftedAxis], device: torch.device) -> Tensor:
    """Whether places of a window read each other, being in the same part, ``[W, L, L]``."""
    part = torch.zeros(1, 1, dtype=torch.int64, device=device)
    for axis in axes:
        along = axis.parts(device).view(axis.windows, axis.window)[: axis.kinds]
        part = 3 * part[:, None, :, None] + along[None, :, None, :]
        part = part.flatten(2).flatten(0, 1)
    return part[:, :, None] == part[:, None, :]


def _order(axes: Sequence[ShiftedAxis]) -> list[int]:
    """Dimensions of ``[B, windows, places, windows, places, ..., C]`` in the order of batches.

    First windows that are alike, which join the batch, then those that differ, then places.
    """
    number = range(len(axes))
    alike = [1 + 2 * n for n in number if axes[n].kinds == 1]
    differ = [1 + 2 * n for n in number if axes[n].kinds > 1]
    return [0, *alike, *differ, *(2 + 2 * n for n in number), 1 + 2 * len(axes)]


def _cut(x: Tensor, axes: Sequence[ShiftedAxis]) -> Tensor:
    """Cut ``[..., *input_size, C]`` into windows ``[B', W, L, C]``; absent cells are 0."""
    x = x.flatten(0, -len(axes) - 2) if x.dim() > len(axes) + 1 else x[None]
    absent = [axis.places - axis.size for axis in reversed(axes)]
    if any(absent):
        x = F.pad(x, [0, 0, *(n for end in absent for n in (0, end))])
    if any(axis.shift for axis in axes):
        x = x.roll([-axis.shift for axis in axes], list(range(1, len(axes) + 1)))
    for n, axis in reversed(list(enumerate(axes))):
        x = x.unflatten(n + 1, (axis.windows, axis.window))
    x = x.permute(_order(axes))
    differ = math.prod([axis.kinds for axis in axes])
    length = math.prod([axis.window for axis in axes])
    return x.reshape(-1, differ, length, x.shape[-1])


def _join(y: Tensor, axes: Sequence[ShiftedAxis], shape: Sequence[int]) -> Tensor:
    """Put windows ``[B', W, L, C]`` together again, the inverse of :func:`_cut`."""
    order = _order(axes)
    sizes = [n for axis in axes for n in (axis.windows, axis.window)]
    batch = math.prod(shape[: -len(axes)])
    full = [batch, *sizes, y.shape[-1]]
    y = y.reshape([full[n] for n in order])
    y = y.permute([order.index(n) for n in range(len(order))])
    y = y.reshape(batch, *(axis.places for axis in axes), full[-1])
    if any(axis.shift for axis in axes):
        y = y.roll([axis.shift for axis in axes], list(range(1, len(axes) + 1)))
    for n, axis in enumerate(axes):
        y = y.narrow(n + 1, 0, axis.size)
    return y.reshape(*shape, full[-1])
