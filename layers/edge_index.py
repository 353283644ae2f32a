"""Edges of a graph as callers of torch-geometric give them: checked, and sorted by site."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scisparse.errors import BackendError, PatternError, ShapeError
from scisparse.kernels import Edges, transpose_edges
from scisparse.kernels._modes import is_mapped, values_of

__all__ = ["Graph", "check_edge_index", "index_tensors", "is_traced", "sort_edges"]

_SPARSE = (torch.sparse_coo, torch.sparse_csr)
_INDICES = (torch.int32, torch.int64)


class Graph(NamedTuple):
    """Edges sorted by (site, source), and the place of each in the order they were given in."""

    edges: Edges
    transposed: Edges
    order: Tensor | None


def check_edge_index(edge_index: object, shape: tuple[int, int], reverse: bool) -> Tensor:
    """Return the values of `edge_index`, or raise unless it is ``[2, E]`` or sparse of `shape`.

    Parameters
    ----------
    edge_index
        What the caller gave.
    shape
        Sites and sources that there are.
    reverse
        Whether sites are named before sources, as a sparse tensor cannot.
    """
    if not isinstance(edge_index, Tensor):
        raise ShapeError(
            f"`edge_index` is a {type(edge_index).__name__}; give integers [2, E], or "
            "PatternEdges(pattern) for the edges of a pattern"
        )
    edge_index = values_of(edge_index)
    if is_mapped(edge_index):
        raise BackendError(
            "`edge_index` is mapped by torch.vmap, but a call has one graph; put the graphs side "
            "by side in one, as torch_geometric.data.Batch does"
        )
    if edge_index.layout in _SPARSE:
        if edge_index.shape != shape:
            raise PatternError(
                f"`edge_index` ({edge_index.layout} {list(edge_index.shape)}) must be sites x "
                f"sources, and `x` has {shape}; transpose it if its rows are sources"
            )
        if reverse:
            raise PatternError(
                f"`edge_index` is {edge_index.layout}, whose rows are sites by themselves; give "
                "the layer flow='source_to_target' and transpose the tensor if its rows are sources"
            )
    elif edge_index.layout != torch.strided:
        raise ShapeError(
            f"`edge_index` is {edge_index.layout}; give integers [2, E], or a sparse tensor as "
            "torch.sparse_coo or torch.sparse_csr"
        )
    elif edge_index.dim() != 2 or edge_index.shape[0] != 2 or edge_index.dtype not in _INDICES:
        raise ShapeError(
            f"`edge_index` ({edge_index.dtype} {list(edge_index.shape)}) must be int32 or int64 "
            "[2, E]"
        )
    return edge_index


def is_traced(edge_index: Tensor) -> bool:
    """Whether the values of `edge_index` are not to be looked at, nor what follows from it kept."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.is_functorch_wrapped_tensor(edge_index)
    )


def index_tensors(edge_index: Tensor) -> tuple[Tensor, ...]:
    """Tensors that say which edges there are: of a sparse tensor the indices, not the values."""
    if edge_index.layout == torch.sparse_coo:
        return (edge_index._indices(),)  # as they are: in this order features and weights are
    if edge_index.layout == torch.sparse_csr:
        return edge_index.crow_indices(), edge_index.col_indices()
    return (edge_index,)


def sort_edges(edge_index: Tensor, shape: tuple[int, int], reverse: bool) -> Graph:
    """Sort the edges of a graph by (site, source); their values are checked where it is no wait."""
    sites, sources = shape
    source, site = _source_and_site(edge_index, reverse)
    _check_values(source, site, shape, is_traced(edge_index))
    order = torch.argsort(site * sources + source, stable=True)
    bounds = torch.arange(sites + 1, device=site.device)
    row_ptr = torch.searchsorted(site[order], bounds)
    col = source[order]
    return Graph(Edges(row_ptr, col, None), transpose_edges(row_ptr, col, sources), order)


def _source_and_site(edge_index: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """Both ends of each edge, int64 ``[E]``, in the order they were given in."""
    first, *rest = index_tensors(edge_index)
    if rest:
        (col,) = rest
        number = torch.arange(edge_index.shape[0], device=col.device)
        return col.long(), number.repeat_interleave(first.diff(), output_size=col.shape[0])
    source, site = first.long()
    return (site, source) if reverse or edge_index.layout == torch.sparse_coo else (source, site)


def _check_values(source: Tensor, site: Tensor, shape: tuple[int, int], traced: bool) -> None:
    if not source.is_cpu:
        return
    sites, sources = shape
    if traced:
        inside = (source >= 0) & (source < sources) & (site >= 0) & (site < sites)
        message = "`edge_index` names a source or a site that `x` has not"
        torch._assert_async(inside.all(), message)
    elif source.numel():
        low = int(torch.minimum(source.min(), site.min()))
        high = int(source.max()), int(site.max())
        if low < 0 or high[0] >= sources or high[1] >= sites:
            raise PatternError(
                f"`edge_index` runs from {low} to {high[0]} (sources) and {high[1]} (sites); there "
                f"are {sources} sources and {sites} sites"
            )
