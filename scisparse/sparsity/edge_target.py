"""Layers over patterns whose edges move: which are active, what goes and what comes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scisparse.pattern import Pattern
from scisparse.sparsity.areas import by_area
from scisparse.sparsity.candidates import CandidateEdges, Chunk, Listed, check_saved
from scisparse.sparsity.edge_units import EdgeUnits
from scisparse.sparsity.far import AuditState, FarSlots
from scisparse.sparsity.growth import Growth, random
from scisparse.sparsity.momentum import running_mean, scale_of
from scisparse.sparsity.ranks import agree, average, every
from scisparse.sparsity.row_groups import RowGroups
from scisparse.sparsity.search import Search, norms
from scisparse.sparsity.select import best, best_of_groups, count_of_groups, places
from scisparse.sparsity.structures import ConstantFanIn
from scisparse.sparsity.target import Move, Rules, Target
from scisparse.sparsity.watches import Watches

__all__ = ["EdgeTarget"]


class EdgeTarget(Target):
    """Layer over a pattern whose edges move.

    Active edges are the layer's own; all else is kept as candidate numbers. A change with as
    many edges as before leaves every tensor in its place. Subclasses say what edges carry: how it
    moves along, what scores are made of, and what is kept of backward passes to make them.

    Parameters
    ----------
    name, layer
        Name in the model, and the layer.
    candidates
        Edges that it may have; they include those that it has.
    reference
        Edges of each site that sparsity is a fraction of, int64 ``[M]``.
    row_groups
        Structure or budget by sites.
    far
        Far slots, which alone move then.
    ablation
        Structure whose sites may lose all their edges to others.
    units
        Edges that stand or fall together.
    """

    layer: Any

    def __init__(
        self,
        name: str,
        layer: nn.Module,
        candidates: CandidateEdges,
        reference: Tensor,
        row_groups: RowGroups,
        far: FarSlots | None = None,
        ablation: ConstantFanIn | None = None,
        units: EdgeUnits | None = None,
    ) -> None:
        self.name, self.module, self.layer = name, layer, layer
        self.candidates, self.reference, self._row_groups = candidates, reference, row_groups
        self.size = int(reference.sum()) * self.block
        self.far, self._ablation, self._units = far, ablation, units
        self._fan_in: Tensor | None = None  # of ablated structures
        self._room = 0  # edges that there must be room for at least, once it is sparse
        self._pattern: Pattern = self.layer.pattern
        self._current = candidates.numbers(self._pattern)
        self.goal = self.count
        self._ever = self._current
        self._passes: list[Any] = []
        self._watches = Watches()
        self._started = False  # before, tensors may change their size
        self._momentum: Tensor | None = None
        self._copies: list[Any] = []
        self._audit: AuditState | None = None
        # From now on the layer's buffers are its own, and known by their place in memory.
        self._rewire(candidates.select(self._current), torch.arange(self._current.numel()), None)
        self._pattern = self.layer.pattern

    # -- what subclasses say ---------------------------------------------------------------------

    @property
    @abstractmethod
    def block(self) -> int:
        """Weights of one edge."""

    @abstractmethod
    def _rewire(self, pattern: Pattern, kept: Tensor, rules: Rules | None) -> None:
        """Give layer and copies a pattern; `kept` is the old number of each edge, -1 if new."""

    @abstractmethod
    def _recorders(self) -> list[tuple[Tensor, Callable[..., Any]]]:
        """Index buffers to watch, and what makes a pass of what operators over each report."""

    @abstractmethod
    def _gradients(self, chunk: Chunk) -> Tensor:
        """Gradients of the candidates in a chunk, ``[n, ...]``; NaN: not known."""

    @abstractmethod
    def _score(self, rules: Rules) -> Tensor:
        """Scores of active edges, larger = kept, ``[E]``, in single precision at least."""

    def _size(self, gradients: Tensor) -> Tensor:
        """What growth by gradient goes by, at least 0, ``[n]`` of ``[n, ...]``."""
        return norms(gradients)

    @property
    def _like(self) -> nn.Parameter:
        """A tensor on the layer's device."""
        return next(self.module.parameters())

    # -- sizes -----------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """(sites, mean edges per site times weights per edge)."""
        sites = max(1, self.layer.pattern.num_sites)
        return (sites, max(1, round(self.size / sites)))

    @property
    def active(self) -> Tensor:
        """Numbers of the edges that the layer has, rising; it may have loaded others meanwhile."""
        if self.layer.pattern is not self._pattern:
            self._pattern = self.layer.pattern
            self._current = self.candidates.numbers(self._pattern)
        return self._current

    @property
    def count(self) -> int:
        """Weights of active edges."""
        return self.active.numel() * self.block

    @property
    def explored(self) -> int:
        """Weights of edges that have been active at some time of the training."""
        return self._ever.numel() * self.block

    @property
    def numbers(self) -> int:
        """Numbers that the score of a candidate is made of."""
        return self.block

    # -- gradients -------------------------------------------------------------------------------

    def record(self, gradients: bool) -> None:
        """Begin or end to keep backward passes; an audit keeps those before."""
        if not self.in_audit:
            self._forget()
        if not gradients:
            return self.release()
        self._watches.start(self._recorders(), self._leaf, self._passes)

    def _forget(self) -> None:
        """Drop the passes that were kept."""
        self._passes.clear()

    def release(self) -> None:
        """End all watches."""
        self._watches.stop()

    def reattach(self, like: Target) -> None:
        """Record as the target that this is a copy of."""
        if isinstance(like, EdgeTarget) and like._watches:
            self._watches.start(self._recorders(), self._leaf, self._passes)

    @property
    def has_gradients(self) -> bool:
        """Whether there were backward passes since it began to record."""
        return bool(self._passes)

    def gather(self, rules: Rules) -> None:
        """Keep the running mean of the gradients of all candidates."""
        if rules.growth is None or not rules.growth.needs_momentum:
            return
        if not every(bool(self._passes) and self.finite(), self._like):
            return
        parts = [self._gradients(chunk).cpu() for chunk in self.candidates.chunks(self.numbers)]
        recorded = average(torch.cat(parts) if parts else torch.empty(0))
        self._momentum = running_mean(self._momentum, recorded / self._scale(rules))

    def _scale(self, rules: Rules) -> float:
        """What passes of the last step are multiplied by, in units of what the optimizer uses."""
        made, leaf = self._watches.gradient, self._leaf
        if not every(made is not None, self._like) or made is None or leaf is None:
            return 1.0
        return scale_of(average(made), leaf.grad, getattr(rules.optimizer, "grad_scale", None))

    # -- audit of far slots ----------------------------------------------------------------------

    @abstractmethod
    def begin_audit(self, rules: Rules) -> None:
        """Do without all far edges from now on."""

    @abstractmethod
    def end_audit(self, significance: float, rules: Rules) -> Move:
        """Give back the far edges that have an effect, and empty the other slots."""

    @property
    def in_audit(self) -> bool:
        """Whether far slots are under test."""
        return self._audit is not None

    def continue_audit(self) -> int:
        """Count this step if its gradients are finite, else forget it; how many there were."""
        audit = self._audit
        if audit is None:
            return 0
        new = self._passes[audit.passes :]
        whole = bool(new) and all(one.is_finite() for one in new)
        good = every(whole, self._like)
        if not good:
            del self._passes[audit.passes :]
        audit.passes, audit.steps = len(self._passes), audit.steps + good
        return audit.steps

    # -- changes -------------------------------------------------------------------------------

    def reached(self, count: int) -> int:
        """How many weights groups of sites keep, or whole units."""
        edges, units = count / self.block, self._units
        if units is not None:
            return units.reached(edges) * self.block
        return int(self._row_groups(round(edges))[1].sum()) * self.block

    def sparsify(self, count: int, rules: Rules) -> None:
        """Keep edges at random, at first of those that the layer has."""
        self.goal = count
        edges = round(count / self.block)
        if self._ablation is not None:  # it may use what rounding the fan-in leaves
            self._room = count // self.block
        elif self._units is not None:  # whole units may be more than asked for
            self._room = min(self.candidates.size, edges + int(self._units.sizes.max()))
        drawn = self._draw(rules)
        if self._units is not None:
            active = self._whole_units(drawn, count, 0.0, random(), rules)
        else:
            active = self._refill(drawn, *self._row_groups(edges), random(), rules)
        self._set(agree(active), rules)
        self._started = True

    def begin(self) -> None:
        """Count what has been active from now on."""
        self._ever = self.active

    def change(self, count: int, drop: float, rules: Rules) -> Move:
        """Drop a fraction of the edges that may move, then grow until there are `count` weights."""
        self._started = True
        score = self._importance(rules)
        if self._units is not None:
            active = self._whole_units(score, count, drop, rules.growth, rules)
            return self._set(agree(active), rules)
        if self.far is not None:
            score[self.far.fixed(self.active)] = torch.inf
        may_go = int((score < torch.inf).sum())
        drops = math.floor(drop * may_go) if rules.growth is not None else 0
        group, quota = self._row_groups(round(count / self.block))
        kept = best(score, score.numel() - drops)
        if self._ablation is not None and drop and rules.growth is not None:
            quota = self._ablated(self.active[kept], quota, count // self.block, rules)
        score = torch.where(kept, score, -torch.inf)
        return self._set(agree(self._refill(score, group, quota, rules.growth, rules)), rules)

    def _refill(
        self,
        score: Tensor,
        group: Tensor | None,
        quota: Tensor,
        growth: Growth | None,
        rules: Rules,
    ) -> Tensor:
        """The best of what is active, and of the others what each group of sites then lacks."""
        of_edge = None if group is None else group[self.candidates.ends(self.active)[0]]
        kept = best_of_groups(score, of_edge, quota)
        left = quota - count_of_groups(kept, of_edge, quota)
        active = self.active[kept]
        return active if growth is None else self._grow(active, group, left, growth, rules)

    def _ablated(self, kept: Tensor, quota: Tensor, count: int, rules: Rules) -> Tensor:
        """Fan-in of each site, from the edges that there would be without structure."""
        assert self._ablation is not None
        assert rules.growth is not None
        left = torch.tensor([count - kept.numel()])
        free = self._grow(kept, None, left, rules.growth, rules)
        salient = torch.bincount(self.candidates.ends(free)[0], minlength=quota.numel())
        before = quota if self._fan_in is None else self._fan_in
        inputs = int(self.candidates.fan_in.max())
        self._fan_in = agree(self._ablation.ablated(salient, before, count, inputs))
        return self._fan_in.minimum(self.candidates.fan_in)

    def _draw(self, rules: Rules) -> Tensor:
        """A random number for each active edge, the same one for those of a unit."""
        if self._units is not None:
            return self._units.draw(self.active, rules.generator)
        return torch.rand(self.active.numel(), generator=rules.generator)

    def _importance(self, rules: Rules) -> Tensor:
        score = self._draw(rules) if rules.importance.draws else self._score(rules)
        score = average(score.cpu())
        rules.importance.check(score, of=self.name)
        return by_area(score, self.layer.pattern, self.name) if rules.importance.by_area else score

    def _grow(
        self, active: Tensor, group: Tensor | None, left: Tensor, growth: Growth, rules: Rules
    ) -> Tensor:
        """`active` and the best other candidates, as many as are `left`, rising."""
        if not int(left.sum()):
            return active
        found = self._search(active).best(group, left, growth, rules.generator)
        return torch.cat([active, found]).sort().values

    def _whole_units(
        self, score: Tensor, count: int, drop: float, growth: Growth | None, rules: Rules
    ) -> Tensor:
        """Numbers of active edges where whole units go, by `score` of what is active, and come."""
        assert self._units is not None
        found = (self.active, score, count / self.block, drop, growth, self._search)
        return self._units.refilled(*found, rules.generator)

    def _search(self, active: Tensor) -> Search:
        """What is known of the candidates besides `active`."""
        return Search(
            candidates=self.candidates,
            active=active,
            explored=self._ever,
            gradients=self._gradients if self._passes else None,
            momentum=self._momentum,
            far=self.far,
            block=self.block,
            numbers=self.numbers,
            size=self._size,
        )

    def _set(self, active: Tensor, rules: Rules) -> Move:
        """Rewire the layer, the state of the optimizer and all copies."""
        before = self.active
        kept = places(active, before)
        grown = int((kept < 0).sum())
        dropped = before.numel() - (active.numel() - grown)
        if not grown and not dropped:
            return Move(0, 0)
        self._rewire(self.candidates.select(active), kept, rules)
        self._pattern, self._current = self.layer.pattern, active
        self._ever = torch.cat([self._ever, active]).unique()
        return Move(dropped * self.block, grown * self.block)

    # -- copies and states -----------------------------------------------------------------------

    def follow(self, copy: nn.Module) -> None:
        """Rewire the same layer of a copy from now on."""
        layer: Any = copy.get_submodule(self.name.rpartition(".")[0])
        self._give(layer, self.layer.pattern)
        self._copies.append(layer)

    def _give(self, layer: Any, pattern: Pattern) -> None:
        """Rewire a layer that may have other edges, with as many spare rows as this one has."""
        spares = {} if self.parameter is None else {"rows": len(self.parameter)}
        if layer.pattern != pattern:
            layer.rewire(pattern, **spares)

    def refresh(self, model: nn.Module) -> None:
        """Take over the layer of this name and its edges, which are final."""
        layer = model.get_submodule(self.name.rpartition(".")[0])
        if layer is not self.layer:
            self.module = self.layer = layer
            self.candidates = Listed(self.layer.pattern)
            if len(self.reference) != self.layer.pattern.num_sites:
                self.reference = self.candidates.fan_in

    def state_dict(self) -> dict[str, Any]:
        """Numbers of active and of once active candidates, running means."""
        return {
            "candidates": self.candidates.description,
            "size": self.size,
            "active": self.active,
            "ever": self._ever,
            "momentum": self._momentum,
            "fan_in": self._fan_in,
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise unless its edges are among these candidates."""
        check_saved(state, self.candidates, self.size, self.name)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave; weights stay with their edges."""
        active = state["active"]
        for layer in (self.layer, *self._copies):
            self._give(layer, self.candidates.select(active))
        self._pattern, self._current = self.layer.pattern, active
        self._ever, self._momentum = state["ever"], state["momentum"]
        self._fan_in = state["fan_in"]
