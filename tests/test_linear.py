"""SparseLinear against dense products, its edges in files, and patterns drawn at random."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import generator
from torch import nn
from torch.nn.utils import prune

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.layers import SparseLinear
from scisparse.layers.rewiring import match_edges
from scisparse.pattern import Pattern
from scisparse.patterns import constant_fan_in, window


def random_pattern(sites: int, sources: int, density: float, seed: int = 0) -> Pattern:
    dense = torch.rand(sites, sources, generator=generator(seed)) < density
    dense[0] = False  # an output that reads nothing
    return Pattern.from_dense(dense)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (7, 5), (2, 3, 5), (0, 5)])
def test_equals_the_dense_layer(shape: tuple[int, ...], bias: bool) -> None:
    layer = SparseLinear(5, 9, pattern=random_pattern(9, 5, 0.5), bias=bias, dtype=torch.float64)
    dense = layer.to_dense()
    x = torch.randn(shape, dtype=torch.float64, generator=generator(1), requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, dense(x))
    assert y.shape == (*shape[:-1], 9)
    seen = torch.randn(y.shape, dtype=torch.float64, generator=generator(2))
    got = torch.autograd.grad((y * seen).sum(), [x, *layer.parameters()])
    expected = torch.autograd.grad((dense(x) * seen).sum(), [x, *dense.parameters()])
    keep = layer.pattern.to_dense()
    for mine, theirs in zip(got, [expected[0], expected[1][keep], *expected[2:]], strict=True):
        torch.testing.assert_close(mine, theirs)


def test_round_trip_with_dense() -> None:
    dense = nn.Linear(6, 4).eval()
    keep = torch.rand(4, 6, generator=generator(3)) < 0.5
    layer = SparseLinear.from_dense(dense, keep)
    assert not layer.training
    assert torch.equal(layer.to_dense().weight, dense.weight.masked_fill(~keep, 0))
    assert torch.equal(layer.pattern.to_dense(), keep)
    with pytest.raises(ShapeError, match=r"`keep` .* must be booleans \[4, 6\]"):
        SparseLinear.from_dense(dense, keep[:2])


def test_initial_scale_is_that_of_the_fan_in() -> None:
    layer = SparseLinear(400, 2000, 16)
    assert layer.weight.abs().max().item() <= 0.25
    assert layer.weight.std().item() == pytest.approx(0.25 / 3**0.5, rel=0.05)
    assert layer(torch.randn(8, 400)).shape == (8, 2000)


def test_files_hold_the_edges() -> None:
    first, second = (SparseLinear(12, 8, fan_in) for fan_in in (3, 5))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    x = torch.randn(4, 12, generator=generator(4))
    assert torch.equal(first(x), second(x))
    assert second.pattern == first.pattern
    with pytest.raises(PatternError, match="build the layer with the sizes"):
        SparseLinear(12, 9, 3).load_state_dict(first.state_dict())


@pytest.mark.parametrize("spare", [(5, 0), (0, 5), (5, 2)])
def test_files_may_have_other_spare_rows(spare: tuple[int, int]) -> None:
    layers = [SparseLinear(8, 6, fan_in=4) for _ in spare]
    for layer, rows in zip(layers, spare, strict=True):
        layer.rewire(layers[0].pattern, rows=24 + rows)
    layer, saved = layers
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer.load_state_dict(saved.state_dict())
    assert torch.equal(layer.weight, saved.weight)
    x = torch.randn(3, 8)
    layer(x).sum().backward()
    optimizer.step()
    layer.load_state_dict(saved.state_dict())
    assert torch.equal(layer(x), saved(x))


def test_gradients_go_along_where_other_edges_are_loaded() -> None:
    first, second = ([[1, 1, 0], [0, 1, 1]], [[0, 1, 1], [1, 0, 1]])
    patterns = [Pattern.from_dense(torch.tensor(each).bool()) for each in (first, second)]
    layer, other = (SparseLinear(3, 2, pattern=each) for each in patterns)
    layer.weight.grad = torch.tensor([1.0, 2.0, 3.0, 4.0])
    layer.load_state_dict(other.state_dict())
    assert layer.pattern == other.pattern
    assert layer.weight.grad.tolist() == [2.0, 0.0, 0.0, 4.0]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_shards_load_weights_of_other_edges(tmp_path: Path) -> None:
    """As a layer does that is drawn with another seed than the one that was saved."""
    from torch.distributed.fsdp import fully_shard

    saved, layer, smaller = (SparseLinear(12, 6, fan_in=n) for n in (5, 5, 4))
    assert layer.pattern.fingerprint != saved.pattern.fingerprint
    x = torch.randn(3, 12)
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        for each in (saved, layer, smaller):
            fully_shard(each)
        state = saved.state_dict()
        layer.load_state_dict(state)
        with torch.no_grad():
            assert torch.equal(layer(x), saved(x))
        assert layer.pattern.fingerprint == saved.pattern.fingerprint
        with pytest.raises(PatternError, match="`weight` of FSDPSparseLinear is a DTensor, as of"):
            smaller.load_state_dict(state)
    finally:
        torch.distributed.destroy_process_group()


def test_moves_and_types() -> None:
    layer = SparseLinear(12, 8, 3)
    x = torch.randn(4, 12, generator=generator(4))
    expected = layer(x)
    torch.testing.assert_close(copy.deepcopy(layer).double()(x.double()).float(), expected)
    meta = SparseLinear(12, 8, 3, device="meta").to_empty(device="cpu")
    meta.load_state_dict(layer.state_dict())
    assert torch.equal(meta(x), expected)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    assert "15 edges" not in repr(layer)
    assert "24 edges" in repr(layer)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({}, OptionError, "give one of the two"),
    ({"fan_in": 2, "pattern": random_pattern(4, 6, 0.5)}, OptionError, "give one of the two"),
    ({"fan_in": 7}, PatternError, r"`fan_in` \(=7\) must lie between 0 and `in_features` \(=6\)"),
    ({"fan_in": -1}, PatternError, "must lie between"),
    ({"fan_in": 0.5 * 6}, PatternError, r"`fan_in` \(=3.0\) must be an integer"),
    ({"pattern": random_pattern(6, 4, 0.5)}, PatternError, r"must have `out_features` sites"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[m for _, _, m in BAD])
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SparseLinear(6, 4, **options)


def test_bad_input() -> None:
    with pytest.raises(ShapeError, match=r"shape \[3, 5\]; it must be \[..., 6 features\]"):
        SparseLinear(6, 4, 2)(torch.zeros(3, 5))


@pytest.mark.parametrize(
    ("sites", "sources", "fan_in"),
    [(50, 9, 4), (3, 3, 3), (4, 5, 0), (0, 5, 2), (0, 50, 2), (400, 64, 7), (300_000, 300_000, 3)],
)
def test_constant_fan_in(sites: int, sources: int, fan_in: int) -> None:
    pattern = constant_fan_in(sites, sources, fan_in, generator=generator(5))
    assert pattern.fan_in.tolist() == [fan_in] * sites
    assert pattern == constant_fan_in(sites, sources, fan_in, generator=generator(5))


@pytest.mark.parametrize(("sources", "fan_in"), [(10, 3), (18, 2)])
def test_constant_fan_in_draws_every_set_evenly(sources: int, fan_in: int) -> None:
    rows = 40_000
    pattern = constant_fan_in(rows, sources, fan_in, generator=generator(6))
    number = (1 << pattern.col.long()).view(rows, fan_in).sum(1)
    counts = number.unique(return_counts=True)[1].double()
    sets = math.comb(sources, fan_in)
    assert len(counts) == sets
    expected = rows / sets
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_squared - (sets - 1)) < 5 * math.sqrt(2 * (sets - 1))


def test_match_edges_by_tap() -> None:
    """Padding that repeats a source gives several edges with the same ends."""
    pattern = window((3, 3), 3, padding=1, padding_mode=("replicate", "replicate"))
    keep = torch.rand(pattern.num_edges, generator=generator(7)) < 0.4
    part = pattern.select(keep)
    assert torch.equal(match_edges(pattern, part), keep.nonzero().squeeze(1))
    back = match_edges(part, pattern)
    assert torch.equal(back >= 0, keep)
    assert torch.equal(back[keep], torch.arange(int(keep.sum())))


def test_select_edges() -> None:
    pattern = random_pattern(6, 7, 0.5)
    numbers = torch.tensor([0, 3, 4])
    part = pattern.select(numbers)
    assert torch.equal(part.rows(), pattern.rows()[numbers])
    assert torch.equal(part.col, pattern.col[numbers])
    assert pattern.select(numbers[:0]).num_edges == 0
    for wrong in (numbers.flip(0), numbers.float(), torch.tensor([0, 99]), torch.ones(3).bool()):
        with pytest.raises(PatternError, match="`edges`"):
            pattern.select(wrong)


def test_vmap_over_biases_alone() -> None:
    layer, x = SparseLinear(5, 4, 2), torch.randn(3, 5)
    biases = torch.randn(6, 4)

    def run(bias: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.func.functional_call(layer, {"bias": bias}, (x,))
        return y

    expected = torch.stack([run(bias) for bias in biases])
    torch.testing.assert_close(torch.func.vmap(run)(biases), expected, rtol=0, atol=0)


def test_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        layer = SparseLinear(16, 8, 4)
    assert layer.weight.is_meta
    assert layer.col.is_meta
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    x = torch.randn(3, 16)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


def test_from_dense_takes_pruned_layers_and_layers_without_inputs() -> None:
    dense = prune.l1_unstructured(nn.Linear(12, 5), "weight", 0.5)
    layer = SparseLinear.from_dense(dense)
    x = torch.randn(3, 12)
    torch.testing.assert_close(layer(x), dense(x))
    assert layer.weight.requires_grad
    assert SparseLinear(0, 5, 0)(torch.randn(2, 0)).shape == (2, 5)


def test_an_edge_that_is_there_twice_adds_up_in_a_dense_layer() -> None:
    """As where padding repeats the rim."""
    layer = SparseLinear(20, 20, pattern=window((4, 5), 3, padding=1, padding_mode="replicate"))
    assert layer.pattern.statistics()["duplicates"]
    x = torch.randn(3, 20)
    torch.testing.assert_close(layer.to_dense()(x), layer(x))
