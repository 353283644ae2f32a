"""Layers whose edges move: compact storage, candidates, state that goes along, copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from kernel_cases import generator
from sparsity_cases import (
    OFTEN,
    adam,
    batches,
    fields,
    locally,
    masks,
    network,
    seed,
    train,
)
from torch import Tensor, nn

from scisparse.layers import LocallyConnected, SparseLinear
from scisparse.pattern import Pattern
from scisparse.patterns import window
from scisparse.sparsity import Sparsifier, schedules


class TwoLinear(nn.Module):
    def __init__(self, first: Any, second: Any) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.tanh(self.first(x)))
        return y


@pytest.mark.parametrize(("accumulate", "method"), [(1, "rigl"), (2, "rigl"), (1, "srigl")])
def test_mask_and_compact_give_the_same_losses(accumulate: int, method: str) -> None:
    seed()
    dense = TwoLinear(nn.Linear(12, 20), nn.Linear(20, 6))
    end = 36 if method == "srigl" else 1000  # ablated neurons stay so while no edge goes any more
    rule = schedules.CosineDrop(end, every=2, fraction=0.5)
    options: dict[str, Any] = {"method": method, "sparsity": 0.8, "schedule": rule, "seed": 3}
    optimizer = adam(dense)
    masked = Sparsifier(dense, optimizer, budget="uniform", **options)
    compact = TwoLinear(SparseLinear.from_dense(dense.first), SparseLinear.from_dense(dense.second))
    other_optimizer = adam(compact)
    rewired = Sparsifier(compact, other_optimizer, budget="uniform", **options)
    losses: list[list[float]] = [[], []]
    moved = 0
    for k, (x, y) in enumerate(batches(40)):
        for i, (model, opt, one) in enumerate(
            ((dense, optimizer, masked), (compact, other_optimizer, rewired))
        ):
            loss = (model(x) - y).square().mean()
            loss.backward()
            losses[i].append(loss.item())
            if k % accumulate == accumulate - 1:
                opt.step()
                one.step()
                opt.zero_grad()
        moved += sum(r.churn > 0 for r in masked.report().layers)
    assert moved > 10
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for dense_layer, sparse in ((dense.first, compact.first), (dense.second, compact.second)):
        assert isinstance(sparse, SparseLinear)
        assert torch.equal(sparse.to_dense().weight == 0, dense_layer.weight == 0)


def test_pattern_layer_is_compact_and_every_tensor_stays_in_place() -> None:
    layer = locally()
    edges = layer.pattern.num_edges
    wider = window((5, 8), 5, padding=2, padding_mode=("zeros", "circular"))
    optimizer = adam(layer)
    sparsifier = Sparsifier(
        layer, optimizer, "rigl", sparsity=0.5, schedule=OFTEN, candidates=wider
    )
    assert layer.weight.shape == (round(0.5 * edges), 2, 3)
    held = [layer.weight, layer.col, layer.row_ptr, layer.col_t, layer.tie_index_t]
    places = [t.data_ptr() for t in held]
    patterns = {layer.pattern.fingerprint}
    for batch in fields(9):
        train(layer, optimizer, sparsifier, [batch])
        patterns.add(layer.pattern.fingerprint)
    assert len(patterns) == 5  # after steps 2, 4, 6 and 8
    now = [layer.weight, layer.col, layer.row_ptr, layer.col_t, layer.tie_index_t]
    assert all(a is b for a, b in zip(held, now, strict=True))
    assert places == [t.data_ptr() for t in now]
    assert layer.pattern.validate().num_edges == layer.weight.shape[0]
    assert bool((layer.pattern.to_dense() <= wider.to_dense()).all())
    assert layer.pattern.num_sites == 40


def test_growth_takes_the_candidate_with_the_largest_gradient() -> None:
    """Against the dense gradient of the same layer with all pairs as its edges."""
    seed()
    layer = SparseLinear(9, 7, fan_in=3)
    full = layer.to_dense()
    before = layer.to_dense().weight != 0
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    sparsifier = Sparsifier(layer, optimizer, "rigl", schedule=schedules.CosineDrop(100, 1, 0.6))
    data = batches(1, 9, 7)
    train(layer, optimizer, sparsifier, data)
    (full(data[0][0]) - data[0][1]).square().mean().backward()
    drops = int(0.3 * (1 + torch.cos(torch.tensor(torch.pi / 100)).item()) * 21)
    assert full.weight.grad is not None
    kept = before & (full.weight.abs() >= full.weight[before].abs().sort().values[drops])
    free = full.weight.grad.abs().masked_fill(kept, -1)
    expected = kept | (free >= free.flatten().sort().values[-drops])
    assert torch.equal(layer.pattern.to_dense(), expected)


def test_a_layer_loads_what_was_written_into_its_own_state() -> None:
    """As torch.distributed.checkpoint does: the state's weight is the layer's, which moves."""
    layers = [SparseLinear(6, 6, pattern=Pattern.from_dense(torch.eye(6).bool())) for _ in "ab"]
    layers[0].rewire(Pattern.from_dense(torch.eye(6).roll(1, 0).bool()))
    torch.nn.init.normal_(layers[0].weight)
    state = layers[1].state_dict()
    for name, value in layers[0].state_dict().items():
        state[name].copy_(value)
    layers[1].load_state_dict(state)
    assert layers[1].pattern == layers[0].pattern
    assert torch.equal(layers[1].weight, layers[0].weight)


def test_a_sparsifier_knows_edges_that_its_layer_has_loaded() -> None:
    layer = locally()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    rule = schedules.CosineDrop(100, 2, 0.5)
    sparsifier = Sparsifier(layer, optimizer, "rigl", sparsity=0.5, schedule=rule)
    best, pattern = copy.deepcopy(layer.state_dict()), layer.pattern
    train(layer, optimizer, sparsifier, fields(6))
    assert layer.pattern != pattern
    layer.load_state_dict(best)
    other = locally()
    optimizer = torch.optim.Adam(other.parameters())
    fresh = Sparsifier(other, optimizer, "rigl", sparsity=0.5, schedule=rule)
    other.load_state_dict(layer.state_dict())
    fresh.load_state_dict(sparsifier.state_dict())
    assert other.pattern == pattern
    assert torch.equal(other.weight, layer.weight)


def test_state_moves_with_edges() -> None:
    layer = locally()
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    sparsifier = Sparsifier(
        layer, optimizer, "rigl", sparsity=0.5, schedule=schedules.CosineDrop(100, 3, 0.5)
    )
    train(layer, optimizer, sparsifier, fields(2))
    # One step by hand, so that what was there before the change is seen.
    x, y = fields(3)[2]
    optimizer.zero_grad()
    (layer(x) - y).square().mean().backward()
    optimizer.step()
    state = optimizer.state[layer.weight]
    before = {
        key: dict(
            zip(map(tuple, layer.pattern.to_edge_index().T.tolist()), values.tolist(), strict=True)
        )
        for key, values in (
            ("w", layer.weight),
            ("m", state["exp_avg"]),
            ("v", state["exp_avg_sq"]),
        )
    }
    sparsifier.step()
    new = 0
    for key, values in (("w", layer.weight), ("m", state["exp_avg"]), ("v", state["exp_avg_sq"])):
        pairs = map(tuple, layer.pattern.to_edge_index().T.tolist())
        for pair, value in zip(pairs, values.tolist(), strict=True):
            assert value == before[key].get(pair, [[0.0] * 3] * 2)
            new += pair not in before[key]
    assert new > 30


@pytest.mark.parametrize("build", [network, locally])
def test_change_waits_while_gradients_are_not_finite(build: Any) -> None:
    seed()
    model = build()
    data = batches(3) if isinstance(model, nn.Sequential) else fields(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsifier = Sparsifier(
        model, optimizer, "rigl", sparsity=0.5, schedule=schedules.CosineDrop(10, 2, 0.5)
    )
    before = [t.state_dict() for t in sparsifier.targets]
    (x, y), (bad, _), _ = data
    bad = bad.clone()
    bad[0, 0] = torch.inf
    train(model, optimizer, sparsifier, [(x, y)])
    loss = (model(bad) - y).sum()
    optimizer.zero_grad()
    loss.backward()
    sparsifier.step()  # the loop skips the optimizer, as a gradient scaler does
    for target, state in zip(sparsifier.targets, before, strict=True):
        key = "mask" if "mask" in state else "active"
        assert torch.equal(target.state_dict()[key], state[key])
    train(model, optimizer, sparsifier, [(x, y)])
    assert any(report.churn > 0 for report in sparsifier.report().layers)


def test_compact_layer_resumes_bit_for_bit() -> None:
    def start() -> tuple[Any, Any, Any]:
        layer = locally()
        optimizer = adam(layer)
        return layer, optimizer, Sparsifier(layer, optimizer, "rigl", sparsity=0.5, schedule=OFTEN)

    data = fields(20)
    losses = train(*start(), data)
    first = start()
    train(*first, data[:9])
    states = copy.deepcopy([part.state_dict() for part in first])
    again = start()
    for part, state in zip(again, states, strict=True):
        part.load_state_dict(state)
    assert train(*again, data[9:]) == losses[9:]


@pytest.mark.parametrize("sparsity", [0.68, 0.7, 0.74])  # rounded up, down, and far down
def test_parameters_keep_their_shape_when_neurons_are_ablated(sparsity: float) -> None:
    """A fan-in rounded down leaves room in the budget, but not in the weight."""
    layer = locally()
    optimizer = adam(layer)
    sparsifier = Sparsifier(layer, optimizer, "srigl", sparsity=sparsity, schedule=OFTEN)
    shape = layer.weight.shape
    for batch in fields(20):
        train(layer, optimizer, sparsifier, [batch])
        assert layer.weight.shape == shape
    assert int((layer.pattern.fan_in == 0).sum()) > 0  # some are ablated, their edges go to others


def test_compiled_model_sees_every_change() -> None:
    def run(compiled: bool) -> list[float]:
        layer = locally()
        optimizer = adam(layer)
        sparsifier = Sparsifier(layer, optimizer, "rigl", sparsity=0.5, schedule=OFTEN)
        model = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
        return train(model, optimizer, sparsifier, fields(9))

    torch.compiler.reset()
    assert run(True) == pytest.approx(run(False), rel=1e-5)


def test_moving_average_follows() -> None:
    layer = locally()
    optimizer = adam(layer)
    sparsifier = Sparsifier(layer, optimizer, "rigl", sparsity=0.5, schedule=OFTEN)
    mean = torch.optim.swa_utils.AveragedModel(
        layer, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    sparsifier.follow(mean.module)
    expected: dict[tuple[int, ...], Tensor] = {}
    for step, batch in enumerate(fields(9)):
        train(layer, optimizer, sparsifier, [batch])
        mean.update_parameters(layer)
        edges = [tuple(pair) for pair in layer.pattern.to_edge_index().T.tolist()]
        zero, share = torch.zeros(2, 3), 0.1 if step else 1.0
        expected = {
            edge: expected.get(edge, zero).lerp(weight, share)
            for edge, weight in zip(edges, layer.weight.detach(), strict=True)
        }
    assert mean.module.pattern == layer.pattern
    torch.testing.assert_close(mean.module.weight, torch.stack(list(expected.values())))


@pytest.mark.parametrize("loads", [True, False])
def test_a_moving_average_that_has_other_edges_than_the_layer(loads: bool) -> None:
    """One of them has gone back to a saved state, the other has not."""
    layer = locally()
    optimizer, data = adam(layer), fields(12)
    sparsifier = Sparsifier(layer, optimizer, "rigl", sparsity=0.5, schedule=OFTEN)
    mean: Any = torch.optim.swa_utils.AveragedModel(layer)
    sparsifier.follow(mean)
    parts: list[Any] = [layer, optimizer, sparsifier, mean]
    states: list[dict[str, Any]] = []
    for batch in data[:7]:
        train(layer, optimizer, sparsifier, [batch])
        mean.update_parameters(layer)
        if not states:
            states = [copy.deepcopy(part.state_dict()) for part in parts]
    if loads:
        mean.load_state_dict(states[3])
        assert mean.module.pattern != layer.pattern
    averaged = mean.module.edge_weight.detach()
    before = dict(zip(edges_of(mean.module.pattern), averaged.clone(), strict=True))
    if not loads:
        for part, state in zip(parts[:3], states[:3], strict=True):
            part.load_state_dict(state)
        assert mean.module.pattern == layer.pattern
    while mean.module.pattern != layer.pattern:
        train(layer, optimizer, sparsifier, data[7:8])
    zero = torch.zeros(2, 3)
    expected = [before.get(edge, zero) for edge in edges_of(layer.pattern)]
    assert torch.equal(mean.module.edge_weight, torch.stack(expected))


def edges_of(pattern: Pattern) -> list[tuple[int, ...]]:
    assert pattern.tap is not None
    return list(zip(*(t.tolist() for t in (*pattern.to_edge_index(), pattern.tap)), strict=True))


@pytest.mark.parametrize("structure", ["unstructured", "taps", "sites"])
def test_copies_made_before_the_sparsifier_follow(structure: str) -> None:
    layer = locally()
    mean = torch.optim.swa_utils.AveragedModel(layer)
    wide = window((5, 8), 5, padding=2, padding_mode=("zeros", "circular"))
    optimizer = adam(layer)
    options: dict[str, Any] = {"structure": structure, "candidates": wide, "schedule": OFTEN}
    sparsifier = Sparsifier(layer, optimizer, "rigl", sparsity=0.5, **options)
    sparsifier.follow(mean.module)
    for batch in fields(9):
        train(layer, optimizer, sparsifier, [batch])
        mean.update_parameters(layer)
        assert mean.module.pattern == layer.pattern
        weight = mean.module.get_parameter("weight")
        assert weight.shape == layer.weight.shape
        spares = weight[layer.pattern.num_edges :]
        assert torch.equal(spares, torch.zeros_like(spares))


def test_copies_are_their_own() -> None:
    layer = locally()
    optimizer = adam(layer)
    sparsifier = Sparsifier(layer, optimizer, "rigl", sparsity=0.5, schedule=OFTEN)
    train(layer, optimizer, sparsifier, fields(1))
    other = copy.deepcopy(layer)
    col = other.col.clone()
    train(layer, optimizer, sparsifier, fields(9)[1:])
    assert torch.equal(other.col, col)
    assert not torch.equal(layer.col, col)
    dense = network()
    masked = Sparsifier(dense, adam(dense), "rigl", sparsity=0.5, schedule=OFTEN)
    twin = copy.deepcopy(dense)
    twin(batches(1)[0][0]).sum().backward()
    assert masked.targets[0].finite()
    grad = twin.get_parameter("0.weight").grad
    assert grad is not None
    assert bool((grad[~masks(masked)[0]] != 0).any())  # nothing masks the copy


def test_two_layers_on_one_pattern_do_not_hear_each_other() -> None:
    pattern = window((5, 8), 3, padding=1)
    seed()
    model = nn.Sequential(LocallyConnected(pattern, 2, 2), LocallyConnected(pattern, 2, 3))
    col = pattern.col.clone()
    optimizer = adam(model)
    sparsifier = Sparsifier(model, optimizer, "rigl", sparsity=0.5, schedule=OFTEN)
    train(model, optimizer, sparsifier, fields(6))
    assert torch.equal(pattern.col, col)
    assert model[0].pattern != model[1].pattern


def test_pruning_method_on_pattern_layer_prunes_whole_edges() -> None:
    layer = locally()
    optimizer = adam(layer)
    sparsifier = Sparsifier(layer, optimizer, "gmp", sparsity=0.75, total_steps=12)
    train(layer, optimizer, sparsifier, fields(12))
    kept = (layer.weight != 0).flatten(1)
    assert torch.equal(kept.all(1), kept.any(1))
    assert int(kept.all(1).sum()) == round(0.25 * layer.pattern.num_edges)


def test_neurons_of_a_compact_layer_are_ablated() -> None:
    seed()
    model = TwoLinear(SparseLinear(40, 30, 4), SparseLinear(30, 8, 4))
    optimizer = adam(model)
    rows = model.first.weight.shape[0]
    sparsifier = Sparsifier(model, optimizer, "srigl", schedule=OFTEN)
    for batch in batches(40, 40, 8):
        train(model, optimizer, sparsifier, [batch])
        fan_in = model.first.pattern.fan_in
        assert len(set(fan_in.tolist()) - {0}) == 1
        assert 0.75 * rows <= int(fan_in.sum()) <= rows
        assert model.first.weight.shape[0] == rows
    assert 0 < int((fan_in == 0).sum()) < 30
    x = batches(1, 40, 8)[0][0]
    expected = model(x).detach()
    sparsifier.finalize("condensed")
    torch.testing.assert_close(model(x).detach(), expected)
    pattern = model.first.pattern
    assert model.first.weight.shape[0] == pattern.num_edges <= int(fan_in.sum())
    assert int(pattern.fan_in.min()) > 0
    assert pattern.num_sites == model.second.pattern.num_sources <= int((fan_in > 0).sum())


def test_ablation_has_room_where_a_layer_begins_with_its_edges() -> None:
    """Fan-in 6 is what rounding leaves of 127 weights; sites that stay may use all of them."""
    seed()
    layer = SparseLinear(12, 20, fan_in=6)
    optimizer = adam(layer)
    sparsifier = Sparsifier(layer, optimizer, "srigl", sparsity=1 - 127 / 240, schedule=OFTEN)
    gen = generator(13)
    xs = [torch.randn(16, 12, generator=gen) for _ in range(40)]
    rows = torch.arange(20) < 3  # the others have nothing to do
    for x in xs:
        train(layer, optimizer, sparsifier, [(x, 5 * x[:, :1] * rows)])
        assert layer.weight.shape[0] == 127
