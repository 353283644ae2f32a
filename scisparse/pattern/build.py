"""Edges in compressed rows from pairs in any order, and from a dense mask."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from scisparse.errors import PatternError
from scisparse.grids.integers import integer_from
from scisparse.pattern.checks import checked_edge_arrays, checked_edge_index
from scisparse.pattern.edges import as_tensor, edge_order, index_dtype, row_ptr_of
from scisparse.pattern.geometry import edge_geometry

if TYPE_CHECKING:
    from scisparse.pattern.value import Pattern

__all__ = ["EdgeArrays", "dense_edges", "sorted_edges", "with_geometry"]


class EdgeArrays(NamedTuple):
    """Arrays that ride along with the edges, ``[E]`` each."""

    tap: Tensor | ArrayLike | None
    distance: Tensor | ArrayLike | None
    bearing: Tensor | ArrayLike | None


class _Fields(NamedTuple):
    """First fields of a pattern, in their order."""

    row_ptr: Tensor
    col: Tensor
    num_sources: int
    tap: Tensor | None = None
    distance: Tensor | None = None
    bearing: Tensor | None = None


def sorted_edges(
    edge_index: Tensor | ArrayLike, num_sites: int, num_sources: int, arrays: EdgeArrays
) -> _Fields:
    """Sort pairs of sources and sites by row; see ``Pattern.from_edge_index``."""
    num_sites = integer_from("num_sites", num_sites, 0, PatternError)
    num_sources = integer_from("num_sources", num_sources, 0, PatternError)
    source, site = checked_edge_index(edge_index, num_sites, num_sources)
    tap, distance, bearing = checked_edge_arrays(arrays._asdict(), site)
    order = edge_order(site, source, tap)
    return _Fields(
        row_ptr=row_ptr_of(site, num_sites),
        col=source[order].to(index_dtype(num_sources)),
        num_sources=num_sources,
        tap=None if tap is None else tap[order].to(torch.int32),
        distance=None if distance is None else distance[order].to(torch.float32),
        bearing=None if bearing is None else bearing[order].to(torch.float32),
    )


def with_geometry(pattern: Pattern) -> Pattern:
    """Add distances and bearings where they are missing and both grids are there to tell them."""
    sources, sites = pattern.source_grid, pattern.site_grid
    complete = pattern.distance is not None and pattern.bearing is not None
    if complete or sources is None or sites is None:
        return pattern
    places = (t.cpu().numpy() for t in (pattern.col.long(), pattern.rows()))
    distance, bearing = (
        torch.from_numpy(values).to(pattern.device, torch.float32)
        for values in edge_geometry(sources, sites, *places)
    )
    return replace(
        pattern,
        distance=distance if pattern.distance is None else pattern.distance,
        bearing=bearing if pattern.bearing is None else pattern.bearing,
    )


def dense_edges(dense: Tensor | ArrayLike) -> _Fields:
    """List the true entries of a mask by row; see ``Pattern.from_dense``."""
    dense = as_tensor("dense", dense, "booleans [M, N]")
    if dense.ndim != 2 or dense.dtype != torch.bool:
        raise PatternError(
            f"`dense` (shape {tuple(dense.shape)}, {dense.dtype}) must be booleans [M, N]"
        )
    site, source = dense.nonzero(as_tuple=True)
    return _Fields(
        row_ptr=row_ptr_of(site, dense.shape[0]),
        col=source.to(index_dtype(dense.shape[1])),
        num_sources=dense.shape[1],
    )
