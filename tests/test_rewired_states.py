"""States of layers whose edges have moved."""

from __future__ import annotations

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
