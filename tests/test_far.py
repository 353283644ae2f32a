"""Far slots: planted links on the real grid of sea surface temperature are found, and no others."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from far_cases import Ocean, edges, ocean_of
from kernel_cases import generator
from sparsity_cases import adam, fields, locally, train

from scisparse.errors import OptionError
from scisparse.grids import LatLonGrid
from scisparse.layers import LocallyConnected
from scisparse.pattern import Pattern
from scisparse.patterns import window
from scisparse.sparsity import Sparsifier, schedules
from scisparse.sparsity.candidates import Pass
from scisparse.sparsity.far import Audit, repeats

STEPS, BATCH = 160, 64


@pytest.fixture(scope="module")
def ocean(data_dir: Path) -> Ocean:
    """Every third point of the ERSST grid, land dropped."""
    return ocean_of(data_dir, 3, 3)


def plant(ocean: Ocean, seed: int) -> tuple[dict[tuple[int, int], float], list[Any]]:
    """Weights of far links (source, site) at a tenth of the sea, and data made by them."""
    gen = generator(seed)
    truth = LocallyConnected(ocean.pattern, 1, 1, bias=False)
    with torch.no_grad():
        truth.weight.copy_(0.5 * torch.randn(truth.weight.shape, generator=gen))
    site, source = ocean.far_links(gen)
    sign = torch.randint(0, 2, (len(site), 1), generator=gen) * 2 - 1
    size = sign * (0.5 + 0.5 * torch.rand(len(site), 1, generator=gen))
    data = []
    for _ in range(STEPS):
        x = torch.full((BATCH, ocean.pattern.num_sources, 1), torch.nan)
        x[:, ocean.sea] = torch.randn(BATCH, len(ocean.sea), 1, generator=gen)
        with torch.no_grad():
            y = truth(x)
        y[:, site] += size * x[:, source]
        noise = 0.3 * torch.randn(BATCH, len(ocean.sea), 1, generator=gen)
        y[:, ocean.sea] += noise
        data.append((x, y))
    links = zip(source.tolist(), site.tolist(), strict=True)
    return dict(zip(links, size.flatten().tolist(), strict=True)), data


def fit(ocean: Ocean, data: list[Any], method: str, slots: int, seed: int) -> LocallyConnected:
    torch.manual_seed(seed)
    layer = LocallyConnected(ocean.pattern, 1, 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    schedule = schedules.CosineDrop(end=120, every=15, fraction=0.5)
    options: dict[str, Any] = {} if method == "static" else {"schedule": schedule}
    sparsifier = Sparsifier(layer, optimizer, method, teleconnections=slots, seed=seed, **options)
    rows = layer.weight.shape[0]
    train(layer, optimizer, sparsifier, data)
    assert layer.weight.shape[0] == rows  # parameters keep their shape while they train
    sparsifier.finalize()
    return layer


@pytest.mark.parametrize("seed", range(5))
def test_planted_links_are_found_and_other_slots_are_empty(ocean: Ocean, seed: int) -> None:
    planted, data = plant(ocean, seed)
    layer = fit(ocean, data, "rigl", 1 + seed % 2, seed)
    found = edges(layer.pattern) - edges(ocean.pattern)
    assert edges(ocean.pattern) <= edges(layer.pattern)
    assert len(found & planted.keys()) >= 0.95 * len(planted)
    with_link = {site for _, site in planted}
    left = [edge for edge in found if edge[1] not in with_link]
    assert len(left) <= 0.05 * (len(ocean.sea) - len(with_link))
    assert layer.weight.shape[0] == layer.pattern.num_edges


def test_weights_of_links_are_learned(ocean: Ocean) -> None:
    planted, data = plant(ocean, 9)
    layer = fit(ocean, data, "rigl", 1, 9)
    ends = [tuple(pair) for pair in layer.pattern.to_edge_index().T.tolist()]
    learned = dict(zip(ends, layer.weight.flatten().tolist(), strict=True))
    close = [abs(learned.get(link, 0.0) - weight) < 0.2 for link, weight in planted.items()]
    assert sum(close) > 0.95 * len(close)


def test_without_regrowth_they_are_missed(ocean: Ocean) -> None:
    planted, data = plant(ocean, 0)
    layer = fit(ocean, data, "static", 1, 0)
    assert len(edges(layer.pattern) & planted.keys()) <= 0.05 * len(planted)


def test_candidates_bound_the_search(ocean: Ocean) -> None:
    """Links are found where the candidates hold them, and nowhere else."""
    planted, data = plant(ocean, 3)
    some = sorted(planted)[::2]
    index = torch.tensor(some).T
    listed = Pattern.from_edge_index(index, *ocean.pattern.shape)
    local = replace(ocean.pattern, tap=None, tap_count=None, window=None, distance=None)
    torch.manual_seed(0)
    layer = LocallyConnected(local, 1, 1)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    sparsifier = Sparsifier(
        layer,
        optimizer,
        "rigl",
        teleconnections=1,
        candidates=local.union(listed),
        schedule=schedules.CosineDrop(end=120, every=15, fraction=0.5),
    )
    train(layer, optimizer, sparsifier, data)
    assert edges(layer.pattern) - edges(local) == set(some)


@pytest.mark.parametrize("planted", [False, True])
def test_a_data_set_that_comes_again_in_every_step_is_no_more_evidence(planted: bool) -> None:
    """All 256 samples are one batch: slots are empty without links, and hold links that are."""
    pattern = window(LatLonGrid.regular(8, 12), 3)
    gen, count = generator(11), 256
    x = torch.randn(count, 96, 1, generator=gen)
    torch.manual_seed(1)
    truth, layer = (LocallyConnected(pattern, 1, 1, bias=False) for _ in range(2))
    with torch.no_grad():
        y = truth(x) + 0.5 * torch.randn(count, 96, 1, generator=gen)
    site = torch.arange(0, 96, 8)
    source = (site + 44) % 96
    if planted:
        y[:, site] += x[:, source]
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    sparsifier = Sparsifier(layer, optimizer, "rigl", teleconnections=1, total_steps=160)
    train(layer, optimizer, sparsifier, [(x, y)] * 160)
    sparsifier.finalize()
    found = edges(layer.pattern) - edges(pattern)
    links = set(zip(source.tolist(), site.tolist(), strict=True)) if planted else set()
    assert links <= found
    assert len(found - links) <= 0.02 * 96


def test_repeats_are_counted() -> None:
    gen = generator(2)
    x = torch.randn(8, 5, 3, generator=gen)
    other = torch.randn(8, 5, 3, generator=gen)
    assert repeats([x]) == 1
    assert repeats([x, other]) == 1
    assert repeats([x, x.flip(0)]) == 2
    assert repeats([x, 1.001 * x, x[:4], other]) == 28 / 16
    missing = x.clone()
    missing[:, 2] = torch.nan
    assert repeats([missing, missing, missing]) == 3
    assert repeats([]) == repeats([x[:0]]) == 1


def test_resumes_in_the_middle_of_an_audit() -> None:
    def start() -> tuple[Any, Any, Any]:
        layer = locally()
        optimizer = adam(layer)
        schedule = schedules.CosineDrop(end=6, every=2, fraction=0.5)
        return (
            layer,
            optimizer,
            Sparsifier(layer, optimizer, "rigl", teleconnections=1, schedule=schedule),
        )

    data = fields(20)
    whole = start()
    losses = train(*whole, data)
    assert whole[0].pattern.num_edges < whole[0].weight.shape[0]  # some slots are empty
    first = start()
    train(*first, data[:9])
    states = copy.deepcopy([part.state_dict() for part in first])
    for _ in range(2):  # the first run that goes on from a state leaves it as it was
        again = start()
        for part, state in zip(again, (*copy.deepcopy(states[:2]), states[2]), strict=True):
            part.load_state_dict(state)
        assert train(*again, data[9:]) == losses[9:]
    totals = states[2]["targets"]["weight"]["audit"]["total"]
    assert not totals.any()
    ended = start()
    ended[0].load_state_dict(whole[0].state_dict())
    x = data[0][0]
    assert torch.equal(ended[0](x), whole[0](x))


@pytest.mark.parametrize("block", [1, 6])
def test_audit_passes_noise_as_often_as_it_says(block: int) -> None:
    gen = generator(1)
    edges_count, samples = 4000, 400
    channels = (2, 3) if block == 6 else (1, 1)
    weight = torch.nn.Parameter(torch.ones(edges_count, *channels))
    audit = Audit(weight, *[torch.arange(edges_count)] * 3)
    assert not bool(weight.any())
    x = torch.randn(samples, edges_count, channels[0], generator=gen)
    grad = torch.randn(samples, edges_count, channels[1], generator=gen)
    grad[:, :100] += 0.5 * x[:, :100].sum(2, keepdim=True)
    parts = (slice(200), slice(200, None))
    audit.add([Pass.of(x[part], grad[part], torch.arange(edges_count)) for part in parts])
    for significance in (0.3, 0.01):
        passed = audit.passed(significance)
        assert int(passed[100:].sum()) < significance * 3900  # the bound is on the safe side
        assert int(passed[:100].sum()) > 95
    assert int(audit.passed(0.3)[100:].sum()) > 5
    audit.restore(weight)
    assert bool((weight == 1).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teleconnections": -1}, "must not be negative"),
        ({"teleconnections": 1, "sparsity": 0.5}, "are both given"),
        ({"teleconnections": 1, "method": "gmp"}, "need a method that moves edges"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    layer = locally()
    with pytest.raises(OptionError, match=message):
        Sparsifier(layer, adam(layer), total_steps=100, **options)


def test_slots_are_no_more_than_there_are_sources() -> None:
    layer = LocallyConnected(window((3, 3), 1), 1, 1)
    sparsifier = Sparsifier(layer, adam(layer), "rigl", teleconnections=99, total_steps=100)
    assert layer.pattern.num_edges == 81
    assert sparsifier.report().sparsity == 0


def test_weights_that_come_back_from_an_audit_have_no_momentum_from_it() -> None:
    layer = locally()
    optimizer = adam(layer)
    schedule = schedules.CosineDrop(end=6, every=2, fraction=0.5)
    sparsifier = Sparsifier(layer, optimizer, "rigl", teleconnections=1, schedule=schedule)
    layer_edges = edges(window((5, 8), 3, padding=1, padding_mode=("zeros", "circular")))
    train(layer, optimizer, sparsifier, fields(14))  # the audit ends after step 14
    moments = optimizer.state[layer.weight]["exp_avg"]
    pairs = [tuple(pair) for pair in layer.pattern.to_edge_index().T.tolist()]
    far = torch.tensor([pair not in layer_edges for pair in pairs])
    assert int(far.sum()) > 0
    assert not bool(moments[: len(pairs)][far].any())
    assert bool(moments[: len(pairs)][~far].all())


@pytest.mark.parametrize("resumes", [False, True])
def test_an_average_does_not_take_up_the_zeros_of_an_audit(resumes: bool) -> None:
    def start() -> tuple[Any, Any, Sparsifier, Any]:
        layer = locally()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        schedule = schedules.CosineDrop(end=6, every=2, fraction=0.5)
        options: dict[str, Any] = {"teleconnections": 1, "schedule": schedule}
        sparsifier = Sparsifier(layer, optimizer, "rigl", **options)
        mean = torch.optim.swa_utils.AveragedModel(layer)
        sparsifier.follow(mean)
        return layer, optimizer, sparsifier, mean

    run, before, gen = start(), {}, generator(2)
    for step in range(14):  # the audit begins after step 6 and ends after step 14
        x = torch.randn(64, 40, 2, generator=gen)
        if step == 9 and resumes:
            states = copy.deepcopy([part.state_dict() for part in run])
            run = start()
            for part, state in zip(run, states, strict=True):
                part.load_state_dict(state)
        train(run[0], run[1], None, [(x, x.roll(20, 1).sum(2, keepdim=True).expand(-1, -1, 3))])
        if step == 5:
            before = by_edge(run[0].pattern, run[3].module.edge_weight)
        run[2].step()
        if step < 13:
            run[3].update_parameters(run[0])
    after = by_edge(run[0].pattern, run[3].module.edge_weight)
    near = edges(window((5, 8), 3, padding=1, padding_mode=("zeros", "circular")))
    stayed = [edge for edge in after if edge in before and edge not in near]
    assert len(stayed) > 5
    assert all(torch.equal(after[edge], before[edge]) for edge in stayed)


def by_edge(pattern: Pattern, weight: torch.Tensor) -> dict[tuple[int, ...], torch.Tensor]:
    pairs = map(tuple, pattern.to_edge_index().T.tolist())
    return dict(zip(pairs, weight.detach().clone(), strict=True))
