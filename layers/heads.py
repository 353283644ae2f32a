"""What layers of attention share: heads, maps into them and out of them, and what must fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scisparse.errors import OptionError, ShapeError
from scisparse.grids.integers import integer_from
from scisparse.kernels._modes import has_transforms

__all__ = [
    "attend_to_all",
    "check_cells",
    "check_heads",
    "check_input",
    "check_inputs",
    "check_mask",
    "draw_maps",
    "split_heads",
]


def attend_to_all(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Dense attention of torch, in parts under ``torch.func`` and in forward mode.

    Its fused kernels have no rules for these. The parts are called as such, as ``sdpa_kernel``
    would choose them for all threads.
    """
    if has_transforms():
        in_parts = torch.ops.aten._scaled_dot_product_attention_math
        y: Tensor = in_parts(q, k, v, bias, dropout)[0]
        return y
    return F.scaled_dot_product_attention(q, k, v, bias, dropout)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[..., N, H D]`` as ``[B, N, H, D]``, all batch dimensions in one."""
    return x.reshape(math.prod(x.shape[:-2]), x.shape[-2], heads, x.shape[-1] // heads)


def draw_maps(*maps: nn.Linear | None) -> None:
    """Draw the maps as ``nn.MultiheadAttention`` does (Xavier); biases are 0."""
    for map_ in maps:
        if map_ is not None:
            nn.init.xavier_uniform_(map_.weight)
            if map_.bias is not None:
                nn.init.zeros_(map_.bias)


def check_heads(embed_dim: int, num_heads: int, kv_heads: int) -> None:
    """Raise unless these are positive integers, and heads divide channels and one another."""
    sizes = {"embed_dim": embed_dim, "num_heads": num_heads, "kv_heads": kv_heads}
    for name, value in sizes.items():
        integer_from(name, value, 1, OptionError)
    if embed_dim % num_heads:
        raise OptionError(
            f"`embed_dim` (={embed_dim}) must be a positive multiple of `num_heads` (={num_heads})"
        )
    if num_heads % kv_heads:
        raise OptionError(
            f"`num_heads` (={num_heads}) must be a multiple of `kv_heads` (={kv_heads})"
        )


def check_input(name: str, x: Tensor, size: int | None, channels: int, hint: str = "") -> None:
    """Raise unless `x` is ``[..., size, channels]``, of any size where none is named."""
    # Not `size not in (None, ...)`: under torch.compile, that is wrong for a size that is free.
    fits = x.dim() >= 2 and x.shape[-1] == channels and (size is None or x.shape[-2] == size)
    if not fits:
        what = "sources" if name == "source" else "sites"
        count = "M" if size is None else size
        raise ShapeError(
            f"`{name}` {list(x.shape)} must be [..., {count} {what}, {channels} channels]{hint}"
        )


def check_inputs(
    x: Tensor, source: Tensor, sizes: tuple[int | None, int], channels: tuple[int, int]
) -> None:
    """Raise unless sites and sources have these sizes and channels, and the same batch."""
    hint = "; give `source` for another grid" if x is source else ""
    check_input("x", x, sizes[0], channels[0], hint)
    check_input("source", source, sizes[1], channels[1], hint)
    if x.shape[:-2] != source.shape[:-2]:
        raise ShapeError(
            f"`x` {list(x.shape)} and `source` {list(source.shape)} must have the same batch "
            "dimensions"
        )


def check_cells(name: str, x: Tensor, size: tuple[int, ...], channels: int) -> None:
    """Raise unless `x` is ``[..., *size, channels]``."""
    if x.dim() <= len(size) or x.shape[-len(size) - 1 :] != (*size, channels):
        raise ShapeError(
            f"`{name}` {list(x.shape)} must be [..., {', '.join(map(str, size))}, {channels} "
            "channels]"
        )


def check_mask(mask: Tensor, size: tuple[int, ...], batch: Sequence[int], what: str) -> None:
    """Raise unless a mask of sources is booleans ``[*size]``, or ``[..., *size]`` for `batch`."""
    if not isinstance(mask, Tensor):
        kind = f"{type(mask).__module__}.{type(mask).__qualname__}".removeprefix("builtins.")
        raise ShapeError(f"`source_mask` is a {kind}; give a tensor: torch.tensor(source_mask)")
    given = mask.shape[: -len(size)]
    fits = mask.shape[-len(size) :] == size and len(given) <= len(batch)
    pairs = zip(reversed(given), reversed(batch), strict=False)
    if mask.dtype != torch.bool or not fits or any(m not in (1, b) for m, b in pairs):
        raise ShapeError(
            f"`source_mask` ({mask.dtype} {list(mask.shape)}) must be booleans, true at {what} "
            f"that count, {list(size)} or {[*batch, *size]}"
        )
