"""The best candidates for new edges, looked for in chunks of rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scisparse.sparsity.candidates import CandidateEdges, Chunk
from scisparse.sparsity.far import FarSlots
from scisparse.sparsity.growth import Candidates, Growth
from scisparse.sparsity.link_prediction import Links
from scisparse.sparsity.ranks import average
from scisparse.sparsity.select import best_of_groups

__all__ = ["Search", "norms"]


def norms(blocks: Tensor) -> Tensor:
    """Root of the sum of squares of each block ``[n, ...]``, float32 ``[n]``."""
    size: Tensor = blocks.float().reshape(len(blocks), -1).norm(dim=1)
    return size


@dataclass(frozen=True, kw_only=True)
class Search:
    """What is known of a layer's candidates.

    Parameters
    ----------
    candidates
        All edges that may be.
    active, explored
        Rising numbers of those that are, and of those that were at some time.
    gradients
        Gives the gradients of the candidates in a chunk, ``[n, ...]``, since the last change of
        weights; ``None`` where there are none. Candidates with NaN, which would read what is
        missing, are never grown.
    momentum
        Running mean of the gradients of all candidates, ``[n, C, O]``, if there is one.
    far
        Far slots, which alone may be filled then.
    block
        Weights of one edge.
    numbers
        Numbers that the score of a candidate is made of.
    size
        Makes sizes ``[n]`` of gradients ``[n, ...]``: at least 0, or -infinity for none.
    missing
        Sources that no edge may read now, booleans ``[N]``; ``None`` where none are known.
    """

    candidates: CandidateEdges
    active: Tensor
    explored: Tensor
    gradients: Callable[[Chunk], Tensor] | None
    momentum: Tensor | None
    far: FarSlots | None
    block: int
    numbers: int
    size: Callable[[Tensor], Tensor] = norms
    missing: Tensor | None = None

    def best(
        self, group: Tensor | None, left: Tensor, growth: Growth, generator: torch.Generator
    ) -> Tensor:
        """Numbers of the best candidates that are not active, ``left[g]`` for each group of sites.

        Memory is that of a chunk and of what is found, however many candidates there are.
        """
        by_site = group is not None and torch.equal(group, torch.arange(group.numel()))
        found, found_score = torch.empty(0, dtype=torch.int64), torch.empty(0)
        for chunk in self.candidates.chunks(self.numbers):
            sites = slice(chunk.first_site, chunk.last_site)
            if by_site and not bool(left[sites].any()):
                continue
            values = self.score(chunk, growth, generator)
            if by_site:  # a chunk holds all candidates of its sites
                places = self.candidates.best_of_sites(chunk, values, left[sites])
                found = torch.cat([found, places + chunk.first])
                continue
            found = torch.cat([found, torch.arange(chunk.first, chunk.last)])
            found_score = torch.cat([found_score, values])
            of_candidate = None if group is None else group[self.candidates.ends(found)[0]]
            chosen = best_of_groups(found_score, of_candidate, left)
            found, found_score = found[chosen], found_score[chosen]
        return found

    def score(self, chunk: Chunk, growth: Growth, generator: torch.Generator) -> Tensor:
        """Scores of the candidates in a chunk, minus infinity where nothing may grow."""
        found = self._describe(chunk, growth, generator)
        score = growth.evaluate(found)
        kind = torch.promote_types(score.dtype, torch.float32)
        values = score.to(kind, copy=True)  # it may be what was described
        values[chunk.places(self.active)] = -torch.inf
        for size in (found.gradient, found.momentum):
            if size is not None:
                values[size == -torch.inf] = -torch.inf
        if self.missing is not None:
            source = self.candidates.ends(torch.arange(chunk.first, chunk.last))[1]
            values[self.missing[source]] = -torch.inf
        if self.far is not None:
            values[~self.far.may_grow(chunk)] = -torch.inf
        return values

    def _sizes(self, gradients: Tensor) -> Tensor:
        """Sizes ``[n]``, -infinity where a source is missing: an edge would make the site NaN."""
        size = self.size(gradients)
        return size.masked_fill(size.isnan(), -torch.inf)

    def _describe(self, chunk: Chunk, growth: Growth, generator: torch.Generator) -> Candidates:
        known: dict[str, Any] = {}
        if growth.needs_gradient and self.gradients is not None:
            known["gradient"] = self._sizes(average(self.gradients(chunk))).cpu()
        if self.momentum is not None:
            known["momentum"] = self._sizes(self.momentum[chunk.first : chunk.last])
        if growth.needs_explored:
            known["explored"] = torch.zeros(chunk.count, dtype=torch.bool)
            known["explored"][chunk.places(self.explored)] = True
        if growth.needs_degrees or growth.needs_sites or growth.needs_links:
            site, source = self.candidates.ends(torch.arange(chunk.first, chunk.last))
            known["site"] = site - chunk.first_site
        if growth.needs_links:
            pattern = self.candidates.select(self.active)
            ends = (pattern.num_sources, site, source)
            known["links"] = Links(pattern.row_ptr, pattern.col, *ends)
        if growth.needs_degrees:
            pattern = self.candidates.select(self.active)
            sources = torch.bincount(pattern.col.long(), minlength=pattern.num_sources)
            known |= {"site_degree": pattern.fan_in[site], "source_degree": sources[source]}
        if growth.needs_distance:
            known["distance"] = self.candidates.distance(chunk)
        return Candidates(chunk.count, generator, block=self.block, **known)
