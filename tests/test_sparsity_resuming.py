"""A sparsifier goes on from a state of the same arguments and weights, or says what differs."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import generator
from sparsity_cases import OFTEN, SIZES, adam, batches, locally, masks, network, seed, train
from torch import nn
from torch.utils._pytree import tree_leaves

from scisparse.errors import CheckpointError
from scisparse.grids import LatLonGrid
from scisparse.layers import LocallyConnected, SparseLinear
from scisparse.pattern import Pattern
from scisparse.patterns import radius
from scisparse.sparsity import Sparsifier, budgets, growth, importance, schedules, structures

OTHERS: list[tuple[dict[str, Any], str]] = [
    ({"method": "set"}, "of method=rigl, this sparsifier of method=set"),
    (
        {"structure": structures.Block(2, 2)},
        r"of structure=Unstructured\(\), this sparsifier of structure=Block\(height=2, width=2\)",
    ),
    ({"score": "taylor"}, "of score=magnitude, this sparsifier of score=taylor"),
    ({"growth": "random"}, "of growth=gradient, this sparsifier of growth=random"),
    ({"params": ["0.weight"]}, "of the weights 0.weight, 2.weight, this sparsifier of 0.weight:"),
]


@pytest.mark.parametrize(("other", "message"), OTHERS)
def test_a_state_of_other_arguments(other: dict[str, Any], message: str) -> None:
    def build(**given: Any) -> Sparsifier:
        model = network()
        return Sparsifier(model, adam(model), sparsity=0.5, total_steps=40, **given)

    state = build().state_dict()
    build().load_state_dict(state)
    with pytest.raises(CheckpointError, match=message):
        build(**other).load_state_dict(state)


NUMBERS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"method": "top_kast", "growth": growth.superset(extra=1)},
        {"growth": growth.superset(extra=1, penalty=1e-3)},
        r"of growth=superset\(extra=1, penalty=0.0001\), .*=superset\(extra=1, penalty=0.001\)",
    ),
    (
        {"method": "rigl", "growth": growth.distance_prior(500e3)},
        {"growth": growth.distance_prior(5e3)},
        r"of growth=distance_prior\(scale=500000\), .*=distance_prior\(scale=5000\)",
    ),
    (
        {"method": "l0", "score": importance.hard_concrete()},
        {"score": importance.hard_concrete(price_rate=0.2)},
        r"of score=hard_concrete\(.*price_rate=0.1\), .*price_rate=0.2\)",
    ),
]


@pytest.mark.parametrize(("given", "other", "message"), NUMBERS)
def test_a_state_of_a_rule_with_other_numbers(
    given: dict[str, Any], other: dict[str, Any], message: str
) -> None:
    def build(**options: Any) -> Sparsifier:
        grid = LatLonGrid.from_degrees(np.linspace(-80, 80, 6), np.arange(0, 360, 30))
        layer = LocallyConnected(radius(grid, 4e6), 1, 1)
        return Sparsifier(layer, adam(layer), sparsity=0.5, total_steps=40, **options)

    state = build(**given).state_dict()
    build(**copy.deepcopy(given)).load_state_dict(state)
    with pytest.raises(CheckpointError, match=message):
        build(**given | other).load_state_dict(state)


def test_numbers_of_numpy_are_the_same_arguments() -> None:
    def build(number: Any) -> Sparsifier:
        given: dict[str, Any] = {"structure": structures.Block(number(2), 2)}
        return Sparsifier(
            network(), None, "gmp", sparsity=0.5, schedule=schedules.Cubic(0, number(9)), **given
        )

    build(int).load_state_dict(build(np.int64).state_dict())


def test_whole_numbers_are_the_same_with_and_without_a_point() -> None:
    def build(number: Any) -> Sparsifier:
        parts: dict[str, Any] = {"structure": structures.ConstantFanIn(number)}
        model = network()
        rule = growth.superset(extra=number)
        return Sparsifier(
            model, adam(model), "top_kast", sparsity=0.5, total_steps=9, growth=rule, **parts
        )

    build(1).load_state_dict(build(1.0).state_dict())


def test_a_state_of_something_else() -> None:
    sparsifier = Sparsifier(network(), None, "magnitude", sparsity=0.5)
    with pytest.raises(
        CheckpointError, match=r"not of a sparsifier: it holds '0.weight', '0.bias'"
    ):
        sparsifier.load_state_dict(sparsifier.model.state_dict())


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (["allotment"], r"lacks 'allotment': another version has made it"),
        (["progress", "moved"], r"lacks 'moved' of progress: another"),
        (["settings", "growth"], r"lacks 'growth' of settings: another"),
        (["targets", "2.weight", "fan_in"], r"lacks 'fan_in' of 2.weight: another"),
    ],
)
def test_a_state_that_is_not_whole_changes_nothing(path: list[str], message: str) -> None:
    def build(number: int) -> Sparsifier:
        seed(number)
        model = network()
        return Sparsifier(model, adam(model), "rigl", sparsity=0.5, schedule=OFTEN, seed=number)

    saved, other = build(0), build(1)
    state = copy.deepcopy(saved.state_dict())
    part = state
    for name in path[:-1]:
        part = part[name]
    del part[path[-1]]
    before = copy.deepcopy(masks(other))
    with pytest.raises(CheckpointError, match=message):
        other.load_state_dict(state)
    assert all(map(torch.equal, masks(other), before))


def test_a_state_of_another_sparsity_or_schedule() -> None:
    def build(**options: Any) -> Sparsifier:
        seed()
        model = network()
        return Sparsifier(model, adam(model), "rigl", **options)

    saved = build(sparsity=0.75, total_steps=40)
    assert saved.optimizer is not None
    train(saved.model, saved.optimizer, saved, batches(3))
    state = saved.state_dict()
    build(sparsity=0.75, total_steps=40).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"sparsity=0.75, this sparsifier of sparsity=0.5"):
        build(sparsity=0.5, total_steps=40).load_state_dict(state)
    longer = build(sparsity=0.75, total_steps=80)
    with pytest.warns(UserWarning, match=r"CosineDrop\(end=30.*goes on by CosineDrop\(end=60"):
        longer.load_state_dict(state)
    assert longer.progress.steps == 3


BUDGETS: list[tuple[Any, str]] = [
    ("uniform", "uniform"),
    (None, "erdos_renyi"),
    ({"0.weight": 0.5, "2.weight": 0.8}, r"\{'0.weight': 0.5, '2.weight': 0.8\}"),
    ({"0.weight": 0.5, "2.weight": 0.7}, r"\{'0.weight': 0.5, '2.weight': 0.7\}"),
    (budgets.Regions(torch.arange(40) % 2, {1: 0.5}), r"Regions\(\{'1': 0.5\}\)"),
    (budgets.AreaWeighted(torch.arange(1, 41)), "AreaWeighted"),
]


@pytest.mark.parametrize(("given", "written"), BUDGETS)
def test_a_state_of_another_budget(given: Any, written: str) -> None:
    by_sites = budgets.Regions | budgets.AreaWeighted

    def build(budget: Any) -> Sparsifier:
        model = locally() if isinstance(given, by_sites) else network()
        return Sparsifier(model, None, "rigl", sparsity=0.4, total_steps=40, budget=budget)

    state = build(given).state_dict()
    build(copy.deepcopy(given)).load_state_dict(state)
    for other, other_written in BUDGETS:
        if other is given or (isinstance(other, by_sites) and not isinstance(given, by_sites)):
            continue
        if isinstance(other, dict) and isinstance(given, by_sites):
            continue
        message = rf"of budget={written}, this sparsifier of budget={other_written}: build it with"
        with pytest.raises(CheckpointError, match=message):
            build(other).load_state_dict(state)


def test_weights_to_rewind_to_that_were_not_kept() -> None:
    def build(rewind_to: int) -> Sparsifier:
        seed()
        model = network()
        schedule = schedules.Iterative(rounds=2, every=10, rewind_to=rewind_to)
        return Sparsifier(model, adam(model), "lottery", sparsity=0.5, schedule=schedule)

    saved = build(8)
    assert saved.optimizer is not None
    train(saved.model, saved.optimizer, saved, batches(4))
    with (
        pytest.warns(UserWarning, match="goes on by"),
        pytest.raises(CheckpointError, match=r"weights of step 3, and the saved state, of step 4,"),
    ):
        build(3).load_state_dict(saved.state_dict())
    with pytest.warns(UserWarning, match="goes on by"):
        build(5).load_state_dict(saved.state_dict())


def test_edges_among_other_candidates() -> None:
    def build(number: int | None) -> Sparsifier:
        seed()
        layer = SparseLinear(SIZES[0], SIZES[-1], fan_in=3)
        present = torch.rand(layer.pattern.shape, generator=generator(number or 0)) < 0.5
        wider = None if number is None else layer.pattern.union(Pattern.from_dense(present))
        return Sparsifier(layer, adam(layer), "rigl", candidates=wider, schedule=OFTEN)

    saved = build(1)
    assert saved.optimizer is not None
    train(saved.model, saved.optimizer, saved, batches(6))
    state, x = saved.state_dict(), batches(1)[0][0]
    for number in (2, None):
        with pytest.raises(CheckpointError, match=r"saved edges of weight are some of \d+ edges"):
            build(number).load_state_dict(state)
    resumed = build(1)
    resumed.load_state_dict(state)
    resumed.model.load_state_dict(saved.model.state_dict())
    assert torch.equal(resumed.model(x), saved.model(x))


def wider(last: int) -> nn.Sequential:
    return network((12, 20, last))


def linked(last: int) -> nn.Sequential:
    return nn.Sequential(SparseLinear(12, 20, fan_in=4), SparseLinear(20, last, fan_in=5))


@pytest.mark.parametrize("layers", [wider, linked])
def test_a_state_that_the_last_layer_refuses_changes_nothing(layers: Any) -> None:
    def build(last: int, number: int) -> Sparsifier:
        seed(number)
        model = layers(last)
        budget = None if layers is wider else "momentum"
        return Sparsifier(
            model, adam(model), "sparse_momentum", sparsity=0.7, budget=budget, schedule=OFTEN
        )

    saved, other = build(6, 0), build(7, 1)
    for one, outputs in ((saved, 6), (other, 7)):
        assert one.optimizer is not None
        train(one.model, one.optimizer, one, batches(5, outputs=outputs))
    before, weights = copy.deepcopy(other.state_dict()), copy.deepcopy(other.model.state_dict())
    with pytest.raises(CheckpointError, match=r"of (2|1)\.weight"):
        other.load_state_dict(saved.state_dict())
    for now, then in zip(tree_leaves(other.state_dict()), tree_leaves(before), strict=True):
        assert torch.equal(now, then) if isinstance(now, torch.Tensor) else now == then
    torch.testing.assert_close(other.model.state_dict(), weights, rtol=0, atol=0)
    assert other.optimizer is not None
    train(other.model, other.optimizer, other, batches(5, outputs=7))  # and goes on


@pytest.mark.parametrize("method", ["rigl", "set", "srigl"])
def test_a_model_that_was_loaded_before_its_sparsifier_was_built(method: str) -> None:
    def build(model: nn.Module) -> Sparsifier:
        return Sparsifier(model, adam(model), method, sparsity=0.7, schedule=OFTEN)

    seed()
    saved = build(network())
    assert saved.optimizer is not None
    train(saved.model, saved.optimizer, saved, batches(20))
    resumed = build(copy.deepcopy(saved.model))
    with pytest.raises(CheckpointError, match="of them to 0 by its sparse start; build the spars"):
        resumed.load_state_dict(saved.state_dict())
    resumed.model.load_state_dict(saved.model.state_dict())
    resumed.load_state_dict(saved.state_dict())
    assert masks(resumed)[0].equal(masks(saved)[0])


def test_a_pattern_layer_that_was_loaded_before_its_sparsifier_was_built() -> None:
    def build(layer: LocallyConnected) -> Sparsifier:
        wider = locally().pattern
        return Sparsifier(
            layer, None, "set", sparsity=0.5, candidates=wider, total_steps=40, params=["weight"]
        )

    saved = build(locally())
    loaded = locally()
    loaded.rewire(saved.model.get_submodule("").pattern)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="before either loads its state"):
        build(loaded).load_state_dict(saved.state_dict())


@pytest.mark.parametrize("stop", [5, 17])  # while edges move, and when no change moves any
@pytest.mark.parametrize("compact", [False, True])
def test_what_was_ablated_or_active_once_is_known_again(compact: bool, stop: int) -> None:
    def start() -> tuple[Any, Any, Sparsifier]:
        seed()
        model: Any = network()
        if compact:
            model[0] = SparseLinear.from_dense(model[0])
        options: dict[str, Any] = {"structure": structures.ConstantFanIn(0.8), "schedule": OFTEN}
        options |= {"sparsity": 0.8, "growth": "never_active_first", "params": ["0"]}
        optimizer = adam(model)
        return model, optimizer, Sparsifier(model, optimizer, "srigl", **options)

    data = batches(40)
    whole = start()
    train(*whole, data[:stop])
    again = start()
    for part, state in zip(again, copy.deepcopy([p.state_dict() for p in whole]), strict=True):
        part.load_state_dict(state)
    assert again[2].report() == whole[2].report()
    assert (whole[2].report().layers[0].churn > 0) == (stop == 5)
    assert train(*again, data[stop:]) == train(*whole, data[stop:])
    assert again[2].report() == whole[2].report()
    fan_in: Any = whole[2].state_dict()["targets"]["0.weight"]["fan_in"]
    assert 0 < int((fan_in == 0).sum()) < 20


def test_a_change_that_waits_comes_after_resuming() -> None:
    runs: list[tuple[Any, Any, Sparsifier]] = []
    for _ in range(2):
        seed()
        model = network()
        optimizer = adam(model)
        runs.append((model, optimizer, Sparsifier(model, optimizer, sparsity=0.5, schedule=OFTEN)))
    train(*runs[0], batches(1))
    model, _, sparsifier = runs[0]
    model(torch.full((2, SIZES[0]), torch.inf)).sum().backward()
    sparsifier.step()  # a gradient scaler has skipped that of the optimizer
    runs[1][2].load_state_dict(sparsifier.state_dict())
    train(*runs[1], batches(1))
    assert sorted(runs[1][2].progress.moved) == ["0.weight", "2.weight"]
