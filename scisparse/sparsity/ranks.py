"""The same topology on every rank: scores are averaged, choices are those of rank 0.

Numbers of candidates lie on the CPU, where NCCL, which trains on GPUs, does not reach: they meet on
the device that ``init_process_group(device_id=...)`` or ``torch.cuda.set_device`` has given a rank.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["agree", "average", "every", "total", "world"]


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _meeting(device: torch.device) -> torch.device:
    """Where ranks exchange what lies on `device`: there, if their group can, else where it can."""
    group = dist.group.WORLD
    assert group is not None
    known = [other.type for other in group._device_types]
    if device.type in known:
        return device
    return group.bound_device_id or torch.device(known[0])


def _copied(values: Tensor) -> Tensor:
    """Where ranks meet; they write there, and what a caller keeps must stay as it is."""
    layout = torch.contiguous_format
    return values.to(_meeting(values.device), copy=True, memory_format=layout)


def world() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if _together() else 1


def total(values: Tensor) -> Tensor:
    """Sum over the ranks, where there are several."""
    if _together():
        met = _copied(values)
        dist.all_reduce(met)
        values = met.to(values.device)
    return values


def average(values: Tensor) -> Tensor:
    """Mean over the ranks, where there are several."""
    return total(values) / world()


def agree(values: Tensor) -> Tensor:
    """Values of rank 0, where there are several ranks."""
    if _together():
        met = _copied(values)
        dist.broadcast(met, src=0)
        values = met.to(values.device)
    return values


def every(holds: bool, like: Tensor) -> bool:
    """Whether something holds on all ranks: what one rank skips, all must skip, or they hang.

    Parameters
    ----------
    holds
        On this rank.
    like
        A tensor on the device that this rank trains on.
    """
    if not _together():
        return holds
    flag = torch.tensor(int(holds), device=_meeting(like.device))
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)
