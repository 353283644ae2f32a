"""Far slots ("teleconnections"): free edges beside the local ones, and the test that empties them.

Growth fills every slot, also where there is nothing to find. At the end an *audit* tells the two
apart: for some steps all far weights are held at 0, and for each the gradient at 0 is compared with
its own spread over samples (Rao's score test with the empirical Fisher information). With ``S``
samples ``u = x[source] * dL/dy[site]``, ``z = sum(u) / sqrt(sum(u^2))`` is close to a standard
normal where the weight has no effect, whatever the scale of the loss; with several channels the sum
of squares of their z is close to a chi-square. A slot that fails may still take a candidate whose
gradient stands out from those of all other candidates of its site, and is emptied else.

A sample that comes again, as where the whole data set is one batch, tells nothing new: ``z`` is
divided by the root of how often each one has come (:func:`repeats`). And what a slot holds has been
chosen among all sources by the same data: so many tests are made, and the chance of each is as
many times smaller (Bonferroni).

The tests look at one edge at a time: a source that goes along with a true one passes as well.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from scisparse.pattern import Pattern
from scisparse.sparsity.candidates import CandidateEdges, Chunk, Pass
from scisparse.sparsity.growth import Candidates, Growth

__all__ = [
    "AUDIT_STEPS",
    "SIGNIFICANCE",
    "Audit",
    "AuditState",
    "FarSlots",
    "outstanding",
    "repeats",
    "warn_of_few",
]

#: Steps for which far weights are held at 0 to see which have an effect, and how sure that must be.
AUDIT_STEPS = 8
SIGNIFICANCE = 1e-3

_EDGES_AT_ONCE = 1 << 14


class FarSlots:
    """Which candidates are far, and which of them may be grown.

    Parameters
    ----------
    candidates
        All edges that may be.
    local
        Edges that stay; sites and sources without one, such as land, get no far edge.
    slots
        Far edges of a site.
    """

    def __init__(self, candidates: CandidateEdges, local: Pattern, slots: int) -> None:
        self.candidates, self.local, self.slots = candidates, local, slots
        self._numbers = candidates.numbers(local)
        self._sites = local.fan_in > 0
        self._sources = torch.zeros(local.num_sources, dtype=torch.bool)
        self._sources[local.col.long()] = True

    @property
    def sources(self) -> int:
        """How many sources a slot may hold."""
        return max(1, int(self._sources.sum()))

    def fixed(self, active: Tensor) -> Tensor:
        """Mark those of some candidates, given by their numbers, that stay."""
        fixed: Tensor = torch.isin(active, self._numbers, assume_unique=True)
        return fixed

    def may_grow(self, chunk: Chunk) -> Tensor:
        """Mark the candidates in a chunk that a slot may hold."""
        sites, sources = self._sites, self._sources
        if chunk.count == (chunk.last_site - chunk.first_site) * len(sources):  # all pairs
            may = (sites[chunk.first_site : chunk.last_site, None] & sources).reshape(-1)
        else:
            site, source = self.candidates.ends(torch.arange(chunk.first, chunk.last))
            may = sites[site] & sources[source]
        may[chunk.places(self._numbers)] = False
        return may

    def quota(self) -> Tensor:
        """Edges of each site, local and far, int64 ``[M]``."""
        wanted = self.local.fan_in + torch.where(self._sites, self.slots, 0)
        return wanted.minimum(self.candidates.fan_in)

    def row_groups(self, count: int) -> tuple[Tensor, Tensor]:
        """Group of each site, itself, and its edges; however many edges there are altogether."""
        return torch.arange(self.local.num_sites), self.quota()


def warn_of_few(name: str, samples: int, least: float) -> None:
    """Say where an audit must empty all slots, as it has seen too little."""
    if samples <= least:
        warnings.warn(
            f"the audit of the far slots of {name} empties them: it has seen {samples} different "
            f"samples, and nothing can be significant with {math.floor(least)} or fewer; let each "
            f"of the last {AUDIT_STEPS} steps see {math.floor(least) // AUDIT_STEPS + 1} or more, "
            "no two the same",
            stacklevel=2,
        )


def repeats(samples: Sequence[Tensor]) -> float:
    """How often each of the samples of some steps has come, in the mean, at least 1.

    Two are the same if they are ten times nearer to each other than two samples of a step are in
    the median: layers before may have learned a little between two steps.

    Parameters
    ----------
    samples
        What the layer has read in each step, ``[B, ...]``; NaN where a source is missing.

    Examples
    --------
    >>> x = torch.randn(4, 9)
    >>> repeats([x, x + 1e-3, torch.randn(4, 9)])
    1.5
    """
    flat = [x.detach().flatten(1).cpu().double().nan_to_num() for x in samples if x.shape[0]]
    if not flat:
        return 1.0
    generator = torch.Generator().manual_seed(0)
    by = torch.randn(flat[0].shape[1], 64, generator=generator, dtype=torch.float64)
    points = torch.cat([x @ by for x in flat])
    first = points[: len(flat[0])]
    usual = torch.pdist(first).median() if len(first) > 1 else points.new_zeros(())
    again, begin = 0, 0
    for x in flat:
        own, before = points[begin : begin + len(x)], points[:begin]
        if len(before):
            again += int((torch.cdist(own, before).amin(1) < 0.1 * usual).sum())
        begin += len(x)
    return len(points) / (len(points) - again)


class AuditState:
    """How far a running test is, and everything that it needs to go on."""

    steps = 0  #: with finite gradients
    passes = 0  #: that these steps have given

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        return copy.deepcopy(vars(self) | {"steps": self.steps, "passes": self.passes})

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Go on where :meth:`state_dict` was taken."""
        audit = cls.__new__(cls)
        vars(audit).update(copy.deepcopy(state))
        return audit


