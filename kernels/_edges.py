"""Edges as the operators take them: two directions of a pattern, and copies side by side."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from scisparse.errors import PatternError, ShapeError
from scisparse.kernels._segments import site_of_edge

__all__ = [
    "Edges",
    "check_edges",
    "check_is_transpose",
    "check_places",
    "check_rows",
    "check_transpose",
    "is_transpose",
    "side_by_side",
    "sort_by_tie",
    "transpose_edges",
]

_INT32_EDGES = 2**31
_INDICES = (torch.int32, torch.int64)


class Edges(NamedTuple):
    """One direction of a pattern: ``row_ptr [M + 1]``, ``col [E]`` and ``tie [E]``, edge to weight.

    ``tie=None`` means that edge ``e`` has weight ``e``.
    """

    row_ptr: Tensor
    col: Tensor
    tie: Tensor | None

    def to(self, device: torch.device | str) -> Edges:
        """Return the same edges on `device`."""
        tie = None if self.tie is None else self.tie.to(device)
        return Edges(self.row_ptr.to(device), self.col.to(device), tie)

    def dense(self) -> Edges:
        """Return the same edges, each tensor in one piece of memory."""
        tie = None if self.tie is None else self.tie.contiguous()
        return Edges(self.row_ptr.contiguous(), self.col.contiguous(), tie)


def transpose_edges(
    row_ptr: Tensor, col: Tensor, num_sources: int, tie: Tensor | None = None
) -> Edges:
    """Return the same edges seen from the sources: row `j` lists the sites that read source `j`.

    Examples
    --------
    >>> import torch
    >>> row_ptr, col = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 2])
    >>> edges = transpose_edges(row_ptr, col, num_sources=3)
    >>> edges.row_ptr.tolist(), edges.col.tolist(), edges.tie.tolist()
    ([0, 1, 1, 3], [0, 0, 1], [0, 1, 2])
    """
    site = site_of_edge(row_ptr, col.numel())
    col_sorted, order = torch.sort(col.long(), stable=True)
    bounds = torch.arange(num_sources + 1, device=col.device)
    if tie is None:
        tie_t = order.to(torch.int32) if col.numel() < _INT32_EDGES else order
    else:
        tie_t = tie[order]
    return Edges(torch.searchsorted(col_sorted, bounds), site[order].to(col.dtype), tie_t)


def is_transpose(edges_t: Edges, edges: Edges, num_sources: int) -> bool:
    """Whether `edges_t` are `edges` seen from the sources."""
    expected = transpose_edges(edges.row_ptr, edges.col, num_sources, edges.tie)
    count = torch.arange(edges.col.numel(), device=edges.col.device)
    pairs = zip(edges_t[:2], expected[:2], strict=True)
    ties = [count if e.tie is None else e.tie.long() for e in (edges_t, expected)]
    return all(torch.equal(a.long(), b.long()) for a, b in pairs) and torch.equal(*ties)


def check_is_transpose(edges_t: Edges, edges: Edges, num_sources: int) -> None:
    """Raise unless `edges_t` are `edges` seen from the sources."""
    if not is_transpose(edges_t, edges, num_sources):
        raise PatternError(
            "`transpose` is not the transpose of the edges; make it with transpose_edges()"
        )


def check_rows(row_ptr: Tensor) -> None:
    """Raise unless rows have the type of indices."""
    if row_ptr.dim() != 1 or row_ptr.dtype != torch.int64 or row_ptr.shape[0] < 1:
        raise ShapeError(
            f"`row_ptr` is {row_ptr.dtype} {list(row_ptr.shape)}; it must be int64 [M + 1]"
        )


def check_edges(row_ptr: Tensor, col: Tensor) -> None:
    """Raise unless rows and sources have the types of indices."""
    check_rows(row_ptr)
    if col.dim() != 1 or col.dtype not in _INDICES:
        raise ShapeError(f"`col` is {col.dtype} {list(col.shape)}; it must be int32 or int64 [E]")


def check_places(**tensors: Tensor | None) -> None:
    """Raise unless all tensors that are given lie on one device: a mixture would be misread."""
    devices = {name: t.device for name, t in tensors.items() if t is not None}
    if len(set(devices.values())) > 1:
        found = ", ".join(f"`{name}` on {device}" for name, device in devices.items())
        raise ShapeError(
            f"tensors lie on several devices: {found}; move them to one (a layer built on meta: "
            "to_empty() before its state is loaded)"
        )


def check_transpose(edges_t: Edges | None, edges: Edges, num_sources: int) -> None:
    """Raise unless transposed edges, if given, fit in sizes, types and device.

    Kernels would read out of bounds otherwise; :func:`check_is_transpose` looks at the values.
    """
    if edges_t is None:
        return
    row_ptr, col, tie = edges_t
    device, count = edges.col.device, edges.col.shape
    fits = (
        row_ptr.shape == (num_sources + 1,)
        and row_ptr.dtype == torch.int64
        and row_ptr.device == device
        and all(
            t is not None and t.shape == count and t.dtype in _INDICES and t.device == device
            for t in (col, tie)
        )
    )
    if not fits:
        raise PatternError(
            f"`transpose` has {row_ptr.shape[0] - 1} sources and {col.shape[0]} edges on "
            f"{col.device}; there are {num_sources} and {count[0]} on {device}: make it with "
            "transpose_edges()"
        )


def sort_by_tie(
    row_ptr: Tensor, col: Tensor, tie: Tensor, num_weights: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sort edges by tie: where each tie begins, and the source and the site of the sorted edges.

    The sum over the edges of a weight is then one over neighbours, in the order of the edges.
    """
    sorted_tie, order = torch.sort(tie, stable=True)
    bounds = torch.arange(num_weights + 1, device=tie.device, dtype=tie.dtype)
    site = site_of_edge(row_ptr, col.numel()).to(col.dtype)
    return torch.searchsorted(sorted_tie, bounds), col[order], site[order]


def side_by_side(edges: Edges, copies: int, sources: int, weights: int) -> Edges:
    """Return `copies` of the same edges, each with sites, sources and weights of its own.

    `sources` and `weights` are how many of them a copy has; 0 `sources` where all share them.

    Examples
    --------
    >>> edges = Edges(torch.tensor([0, 2, 3]), torch.tensor([0, 2, 2]), None)
    >>> twice = side_by_side(edges, 2, sources=3, weights=3)
    >>> twice.row_ptr.tolist(), twice.col.tolist(), twice.tie
    ([0, 2, 3, 5, 6], [0, 2, 2, 3, 5, 5], None)
    """
    count = edges.col.numel()
    copy = torch.arange(copies, device=edges.col.device)[:, None]
    row_ptr = torch.cat([edges.row_ptr[:1], (edges.row_ptr[1:] + copy * count).flatten()])
    col = _shifted(edges.col, copy * sources, copies * sources)
    tie = edges.tie
    return Edges(
        row_ptr, col, tie if tie is None else _shifted(tie, copy * weights, copies * weights)
    )


def _shifted(index: Tensor, by: Tensor, end: int) -> Tensor:
    wide = index.dtype == torch.int64 or end >= _INT32_EDGES
    return (index.long() + by).flatten().to(torch.int64 if wide else torch.int32)
