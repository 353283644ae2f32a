"""Edges of attention layers, which carry no weights: queries and keys make those."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from scisparse.errors import OptionError
from scisparse.kernels.graph_attention.inputs import Inputs
from scisparse.layers.edges import EdgeBias, PatternEdges
from scisparse.pattern import Pattern
from scisparse.sparsity.attention_audit import AttentionAudit, certainty, evidence, normal_bound
from scisparse.sparsity.attention_effects import (
    ActiveEdges,
    AttentionPass,
    Prospects,
    measure_active,
    prospects_of,
    sum_of,
)
from scisparse.sparsity.candidates import CandidateEdges, Chunk
from scisparse.sparsity.edge_target import EdgeTarget
from scisparse.sparsity.edge_units import EdgeUnits
from scisparse.sparsity.far import FarSlots, repeats, warn_of_few
from scisparse.sparsity.growth import gradient
from scisparse.sparsity.ranks import agree, average, every, total, world
from scisparse.sparsity.row_groups import RowGroups
from scisparse.sparsity.scores import at_least_single
from scisparse.sparsity.target import Move, Rules

__all__ = ["AttentionLayer", "AttentionTarget"]


class AttentionLayer(Protocol):
    """What a layer must have, whose edges a sparsifier moves: see ``layers.SparseAttention``."""

    edges: PatternEdges
    bias: EdgeBias
    num_heads: int
    embed_dim: int
    dropout: float

    @property
    def pattern(self) -> Pattern:
        """Who reads whom."""

    @property
    def v_proj(self) -> nn.Module:
        """Map of sources to their values."""

    def rewire(self, pattern: Pattern) -> None:
        """Attend over another pattern."""


# Chance that a site without any far source to find fills a slot in a change, or loses a good one.
_DOUBT = 0.05


class _Found(NamedTuple):
    """What so many passes say about active edges, and the numbers of those."""

    passes: int
    edges: ActiveEdges
    numbers: Tensor


class AttentionTarget(EdgeTarget):
    """Edges of an attention layer.

    An edge has a gate ``z`` that multiplies its share in the softmax: 1 for the edges of the layer,
    0 for candidates; formulas are in :mod:`scisparse.sparsity.attention_effects`. Scores that are
    made of weights and gradients take for the weight of an edge its mean softmax weight
    ``w = mean p``, which its gate scales, and for the gradient ``dL/dw = (dL/dz) / w``. So
    ``"magnitude"`` is the attention that an edge gets, and ``"taylor"`` is ``|dL/dz|``, the change
    of the loss without the edge, to first order.

    Growth by gradient takes the candidates that lower the loss most, ``max(0, -effect)``. With
    weights both signs count, as a weight may become negative; a gate can not. Of a loss made of
    outputs and of their derivatives, what goes through the outputs counts.

    Far slots start empty under growth by gradient, and take a source that surely tells what the
    site lacks, by the ``z`` of :mod:`scisparse.sparsity.attention_audit`: one that tells nothing
    would blur the site. For the same reason those go that raise the loss, whatever the score. A
    change knows one step, so that little stands out in small batches; the audit in the end knows
    eight, and offers empty slots once more.

    Parameters
    ----------
    name, layer
        Name of the edges in the model, such as ``"attend.edges"``, and the layer.
    candidates
        Edges that it may have; they include those that it has.
    reference
        Edges of each site that sparsity is a fraction of, int64 ``[M]``.
    row_groups
        Structure or budget by sites.
    far
        Far slots, which alone move then.
    units
        Edges that stand or fall together.

    Raises
    ------
    OptionError
        The layer has dropout: weights that are set to 0 at random say little about their edges.
    """

    layer: AttentionLayer
    _passes: list[AttentionPass]
    _audit: AttentionAudit | None

    def __init__(
        self,
        name: str,
        layer: AttentionLayer,
        candidates: CandidateEdges,
        reference: Tensor,
        row_groups: RowGroups,
        far: FarSlots | None = None,
        *,
        units: EdgeUnits | None = None,
    ) -> None:
        assert isinstance(layer, nn.Module)
        if layer.dropout:
            raise OptionError(
                f"the edges of {name} cannot move while the layer drops weights at random, "
                f"`dropout` (={layer.dropout}); build it with dropout=0"
            )
        self._found: _Found | None = None
        self._doubt, self._repeats = _DOUBT, 1.0
        super().__init__(name, layer, candidates, reference, row_groups, far, units=units)

    @property
    def parameter(self) -> None:
        """There is none."""
        return None

    @property
    def owned(self) -> PatternEdges:
        """The edges."""
        return self.layer.edges

    @property
    def block(self) -> int:
        """An edge counts as one number."""
        return 1

    @property
    def numbers(self) -> int:
        """A number for each head."""
        return self.layer.num_heads

    @property
    def bytes(self) -> int:
        """Bytes of the index buffers."""
        return sum(b.numel() * b.element_size() for b in self.layer.edges.buffers())

    @property
    def operations(self) -> int:
        """A product and a sum for each channel of queries and of values."""
        return 4 * self.layer.embed_dim

    # -- gradients -------------------------------------------------------------------------------

    def needs_passes(self, rules: Rules) -> bool:
        """Scores of edges are made of what backward passes know, whatever the growth."""
        return rules.growth is not None

    def _recorders(self) -> list[tuple[Tensor, Callable[..., Any]]]:
        layer = self.layer

        def make(inputs: Inputs, grad: Tensor, lse: Tensor, scale: float) -> AttentionPass:
            known = AttentionPass(inputs, grad, lse, scale, layer.bias.learned, layer.pattern)
            return known.kept()

        return [(self.layer.edges.col, make)]

    @property
    def _leaf(self) -> nn.Parameter | None:
        """One of the map to values, where that is trained, or of any other map."""
        maps = (self.layer.v_proj, self.module)
        every = (p for part in maps for p in part.parameters())
        return next((p for p in every if p.requires_grad), None)

    def _forget(self) -> None:
        super()._forget()
        self._found = None

    def finite(self) -> bool:
        """Whether gradients of the layer's parameters and passes over its edges are finite."""
        grads = [p.grad for p in self.module.parameters() if p.grad is not None]
        finite = all(bool(torch.isfinite(grad).all()) for grad in grads)
        return finite and all(one.is_finite() for one in self._passes)

    def _drop_stale(self) -> None:
        """Forget passes over other edges: the layer may have loaded some since."""
        now = self.layer.pattern
        passes = [one for one in self._passes if one.pattern is now or one.pattern == now]
        if len(passes) < len(self._passes):
            self._forget()
            self._passes += passes

    @torch.no_grad()
    def _active(self) -> _Found:
        """Weights and gradients of active edges, computed once."""
        if self._found is None or self._found.passes != len(self._passes):
            self._check_masks()
            pattern = self.layer.pattern
            edges = measure_active(self._passes, pattern)
            self._found = _Found(len(self._passes), edges, self.candidates.numbers(pattern))
        return self._found

    def gather(self, rules: Rules) -> None:
        """Keep the running mean of the gradients of all candidates."""
        self._drop_stale()
        super().gather(rules)

    def _check_masks(self) -> None:
        """Raise where calls have hidden sources: those that no edge reads may be hidden as well."""
        own = self.layer.bias()
        for one in self._passes:
            bias = one.inputs.bias
            hidden = None if bias is None else bias == -torch.inf
            if hidden is not None and own is not None:
                hidden = hidden & (own != -torch.inf)
            if hidden is not None and bool(hidden.any()):
                raise OptionError(
                    f"the edges of {self.name} cannot move while calls hide sources by "
                    "`source_mask`, as candidates may be hidden unseen; leave hidden sources out "
                    "of the pattern and `candidates` with restrict(source_mask=...)"
                )

    @torch.no_grad()
    def _gradients(self, chunk: Chunk) -> Tensor:
        _, active, numbers = self._active()
        prospects = self._prospects(chunk)
        if self.far is not None:
            return evidence(prospects, chunk.count).T.float()
        effect = sum_of(prospects, chunk.count)
        # An edge that goes in this change, and may come back, has a weight and not a prospect.
        first, last = torch.searchsorted(numbers, torch.tensor([chunk.first, chunk.last])).tolist()
        effect[numbers[first:last] - chunk.first] = active.effect[first:last]
        return effect.float()

    def _prospects(self, chunk: Chunk) -> Iterator[Prospects]:
        slopes = self._active().edges.slope
        return prospects_of(self._passes, slopes, self.candidates, chunk, self.layer.bias.of)

    def _size(self, gradients: Tensor) -> Tensor:
        if self.far is None:
            return (-gradients).clamp(min=0)
        z = certainty((world() * gradients.double()).T)  # means over ranks, of sums
        z /= math.sqrt(self._repeats)
        # A site makes as many tests as there are sources.
        return torch.where(z < normal_bound(self._doubt / self.far.sources), -z, -torch.inf)

    # -- changes ---------------------------------------------------------------------------------

    def sparsify(self, count: int, rules: Rules) -> None:
        """Keep edges at random; slots that wait for a source that stands out are empty."""
        if self.far is None or rules.growth is None or not rules.growth.needs_gradient:
            return super().sparsify(count, rules)
        self.goal, self._started = count, True

    def change(self, count: int, drop: float, rules: Rules) -> Move:
        """Drop and grow edges; without a backward pass over the edges of now nothing moves."""
        self._drop_stale()
        has_passes = every(bool(self._passes), self._like)
        return super().change(count, drop, rules) if has_passes else Move(0, 0)

    def _score(self, rules: Rules) -> Tensor:
        active = self._active().edges
        if self.far is not None:
            z = certainty(total(torch.stack([active.effect, active.squares])))
            return torch.where(z > -normal_bound(_DOUBT), -z, torch.inf)
        weight, effect = average(active.weight), average(active.effect)
        if rules.importance.needs_gradient:
            effect /= self._scale(rules)
        slope = torch.where(weight > 0, effect / weight, 0)
        score = rules.importance.evaluate(weight, slope, rules.generator, of=self.name)
        return at_least_single(score)

    def _rewire(self, pattern: Pattern, kept: Tensor, rules: Rules | None) -> None:
        for layer in (self.layer, *self._copies):
            layer.rewire(pattern)

    def enforce(self) -> None:
        """Nothing: what is not active is not stored."""

    # -- audit of far slots ----------------------------------------------------------------------

    def begin_audit(self, rules: Rules) -> None:
        """Do without all far edges from now on."""
        assert self.far is not None
        stays = self.far.fixed(self.active)
        self._forget()
        self._audit = AttentionAudit(self.active[~stays])
        self._set(self.active[stays], rules)

    def continue_audit(self) -> int:
        """Count this step if its gradients are finite, else forget it; how many there were."""
        known = len(self._passes)
        self._drop_stale()
        if self._audit is not None and not every(len(self._passes) == known, self._like):
            self._audit.steps = self._audit.passes = 0
        return super().continue_audit()

    @torch.no_grad()
    def end_audit(self, significance: float, rules: Rules) -> Move:
        """Give back the edges that the loss misses, and leave the other slots empty."""
        audit, far = self._audit, self.far
        assert audit is not None
        assert far is not None
        self._audit = None
        numbers = audit.numbers
        if audit.steps:
            self._repeats = repeats([one.inputs.v for one in self._passes])
            samples = world() * sum(one.lse.shape[0] for one in self._passes)
            chance = significance / far.sources
            warn_of_few(self.name, round(samples / self._repeats), normal_bound(chance) ** 2)
            passed = audit.passed(
                self.candidates, self._prospects, self.numbers, chance, self._repeats
            )
            numbers = numbers[agree(passed.to(torch.uint8)).bool()]
        active = torch.cat([self.active, numbers]).unique()
        if audit.steps and rules.growth is not None:
            left = far.quota() - self.candidates.select(active).fan_in
            sites = torch.arange(left.numel())
            self._doubt = significance
            active = agree(self._grow(active, sites, left, gradient(), rules))
            self._doubt = _DOUBT
        self._repeats = 1.0
        self._set(active, rules)
        self._forget()
        kept = int(torch.isin(audit.numbers, active).sum())
        grown = int((~far.fixed(active)).sum()) - kept
        return Move(audit.numbers.numel() - kept, grown)

    # -- states ----------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Numbers of active and of once active candidates, running means, a running audit."""
        passes = self._passes if self._audit is not None else []
        return super().state_dict() | {
            "audit": None if self._audit is None else self._audit.state_dict(),
            "passes": [one.state() for one in passes],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        audit = state["audit"]
        self._audit = None if audit is None else AttentionAudit.from_state(audit)
        self._forget()
        self._passes += [AttentionPass.of(one, self.layer.pattern) for one in state["passes"]]
