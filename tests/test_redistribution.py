"""Layers hand on weights by their momentum: planted needs, exact sums, states."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import generator
from sparsity_cases import OFTEN, adam, seed, train
from torch import Tensor, nn

from scisparse.errors import OptionError
from scisparse.layers import LocallyConnected, SparseAttention, SparseLinear
from scisparse.patterns import sliding_window, window
from scisparse.sparsity import Recipe, Sparsifier
from scisparse.sparsity.budgets import Regions
from scisparse.sparsity.redistribution import Standing, redistribute

INPUTS, OUTPUTS, GRID = 24, 16, (6, 8)


def _standings(numbers: random.Random, unit: int | None) -> list[Standing]:
    found = []
    for _ in range(numbers.randint(1, 7)):
        one = numbers.randint(1, 9) if unit is None else unit
        count = one * numbers.randint(0, 50)
        most = count + numbers.randint(0, 200)
        found.append(Standing(count, one, most, numbers.choice([0.0, numbers.random()])))
    return found


@pytest.mark.parametrize("unit", [1, 6, None])
def test_sum_stays_and_no_layer_passes_its_room(unit: int | None) -> None:
    numbers = random.Random(generator(3).initial_seed())
    for _ in range(200):
        standings, drop = _standings(numbers, unit), numbers.choice([0.3, 1.0, numbers.random()])
        total = sum(s.count for s in standings)
        counts = redistribute(standings, drop, total)
        for s, count in zip(standings, counts, strict=True):
            assert s.kept(drop) <= count <= max(s.most, s.count)
            assert count % s.unit == 0
            assert count > 0 or not s.count
        assert sum(counts) <= total
        if unit is not None:
            assert sum(counts) == total


def test_shares_are_proportional_to_momentum() -> None:
    numbers = random.Random(generator(4).initial_seed())
    standings = [Standing(1000, 1, 10**6, numbers.uniform(0.1, 1.0)) for _ in range(5)]
    grown = [count - 600 for count in redistribute(standings, 0.4, 5000)]
    whole = sum(s.momentum for s in standings)
    for s, count in zip(standings, grown, strict=True):
        assert count == pytest.approx(2000 * s.momentum / whole, abs=1)


def test_what_finds_no_room_comes_with_the_next_change() -> None:
    full = [Standing(10, 1, 10, 0.5), Standing(10, 1, 10, 0.5)]
    assert redistribute(full, 0.5, 23) == [10, 10]
    assert sum(redistribute([*full, Standing(2, 1, 50, 0.0)], 0.5, 23)) == 23


class Branches(nn.Module):
    """Sum of two layers, the second of which reads small numbers that hardly matter."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        build: dict[str, Callable[[], nn.Module]] = {
            "masked": lambda: nn.Linear(INPUTS, OUTPUTS),
            "edges": lambda: SparseLinear(INPUTS, OUTPUTS, fan_in=INPUTS),
            "local": lambda: LocallyConnected(window(GRID, 3, padding=1), 2, 3),
        }
        first, _, second = kind.partition("-")
        self.needs, self.idle = build[first](), build[second or first]()

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.needs(x) + self.idle(0.1 * x.flip(1))
        return total


def _data(kind: str, count: int = 30) -> list[tuple[Tensor, Tensor]]:
    gen = generator(11)
    if kind == "local":
        xs = [torch.randn(8, GRID[0] * GRID[1], 2, generator=gen) for _ in range(count)]
        return [(x, (x + x.roll(1, 1)).sum(2, keepdim=True).expand(-1, -1, 3)) for x in xs]
    mix = torch.randn(INPUTS, OUTPUTS, generator=gen)
    xs = [torch.randn(8, INPUTS, generator=gen) for _ in range(count)]
    return [(x, x @ mix) for x in xs]


def _start(kind: str, **options: Any) -> tuple[Any, Any, Any]:
    seed()
    model = Branches(kind)
    optimizer = adam(model)
    given = {"sparsity": 0.7, "schedule": OFTEN, **options}
    return model, optimizer, Sparsifier(model, optimizer, "sparse_momentum", **given)


KINDS = ["masked", "edges", "local", "edges-masked", "masked-edges"]


@pytest.mark.parametrize("kind", KINDS)
def test_layer_that_needs_weights_gets_them(kind: str) -> None:
    model, optimizer, sparsifier = _start(kind)
    started = [target.count for target in sparsifier.targets]
    rows = [parameter.shape for parameter in model.parameters()]
    for pair in _data(kind):
        train(model, optimizer, sparsifier, [pair])
        assert sum(target.count for target in sparsifier.targets) == sum(started)
    needs, idle = (target.count for target in sparsifier.targets)
    assert needs > 1.4 * started[0]
    assert idle < 0.6 * started[1]
    assert [parameter.shape for parameter in model.parameters()] == rows
    weights = [p for n, p in sparsifier.finalize("condensed").named_parameters() if "weight" in n]
    assert sum(p.numel() for p in weights) <= sum(started)


