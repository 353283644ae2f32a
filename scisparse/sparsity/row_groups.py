"""Which sites share a number of edges that move, and how many each group of them keeps."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.pattern import Pattern
from scisparse.sparsity.budgets import AreaWeighted, Budget, Regions
from scisparse.sparsity.candidates import CandidateEdges
from scisparse.sparsity.labels import SiteLabels, site_order
from scisparse.sparsity.structures import ConstantFanIn, Sites, Structure, Taps, Unstructured

__all__ = ["RowGroups", "groups_of_budget", "row_groups"]


class RowGroups(Protocol):
    """Says which sites share a number of edges, and how many each group of them keeps."""

    def __call__(self, count: int) -> tuple[Tensor | None, Tensor]:
        """Group of each site (``None``: one group) and edges of each group, for `count` edges."""


def row_groups(
    structure: Structure,
    budget: Budget,
    edges: CandidateEdges,
    fan_in: Tensor,
    pattern: Pattern,
) -> RowGroups:
    """Say which sites share edges, as a structure or a budget has it.

    Parameters
    ----------
    structure, budget
        Of a sparsifier.
    edges
        Candidates.
    fan_in
        Edges of each site that sparsity is a fraction of, int64 ``[M]``.
    pattern
        Of the layer, for the areas of its sites.

    Raises
    ------
    OptionError
        The structure is none of edges that move.
    """
    limit = edges.fan_in
    if isinstance(structure, Taps | Sites) and isinstance(budget, Regions | AreaWeighted):
        raise OptionError(
            f"{structure!r} are active as wholes, whatever a budget gives to single sites; leave "
            "`budget` out, or choose structure='unstructured'"
        )
    if isinstance(budget, Regions | AreaWeighted):
        return groups_of_budget(budget, limit, fan_in, pattern)
    if isinstance(structure, ConstantFanIn):

        def constant(count: int) -> tuple[Tensor, Tensor]:
            sites = max(1, int((limit > 0).sum()))
            return torch.arange(len(limit)), limit.clamp(max=max(1, round(count / sites)))

        return constant
    if not isinstance(structure, Unstructured | Taps | Sites):
        raise OptionError(
            f"{structure!r} does not fit the edges of a pattern that move; choose 'unstructured', "
            "'constant_fan_in', 'taps' or 'sites', or a method that only prunes"
        )
    return lambda count: (None, torch.tensor([count]))


def groups_of_budget(
    budget: Regions | AreaWeighted,
    limit: Tensor,
    fan_in: Tensor,
    pattern: Pattern,
    final: float | None = None,
) -> RowGroups:
    """Say which sites share edges, as a budget has it.

    Parameters
    ----------
    budget
        By sites.
    limit
        Edges that each site may have, int64 ``[M]``.
    fan_in
        Edges of each site that sparsity is a fraction of, int64 ``[M]``.
    pattern
        Of the layer, for its grid.
    final
        Sparsity of the layer at the end, where it is pruned gradually.
    """
    total = int(fan_in.sum())
    if isinstance(budget, Regions):
        labels = SiteLabels.of(budget.labels).of_sites("labels", pattern, "the layer")

        def by_region(count: int) -> tuple[Tensor, Tensor]:
            sparsity = max(0.0, 1 - count / max(1, total))
            progress = min(1.0, sparsity / final) if final else 1.0
            return budget.groups(fan_in, sparsity, progress, labels)

        return by_region
    areas = _areas(budget, pattern)

    def by_area(count: int) -> tuple[Tensor, Tensor]:
        group, quota = budget.groups(fan_in, max(0.0, 1 - count / max(1, total)), areas)
        return group, quota.minimum(limit)

    return by_area


def _areas(budget: AreaWeighted, pattern: Pattern) -> Tensor | None:
    """Area of each site, ``[M]``, of the budget or else of the grid."""
    if budget.areas is None:
        grid = pattern.site_grid
        return None if grid is None else torch.tensor(grid.areas).reshape(-1)
    order = site_order("areas", budget.areas, pattern, "the layer")
    return budget.given.reshape(-1) if order is None else budget.given.reshape(-1)[order]
