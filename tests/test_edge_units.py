"""Taps and sites of layers whose edges move: they come and go as wholes, among the candidates."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from kernel_cases import generator
from sparsity_cases import OFTEN, adam, fields, locally, seed, train
from torch import Tensor, nn

from scisparse.errors import OptionError
from scisparse.grids import LatLonGrid
from scisparse.layers import (
    LocallyConnected,
    LocallyConnected2d,
    Scores,
    SparseAttention,
    SparseLinear,
)
from scisparse.pattern import Pattern
from scisparse.patterns import window
from scisparse.sparsity import Sparsifier, schedules
from scisparse.sparsity.budgets import AreaWeighted
from scisparse.sparsity.candidates import AllPairs
from scisparse.sparsity.edge_units import EdgeUnits

MODES = ("zeros", "circular")


def wide(kernel_size: int = 5) -> Pattern:
    return window((5, 8), kernel_size, padding=kernel_size // 2, padding_mode=MODES)


def ends(pattern: Pattern) -> Tensor:
    """A number for the site and the source of each edge."""
    return pattern.rows() * pattern.num_sources + pattern.col.long()


def offsets(pattern: Pattern, width: int = 8) -> set[tuple[int, int]]:
    """Rows and columns from site to source, columns the short way round."""
    row = pattern.col.long() // width - pattern.rows() // width
    column = pattern.col.long() % width - pattern.rows() % width
    column = (column + width // 2) % width - width // 2
    return set(zip(row.tolist(), column.tolist(), strict=True))


def assert_whole(pattern: Pattern, candidates: Pattern, structure: str) -> None:
    """Every unit has all edges that the candidates have of it."""
    assert candidates.tap is not None
    assert pattern.tap is not None
    here = pattern.tap if structure == "taps" else pattern.rows()
    there = candidates.tap if structure == "taps" else candidates.rows()
    count = torch.bincount(here.long(), minlength=64)
    full = torch.bincount(there.long(), minlength=64)
    assert bool(((count == 0) | (count == full)).all())


def without_padding(channels: int) -> LocallyConnected2d:
    """All taps are at all sites."""
    seed()
    return LocallyConnected2d(channels, 2, 3, input_size=(6, 8))


def convolution(channels: int) -> nn.Conv2d:
    seed()
    return nn.Conv2d(channels, 2, 3)


@pytest.mark.parametrize("build", [without_padding, convolution])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_all_methods_keep_as_many_taps(build: Any, channels: int) -> None:
    """The nearest number to the weights that are asked for, the fewer of two equally near."""
    for sparsity in [0.25, 0.5, 0.6, 0.72, 0.75, 0.8, *(1 - (k + 0.5) / 9 for k in range(1, 8))]:
        for method in ("rigl", "set", "static", "magnitude", "gmp"):
            layer = build(channels)
            total = layer.weight.numel()
            wanted = 9 * round((1 - sparsity) * total) / total
            expected = min(range(1, 10), key=lambda taps: (round(abs(taps - wanted), 9), taps))
            optimizer = adam(layer)
            sparsifier = Sparsifier(
                layer, optimizer, method, sparsity=sparsity, structure="taps", total_steps=4
            )
            x = torch.randn(2, channels, 6, 8)
            train(layer, optimizer, sparsifier, [(x, torch.zeros_like(layer(x)))] * 4)
            assert round(9 * (1 - sparsifier.report().sparsity)) == expected, (method, sparsity)


@pytest.mark.parametrize("structure", ["taps", "sites"])
@pytest.mark.parametrize("method", ["rigl", "set", "sparse_momentum"])
def test_units_move_as_wholes(structure: str, method: str) -> None:
    layer = locally()
    optimizer, candidates = adam(layer), wide()
    edges = layer.pattern.num_edges
    sparsifier = Sparsifier(
        layer,
        optimizer,
        method,
        sparsity=0.4,
        schedule=OFTEN,
        structure=structure,
        candidates=candidates,
    )
    largest = 40 if structure == "taps" else 25
    patterns = set()
    for batch in fields(12):
        train(layer, optimizer, sparsifier, [batch])
        patterns.add(layer.pattern.fingerprint)
        assert_whole(layer.pattern, candidates, structure)
        assert abs(layer.pattern.num_edges - 0.6 * edges) <= largest
    assert len(patterns) > (1 if method == "sparse_momentum" else 3)  # a running mean is slow
    optimizer.zero_grad()
    final: Any = sparsifier.finalize()
    assert final.weight.shape[0] == layer.pattern.num_edges


def test_the_nearest_of_numbers_that_single_precision_does_not_tell_apart() -> None:
    units = EdgeUnits(AllPairs(wide()), torch.zeros_like, torch.tensor([100_000_003, 6]))
    assert units.best(torch.tensor([2.0, 1.0]), 100_000_005.0).tolist() == [True, False]


def test_a_stencil_that_the_data_were_made_with_is_found() -> None:
    """Among the 49 taps of a window of 7, on a sphere with its poles, from one of 3."""
    grid = LatLonGrid.regular(12, 16)
    candidates, truth = window(grid, 7), {(0, 3), (2, -1), (0, 0), (-3, 0)}
    assert truth < offsets(candidates, 16)
    seed()
    layer = LocallyConnected(window(grid, 3), 1, 1)
    inner = slice(3 * 16, 9 * 16)  # sites whose taps do not reach over a pole
    teacher = torch.zeros(192, 192)
    for row, column in truth:
        site = torch.arange(192)
        source = (site // 16 + row).clamp(0, 11) * 16 + (site % 16 + column) % 16
        teacher[site, source] += torch.randn(192, generator=generator(1)) + 2
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    sparsifier = Sparsifier(
        layer,
        optimizer,
        "rigl",
        sparsity=5 / 9,  # 4 of 9 taps
        structure="taps",
        candidates=candidates,
        schedule=schedules.CosineDrop(end=200, every=20, fraction=0.5),
    )
    gen = generator(2)
    for _ in range(240):
        x = torch.randn(16, 192, 1, generator=gen)
        y = torch.einsum("ij,bjc->bic", teacher, x)
        loss = (layer(x) - y)[:, inner].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sparsifier.step()
    found = layer.pattern.restrict(
        site_mask=torch.zeros(192).bool().index_fill(0, torch.arange(192)[inner], True)
    )
    assert offsets(found, 16) == truth


def test_random_sites_are_random_whatever_their_fan_in() -> None:
    """One with many edges is there at first, and after changes, as often as one with a single."""
    gen = generator(11)
    sites, few = 60, 20  # of the sites have 1 edge, the others 12
    dense = torch.rand(sites, 50, generator=gen).argsort(1) < 12
    dense[:few] = torch.rand(few, 50, generator=gen).argsort(1) < 1
    data = [(torch.ones(1, 50, 1), torch.ones(1, sites, 1))] * 8
    there = torch.zeros(2, sites)
    options: dict[str, Any] = {"sparsity": 0.8, "structure": "sites", "schedule": OFTEN}
    for number in range(60):
        layer = LocallyConnected(Pattern.from_dense(dense), 1, 1)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
        sparsifier = Sparsifier(layer, optimizer, "set", score="random", seed=number, **options)
        there[0] += layer.pattern.fan_in > 0
        train(layer, optimizer, sparsifier, data)
        there[1] += layer.pattern.fan_in > 0
    part = there / 60
    # Of 1200 and 2400 draws with a probability near 0.2: 6 standard deviations are 0.085.
    assert (part[:, :few].mean(1) - part[:, few:].mean(1)).abs().max() < 0.09


def test_growth_takes_the_tap_with_the_largest_mean_gradient() -> None:
    layer = locally()
    candidates = wide()
    full = LocallyConnected(candidates, 2, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    sparsifier = Sparsifier(
        layer,
        optimizer,
        "rigl",
        schedule=schedules.CosineDrop(100, 1, 0.25),
        structure="taps",
        candidates=candidates,
        sparsity=0.0,
    )
    before = copy.deepcopy(layer)
    (x, y), *_ = fields(1)
    train(layer, optimizer, sparsifier, [(x, y)])
    with torch.no_grad():
        full.weight.zero_()
        here = torch.isin(ends(candidates), ends(before.pattern))
        full.weight[here] = before.edge_weight  # both in the order of sites and sources
        assert full.bias is not None
        assert before.bias is not None
        full.bias.copy_(before.bias)
    (full(x) - y).square().mean().backward()
    assert full.weight.grad is not None
    size = full.weight.grad.flatten(1).norm(dim=1)
    assert candidates.tap is not None
    assert before.pattern.tap is not None
    mean = {t: size[candidates.tap == t].mean().item() for t in range(25)}
    weight = before.edge_weight.detach().abs().flatten(1).sum(1)
    own = {
        int(t): weight[before.pattern.tap == t].mean().item() for t in before.pattern.tap.unique()
    }
    now = sorted(own, key=lambda t: own[t])[2:]  # 2 of 9 go
    count, goal = torch.bincount(candidates.tap.long()), before.pattern.num_edges
    for tap in sorted((t for t in mean if t not in now), key=lambda t: -mean[t]):
        edges = int(count[now].sum())
        if abs(edges + int(count[tap]) - goal) >= abs(edges - goal):
            break
        now.append(tap)
    assert layer.pattern.tap is not None
    assert set(layer.pattern.tap.unique().tolist()) == set(now)


def test_taps_of_attention_move_with_their_biases() -> None:
    class Model(nn.Module):
        def __init__(self, scores: Scores) -> None:
            super().__init__()
            self.attend = SparseAttention(wide(3 if not scores.taps else 5), 8, 2, scores=scores)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.attend(x)
            return out

    for scores in (Scores(), Scores(taps=True)):
        seed()
        model = Model(scores)
        optimizer = adam(model)
        candidates = wide()
        sparsifier = Sparsifier(
            model,
            optimizer,
            "rigl",
            sparsity=0.4,
            params=["attend.edges"],
            schedule=OFTEN,
            structure="taps",
            candidates=candidates,
        )
        for x in torch.randn(9, 2, 40, 8, generator=generator(3)):
            train(model, optimizer, sparsifier, [(x, x.roll(2, 1))])
            assert_whole(model.attend.pattern, candidates, "taps")


def test_resumes_where_it_was() -> None:
    def start() -> tuple[LocallyConnected, torch.optim.Optimizer, Sparsifier]:
        layer = locally()
        optimizer = adam(layer)
        return (
            layer,
            optimizer,
            Sparsifier(
                layer,
                optimizer,
                "rigl",
                sparsity=0.4,
                schedule=OFTEN,
                structure="taps",
                candidates=wide(),
            ),
        )

    data = fields(10)
    layer, optimizer, sparsifier = start()
    train(layer, optimizer, sparsifier, data[:5])
    saved = copy.deepcopy((layer.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    rest = train(layer, optimizer, sparsifier, data[5:])
    other, other_optimizer, again = start()
    other.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    again.load_state_dict(saved[2])
    assert train(other, other_optimizer, again, data[5:]) == rest
    assert other.pattern == layer.pattern


def test_what_does_not_fit_is_said() -> None:
    options: dict[str, Any] = {"sparsity": 0.5, "total_steps": 20}
    linear = SparseLinear(8, 8, fan_in=4)
    with pytest.raises(OptionError, match="without taps; give a wider window"):
        Sparsifier(linear, adam(linear), structure="taps", **options)
    layer = locally()
    with pytest.raises(OptionError, match="active as wholes, whatever a budget"):
        Sparsifier(layer, adam(layer), structure="sites", budget=AreaWeighted(), **options)
    with pytest.raises(OptionError, match="`teleconnections` fills the slots"):
        Sparsifier(layer, adam(layer), structure="taps", teleconnections=1, total_steps=40)
    with pytest.raises(OptionError, match="choose 'unstructured', 'constant_fan_in', 'taps'"):
        Sparsifier(layer, adam(layer), structure="channels", **options)
