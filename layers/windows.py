"""Locally connected layers with the signatures of torch's convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from scisparse.errors import OptionError, ShapeError
from scisparse.grids.integers import integers_per_axis
from scisparse.layers.local import LocallyConnected
from scisparse.pattern import Pattern
from scisparse.patterns import window
from scisparse.tying import Tie, site_shape, source_shape

__all__ = [
    "LocallyConnected1d",
    "LocallyConnected2d",
    "LocallyConnected3d",
    "LocallyConnectedTranspose1d",
    "LocallyConnectedTranspose2d",
    "LocallyConnectedTranspose3d",
]

_Size = int | Sequence[int]


class _Windowed(LocallyConnected):
    """Channels-first fields around :class:`LocallyConnected` on a window."""

    axes: ClassVar[int]

    @property
    def input_size(self) -> tuple[int, ...]:
        """Size of the fields."""
        return source_shape(self.built_on)

    @property
    def output_size(self) -> tuple[int, ...]:
        """Size of the output."""
        return site_shape(self.built_on)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, O, *output_size]`` for ``[B, C, *input_size]``; B may be left out."""
        expected = (self.in_channels, *self.input_size)
        batch = x.shape[: max(0, x.dim() - len(expected))]
        if len(batch) > 1 or x.shape[len(batch) :] != expected:
            raise ShapeError(
                f"{type(self).__name__} got an input of shape {list(x.shape)}; it must be "
                f"[B, {', '.join(map(str, expected))}], as built with input_size={self.input_size}"
            )
        # No copy: in channels_last memory format, and for convolutions, this is a view.
        x = x.movedim(len(batch), -1)
        x = x.reshape(math.prod(batch), self.pattern.num_sources, self.in_channels)
        y = self._gather(x).view(*batch, *self.output_size, self.out_channels)
        return y.movedim(-1, len(batch))


class _Forward(_Windowed):
    """Windows over the input, one site for each place of the kernel."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        padding: str | _Size = 0,
        dilation: _Size = 1,
        groups: int = 1,
        bias: bool | str = True,
        padding_mode: str | Sequence[str] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        input_size: _Size,
        tie: Tie = None,
    ) -> None:
        strided = set(integers_per_axis(stride, self.axes) or ()) - {1}
        if isinstance(padding, str) and padding == "same" and strided:
            raise OptionError(
                f"`padding` (='same') must come with stride 1, not `stride` (={stride!r}); give "
                "the padding in integers"
            )
        pattern = window(
            _sizes("input_size", input_size, self.axes),
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            padding_mode=padding_mode,
        )
        super().__init__(
            pattern,
            in_channels,
            out_channels,
            tie=tie,
            bias=bias,
            groups=groups,
            device=device,
            dtype=dtype,
        )


class _Transposed(_Windowed):
    """Windows over the output, one source for each place of the kernel."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: _Size,
        stride: _Size = 1,
        padding: _Size = 0,
        output_padding: _Size = 0,
        groups: int = 1,
        bias: bool | str = True,
        dilation: _Size = 1,
        padding_mode: str | Sequence[str] = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        input_size: _Size,
        tie: Tie = None,
    ) -> None:
        sizes = {
            "input_size": input_size,
            "kernel_size": kernel_size,
            "stride": stride,
            "padding": padding,
            "output_padding": output_padding,
            "dilation": dilation,
        }
        axes = {name: _sizes(name, value, self.axes) for name, value in sizes.items()}
        pattern = window(
            _transposed_size(**axes),
            axes["kernel_size"],
            stride=axes["stride"],
            padding=axes["padding"],
            dilation=axes["dilation"],
            padding_mode=padding_mode,
        )
        super().__init__(
            _first_sites(pattern, axes["input_size"]).transpose()[0],
            in_channels,
            out_channels,
            tie=tie,
            bias=bias,
            groups=groups,
            device=device,
            dtype=dtype,
        )


class LocallyConnected1d(_Forward):
    """Locally connected :class:`torch.nn.Conv1d`: the same arguments, `input_size` and `tie`.

    Shapes
    ------
    Input ``[B, C, L]``, output ``[B, O, L']`` with ``L'`` as in :class:`torch.nn.Conv1d`.

    See Also
    --------
    LocallyConnected2d : the arguments.

    Examples
    --------
    >>> import torch
    >>> LocallyConnected1d(2, 3, 5, padding=2, input_size=24)(torch.randn(1, 2, 24)).shape
    torch.Size([1, 3, 24])
    """

    axes = 1


class LocallyConnected2d(_Forward):
    """Locally connected :class:`torch.nn.Conv2d`: the same arguments, `input_size` and `tie`.

    ``y[b,o,i] = bias[i,o] + sum_{k,c} weight[i,k,c,o] * x[b,c,source(i,k)]``, without the k*k-fold
    copy of the input that unfolding makes.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, device, dtype
        As in :class:`torch.nn.Conv2d`; ``padding="same"`` takes stride 1 alone.
    bias
        ``True``: one for each group of sites that `tie` makes; ``"site"``; ``"shared"``; ``False``.
    padding_mode
        ``"zeros"``, ``"circular"``, ``"reflect"`` or ``"replicate"``; one, or one an axis, such as
        ``("reflect", "circular")`` for latitude and longitude.
    input_size
        Size of the fields, ``(H, W)``.
    tie
        ``None``: own weights at every site. ``"longitude"``: shared along the last axis. ``"all"``:
        a convolution, run as torch's own. Or region labels, one an output site.

    Shapes
    ------
    Input ``[B, C, H, W]``, output ``[B, O, H', W']`` with sizes as in :class:`torch.nn.Conv2d`.
    Fastest in ``torch.channels_last`` memory format, which needs no copy.

    Raises
    ------
    ShapeError, OptionError
        Sizes or options do not fit; as in :func:`scisparse.patterns.window`.
    MemoryLimitError
        The weights would not fit in memory.

    Examples
    --------
    >>> import torch
    >>> modes = ("reflect", "circular")
    >>> layer = LocallyConnected2d(
    ...     2, 3, 3, input_size=(6, 12), padding=1, padding_mode=modes, tie="longitude"
    ... )
    >>> layer(torch.randn(1, 2, 6, 12)).shape, layer.weight.shape
    (torch.Size([1, 3, 6, 12]), torch.Size([54, 2, 3]))
    """

    axes = 2


