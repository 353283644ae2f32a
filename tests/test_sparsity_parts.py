"""Pure parts of a sparsifier: choices, structures, budgets, schedules, growth."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import generator
from sparsity_cases import adam, batches, fields, locally, network, seed, train
from torch import Tensor, nn

from scisparse import patterns
from scisparse.errors import OptionError
from scisparse.grids import LatLonGrid
from scisparse.layers import LocallyConnected
from scisparse.patterns import window
from scisparse.sparsity import Sparsifier, budgets, growth, importance, schedules, structures
from scisparse.sparsity.edge_target import EdgeTarget
from scisparse.sparsity.growth import Candidates
from scisparse.sparsity.select import best, best_of_groups, next_active


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


@given(st.lists(st.integers(-2, 2), max_size=12), st.integers(-1, 14))
def test_best_goes_by_score_then_by_place(values: list[int], count: int) -> None:
    score = torch.tensor(values, dtype=torch.float32)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[: max(0, count)]
    assert best(score, count).nonzero().flatten().tolist() == sorted(order)


@given(st.data())
def test_best_of_groups_equals_best_of_each(data: st.DataObject) -> None:
    n, groups = data.draw(st.integers(0, 20)), data.draw(st.integers(1, 4))
    score = torch.tensor(data.draw(st.lists(st.integers(-2, 2), min_size=n, max_size=n))).float()
    group = torch.tensor(
        data.draw(st.lists(st.integers(0, groups - 1), min_size=n, max_size=n)), dtype=torch.int64
    )
    quota = torch.tensor(data.draw(st.lists(st.integers(0, 5), min_size=groups, max_size=groups)))
    score[score == 2] = -torch.inf  # never chosen
    chosen = best_of_groups(score, group, quota)
    for g in range(groups):
        assert torch.equal(chosen[group == g], best(score[group == g], int(quota[g])))


def test_next_active_fills_every_quota() -> None:
    active = torch.tensor([True, True, True, False, False, False])
    keep = torch.tensor([3.0, 1.0, 2.0, 9.0, 9.0, 9.0])
    grow = torch.tensor([0.0, 5.0, 0.0, 1.0, 7.0, 2.0])
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    quota = torch.tensor([2, 1])
    assert next_active(active, keep, grow, group, quota, 2).tolist() == [
        True, True, False, False, True, False,
    ]  # fmt: skip


SHAPES = [(8, 16), (8, 16, 3), (4, 8, 3, 5)]
STRUCTURES: list[structures.Structure] = [
    structures.Unstructured(),
    structures.ConstantFanIn(),
    structures.NM(2, 4),
    structures.NM(1, 4),
    structures.Block(4, 4),
    structures.Channels(),
    structures.Taps(),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("structure", STRUCTURES, ids=repr)
def test_structure_keeps_what_it_says(structure: structures.Structure, shape: Any) -> None:
    if isinstance(structure, structures.Taps) and len(shape) < 3:
        with pytest.raises(OptionError, match="has no taps"):
            structure.choose(torch.ones(shape), 1)
        return
    score = randn(*shape).abs() + 0.1
    size = math.prod(shape)
    count = size * structure.n // structure.m if isinstance(structure, structures.NM) else size // 2
    if isinstance(structure, structures.Block) and math.prod(shape[1:]) % 4:
        with pytest.raises(OptionError, match="do not divide"):
            structure.choose(score, count)
        return
    keep = structure.choose(score, count)
    assert keep.shape == shape
    pooled = structure.pool(keep.float())
    units = structure.pool(torch.ones(shape))
    assert bool(((pooled == 0) | (pooled == units)).all())  # units stand or fall together
    assert abs(int(keep.sum()) - count) <= int(units.max()) * shape[0]
    if isinstance(structure, structures.NM):
        runs = keep.movedim(1, -1).reshape(-1, structure.m)
        assert runs.sum(1).unique().tolist() == [structure.n]
        kept = (score.movedim(1, -1).reshape(runs.shape) * runs).sum(1)
        best_sum = score.movedim(1, -1).reshape(runs.shape).topk(structure.n).values.sum(1)
        torch.testing.assert_close(kept, best_sum)
    if isinstance(structure, structures.ConstantFanIn):
        assert len(keep.flatten(1).sum(1).unique()) == 1


def test_vnm_shares_four_inputs() -> None:
    structure = structures.VNM(2, 8, 4)
    keep = structure.choose(randn(8, 16).abs(), 8 * 16 // 4)
    assert keep.reshape(8, 2, 8).sum(2).unique().tolist() == [2]
    used = keep.reshape(2, 4, 2, 8).any(1).sum(-1)
    assert bool((used <= 4).all())


WRONG_RUNS: list[tuple[type, dict[str, Any], str]] = [
    (structures.NM, {"n": 1.5}, r"`n` \(=1.5\) must be an integer"),
    (structures.NM, {"n": 0}, r"`n` \(=0\) must be at least 1"),
    (structures.NM, {"n": 7, "m": 5}, r"`n` \(=7\) must be at most `m` \(=5\)"),
    (structures.VNM, {"v": 0}, r"`v` \(=0\) must be at least 1"),
    (structures.VNM, {"v": 2.0}, r"`v` \(=2.0\) must be an integer"),
    (structures.VNM, {"n": 2, "m": 3}, r"`m` \(=3\) must be at least 4"),
    (structures.VNM, {"n": 5}, r"`n` \(=5\) must be at most 4, the inputs"),
    (structures.Block, {"height": (2, 2)}, r"`height` \(=\(2, 2\)\) must be an integer"),
    (structures.Block, {"width": 0}, r"`width` \(=0\) must be at least 1"),
]


@pytest.mark.parametrize(("kind", "numbers", "message"), WRONG_RUNS)
def test_numbers_of_runs_that_make_no_sense(
    kind: type, numbers: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        kind(**numbers)


def test_remedies_of_runs_work() -> None:
    model = nn.Linear(16, 24)
    for structure, sparsity in ((structures.NM(1, 4), 0.375), (structures.VNM(2, 8, 9), 0.75)):
        options: dict[str, Any] = {"structure": structure, "sparsity": sparsity}
        with pytest.raises(OptionError) as caught:
            Sparsifier(model, None, "magnitude", **options)
        if isinstance(structure, structures.VNM):
            v = int(re.findall(r"choose v=(\d+)", str(caught.value))[0])
            options["structure"] = structures.VNM(2, 8, v)
        else:
            assert "prunes 0.375 of one of shape [24, 16]" in str(caught.value)
            options["sparsity"] = float(re.findall(r"give sparsity=(\S+)", str(caught.value))[0])
        sparsifier = Sparsifier(model, None, "magnitude", **options)
        assert sparsifier.report().sparsity == options["sparsity"]
        sparsifier.release()


def test_ablation_moves_weights_to_neurons_that_have_salient_ones() -> None:
    salient, quota = torch.tensor([5, 4, 1, 0]), torch.full((4,), 3)
    assert structures.ConstantFanIn(0.5).ablated(salient, quota, 12, 10).tolist() == [6, 6, 0, 0]
    assert structures.ConstantFanIn(0.0).ablated(salient, quota, 12, 10).tolist() == [3] * 4
    none = torch.zeros_like(salient)
    left = structures.ConstantFanIn(0.5).ablated(none, quota, 12, 10)
    assert left.tolist() == [6, 6, 0, 0]  # never all
    gone = torch.tensor([0, 3, 3, 3])
    again = structures.ConstantFanIn(0.5).ablated(torch.tensor([9, 2, 2, 2]), gone, 9, 10)
    assert again.tolist() == [0, 3, 3, 3]  # what is ablated stays so
    few = structures.ConstantFanIn(0.5).ablated(torch.tensor([1, 1, 1, 1]), quota, 3, 10)
    assert 0 < int(few.sum()) <= 3


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=2, max_size=4), min_size=1, max_size=5),
    st.floats(0.01, 1.0),
)
def test_budgets_add_up(shapes: list[list[int]], density: float) -> None:
    sizes = [math.prod(shape) for shape in shapes]
    for budget in (budgets.uniform, budgets.erdos_renyi):
        counts = budget(shapes, density)
        assert sum(counts) == round(density * sum(sizes))
        assert all(0 <= c <= s for c, s in zip(counts, sizes, strict=True))


def test_erdos_renyi_is_in_proportion() -> None:
    counts = budgets.erdos_renyi([(100, 300), (200, 50, 3, 3)], 0.05)
    densities = [counts[0] / 30000, counts[1] / 90000]
    wanted = [400 / 30000, 256 / 90000]
    assert densities[0] / densities[1] == pytest.approx(wanted[0] / wanted[1], rel=1e-2)


def test_global_budget_keeps_the_best_of_all() -> None:
    scores = [randn(30, seed=1), randn(50, seed=2) * 3]
    counts = budgets.global_magnitude(scores, 0.25)
    bound = torch.cat(scores).topk(20).values.min()
    assert counts == [int((score >= bound).sum()) for score in scores]
    assert budgets.global_magnitude([torch.ones(3), torch.ones(3)], 0.5) == [3, 0]


def test_regions_and_areas() -> None:
    grid = LatLonGrid.regular(12, 24, poles=False)
    labels = xr.DataArray([["a"] * 24] * 3 + [["b"] * 24] * 9, dims=("lat", "lon"))
    pattern = window(grid, 3)
    for budget in (budgets.Regions(labels, {"a": 0.25}), budgets.AreaWeighted()):
        torch.manual_seed(0)
        layer = LocallyConnected(pattern, 1, 1)
        Sparsifier(layer, adam(layer), "rigl", sparsity=0.5, total_steps=100, budget=budget)
        fan_in = layer.pattern.fan_in.reshape(12, 24).double()
        if isinstance(budget, budgets.Regions):
            full = pattern.fan_in.reshape(12, 24).double()
            assert int(fan_in[:3].sum()) == round(0.75 * float(full[:3].sum()))
            assert int(fan_in[3:].sum()) == round(0.5 * float(full[3:].sum()))
        else:
            assert layer.pattern.num_edges == round(0.5 * pattern.num_edges)
            areas = torch.as_tensor(grid.areas).reshape(12, 24)[:, 0]
            middle = fan_in.mean(1) / areas
            assert float(middle.max() / middle.min()) < 1.35
    with pytest.raises(OptionError, match="names c; the labels are a, b"):
        budgets.Regions(labels, {"c": 0.5})
    with pytest.raises(OptionError, match=r"must lie in \[0, 1\)"):
        budgets.Regions(labels, {"a": 1.5})


def test_budget_by_names() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.Linear(10, 10))
    options: dict[str, Any] = {"sparsity": 0.5, "total_steps": 10}
    sparsifier = Sparsifier(model, None, "magnitude", budget={"1": 0.9}, **options)
    assert [t.count for t in sparsifier.targets] == [50, 10]
    with pytest.raises(OptionError, match=r"did you mean '0\.weight'"):
        Sparsifier(model, None, "magnitude", budget={"0.weigt": 0.9}, **options)


def test_cubic_rises_and_ends_on_target_off_the_beat() -> None:
    schedule = schedules.Cubic(begin=3, end=50, every=7)
    changes = [(k, c.sparsity) for k in range(60) if (c := schedule.at(k, 0.9)) is not None]
    assert changes[-1] == (50, 0.9)
    values = [value for _, value in changes]
    assert values == sorted(values)
    for k, value in changes:
        assert value == pytest.approx(0.9 * (1 - (1 - (k - 3) / 47) ** 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda: schedules.Cubic(5, 5),
        lambda: schedules.Cubic(0, 5, 0),
        lambda: schedules.CosineDrop(5, 0),
        lambda: schedules.CosineDrop(5, 1, 1.5),
        lambda: schedules.Iterative(0, 5),
        lambda: schedules.Iterative(2, 5, 7),
    ],
)
def test_bad_schedules(make: Any) -> None:
    with pytest.raises(OptionError, match="must"):
        make()


NO_NUMBERS: list[tuple[Any, str]] = [
    (lambda v: structures.NM(v, 4), "`n` "),
    (lambda v: structures.VNM(2, 8, v), "`v` "),
    (lambda v: schedules.OneShot(v), "`step` "),
    (lambda v: schedules.Cubic(0, v), "`end` "),
    (lambda v: schedules.Cubic(v, 9), "`begin` "),
    (lambda v: schedules.CosineDrop(v), "`end` "),
    (lambda v: schedules.CosineDrop(9, v), "`every` "),
    (lambda v: schedules.Steady(v), "`every` "),
    (lambda v: schedules.Steady(1, v), "`end` "),
    (lambda v: schedules.Iterative(v, 5), "`rounds` "),
    (lambda v: schedules.Iterative(2, 5, v), "`rewind_to` "),
]


@pytest.mark.parametrize(("make", "name"), NO_NUMBERS)
@pytest.mark.parametrize("value", [True, "4", 2.5, float("nan")])
def test_steps_and_sizes_are_whole(make: Any, name: str, value: Any) -> None:
    """A change at a step between two would never come."""
    with pytest.raises(OptionError, match=rf"{name}\(={value!r}\) must be an integer"):
        make(value)
    make(np.int64(4))


@pytest.mark.parametrize(
    "make",
    [
        lambda v: schedules.CosineDrop(9, fraction=v),
        lambda v: structures.ConstantFanIn(v),
        lambda v: growth.superset(v),
        lambda v: growth.superset(1, v),
        lambda v: growth.distance_prior(v),
        lambda v: importance.hard_concrete(open_probability=v),
        lambda v: importance.hard_concrete(learning_rate=v),
        lambda v: importance.hard_concrete(price_rate=v),
    ],
)
@pytest.mark.parametrize("value", [True, "0.5", None, float("nan"), float("inf")])
def test_rates_are_numbers(make: Any, value: Any) -> None:
    with pytest.raises(OptionError, match=r"must (be|lie)"):
        make(value)
    make(np.float32(0.5))


def candidates(**given: Any) -> Candidates:
    return Candidates(count=5, generator=torch.Generator().manual_seed(0), **given)


def test_growth_rules() -> None:
    size = torch.tensor([1.0, 5.0, 2.0, 4.0, 3.0])
    assert torch.equal(growth.gradient().score(candidates(gradient=size)), size)
    seen = torch.tensor([True, True, False, False, True])
    never = growth.never_active_first().score(candidates(gradient=size, explored=seen))
    assert never.argsort(descending=True).tolist() == [3, 2, 1, 4, 0]
    metres = torch.tensor([0.0, 1e6, 0.0, 2e6, 0.0])
    near = growth.distance_prior(1e6).score(candidates(gradient=size, distance=metres))
    torch.testing.assert_close(near, size * torch.exp(-metres / 1e6))
    for rule in (growth.gradient(), growth.momentum(), growth.preferential_attachment()):
        with pytest.raises(OptionError, match="this growth needs"):
            rule.score(candidates())
    with pytest.raises(OptionError, match="must be positive"):
        growth.distance_prior(0.0)


def test_preferential_attachment_draws_by_degree() -> None:
    gen = generator(1)
    degree = torch.tensor([0, 1, 3])
    first = [0, 0, 0]
    rule = growth.preferential_attachment()
    for _ in range(4000):
        one = torch.zeros(3, dtype=torch.int64)
        score = rule.score(Candidates(3, gen, site_degree=degree, source_degree=one))
        first[int(score.argmax())] += 1
    assert [count / 4000 for count in first] == pytest.approx([1 / 7, 2 / 7, 4 / 7], abs=0.03)


@pytest.mark.parametrize(
    "rule",
    ["random", "momentum", "never_active_first", "preferential_attachment", "cannistraci_hebb"],
)
def test_growth_on_edges(rule: str) -> None:
    layer = locally()
    optimizer = adam(layer)
    sparsifier = Sparsifier(
        layer,
        optimizer,
        "rigl",
        sparsity=0.6,
        growth=rule,
        schedule=schedules.CosineDrop(end=100, every=2, fraction=0.3),
    )
    before = sparsifier.report().layers[0].exploration
    train(layer, optimizer, sparsifier, fields(9))
    after = sparsifier.report().layers[0]
    assert after.exploration > before + 0.05
    assert after.sparsity == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("build", [network, locally])
@pytest.mark.parametrize(
    "method", ["static", "set", "rigl", "top_kast", "magnitude", "gmp", "lottery"]
)
def test_exploration_counts_what_was_active_in_training(build: Any, method: str) -> None:
    def active(target: Any) -> set[int]:
        moves = isinstance(target, EdgeTarget)
        numbers = target.active if moves else target.mask.flatten().nonzero()[:, 0]
        return set(numbers.tolist())

    seed()
    model = build()
    data = fields(12) if build is locally else batches(12)
    optimizer = adam(model)
    sparsifier = Sparsifier(model, optimizer, method, sparsity=0.6, total_steps=16)
    ever = [active(target) for target in sparsifier.targets]
    for batch in data:
        train(model, optimizer, sparsifier, [batch])
        ever = [seen | active(t) for seen, t in zip(ever, sparsifier.targets, strict=True)]
    blocks = [getattr(target, "block", 1) for target in sparsifier.targets]
    for row, seen, block in zip(sparsifier.report().layers, ever, blocks, strict=True):
        assert row.explored == len(seen) * block
        dense = method in ("gmp", "lottery")
        assert row.exploration == 1 if dense else row.exploration < 1


def test_report_counts_edges_by_distance() -> None:
    grid = LatLonGrid.regular(18, 36, poles=False)
    near = patterns.nearest(grid, 5)
    layer = LocallyConnected(near, 2, 3)
    sparsifier = Sparsifier(layer, adam(layer), "rigl", teleconnections=1, total_steps=100)
    data = sparsifier.report().to_dataset()
    counts = data["edges"].values[0]
    assert counts.sum() == 6 * grid.size
    assert near.distance is not None
    assert counts[:4].sum() >= 5 * grid.size  # neighbours within 2000 km
    assert counts[5:].sum() > 0.5 * grid.size  # most random far points are farther than 5000 km
    assert data["distance"].attrs["units"] == "m"
    assert int(data["flops"][0]) == 2 * 6 * grid.size * 6
    report = sparsifier.report(accuracy=90.0)
    assert report.efficiency == pytest.approx(90 / (36 * grid.size))


def test_report_without_distances() -> None:
    model = torch.nn.Linear(4, 3)
    report = Sparsifier(model, None, "magnitude", sparsity=0.5).report()
    assert "edges" not in report.to_dataset()
    assert "sparsity 0.5000" in str(report)
