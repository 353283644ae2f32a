"""Sums of sparse and dense vectors over the ranks of a process group, the same bits on each.

Terms are added in the order of ranks, whatever the place of an entry in a message: a sum
does not depend on what travels beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = [
    "INDEX_BYTES",
    "MOST",
    "Share",
    "Traffic",
    "cast",
    "largest",
    "mean_whole",
    "messages",
    "part_size",
    "sum_pairs",
]

INDEX_BYTES = 4
MOST = 2**31 - 1  # entries that a message of pairs is about: their positions are int32


@dataclass(frozen=True)
class Traffic:
    """What was exchanged since the first step, by each rank.

    Parameters
    ----------
    steps
        Backward passes that exchanged gradients.
    dense_steps
        Those in which no parameter was sent as pairs.
    sent
        Bytes that a rank sent: ``(R - 1) * m`` to gather a message of m bytes on R ranks,
        ``2 * (R - 1) / R * m`` for a sum.
    received
        Bytes that a rank received; every exchange is balanced, so as many as `sent`.
    dense
        Bytes that a rank would have sent, and received, for the same gradients in all-reduces.
    """

    steps: int
    dense_steps: int
    sent: int
    received: int
    dense: int


class Share(NamedTuple):
    """A parameter's part in an exchange."""

    name: str
    gradient: Tensor  # where the mean over the ranks is written
    total: Tensor  # gradient + residual, flat; what is sent is taken from it
    used: Tensor  # whether this rank has a gradient at all
    kept: int  # entries to send; all of them: without indices


def messages(shares: Sequence[Share]) -> Iterator[list[Share]]:
    """Cut where positions would not fit: the first bucket of a model may hold all of it.

    Parameters
    ----------
    shares
        In the same order on all ranks, none with more than ``MOST`` entries.

    Yields
    ------
    list of Share
        With ``MOST`` entries together at most.
    """
    message: list[Share] = []
    size = 0
    for share in shares:
        size += share.total.numel()
        if size > MOST:
            yield message
            message, size = [], share.total.numel()
        message.append(share)
    if message:
        yield message


def largest(total: Tensor, count: int) -> Tensor:
    """Positions of the `count` largest magnitudes; what is not finite comes first.

    Parameters
    ----------
    total
        Numbers ``[n]``.
    count
        At most n.

    Returns
    -------
    Tensor
        int64 ``[count]``, in no order.

    Examples
    --------
    >>> largest(torch.tensor([1.0, -3.0, torch.nan, 2.0]), 2).sort().values
    tensor([1, 2])
    """
    size = total.abs().nan_to_num_(nan=math.inf, posinf=math.inf)
    return size.topk(count, sorted=False).indices


def cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast; a finite number beyond the range of `dtype` becomes its largest.

    Parameters
    ----------
    values
        Any shape, floating point.
    dtype
        As wide, or narrower.

    Returns
    -------
    Tensor
        `values` itself where nothing changes.

    Examples
    --------
    >>> cast(torch.tensor([1e6, torch.inf]), torch.float16)
    tensor([65504.,    inf], dtype=torch.float16)
    """
    if values.dtype == dtype:
        return values
    most = torch.finfo(dtype).max
    return torch.where(values.isfinite(), values.clamp(-most, most), values).to(dtype)


def sum_pairs(index: Tensor, value: Tensor, size: int, group: dist.ProcessGroup | None) -> Tensor:
    """Sum over the ranks of sparse vectors, ``y[index_r[j]] += value_r[j]``, in one message.

    Parameters
    ----------
    index
        int32 ``[k]``, none twice; k is the same on all ranks.
    value
        float32 or float64 ``[k]``.
    size
        Length of the vector.
    group
        Ranks that take part.

    Returns
    -------
    Tensor
        Dense ``[size]``, dtype of `value`, the same bits on all ranks.
    """
    message = torch.cat([index, value.view(torch.int32)])
    gathered = [torch.empty_like(message) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, message, group=group)
    total = value.new_zeros(size)
    for each in gathered:
        its_index, its_value = each[: index.numel()], each[index.numel() :]
        # A copy, as eight-byte values may start between two multiples of eight.
        total.index_add_(0, its_index, its_value.clone().view(value.dtype))
    return total


def part_size(size: int, world: int) -> int:
    """Entries that each of `world` ranks adds up in :func:`mean_whole`."""
    return math.ceil(size / world)


def mean_whole(sent: Tensor, wide: torch.dtype, group: dist.ProcessGroup | None) -> Tensor:
    """Mean over the ranks of dense vectors: each rank adds up a part, then all gather the parts.

    Parameters
    ----------
    sent
        Numbers ``[n]``.
    wide
        Dtype of the sum.
    group
        Ranks that take part.

    Returns
    -------
    Tensor
        ``[n]``, dtype of `sent`, the same bits on all ranks.
    """
    world = dist.get_world_size(group)
    part = part_size(sent.numel(), world)
    padded = sent.new_zeros(world * part)
    padded[: sent.numel()] = sent
    arrived = torch.empty_like(padded)
    dist.all_to_all_single(arrived, padded, group=group)
    total = torch.zeros(part, dtype=wide, device=sent.device)
    for each in arrived.view(world, part):
        total += each
    mean = cast(total / world, sent.dtype)
    gathered = [torch.empty_like(mean) for _ in range(world)]
    dist.all_gather(gathered, mean, group=group)
    return torch.cat(gathered)[: sent.numel()]
