"""Checks of index values before a kernel runs; off unless asked for: each is a pass over them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from scisparse.errors import PatternError

__all__ = ["check_edges", "check_ends", "check_ends_for", "debug_mode", "is_debugging"]

# A plain variable, not a context variable: autograd may run the backward pass on another thread.
_enabled: bool | None = None  # not asked yet


@contextmanager
def debug_mode(enabled: bool = True) -> Iterator[None]:
    """Check all index values of every kernel call inside the block, backward passes included.

    Kernels trust their indices: one out of range reads or writes foreign memory.
    ``SCISPARSE_DEBUG=1`` in the environment does the same for a whole program, from its start. On a
    GPU each check waits for the device.

    Raises
    ------
    PatternError
        In the block, at the first index that breaks the contract.

    Examples
    --------
    >>> import torch
    >>> from scisparse.kernels import debug_mode, gather_matmul
    >>> x, weight = torch.ones(1, 3, 1), torch.ones(1, 1, 1)
    >>> with debug_mode():
    ...     gather_matmul(x, weight, torch.tensor([0, 1]), torch.tensor([7]))
    Traceback (most recent call last):
    scisparse.errors.PatternError: `col` (=7 at edge 0) must be at least 0 and below 3 sources
    """
    global _enabled
    before, _enabled = _enabled, enabled
    try:
        yield
    finally:
        _enabled = before


def is_debugging() -> bool:
    """Whether :func:`debug_mode` or ``SCISPARSE_DEBUG=1`` is on."""
    global _enabled
    if _enabled is None:  # once, as a look at the environment takes longer than a small check
        _enabled = os.environ.get("SCISPARSE_DEBUG", "") not in ("", "0")
    return _enabled


def check_edges(
    row_ptr: Tensor, col: Tensor, tie: Tensor | None, num_sources: int, num_weights: int
) -> None:
    """Raise unless rows never fall, sources and weights exist, and edges are in order."""
    if (row := _first(row_ptr.diff() < 0)) is not None:
        low, high = int(row_ptr[row]), int(row_ptr[row + 1])
        raise PatternError(f"`row_ptr` must never fall: row {row} goes from {low} to {high}")
    check_ends(row_ptr, col.numel())
    for name, index, size, what in (
        ("col", col, num_sources, "sources"),
        ("tie", tie, num_weights, "weights"),
    ):
        if index is not None and (edge := _first((index < 0) | (index >= size))) is not None:
            hint = "; has it passed 32 bits?" if int(index[edge]) < 0 else ""
            raise PatternError(
                f"`{name}` (={int(index[edge])} at edge {edge}) must be at least 0 and below "
                f"{size} {what}{hint}"
            )
    falls = col.diff() < 0
    starts = row_ptr[1:-1]
    falls[starts[(starts > 0) & (starts < col.numel())] - 1] = False  # between two rows
    if (edge := _first(falls)) is not None:
        raise PatternError(
            f"`col` falls from {int(col[edge])} to {int(col[edge + 1])} inside the row of edge "
            f"{edge}; edges must be sorted by (row, col)"
        )


def check_ends_for(backend: str, row_ptr: Tensor, num_edges: int) -> None:
    """Check what the C++ kernels check themselves; on a GPU it would be a wait."""
    if backend != "cpu" and row_ptr.is_cpu:
        check_ends(row_ptr, num_edges)


def check_ends(row_ptr: Tensor, num_edges: int) -> None:
    """Raise unless rows run from 0 to the last edge: otherwise kernels read out of bounds."""
    start, end = int(row_ptr[0]), int(row_ptr[-1])
    if (start, end) != (0, num_edges):
        raise PatternError(
            f"`row_ptr` runs from {start} to {end}; it must run from 0 to the number of edges, "
            f"{num_edges}"
        )


def _first(mask: Tensor) -> int | None:
    """Index of the first true value."""
    return int(torch.nonzero(mask)[0]) if mask.any() else None
