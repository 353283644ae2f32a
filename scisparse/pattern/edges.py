"""Steps on edge arrays that the methods of a pattern share."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from scisparse.errors import PatternError

__all__ = [
    "as_tensor",
    "check_tensor",
    "edge_order",
    "first_true",
    "index_dtype",
    "join",
    "kept",
    "move",
    "pick",
    "row_ptr_of",
    "row_ptr_of_fan_in",
    "sort_rows",
    "stable_argsort",
]

_INT32_NUMBERS = 2**31


def index_dtype(count: int) -> torch.dtype:
    """Integer type that numbers so many sources, edges or weights."""
    return torch.int32 if count < _INT32_NUMBERS else torch.int64


def stable_argsort(keys: Tensor) -> Tensor:
    """Permutation (int64) that sorts integers ``[E]`` from 0 on, equal ones in their old order."""
    count = keys.numel()
    bits = max(1, count).bit_length()
    if keys.device.type != "cpu" or count == 0 or int(keys.max()).bit_length() + bits > 63:
        return torch.argsort(keys, stable=True)
    # Sorting (key, place) packed into one integer is several times faster than a stable argsort.
    packed = keys.detach().numpy().astype(np.int64) << bits
    packed |= np.arange(count)
    packed.sort()
    packed &= (1 << bits) - 1
    return torch.from_numpy(packed)


def edge_order(site: Tensor, source: Tensor, tap: Tensor | None) -> Tensor:
    """Permutation that sorts edges by (site, source, tap)."""
    order = stable_argsort(source) if tap is None else stable_argsort(tap)
    if tap is not None:
        order = order[stable_argsort(source[order])]
    return order[stable_argsort(site[order])]


def row_ptr_of(site: Tensor, num_sites: int) -> Tensor:
    """Where the edges of each site start, int64 ``[M + 1]``."""
    return row_ptr_of_fan_in(torch.bincount(site, minlength=num_sites))


def row_ptr_of_fan_in(fan_in: Tensor) -> Tensor:
    """Where the edges of each site start, int64 ``[M + 1]``, from how many it has."""
    return torch.cat([fan_in.new_zeros(1), fan_in.cumsum(0)])


def sort_rows(values: Tensor) -> Tensor:
    """Integers ``[M, n]``, sorted row by row."""
    if values.device.type != "cpu":
        return values.sort(1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=1))  # several times faster than torch's


def first_true(flags: Tensor) -> int | None:
    """Index of the first true value, if any."""
    return int(flags.to(torch.uint8).argmax()) if flags.numel() and bool(flags.any()) else None


def move(values: Tensor | None, device: torch.device) -> Tensor | None:
    """Put an edge array that may be absent on a device."""
    return None if values is None else values.to(device)


def pick(values: Tensor | None, edges: Tensor) -> Tensor | None:
    """Take some of an edge array that may be absent, or all in another order."""
    return None if values is None else values[edges]


def join(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Concatenate edge arrays that both exist."""
    return None if first is None or second is None else torch.cat([first, second])


def as_tensor(name: str, values: Tensor | ArrayLike, rule: str) -> Tensor:
    """Tensor of the numbers of an array or of nested lists; `rule` says what they must be."""
    if isinstance(values, Tensor):
        return values
    try:
        array = np.ascontiguousarray(values)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        # A tensor cannot be read-only: what is, is copied.
        return torch.from_numpy(np.require(array, requirements="W"))
    except (TypeError, ValueError) as error:
        raise PatternError(f"`{name}` ({type(values).__name__}) must be {rule}: {error}") from error


def kept(name: str, mask: Tensor | ArrayLike | None, size: int, device: torch.device) -> Tensor:
    """Mask ``[size]`` of what to keep, all when none is given."""
    if mask is None:
        return torch.ones(size, dtype=torch.bool, device=device)
    mask = as_tensor(name, mask, f"booleans [{size}]")
    if mask.dtype != torch.bool or mask.shape != (size,):
        raise PatternError(
            f"`{name}` (shape {tuple(mask.shape)}, {mask.dtype}) must be booleans [{size}]"
        )
    return mask.to(device)


def check_tensor(
    name: str, values: Tensor | None, dtype: torch.dtype, length: int | None, device: torch.device
) -> None:
    """Raise unless an array, where given, has the dtype, the length and the device."""
    if values is None:
        return
    if values.ndim != 1 or values.dtype != dtype:
        raise PatternError(
            f"`{name}` (shape {tuple(values.shape)}, {values.dtype}) must be one-dimensional "
            f"{dtype}"
        )
    if length is not None and values.numel() != length:
        raise PatternError(
            f"`{name}` ({values.numel()} values) must have one value for each of the {length} edges"
        )
    if values.device != device:
        raise PatternError(
            f"`{name}` (on {values.device}) must be on {device} with the other tensors"
        )
