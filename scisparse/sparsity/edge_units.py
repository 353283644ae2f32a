"""Taps and sites as wholes, where edges move: all candidates of a unit are active, or none."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.sparsity.candidates import AllPairs, CandidateEdges
from scisparse.sparsity.growth import Growth
from scisparse.sparsity.search import Search
from scisparse.sparsity.structures import Sites, Structure, Taps

__all__ = ["EdgeUnits", "units_of"]


@dataclass(frozen=True)
class EdgeUnits:
    """Candidates that stand or fall together.

    Units go by the mean score of their edges, and as many are active as come nearest to the number
    of edges that is asked for, the fewer of two equally near, at least one. That number may lie
    between two whole ones: weights that are asked for need not be those of whole edges.

    Parameters
    ----------
    candidates
        All edges that may be.
    of
        Unit of candidates, given by their numbers, int64 ``[n]``.
    sizes
        Candidates of each unit, int64 ``[U]``.
    """

    candidates: CandidateEdges
    of: Callable[[Tensor], Tensor]
    sizes: Tensor

    def means(self, numbers: Tensor, score: Tensor) -> Tensor:
        """Mean score of each unit over some candidates, float64 ``[U]``, -infinity for none."""
        unit = self.of(numbers)
        count = torch.bincount(unit, minlength=self.sizes.numel())
        total = torch.zeros(self.sizes.shape, dtype=torch.float64)
        total.index_add_(0, unit, score.double())
        return torch.where(count > 0, total / count, -torch.inf)

    def draw(self, numbers: Tensor, generator: torch.Generator) -> Tensor:
        """A random number for each of some candidates, the same one for all of a unit, ``[n]``."""
        return torch.rand(self.sizes.numel(), generator=generator)[self.of(numbers)]

    def best(self, score: Tensor, edges: float) -> Tensor:
        """Mark those with the highest scores ``[U]`` that come nearest to so many edges."""
        order = score.argsort(descending=True, stable=True)
        order = order[(score[order] > -torch.inf) & (self.sizes[order] > 0)]
        total = torch.cat([torch.zeros(1, dtype=torch.int64), self.sizes[order].cumsum(0)])
        chosen = torch.zeros(score.shape, dtype=torch.bool)
        chosen[order[: int((total.double() - edges).abs().argmin())]] = True
        return chosen

    def reached(self, edges: float) -> int:
        """How many edges may be left of those asked for: largest units first, and one at least."""
        chosen = self.best(self.sizes.double(), edges)
        return max(int(self.sizes[chosen].sum()), int(self.sizes[self.sizes > 0].min()))

    def edges(self, chosen: Tensor) -> Tensor:
        """Numbers of the candidates of marked units, rising."""
        parts = [
            numbers[chosen[self.of(numbers)]]
            for chunk in self.candidates.chunks(1)
            for numbers in [torch.arange(chunk.first, chunk.last)]
        ]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def refilled(
        self,
        active: Tensor,
        score: Tensor,
        edges: float,
        drop: float,
        growth: Growth | None,
        search: Callable[[Tensor], Search],
        generator: torch.Generator,
    ) -> Tensor:
        """Numbers of the edges of units that stay and come; parameters as in the two parts.

        `search` tells of the candidates besides those that stay.
        """
        kept = self.kept(active, score, edges, 0.0 if growth is None else drop)
        if growth is not None:
            kept |= self.grown(kept, edges, search(self.edges(kept)), growth, generator)
        return self.edges(kept)

    def kept(self, active: Tensor, score: Tensor, edges: float, drop: float) -> Tensor:
        """Mark units that stay when a fraction goes, and no more edges are left than asked for.

        Parameters
        ----------
        active, score
            Numbers of active candidates and their scores, ``[E]``.
        edges
            How many there are to be.
        drop
            Fraction of the active units that go.

        Returns
        -------
        Tensor
            Booleans ``[U]``.
        """
        means = self.means(active, score)
        there = int((means > -torch.inf).sum())
        stays = max(min(1, there), there - math.floor(drop * there))
        last = means.argsort(descending=True, stable=True)[stays:]
        kept = self.best(means.index_fill(0, last, -torch.inf), edges)
        if there and edges and not bool(kept.any()):
            kept[means.argmax()] = True
        return kept

    def grown(
        self,
        kept: Tensor,
        edges: float,
        search: Search,
        growth: Growth,
        generator: torch.Generator,
    ) -> Tensor:
        """Mark the best units besides those kept, until there are so many edges, ``[U]``.

        Where one edge may not grow, its unit may not.
        """
        total = torch.zeros(self.sizes.shape, dtype=torch.float64)
        count = torch.zeros(self.sizes.shape, dtype=torch.int64)
        drawn = torch.rand(self.sizes.numel(), generator=generator) if growth.draws else None
        for chunk in self.candidates.chunks(search.numbers):
            score = search.score(chunk, growth, generator).double()
            may = score > -torch.inf
            unit = self.of(torch.arange(chunk.first, chunk.last)[may])
            if drawn is not None:
                score[may] = drawn[unit].double()
            total.index_add_(0, unit, score[may])
            count += torch.bincount(unit, minlength=count.numel())
        means = torch.where((count == self.sizes) & ~kept, total / count, -torch.inf)
        return self.best(means, max(0, edges - int(self.sizes[kept].sum())))


def units_of(structure: Structure, candidates: CandidateEdges, name: str) -> EdgeUnits | None:
    """Units of a structure over candidates; ``None`` where each edge is one.

    Raises
    ------
    OptionError
        Edges have no taps.
    """
    if isinstance(structure, Sites):
        return EdgeUnits(candidates, lambda n: candidates.ends(n)[0], candidates.fan_in)
    if not isinstance(structure, Taps):
        return None
    if isinstance(candidates, AllPairs) or candidates.pattern.tap is None:
        raise OptionError(
            f"the edges that {name} may have are without taps; give a wider window as `candidates`"
        )
    tap, count = candidates.pattern.tap.long(), candidates.pattern.num_taps
    return EdgeUnits(candidates, lambda n: tap[n], torch.bincount(tap, minlength=count))
