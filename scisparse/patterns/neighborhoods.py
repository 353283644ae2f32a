"""Boxes of cells around every cell, all of one size, as neighbourhood attention reads them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.grids.integers import integers, integers_per_axis
from scisparse.pattern import Pattern
from scisparse.pattern.edges import row_ptr_of_fan_in

__all__ = ["flags_per_axis", "neighborhood"]


def neighborhood(
    shape: Sequence[int],
    kernel_size: int | Sequence[int],
    *,
    dilation: int | Sequence[int] = 1,
    causal: bool | Sequence[bool] = False,
    periodic: bool | Sequence[bool] = False,
) -> Pattern:
    """Read the box of cells around each cell.

    At the ends of an axis the box is moved inwards, so that it keeps its size; a periodic axis has
    no ends, and a causal one reads the cell and what is before it, as far as there is any. With
    dilation a box holds every so many cells, those of the site's own residue.

    Parameters
    ----------
    shape
        Cells along each axis; sites are numbered with the last axis fastest.
    kernel_size
        Cells of the box along each axis.
    dilation
        Step between the cells of the box along each axis.
    causal, periodic
        For each axis; not both.

    Returns
    -------
    Pattern
        With taps: the offset of the source from the site in units of the dilation, from
        ``1 - kernel_size`` to ``kernel_size - 1`` along each axis, the last axis fastest.

    Raises
    ------
    OptionError
        If `shape` is no sequence of integers, a box does not fit into its axis, or an axis is
        causal and periodic.

    References
    ----------
    Hassani, A., Walton, S., Li, J., Li, S., Shi, H. (2023). Neighborhood attention transformer.
    https://doi.org/10.48550/arXiv.2204.07143

    Examples
    --------
    >>> neighborhood((5,), 3).to_dense().int()[0].tolist()
    [1, 1, 1, 0, 0]
    >>> neighborhood((5,), 3, periodic=True).to_dense().int()[0].tolist()
    [1, 1, 0, 0, 1]
    >>> neighborhood((8, 16), (3, 5), periodic=(False, True))
    Pattern(128 sites x 128 sources, 1920 edges, fan-in 15)
    """
    cells = integers(shape)
    if cells is None:
        raise OptionError(
            f"`shape` (={shape!r}) must be integers, one for each axis, such as (4, 6)"
        )
    axes = len(cells)
    sizes = {
        name: integers_per_axis(value, axes)
        for name, value in (("kernel_size", kernel_size), ("dilation", dilation))
    }
    for name, values in sizes.items():
        if values is None or min(values, default=1) < 1 or not axes:
            given = kernel_size if name == "kernel_size" else dilation
            raise OptionError(
                f"`{name}` (={given}) must be a positive integer, or one for each of the {axes} "
                "axes of `shape`, which has one at least"
            )
    flags = [flags_per_axis("causal", causal, axes), flags_per_axis("periodic", periodic, axes)]
    # On the CPU, where patterns lie, whatever the default device is.
    source = tap = torch.zeros(1, 1, dtype=torch.int64, device="cpu")
    inside = torch.ones(1, 1, dtype=torch.bool, device="cpu")
    taps = 1
    kernels, steps = sizes["kernel_size"] or (), sizes["dilation"] or ()
    for size, kernel, step, *kind in zip(cells, kernels, steps, *flags, strict=True):
        reads, offset, valid = _axis(size, kernel, step, *kind)
        source = _outer(source * size, reads)
        tap = _outer(tap * (2 * kernel - 1), offset)
        inside = _outer(inside.long(), valid.long()) == 2
        taps *= 2 * kernel - 1
    source, order = torch.where(inside, source, source.max() + 1).sort(1)
    inside, tap = inside.gather(1, order), tap.gather(1, order)
    fan_in = inside.sum(1)
    return Pattern(
        row_ptr=row_ptr_of_fan_in(fan_in),
        col=source[inside].to(torch.int32),
        num_sources=len(source),
        tap=tap[inside].to(torch.int32),
        tap_count=taps,
    )


def flags_per_axis(name: str, value: bool | Sequence[bool], axes: int) -> list[bool]:
    """Give a bool for each axis, from one for all or one each, or raise naming the argument."""
    values = list(value) if isinstance(value, Sequence) else [value] * axes
    if len(values) != axes or not all(isinstance(v, bool) for v in values):
        raise OptionError(f"`{name}` (={value}) must be a bool, or one for each of {axes} axes")
    return values


def _axis(
    size: int, kernel: int, step: int, causal: bool, periodic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Cells ``[size, kernel]`` that each cell of an axis reads, their taps, and which there are."""
    if causal and periodic:
        raise OptionError("an axis cannot be both `causal` and `periodic`; choose one")
    if size < 1 or (not causal and kernel * step > size):
        raise OptionError(
            f"a box of {kernel} cells (`kernel_size`), {step} apart (`dilation`), does not fit "
            f"into an axis of {size}"
        )
    cell, place = torch.arange(size, device="cpu")[:, None], torch.arange(kernel, device="cpu")
    if causal:
        offset = place.expand(size, -1) - kernel + 1
    elif periodic:
        offset = place.expand(size, -1) - kernel // 2
    else:
        # Among the cells of its residue, the site is number `own` of `count`.
        own, count = cell // step, (size - 1 - cell % step) // step + 1
        first = torch.minimum((own - kernel // 2).clamp(min=0), count - kernel)
        offset = first + place - own
    reads = cell + offset * step
    valid = (reads >= 0) & (reads < size)
    if periodic:
        reads, valid = reads % size, torch.ones_like(valid)
    return reads, offset + kernel - 1, valid


def _outer(first: Tensor, second: Tensor) -> Tensor:
    """Sums of every entry of rows of both, for every pair of rows: ``[m n, k l]``."""
    sums = first[:, None, :, None] + second[None, :, None, :]
    return sums.reshape(len(first) * len(second), -1)
