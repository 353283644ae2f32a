"""Edges that may be grown: those of a pattern, or all pairs, in chunks of rows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scisparse.errors import CheckpointError, PatternError
from scisparse.kernels.gather_matmul import edge_outer
from scisparse.layers.rewiring import match_edges
from scisparse.pattern import Pattern
from scisparse.sparsity.distances import distance_on_grids
from scisparse.sparsity.select import best_of_groups, best_of_rows

__all__ = [
    "AllPairs",
    "CandidateEdges",
    "Chunk",
    "Listed",
    "Pass",
    "check_saved",
    "is_finite_at",
    "missing_as_nan",
]

_NUMBERS_AT_ONCE = 1 << 22


class Pass(NamedTuple):
    """Sources ``[B, N, C]`` and gradient at the sites ``[B, M, O]`` of one backward pass.

    Sources that no edge reads, ``~read [N]``, may be missing, as over land: they are NaN then, and
    so are the gradients of the candidates that would read them.
    """

    x: Tensor
    grad: Tensor
    read: Tensor

    @classmethod
    def of(cls, x: Tensor, grad: Tensor, col: Tensor) -> Pass:
        """What a layer with edges from the sources `col` has multiplied.

        Copies, as compiled code uses memory again.
        """
        read = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
        read[col.long()] = True
        return cls(missing_as_nan(x.detach(), read), grad.detach().clone(), read)

    def is_finite(self) -> bool:
        """Whether gradients and the sources that are read are."""
        return bool(self.grad.isfinite().all()) and is_finite_at(self.x, self.read)


def missing_as_nan(values: Tensor, used: Tensor) -> Tensor:
    """Copy ``[B, n, ...]`` with NaN for what is not finite at points that are not `used`, ``[n]``.

    Infinity would not do: an overflow on land would become the largest gradient of all.
    """
    there = used.reshape(-1, *[1] * (values.dim() - 2))
    return values.masked_fill(~(values.isfinite() | there), torch.nan)


def is_finite_at(values: Tensor, used: Tensor) -> bool:
    """Whether ``[B, n, ...]`` is finite at all points that are `used`, booleans ``[n]``."""
    there = used.reshape(-1, *[1] * (values.dim() - 2))
    return bool((values.isfinite() | ~there).all())


@dataclass(frozen=True)
class Chunk:
    """Candidates `first` to `last` - 1: all those of sites `first_site` to `last_site` - 1."""

    first_site: int
    last_site: int
    first: int
    last: int

    @property
    def count(self) -> int:
        """Number of candidates."""
        return self.last - self.first

    def factors(self, one: Pass) -> tuple[Tensor, Tensor]:
        """Sources and the gradient at the sites of the chunk, wide enough for their products.

        Candidates are many and none is held back by its weight: of 16-bit numbers some overflow.
        """
        wide = torch.promote_types(one.x.dtype, torch.float32)
        return one.x.to(wide), one.grad[:, self.first_site : self.last_site].to(wide)

    def places(self, numbers: Tensor) -> Tensor:
        """Places in the chunk of those of rising candidate `numbers` that lie in it."""
        first, last = torch.searchsorted(numbers, torch.tensor([self.first, self.last])).tolist()
        return numbers[first:last] - self.first


@dataclass(frozen=True)
class Listed:
    """The edges of a pattern; an edge's number is its place."""

    pattern: Pattern

    @cached_property
    def description(self) -> str:
        """What they are: numbers mean the same edges where this is the same."""
        sha = hashlib.sha256()
        for values in (self.pattern.row_ptr, self.pattern.col):
            sha.update(values.to("cpu", torch.int64).numpy().tobytes())
        return f"{self.size} edges ({sha.hexdigest()[:16]})"

    @property
    def size(self) -> int:
        """Number of candidates."""
        return self.pattern.num_edges

    @property
    def fan_in(self) -> Tensor:
        """Candidates of each site, int64 ``[M]``."""
        return self.pattern.fan_in

    def numbers(self, pattern: Pattern) -> Tensor:
        """Numbers of the edges of `pattern`, rising, int64 ``[E]``."""
        numbers = match_edges(self.pattern, pattern)
        if numbers.numel() and int(numbers.min()) < 0:
            count = int((numbers < 0).sum())
            raise PatternError(
                f"`candidates` lack {count} of the layer's {pattern.num_edges} edges; join them: "
                "layer.pattern.union(wider)"
            )
        return numbers

    def ends(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Site and source of candidates, int64 ``[n]``."""
        site = torch.searchsorted(self.pattern.row_ptr, numbers, right=True) - 1
        return site, self.pattern.col[numbers].long()

    def select(self, numbers: Tensor) -> Pattern:
        """Pattern of some candidates, given by rising numbers."""
        return self.pattern.select(numbers)

    def chunks(self, block: int) -> Iterator[Chunk]:
        """All candidates, whole rows at a time; `block` numbers are needed for each."""
        row_ptr = self.pattern.row_ptr
        step = max(1, _NUMBERS_AT_ONCE // max(1, block))
        first, sites = 0, self.pattern.num_sites
        while first < sites:
            last = int(torch.searchsorted(row_ptr, row_ptr[first] + step, right=True)) - 1
            last = min(max(last, first + 1), sites)
            yield Chunk(first, last, int(row_ptr[first]), int(row_ptr[last]))
            first = last

    def gradients(self, chunk: Chunk, passes: list[Pass]) -> Tensor:
        """Gradient with respect to the weight of each candidate, ``[n, C, O]``; NaN: not known."""
        row_ptr = self.pattern.row_ptr[chunk.first_site : chunk.last_site + 1] - chunk.first
        device = passes[0].x.device
        row_ptr = row_ptr.to(device)
        col = self.pattern.col[chunk.first : chunk.last].to(device)
        parts = [
            edge_outer(x, grad.contiguous(), row_ptr, col) for x, grad in map(chunk.factors, passes)
        ]
        return torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]

    def distance(self, chunk: Chunk) -> Tensor | None:
        """Metres between the ends of each candidate; ``None`` without distances and grids."""
        if self.pattern.distance is not None:
            return self.pattern.distance[chunk.first : chunk.last]
        ends = self.ends(torch.arange(chunk.first, chunk.last))
        return distance_on_grids(self.pattern, *ends)

    def best_of_sites(self, chunk: Chunk, score: Tensor, quota: Tensor) -> Tensor:
        """Places of the ``quota[i]`` highest scores of each site of the chunk, rising."""
        site = self.ends(torch.arange(chunk.first, chunk.last))[0] - chunk.first_site
        return best_of_groups(score, site, quota).nonzero().squeeze(1)


@dataclass(frozen=True)
class AllPairs:
    """Every source for every site, never written out; a pair's number is ``site * N + source``."""

    like: Pattern

    @property
    def description(self) -> str:
        """What they are: numbers mean the same edges where this is the same."""
        return f"all pairs of {self.like.num_sites} sites and {self.like.num_sources} sources"

    @property
    def size(self) -> int:
        """Number of candidates."""
        return self.like.num_sites * self.like.num_sources

    @property
    def fan_in(self) -> Tensor:
        """Candidates of each site, int64 ``[M]``."""
        return torch.full((self.like.num_sites,), self.like.num_sources)

    def numbers(self, pattern: Pattern) -> Tensor:
        """Numbers of the edges of `pattern`, rising, int64 ``[E]``."""
        numbers = pattern.rows() * self.like.num_sources + pattern.col.long()
        if bool((numbers.diff() == 0).any()):
            raise PatternError(
                "the layer reads a source twice at one site (padding repeats it), so its edges "
                "cannot be told apart by their ends; give `candidates` as a Pattern with taps"
            )
        return numbers

    def ends(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Site and source of candidates, int64 ``[n]``."""
        sources = max(1, self.like.num_sources)
        return numbers // sources, numbers % sources

    def select(self, numbers: Tensor) -> Pattern:
        """Pattern of some candidates, given by rising numbers."""
        sites, sources = self.like.shape
        return replace(
            self.like,
            row_ptr=torch.searchsorted(numbers, torch.arange(sites + 1) * sources),
            col=self.ends(numbers)[1].to(self.like.col.dtype),
            tap=None,
            distance=None,
            bearing=None,
            window=None,
            tap_count=None,
        )

    def chunks(self, block: int) -> Iterator[Chunk]:
        """All candidates, whole rows at a time; `block` numbers are needed for each."""
        sites, sources = self.like.shape
        step = max(1, _NUMBERS_AT_ONCE // max(1, sources * block))
        for first in range(0, sites, step):
            last = min(first + step, sites)
            yield Chunk(first, last, first * sources, last * sources)

    def gradients(self, chunk: Chunk, passes: list[Pass]) -> Tensor:
        """Gradient with respect to the weight of each candidate, ``[n, C, O]``; NaN: not known."""
        total = torch.zeros(0)
        for k, (x, grad) in enumerate(map(chunk.factors, passes)):
            part = torch.einsum("bmo,bnc->mnco", grad, x).flatten(0, 1)
            total = part if k == 0 else total + part
        return total

    def distance(self, chunk: Chunk) -> Tensor | None:
        """Metres between the ends of each candidate; ``None`` without grids."""
        ends = self.ends(torch.arange(chunk.first, chunk.last))
        return distance_on_grids(self.like, *ends)

    def best_of_sites(self, chunk: Chunk, score: Tensor, quota: Tensor) -> Tensor:
        """Places of the ``quota[i]`` highest scores of each site of the chunk, rising."""
        matrix = score.reshape(-1, self.like.num_sources)
        return best_of_rows(matrix, quota)


CandidateEdges = Listed | AllPairs


def check_saved(state: Mapping[str, Any], candidates: CandidateEdges, size: int, name: str) -> None:
    """Raise unless saved numbers are of edges among these candidates.

    Parameters
    ----------
    state
        Of the layer that was saved: its candidates, described, and its size among others.
    candidates, size, name
        Of the layer that is to go on from it.

    Raises
    ------
    CheckpointError
        They are of others: the layer would read other sources than it was trained with.
    """
    saved = f"{state['candidates']} for {state['size']} weights"
    ours = f"{candidates.description} for {size} weights"
    if saved != ours:
        raise CheckpointError(
            f"the saved edges of {name} are some of {saved}, its candidates here are {ours}: build "
            "model and sparsifier with the same `candidates`, before either loads its state"
        )
