"""The same topology on every rank: scores are averaged, choices are those of rank 0."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["agree", "average", "every", "total", "world"]


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if _together() else 1


def total(values: Tensor) -> Tensor:
    """Sum over the ranks, where there are several."""
    if _together():
        values = values.contiguous()
        dist.all_reduce(values)
    return values


def average(values: Tensor) -> Tensor:
    """Mean over the ranks, where there are several."""
    return total(values) / world()


def agree(values: Tensor) -> Tensor:
    """Values of rank 0, where there are several ranks."""
    if _together():
        values = values.contiguous()
        dist.broadcast(values, src=0)
    return values


def every(holds: bool, like: Tensor) -> bool:
    """Whether something holds on all ranks: what one rank skips, all must skip, or they hang.

    Parameters
    ----------
    holds
        On this rank.
    like
        A tensor on the device that the ranks talk through.
    """
    if not _together():
        return holds
    flag = torch.tensor(int(holds), device=like.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)
