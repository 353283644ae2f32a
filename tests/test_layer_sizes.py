"""Sizes that layers are built with: positive integers, and an error that names each that is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scisparse.errors import ScisparseError
from scisparse.grids import LatLonGrid
from scisparse.layers import (
    BlockTopKAttention,
    GraphTransformer,
    LinformerAttention,
    LocallyConnected,
    LocallyConnected2d,
    LocallyConnectedTranspose1d,
    LowRankLocallyConnected,
    LSHAttention,
    NeighborhoodAttention1d,
    Scores,
    ShiftedWindowAttention,
    SparseAttention,
    SparseLinear,
)
from scisparse.patterns import radius, sliding_window, window


def _knots(knots: int) -> SparseAttention:
    pattern = radius(LatLonGrid.regular(3, 4), 9e6)
    return SparseAttention(pattern, 4, 2, scores=Scores(knots=knots))


CHANNELS = {"in_channels": 4, "out_channels": 6, "groups": 2}
HEADS = {"embed_dim": 8, "num_heads": 4}
STENCIL = window((4, 6), 3)
BUILT: list[tuple[Any, dict[str, int]]] = [
    (lambda **sizes: LocallyConnected(STENCIL, **sizes), CHANNELS),
    (lambda **sizes: LocallyConnected2d(kernel_size=3, input_size=(4, 6), **sizes), CHANNELS),
    (lambda **sizes: LocallyConnectedTranspose1d(kernel_size=3, input_size=4, **sizes), CHANNELS),
    (
        lambda **sizes: LowRankLocallyConnected(STENCIL, **sizes),
        {"in_channels": 4, "out_channels": 6, "rank": 3},
    ),
    (SparseLinear, {"in_features": 5, "out_features": 4, "fan_in": 3}),
    (
        lambda **sizes: SparseAttention(STENCIL, **sizes),
        HEADS | {"kv_heads": 2, "source_dim": 3, "edge_dim": 2},
    ),
    (_knots, {"knots": 3}),
    (
        lambda **sizes: NeighborhoodAttention1d(kernel_size=3, input_size=9, **sizes),
        HEADS | {"kv_heads": 2},
    ),
    (lambda **sizes: ShiftedWindowAttention(window=3, input_size=9, **sizes), HEADS),
    (LinformerAttention, HEADS | {"num_sources": 9, "rank": 3, "source_dim": 5}),
    (LSHAttention, HEADS | {"buckets": 4, "chunk": 3, "rounds": 2}),
    (BlockTopKAttention, HEADS | {"kv_heads": 2, "block": 4, "top": 2}),
    (GraphTransformer, {"in_channels": 4, "out_channels": 5, "heads": 2, "edge_dim": 3}),
]
WRONG: list[Any] = [2.0, np.float32(2), True, np.True_, "2", None, 0, -2]
#: sizes where 0 says that there is none, or None that none is given
MAY_BE_0 = ("out_features", "in_features", "fan_in", "edge_dim", "knots", "top")
MAY_BE_NONE = ("fan_in", "kv_heads", "source_dim", "edge_dim")
CASES = [
    pytest.param(build, sizes | {name: wrong}, name, id=f"{n}-{name}-{wrong!r}")
    for n, (build, sizes) in enumerate(BUILT)
    for name in sizes
    for wrong in WRONG
    if not (wrong is None and name in MAY_BE_NONE) and not (wrong is WRONG[-2] and name in MAY_BE_0)
]


@pytest.mark.parametrize(("build", "sizes", "name"), CASES)
def test_sizes_that_are_none_are_named(build: Any, sizes: dict[str, Any], name: str) -> None:
    with pytest.raises(ScisparseError, match=rf"`{name}` \(="):
        build(**sizes)


@pytest.mark.parametrize(("build", "sizes"), BUILT)
def test_integers_of_numpy_are_sizes(build: Any, sizes: dict[str, int]) -> None:
    build(**{name: np.int64(value) for name, value in sizes.items()})


def test_what_does_not_fit_together_is_named() -> None:
    for build, named in (
        (
            lambda: SparseLinear(3, 2, 4),
            r"`fan_in` \(=4\) must lie .* and `in_features` \(=3\)",
        ),
        (lambda: SparseLinear(3.0, 3, pattern=sliding_window(3, 3)), r"`in_features` \(=3.0\)"),  # type: ignore[arg-type]
        (lambda: GraphTransformer((4, 2, 3), 2), r"`in_channels` \(=\(4, 2, 3\)\)"),  # type: ignore[arg-type]
        (lambda: GraphTransformer((4, 0), 2), r"`in_channels` \(=\(4, 0\)\)"),
        (lambda: SparseAttention(STENCIL, 6, 4), r"`embed_dim` \(=6\) must be a positive multiple"),
    ):
        with pytest.raises(ScisparseError, match=named):
            build()
