"""`LocallyConnected`: values against dense loops, poles, masks, patterns without taps, errors."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from layer_cases import (
    MASK,
    REGIONS,
    SHAPE,
    Operators,
    assert_equal,
    build,
    dense_output,
    edges_of,
    every_tie,
    index_pattern,
    masked_pattern,
    needs_scipy,
    no_taps,
    randn,
    repeated_pattern,
    tie_keys,
)
from torch import Tensor

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.grids import LatLonGrid
from scisparse.layers import LocallyConnected
from scisparse.pattern import Pattern
from scisparse.patterns import radius, window
from scisparse.testing import (
    assert_batch_independent,
    assert_deterministic,
    assert_edge_order,
    assert_longitude_roll,
    assert_site_relabelling,
)


@every_tie
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("pattern", [index_pattern, masked_pattern, repeated_pattern])
def test_equals_a_loop_over_edges(tie: Any, groups: int, pattern: Any) -> None:
    """Output, and gradients of input, weights and biases."""
    made = pattern()
    if made.num_sites == 12 and isinstance(tie, np.ndarray):
        tie = REGIONS[:, ::2]
    layer = build(made, tie, groups=groups)
    weight_keys, bias_keys = tie_keys(layer, tie)
    x = randn(2, 24, 2).requires_grad_()
    expected = dense_output(layer, x, weight_keys, bias_keys)
    y = layer(x)
    assert_equal(y, expected)
    inputs = (x, *layer.parameters())
    pull = randn(*y.shape, seed=5)
    wanted = torch.autograd.grad(expected, inputs, pull, materialize_grads=True)
    for mine, want in zip(torch.autograd.grad(y, inputs, pull), wanted, strict=True):
        assert_equal(mine, want)


@pytest.mark.parametrize("poles_on_grid", [True, False])
@pytest.mark.parametrize("kernel", [3, (5, 3)])
def test_reflection_over_the_poles(poles_on_grid: bool, kernel: Any) -> None:
    """The rows over a pole are those of the other side, half a turn away."""
    grid = LatLonGrid.regular(6, 8, poles=poles_on_grid)
    layer = build(window(grid, kernel), "all")
    assert not layer.runs_as_convolution
    x = randn(2, 2, 6, 8)
    rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
    reach = rows // 2
    other_side = x.roll(4, -1)
    first = 1 if poles_on_grid else 0
    north = other_side[:, :, first : first + reach].flip(2)
    south = other_side.flip(2)[:, :, first : first + reach]
    field = torch.cat([north, x, south], 2)
    field = torch.cat([field[..., -(columns // 2) :], field, field[..., : columns // 2]], 3)
    weight = layer.weight.permute(2, 1, 0).reshape(4, 2, rows, columns)
    assert layer.bias is not None
    expected = F.conv2d(field, weight, layer.bias[0])
    for mine in (layer, layer.untie("longitude"), layer.untie()):
        y = mine(x.flatten(2).transpose(1, 2))
        assert_equal(y, expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("poles", "modes"), [("clip", "replicate"), ("zeros", "zeros")])
def test_other_poles_are_convolutions(poles: str, modes: str) -> None:
    grid = LatLonGrid.regular(*SHAPE)
    on_grid = build(window(grid, 3, poles=poles), "all")
    by_index = build(window(SHAPE, 3, padding_mode=(modes, "circular")), "all")
    assert on_grid.runs_as_convolution
    x = randn(2, 24, 2)
    assert_equal(on_grid(x), by_index(x))
    assert_equal(on_grid.untie()(x), by_index(x))


def test_tied_window_runs_as_torch_convolution() -> None:
    layer = build(index_pattern(), "all")
    with Operators() as operators:
        layer(randn(2, 24, 2))
    assert operators.ran("aten.convolution")
    assert not operators.ran("gather_matmul")
    for tie in (None, "longitude", REGIONS):
        assert not build(index_pattern(), tie).runs_as_convolution
    assert not build(masked_pattern(), "all").runs_as_convolution


@every_tie
def test_untied_memory_stays_below_a_patch_buffer(tie: Any) -> None:
    """No tensor, forward or backward, is nearly as large as the k*k-fold input."""
    batch, pattern = 16, window((16, 24), 5, padding_mode="circular")
    labels = np.repeat([0, 1], 192) if isinstance(tie, np.ndarray) else tie
    layer = LocallyConnected(pattern, 4, 4, tie=labels)
    x = torch.randn(batch, 384, 4, requires_grad=True)
    largest = max(x.numel(), layer.weight.numel(), layer.col.numel()) * 4
    assert 25 * x.numel() * 4 > 3 * largest  # a patch buffer would show
    with Operators() as operators:
        layer(x).square().sum().backward()
    # Deterministic mode fills new memory, which makes no more of it; padding makes a convolution's
    # input a little larger.
    assert operators.largest <= 2 * largest


@every_tie
@pytest.mark.parametrize("shape", [(24, 2), (0, 24, 2), (2, 3, 24, 2), (0, 3, 24, 2), (1, 24, 2)])
@pytest.mark.parametrize("groups", [1, 2])
def test_leading_dims(tie: Any, shape: tuple[int, ...], groups: int) -> None:
    layer = build(index_pattern(), tie, groups=groups)
    x = randn(*shape)
    y = layer(x)
    assert y.shape == (*shape[:-2], 24, 4)
    flat = layer(x.reshape(-1, 24, 2)) if x.numel() else y
    assert_equal(y.reshape(flat.shape), flat)


@pytest.mark.parametrize("tie", [None, "all"])
@pytest.mark.parametrize(("sites", "sources"), [(0, 3), (3, 0), (0, 0), (3, 3)])
def test_patterns_without_edges(tie: Any, sites: int, sources: int) -> None:
    pattern = Pattern.from_edge_index(
        torch.empty(2, 0, dtype=torch.int64),
        sites,
        sources,
        tap=torch.empty(0, dtype=torch.int64),
    )
    layer = build(pattern, tie)
    x = randn(2, sources, 2).requires_grad_()
    y = layer(x)
    assert y.shape == (2, sites, 4)
    assert not y.any()
    y.sum().backward()
    assert x.grad is not None
    assert not x.grad.any()


def test_one_site_one_source() -> None:
    layer = build(window((1,), 1))
    x = randn(1, 1, 2)
    assert layer.bias is not None
    assert_equal(layer(x)[0, 0], x[0, 0] @ layer.weight[0] + layer.bias[0])


# -- masks -----------------------------------------------------------------------------------------


@every_tie
@pytest.mark.parametrize("bias", [True, "site", "shared", False])
def test_masked_cells_neither_read_nor_written(tie: Any, bias: Any) -> None:
    layer = build(masked_pattern(), tie, bias=bias)
    masked = torch.from_numpy(~MASK).flatten()
    x = randn(3, 24, 2)
    x[:, masked] = torch.nan
    x.requires_grad_()
    y = layer(x)
    assert not y[:, masked].any()
    assert y[:, ~masked].isfinite().all()
    assert y[:, ~masked].abs().min() > 0
    y.backward(torch.full_like(y, torch.nan).where(masked[:, None], 1.0))
    assert x.grad is not None
    assert not x.grad[:, masked].any()
    assert x.grad[:, ~masked].isfinite().all()
    for parameter in layer.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
    if layer.bias is not None and layer.bias.grad is not None and bias == "site":
        assert not layer.bias.grad[masked].any()
        assert (layer.bias.grad[~masked] == 3).all()


def test_masked_cells_store_no_weights() -> None:
    layer = build(masked_pattern())
    masked = set(np.flatnonzero(~MASK))
    edges = edges_of(layer.pattern)
    assert layer.weight.shape[0] == len(edges) < window(LatLonGrid.regular(*SHAPE), 3).num_edges
    assert not any(site in masked or source in masked for site, source, _ in edges)


# -- patterns without taps -------------------------------------------------------------------------


@needs_scipy
def test_radius_shares_along_longitude() -> None:
    """Edges that a turn maps on each other share a weight, all around and through the date line."""
    grid = LatLonGrid.regular(6, 12, poles=False)
    pattern = radius(grid, 4e6)
    layer = build(pattern, "longitude")
    by_hand = [(i // 12, j // 12, (j % 12 - i % 12) % 12) for i, j, _ in edges_of(pattern)]
    x = randn(2, 72, 2)
    expected = dense_output(layer, x, by_hand, [i // 12 for i in range(72)])
    assert_equal(layer(x), expected)
    assert_equal(layer.untie()(x), expected)
    field = x.transpose(1, 2).reshape(2, 2, 6, 12)

    def as_fields(f: Tensor) -> Tensor:
        y: Tensor = layer(f.flatten(2).transpose(1, 2))
        return y.transpose(1, 2).reshape(2, 4, 6, 12)

    assert_longitude_roll(as_fields, field)


@needs_scipy
def test_regional_radius_does_not_wrap() -> None:
    """Where longitude does not close, two steps east and the rest of the way west are no turn."""
    grid = LatLonGrid.from_degrees([0.0, 1.0], [0.0, 1.0, 2.0])
    pattern = radius(grid, 1e6)
    layer = build(pattern, "longitude")
    by_hand = {(i // 3, j // 3, j % 3 - i % 3) for i, j, _ in edges_of(pattern)}
    assert len(layer.weight) == len(by_hand) == 20


@needs_scipy
def test_radius_between_grids_of_one_spacing() -> None:
    sources, sites = LatLonGrid.regular(6, 12, poles=False), LatLonGrid.regular(3, 12)
    layer = build(radius(sources, 2.1e7, sites=sites), "longitude")
    by_hand = [(i // 12, j // 12, (j % 12 - i % 12) % 12) for i, j, _ in edges_of(layer.pattern)]
    x = randn(1, 72, 2)
    assert_equal(layer(x), dense_output(layer, x, by_hand, [i // 12 for i in range(36)]))


@pytest.mark.parametrize("tie", ["all", [0] * 12])
def test_ties_that_need_taps(tie: Any) -> None:
    with pytest.raises(PatternError, match=r"needs the taps of the edges and Pattern\(12 sites"):
        build(no_taps(12), tie)


def test_longitude_needs_longitudes() -> None:
    with pytest.raises(
        PatternError, match=r"tie='longitude' needs sites on \(latitude, longitude\)"
    ):
        build(no_taps(), "longitude")
    with pytest.raises(PatternError, match="needs sites on"):
        build(window((9,), 3), "longitude")


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"in_channels": 0}, ShapeError, r"`in_channels` \(=0\).* must be at least 1"),
        ({"groups": 0}, ShapeError, r"`groups` \(=0\) must be at least 1"),
        ({"in_channels": 3, "groups": 2}, ShapeError, r"`in_channels` \(=3\) must be divisible by"),
        ({"out_channels": 3, "groups": 2}, ShapeError, r"`out_channels` \(=3\) must be divisible"),
        ({"bias": "row"}, OptionError, "`bias` is 'row'; choose True, 'site', 'shared' or False"),
        (
            {"tie": "lon"},
            OptionError,
            "`tie` is 'lon'; choose None, 'longitude', 'all' or an array",
        ),
        ({"tie": [0, 1]}, ShapeError, r"labels of shape \[2\]; it needs one for each of 24 sites"),
        ({"tie": REGIONS.T}, ShapeError, r"labels of shape \[6, 4\]; it needs one .*\[4, 6\]"),
        ({"tie": [np.nan] * 24}, OptionError, "`tie` has NaN labels; give masked sites a label"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], match: str) -> None:
    arguments = {"in_channels": 2, "out_channels": 4, **options}
    with pytest.raises(error, match=match):
        LocallyConnected(index_pattern(), **arguments)


@every_tie
@pytest.mark.parametrize("shape", [(24,), (2, 23, 2), (2, 24, 3), (2, 2, 24), ()])
def test_wrong_input(tie: Any, shape: tuple[int, ...]) -> None:
    layer = build(index_pattern(), tie)
    with pytest.raises(ShapeError, match=r"it must be \[..., 24 sources, 2 channels\]"):
        layer(randn(*shape))


# -- invariances -----------------------------------------------------------------------------------


def as_fields(layer: LocallyConnected) -> Any:
    """Wrap a layer on a 4 x 6 grid to take and give ``[B, C, lat, lon]``."""

    def run(field: Tensor) -> Tensor:
        y: Tensor = layer(field.flatten(2).transpose(1, 2))
        return y.transpose(1, 2).reshape(-1, 4, *SHAPE)

    return run


@pytest.mark.parametrize("tie", ["longitude", "all"])
@pytest.mark.parametrize("poles", ["reflect", "clip", "zeros"])
def test_sharing_along_longitude_has_no_seam(tie: str, poles: str) -> None:
    layer = build(window(LatLonGrid.regular(*SHAPE), 3, poles=poles), tie)
    assert_longitude_roll(as_fields(layer), randn(2, 2, *SHAPE))


@every_tie
@pytest.mark.parametrize("pattern", [index_pattern, masked_pattern])
def test_samples_and_repeats(tie: Any, pattern: Any) -> None:
    layer = build(pattern(), tie)
    assert_batch_independent(layer, randn(3, 24, 2))
    assert_deterministic(layer, randn(3, 24, 2))


def test_order_of_edges_and_of_sites() -> None:
    """Untied weights that go along with their edges give the same output."""

    def run(pattern: Pattern, x: Tensor, weight: Tensor) -> Tensor:
        layer = LocallyConnected(pattern, 2, 4, bias=False, dtype=torch.float64)
        layer.weight.data = weight
        y: Tensor = layer(x)
        return y

    pattern = repeated_pattern()
    weight = randn(pattern.num_edges, 2, 4)
    assert_edge_order(run, pattern, randn(2, 24, 2), weight)
    assert_site_relabelling(run, pattern, randn(2, 24, 2), weight)
    assert_site_relabelling(
        run, masked_pattern(), randn(2, 24, 2), randn(masked_pattern().num_edges, 2, 4)
    )


def test_a_pattern_made_by_hand_is_checked() -> None:
    """The kernels trust indices, and would read memory that is not theirs."""
    row_ptr, col = torch.tensor([0, 1]), torch.tensor([7], dtype=torch.int32)
    with pytest.raises(PatternError, match="7"):
        LocallyConnected(Pattern(row_ptr, col, 3), 1, 1)
    with pytest.raises(PatternError, match="row_ptr"):
        LocallyConnected(Pattern(torch.tensor([0, 2, 1]), col, 8), 1, 1)


@pytest.mark.parametrize("spare", [0, 20])
@pytest.mark.parametrize("moved", [True, False])
def test_a_rewired_layer_goes_back_to_the_state_it_was_built_with(moved: bool, spare: int) -> None:
    """Such as initial weights, of a lottery: the state of edges that never moved holds none."""
    pattern = window((4, 6), 3, padding=1)
    layer, other = (LocallyConnected(pattern, 2, 3) for _ in "ab")
    x = torch.randn(2, 24, 2)
    y, state = layer(x).detach(), copy.deepcopy(layer.state_dict())
    kept = torch.rand(pattern.num_edges) < 0.7 if moved else torch.ones(pattern.num_edges) > 0
    edges = torch.stack([pattern.col.long(), pattern.rows()])[:, kept]
    layer.rewire(Pattern.from_edge_index(edges, 24, 24), rows=pattern.num_edges + spare)
    layer.load_state_dict(state)
    torch.testing.assert_close(layer(x), y)
    other.load_state_dict(layer.state_dict())
    torch.testing.assert_close(other(x), y)
    wider = LocallyConnected(window((4, 6), 5, padding=2), 2, 3)
    with pytest.raises(PatternError, match="belong to another pattern"):
        layer.load_state_dict(wider.state_dict())


def test_a_moved_layer_loads_a_layer_built_on_its_edges() -> None:
    """Its state has their fingerprint alone, which was compared with that of the start."""
    start, there = (Pattern.from_dense(torch.eye(6).roll(k, 0).bool()) for k in (0, 1))
    moved, fresh = (LocallyConnected(each, 2, 3) for each in (start, there))
    moved.rewire(there)
    for first, second in ((fresh, moved), (moved, LocallyConnected(there, 2, 3))):
        second.load_state_dict(first.state_dict())
        x = torch.randn(2, 6, 2)
        assert torch.equal(second(x), first(x))
    with pytest.raises(PatternError, match="belong to another pattern"):
        moved.load_state_dict(
            LocallyConnected(Pattern.from_dense(torch.eye(6).roll(3, 0).bool()), 2, 3).state_dict()
        )
