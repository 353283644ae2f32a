"""States of layers whose edges have moved."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from scisparse.errors import PatternError
from scisparse.grids import LatLonGrid
from scisparse.layers import LocallyConnected, SparseLinear
from scisparse.pattern import Pattern
from scisparse.patterns import window

GRID = LatLonGrid.regular(4, 6, poles=False)


def local() -> LocallyConnected:
    return LocallyConnected(window(GRID, 3), 1, 1)


def linear() -> SparseLinear:
    return SparseLinear(24, 24, fan_in=5)


def edges(layer: Any, seed: int) -> Pattern:
    """As many edges as the layer has, elsewhere, of points without coordinates."""
    sites, sources = layer.pattern.shape
    order = torch.randperm(sites * sources, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(sites * sources, dtype=torch.bool)
    mask[order[: layer.pattern.num_edges]] = True
    return Pattern.from_dense(mask.view(sites, sources))


def outputs(layer: Any) -> Tensor:
    x = torch.arange(24.0).sin()
    y: Tensor = layer(x if isinstance(layer, SparseLinear) else x.view(1, 24, 1))
    return y.detach()


@pytest.mark.parametrize("build", [local, linear])
def test_edges_given_without_grids_load_into_a_new_layer(build: Any) -> None:
    layer, new = build(), build()
    layer.rewire(edges(layer, 1))
    assert layer.pattern.site_grid == build().pattern.site_grid
    new.load_state_dict(layer.state_dict())
    assert torch.equal(outputs(new), outputs(layer))
    assert new.pattern == layer.pattern


def test_weights_without_their_edges_load_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="mean nothing on others"):
        linear().load_state_dict(dict(linear().named_parameters()), strict=False)
    tied = LocallyConnected(window(GRID, 3), 1, 1, tie="longitude")
    tied.load_state_dict(dict(tied.named_parameters()), strict=False)


def test_rewire_says_what_a_pattern_is() -> None:
    with pytest.raises(PatternError, match="from_edge_index"):
        local().rewire(torch.zeros(2, 8, dtype=torch.int64))  # type: ignore[arg-type]


@pytest.mark.parametrize("build", [local, linear])
@pytest.mark.parametrize("moved_before", [False, True])
def test_a_state_by_reference_goes_on_with_the_layer(build: Any, moved_before: bool) -> None:
    layer, new = build(), build()
    if moved_before:
        layer.rewire(edges(layer, 1))
    snapshot, before = copy.deepcopy(layer.state_dict()), outputs(layer)
    state, copied = layer.state_dict(), dict(layer.state_dict())
    layer.rewire(edges(layer, 2))
    with torch.no_grad():
        layer.weight.normal_()
    after = outputs(layer)
    for one in (state, copied):
        layer.load_state_dict(one)
        new.load_state_dict(one)
        assert torch.equal(outputs(layer), after)
        assert torch.equal(outputs(new), after)
    layer.load_state_dict(snapshot)
    assert torch.equal(outputs(layer), before)
    new.load_state_dict(state)
    assert torch.equal(outputs(new), before)


def test_a_state_by_reference_keeps_the_edges_of_weights_that_it_alone_has() -> None:
    layer, new = linear(), linear()
    state, before = layer.state_dict(), outputs(layer)
    layer.rewire(SparseLinear(24, 24, fan_in=7).pattern)
    new.load_state_dict(state)
    assert torch.equal(outputs(new), before)
