"""Scores of missing links, and growth by them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from kernel_cases import generator
from sparsity_cases import OFTEN, adam, batches, fields, locally, masks, seed, train
from torch import Tensor, nn

from scisparse.errors import OptionError
from scisparse.grids import LatLonGrid
from scisparse.layers import LocallyConnected, SparseLinear
from scisparse.pattern import Pattern
from scisparse.patterns import nearest
from scisparse.sparsity import Sparsifier, growth, link_prediction
from scisparse.sparsity.candidates import AllPairs
from scisparse.sparsity.growth import Candidates
from scisparse.sparsity.link_prediction import Links, break_ties
from scisparse.sparsity.masked import MaskedTarget
from scisparse.sparsity.rewired import RewiredTarget
from scisparse.sparsity.search import Search

pytest.importorskip("scipy")

# Sites, sources, density; the comment names the branch or the case it is there for.
GRAPHS = [
    (5, 4, 0.5),
    (7, 11, 0.25),  # empty rows and sources that no site reads
    (13, 6, 0.9),  # nodes all of whose links lead into the community
    (1, 6, 0.5),  # no path of length three
    (6, 1, 0.5),
    (4, 4, 0.0),
    (4, 4, 1.0),
    (40, 50, 0.03),  # paths
    (24, 30, 0.4),  # sources one by one
]


def graph(sites: int, sources: int, density: float) -> Tensor:
    return torch.rand(sites, sources, generator=generator(sites)) < density


def score(links: Links) -> Tensor:
    ends = (links.sources, links.site, links.source)
    return link_prediction.cannistraci_hebb(links.row_ptr, links.col, *ends)


Node = tuple[str, int]


def by_definition(present: Tensor, u: Node, v: Node) -> float:
    """CH3-L3 from sets of neighbours, path by path; nothing is known of two kinds of nodes."""
    near: dict[Node, set[Node]] = {u: set(), v: set()}
    for i, j in present.nonzero().tolist():
        near.setdefault(("site", i), set()).add(("source", j))
        near.setdefault(("source", j), set()).add(("site", i))
    ends = {u, v}
    paths = [
        (a, b)
        for a in near[u] - ends
        for b in near[v] - ends
        if b in near[a]
    ]  # fmt: skip
    community = {node for path in paths for node in path}
    outside = {node: len(near[node] - community - ends) for node in community}
    return sum(1 / math.sqrt((1 + outside[a]) * (1 + outside[b])) for a, b in paths)


def expected(present: Tensor) -> Tensor:
    rows = [
        [
            0.0 if present[i, j] else by_definition(present, ("site", i), ("source", j))
            for j in range(present.shape[1])
        ]
        for i in range(present.shape[0])
    ]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("shape", GRAPHS)
@pytest.mark.parametrize("branch", ["chosen", "paths", "sources"])
def test_scores_are_those_of_the_definition(
    shape: tuple[int, int, float], branch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    present = graph(*shape)
    if branch == "paths":
        by_paths(monkeypatch)
    if branch == "sources":
        by_sources(monkeypatch)
    found = score(Links.of_matrix(present)).reshape(present.shape)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected(present), rtol=1e-13, atol=0)


def by_paths(monkeypatch: pytest.MonkeyPatch, at_once: int = 50) -> None:
    def paths(links: Any, by_source: Any, u: Any, v: Any) -> Any:
        first, last = links.indptr[u[0]], links.indptr[u[-1] + 1]
        ends = by_source @ (links.indptr[1:] - links.indptr[:-1]).astype(float)
        return link_prediction._by_paths(links, by_source, ends[links.indices[first:last]], u, v)

    monkeypatch.setattr(link_prediction, "_by_sources", paths)
    monkeypatch.setattr(link_prediction, "_PATHS_AT_ONCE", at_once)


def by_sources(monkeypatch: pytest.MonkeyPatch, at_once: int = 90) -> None:
    def sources(links: Any, by_source: Any, paths: Any, u: Any, v: Any) -> Any:
        return link_prediction._by_sources(links, by_source, u, v)

    monkeypatch.setattr(link_prediction, "_by_paths", sources)
    monkeypatch.setattr(link_prediction, "_NUMBERS_AT_ONCE", at_once)


def test_by_hand() -> None:
    # Site 0 reads 0, 1; site 1 reads 1, 2, 4; site 2 reads 0, 2; site 3 reads 1, 3.
    present = torch.zeros(4, 5, dtype=torch.bool)
    for i, sources in enumerate(([0, 1], [1, 2, 4], [0, 2], [1, 3])):
        present[i, sources] = True
    found = score(Links.of_matrix(present)).reshape(4, 5)
    # To 2: by (source 1, site 1), of which 1 leads to site 3 and site 1 to source 4, and by
    # (source 0, site 2), which have no other links.
    assert found[0, 2].item() == pytest.approx(1 / math.sqrt(2 * 2) + 1)
    # To 3: by (source 1, site 3); source 1 leads to site 1 outside.
    assert found[0, 3].item() == pytest.approx(1 / math.sqrt(2))
    # No inner links in the score: the second Cannistraci-Hebb rule would have 2 * 3 / 2 here.
    assert found[0].count_nonzero() == 3
    assert found[0, 0] == 0  # there already


@pytest.mark.parametrize("branch", [by_paths, by_sources, None])
def test_chunks_give_the_same(branch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    links = Links.of_matrix(graph(17, 23, 0.3))
    whole = score(links)
    if branch is not None:
        branch(monkeypatch)
    some = torch.rand(whole.numel(), generator=generator()) < 0.3
    some[23:69] = False  # two sites without candidates
    parts = []
    for part in some.nonzero().squeeze(1).split(29):
        ends = (links.sources, links.site[part], links.source[part])
        parts.append(link_prediction.cannistraci_hebb(links.row_ptr, links.col, *ends))
    torch.testing.assert_close(torch.cat(parts), whole[some], rtol=1e-13, atol=0)


def test_links_that_are_twice_count_once_and_sites_must_rise() -> None:
    row_ptr, col = torch.tensor([0, 2, 4]), torch.tensor([0, 0, 1, 0])
    site, source = torch.tensor([0, 1]), torch.tensor([1, 1])
    assert link_prediction.cannistraci_hebb(row_ptr, col, 2, site, source).tolist() == [1, 0]
    again, falling = torch.tensor([0, 0, 0, 1]), torch.tensor([1, 1, 0, 1])  # as taps have them
    found = link_prediction.cannistraci_hebb(row_ptr, col, 2, again, falling)
    assert found.tolist() == [1, 1, 0, 0]
    with pytest.raises(OptionError, match="`site` must not fall"):
        link_prediction.cannistraci_hebb(row_ptr, col, 2, site.flip(0), source)


def test_large_ring() -> None:
    # Sites read the source of their number and the next; all pairs would be 20 GB.
    n = 50_000
    site = torch.arange(n)
    col = torch.stack([site, (site + 1) % n], 1).reshape(-1)
    source = torch.stack([(site + 2) % n, (site + 3) % n], 1).reshape(-1)
    row_ptr = 2 * torch.arange(n + 1)
    ends = (site.repeat_interleave(2), source)
    found = link_prediction.cannistraci_hebb(row_ptr, col, n, *ends).reshape(n, 2)
    assert found.unique(dim=0).tolist() == [[1, 0]]  # one path that nothing leaves, and none


def test_ties_go_by_chance_and_nothing_else() -> None:
    values = torch.rand(500, generator=generator(), dtype=torch.float64) * 1e-3
    values = torch.cat([values, torch.zeros(500)]).float()
    values[:50] = values[50:100]
    values[100:150] = torch.nextafter(values[50:100], torch.tensor(1.0))  # as close as can be
    drawn = [break_ties(values.double(), generator(k)) for k in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    order = [d.argsort() for d in drawn]
    assert not torch.equal(order[0], order[2])
    for broken, by in zip(drawn, order, strict=True):
        assert broken.unique().numel() == 1000
        assert bool((values[by].diff() >= 0).all())
    first = [int(break_ties(torch.zeros(4), generator(k)).argmax()) for k in range(400)]
    assert torch.bincount(torch.tensor(first)).tolist() == pytest.approx([100] * 4, abs=35)


def test_equal_candidates_are_drawn() -> None:
    ring = torch.eye(30, dtype=torch.bool) | torch.eye(30, dtype=torch.bool).roll(1, 1)
    best = score(Links.of_matrix(ring)) == 1
    assert int(best.sum()) == 60  # two of each site, all equal
    row_ptr = 2 * torch.arange(31)
    like = Pattern(row_ptr, ring.nonzero()[:, 1].int(), 30)
    active = ring.reshape(-1).nonzero().squeeze(1)
    search = Search(
        candidates=AllPairs(like),
        active=active,
        explored=active,
        gradients=None,
        momentum=None,
        far=None,
        block=1,
        numbers=1,
    )
    left, rule = torch.tensor([20]), growth.named("cannistraci_hebb")
    found = [search.best(None, left, rule, generator(k)) for k in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    for numbers in found:
        assert bool(best[numbers].all())
        assert int(numbers.max()) > 600  # not the first ones


def test_rule_needs_links() -> None:
    with pytest.raises(OptionError, match="needs links"):
        growth.cannistraci_hebb().score(Candidates(5, generator()))


def record(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Links, Tensor]]:
    """Keep what the rule is asked from now on, and what it answers before ties are broken."""
    asked: list[tuple[Links, Tensor]] = []
    rule = link_prediction.cannistraci_hebb

    def spy(*args: Any) -> Tensor:
        asked.append((Links(*args), rule(*args)))
        return asked[-1][1]

    monkeypatch.setattr(link_prediction, "cannistraci_hebb", spy)
    return asked


def assert_best_grew(links: Links, scores: Tensor, before: Tensor, after: Tensor) -> None:
    """Of the candidates, numbered as the rule was asked, the best are `after` but not kept."""
    sites = links.row_ptr.numel() - 1
    row = torch.repeat_interleave(torch.arange(sites), links.row_ptr.diff())
    kept = torch.isin(links.site * links.sources + links.source, row * links.sources + links.col)
    assert bool((kept & ~before).sum() == 0)  # what is left after dropping
    assert int(kept.sum()) < int(before.sum())
    assert bool((kept & ~after).sum() == 0)
    grown, others = scores[after & ~kept], scores[~after & ~kept]
    assert grown.numel()
    assert float(grown.min()) >= float(others.max()) * (1 - 1e-6)
    assert float(grown.max()) > 0


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_growth_under_a_mask(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seed()
    model = nn.Linear(12, 20) if kind == "linear" else nn.Conv2d(4, 6, 3)
    x = torch.randn((8, 12) if kind == "linear" else (2, 4, 7, 7), generator=generator())
    optimizer = adam(model)
    sparsifier = Sparsifier(
        model, optimizer, "set", sparsity=0.7, schedule=OFTEN, growth="cannistraci_hebb"
    )
    asked = record(monkeypatch)
    target = sparsifier.targets[0]
    assert isinstance(target, MaskedTarget)
    for _ in range(8):
        before = target.mask.reshape(-1).clone()
        count = len(asked)
        train(model, optimizer, sparsifier, [(x, torch.zeros(()))])
        if len(asked) > count:
            assert_best_grew(*asked[-1], before, target.mask.reshape(-1))
    assert len(asked) >= 3


@pytest.mark.parametrize("local", [False, True])
def test_growth_on_edges(local: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seed()
    given: dict[str, Any] = {}
    data = [(x, x[:, :1]) for x, _ in batches(8)]
    layer: Any = SparseLinear.from_dense(nn.Linear(12, 20))  # all pairs
    if local:
        grid = LatLonGrid.regular(5, 8, poles=False)
        layer, data = LocallyConnected(nearest(grid, 7), 2, 3), fields(8)
        given["candidates"] = layer.pattern.union(nearest(grid, 11))
    optimizer = adam(layer)
    sparsifier = Sparsifier(
        layer, optimizer, "set", sparsity=0.7, schedule=OFTEN, growth="cannistraci_hebb", **given
    )
    asked = record(monkeypatch)
    target = sparsifier.targets[0]
    assert isinstance(target, RewiredTarget)
    for pair in data:
        size = target.candidates.size
        before, count = torch.isin(torch.arange(size), target.active), len(asked)
        train(layer, optimizer, sparsifier, [pair])
        if len(asked) > count:
            assert_best_grew(*asked[-1], before, torch.isin(torch.arange(size), target.active))
    assert len(asked) >= 3


def test_far_slots_grow_by_links() -> None:
    layer = locally()
    optimizer = adam(layer)
    edges = layer.pattern.num_edges
    sparsifier = Sparsifier(
        layer, optimizer, "set", teleconnections=2, schedule=OFTEN, growth="cannistraci_hebb"
    )
    before = sparsifier.targets[0].explored
    train(layer, optimizer, sparsifier, fields(6))
    assert layer.pattern.num_edges == edges + 2 * 40
    assert sparsifier.targets[0].explored > before


def test_mask_and_edges_grow_the_same() -> None:
    seed()
    dense = nn.Linear(12, 20)
    sparse = SparseLinear.from_dense(dense)
    options: dict[str, Any] = {"sparsity": 0.8, "schedule": OFTEN, "seed": 3}
    options |= {"growth": "cannistraci_hebb", "budget": "uniform"}
    losses = []
    data = batches(20, outputs=20)
    for model in (dense, sparse):
        optimizer = adam(model)
        sparsifier = Sparsifier(model, optimizer, "set", **options)
        losses.append(train(model, optimizer, sparsifier, data))
        if model is dense:
            assert masks(sparsifier)[0].sum() == 48
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert torch.equal(sparse.to_dense().weight == 0, dense.weight == 0)


def test_masked_edges_are_refused() -> None:
    layer = locally()
    optimizer = adam(layer)
    with pytest.raises(OptionError, match="masked on the edges of a pattern"):
        Sparsifier(layer, optimizer, "gmp", sparsity=0.5, schedule=OFTEN, growth="cannistraci_hebb")
