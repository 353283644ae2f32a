"""Far slots of attention: planted links are found on the real grid of the sea, and no others."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from far_cases import Ocean, edges, ocean_of
from kernel_cases import generator
from rewired_attention_cases import GRID, Model, data, joined, started
from sparsity_cases import adam, seed, train
from torch import Tensor, nn

from scisparse.errors import OptionError
from scisparse.layers import Scores, SparseAttention
from scisparse.pattern import Pattern
from scisparse.patterns import radius, window
from scisparse.sparsity import Sparsifier, schedules
from scisparse.sparsity.attention_audit import AttentionAudit, evidence
from scisparse.sparsity.candidates import AllPairs, Chunk, Listed
from scisparse.sparsity.far import FarSlots

STEPS, BATCH, CHANNELS = 160, 64, 8


@pytest.fixture(scope="module")
def ocean(data_dir: Path) -> Ocean:
    return ocean_of(data_dir, 6)


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


@pytest.mark.parametrize("number", range(3))
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
    assert len(found) >= 0.95 * len(some)


def slots(pairs: bool) -> FarSlots:
    """On a window; the sites and sources of its first row read nothing and are not read."""
    some = torch.arange(GRID.size) >= 12
    local = Pattern.from_dense(window(GRID, 3).restrict(some, some).to_dense())
    every = Pattern.from_dense(torch.ones(local.shape, dtype=torch.bool))
    return FarSlots(AllPairs(local) if pairs else Listed(every), local, 1)


@pytest.mark.parametrize("pairs", [True, False])
def test_an_audit_passes_noise_as_often_as_it_says_and_links_that_lower_the_loss(
    pairs: bool,
) -> None:
    far, gen, samples = slots(pairs), generator(4), 400
    count = far.candidates.size
    effects = torch.randn(samples, count, generator=gen)
    effects += 2 * torch.randn(samples, 1, generator=gen)  # common to all sources of a site
    numbers = torch.cat([far.may_grow(c) for c in far.candidates.chunks(1)]).nonzero().squeeze(1)
    links, harm = torch.arange(0, len(numbers), 40), torch.arange(20, len(numbers), 40)
    effects[:, numbers[links]] -= 0.5
    effects[:, numbers[harm]] += 0.5
    noise = torch.ones(len(numbers), dtype=torch.bool)
    noise[torch.cat([links, harm])] = False

    def of(chunk: Chunk) -> list[Tensor]:
        part = effects[:, chunk.first : chunk.last]
        return [part[:150], part[150:]]

    for significance in (0.2, 0.01):
        passed = AttentionAudit(numbers).passed(far, of, 1, significance)
        assert bool(passed[links].all())
        assert not bool(passed[harm].any())
        rate = float(passed[noise].double().mean())
        assert abs(rate - significance) < 4 * (significance / int(noise.sum())) ** 0.5


def test_what_all_sources_of_a_site_have_in_common_is_no_evidence() -> None:
    far, gen = slots(pairs=True), generator(6)
    (chunk,) = far.candidates.chunks(1)
    effects = torch.randn(5, chunk.count, generator=gen, dtype=torch.float64)
    common = torch.randn(5, GRID.size, 1, generator=gen, dtype=torch.float64)
    shifted = (effects.view(5, GRID.size, -1) + common).flatten(1)
    may = far.may_grow(chunk)
    expected = evidence(far, chunk, [effects])[:, may]
    torch.testing.assert_close(evidence(far, chunk, [shifted])[:, may], expected)


def test_a_lone_candidate_is_its_own_evidence() -> None:
    local = Pattern.from_dense(torch.eye(3, dtype=torch.bool))
    every = Pattern.from_dense(torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1]]).bool())
    far = FarSlots(Listed(every), local, 1)
    (chunk,) = far.candidates.chunks(1)
    sums = evidence(far, chunk, [torch.tensor([[7.0, -2.0, 5.0, 3.0], [7.0, -1.0, 5.0, 3.0]])])
    assert sums[:, 1].tolist() == [-3.0, 5.0]


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
    with pytest.raises(OptionError, match=r"not by running means; choose method='rigl'"):
        started("sparse_momentum", candidates=None, schedule=None, **options)
    wide = joined()
    _, _, sparsifier = started(schedule=None, **options | {"candidates": wide})
    assert [t.name for t in sparsifier.targets] == ["attend.edges"]
