"""What a pattern holds: as one digest, as numbers, as a line."""

from __future__ import annotations

import hashlib
from dataclasses import astuple
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scisparse.pattern.value import Pattern

__all__ = ["Value", "describe", "digest", "repeats", "statistics"]


class Value:
    """What never changes: copies are the same, so that no copy of a model writes to a pattern."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def digest(pattern: Pattern) -> str:
    """Compute the SHA-256 of the content; see ``Pattern.fingerprint``."""
    window = None if pattern.window is None else astuple(pattern.window)
    grids = [None if g is None else g.fingerprint for g in (pattern.site_grid, pattern.source_grid)]
    sha = hashlib.sha256(repr((pattern.shape, pattern.num_taps, window, grids)).encode())
    for values in (pattern.row_ptr, pattern.col, pattern.tap, pattern.distance, pattern.bearing):
        sha.update(b"none" if values is None else values.cpu().numpy().tobytes())
    return sha.hexdigest()


def describe(pattern: Pattern) -> str:
    """Sizes in one line, the repr of a pattern."""
    if pattern.device.type == "meta" or torch.compiler.is_compiling():  # vmap asks for names
        fan_in = "unknown"
    else:
        low, high = map(int, pattern.fan_in.aminmax()) if pattern.num_sites else (0, 0)
        fan_in = f"{low}" if low == high else f"{low} to {high}"
    points = f"{pattern.num_sites} sites x {pattern.num_sources} sources"
    return f"Pattern({points}, {pattern.num_edges} edges, fan-in {fan_in})"


def statistics(pattern: Pattern) -> dict[str, float]:
    """Count edges and rows; see ``Pattern.statistics``."""
    fan_in, sites = pattern.fan_in, pattern.num_sites
    return {
        "edges": pattern.num_edges,
        "density": pattern.num_edges / max(1, sites * pattern.num_sources),
        "fan_in_min": int(fan_in.min()) if sites else 0,
        "fan_in_mean": pattern.num_edges / max(1, sites),
        "fan_in_max": int(fan_in.max()) if sites else 0,
        "empty_rows": int((fan_in == 0).sum()),
        "duplicates": int(repeats(pattern).sum()),
    }


def repeats(pattern: Pattern) -> Tensor:
    """Whether each edge joins the same pair as the one before it, booleans ``[E]``."""
    rows, col = pattern.rows(), pattern.col
    same = torch.zeros(pattern.num_edges, dtype=torch.bool, device=pattern.device)
    same[1:] = (rows[1:] == rows[:-1]) & (col[1:] == col[:-1])
    return same
