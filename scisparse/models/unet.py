"""A small U-Net for fields on a grid."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scisparse.errors import OptionError, ShapeError
from scisparse.layers.padding import pad_axes
from scisparse.patterns.windows import PADDING_MODES

__all__ = ["UNet"]


class UNet(nn.Module):
    """U-Net (Ronneberger et al. 2015) for fields of any size, with one padding mode an axis.

    Each level halves the resolution by averaging and doubles the channels; the way up interpolates
    linearly to the size of the skipped field, so that odd sizes need no cropping. The last layer
    starts at zero: an untrained network adds nothing. A field that is rolled by a multiple of
    ``2**depth`` along a circular axis of a multiple of ``2**depth`` points gives the same output,
    rolled.

    Parameters
    ----------
    in_channels, out_channels
        Channels of input and output.
    width
        Channels at full resolution.
    depth
        Number of halvings. An axis that has become shorter than 2 is not halved further.
    padding_mode
        ``"zeros"``, ``"circular"``, ``"reflect"`` or ``"replicate"``, one or one each for
        (latitude, longitude). An axis of one point has nothing to reflect and is replicated.

    Shapes
    ------
    Input ``[B, C, H, W]``, output ``[B, O, H, W]``.

    Raises
    ------
    OptionError
        A size is out of range, or a padding mode unknown.
    ShapeError
        The input has other channels than `in_channels`.

    References
    ----------
    Ronneberger, O., Fischer, P., Brox, T. (2015). U-Net.
    https://doi.org/10.1007/978-3-319-24574-4_28

    Examples
    --------
    >>> import torch
    >>> net = UNet(3, 2, width=4, padding_mode=("replicate", "circular"))
    >>> net(torch.randn(1, 3, 7, 12)).abs().max()
    tensor(0., grad_fn=<MaxBackward1>)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int = 16,
        depth: int = 2,
        padding_mode: str | Sequence[str] = "replicate",
    ) -> None:
        super().__init__()
        sizes = (in_channels, out_channels, width, depth)
        if not all(map(_is_whole, sizes)) or min(sizes[:3]) < 1 or depth < 0:
            raise OptionError(
                f"`in_channels` (={in_channels}), `out_channels` (={out_channels}) and `width` "
                f"(={width}) must be whole numbers, at least 1, and `depth` (={depth}) at least 0"
            )
        self.in_channels, self.modes = in_channels, _modes(padding_mode)
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            _Block(before, after, self.modes)
            for before, after in zip([in_channels, *widths[:-1]], widths, strict=True)
        )
        self.up = nn.ModuleList(
            _Block(below + beside, beside, self.modes)
            for below, beside in zip(widths[:0:-1], widths[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(width, out_channels, 1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, O, H, W]`` for ``[B, C, H, W]``."""
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ShapeError(
                f"UNet got an input of shape {list(x.shape)}; it must be "
                f"[B, {self.in_channels}, H, W]"
            )
        skipped: list[Tensor] = []
        for level, block in enumerate(self.down):
            if level:
                skipped.append(x)
                x = F.avg_pool2d(x, [min(2, n) for n in x.shape[2:]], ceil_mode=True)
            x = block(x)
        for block in self.up:
            beside = skipped.pop()
            x = block(torch.cat([_enlarge(x, beside.shape[2:], self.modes), beside], 1))
        out: Tensor = self.head(x)
        return out


class _Block(nn.Module):
    """Two 3x3 convolutions, each followed by a group norm and GELU."""

    def __init__(self, in_channels: int, out_channels: int, modes: tuple[str, ...]) -> None:
        super().__init__()
        self.modes = modes
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, out_channels, 3, bias=False)
            for channels in (in_channels, out_channels)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, out_channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        modes = [
            "replicate" if mode == "reflect" and length == 1 else mode
            for mode, length in zip(self.modes, x.shape[2:], strict=True)
        ]
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.gelu(norm(convolution(pad_axes(x, [(1, 1), (1, 1)], modes))))
        return x


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _modes(padding_mode: str | Sequence[str]) -> tuple[str, ...]:
    modes = (padding_mode,) * 2 if isinstance(padding_mode, str) else tuple(padding_mode)
    if len(modes) != 2 or not set(modes) <= set(PADDING_MODES):
        raise OptionError(
            f"`padding_mode` (={padding_mode!r}) must be one of {PADDING_MODES}, or one each for "
            "(latitude, longitude)"
        )
    return modes


def _enlarge(x: Tensor, size: Sequence[int], modes: Sequence[str]) -> Tensor:
    """Undo a halving: interpolate linearly, on a circular axis around its end too.

    Written out because ``F.interpolate`` knows no circular axis, and has no deterministic
    derivative on a GPU.
    """
    for dim, (length, mode) in enumerate(zip(size, modes, strict=True), start=2):
        if length == 1:
            continue  # was not halved
        pad = [(1, 1) if axis == dim else (0, 0) for axis in (2, 3)]
        edge = "circular" if mode == "circular" else "replicate"
        before, here, after = (
            pad_axes(x, pad, (edge, edge)).narrow(dim, start, x.shape[dim]) for start in range(3)
        )
        halves = (torch.lerp(here, before, 0.25), torch.lerp(here, after, 0.25))
        x = torch.stack(halves, dim + 1).flatten(dim, dim + 1).narrow(dim, 0, length)
    return x
