"""What a change of size, of sparsity and a copy do to weights, gradients and hooks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sparsity_cases import OFTEN, adam, batches, fields, locally, network, seed, train
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from scisparse.errors import OptionError, PatternError
from scisparse.layers import LocallyConnected2d, SparseLinear
from scisparse.layers.rewiring import resize
from scisparse.sparsity import Sparsifier, schedules


def linear() -> SparseLinear:
    seed()
    return SparseLinear(12, 6, fan_in=12)


@pytest.mark.parametrize("build", [linear, locally])
def test_weights_get_another_size_while_the_last_loss_is_there(build: Any) -> None:
    layer = build()
    data = fields(8) if build is locally else batches(8)
    optimizer = adam(layer)
    x, y = data[0]
    loss = (layer(x) - y).square().mean()  # holds the graph of the old size
    loss.backward()
    optimizer.step()
    sparsifier = Sparsifier(layer, optimizer, "rigl", sparsity=0.75, schedule=OFTEN)
    assert layer.weight.grad is not None
    assert layer.weight.grad.shape == layer.weight.shape
    held = []
    for x, y in data[1:]:
        held.append((layer(x) - y).square().mean())
        optimizer.zero_grad()
        held[-1].backward()
        optimizer.step()
        sparsifier.step()
    before = layer(x)
    final: Any = sparsifier.finalize()
    torch.testing.assert_close(final(x), before)
    final(x).sum().backward()


def test_a_size_that_ranks_know_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = nn.Parameter(torch.ones(4, 2))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    resize(weight, torch.ones(3, 2))  # nothing holds it
    loss = weight.sum()
    with pytest.raises(PatternError, match=r"\[3, 2\] that DistributedDataParallel holds"):
        resize(weight, torch.ones(2, 2))
    del loss
    resize(weight, torch.ones(2, 2))
    (weight.sum() * 2).backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[2, 2], [2, 2]]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process only."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("method", ["magnitude", "sparse_momentum", "l0"])
def test_finalize_changes_nothing_while_ranks_hold_a_weight_that_shrinks(method: str) -> None:
    seed()
    model = nn.Sequential(SparseLinear(12, 20, fan_in=5), nn.Tanh(), nn.Linear(20, 6))
    optimizer, data = adam(model), batches(12)
    sparsifier = Sparsifier(model, optimizer, method, sparsity=0.6, total_steps=12)
    together = DistributedDataParallel(model)
    train(together, optimizer, sparsifier, data)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(OptionError, match=r"weight .* is to lose .*; delete the wrapper"):
        sparsifier.finalize()
    assert all(map(torch.equal, model.parameters(), before))
    train(together, optimizer, sparsifier, data)  # nothing has ended
    del together
    expected = model.eval()(data[0][0]).detach()  # its graph would hold the weights as well
    final = sparsifier.finalize("condensed")
    torch.testing.assert_close(final(data[0][0]), expected)
    with pytest.raises(OptionError, match="called already"):
        sparsifier.finalize()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_ranks_go_back_to_a_state_with_spare_rows(order: tuple[int, ...]) -> None:
    """Weights keep their size, which what averages their gradients knows."""
    seed()
    model = nn.Sequential(SparseLinear(12, 20, fan_in=5), nn.Tanh(), SparseLinear(20, 6, fan_in=8))
    optimizer, data = adam(model), batches(12)
    sparsifier = Sparsifier(model, optimizer, "sparse_momentum", sparsity=0.6, schedule=OFTEN)
    parts: list[Any] = [model, optimizer, sparsifier]
    together = DistributedDataParallel(model)
    train(together, optimizer, sparsifier, data[:6])
    first: Any = model[0]
    assert len(first.weight) > first.pattern.num_edges
    states = copy.deepcopy([part.state_dict() for part in parts])
    expected = train(together, optimizer, sparsifier, data[6:])
    for number in order:
        parts[number].load_state_dict(states[number])
    assert train(together, optimizer, sparsifier, data[6:]) == expected


@pytest.mark.parametrize("structure", ["taps", "sites"])
@pytest.mark.parametrize("method", ["rigl", "set"])
def test_units_of_many_sizes_never_outgrow_their_rows(structure: str, method: str) -> None:
    for number in range(3):
        seed(number)
        layer = LocallyConnected2d(2, 2, 3, input_size=(6, 8), padding=1)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
        sparsifier = Sparsifier(
            layer,
            optimizer,
            method,
            sparsity=0.7,
            structure=structure,
            schedule=schedules.CosineDrop(end=100, every=2, fraction=0.5),
            seed=number,
        )
        rows = layer.weight.shape
        for _ in range(24):
            loss = (layer(torch.randn(3, 2, 6, 8)) - 1).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sparsifier.step()
            assert layer.weight.shape == rows


@pytest.mark.parametrize(
    ("method", "schedule"),
    [
        ("rigl", schedules.Cubic(begin=0, end=12, every=3)),
        ("set", schedules.Cubic(begin=0, end=12, every=3)),
        ("static", schedules.OneShot(6)),
    ],
)
@pytest.mark.parametrize("build", [linear, network])
def test_from_dense_to_sparse_ends_on_target(build: Any, method: str, schedule: Any) -> None:
    model = build()
    optimizer = adam(model)
    sparsifier = Sparsifier(model, optimizer, method, sparsity=0.75, schedule=schedule)
    assert sparsifier.report().sparsity == 0
    seen = []
    data = batches(16)
    for k, batch in enumerate(data):
        if k == 7:  # goes on from a state
            state = copy.deepcopy(sparsifier.state_dict())
            sparsifier.load_state_dict(state)
        train(model, optimizer, sparsifier, [batch])
        seen.append(sparsifier.report().sparsity)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("method", ["gmp", "movement", "lottery", "magnitude"])
@pytest.mark.parametrize(("before", "now", "stop"), [(100, 40, 50), (100, 60, 50), (60, 100, 30)])
def test_a_resumed_run_of_another_length_ends_on_target(
    method: str, before: int, now: int, stop: int
) -> None:
    def build(steps: int) -> Sparsifier:
        seed()
        model = network()
        schedule = schedules.OneShot(steps * 3 // 4) if method == "magnitude" else None
        rule: dict[str, Any] = {"sparsity": 0.7, "total_steps": steps, "schedule": schedule}
        return Sparsifier(model, adam(model), method, **rule)

    saved, data = build(before), batches(110)
    assert saved.optimizer is not None
    train(saved.model, saved.optimizer, saved, data[:stop])
    assert saved.report().sparsity < 0.69
    resumed = build(now)
    assert resumed.optimizer is not None
    resumed.model.load_state_dict(saved.model.state_dict())
    resumed.optimizer.load_state_dict(saved.optimizer.state_dict())
    with pytest.warns(UserWarning, match="at the next step with what it had pruned by now"):
        resumed.load_state_dict(saved.state_dict())
    train(resumed.model, resumed.optimizer, resumed, data[stop : max(now, stop + 1)])
    assert resumed.report().sparsity == pytest.approx(0.7, abs=0.002)


@pytest.mark.parametrize(
    "method", ["rigl", "srigl", "set", "sparse_momentum", "top_kast", "movement", "l0", "gmp"]
)
@pytest.mark.parametrize("build", [linear, network])
def test_a_copy_trains_as_the_original(build: Any, method: str) -> None:
    model = build()
    optimizer = adam(model)
    rule: dict[str, Any] = {"total_steps": 24}
    sparsifier = Sparsifier(model, optimizer, method, sparsity=0.6, **rule)
    data = batches(20)
    train(model, optimizer, sparsifier, data[:9])
    twins = copy.deepcopy((model, optimizer, sparsifier))
    assert twins[2].model is twins[0]
    expected = train(model, optimizer, sparsifier, data[9:])
    assert train(*twins, data[9:]) == expected
    for a, b in zip(twins[0].parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a is not b
    twins[2].finalize()
    sparsifier.finalize()


@pytest.mark.parametrize("build", [linear, network])
def test_momentum_does_not_see_the_scale_of_the_loss(build: Any) -> None:
    """A GradScaler whose scale grows with every other step, by powers of two."""
    losses: list[list[float]] = []
    for scaled in (False, True):
        seed()
        model = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        scaler = torch.amp.GradScaler("cpu", init_scale=256, growth_interval=2, enabled=scaled)
        sparsifier = Sparsifier(model, optimizer, "sparse_momentum", sparsity=0.7, schedule=OFTEN)
        losses.append([])
        for x, y in batches(24):
            loss = (model(x) - y).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            sparsifier.step()
            losses[-1].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