@pytest.mark.parametrize("fan_in", [3, 5, 8])
def test_room_does_not_depend_on_the_edges_at_first(fan_in: int) -> None:
    """Fan-in 5 is what each layer begins with."""
    seed()
    layers = [SparseLinear(20, 12, fan_in=fan_in), SparseLinear(12, 20, fan_in=3)]
    model = nn.Sequential(*layers)
    optimizer = adam(model)
    Sparsifier(model, optimizer, "sparse_momentum", sparsity=0.75, schedule=OFTEN)
    assert [layer.weight.shape[0] for layer in layers] == [120, 120]
    for layer in layers:
        assert layer.pattern.num_edges == 60
        assert not layer.weight[60:].any()


@pytest.mark.parametrize("kind", KINDS)
def test_resumes_bit_for_bit(kind: str) -> None:
    data = _data(kind)
    whole = _start(kind)
    losses = train(*whole, data)
    first = _start(kind)
    started = [target.count for target in first[2].targets]
    train(*first, data[:11])
    assert [target.count for target in first[2].targets] != started
    saved = io.BytesIO()
    torch.save([part.state_dict() for part in first], saved)
    saved.seek(0)
    again = _start(kind)
    for part, state in zip(again, torch.load(saved, weights_only=True), strict=True):
        part.load_state_dict(state)
    assert train(*again, data[11:]) == losses[11:]
    for a, b in zip(whole[2].targets, again[2].targets, strict=True):
        assert a.count == b.count


@pytest.mark.parametrize(
    "options",
    [
        {"budget": "erdos_renyi"},
        {"budget": {"needs": 0.7, "idle": 0.5}},
        {"growth": "gradient"},
        {"structure": "constant_fan_in"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["masked", "edges"])
def test_other_budgets_and_structures_keep_counts(kind: str, options: dict[str, Any]) -> None:
    model, optimizer, sparsifier = _start(kind, **options)
    started = [target.count for target in sparsifier.targets]
    train(model, optimizer, sparsifier, _data(kind, 12))
    assert [target.count for target in sparsifier.targets] == started
    assert max(layer.churn for layer in sparsifier.report().layers) > 0


@pytest.mark.parametrize("structure", ["unstructured", "taps"])
def test_regions_and_taps_keep_what_they_are_to_have(structure: str) -> None:
    regions = Regions([k % 2 for k in range(GRID[0] * GRID[1])], {1: 0.5})
    budget = regions if structure == "unstructured" else None
    model, optimizer, sparsifier = _start("local", sparsity=0.4, structure=structure, budget=budget)
    goals = [target.goal for target in sparsifier.targets]
    train(model, optimizer, sparsifier, _data("local", 12))
    assert [target.goal for target in sparsifier.targets] == goals


def test_blocks_are_handed_on_as_wholes() -> None:
    model, optimizer, sparsifier = _start("masked", structure="block")
    started = [target.count for target in sparsifier.targets]
    train(model, optimizer, sparsifier, _data("masked"))
    counts = [target.count for target in sparsifier.targets]
    assert sum(counts) == sum(started)
    assert counts[0] > started[0]
    assert not any(count % 16 for count in counts)


def test_attention_keeps_its_edges() -> None:
    seed()
    model = nn.Sequential(SparseAttention(sliding_window(40, 5), 4, 2), nn.Linear(4, 3))
    optimizer = adam(model)
    sparsifier = Sparsifier(
        model,
        optimizer,
        "sparse_momentum",
        sparsity=0.4,
        schedule=OFTEN,
        candidates=sliding_window(40, 9),
    )
    kept = {t.name: t.count for t in sparsifier.targets if t.parameter is None}
    total = sum(target.count for target in sparsifier.targets)
    gen = generator(5)
    xs = [torch.randn(2, 40, 4, generator=gen) for _ in range(12)]
    train(model, optimizer, sparsifier, [(x, x[..., :3].roll(3, 1)) for x in xs])
    assert kept
    assert kept == {t.name: t.count for t in sparsifier.targets if t.parameter is None}
    assert sum(target.count for target in sparsifier.targets) == total


def test_needs_running_means() -> None:
    with pytest.raises(OptionError, match="give growth='momentum'"):
        Sparsifier(nn.Linear(4, 4), None, "rigl", sparsity=0.5, total_steps=9, budget="momentum")


def test_recipes_hold_the_budget() -> None:
    pytest.importorskip("yaml")
    recipe = Recipe(method="rigl", growth="momentum", budget="momentum", sparsity=0.5)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("known", [0, 7])
def test_edges_without_a_running_mean_have_no_say(known: int) -> None:
    """A layer may load edges over a source that was missing so far."""
    model, optimizer, sparsifier = _start("edges")
    train(model, optimizer, sparsifier, _data("edges", 3))
    target = sparsifier.targets[0]
    target._momentum[target.active[known:]] = torch.nan
    own = target._momentum[target.active[:known]].abs()
    standing = target.standing()
    assert standing.momentum == pytest.approx(float(own.sum()) / max(1, known))
    standings = [standing, sparsifier.targets[1].standing()]
    total = sum(one.count for one in standings)
    assert sum(redistribute(standings, 0.5, total)) == total
