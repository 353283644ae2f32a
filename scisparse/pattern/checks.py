"""Checks of the values of a pattern: each names the first row or edge that breaks a rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from scisparse.errors import PatternError
from scisparse.pattern.edges import as_tensor, check_tensor, first_true, index_dtype

if TYPE_CHECKING:
    from scisparse.pattern.value import Pattern

__all__ = ["check_fields", "check_pattern", "checked_edge_arrays", "checked_edge_index"]


def check_fields(pattern: Pattern) -> None:
    """Raise unless tensors have their dtype, length and device, and grids their size."""
    check_tensor("row_ptr", pattern.row_ptr, torch.int64, None, pattern.device)
    if pattern.row_ptr.numel() == 0:
        raise PatternError(
            "`row_ptr` (empty) must hold M + 1 values, the first 0; give [0] for no sites"
        )
    if pattern.num_sources < 0:
        raise PatternError(f"`num_sources` (={pattern.num_sources}) must not be negative")
    check_tensor("col", pattern.col, index_dtype(pattern.num_sources), None, pattern.device)
    edges = pattern.num_edges
    check_tensor("tap", pattern.tap, torch.int32, edges, pattern.device)
    check_tensor("distance", pattern.distance, torch.float32, edges, pattern.device)
    check_tensor("bearing", pattern.bearing, torch.float32, edges, pattern.device)
    for name, grid, size in (
        ("site_grid", pattern.site_grid, pattern.num_sites),
        ("source_grid", pattern.source_grid, pattern.num_sources),
    ):
        if grid is not None and grid.size != size:
            raise PatternError(
                f"`{name}` ({grid.size} points) must have the pattern's {size} points"
            )


def check_pattern(pattern: Pattern) -> None:
    """Raise unless rows, sources, taps, their order and the edge arrays are sound."""
    _check_row_ptr(pattern)
    _check_range("col", pattern.col, pattern.num_sources)
    if pattern.tap is not None:
        _check_range("tap", pattern.tap, pattern.num_taps)
    _check_order(pattern)
    for name, values in (("distance", pattern.distance), ("bearing", pattern.bearing)):
        if values is not None and (edge := first_true(~values.isfinite())) is not None:
            raise PatternError(
                f"`{name}` (={float(values[edge])} at edge {edge}) must be finite; drop the edge "
                "or give a value"
            )


def checked_edge_index(
    edge_index: Tensor | ArrayLike, num_sites: int, num_sources: int
) -> tuple[Tensor, Tensor]:
    """Sources and sites, int64 ``[E]`` each, of pairs ``[2, E]``; raise unless within range."""
    pairs = as_tensor("edge_index", edge_index, "integers [2, E]: row 0 sources, row 1 sites")
    # A list without numbers is one of floats.
    if pairs.ndim != 2 or pairs.shape[0] != 2 or not (_holds_integers(pairs) or not pairs.numel()):
        raise PatternError(
            f"`edge_index` (shape {tuple(pairs.shape)}, {pairs.dtype}) must be integers "
            "[2, E]: row 0 sources, row 1 sites"
        )
    source, site = pairs.long()
    _check_range("edge_index[0]", source, num_sources)
    _check_range("edge_index[1]", site, num_sites)
    return source, site


def checked_edge_arrays(
    arrays: Mapping[str, Tensor | ArrayLike | None], site: Tensor
) -> tuple[Tensor | None, ...]:
    """Tensors beside `site` ``[E]``; raise unless of its length, and taps of integers."""
    tensors: list[Tensor | None] = []
    for name, given in arrays.items():
        if given is None:
            tensors.append(None)
            continue
        values = as_tensor(name, given, "one number for each edge").to(site.device)
        if values.shape != site.shape:
            raise PatternError(
                f"`{name}` (shape {tuple(values.shape)}) must have one value for each edge"
            )
        if name == "tap" and not (_holds_integers(values) or not values.numel()):
            raise PatternError(f"`tap` ({values.dtype}) must be integers, places in the stencil")
        tensors.append(values)
    return tuple(tensors)


def _holds_integers(values: Tensor) -> bool:
    dtype = values.dtype
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _check_row_ptr(pattern: Pattern) -> None:
    start, end = int(pattern.row_ptr[0]), int(pattern.row_ptr[-1])
    if start != 0:
        raise PatternError(f"`row_ptr` (starts at {start}) must start at 0")
    if (row := first_true(pattern.fan_in < 0)) is not None:
        raise PatternError(
            f"`row_ptr` must never fall: row {row} goes from {int(pattern.row_ptr[row])} to "
            f"{int(pattern.row_ptr[row + 1])}"
        )
    if end != pattern.num_edges:
        raise PatternError(
            f"`row_ptr` (ends at {end}) must end at the number of edges, {pattern.num_edges}"
        )


def _check_range(name: str, values: Tensor, size: int) -> None:
    if (edge := first_true((values < 0) | (values >= size))) is not None:
        raise PatternError(
            f"`{name}` (={int(values[edge])} at edge {edge}) must lie between 0 and {size - 1}"
        )


def _check_order(pattern: Pattern) -> None:
    rows, col, tap = pattern.rows(), pattern.col, pattern.tap
    same_row = rows[1:] == rows[:-1]
    if (edge := first_true(same_row & (col[1:] < col[:-1]))) is not None:
        raise PatternError(
            f"`col` must rise within a row: row {int(rows[edge])} has {int(col[edge])} before "
            f"{int(col[edge + 1])} at edge {edge + 1}; Pattern.from_edge_index sorts edges"
        )
    same_pair = same_row & (col[1:] == col[:-1])
    repeated = same_pair if tap is None else same_pair & (tap[1:] <= tap[:-1])
    if (edge := first_true(repeated)) is not None:
        rule = "occur once" if tap is None else "occur with rising taps"
        raise PatternError(
            f"`col`: source {int(col[edge])} must {rule} in row {int(rows[edge])}, but repeats at "
            f"edge {edge + 1}; remove repeated edges or give each its own tap"
        )
