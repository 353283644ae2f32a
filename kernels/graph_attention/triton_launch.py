"""What the bindings of all Triton kernels of attention share: tiles, sizes, tensors."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from scisparse.kernels._edges import Edges
from scisparse.kernels._triton import accumulator_type, is_wide, larger_tiles, power_of_two
from scisparse.kernels.graph_attention.plans import RowPlan, plan_rows

__all__ = ["plan_of", "tensors_of", "tile_of", "widths_of"]


def plan_of(
    x: Tensor, z: Tensor, edges: Edges, heads: int, unroll: int, carried: int = 0
) -> RowPlan:
    """Tiles for rows of edges that read `x` and `z`; the interpreter takes more sites at once."""
    width, rows = max(x.shape[3], z.shape[3], carried), edges.row_ptr.numel() - 1
    plan = plan_rows(heads, width, x.element_size(), edges.col.numel() / rows, unroll)
    sites = min(larger_tiles(64) * plan.sites, power_of_two(x.shape[0] * rows))
    return dataclasses.replace(plan, sites=max(plan.sites, sites))


def widths_of(**widths: int) -> dict[str, Any]:
    """Numbers of a head, and how many a tile has of them."""
    return widths | {f"B{name}": power_of_two(width) for name, width in widths.items()}


def tile_of(
    plan: RowPlan, dtype: torch.dtype, tensors: tuple[Tensor | None, ...]
) -> dict[str, Any]:
    """Constants of the tiles, of the type of sums, and of the width of offsets."""
    return {
        "ACC": accumulator_type(dtype),
        "WIDE": is_wide(*(t for t in tensors if t is not None)),
        "SITES": plan.sites,
        "SLOTS": plan.slots,
        "BH": plan.heads,
        "UNROLL": plan.unroll,
    }


def tensors_of(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    """What a kernel takes: another tensor, never read, in the place of one that is not there."""
    some = next(t for t in tensors if t is not None)
    return tuple(some if t is None else t for t in tensors)
