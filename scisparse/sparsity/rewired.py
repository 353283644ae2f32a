"""Layers with weights on the edges of a pattern, stored compactly while edges move."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scisparse.pattern import Pattern
from scisparse.sparsity import optimizer_state
from scisparse.sparsity.candidates import Chunk, Pass
from scisparse.sparsity.edge_target import EdgeTarget
from scisparse.sparsity.far import Audit, outstanding, repeats, warn_of_few
from scisparse.sparsity.ranks import agree, every, total, world
from scisparse.sparsity.redistribution import Standing
from scisparse.sparsity.scores import at_least_single
from scisparse.sparsity.search import Search
from scisparse.sparsity.target import Move, Rules

__all__ = ["EdgeLayer", "RewiredTarget"]

_ROOM = 2  # times the edges at the start


class EdgeLayer(Protocol):
    """What a layer must have, whose edges a sparsifier moves: see ``layers.rewiring.Rewirable``."""

    pattern: Pattern
    weight: nn.Parameter
    col: Tensor
    col_t: Tensor

    def rewire(self, pattern: Pattern, kept: Tensor | None = None, *, rows: int = 0) -> Tensor:
        """Move the weights to another pattern."""


class RewiredTarget(EdgeTarget):
    """Layer with weights ``[E, ...]`` in the order of its pattern's edges.

    Parameters are those of :class:`EdgeTarget`; the name is that of the weight in the model.
    """

    gains = False  #: whether it has room for twice its edges, which other layers may hand on to it

    layer: EdgeLayer
    _passes: list[Pass]
    _audit: Audit | None

    @property
    def parameter(self) -> nn.Parameter:
        """The weights."""
        return self.layer.weight

    @property
    def block(self) -> int:
        """Weights of one edge."""
        return math.prod(self.parameter.shape[1:])

    # -- gradients -------------------------------------------------------------------------------

    def _recorders(self) -> list[tuple[Tensor, Callable[..., Any]]]:
        """Both edge lists: layers are called over the one, and differentiated over the other."""
        layer = self.layer  # not the target, which lives on as long as a recorder knows it
        return [
            (layer.col, lambda x, grad: Pass.of(x, grad, layer.col)),
            (layer.col_t, lambda grad, x: Pass.of(x, grad, layer.col)),
        ]

    def _gradients(self, chunk: Chunk) -> Tensor:
        return self.candidates.gradients(chunk, self._passes)

    def reads_passes(self, rules: Rules) -> bool:
        """Whatever the growth: passes tell which sources are missing."""
        return rules.growth is not None

    def _search(self, active: Tensor) -> Search:
        return replace(super()._search(active), missing=self._missing())

    def _missing(self) -> Tensor | None:
        """Sources that were missing in a pass, on any rank, booleans ``[N]``, if any were."""
        if not every(bool(self._passes), self._like):
            return None
        missing = torch.stack([one.x.isnan().any(2).any(0) for one in self._passes]).any(0)
        missing = total(missing.float()).cpu() > 0
        return missing if bool(missing.any()) else None

    def finite(self) -> bool:
        """Whether gradients of weights and at sites are, and what edges read."""
        grad = self.parameter.grad
        finite = grad is None or bool(torch.isfinite(grad).all())
        return finite and all(one.is_finite() for one in self._passes)

    def enforce(self) -> None:
        """Hold edges under audit at 0; what is not active is not stored."""
        if self._audit is not None:
            self._audit.hold(self.parameter)

    # -- changes ---------------------------------------------------------------------------------

    def sparsify(self, count: int, rules: Rules) -> None:
        """Keep edges at random, with room for those that it may gain."""
        if self._is_free:
            self._room = min(self.candidates.size, _ROOM * round(count / self.block))
        super().sparsify(count, rules)
        if self.parameter.shape[0] < self._room:  # it began with just these edges
            self._started = False
            self._rewire(self.layer.pattern, torch.arange(self.active.numel()), rules)
            self._pattern, self._started = self.layer.pattern, True

    @property
    def _is_free(self) -> bool:
        """Whether edges may be as many as there is room for, whichever they are."""
        fixed = self.far is not None or self._units is not None
        return self.gains and not fixed and self._row_groups(0)[0] is None

    def standing(self) -> Standing | None:
        """Single edges, as many as there are rows for and sources that are not missing."""
        if not self._is_free or self._momentum is None:
            return None
        known = int(self._momentum.flatten(1).isfinite().all(1).sum())
        most = self.block * min(known, self.parameter.shape[0])
        own = self._momentum[self.active].abs().double()
        own = own[own.isfinite()]  # not of loaded edges over what was missing so far
        mean = float(own.sum()) / max(1, own.numel())
        return Standing(self.count, self.block, max(most, self.count), mean)

    def _score(self, rules: Rules) -> Tensor:
        weight, grad, rule = self.parameter.detach(), self.parameter.grad, rules.importance
        score = rule.evaluate(weight, grad, rules.generator, of=self.name)[: self.active.numel()]
        return at_least_single(score).reshape(score.shape[0], -1).sum(1)

    def _rewire(self, pattern: Pattern, kept: Tensor, rules: Rules | None) -> None:
        before_rows = self.parameter.shape[0]
        rows = 0 if rules is None else before_rows if self._started else self._room
        own = self.layer.pattern
        rows_kept = self.layer.rewire(pattern, kept, rows=rows)
        for copy in self._copies:  # which may have loaded other edges, or this layer has
            copy.rewire(pattern, kept if copy.pattern == own else None, rows=rows)
        if rules is not None:
            optimizer_state.move(rules.optimizer, self.parameter, rows_kept, before_rows)

    # -- audit of far slots --------------------------------------------------------------------

    def begin_audit(self, rules: Rules) -> None:
        """Hold all far weights at 0 from now on."""
        assert self.far is not None
        rows = (~self.far.fixed(self.active)).nonzero().squeeze(1)
        self._passes.clear()
        ends = self.candidates.ends(self.active[rows])
        self._audit = Audit(self.parameter, rows, *ends, copies=self._copied_weights())

    def _copied_weights(self) -> list[Tensor | None]:
        """Weights of copies; ``None`` for one that has loaded other edges."""
        own = self.layer.pattern
        return [copy.weight if copy.pattern == own else None for copy in self._copies]

    def end_audit(self, significance: float, rules: Rules) -> Move:
        """Give back the weights that have an effect, and empty the other slots."""
        audit, far = self._audit, self.far
        assert audit is not None
        assert far is not None
        if not audit.steps:
            audit.restore(self.parameter, self._copied_weights())
            self._audit = None
            return Move(0, 0)
        audit.add(self._passes)
        each = repeats([one.x for one in self._passes])
        samples = round(world() * sum(one.x.shape[0] for one in self._passes) / each)
        chance = significance / far.sources
        warn_of_few(self.name, samples, audit.bound(chance) / self.block)
        audit.total, audit.squares = total(audit.total), total(audit.squares)
        self._audit = None
        audit.restore(self.parameter, self._copied_weights())
        optimizer_state.clear_rows(rules.optimizer, self.parameter, audit.rows)
        stays = torch.ones_like(self.active, dtype=torch.bool)
        stays[audit.rows] = agree(audit.passed(chance, each).to(torch.uint8)).bool()
        active = self.active[stays]
        left = far.quota() - self.candidates.select(active).fan_in
        if rules.growth is not None:
            sites = torch.arange(left.numel())
            active = agree(self._grow(active, sites, left, outstanding(significance), rules))
        return self._set(active, rules)

    # -- states ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Numbers of active and of once active candidates, running means, a running audit."""
        return super().state_dict() | {
            "audit": None if self._audit is None else self._audit.state_dict(),
            "passes": [] if self._audit is None else [tuple(p) for p in self._passes],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave; weights stay with their edges."""
        super().load_state_dict(state)
        self._audit = None if state["audit"] is None else Audit.from_state(state["audit"])
        self._passes[:] = [Pass(*pair) for pair in state["passes"]]
