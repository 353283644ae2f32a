"""What layers over a pattern share: biases, draws by the true fan-in, buffers that follow it."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from layer_cases import (
    Operators,
    assert_equal,
    build,
    every_tie,
    index_pattern,
    masked_pattern,
    randn,
    tie_keys,
)
from torch import nn

from scisparse.errors import PatternError
from scisparse.grids import LatLonGrid
from scisparse.layers import (
    LocallyConnected,
    LocallyConnected2d,
    LowRankLocallyConnected,
    PatternEdges,
    SparseAttention,
    SparseLinear,
)
from scisparse.patterns import sliding_window, window

OVER_A_PATTERN: dict[str, Any] = {
    "attention": lambda pattern: SparseAttention(pattern, 16, 4),
    "locally connected": lambda pattern: LocallyConnected(pattern, 2, 3),
    "low rank": lambda pattern: LowRankLocallyConnected(pattern, 2, 3, 1),
    "linear": lambda pattern: SparseLinear(9, 9, pattern=pattern),
    "edges": PatternEdges,
    "attention that moves": lambda pattern: SparseAttention(sliding_window(9, 3), 4, 2).rewire(
        pattern
    ),
}


@pytest.mark.parametrize("layer", OVER_A_PATTERN)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            [sliding_window(9, 3)] * 2,
            r"must be a Pattern, not list; a layer has one: .*BlockTopKAtt",
        ),
        (torch.zeros(2, 5).long(), r"must be a Pattern, not Tensor; make one: Pattern.from_edge_i"),
        (np.eye(9), r"must be a Pattern, not ndarray; scisparse.patterns builds them"),
    ],
    ids=["batch of patterns", "edge list", "array"],
)
def test_what_is_no_pattern_is_named(layer: str, given: Any, message: str) -> None:
    with pytest.raises(PatternError, match="`pattern` " + message):
        OVER_A_PATTERN[layer](given)


@every_tie
@pytest.mark.parametrize(("mode", "count"), [(True, None), ("site", 24), ("shared", 1), (False, 0)])
@pytest.mark.parametrize("pattern", [index_pattern, masked_pattern])
def test_bias_modes(tie: Any, mode: Any, count: int | None, pattern: Any) -> None:
    """Sites without edges give 0, the others the bias of their group."""
    layer = build(pattern(), tie, bias=mode)
    _, bias_keys = tie_keys(layer, tie)
    if mode == "site":
        bias_keys = [None if key is None else site for site, key in enumerate(bias_keys)]
    elif mode == "shared":
        bias_keys = [None if key is None else 0 for key in bias_keys]
    y = layer(torch.zeros(1, 24, 2, dtype=torch.float64))[0]
    if layer.bias is None:
        assert count == 0
        assert not y.any()
        return
    assert count is None or len(layer.bias) == count
    # Own biases are numbered by site, masked or not.
    numbers = {site: site for site in range(24)}
    if mode != "site" and tie is not None:
        numbers = {key: n for n, key in enumerate(sorted({k for k in bias_keys if k is not None}))}
    for site, key in enumerate(bias_keys):
        expected = torch.zeros_like(y[0]) if key is None else layer.bias[numbers[key]]
        assert torch.equal(y[site], expected)


def test_each_site_is_drawn_by_its_own_fan_in() -> None:
    """Corners have 4 edges, rims 6, the interior 9: uniform within 1 / sqrt(C * fan-in)."""
    pattern = window((5, 5), 3)
    torch.manual_seed(0)
    layer = LocallyConnected(pattern, 40, 50, dtype=torch.float64)
    assert layer.bias is not None
    for site, fan_in in {0: 4, 4: 4, 2: 6, 10: 6, 12: 9, 6: 9, 24: 4}.items():
        start, end = pattern.row_ptr[site : site + 2].tolist()
        assert end - start == fan_in
        bound = 1 / math.sqrt(40 * fan_in)
        for values in (layer.weight[start:end], layer.bias[site]):
            assert values.abs().max() <= bound
        weights = layer.weight[start:end].flatten()
        # The spread of n draws is known to within 1 / sqrt(2 n): five times that is allowed.
        assert abs(weights.std() * math.sqrt(3) / bound - 1) < 5 / math.sqrt(2 * len(weights))
        assert abs(weights.mean()) < 5 * bound / math.sqrt(3 * len(weights))
    # Pooled over the 16 rim sites or so: the biases of 50 channels follow the same law.
    scaled = layer.bias * (40 * pattern.fan_in.double()).sqrt()[:, None]
    assert abs(scaled.std() * math.sqrt(3) - 1) < 5 / math.sqrt(2 * scaled.numel())


def test_output_has_one_scale_everywhere() -> None:
    """With inputs of variance 1 every site, however few its edges, has variance 1/3."""
    layer = LocallyConnected(window((5, 5), 3), 16, 400, bias=False)
    y = layer(torch.randn(64, 25, 16))
    assert ((y.var((0, 2)) * 3 - 1).abs() < 0.15).all()


def test_shared_weights_take_the_mean_fan_in() -> None:
    """Taps of a 3-wide window on 3 sites: those to the side miss one site each."""
    layer = LocallyConnected(window((3,), 3), 1000, 30, tie="all", dtype=torch.float64)
    fan_ins = {0: (3 + 2) / 2, 1: (2 + 3 + 2) / 3, 2: (2 + 3) / 2}
    for tap, fan_in in fan_ins.items():
        bound = 1 / math.sqrt(1000 * fan_in)
        assert layer.weight[tap].abs().max() <= bound
        assert layer.weight[tap].abs().max() > 0.999 * bound
    assert layer.bias is not None
    assert layer.bias.abs().max() <= 1 / math.sqrt(1000 * 7 / 3)


def test_masked_cells_do_not_change_the_draw_of_others() -> None:
    """Groups and masks: only channels and edges that are there count."""
    mask = np.zeros((9, 9), dtype=bool)
    mask[:3, :3] = True
    grid = LatLonGrid.from_degrees(np.linspace(40, 48, 9), np.linspace(0, 8, 9), mask)
    layer = LocallyConnected(
        window(grid, 3), 400, 80, groups=4, bias="shared", tie="all", dtype=torch.float64
    )
    mean = (4 * 4 + 4 * 6 + 9) / 9
    # Sites without edges count with the others no more: 72 masked ones would pull the mean to 1.
    assert layer.bias is not None
    assert layer.bias.abs().max() <= 1 / math.sqrt(100 * mean)
    assert layer.bias.abs().max() > 0.9 / math.sqrt(100 * mean)
    weight = LocallyConnected(window(grid, 3), 400, 80, groups=4, dtype=torch.float64).weight
    assert weight[:16].abs().max() <= 1 / math.sqrt(100 * 4)  # the corner, once a group
    assert weight[:16].abs().max() > 0.99 / math.sqrt(100 * 4)


def test_reset_draws_anew_and_is_seeded() -> None:
    torch.manual_seed(1)
    layer = LocallyConnected(index_pattern(), 2, 4)
    before = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    assert not torch.equal(layer.weight, before["weight"])
    torch.manual_seed(1)
    again = LocallyConnected(index_pattern(), 2, 4)
    assert torch.equal(again.weight, before["weight"])


def test_biases_that_lie_in_order_are_not_looked_up() -> None:
    for tie, bias in ((None, True), ("all", True), ("longitude", "site"), ("longitude", "shared")):
        layer = build(index_pattern(), tie, bias=bias)
        with torch.no_grad(), Operators() as operators:
            layer(randn(1, 24, 2))
        assert not operators.ran("index")


# -- moving ----------------------------------------------------------------------------------------


@every_tie
@pytest.mark.parametrize("pattern", [index_pattern, masked_pattern])
@pytest.mark.parametrize("context", [True, False])
def test_made_on_meta_and_filled_later(tie: Any, pattern: Any, context: bool) -> None:
    """``to_empty`` leaves buffers unwritten; those that follow from the pattern are made again."""
    layer = build(pattern(), tie, groups=2)
    x = randn(2, 24, 2)
    if context:
        with torch.device("meta"):
            empty = LocallyConnected(pattern(), 2, 4, tie=tie, groups=2, dtype=torch.float64)
    else:
        empty = build(pattern(), tie, groups=2, device="meta")
    assert all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))
    assert empty(x.to("meta")).shape == (2, 24, 4)
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(layer.state_dict())
    assert torch.equal(filled(x), layer(x))
    filled.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in filled.parameters())


def test_skip_init_of_torch_works() -> None:
    make: Any = nn.utils.skip_init
    layer = make(LocallyConnected2d, 1, 1, 3, input_size=(5, 6), padding=1)
    other = LocallyConnected2d(1, 1, 3, input_size=(5, 6), padding=1)
    layer.load_state_dict(other.state_dict())
    x = torch.randn(2, 1, 5, 6)
    assert torch.equal(layer(x), other(x))


def test_low_rank_layer_is_filled_later_too() -> None:
    layer = LowRankLocallyConnected(masked_pattern(), 2, 4, 3)
    empty = LowRankLocallyConnected(masked_pattern(), 2, 4, 3, device="meta").to_empty(device="cpu")
    empty.load_state_dict(layer.state_dict())
    x = torch.randn(2, 24, 2)
    assert torch.equal(empty(x), layer(x))


@every_tie
def test_dtype_is_that_of_the_parameters_and_indices_stay(tie: Any) -> None:
    layer = build(masked_pattern(), tie)
    x = randn(2, 24, 2)
    expected = layer(x)
    indices = [buffer.clone() for buffer in layer.buffers()]
    for dtype, tolerance in {torch.float32: 1e-5, torch.bfloat16: 0.1, torch.float16: 0.02}.items():
        y = copy.deepcopy(layer).to(dtype)(x.to(dtype))
        assert y.dtype == dtype
        assert (y.double() - expected).abs().max() < tolerance * expected.abs().max()
    assert_equal(copy.deepcopy(layer).float().double()(x), layer.float().double()(x))
    assert all(torch.equal(*pair) for pair in zip(indices, layer.buffers(), strict=True))


def test_indices_are_not_saved_and_are_the_own_of_each_layer() -> None:
    pattern = index_pattern()
    layer = build(pattern)
    assert set(layer.state_dict()) == {"weight", "bias", "_extra_state"}
    before, others = pattern.col.clone(), (build(pattern), copy.deepcopy(layer))
    layer.col.zero_()
    with pytest.raises(PatternError, match="col of LocallyConnected are not those of its pattern"):
        layer.eval()
    for tensor in (pattern.col, *(other.eval().col for other in others)):
        assert torch.equal(tensor, before)
