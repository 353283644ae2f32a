"""Taps of two patterns are the same where they read the same, whatever their numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from kernel_cases import generator

from scisparse.grids import LatLonGrid
from scisparse.layers import LocallyConnected
from scisparse.layers.rewiring import match_edges
from scisparse.pattern import Pattern
from scisparse.pattern.taps import taps_as_in
from scisparse.patterns import window

GLOBE = LatLonGrid.regular(9, 16)
MASKED = GLOBE.with_mask(np.random.default_rng(3).random((9, 16)) < 0.7)

WINDOWS: dict[str, Callable[[int], Pattern]] = {
    "zeros": lambda k: window((7, 9), k, padding=k // 2),
    "circular": lambda k: window((7, 9), k, padding=k // 2, padding_mode="circular"),
    "reflect": lambda k: window((7, 9), k, padding=k // 2, padding_mode="reflect"),
    "replicate": lambda k: window((7, 9), k, padding=k // 2, padding_mode="replicate"),
    "narrow": lambda k: window((7, 4), k, padding=k // 2, padding_mode=("zeros", "circular")),
    "strided": lambda k: window((7, 9), k, padding=k // 2, stride=2),
    "poles": lambda k: window(GLOBE, k),
    "masked": lambda k: window(MASKED, k),
}


def places(pattern: Pattern, size: int) -> torch.Tensor:
    """Place in a window of `size` x `size` of each edge of a window around the same middle."""
    assert pattern.tap is not None
    own = round(pattern.num_taps**0.5)
    shift = (size - own) // 2
    tap = pattern.tap.long()
    place: torch.Tensor = (tap // own + shift) * size + tap % own + shift
    return place


@pytest.mark.parametrize("name", WINDOWS)
def test_a_small_window_is_the_middle_of_a_large_one(name: str) -> None:
    small, large = WINDOWS[name](3), WINDOWS[name](5)
    found = taps_as_in(small, large)
    assert found is not None
    assert torch.equal(found.long(), places(small, 5))
    joined = large.union(small)
    assert joined == large
    assert joined.window == large.window
    other = small.union(large).validate()
    assert other.num_edges == large.num_edges
    assert torch.equal(other.to_dense(), large.to_dense())
    # Every tap of the one is one tap of the other.
    assert other.tap is not None
    assert large.tap is not None
    as_large = taps_as_in(other, large)
    assert as_large is not None
    assert torch.equal(as_large.sort().values, large.tap.sort().values)


@pytest.mark.parametrize("name", ["zeros", "poles", "masked", "replicate"])
def test_taps_are_known_by_what_is_left_of_them(name: str) -> None:
    small, large = WINDOWS[name](3), WINDOWS[name](5)
    chosen = torch.rand(small.num_edges, generator=generator(1)) < 0.5
    part = replace(small.select(chosen), window=None)
    found = taps_as_in(part, large)
    assert found is not None
    assert torch.equal(found.long(), places(small, 5)[chosen])


def test_a_layer_keeps_its_weights_on_a_wider_window() -> None:
    small, large = WINDOWS["poles"](3), WINDOWS["poles"](5)
    layer = LocallyConnected(small, 2, 3)
    x = torch.randn(2, 144, 2, generator=generator(2))
    before = layer(x)
    layer.rewire(large)
    torch.testing.assert_close(layer(x), before)
    layer.rewire(small)
    torch.testing.assert_close(layer(x), before)
    assert torch.equal(layer.pattern.to_dense(), small.to_dense())


def test_other_labels_than_places_stay() -> None:
    """Such as the octant in which a source lies: no tap is another one's map."""
    index = torch.tensor([[1, 2, 3, 0, 2], [0, 0, 1, 1, 2]])
    first = Pattern.from_edge_index(index[:, :4], 3, 4, tap=torch.tensor([0, 1, 0, 1]))
    second = Pattern.from_edge_index(
        torch.tensor([[1, 3, 3, 2], [0, 0, 1, 2]]), 3, 4, tap=torch.tensor([0, 1, 0, 1])
    )
    assert second.tap is not None
    found = taps_as_in(second, first)
    assert found is second.tap
    joined = first.union(second)
    assert joined.num_taps == 2
    assert joined.num_edges == 6


def test_parts_of_one_pattern_keep_their_taps_where_padding_repeats_a_source() -> None:
    whole = WINDOWS["replicate"](3)
    chosen = torch.rand(whole.num_edges, generator=generator(4)) < 0.6
    first, second = whole.select(chosen), whole.select(~chosen)
    assert first.union(second) == replace(whole, window=None)


@pytest.mark.parametrize("name", ["replicate", "reflect"])
def test_few_edges_keep_their_taps_where_padding_repeats_a_source(name: str) -> None:
    """A tap that has no edge in common with what it was would be found under another number."""
    whole, gen = WINDOWS[name](5), generator(6)
    for _ in range(20):
        some = [torch.rand(whole.num_edges, generator=gen) < 0.1 for _ in range(2)]
        first, second = (whole.select(chosen) for chosen in some)
        numbers = match_edges(first, second)
        assert torch.equal(numbers >= 0, some[0][some[1]])
        same = some[0].nonzero().flatten()[numbers[numbers >= 0]]
        assert torch.equal(same, (some[0] & some[1]).nonzero().flatten())


def test_without_edges_or_taps() -> None:
    pattern = WINDOWS["zeros"](3)
    none = pattern.select(torch.zeros(pattern.num_edges, dtype=torch.bool))
    assert none.union(pattern).num_edges == pattern.num_edges
    assert pattern.union(none) == pattern
    assert taps_as_in(replace(pattern, tap=None), pattern) is None
    assert taps_as_in(pattern, replace(pattern, tap=None)) is pattern.tap
