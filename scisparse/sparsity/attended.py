"""Edges of attention layers, which carry no weights: queries and keys make those."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from scisparse.errors import OptionError
from scisparse.kernels.graph_attention.reference import Inputs
from scisparse.layers.edges import EdgeBias, PatternEdges
from scisparse.pattern import Pattern
from scisparse.sparsity.attention_effects import (
    ActiveEdges,
    AttentionPass,
    effects_of_candidates,
    measure_active,
)
from scisparse.sparsity.candidates import Chunk, Listed
from scisparse.sparsity.edge_target import EdgeTarget, RowGroups
from scisparse.sparsity.ranks import average
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

    def rewire(self, pattern: Pattern) -> None:
        """Attend over another pattern."""


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
    weights both signs count, as a weight may become negative; a gate can not. Of losses that are
    made of derivatives the first backward pass counts.

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

    Raises
    ------
    OptionError
        The layer has dropout: weights that are set to 0 at random say little about their edges.
    """

    layer: AttentionLayer
    candidates: Listed
    _passes: list[AttentionPass]

    def __init__(
        self,
        name: str,
        layer: AttentionLayer,
        candidates: Listed,
        reference: Tensor,
        row_groups: RowGroups,
    ) -> None:
        assert isinstance(layer, nn.Module)
        if layer.dropout:
            raise OptionError(
                f"the edges of {name} cannot move while the layer drops weights at random, "
                f"`dropout` (={layer.dropout}); build it with dropout=0"
            )
        self._found: _Found | None = None
        layer.bias.fit(candidates.pattern)
        super().__init__(name, layer, candidates, reference, row_groups)

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

    def _ears(self) -> list[tuple[Tensor, Callable[..., Any]]]:
        layer = self.layer

        def make(inputs: Inputs, grad: Tensor, lse: Tensor, scale: float) -> AttentionPass:
            known = AttentionPass(inputs, grad, lse, scale, layer.bias.learned, layer.pattern)
            return known.kept()

        return [(self.layer.edges.col, make)]

    def _forget(self) -> None:
        super()._forget()
        self._found = None

    def finite(self) -> bool:
        """Whether gradients of the layer's parameters are, and what it heard."""
        grads = [p.grad for p in self.module.parameters() if p.grad is not None]
        finite = all(bool(torch.isfinite(grad).all()) for grad in grads)
        return finite and all(one.is_finite() for one in self._passes)

    def _drop_stale(self) -> None:
        """Forget passes over other edges: the layer may have loaded some since."""
        now = self.layer.pattern
        if any(one.pattern is not now for one in self._passes):
            passes = [one for one in self._passes if one.pattern is now]
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
        effect = effects_of_candidates(
            self._passes, active.slope, self.candidates.pattern, chunk, self.layer.bias.of
        )
        # An edge that goes in this change, and may come back, has a weight and not a prospect.
        first, last = torch.searchsorted(numbers, torch.tensor([chunk.first, chunk.last])).tolist()
        effect[numbers[first:last] - chunk.first] = active.effect[first:last]
        return effect.float()

    def _size(self, gradients: Tensor) -> Tensor:
        return (-gradients).clamp(min=0)

    # -- changes ---------------------------------------------------------------------------------

    def change(self, count: int, drop: float, rules: Rules) -> Move:
        """Drop and grow edges; without a backward pass over the edges of now nothing moves."""
        self._drop_stale()
        return super().change(count, drop, rules) if self._passes else Move(0, 0)

    def _score(self, rules: Rules) -> Tensor:
        active = self._active().edges
        weight, effect = average(active.weight.clone()), average(active.effect.clone())
        slope = torch.where(weight > 0, effect / weight, 0)
        return rules.importance.score(weight, slope)

    def _rewire(self, pattern: Pattern, kept: Tensor, rules: Rules | None) -> None:
        for layer in (self.layer, *self._copies):
            layer.rewire(pattern)
