"""Edges in compressed rows from pairs in any order, and from a dense mask."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scisparse.errors import PatternError
from scisparse.pattern.checks import check_edge_arrays, check_edge_index
from scisparse.pattern.edges import col_dtype, edge_order, row_ptr_of

__all__ = ["EdgeArrays", "dense_edges", "sorted_edges"]


class EdgeArrays(NamedTuple):
    """Arrays that ride along with the edges, ``[E]`` each."""

    tap: Tensor | None
    distance: Tensor | None
    bearing: Tensor | None


class _Fields(NamedTuple):
    """First fields of a pattern, in their order."""

    row_ptr: Tensor
    col: Tensor
    num_sources: int
    tap: Tensor | None = None
    distance: Tensor | None = None
    bearing: Tensor | None = None


def sorted_edges(
    edge_index: Tensor, num_sites: int, num_sources: int, arrays: EdgeArrays
) -> _Fields:
    """Sort pairs of sources and sites by row; see ``Pattern.from_edge_index``."""
    check_edge_index(edge_index, num_sites, num_sources)
    source, site = edge_index.long()
    check_edge_arrays(arrays._asdict(), len(site))
    tap, distance, bearing = arrays
    order = edge_order(site, source, tap)
    return _Fields(
        row_ptr=row_ptr_of(site, num_sites),
        col=source[order].to(col_dtype(num_sources)),
        num_sources=num_sources,
        tap=None if tap is None else tap[order].to(torch.int32),
        distance=None if distance is None else distance[order].to(torch.float32),
        bearing=None if bearing is None else bearing[order].to(torch.float32),
    )


def dense_edges(dense: Tensor) -> _Fields:
    """List the true entries of a mask by row; see ``Pattern.from_dense``."""
    if dense.ndim != 2 or dense.dtype != torch.bool:
        raise PatternError(
            f"`dense` (shape {tuple(dense.shape)}, {dense.dtype}) must be booleans [M, N]"
        )
    site, source = dense.nonzero(as_tuple=True)
    return _Fields(
        row_ptr=row_ptr_of(site, dense.shape[0]),
        col=source.to(col_dtype(dense.shape[1])),
        num_sources=dense.shape[1],
    )
