"""Sources that no edge reads may be missing, as over land: edges move all the same, past them."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from far_cases import edges
from kernel_cases import generator
from rewired_attention_cases import Model
from sparsity_cases import OFTEN, adam, locally, seed, train
from torch import Tensor, nn

from scisparse.grids import LatLonGrid
from scisparse.layers import LocallyConnected, SparseAttention, SparseLinear
from scisparse.pattern import Pattern
from scisparse.patterns import window
from scisparse.sparsity import Sparsifier, schedules
from scisparse.sparsity.edge_target import EdgeTarget
from scisparse.sparsity.momentum import running_mean
from scisparse.sparsity.waiting import PATIENCE

GRID = LatLonGrid.regular(7, 14)
Batches = list[tuple[Tensor, Tensor]]


def sea(number: int) -> Tensor:
    """Booleans ``[N]``; a third is land."""
    return torch.rand(GRID.size, generator=generator(number)) > 0.33


def plain(pattern: Pattern) -> Pattern:
    """The same pairs, each once, without taps."""
    return Pattern.from_dense(pattern.to_dense())


def batches(count: int, water: Tensor, channels: tuple[int, int], land: float) -> Batches:
    """Fields with a number on land, and what is to be made of them at sea."""
    gen = generator(8)
    xs = [torch.randn(6, GRID.size, channels[0], generator=gen) for _ in range(count)]
    ys = [x.roll(2, 1).sum(2, keepdim=True).expand(-1, -1, channels[1]) for x in xs]
    at = water[:, None]
    return [(x.masked_fill(~at, land), y.masked_fill(~at, 0)) for x, y in zip(xs, ys, strict=True)]


def moved(
    layer: nn.Module, data: Batches, method: str, **options: Any
) -> tuple[Sparsifier, list[float]]:
    optimizer = adam(layer)
    sparsifier = Sparsifier(layer, optimizer, method, **{"schedule": OFTEN} | options)
    return sparsifier, train(layer, optimizer, sparsifier, data)


@pytest.mark.parametrize("land", [torch.nan, torch.inf])
@pytest.mark.parametrize("channels", [(1, 1), (3, 2)])
@pytest.mark.parametrize("method", ["rigl", "sparse_momentum"])
def test_edges_grow_as_if_land_were_no_candidate(
    method: str, channels: tuple[int, int], land: float
) -> None:
    """Candidates that read land lose against all others, also where there are too few of those."""
    water = sea(1)
    near, wide = (plain(window(GRID, size)) for size in (3, 5))

    def run(candidates: Pattern, value: float) -> tuple[Pattern, list[float]]:
        seed()
        layer = LocallyConnected(near.restrict(water, water), *channels)
        data = batches(12, water, channels, value)
        sparsifier, losses = moved(layer, data, method, sparsity=0.4, candidates=candidates)
        assert sparsifier.report().layers[0].exploration > 0.7
        return layer.pattern, losses

    pattern, losses = run(wide.restrict(water), land)
    expected, same = run(wide.restrict(water, water), 0.0)
    assert edges(pattern) == edges(expected)
    assert losses == same
    assert bool(water[pattern.col.long()].all())


@pytest.mark.parametrize("growth", ["random", "preferential_attachment", "cannistraci_hebb"])
@pytest.mark.parametrize("linear", [False, True])
def test_growth_that_reads_no_gradient_moves_past_land(growth: str, linear: bool) -> None:
    water, wide = sea(6), plain(window(GRID, 5))
    seed()
    own = plain(window(GRID, 3)).restrict(water, water)
    layer: nn.Module = LocallyConnected(own, 2, 2)
    options: dict[str, Any] = {"candidates": wide}
    data = batches(12, water, (2, 2), torch.nan)
    if linear:
        layer, options = SparseLinear(GRID.size, GRID.size, pattern=own), {}
        data = [(x[..., 0], y[..., 0]) for x, y in data]
    sparsifier, losses = moved(layer, data, "set", growth=growth, **options)
    pattern: Any = layer.pattern
    assert bool(water[pattern.col.long()].all())
    assert len(edges(pattern) - edges(own)) > 20
    assert sparsifier.report().layers[0].active == own.num_edges * (1 if linear else 4)
    assert all(loss == loss for loss in losses)


def test_random_growth_needs_no_backward_pass() -> None:
    seed()
    layer = SparseLinear(12, 9, fan_in=4)
    sparsifier = Sparsifier(layer, adam(layer), "set", schedule=OFTEN)
    before = edges(layer.pattern)
    for _ in range(4):
        sparsifier.step()
    assert edges(layer.pattern) != before


def test_constant_fan_in_moves_past_land() -> None:
    water = sea(2)
    seed()
    layer = LocallyConnected(plain(window(GRID, 3)).restrict(water, water), 2, 2)
    before = edges(layer.pattern)
    wide = plain(window(GRID, 5)).restrict(water)
    data = batches(12, water, (2, 2), torch.nan)
    _, losses = moved(layer, data, "srigl", sparsity=0.4, candidates=wide)
    assert len(edges(layer.pattern) - before) > 20
    assert bool(water[layer.pattern.col.long()].all())
    assert all(loss == loss for loss in losses)


def test_whole_taps_over_land_do_not_grow() -> None:
    """They would lower the loss most, but for the one edge that reads land."""
    wide = window((6, 9), (1, 5), padding=(0, 2), padding_mode=("zeros", "circular"))
    water = torch.ones(54, dtype=torch.bool)
    water[[4, 22]] = False
    assert wide.tap is not None
    wide = wide.select((wide.tap > 2) | water[wide.col.long()])
    assert wide.tap is not None
    seed()
    layer = LocallyConnected(wide.select(wide.tap < 2), 1, 1)
    x = torch.randn(8, 54, 1, generator=generator(3))
    y = 2 * x + 3 * x.reshape(8, 6, 9).roll(-2, 2).reshape(8, 54, 1)  # third and last tap
    data = [(x.masked_fill(~water[:, None], torch.nan), y)] * 9
    options: dict[str, Any] = {"schedule": schedules.CosineDrop(end=1000, every=2, fraction=0.9)}
    sparsifier, losses = moved(layer, data, "rigl", structure="taps", candidates=wide, **options)
    assert bool(water[layer.pattern.col.long()].all())
    assert sparsifier.report().layers[0].exploration > 1.2  # the third tap was tried
    assert all(loss == loss for loss in losses)


@pytest.mark.parametrize("channels", [(1, 1), (2, 3)])
def test_far_slots_and_their_audit_end_as_with_zeros_on_land(channels: tuple[int, int]) -> None:
    water = sea(4)
    schedule = schedules.CosineDrop(end=12, every=3, fraction=0.5)

    def run(value: float) -> tuple[Sparsifier, Pattern]:
        seed()
        layer = LocallyConnected(plain(window(GRID, 3)).restrict(water, water), *channels)
        data = batches(25, water, channels, value)
        sparsifier, _ = moved(layer, data, "rigl", teleconnections=1, schedule=schedule)
        return sparsifier, layer.pattern

    sparsifier, pattern = run(torch.nan)
    assert edges(pattern) == edges(run(0.0)[1])
    (target,) = sparsifier.targets
    assert isinstance(target, EdgeTarget)
    assert not target.in_audit
    assert sparsifier.report().layers[0].exploration > 1.1


class Placed(nn.Module):
    """Attention with learned positions, which lets gradients pass through it."""

    def __init__(self, attend: SparseAttention) -> None:
        super().__init__()
        self.attend = attend
        self.places = nn.Parameter(torch.zeros(GRID.size, 8))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attend(x + self.places)
        return y


@pytest.mark.parametrize("method", ["rigl", "sparse_momentum"])
@pytest.mark.parametrize("land", [torch.nan, torch.inf])
def test_edges_of_attention_move_past_land(method: str, land: float) -> None:
    """Maps of queries, keys and values stay as they are: their gradients read land as well."""
    water = sea(5)

    def run(candidates: Pattern, value: float) -> tuple[Pattern, list[float]]:
        seed()
        attend = SparseAttention(plain(window(GRID, 3)).restrict(water, water), 8, 2)
        for part in (attend.q_proj, attend.k_proj, attend.v_proj):
            part.requires_grad_(False)
        options: dict[str, Any] = {"params": ["attend.edges"], "candidates": candidates}
        data = batches(8, water, (8, 8), value)
        sparsifier, losses = moved(Placed(attend), data, method, **options)
        assert sparsifier.report().layers[0].exploration > 1.05
        return attend.pattern, losses

    wide = plain(window(GRID, 5))
    pattern, losses = run(wide, land)
    expected, same = run(wide.restrict(water, water), 0.0)
    assert edges(pattern) == edges(expected)
    assert losses == pytest.approx(same)


@pytest.mark.parametrize("build", ["dense", "edges", "attention"])
def test_a_change_that_does_not_come_warns_once(build: str) -> None:
    seed()
    options: dict[str, Any] = {"sparsity": 0.5}
    if build == "dense":
        model: nn.Module = nn.Linear(4, 3)
        x, name = torch.randn(8, 4), "weight"
    elif build == "edges":
        model, x, name = locally(), torch.randn(4, 40, 2), "weight"
    else:
        model = Model(plain(window(GRID, 3)))
        x, name = torch.randn(2, GRID.size, 3), r"attend\.edges"
        options = {"params": ["*.edges"], "candidates": plain(window(GRID, 5))}
    x[0, 0] = torch.nan
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, optimizer, "rigl", schedule=OFTEN, **options)

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            sparsifier.step()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(PATIENCE)  # the first change is due after the second step
    with pytest.warns(UserWarning, match=rf"changed for {PATIENCE} steps, as gradients of {name} "):
        steps(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(2 * PATIENCE)


@pytest.mark.parametrize("when", [0, 3])
def test_a_source_that_was_missing_once_grows_by_momentum_all_the_same(when: int) -> None:
    seed()
    model = nn.Sequential(SparseLinear(8, 6, 2))
    rule = schedules.CosineDrop(end=4000, every=2, fraction=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(model, optimizer, "sparse_momentum", sparsity=0.9, schedule=rule)
    layer, gen = model[0], generator(7)
    assert isinstance(layer, SparseLinear)
    for step in range(20):
        x = torch.randn(4, 8, generator=gen)
        if step == when:
            unread = next(j for j in range(8) if j not in layer.pattern.col.tolist())
            x[0, unread] = torch.nan
        elif step > when:
            x[:, unread] *= 100  # by far the largest gradients
        optimizer.zero_grad()
        (model(x) - 1).square().sum().backward()
        optimizer.step()
        sparsifier.step()
        if step > when + 1 and unread in layer.pattern.col.tolist():
            return
    pytest.fail(f"source {unread} never grew")


def test_a_running_mean_is_over_the_steps_in_which_a_gradient_was_known() -> None:
    steps = torch.randn(6, 200, generator=generator(8))
    known = torch.rand(6, 200, generator=generator(9)) < 0.6
    mean = None
    for gradient in steps.where(known, torch.nan):
        mean = running_mean(mean, gradient)
    assert mean is not None
    for k in range(200):
        own = None
        for gradient in steps[known[:, k], k]:
            own = running_mean(own, gradient)
        expected = torch.tensor(torch.nan) if own is None else own
        torch.testing.assert_close(mean[k], expected, equal_nan=True)
