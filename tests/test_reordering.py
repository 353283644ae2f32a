"""Simulated I/O, and orders of sites, edges and neurons that need less of it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from functools import cache as remember
from typing import Any, cast

import pytest
import torch
from kernel_cases import generator
from sparsity_cases import seed
from torch import Tensor, nn

from scisparse import orders
from scisparse.errors import OptionError
from scisparse.grids import LatLonGrid
from scisparse.layers import LocallyConnected, SparseLinear
from scisparse.pattern import Pattern
from scisparse.patterns import constant_fan_in, radius, window
from scisparse.sparsity.annealing import _State
from scisparse.sparsity.reordering import (
    IO,
    anneal,
    reorder,
    reordered,
    simulated_io,
)

EMPTY = Pattern(torch.zeros(1, dtype=torch.int64), torch.empty(0, dtype=torch.int32), 0)
BANDED = window((60,), 5, padding=2)


def drawn(sites: int, sources: int, density: float, number: int = 0) -> Pattern:
    """Each edge with the same probability; some rows are empty."""
    return Pattern.from_dense(torch.rand(sites, sources, generator=generator(number)) < density)


def shuffled(count: int, number: int = 0) -> Tensor:
    return torch.randperm(count, generator=generator(number))


def scrambled(pattern: Pattern) -> Pattern:
    return reordered(pattern, shuffled(pattern.num_sites), shuffled(pattern.num_sources, 1))[0]


def lru_by_hand(lines: list[int], cache: int) -> int:
    """A read is a line that is not among the last `cache` different ones."""
    return sum(
        line not in list(dict.fromkeys(reversed(lines[:i])))[:cache] for i, line in enumerate(lines)
    )


def least_reads(lines: tuple[int, ...], cache: int) -> int:
    """Fewest reads over every choice of what to drop."""

    @remember
    def rest(i: int, held: frozenset[int]) -> int:
        if i == len(lines):
            return 0
        if lines[i] in held:
            return rest(i + 1, held)
        if len(held) < cache:
            return 1 + rest(i + 1, held | {lines[i]})
        return 1 + min(rest(i + 1, held - {out} | {lines[i]}) for out in held)

    return rest(0, frozenset())


# -- counting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [1, 2, 3, 7])
@pytest.mark.parametrize("line", [1, 3])
def test_lru_reads_are_those_of_a_simulation_by_hand(cache: int, line: int) -> None:
    for number in range(5):
        pattern = drawn(13, 11, 0.3, number)
        io = simulated_io(pattern, cache, line=line)
        lines = [int(c) // line for c in pattern.col]
        assert io.reads == lru_by_hand(lines, cache)
        assert io.writes == -(-13 // line)
        assert io.bound == len(set(lines)) + io.writes


@pytest.mark.parametrize("cache", [1, 2, 3])
def test_min_reads_are_the_fewest_possible(cache: int) -> None:
    for number in range(8):
        pattern = drawn(5, 6, 0.4, number)
        expected = least_reads(tuple(pattern.col.tolist()), cache)
        assert simulated_io(pattern, cache, policy="min").reads == expected


@pytest.mark.parametrize("line", [1, 4])
def test_min_lies_between_the_bound_and_lru_and_falls_with_the_memory(line: int) -> None:
    pattern = drawn(40, 60, 0.2)
    last = IO(10**9, 0, 0)
    for cache in (1, 2, 5, 11, 30, 60):
        lru = simulated_io(pattern, cache, line=line)
        best = simulated_io(pattern, cache, line=line, policy="min")
        assert lru.bound <= best.total <= min(lru.total, last.total)
        last = best


@pytest.mark.parametrize("policy", ["lru", "min"])
def test_memories_that_hold_one_line_or_all(policy: str) -> None:
    pattern = drawn(9, 14, 0.5)
    changes = int((pattern.col.diff() != 0).sum()) + 1
    assert simulated_io(pattern, 1, policy=policy).reads == changes
    everything = simulated_io(pattern, 14, policy=policy)
    assert everything.total == everything.bound
    assert simulated_io(pattern, 1, line=14, policy=policy).reads == 1


@pytest.mark.parametrize("policy", ["lru", "min"])
def test_patterns_without_edges(policy: str) -> None:
    assert simulated_io(EMPTY, 2, policy=policy) == IO(0, 0, 0)
    assert simulated_io(drawn(5, 4, 0.0), 2, line=2, policy=policy) == IO(0, 3, 3)


def test_order_is_the_order_of_the_edges() -> None:
    pattern = Pattern.from_dense(torch.tensor([[1, 1, 0], [0, 1, 1], [1, 1, 0]]).bool())
    assert simulated_io(pattern, 2).reads == 5
    assert simulated_io(pattern, 2, order=torch.tensor([0, 1, 4, 5, 2, 3])).reads == 3
    assert simulated_io(pattern, 1, order=torch.tensor([0, 1, 2, 3, 5, 4])).reads == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: simulated_io(p, 0), r"`cache` \(=0\) must be at least 1"),
        (lambda p: simulated_io(p, cast(int, "2")), r"`cache` \(='2'\) must be an integer"),
        (lambda p: simulated_io(p, 1, line=0), r"`line` \(=0\) must be at least 1"),
        (lambda p: simulated_io(p, 1, policy="mru"), r"`policy` is 'mru'.*'lru', 'min'"),
        (lambda p: simulated_io(p, 1, order=torch.ones(3)), r"`order`.*must be int64 \[3\]"),
        (lambda p: simulated_io(p, 1, order=torch.tensor([0, 0, 1])), "name every edge once"),
        (lambda p: simulated_io(p, 1, order=torch.tensor([0, 2, 1])), "splits some rows"),
        (lambda p: anneal(p, 0), r"`cache` \(=0\) must be at least 1"),
        (lambda p: anneal(p, 1, steps=-1), r"`steps` \(=-1\) must not be negative"),
        (lambda _: reorder(nn.Sequential(), 0), r"`cache` \(=0\) must be at least 1"),
        (lambda _: reorder(nn.Sequential(), 1, steps=-1), r"`steps` \(=-1\) must not be negative"),
    ],
)
def test_wrong_options_are_named(call: Callable[[Pattern], Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call(Pattern.from_dense(torch.tensor([[1, 1], [0, 1]]).bool()))


# -- patterns in another order -------------------------------------------------------------------


def test_curve_needs_less_io_than_random_numbers() -> None:
    grid = LatLonGrid.regular(31, 60)
    pattern = radius(grid, 1e6)
    random_order, curve = shuffled(grid.size), orders.hilbert(grid)
    mixed, along = (reordered(pattern, o, o)[0] for o in (random_order, curve))
    for line, cache in ((1, 64), (8, 12)):
        io = [simulated_io(p, cache, line=line).total for p in (along, mixed)]
        assert io[0] < 0.7 * io[1]
    # Latitude by latitude, a memory that holds less than a few latitudes finds little again.
    assert simulated_io(along, 64).total < simulated_io(pattern, 64).total


def test_locally_connected_layer_on_a_reordered_pattern_gives_the_same_field() -> None:
    seed()
    grid = LatLonGrid.regular(9, 18)
    layer = LocallyConnected(radius(grid, 3e6), 2, 3)
    order = orders.hilbert(grid)
    pattern, edges = reordered(layer.pattern, order, order)
    along = LocallyConnected(pattern, 2, 3, bias="site")
    assert layer.bias is not None
    assert along.bias is not None
    with torch.no_grad():
        along.weight.copy_(layer.weight[edges])
        along.bias.copy_(layer.bias[order])
    x = torch.randn(4, 162, 2)
    torch.testing.assert_close(along(x[:, order]), layer(x)[:, order])


# -- annealing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("within_rows", [True, False])
def test_annealing_finds_a_scrambled_band(within_rows: bool) -> None:
    pattern = scrambled(BANDED)
    found = anneal(pattern, 6, within_rows=within_rows, steps=300)
    assert found.before == simulated_io(pattern, 6)
    assert found.after == simulated_io(pattern, 6, order=found.edges)
    assert found.after.reads < found.before.reads / 3


def test_steps_improve_on_the_greedy_order() -> None:
    pattern = scrambled(BANDED)
    reads = [anneal(pattern, 3, steps=steps).after.reads for steps in (0, 1000)]
    assert reads[1] < 0.9 * reads[0]


@pytest.mark.parametrize("line", [1, 3])
def test_order_of_rows_is_what_a_layer_can_use(line: int) -> None:
    pattern = drawn(20, 24, 0.2)
    found = anneal(pattern, 3, line=line, within_rows=False, steps=200)
    assert found.sites.sort().values.tolist() == list(range(20))
    new, edges = reordered(pattern, found.sites)
    assert torch.equal(edges, found.edges)
    assert simulated_io(new, 3, line=line) == found.after


@pytest.mark.parametrize("cache", [1, 3, 8])
def test_annealing_is_never_worse_and_repeats_itself(cache: int) -> None:
    for number in range(4):
        pattern = drawn(15, 12, 0.25, number)
        found, again = (anneal(pattern, cache, steps=150, seed=number) for _ in range(2))
        assert found.after.bound <= found.after.total <= found.before.total
        assert torch.equal(found.edges, again.edges)


def test_what_needs_no_order_is_left_alone() -> None:
    for pattern in (EMPTY, drawn(4, 3, 0.0), BANDED):
        found = anneal(pattern, 60)
        assert found.edges.tolist() == list(range(pattern.num_edges))
        assert found.sites.tolist() == list(range(pattern.num_sites))
        assert found.before == found.after


@pytest.mark.parametrize("cache", [1, 2, 4])
def test_cost_of_a_move_is_exact(cache: int) -> None:
    """Moves that may cost nothing never raise the reads of the whole order."""
    draw = random.Random(cache)
    pattern = drawn(14, 10, 0.25, cache)
    first = pattern.row_ptr.tolist()
    rows = {i: list(range(first[i], first[i + 1])) for i in range(14) if first[i] < first[i + 1]}
    state = _State(rows, pattern.col.tolist(), cache)
    state.arrange(list(rows))
    last = simulated_io(pattern, cache).reads
    for _ in range(60):
        (state.try_row if draw.random() < 0.5 else state.try_edge)(draw, 0)
        order = torch.tensor(list(itertools.chain(*state.rows().values())))
        now = simulated_io(pattern, cache, order=order).reads
        assert now <= last
        last = now


# -- models --------------------------------------------------------------------------------------


def banded_network() -> nn.Sequential:
    """Two banded layers whose hidden neurons are in random order, and a dense one."""
    seed()
    first, second = window((60,), 3, padding=1), window((60,), 5, padding=2)
    hidden = shuffled(60)
    return nn.Sequential(
        SparseLinear(60, 60, pattern=reordered(first, site_order=hidden)[0]),
        nn.Tanh(),
        nn.Dropout(0.5),
        SparseLinear(60, 60, pattern=reordered(second, source_order=hidden)[0], bias=False),
        nn.ReLU(),
        nn.Linear(60, 4),
    ).eval()


@pytest.mark.parametrize("line", [1, 4])
def test_model_gives_the_same_and_reads_less(line: int) -> None:
    model = banded_network()
    x = torch.randn(7, 60)
    model(x).sum().backward()
    before = {name: p for name, p in model.named_parameters()}
    gradients = {name: p.grad.clone() for name, p in before.items() if p.grad is not None}
    expected = model(x)
    reports = reorder(model, 6, line=line, steps=50)
    assert [r.name for r in reports] == ["0", "3"]
    assert sum(r.after.total for r in reports) < 0.7 * sum(r.before.total for r in reports)
    for report in reports:
        layer = model.get_submodule(report.name)
        assert isinstance(layer, SparseLinear)
        assert simulated_io(layer.pattern.validate(), 6, line=line) == report.after
    torch.testing.assert_close(model(x), expected)
    for name, p in model.named_parameters():
        assert p is before[name]
        moved = p.grad
        assert moved is not None
        p.grad = None
        torch.testing.assert_close(moved.sort(0).values, gradients[name].sort(0).values)
    model(x).sum().backward()
    for p in model.parameters():
        assert p.grad is not None


def test_gradients_move_with_their_neurons() -> None:
    model = banded_network()
    x = torch.randn(7, 60)
    model(x).square().sum().backward()
    reorder(model, 6, steps=0)
    moved = [p.grad for p in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    for old, p in zip(moved, model.parameters(), strict=True):
        torch.testing.assert_close(old, p.grad)


def test_order_that_was_good_stays() -> None:
    seed()
    model = nn.Sequential(
        *(SparseLinear(40, 40, pattern=window((40,), 3, padding=1)) for _ in range(3))
    )
    weights = [p.clone() for p in model.parameters()]
    reports = reorder(model, 4, steps=20)
    assert all(r.before == r.after and r.after.total == r.after.bound for r in reports)
    assert all(map(torch.equal, weights, model.parameters()))


def test_neurons_that_others_see_stay() -> None:
    seed()
    shared = SparseLinear(30, 30, fan_in=3)
    normed = SparseLinear(30, 30, fan_in=3), nn.LayerNorm(30), SparseLinear(30, 30, fan_in=3)
    for model in (nn.Sequential(shared, nn.ReLU(), shared), nn.Sequential(*normed)):
        before = [p.clone() for p in model.parameters()]
        reorder(model, 4, steps=0)
        assert all(map(torch.equal, before, model.parameters()))


def test_dense_layers_take_part_and_spare_weights_stay() -> None:
    seed()
    sparse = SparseLinear(50, 80, pattern=constant_fan_in(80, 50, 3, generator=generator()))
    kept = torch.arange(sparse.pattern.num_edges) % 4 != 0
    pattern, rows = sparse.pattern.select(kept), sparse.weight.shape[0]
    sparse.rewire(pattern, kept.nonzero().squeeze(1), rows=rows)
    model = nn.Sequential(nn.Linear(9, 50), nn.GELU(), sparse, nn.GELU(), nn.Linear(80, 2))
    x = torch.randn(3, 9)
    expected = model(x)
    (report,) = reorder(model, 8, steps=0)
    assert report.after.reads < report.before.reads
    assert sparse.weight.shape == (240,)
    torch.testing.assert_close(model(x), expected)
    copy = nn.Sequential(nn.Linear(9, 50), nn.GELU(), SparseLinear(50, 80, fan_in=2), nn.GELU())
    copy.append(nn.Linear(80, 2)).load_state_dict(model.state_dict())
    torch.testing.assert_close(copy(x), expected)
