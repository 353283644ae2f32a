"""Far slots of attention: planted links are found on the real grid of the sea, and no others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from far_cases import Ocean, edges, ocean_of
from kernel_cases import generator
from layer_cases import needs_scipy
from rewired_attention_cases import GRID, Model, data, joined, started
from sparsity_cases import adam, seed, train
from torch import Tensor, nn

from scisparse.errors import OptionError
from scisparse.grids import LatLonGrid
from scisparse.kernels._watch import watch
from scisparse.layers import Scores, SparseAttention
from scisparse.pattern import Pattern
from scisparse.patterns import radius, window
from scisparse.sparsity import Sparsifier, schedules
from scisparse.sparsity.attention_audit import AttentionAudit
from scisparse.sparsity.attention_effects import (
    AttentionPass,
    Prospects,
    measure_active,
    prospects_of,
)
from scisparse.sparsity.candidates import AllPairs, Chunk, Listed

STEPS, BATCH, CHANNELS = 160, 64, 8


@pytest.fixture(scope="module")
def ocean(data_dir: Path) -> Ocean:
    return ocean_of(data_dir, 6, 9)


def plant(ocean: Ocean, number: int) -> tuple[set[tuple[int, int]], list[Any]]:
    """Far links (source, site) at a tenth of the sea, and data of attention that has them."""
    gen = generator(number)
    site, source = ocean.far_links(gen)
    reads = ocean.pattern.to_dense()
    reads[site, source] = True
    seed(number)
    teacher = SparseAttention(Pattern.from_dense(reads), CHANNELS, 2)
    batches = []
    for _ in range(STEPS):
        x = torch.zeros(BATCH, ocean.pattern.num_sources, CHANNELS)
        x[:, ocean.sea] = torch.randn(BATCH, len(ocean.sea), CHANNELS, generator=gen)
        with torch.no_grad():
            y = teacher(x)
        y[:, ocean.sea] += 0.03 * torch.randn(y[:, ocean.sea].shape, generator=gen)
        batches.append((x, y))
    return set(zip(source.tolist(), site.tolist(), strict=True)), batches


def fit(ocean: Ocean, batches: list[Any], method: str, slots: int, **options: Any) -> Pattern:
    """The pattern that a layer ends with."""
    local = Pattern.from_dense(ocean.pattern.to_dense())
    attend = SparseAttention(local, CHANNELS, 2)
    model = nn.ModuleDict({"attend": attend})
    optimizer = adam(model)
    if method != "static":
        options["schedule"] = schedules.CosineDrop(end=120, every=15, fraction=0.5)
    sparsifier = Sparsifier(
        model, optimizer, method, params=["*.edges"], teleconnections=slots, **options
    )
    train(attend, optimizer, sparsifier, batches)
    sparsifier.finalize()
    return attend.pattern


@pytest.mark.parametrize("number", range(2))
def test_planted_links_are_found_and_other_slots_are_empty(ocean: Ocean, number: int) -> None:
    planted, batches = plant(ocean, number)
    pattern = fit(ocean, batches, "rigl", 1 + number % 2)
    assert edges(ocean.pattern) <= edges(pattern)
    found = edges(pattern) - edges(ocean.pattern)
    assert len(found & planted) >= 0.95 * len(planted)
    with_link = {site for _, site in planted}
    left = [edge for edge in found if edge[1] not in with_link]
    assert len(left) <= 0.05 * (len(ocean.sea) - len(with_link))


def test_without_regrowth_they_are_missed(ocean: Ocean) -> None:
    planted, batches = plant(ocean, 0)
    pattern = fit(ocean, batches, "static", 1)
    assert pattern.num_edges == ocean.pattern.num_edges + len(ocean.sea)
    assert len(edges(pattern) & planted) <= 0.05 * len(planted)


def test_candidates_bound_the_search(ocean: Ocean) -> None:
    planted, batches = plant(ocean, 3)
    some = set(sorted(planted)[::2])
    index = torch.tensor(sorted(some)).T
    local = Pattern.from_dense(ocean.pattern.to_dense())
    listed = local.union(Pattern.from_edge_index(index, *local.shape))
    pattern = fit(ocean, batches, "rigl", 1, candidates={"attend": listed})
    found = edges(pattern) - edges(ocean.pattern)
    assert found <= some
    assert len(found) >= len(some) - 1


def prospects(gain: Tensor, deviation: Tensor | None = None) -> list[Prospects]:
    """Of candidates that would get a fourth of the attention, in two parts."""
    news = gain if deviation is None else deviation
    share, slope = torch.full_like(gain, 0.25), torch.zeros_like(gain)
    return [
        Prospects(share[part], gain[part], slope[part], partial(torch.clone, news[part]))
        for part in (slice(150), slice(150, None))
    ]


def always(parts: list[Prospects]) -> Callable[[Chunk], list[Prospects]]:
    return lambda chunk: parts


@pytest.mark.parametrize("pairs", [True, False])
def test_an_audit_passes_noise_as_often_as_it_says_and_what_lowers_the_loss(pairs: bool) -> None:
    like = Pattern.from_dense(torch.ones(30, 40, dtype=torch.bool))
    candidates = AllPairs(like) if pairs else Listed(like)
    gain = torch.randn(400, candidates.size, 1, generator=generator(4))
    numbers = torch.arange(7, candidates.size, 2)  # most of them, and none of the first
    links, harm = numbers[::40], numbers[20::40]
    gain[:, links] -= 0.5
    gain[:, harm] += 0.5
    noise = ~torch.isin(numbers, torch.cat([links, harm]))
    for significance in (0.2, 0.01):
        passed = AttentionAudit(numbers).passed(
            candidates,
            lambda chunk: prospects(gain[:, chunk.first : chunk.last]),
            1,
            significance,
        )
        assert bool(passed[torch.isin(numbers, links)].all())
        assert not bool(passed[torch.isin(numbers, harm)].any())
        rate = float(passed[noise].double().mean())
        assert abs(rate - significance) < 4 * (significance / int(noise.sum())) ** 0.5


def test_both_what_an_edge_would_do_and_what_its_source_tells_must_be_sure() -> None:
    like = Pattern.from_dense(torch.ones(2, 2, dtype=torch.bool))
    good, nothing = -torch.rand(300, 4, 1), torch.randn(300, 4, 1, generator=generator(1))
    numbers = torch.arange(4)
    for gain, news in ((good, good), (good, nothing), (nothing, good)):
        parts = prospects(gain, news)
        passed = AttentionAudit(numbers).passed(Listed(like), always(parts), 1, 1e-3)
        assert passed.tolist() == [gain is news] * 4


@pytest.mark.parametrize("heads", [1, 2])
def test_prospects_are_those_of_the_definition(heads: int) -> None:
    seed()
    local = Pattern.from_dense(torch.eye(6, dtype=torch.bool))
    layer = SparseAttention(local, 4, heads).double()
    passes: list[AttentionPass] = []

    def keep(inputs: Any, grad: Tensor, lse: Tensor, scale: float) -> None:
        one = AttentionPass(inputs, grad, lse, scale, layer.bias.learned, layer.pattern)
        passes.append(one.kept())

    listening = watch(layer.edges.col, keep)
    x = torch.randn(5, 6, 4, dtype=torch.float64, generator=generator(2))
    layer(x).square().sum().backward()
    listening.stop()
    ((one,), candidates) = passes, AllPairs(local)
    slopes = measure_active(passes, local).slope
    (chunk,) = candidates.chunks(heads)
    (some,) = prospects_of(passes, slopes, candidates, chunk, layer.bias.of)
    q, k, v = one.inputs[:3]
    share = torch.sigmoid(one.scale * torch.einsum("bihd,bjhd->bijh", q, k) - one.lse[:, :, None])
    own = v  # what each site reads
    effects = torch.einsum("bijh,bihd,bijhd->bij", share, one.grad, v[:, None] - own[:, :, None])
    torch.testing.assert_close(some.effects, effects.flatten(1))
    grad, value = (t - t.mean(0) for t in (one.grad, v))
    news = torch.einsum("bijh,bihd,bjhd->bij", share, grad, value)
    torch.testing.assert_close(some.news, news.flatten(1))


class Blurred(nn.Module):
    """Learned positions join the values, and most sites want nothing of others."""

    def __init__(self, local: Pattern) -> None:
        super().__init__()
        self.position = nn.Parameter(0.3 * torch.randn(local.num_sites, 7))
        self.attend = SparseAttention(local, 8, 1)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, self.position.expand(len(x), -1, -1)], -1)
        y: Tensor = self.head(x + self.attend(x))
        return y


@needs_scipy
def test_slots_are_empty_where_any_source_would_dilute_and_positions_are_values() -> None:
    grid = LatLonGrid.regular(8, 16, poles=False)
    local = radius(grid, 2500e3)
    site = torch.arange(3, grid.size, 9)
    source = (site + grid.size // 2 + 5) % grid.size
    seed(1)
    gen, model = generator(1), Blurred(local)
    optimizer = adam(model)
    sparsifier = Sparsifier(
        model, optimizer, params=["attend.edges"], teleconnections=2, total_steps=300
    )
    examples = []
    for _ in range(300):
        x = torch.randn(64, grid.size, 1, generator=gen)
        y = x.clone()
        y[:, site] = x[:, source]
        examples.append((x, y + 0.3 * torch.randn(y.shape, generator=gen)))
    train(model, optimizer, sparsifier, examples)
    far = model.attend.pattern.to_dense() & ~local.to_dense()
    assert int(far[site, source].sum()) >= 0.6 * len(site)
    without = torch.ones(grid.size, dtype=torch.bool)
    without[site] = False
    assert int(far[without].sum()) <= 0.05 * int(without.sum())


def far_slots() -> tuple[Model, Any, Sparsifier]:
    """Each site reads the one before it on its row of the grid, which data() asks of all."""
    seed()
    model = Model(Pattern.from_dense(torch.eye(GRID.size, dtype=torch.bool)))
    optimizer = adam(model)
    schedule = schedules.CosineDrop(end=8, every=2, fraction=0.5)
    options: dict[str, Any] = {"params": ["*.edges"], "schedule": schedule}
    return model, optimizer, Sparsifier(model, optimizer, "rigl", teleconnections=2, **options)


def test_training_resumes_in_the_middle_of_an_audit() -> None:
    examples = data(24)
    examples = [(x.repeat(8, 1, 1), y.repeat(8, 1, 1)) for x, y in examples]
    whole = far_slots()
    losses = train(*whole, examples)
    assert whole[0].attend.pattern.num_edges > GRID.size
    first = far_slots()
    train(*first, examples[:11])
    assert first[2].targets[0].in_audit  # type: ignore[attr-defined]
    states = [part.state_dict() for part in first]
    for order in (1, -1):
        again = far_slots()
        for part, state in list(zip(again, copy.deepcopy(states), strict=True))[::order]:
            part.load_state_dict(state)
        assert train(*again, examples[11:]) == losses[11:]
        assert again[0].attend.pattern == whole[0].attend.pattern


def test_a_state_of_before_an_audit_goes_on_the_same_way_after_one() -> None:
    examples = [(x.repeat(8, 1, 1), y.repeat(8, 1, 1)) for x, y in data(20)]
    parts = far_slots()
    train(*parts, examples[:3])
    states = copy.deepcopy([part.state_dict() for part in parts])
    losses = train(*parts, examples[3:])
    for part, state in zip(parts, states, strict=True):
        part.load_state_dict(state)
    assert train(*parts, examples[3:]) == losses


def test_an_audit_that_cannot_pass_anything_says_so() -> None:
    model, optimizer, sparsifier = far_slots()
    few = [(x[:1], y[:1]) for x, y in data(16)]
    with pytest.warns(
        UserWarning, match=r"8 different samples, .* with 16 or fewer; .* see 3 or more"
    ):
        train(model, optimizer, sparsifier, few)


def test_an_audit_without_evidence_gives_all_edges_back() -> None:
    model, _, sparsifier = far_slots()
    (target,) = sparsifier.targets
    assert target.parameter is None
    some = torch.arange(0, GRID.size**2, GRID.size + 1)
    active = torch.cat([some, some[:-1] + 1]).sort().values
    target._set(active, sparsifier.rules)  # type: ignore[attr-defined]
    target.begin_audit(sparsifier.rules)  # type: ignore[attr-defined]
    assert model.attend.pattern.num_edges == GRID.size
    sparsifier.release()
    assert model.attend.pattern.num_edges == active.numel()


def test_what_far_slots_of_attention_cannot_be() -> None:
    options: dict[str, Any] = {"params": ["*.edges"], "total_steps": 100, "teleconnections": 1}
    taps = Model(window(GRID, 3), scores=Scores(taps=True))
    with pytest.raises(OptionError, match=r"attend\.edges read taps, which not all pairs have"):
        Sparsifier(taps, None, **options)
    knots = Model(radius(GRID, 4e6), scores=Scores(knots=2))
    with pytest.raises(OptionError, match=r"attend\.edges read distances.* give `candidates`"):
        Sparsifier(knots, None, **options)
    with pytest.raises(OptionError, match=r'named, as in params=\["\*\.edges"\]'):
        Sparsifier(Model(joined()), None, total_steps=100, teleconnections=1)
    with pytest.raises(OptionError, match=r"not by running means; choose method='rigl'"):
        started("sparse_momentum", candidates=None, schedule=None, **options)
    wide = joined()
    _, _, sparsifier = started(schedule=None, **options | {"candidates": wide})
    assert [t.name for t in sparsifier.targets] == ["attend.edges"]
