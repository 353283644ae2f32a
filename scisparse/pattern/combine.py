"""Patterns made of others: some of their edges, or all, elsewhere or the other way round."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from scisparse.errors import PatternError
from scisparse.pattern.edges import (
    as_tensor,
    edge_order,
    index_dtype,
    join,
    kept,
    move,
    pick,
    row_ptr_of,
    stable_argsort,
)
from scisparse.pattern.taps import taps_as_in

if TYPE_CHECKING:
    from scisparse.pattern.value import Pattern

__all__ = ["moved", "restrict", "select", "transposed", "union"]


def union(first: Pattern, second: Pattern) -> Pattern:
    """Join the edges of two patterns; see ``Pattern.union``."""
    _check_same_points(first, second)
    second = second.to(first.device)
    source, site = torch.cat([first.to_edge_index(), second.to_edge_index()], dim=1)
    tap = join(first.tap, taps_as_in(second, first))
    order = edge_order(site, source, tap)
    # The sort is stable: of two equal edges the first pattern's comes first, and is kept.
    repeats = torch.ones(max(0, order.numel() - 1), dtype=torch.bool, device=order.device)
    for key in (site, source, tap):
        if key is not None:
            repeats &= key[order].diff() == 0
    order = order[torch.cat([repeats.new_ones(min(1, order.numel())), ~repeats])]
    same_window = first.window == second.window or order.numel() == first.num_edges
    return replace(
        first,
        row_ptr=row_ptr_of(site[order], first.num_sites),
        col=source[order].to(first.col.dtype),
        tap=pick(tap, order),
        distance=pick(join(first.distance, second.distance), order),
        bearing=pick(join(first.bearing, second.bearing), order),
        site_grid=second.site_grid if first.site_grid is None else first.site_grid,
        source_grid=second.source_grid if first.source_grid is None else first.source_grid,
        window=first.window if same_window else None,
        tap_count=None if tap is None else _num_taps(tap, first, second),
    )


def _num_taps(tap: Tensor, first: Pattern, second: Pattern) -> int:
    """Taps of both patterns, some of which have got other numbers."""
    used = int(tap.max()) + 1 if tap.numel() else 0
    return max(used, first.num_taps, second.num_taps)


def restrict(
    pattern: Pattern,
    site_mask: Tensor | ArrayLike | None,
    source_mask: Tensor | ArrayLike | None,
    relabel: bool,
) -> Pattern:
    """Keep the edges between chosen sites and sources; see ``Pattern.restrict``."""
    site_keep = kept("site_mask", site_mask, pattern.num_sites, pattern.device)
    source_keep = kept("source_mask", source_mask, pattern.num_sources, pattern.device)
    site, source = pattern.rows(), pattern.col.long()
    edges = (site_keep[site] & source_keep[source]).nonzero().squeeze(1)
    site, source = site[edges], source[edges]
    num_sites, num_sources = pattern.shape
    if relabel:
        site, num_sites = (site_keep.cumsum(0) - 1)[site], int(site_keep.sum())
        source, num_sources = (source_keep.cumsum(0) - 1)[source], int(source_keep.sum())
    whole = bool(site_keep.all()) and bool(source_keep.all())
    return replace(
        pattern,
        row_ptr=row_ptr_of(site, num_sites),
        col=source.to(index_dtype(num_sources)),
        num_sources=num_sources,
        tap=pick(pattern.tap, edges),
        distance=pick(pattern.distance, edges),
        bearing=pick(pattern.bearing, edges),
        site_grid=None if relabel and site_mask is not None else pattern.site_grid,
        source_grid=None if relabel and source_mask is not None else pattern.source_grid,
        window=pattern.window if whole else None,
        tap_count=None if pattern.tap is None else pattern.num_taps,
    )


def select(pattern: Pattern, edges: Tensor | ArrayLike) -> Pattern:
    """Keep chosen edges; see ``Pattern.select``."""
    rule = f"booleans [{pattern.num_edges}] or int64 numbers of edges"
    edges = as_tensor("edges", edges, rule)
    if edges.dtype == torch.bool:
        edges = kept("edges", edges, pattern.num_edges, pattern.device).nonzero().squeeze(1)
    elif edges.ndim != 1 or (edges.dtype != torch.int64 and edges.numel()):
        raise PatternError(f"`edges` (shape {tuple(edges.shape)}, {edges.dtype}) must be {rule}")
    edges = edges.to(pattern.device, torch.int64)  # a list without numbers is one of floats
    out_of_range = edges.numel() and (int(edges[0]) < 0 or int(edges[-1]) >= pattern.num_edges)
    if out_of_range or bool((edges.diff() <= 0).any()):
        raise PatternError(
            f"`edges` must rise from at least 0 to below the {pattern.num_edges} edges: sort them "
            "and name each once"
        )
    return replace(
        pattern,
        row_ptr=torch.searchsorted(edges, pattern.row_ptr),
        col=pattern.col[edges],
        tap=pick(pattern.tap, edges),
        distance=pick(pattern.distance, edges),
        bearing=pick(pattern.bearing, edges),
        window=pattern.window if edges.numel() == pattern.num_edges else None,
        tap_count=None if pattern.tap is None else pattern.num_taps,
    )


def moved(pattern: Pattern, device: torch.device) -> Pattern:
    """Put the tensors on another device; see ``Pattern.to``."""
    if device == pattern.device:
        return pattern
    return replace(
        pattern,
        row_ptr=pattern.row_ptr.to(device),
        col=pattern.col.to(device),
        tap=move(pattern.tap, device),
        distance=move(pattern.distance, device),
        bearing=move(pattern.bearing, device),
    )


def transposed(pattern: Pattern) -> tuple[Pattern, Tensor]:
    """Swap sites and sources; see ``Pattern.transpose``."""
    order = stable_argsort(pattern.col)
    swapped = replace(
        pattern,
        row_ptr=row_ptr_of(pattern.col, pattern.num_sources),
        col=pattern.rows()[order].to(index_dtype(pattern.num_sites)),
        num_sources=pattern.num_sites,
        tap=pick(pattern.tap, order),
        distance=pick(pattern.distance, order),
        bearing=None,
        site_grid=pattern.source_grid,
        source_grid=pattern.site_grid,
        window=pattern.window.swapped() if pattern.window is not None else None,
        tap_count=None if pattern.tap is None else pattern.num_taps,
    )
    return swapped, order


def _check_same_points(first: Pattern, second: Pattern) -> None:
    if first.shape != second.shape:
        raise PatternError(
            f"`other` (sites x sources {second.shape}) must have this pattern's {first.shape}"
        )
    if (first.tap is None) != (second.tap is None):
        raise PatternError("`other` must have taps exactly when this pattern has: give both taps")
    for name, mine, theirs in (
        ("site_grid", first.site_grid, second.site_grid),
        ("source_grid", first.source_grid, second.source_grid),
    ):
        if mine is not None and theirs is not None and mine != theirs:
            raise PatternError(
                f"`other` must have {name} {mine!r}, not {theirs!r}: build both on one grid"
            )
