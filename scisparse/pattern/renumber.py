"""The same edges between sites and sources that are numbered in another order."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from scisparse.errors import PatternError
from scisparse.grids import Grid, UnstructuredGrid
from scisparse.pattern.edges import as_tensor, edge_order, pick, row_ptr_of

if TYPE_CHECKING:
    from scisparse.pattern.value import Pattern

__all__ = ["reorder", "reordered"]


def reorder(
    pattern: Pattern, site_order: Tensor | ArrayLike, source_order: Tensor | ArrayLike | None
) -> Pattern:
    """Number sites and sources anew; see ``Pattern.reorder``."""
    if source_order is None:
        sites, sources = pattern.shape
        if sites != sources:
            raise PatternError(
                f"`source_order` must be given: {sites} sites and {sources} sources cannot have "
                "one order"
            )
        source_order = site_order
    return reordered(pattern, site_order, source_order)[0]


def reordered(
    pattern: Pattern,
    site_order: Tensor | ArrayLike | None = None,
    source_order: Tensor | ArrayLike | None = None,
) -> tuple[Pattern, Tensor]:
    """Number sites, or sources, or both anew, and tell where each edge went.

    Parameters
    ----------
    pattern
        M sites, N sources, E edges.
    site_order, source_order
        int64 ``[M]`` and ``[N]``: old number of the new site or source 0, 1 and so on; numbers stay
        where not given.

    Returns
    -------
    Pattern
        As that of ``Pattern.reorder``.
    torch.Tensor
        int64 ``[E]``: old number of each new edge, such that ``weight[edges]`` are the weights.

    Raises
    ------
    PatternError
        An order is no permutation.

    Examples
    --------
    >>> import torch
    >>> from scisparse.pattern import Pattern
    >>> pattern = Pattern.from_dense(torch.tensor([[1, 1, 0], [0, 0, 1]]).bool())
    >>> new, edges = reordered(pattern, site_order=torch.tensor([1, 0]))
    >>> new.to_dense().int().tolist(), edges.tolist()
    ([[0, 0, 1], [1, 1, 0]], [2, 0, 1])
    """
    site_at = _checked("site_order", site_order, pattern.num_sites, pattern.device)
    source_at = _checked("source_order", source_order, pattern.num_sources, pattern.device)
    site, source = pattern.rows(), pattern.col.long()
    site = site if site_at is None else site_at.argsort()[site]
    source = source if source_at is None else source_at.argsort()[source]
    edges = edge_order(site, source, pattern.tap)
    new = replace(
        pattern,
        row_ptr=row_ptr_of(site, pattern.num_sites),
        col=source[edges].to(pattern.col.dtype),
        tap=pick(pattern.tap, edges),
        distance=pick(pattern.distance, edges),
        bearing=pick(pattern.bearing, edges),
        site_grid=_moved(pattern.site_grid, site_at),
        source_grid=_moved(pattern.source_grid, source_at),
        window=pattern.window if site_at is source_at is None else None,
        tap_count=None if pattern.tap is None else pattern.num_taps,
    )
    return new, edges


def _checked(
    name: str, order: Tensor | ArrayLike | None, size: int, device: torch.device
) -> Tensor | None:
    """Raise unless an order is a permutation; ``None`` for one that changes nothing."""
    if order is None:
        return None
    order = as_tensor(name, order, f"int64 [{size}]")
    if order.dtype != torch.int64 or order.shape != (size,):
        raise PatternError(f"`{name}` ({order.dtype} {list(order.shape)}) must be int64 [{size}]")
    order, same = order.to(device), torch.arange(size, device=device)
    if not torch.equal(order.sort().values, same):
        raise PatternError(f"`{name}` must be a permutation: name each number below {size} once")
    return None if torch.equal(order, same) else order


def _moved(grid: Grid | None, order: Tensor | None) -> Grid | None:
    """Points in another order, which have no rows and columns; none in the plane."""
    if grid is None or order is None:
        return grid
    return UnstructuredGrid.from_grid(grid, order.cpu().numpy()) if grid.spherical else None
