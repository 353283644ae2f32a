"""Patterns and layers that are built while another device than the CPU is the default one.

A pattern is data, and lies on the CPU. Parameters and index buffers lie on the meta device, and are
filled in later.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from scisparse import patterns
from scisparse.errors import OptionError
from scisparse.grids import LatLonGrid
from scisparse.layers import (
    BlockTopKAttention,
    LinformerAttention,
    LocallyConnected,
    LocallyConnected2d,
    LocallyConnectedTranspose2d,
    LowRankLocallyConnected,
    LSHAttention,
    NeighborhoodAttention1d,
    NeighborhoodAttention2d,
    Scores,
    ShiftedWindowAttention,
    SparseAttention,
    SparseLinear,
)
from scisparse.orders import hilbert
from scisparse.pattern import Pattern

GRID = LatLonGrid.regular(4, 6)


def stencil() -> Pattern:
    return patterns.window((4, 6), 3, padding=1)


BUILDERS: dict[str, Callable[[], Pattern]] = {
    "axial": lambda: patterns.axial((3, 4)),
    "bigbird": lambda: patterns.bigbird(20, 4, 2),
    "blocks": lambda: patterns.blocks(torch.tensor([0, 1, 0], device="cpu")),
    "constant_fan_in": lambda: patterns.constant_fan_in(5, 8, 3),
    "fixed": lambda: patterns.fixed(9, 3),
    "longformer": lambda: patterns.longformer(20, 4, (0, 7)),
    "longformer without global tokens": lambda: patterns.longformer(20, 4, ()),
    "mesh": lambda: patterns.mesh(1),
    "nearest": lambda: patterns.nearest(GRID, 3),
    "neighborhood": lambda: patterns.neighborhood((4, 6), 3, periodic=(False, True)),
    "causal neighborhood": lambda: patterns.neighborhood((7,), 3, causal=True),
    "radius": lambda: patterns.radius(GRID, 3e6),
    "shifted_window": lambda: patterns.shifted_window((4, 6), (2, 3), shift=True),
    "sliding_window": lambda: patterns.sliding_window(8, 3, periodic=True),
    "causal sliding_window": lambda: patterns.sliding_window(8, 3, causal=True),
    "strided": lambda: patterns.strided(9, 3),
    "window": stencil,
    "reordered": lambda: stencil().reorder(np.arange(24)[::-1].copy()),
    "union": lambda: stencil().union(patterns.window((4, 6), 5, padding=2)),
}

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "untied": lambda: LocallyConnected(stencil(), 4, 4),
    "grouped": lambda: LocallyConnected(
        patterns.window(GRID, 3), 4, 4, tie="longitude", groups=2, bias="site"
    ),
    "convolution": lambda: LocallyConnected(stencil(), 4, 4, tie="all"),
    "2d": lambda: LocallyConnected2d(6, 4, 3, input_size=(24, 4), padding=1),
    "transposed": lambda: LocallyConnectedTranspose2d(6, 4, 3, input_size=(24, 4), stride=2),
    "low rank": lambda: LowRankLocallyConnected(stencil(), 4, 4, 2),
    "linear": lambda: SparseLinear(4, 5, 2),  # each has other edges, which come with the state
    "attention": lambda: SparseAttention(
        patterns.radius(GRID, 3e6), 4, 2, scores=Scores(norm=True, areas=True, knots=3)
    ),
    "bare attention": lambda: SparseAttention(stencil(), 4, 2),
    "neighborhood 1d": lambda: NeighborhoodAttention1d(4, 2, 3, input_size=24),
    "neighborhood 2d": lambda: NeighborhoodAttention2d(4, 2, 3, input_size=(6, 24)),
    "shifted": lambda: ShiftedWindowAttention(4, 2, (2, 3), input_size=(6, 24), shift=True),
    "linformer": lambda: LinformerAttention(4, 2, 24, 3),
    "lsh": lambda: LSHAttention(4, 2, 4, 4),
    "top blocks": lambda: BlockTopKAttention(4, 2, 4, 2),
}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_patterns_lie_on_the_cpu(build: Callable[[], Pattern]) -> None:
    torch.manual_seed(3)
    expected = build()
    torch.manual_seed(3)
    with torch.device("meta"):
        pattern = build()
        assert pattern.coverage(1) > 0
    arrays = (pattern.row_ptr, pattern.col, pattern.tap, pattern.distance, pattern.bearing)
    assert not any(array.is_meta for array in arrays if array is not None)
    assert pattern == expected


def test_what_is_asked_of_a_pattern_lies_on_the_cpu() -> None:
    with torch.device("meta"):
        assert stencil().coverage(2, samples=7) == stencil().coverage(2, samples=7) > 0
        assert not hilbert(np.zeros((0, 2))).is_meta


def test_labels_without_values_are_named() -> None:
    with pytest.raises(OptionError, match=r"`labels` is on the meta device.*device='cpu'"):
        patterns.blocks(torch.zeros(4, dtype=torch.int64, device="meta"))


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("assign", [False, True])
def test_a_layer_of_the_meta_device_is_filled_later(
    build: Callable[[], nn.Module], assign: bool
) -> None:
    layer, x = build(), torch.randn(2, 6, 24, 4)
    with torch.device("meta"):
        empty = build()
        assert not any(t.is_meta for name, t in empty.state_dict().items() if "extra" in name)
    assert all(p.is_meta for p in empty.parameters())
    if not assign:
        empty.to_empty(device="cpu")
        empty.reset_parameters()  # type: ignore[operator]
        assert empty(x).isfinite().all()
    empty.load_state_dict(layer.state_dict(), assign=assign)
    assert torch.equal(empty(x), layer(x))
    assert not any(t.is_meta for t in (*empty.parameters(), *empty.buffers()))


@pytest.mark.parametrize("assign", [False, True])
def test_edges_that_have_moved_come_with_the_state(assign: bool) -> None:
    for build in (
        lambda: SparseAttention(patterns.sliding_window(24, 5), 4, 2, scores=Scores(taps=True)),
        lambda: LocallyConnected(patterns.sliding_window(24, 5), 4, 4),
    ):
        layer, x = build(), torch.randn(2, 24, 4)
        layer.rewire(layer.pattern.select(torch.rand(layer.pattern.num_edges) < 0.7))
        with torch.device("meta"):
            empty = build()
        if not assign:
            empty.to_empty(device="cpu")
        empty.load_state_dict(layer.state_dict(), assign=assign)
        assert empty.pattern == layer.pattern
        assert torch.equal(empty(x), layer(x))


def test_layers_within_a_model_are_filled_too() -> None:
    model = nn.Sequential(LAYERS["untied"](), LAYERS["attention"]())
    with torch.device("meta"):
        empty = nn.Sequential(LAYERS["untied"](), LAYERS["attention"]())
    empty.load_state_dict(model.state_dict(), assign=True)
    x = torch.randn(3, 24, 4)
    assert torch.equal(empty(x), model(x))