class LocallyConnected3d(_Forward):
    """Locally connected :class:`torch.nn.Conv3d`: the same arguments, `input_size` and `tie`.

    Shapes
    ------
    Input ``[B, C, D, H, W]``, output ``[B, O, D', H', W']``, sizes as in :class:`torch.nn.Conv3d`.

    See Also
    --------
    LocallyConnected2d : the arguments.

    Examples
    --------
    >>> import torch
    >>> LocallyConnected3d(1, 2, 3, input_size=(4, 5, 6))(torch.randn(1, 1, 4, 5, 6)).shape
    torch.Size([1, 2, 2, 3, 4])
    """

    axes = 3


class LocallyConnectedTranspose1d(_Transposed):
    """Locally connected :class:`torch.nn.ConvTranspose1d`: its arguments, `input_size` and `tie`.

    Shapes
    ------
    Input ``[B, C, L]``, output ``[B, O, L']`` with ``L'`` as in :class:`torch.nn.ConvTranspose1d`.

    See Also
    --------
    LocallyConnectedTranspose2d : the arguments.

    Examples
    --------
    >>> import torch
    >>> LocallyConnectedTranspose1d(2, 3, 4, stride=2, input_size=5)(torch.randn(1, 2, 5)).shape
    torch.Size([1, 3, 12])
    """

    axes = 1


class LocallyConnectedTranspose2d(_Transposed):
    """Locally connected :class:`torch.nn.ConvTranspose2d`: its arguments, `input_size` and `tie`.

    Its pattern is that of a :class:`LocallyConnected2d` from the output to the input, transposed.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, dilation
        As in :class:`torch.nn.ConvTranspose2d`.
    bias, tie
        As in :class:`LocallyConnected2d`.
    padding_mode
        As in :class:`LocallyConnected2d`, of the windows over the output.
    device, dtype
        Of the parameters.
    input_size
        Size of the fields, ``(H, W)``.

    Shapes
    ------
    Input ``[B, C, H, W]``, output ``[B, O, H', W']``, sizes as in
    :class:`torch.nn.ConvTranspose2d`.

    Raises
    ------
    ShapeError, OptionError
        Sizes or options do not fit; as in :func:`scisparse.patterns.window`.
    MemoryLimitError
        The weights would not fit in memory.

    Examples
    --------
    >>> import torch
    >>> layer = LocallyConnectedTranspose2d(2, 3, 4, stride=2, padding=1, input_size=(5, 6))
    >>> layer(torch.randn(1, 2, 5, 6)).shape
    torch.Size([1, 3, 10, 12])
    """

    axes = 2


class LocallyConnectedTranspose3d(_Transposed):
    """Locally connected :class:`torch.nn.ConvTranspose3d`: its arguments, `input_size` and `tie`.

    Shapes
    ------
    Input ``[B, C, D, H, W]``, output ``[B, O, D', H', W']``, sizes as in
    :class:`torch.nn.ConvTranspose3d`.

    See Also
    --------
    LocallyConnectedTranspose2d : the arguments.

    Examples
    --------
    >>> import torch
    >>> layer = LocallyConnectedTranspose3d(1, 1, 2, stride=2, input_size=(2, 3, 4))
    >>> layer(torch.randn(1, 1, 2, 3, 4)).shape
    torch.Size([1, 1, 4, 6, 8])
    """

    axes = 3


def _sizes(name: str, value: _Size, axes: int) -> tuple[int, ...]:
    sizes = integers_per_axis(value, axes)
    if sizes is None:
        raise ShapeError(f"`{name}` (={value!r}) must be one integer, or {axes}")
    return sizes


def _transposed_size(
    input_size: tuple[int, ...],
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    output_padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[int, ...]:
    """Output size of a transposed convolution, as in torch."""
    sizes = []
    for axis, (n, k, s, p, extra, d) in enumerate(
        zip(input_size, kernel_size, stride, padding, output_padding, dilation, strict=True)
    ):
        if not 0 <= extra < max(s, d):
            raise ShapeError(
                f"`output_padding` (={extra} on axis {axis}) must be at least 0 and smaller than "
                f"stride (={s}) or dilation (={d})"
            )
        size = (n - 1) * s - 2 * p + d * (k - 1) + extra + 1
        if size < 1:
            raise ShapeError(
                f"`padding` (={p} on axis {axis}) leaves no output of the {size + 2 * p} points "
                f"that `input_size` (={n}) reaches; pad less"
            )
        sizes.append(size)
    return tuple(sizes)


def _first_sites(pattern: Pattern, size: tuple[int, ...]) -> Pattern:
    """Drop places of the kernel past `size`, for which `output_padding` may make room."""
    spec = pattern.window
    if spec is None or spec.output_size == size:
        return pattern
    keep = torch.zeros(spec.output_size, dtype=torch.bool, device="cpu")
    keep[tuple(slice(n) for n in size)] = True
    first = pattern.restrict(keep.flatten(), relabel=True)
    return replace(first, window=replace(spec, output_size=size))
