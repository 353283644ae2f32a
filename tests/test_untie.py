"""`untie` climbs the ladder exactly, and only upward."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from layer_cases import (
    REGIONS,
    SHAPE,
    TIES,
    assert_equal,
    build,
    index_pattern,
    masked_pattern,
    randn,
)

from scisparse.errors import PatternError
from scisparse.layers import LocallyConnected
from scisparse.patterns import window

LATITUDE_BANDS = np.repeat([3, 1, 1, 0], 6).reshape(SHAPE)
HALF_ROWS = np.arange(24).reshape(SHAPE) // 3
LADDER = ["all", "longitude", HALF_ROWS, None]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, "site", "shared", False])
@pytest.mark.parametrize("pattern", [index_pattern, masked_pattern])
def test_ladder_is_climbed_exactly(groups: int, bias: Any, pattern: Any) -> None:
    x = randn(2, 24, 2)
    layer = build(pattern(), "all", groups=groups, bias=bias)
    expected, weights = layer(x), len(layer.weight)
    start = layer
    for to in LADDER[1:]:
        layer = layer.untie(to)
        assert len(layer.weight) > weights
        weights = len(layer.weight)
        assert_equal(layer(x), expected)
        assert_equal(start.untie(to)(x), expected)
    assert layer.tie is None
    # Each rung then learns what the one below cannot.
    layer.weight.data[0] += 1
    assert not torch.allclose(layer(x), expected)


@pytest.mark.parametrize(
    ("have", "to"),
    [
        (None, "all"),
        (None, "longitude"),
        (None, REGIONS),
        ("longitude", "all"),
        ("longitude", LATITUDE_BANDS),
        ("longitude", REGIONS),
        (REGIONS, "longitude"),
        (REGIONS, "all"),
        (REGIONS, HALF_ROWS),
        (HALF_ROWS, "longitude"),
    ],
)
def test_what_is_no_refinement_is_refused(have: Any, to: Any) -> None:
    layer = build(index_pattern(), have)
    name = {str: f"tie='{to}'"}.get(type(to), "tie=labels")
    with pytest.raises(
        PatternError, match=f"^{name} shares weights that tie=.* tells apart; choose"
    ):
        layer.untie(to)


def test_a_tie_may_be_untied_to_itself() -> None:
    x = randn(1, 24, 2)
    for tie in TIES:
        layer = build(index_pattern(), tie)
        assert torch.equal(layer.untie(tie)(x), layer(x))


def test_regions_climb_from_convolution() -> None:
    layer = build(index_pattern(), "all")
    x = randn(2, 24, 2)
    for to in (REGIONS, LATITUDE_BANDS):
        assert_equal(layer.untie(to)(x), layer(x))


def test_untied_copy_shares_nothing_and_keeps_kind() -> None:
    layer = build(index_pattern(), "all", dtype=torch.float32).eval()
    untied = layer.untie()
    assert (untied.weight.dtype, untied.training, untied.bias_mode) == (torch.float32, False, True)
    assert build(index_pattern(), "all", device="meta").untie().weight.is_meta
    before = layer.weight.clone()
    untied.weight.data.zero_()
    assert torch.equal(layer.weight, before)


def test_labels_are_copied() -> None:
    labels = REGIONS.copy()
    layer = build(index_pattern(), labels)
    x = randn(2, 24, 2)
    expected = layer(x)
    labels[:] = np.arange(24).reshape(SHAPE)
    assert_equal(layer.untie()(x), expected)
    assert_equal(copy.deepcopy(layer).untie()(x), expected)


@pytest.mark.parametrize("frozen", [True, False])
def test_untying_keeps_what_is_frozen(frozen: bool) -> None:
    layer = LocallyConnected(window((4, 6), 3, padding=1), 2, 3, tie="all")
    layer.weight.requires_grad_(not frozen)
    finer = layer.untie()
    assert finer.weight.requires_grad is not frozen
    assert finer.bias is not None
    assert finer.bias.requires_grad
