"""The audit of far slots of attention, whose edges carry no weights that could be held at 0.

For some steps the layer does without the edges under test, and for each it is asked whether the
loss misses it. With ``a`` the share of attention that an edge would take, ``g`` the gradient at
its site and ``v`` the value of its source, two samples are taken of each batch entry::

    u = sum over the heads of a g . (v - y)                           what the edge would do
    u' = sum over the heads of a (g - mean of g) . (v - mean of v)    what its source tells

with means over the batch. For ``S`` samples ``z = sum(u) / sqrt(sum(u^2))`` is close to a standard
normal where there is nothing (Rao's score test with the empirical Fisher information), and far
below 0 where the loss would fall. An edge passes by the larger one of its two ``z``. The first
alone passes wherever attention blurs a site, as any further source dilutes the row; the second is
0, in the mean, for sources that do not go along with what the site lacks. None is below
``-sqrt(S)``: with few samples nothing stands out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from scisparse.sparsity.attention_effects import Prospects
from scisparse.sparsity.candidates import CandidateEdges, Chunk
from scisparse.sparsity.far import AuditState
from scisparse.sparsity.ranks import total

__all__ = ["AttentionAudit", "certainty", "evidence", "normal_bound"]


def normal_bound(probability: float) -> float:
    """What a standard normal number is below with a probability."""
    return float(torch.special.ndtri(torch.tensor(probability, dtype=torch.float64)))


def evidence(prospects: Iterable[Prospects], count: int) -> Tensor:
    """Sums of the samples of some candidates, and of their squares, ``[4, n]``.

    The first two are of what edges would do, the others of what their sources tell.

    Parameters
    ----------
    prospects
        What they would do, for some batch entries after others.
    count
        How many they are.
    """
    sums = torch.zeros(4, count, dtype=torch.float64)
    for some in prospects:
        samples = (some.effects.double(), some.news.double())
        parts = [(u.sum(0), u.square().sum(0)) for u in samples]
        sums += torch.stack([number for part in parts for number in part]).cpu()
    return sums


def certainty(sums: Tensor) -> Tensor:
    """Largest ``z`` of sums and sums of squares in turn, ``[n]``; 0 where there is no spread."""
    total, squares = sums[0::2], sums[1::2]
    return torch.where(squares > 0, total / squares.sqrt(), 0).amax(0)


class AttentionAudit(AuditState):
    """A running test of edges that an attention layer does without.

    Parameters
    ----------
    numbers
        Candidates under test, rising, int64 ``[n]``.
    """

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    def passed(
        self,
        candidates: CandidateEdges,
        prospects: Callable[[Chunk], Iterable[Prospects]],
        width: int,
        significance: float,
    ) -> Tensor:
        """Mark the edges that the loss misses, booleans ``[n]``.

        Parameters
        ----------
        candidates
            All of them.
        prospects
            Gives what all candidates in a chunk would do, some batch entries at a time.
        width
            Numbers that a sample of a candidate is made of.
        significance
            Chance that a source which tells nothing passes.
        """
        sums = torch.zeros(4, self.numbers.numel(), dtype=torch.float64)
        first = 0
        for chunk in candidates.chunks(width):
            places = chunk.places(self.numbers)
            if not places.numel():
                continue
            part = slice(first, first + places.numel())
            sums[:, part] = evidence(prospects(chunk), chunk.count)[:, places]
            first = part.stop
        return certainty(total(sums)) < normal_bound(significance)
