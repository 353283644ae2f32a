"""Windows that cut a grid into boxes, shifted or not, as Swin and Pangu-Weather read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.grids.integers import integer, integers, integers_per_axis
from scisparse.pattern import Pattern
from scisparse.patterns.neighborhoods import flags_per_axis
from scisparse.patterns.sequences import blocks

__all__ = ["ShiftedAxis", "shifted_axes", "shifted_window"]


@dataclass(frozen=True)
class ShiftedAxis:
    """One axis of a grid, cut into windows.

    The axis is continued to whole windows and turned back by `shift`, so that cell ``p`` is at
    place ``(p - shift) mod (windows * window)``; ``window`` places in a row are a window.

    Parameters
    ----------
    size
        Cells.
    window
        Places of a window.
    shift
        Cells by which the windows are moved on, less than a window.
    periodic
        Whether the last cell is followed by the first.
    earth_specific
        Whether the bias knows the window and both places in it, or the offset alone.
    """

    size: int
    window: int
    shift: int
    periodic: bool
    earth_specific: bool

    @property
    def windows(self) -> int:
        """Windows, the last of which may be incomplete."""
        return -(-self.size // self.window)

    @property
    def places(self) -> int:
        """Places of all windows; those past `size` have no cell."""
        return self.windows * self.window

    @property
    def whole(self) -> bool:
        """Whether every window has all its cells, in one part."""
        return self.periodic or (self.shift == 0 and self.size == self.places)

    @property
    def kinds(self) -> int:
        """Windows that differ in their bias or their parts."""
        return 1 if self.whole and not self.earth_specific else self.windows

    @property
    def taps(self) -> int:
        """Numbers of the bias along this axis."""
        if self.earth_specific:
            return self.windows * self.window**2
        return 2 * self.window - 1

    def parts(self, device: torch.device | str = "cpu") -> Tensor:
        """Give the part of its window that each place is in, int64 ``[places]``.

        Parts do not read each other: 0, or 1 past the end of an axis that is not periodic, where
        the first cells follow, or 2 where there is no cell.
        """
        place = torch.arange(self.places, device=device)
        if self.periodic:
            return torch.zeros_like(place)
        over = place >= self.places - self.shift
        cell = (place + self.shift) % self.places
        return torch.where(cell < self.size, over.long(), 2)


def shifted_axes(
    shape: Sequence[int],
    window: int | Sequence[int],
    *,
    shift: int | Sequence[int] = 0,
    periodic: bool | Sequence[bool] = False,
    earth_specific: bool | Sequence[bool] | None = None,
    name: str = "shape",
) -> tuple[ShiftedAxis, ...]:
    """Check the arguments of :func:`shifted_window` and give one :class:`ShiftedAxis` an axis.

    Errors call `shape` by `name`.
    """
    sizes = integers(shape)
    if not sizes or min(sizes) < 1:
        raise OptionError(f"`{name}` (={shape}) must name one positive size at least")
    axes = len(sizes)
    widths = integers_per_axis(window, axes)
    if widths is None or min(widths) < 1:
        raise OptionError(
            f"`window` (={window}) must be a positive integer, or one for each of the {axes} axes "
            f"of `{name}`"
        )
    around = flags_per_axis("periodic", periodic, axes)
    earth = [not ends_meet for ends_meet in around]
    if earth_specific is not None:
        earth = flags_per_axis("earth_specific", earth_specific, axes)
    shifts = [shift] * axes if not isinstance(shift, Sequence) else list(shift)
    if len(shifts) != axes:
        raise OptionError(f"`shift` (={shift}) must be one number, or one for each of {axes} axes")
    found = []
    for n, (size, width, back) in enumerate(zip(sizes, widths, shifts, strict=True)):
        _check_fit(f"axis {n} of `{name}`", size, width, around[n])
        found.append(ShiftedAxis(size, width, _shift(back, size, width), around[n], earth[n]))
    return tuple(found)


def shifted_window(
    shape: Sequence[int],
    window: int | Sequence[int],
    *,
    shift: int | Sequence[int] = 0,
    periodic: bool | Sequence[bool] = False,
    earth_specific: bool | Sequence[bool] | None = None,
) -> Pattern:
    """Read the cells of the same window (Swin, Pangu-Weather).

    Windows cut the grid into boxes. Layers with and without a shift take turns, so that windows
    come to know one another. A shifted window at the end of an axis goes on at its beginning: on a
    periodic axis, such as longitude, it is whole; on others, such as latitude, its two parts do
    not read each other. The last window of an axis that is not periodic may be incomplete: cells
    that are not there have no edges, and nothing is padded.

    Parameters
    ----------
    shape
        Cells along each axis; sites are numbered with the last axis fastest.
    window
        Cells of a window along each axis.
    shift
        Cells by which the windows are moved on, from 0 to ``window - 1``, along each axis; ``True``
        for half a window along axes that have several windows.
    periodic
        For each axis: whether its ends meet. Windows must divide a periodic axis.
    earth_specific
        For each axis: whether taps tell windows and places in them apart, or offsets alone. Where
        not given, they do on axes that are not periodic, as in Pangu-Weather; ``False`` for the
        relative taps of Swin.

    Returns
    -------
    Pattern
        With taps, the index into the table of a bias. An earth-specific axis with ``n`` windows of
        ``W`` cells counts ``(number of the window, place of the site, place of the source)``,
        ``n W W`` taps; others the offset of the source from the site plus ``W - 1``,
        ``2 W - 1`` taps. The last axis is fastest. Their number does not depend on the shift: the
        two parts of a window have its number, and places of their own.

    Raises
    ------
    OptionError
        If a window does not fit into its axis, or does not divide it where it is periodic, or a
        shift is not less than a window.

    References
    ----------
    Liu, Z. et al. (2021). Swin transformer: hierarchical vision transformer using shifted windows.
    https://doi.org/10.1109/ICCV48922.2021.00986

    Bi, K. et al. (2023). Accurate medium-range global weather forecasting with 3D neural networks.
    Nature 619, 533-538. https://doi.org/10.1038/s41586-023-06185-3

    Examples
    --------
    >>> shifted_window((6,), 3).to_dense().int()[0].tolist()
    [1, 1, 1, 0, 0, 0]
    >>> shifted_window((6,), 3, shift=1).to_dense().int()[0].tolist()
    [1, 0, 0, 0, 0, 0]
    >>> shifted_window((6,), 3, shift=1, periodic=True).to_dense().int()[0].tolist()
    [1, 0, 0, 0, 1, 1]
    >>> pattern = shifted_window((24, 72), (6, 12), shift=True, periodic=(False, True))
    >>> pattern.num_taps == 4 * 6**2 * 23
    True
    """
    axes = shifted_axes(
        shape, window, shift=shift, periodic=periodic, earth_specific=earth_specific
    )
    sizes = [axis.size for axis in axes]
    # On the CPU, where patterns lie, whatever the default device is.
    cells = torch.ones(sizes, dtype=torch.int64, device="cpu")
    label = torch.zeros(1, dtype=torch.int64, device="cpu")
    placed = []
    for n, axis in enumerate(axes):
        place = (torch.arange(axis.size, device="cpu") - axis.shift) % axis.places
        along = [-1] + [1] * (len(axes) - n - 1)
        mine = place // axis.window * 2 + axis.parts()[place]  # part 2 has no cells
        label = label * (2 * axis.windows) + mine.view(along)
        placed.append((place.view(along) * cells).flatten())
    pattern = blocks((label * cells).flatten())
    row, col = pattern.rows(), pattern.col.long()
    tap = torch.zeros_like(row)
    for axis, place in zip(axes, placed, strict=True):
        site, source = place[row] % axis.window, place[col] % axis.window
        if axis.earth_specific:
            number = place[row] // axis.window
            entry = (number * axis.window + site) * axis.window + source
        else:
            entry = source - site + axis.window - 1
        tap = tap * axis.taps + entry
    taps = torch.Size([axis.taps for axis in axes]).numel()
    return Pattern(
        pattern.row_ptr, pattern.col, pattern.num_sources, tap=tap.to(torch.int32), tap_count=taps
    )


def _check_fit(axis: str, size: int, window: int, periodic: bool) -> None:
    if window > size:
        raise OptionError(
            f"a window of {window} cells (`window`) does not fit into {axis}, "
            f"{size} cells; take at most {size}"
        )
    if periodic and size % window:
        below = size // window * window
        raise OptionError(
            f"{axis} is periodic, so that its {size} cells must be whole windows "
            f"of {window}; take {below} or {below + window} cells, or a `window` that divides "
            f"{size}"
        )


def _shift(shift: int, size: int, window: int) -> int:
    """Cells to shift by: those given, or half a window where this is ``True``."""
    if isinstance(shift, bool):
        return window // 2 if shift and size > window else 0
    shift = integer("shift", shift, OptionError)
    if not 0 <= shift < window:
        raise OptionError(
            f"`shift` (={shift}) must lie between 0 and {window - 1}, less than the window of "
            f"{window}; True for half a window"
        )
    return shift
