"""Rows of edges in plain torch: what the references of all operators share."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accumulator", "segment_sum", "site_of_edge"]


def site_of_edge(row_ptr_M1: Tensor, num_edges: int) -> Tensor:
    """Site that each edge belongs to, int64 ``[E]``."""
    sites = torch.arange(row_ptr_M1.numel() - 1, device=row_ptr_M1.device)
    return torch.repeat_interleave(sites, row_ptr_M1.diff(), output_size=num_edges)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Type in which numbers of `dtype` are added up: float32 for 16-bit types."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum of each run ``values[offsets[i]:offsets[i + 1]]``, in order: deterministic."""
    if values.numel() == 0:
        return values.new_zeros(offsets.numel() - 1, *values.shape[1:])
    return torch.segment_reduce(values, "sum", offsets=offsets, axis=0, initial=0, unsafe=True)
