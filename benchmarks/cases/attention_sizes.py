"""Sizes of attention, and the bytes and operations that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.registry import Cost
from scisparse.pattern import Pattern

__all__ = ["Sizes", "cost_of"]


@dataclass(frozen=True)
class Sizes:
    """Channels of the nodes, heads that share them, features of an edge."""

    channels: int
    heads: int
    edges: int = 0

    @property
    def width(self) -> int:
        return self.channels // self.heads


def cost_of(pattern: Pattern, sizes: Sizes, parameters: int, itemsize: int = 4) -> Cost:
    """Each tensor once; products of edges, and the maps of a layer, if it has parameters.

    A layer reads `x` and writes `y`, and in the backward pass reads `x` and a gradient and writes
    one. Attention alone reads queries, keys and values and writes its output, and in the backward
    pass reads a gradient beside them and writes three.
    """
    sites, sources = (itemsize * count * sizes.channels for count in pattern.shape)
    forward, backward = sites + sources, sites + 2 * sources
    if not parameters:
        forward, backward = 2 * sites + 2 * sources, 3 * sites + 4 * sources
    features = itemsize * pattern.num_edges * sizes.edges
    col, rows = 4 * pattern.num_edges, 8 * (pattern.num_sites + 1)
    weights = itemsize * parameters
    per_edge = 2 * pattern.num_edges * (2 * sizes.channels + 2 * sizes.heads * sizes.edges)
    maps = 2 * pattern.num_sources * parameters
    return Cost(
        forward_bytes=forward + col + rows + features + weights,
        forward_flops=per_edge + maps,
        # Transposed edges also have the order of the edges.
        backward_bytes=(
            backward + 3 * col + rows + 8 * (pattern.num_sources + 1) + features + 2 * weights
        ),
        backward_flops=2 * (per_edge + maps),
        weight_bytes=weights,
    )
