"""Memory of large gradients and outputs on the CPU, kept from one step for the next.

A gradient of all edges is as large as the weights, and a training loop frees it in every step. The
system then takes its pages back and hands out others, zeroed and one at a time, which takes longer
than to write the gradient. PyTorch keeps freed memory on GPUs, but not on CPUs.

Gradients: memory is kept for the index buffer of the edges and goes when the layers over it do.
What lies idle is no more than what was in use at once, as if gradients were set to zero in place of
being freed.

Outputs: any layer may take what another has freed. As nothing bounds how many a program holds at
once, what lies idle of them is bounded by a number of bytes, so that large ones are not kept.
Rooms that kernels keep for themselves during a call are lent in the same way, from a store of
their own.

Memory that is lent cannot be resized (``storage.resize_``, an ``out=`` that grows), as NumPy's.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

__all__ = ["empty", "empty_cache", "empty_output", "empty_room"]

# Bytes of a gradient. What is smaller is mostly kept by the system's allocator.
_LEAST = 1 << 20
# Bytes of an output. Up to here glibc keeps what was freed once (DEFAULT_MMAP_THRESHOLD_MAX).
_LEAST_OUTPUT = 32 << 20
_MOST_IDLE = 256 << 20
# After so many requests, what none of them needed is let go.
_WINDOW = 64


class _Kept:
    """Free blocks of memory by their size in bytes, the last one freed last.

    Those beyond `most` bytes are let go, of the size first that was given back longest ago.
    """

    def __init__(self, most: float = math.inf) -> None:
        self._most = most
        self._free: dict[int, list[NDArray[Any]]] = {}
        self._idle: dict[int, int] = {}  # the fewest that were free since the window began
        self._requests = 0

    def take(self, size: int) -> tuple[NDArray[Any], bool]:
        """Give a block of `size` bytes, a free one if there is one, and whether it is new."""
        if self._requests % _WINDOW == 0:
            self._trim()
        self._requests += 1
        blocks = self._free.setdefault(size, [])
        try:
            block, new = blocks.pop(), False
        except IndexError:  # asked first, another thread might take it in between
            block, new = torch.empty(size, dtype=torch.uint8).numpy(), True
        self._idle[size] = min(self._idle.get(size, 0), len(blocks))
        return block, new

    def put(self, block: NDArray[Any]) -> None:
        """Take a block back, unless it alone is too large."""
        size = block.nbytes
        if size > self._most:
            return
        blocks = self._free.pop(size, [])  # the size goes to the end
        blocks.append(block)
        self._free[size] = blocks
        listed = [*self._free.items()]
        beyond = sum(bytes_ * len(free) for bytes_, free in listed) - self._most
        for bytes_, free in listed:
            while beyond > 0 and free:
                del free[:1]
                beyond -= bytes_

    def clear(self) -> None:
        """Let go of what is free."""
        self._free.clear()
        self._idle.clear()

    def _trim(self) -> None:
        """Let go of what nothing needed since the last time: the oldest of each size."""
        idle = self._idle
        needed = {size: blocks[idle.get(size, 0) :] for size, blocks in [*self._free.items()]}
        self._free = {size: blocks for size, blocks in needed.items() if blocks}
        self._idle = {size: len(blocks) for size, blocks in self._free.items()}


_kept: WeakIdKeyDictionary = WeakIdKeyDictionary()
_outputs, _rooms = _Kept(_MOST_IDLE), _Kept(_MOST_IDLE)


def empty(col: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, bool]:
    """Make a tensor like ``torch.empty(shape, dtype=dtype)``, in memory kept for `col`.

    The memory comes back here when the last tensor that shares it is gone.

    Returns
    -------
    tuple
        The tensor, and whether its memory is new.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _LEAST:
        return torch.empty(shape, dtype=dtype), True
    kept = _kept.get(col)
    if kept is None:
        _kept[col] = kept = _Kept()
    return _lend(kept, shape, dtype)


def empty_output(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Make a tensor like ``torch.empty(shape, dtype=dtype)``, where an output was that is gone."""
    return _empty_in(_outputs, shape, dtype)


def empty_room(count: int, dtype: torch.dtype) -> Tensor:
    """Make room for `count` numbers that a kernel keeps for itself, where such a room was."""
    return _empty_in(_rooms, (count,), dtype)


def empty_cache() -> None:
    """Let go of the memory that is kept for large gradients and outputs on the CPU and not in use.

    What comes next takes it anew. ``torch.cuda.empty_cache`` is the same for GPUs.
    """
    _kept.clear()
    _outputs.clear()
    _rooms.clear()


def _empty_in(kept: _Kept, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if math.prod(shape) * dtype.itemsize <= _LEAST_OUTPUT:
        return torch.empty(shape, dtype=dtype)
    return _lend(kept, shape, dtype)[0]


def _lend(kept: _Kept, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, bool]:
    """Make a tensor in a block of `kept`, which comes back there with its storage."""
    block, new = kept.take(math.prod(shape) * dtype.itemsize)
    lent = block[:]  # lives as long as the storage of the tensor
    weakref.finalize(lent, _put_back, weakref.ref(kept), block).atexit = False
    storage = torch.from_numpy(lent).untyped_storage()
    made: Tensor = torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload]
    deterministic: Any = torch.utils.deterministic
    if deterministic.fill_uninitialized_memory and torch.are_deterministic_algorithms_enabled():
        made.fill_(math.nan)  # as torch.empty does, so that what a kernel leaves unwritten shows
    return made, new


def _put_back(kept: weakref.ref[_Kept], block: NDArray[Any]) -> None:
    if (alive := kept()) is not None:
        alive.put(block)
