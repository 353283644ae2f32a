"""Rules of growth and scores that users write, and what they are told of candidates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import generator
from layer_cases import needs_scipy
from sparsity_cases import OFTEN, adam, batches, fields, locally, network, seed, train
from torch import Tensor, nn

from scisparse.errors import OptionError
from scisparse.grids import LatLonGrid, ProjectedGrid
from scisparse.layers import LocallyConnected, SparseLinear
from scisparse.pattern import Pattern
from scisparse.patterns import nearest, radius, window
from scisparse.sparsity import Sparsifier, growth
from scisparse.sparsity.candidates import AllPairs, Listed
from scisparse.sparsity.growth import Candidates, Growth

GRID = LatLonGrid.regular(6, 10)


def latest_first(candidates: Candidates) -> Tensor:
    return torch.arange(candidates.count).float()


def trained(
    build: Callable[[], nn.Module], steps: int = 4, method: str = "set", **options: Any
) -> Sparsifier:
    seed()
    model = build()
    data = batches(steps) if isinstance(model, nn.Sequential) else fields(steps)
    optimizer = adam(model)
    rule = options if "total_steps" in options else {"schedule": OFTEN} | options
    sparsifier = Sparsifier(model, optimizer, method, **{"sparsity": 0.5} | rule)
    train(model, optimizer, sparsifier, data)
    return sparsifier


@pytest.mark.parametrize("build", [network, locally])
def test_growth_may_be_a_function(build: Callable[[], nn.Module]) -> None:
    """Which is a rule that needs nothing."""
    runs = [trained(build, growth=rule) for rule in (latest_first, Growth("by hand", latest_first))]
    assert runs[0].rules.growth is not None
    assert runs[0].rules.growth.name == "latest_first"
    assert all(layer.exploration > 0.51 for layer in runs[0].report().layers)
    for one, other in zip(*(run.targets for run in runs), strict=True):
        assert one.parameter is not None
        assert other.parameter is not None
        assert torch.equal(one.parameter, other.parameter)


@pytest.mark.parametrize("build", [network, locally])
@pytest.mark.parametrize(
    ("rule", "got"),
    [
        (lambda candidates: candidates.links, "NoneType"),  # which was not declared
        (lambda candidates: torch.rand(candidates.count + 3), r"\[\d+\]"),
        (lambda candidates: torch.rand(candidates.count, 1), r"\[\d+, 1\]"),
        (lambda candidates: 0.5, "float"),
    ],
)
def test_what_a_rule_returns_is_checked(
    build: Callable[[], nn.Module], rule: Callable[[Candidates], Any], got: str
) -> None:
    expected = rf"`growth` 'own' returned {got} for \d+ candidates; .*needs_gradient=True"
    with pytest.raises(OptionError, match=expected):
        trained(build, growth=Growth("own", rule))


@pytest.mark.parametrize("build", [network, locally])
@pytest.mark.parametrize(
    ("returned", "got"),
    [(lambda w, g: w.flatten()[:-1], r"\[\d+\]"), (lambda w, g: None, "NoneType")],
)
def test_what_a_score_returns_is_checked(
    build: Callable[[], nn.Module], returned: Callable[[Tensor, Any], Any], got: str
) -> None:
    def own(weight: Tensor, gradient: Tensor | None) -> Any:
        return returned(weight, gradient)

    with pytest.raises(OptionError, match=rf"`score` 'own' returned {got} for weights \[\d+, .*"):
        trained(build, score=own)


@pytest.mark.parametrize("build", [network, SparseLinear])
@pytest.mark.parametrize("method", ["set", "magnitude", "top_kast"])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_scores_that_cannot_be_ranked_are_counted(
    build: Callable[..., nn.Module], method: str, value: float
) -> None:
    def own(weight: Tensor, gradient: Tensor | None) -> Tensor:
        least = weight.abs().masked_fill(weight == 0, torch.inf).flatten().kthvalue(7).values
        return torch.where(weight.abs() > least, weight.abs(), value)

    model = build() if build is network else build(12, 6, fan_in=12)
    optimizer = adam(model)
    rule: dict[str, Any] = {"sparsity": 0.5, "total_steps": 40, "score": own}
    message = r"7 of \d+ scores 'own' of (0\.)?weight are NaN or -infinity and cannot be ranked"
    with pytest.raises(OptionError, match=message):
        train(model, optimizer, Sparsifier(model, optimizer, method, **rule), batches(2))
    given = {n: own(p, None).detach() for n, p in model.named_parameters() if "weight" in n}
    with pytest.raises(OptionError, match=r"\d+ of \d+ scores 'by name' of (0\.)?weight are NaN"):
        Sparsifier(model, None, "gmp", **(rule | {"score": given}))


@pytest.mark.parametrize("build", [network, locally])
def test_scores_of_what_is_pruned_may_be_anything(build: Callable[[], nn.Module]) -> None:
    def own(weight: Tensor, gradient: Tensor | None) -> Tensor:
        return torch.where(weight == 0, torch.nan, weight.abs())

    runs = [trained(build, 9, "gmp", score=score, total_steps=12) for score in (own, "magnitude")]
    for one, other in zip(*(run.model.parameters() for run in runs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("build", [network, locally])
def test_growth_takes_nothing_whose_score_is_not_a_number(
    build: Callable[[], nn.Module],
) -> None:
    def rule(bad: float) -> Growth:
        def score(candidates: Candidates) -> Tensor:
            drawn = torch.rand(candidates.count, generator=candidates.generator)
            return torch.where(drawn < 0.3, bad, drawn)

        return Growth("own", score)

    runs = [trained(build, growth=rule(bad)) for bad in (torch.nan, -torch.inf)]
    for one, other in zip(*(run.model.parameters() for run in runs), strict=True):
        assert torch.equal(one, other)
    assert runs[0].report().sparsity == pytest.approx(0.5, abs=0.01)
    assert runs[0].report().layers[0].churn > 0


def haversine(site: Tensor, source: Tensor) -> np.ndarray[Any, Any]:
    """Metres between points of the grid, by another formula."""
    lat, lon = GRID.lat, GRID.lon
    i, j = site.numpy(), source.numpy()
    h = np.sin((lat[i] - lat[j]) / 2) ** 2
    h += np.cos(lat[i]) * np.cos(lat[j]) * np.sin((lon[i] - lon[j]) / 2) ** 2
    metres: np.ndarray[Any, Any] = 2 * 6371e3 * np.arcsin(np.sqrt(h.clip(0, 1)))
    return metres


@pytest.mark.parametrize("kind", [Listed, AllPairs])
def test_distances_of_candidates_are_those_on_their_grids(kind: Any) -> None:
    pattern = window(GRID, (3, 5))
    assert pattern.distance is None
    candidates = kind(pattern)
    for chunk in candidates.chunks(1 << 15):
        site, source = candidates.ends(torch.arange(chunk.first, chunk.last))
        found = candidates.distance(chunk)
        np.testing.assert_allclose(found, haversine(site, source), rtol=1e-3, atol=1.0)


def test_growth_by_distance_on_a_window_over_a_grid() -> None:
    mean = []
    wide = Pattern.from_dense(window(GRID, 5).to_dense())
    wide = Pattern(wide.row_ptr, wide.col, GRID.size, site_grid=GRID, source_grid=GRID)
    start = wide.select(torch.rand(wide.num_edges, generator=generator(2)) < 0.3)
    x = torch.randn(4, GRID.size, 2, generator=generator(3))
    y = torch.randn(4, GRID.size, 3, generator=generator(4))
    for scale in (1e6, 1e10):
        seed()
        layer = LocallyConnected(start, 2, 3)
        optimizer = adam(layer)
        rule = growth.distance_prior(scale)
        sparsifier = Sparsifier(layer, optimizer, growth=rule, candidates=wide, schedule=OFTEN)
        train(layer, optimizer, sparsifier, [(x, y)] * 9)
        mean.append(haversine(layer.pattern.rows(), layer.pattern.col.long()).mean())
    assert mean[0] < 0.9 * mean[1]


def test_growth_by_distance_without_a_grid_says_what_to_do() -> None:
    with pytest.raises(OptionError, match=r"on a grid, or give them: Pattern\.from_edge_index"):
        trained(locally, growth=growth.distance_prior(1e6))


@needs_scipy
def test_distances_between_a_projected_grid_and_the_sphere() -> None:
    """The projected one knows where on the sphere it is: positions in the plane do not count."""
    lat, lon = np.meshgrid(np.linspace(0.7, 0.8, 3), np.linspace(0, 0.1, 4), indexing="ij")
    plane = ProjectedGrid(np.arange(3) * 1e5, np.arange(4) * 1e5, lat=lat, lon=lon)
    for sites, sources in ((plane, GRID), (GRID, plane)):
        pattern = nearest(sources, sources.size, sites=sites)  # every pair, with its distance
        assert pattern.distance is not None
        candidates = AllPairs(pattern)
        found = [candidates.distance(chunk) for chunk in candidates.chunks(1)]
        assert all(part is not None for part in found)
        distances = torch.cat([part for part in found if part is not None]).float()
        torch.testing.assert_close(distances, pattern.distance, rtol=1e-5, atol=1.0)


def condensed() -> nn.Sequential:
    return nn.Sequential(SparseLinear(12, 20, 6), nn.Tanh(), SparseLinear(20, 6, 8))


def on_a_grid() -> LocallyConnected:
    return LocallyConnected(window(LatLonGrid.regular(5, 8), 5), 2, 3)


def by_radius() -> LocallyConnected:
    near = radius(LatLonGrid.regular(5, 8), 9e6)
    return LocallyConnected(near.restrict(torch.arange(40) % 5 > 0), 2, 3)


def by_all(known: Candidates) -> Tensor:
    """What a rule may be told together, so that equal scores are rare."""
    assert known.gradient is not None
    assert known.site is not None
    assert known.site_degree is not None
    assert known.source_degree is not None
    assert known.explored is not None
    assert int(known.site.min()) == 0  # the first of this part
    new = 2 - known.explored.int()
    return new * known.gradient * (1 + known.site_degree + 2 * known.source_degree)


ALL = Growth(
    "all",
    by_all,
    needs_gradient=True,
    needs_degrees=True,
    needs_explored=True,
    needs_sites=True,
)
WHOLES: list[dict[str, Any]] = [{"structure": s} for s in ("constant_fan_in", "sites")]
PARTS: list[tuple[Callable[[], nn.Module], int, Any, dict[str, Any]]] = [
    (build, at_once, rule, options)
    for build, at_once in ((condensed, 50), (on_a_grid, 500))
    for rule in (ALL, "momentum")
    for options in ({}, *WHOLES)
]
PARTS += [
    (by_radius, 300, growth.distance_prior(3e6), {}),
    (by_radius, 500, "gradient", {"sparsity": None, "teleconnections": 2}),
]


@pytest.mark.parametrize(("build", "at_once", "rule", "options"), PARTS)
def test_candidates_are_looked_through_in_parts(
    monkeypatch: pytest.MonkeyPatch,
    build: Callable[[], nn.Module],
    at_once: int,
    rule: Any,
    options: dict[str, Any],
) -> None:
    """Which are no more than memory should hold, and find the same edges as all at once."""

    def run() -> list[Tensor]:
        found: Any = trained(build, 8, "rigl", growth=rule, **options).targets
        parts.append(min(len(list(t.candidates.chunks(t.block))) for t in found))
        return [values for t in found for values in (t.active, t.parameter)]

    parts: list[int] = []
    whole = run()
    monkeypatch.setattr("scisparse.sparsity.candidates._NUMBERS_AT_ONCE", at_once)
    torch.testing.assert_close(run(), whole)
    assert parts[0] == 1
    assert parts[1] > 2


def test_equal_scores_of_all_pairs_go_by_their_place() -> None:
    """As they do among listed candidates, so that both move the same edges."""
    pattern = Pattern.from_dense(torch.ones(6, 5).bool())
    every, listed = AllPairs(pattern), Listed(pattern)
    (chunk,) = every.chunks(1)
    for quota in torch.randint(0, 7, (20, 6), generator=generator(1)):
        score = torch.randint(0, 3, (30,), generator=generator(int(quota.sum()))).float()
        score[score == 2] = -torch.inf  # never chosen
        expected = listed.best_of_sites(chunk, score, quota)
        assert torch.equal(every.best_of_sites(chunk, score, quota), expected)


def test_groups_of_a_convolution_have_sources_of_their_own() -> None:
    """Inputs of another group that have the same place in its weights are others."""
    seen: list[Candidates] = []

    def first(candidates: Candidates) -> Tensor:
        seen.append(candidates)
        return -torch.arange(candidates.count).float()

    layer, x = nn.Conv1d(4, 4, 1, groups=2), torch.randn(2, 4, 5, generator=generator(1))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    rule = Growth("first", first, needs_degrees=True, needs_links=True)
    sparsifier = Sparsifier(layer, optimizer, growth=rule, sparsity=0.5, schedule=OFTEN)
    for _ in range(2):
        layer(x).square().mean().backward()
        optimizer.step()
        sparsifier.step()
    (known,) = seen
    links = known.links
    assert links is not None
    assert known.source_degree is not None
    assert links.sources == 4
    assert links.source.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    left = torch.bincount(links.col, minlength=4)
    assert known.source_degree.tolist() == left[links.source].tolist()