class Audit(AuditState):
    """A running test of some edges of a layer.

    Parameters
    ----------
    weight
        Weights ``[E, ...]`` of the layer.
    rows
        Edges under test, int64 ``[n]``.
    site, source
        Their ends, int64 ``[n]``.
    copies
        Weights of copies on the same edges, such as moving averages, to which zeros are no news.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        rows: Tensor,
        site: Tensor,
        source: Tensor,
        *,
        copies: Sequence[Tensor | None] = (),
    ) -> None:
        self.rows, self.site, self.source = rows, site, source
        self.values, *self.averages = (
            None if one is None else one.detach()[rows.to(one.device)].clone()
            for one in (weight, *copies)
        )
        shape = (rows.numel(), math.prod(weight.shape[1:]))
        self.total, self.squares = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
        self.hold(weight)

    @torch.no_grad()
    def hold(self, weight: nn.Parameter) -> None:
        """Set the weights under test to 0."""
        weight[self.rows.to(weight.device)] = 0

    @torch.no_grad()
    def restore(self, weight: nn.Parameter, copies: Sequence[Tensor | None] = ()) -> None:
        """Set them back, also in copies that were known when the test began."""
        values = (self.values, *self.averages)
        for one, known in zip((weight, *copies), values, strict=False):
            if one is not None and known is not None:
                one[self.rows.to(one.device)] = known.to(one)

    def add(self, passes: list[Pass]) -> None:
        """Add the samples of one step."""
        for x, grad, _ in passes:
            for first in range(0, self.rows.numel(), _EDGES_AT_ONCE):
                part = slice(first, first + _EDGES_AT_ONCE)
                u = x[:, self.source[part].to(x.device)].double()
                g = grad[:, self.site[part].to(grad.device)].double()
                self.total[part] += torch.einsum("bec,beo->eco", u, g).flatten(1).cpu()
                squares = torch.einsum("bec,beo->eco", u.square(), g.square())
                self.squares[part] += squares.flatten(1).cpu()

    def passed(self, significance: float, repeats: float = 1.0) -> Tensor:
        """Mark the edges whose effect is significant, booleans ``[n]``.

        Parameters
        ----------
        significance
            Chance that an edge without an effect passes.
        repeats
            How often each sample was seen: as often it has been added.
        """
        statistic = (self.total.square() / self.squares.clamp(min=1e-300)).sum(1)
        return statistic / repeats > self.bound(significance)

    def bound(self, significance: float) -> float:
        """What the statistic must be above; with S samples it is S times the block at most."""
        log_p = torch.tensor(math.log(significance), dtype=torch.float64)
        return float(_chi_square_bound(self.total.shape[1], log_p))


def outstanding(significance: float) -> Growth:
    """Growth by gradient where it stands out from those of all other candidates of the site.

    Parameters
    ----------
    significance
        Chance that a site without any effect gets an edge, if gradients were normal.
    """

    def score(candidates: Candidates) -> Tensor:
        assert candidates.gradient is not None
        assert candidates.site is not None
        size, site = candidates.gradient.clamp(min=0), candidates.site  # 0: a source is missing
        sites = int(site[-1]) + 1 if site.numel() else 0
        count = torch.bincount(site, minlength=sites)
        squares = torch.zeros(sites).index_add_(0, site, size.square())
        variance = squares / (count * candidates.block).clamp(min=1)
        bound = _chi_square_bound(candidates.block, math.log(significance) - count.log())
        return torch.where(size.square() > (variance * bound)[site], size, -torch.inf)

    return Growth("outstanding", score, needs_gradient=True, needs_sites=True)


def _chi_square_bound(dof: int, log_p: Tensor) -> Tensor:
    """Bound that a chi-square passes with at most the probability ``exp(log_p)``.

    Laurent, B., Massart, P. (2000). Adaptive estimation of a quadratic functional by model
    selection. https://doi.org/10.1214/aos/1015957395
    """
    return dof + 2 * (-dof * log_p).sqrt() - 2 * log_p
