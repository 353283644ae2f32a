"""The example on sea surface temperature: parts against closed forms, and the promised scores."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from scisparse import datasets, patterns
from scisparse.layers import LocallyConnected

PATH = Path(__file__).resolve().parents[1] / "examples" / "forecast_sst.py"
# As the README of the data gives them, K; the cells' own 3x3 weights there have another ridge.
BASELINES = {
    "climatology": 0.527,
    "persistence": 0.346,
    "damped persistence": 0.3266,
    "3x3 convolution": 0.3261,
    "3x3 zonal": 0.3236,
    "3x3 untied": 0.3242,
}


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("example_forecast_sst", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    with torch.no_grad():
        yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    """Anomalies that persist, on a small globe with some land and some ice."""
    rng = np.random.default_rng(3)
    sst = np.empty((128, 8, 12))
    sst[0] = rng.normal(size=(8, 12))
    for month in range(1, 128):
        sst[month] = 0.7 * sst[month - 1] + rng.normal(size=(8, 12))
    sst += 20.0
    sst[:, 2:4, 5:7] = np.nan
    sst[40, 0, 3] = -1.8
    return xr.Dataset(
        {"sst": (("time", "lat", "lon"), sst)},
        {
            "time": np.arange("2010-01", "2020-09", dtype="datetime64[M]").astype("datetime64[ns]"),
            "lat": np.linspace(-77, 77, 8),
            "lon": np.arange(0.0, 360.0, 30.0),
        },
    )


@pytest.fixture(scope="module")
def sea(example: Any, data: xr.Dataset) -> Any:
    return example.read_sea(data)


@pytest.fixture(scope="module")
def task(example: Any, sea: Any) -> Any:
    return example.prepare(sea, sea.year < 2018, sea.year >= 2018)


@pytest.fixture
def equations(example: Any, sea: Any) -> Any:
    """Random normal equations, 0 off the sea as in the example."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(sea.grid.size, 40, 16, generator=generator, dtype=torch.float64)
    x *= torch.from_numpy(sea.grid.valid)[:, None, None]
    y = torch.randn(sea.grid.size, 40, 1, generator=generator, dtype=torch.float64)
    return example.Equations(sea, x.mT @ x, (x.mT @ y)[..., 0])


def test_reads_the_sea_that_never_freezes(sea: Any) -> None:
    assert int(sea.grid.valid.sum()) == 8 * 12 - 4 - 1
    assert not sea.grid.mask[2:4, 5:7].any()
    assert not sea.grid.mask[0, 3]
    assert sea.share.sum().item() == pytest.approx(1)


def test_cells_read_near_own_and_far(example: Any, sea: Any) -> None:
    table = example.tap_table(sea.stencil)
    n, cell = 96, 7 * 12  # the first column of the last row: over the date line, beside the pole
    near = [cell - 1, cell - 12, cell - 11, cell + 11, cell, cell + 1, -1, -1, -1]
    assert table[cell].tolist() == [*near, n + cell, 2 * n + cell, *range(3 * n, 3 * n + 5)]
    assert (table[2 * 12 + 5] == -1).all()
    assert (table == 2 * 12 + 5).sum() == 0


def test_read_is_what_a_layer_reads(example: Any, sea: Any) -> None:
    layer = LocallyConnected(sea.stencil, 1, 1, tie="all", bias=False)
    x = torch.randn(3, sea.stencil.num_sources)
    by_hand = example.read(x, example.tap_table(sea.stencil)) @ layer.weight[:, 0, 0]
    torch.testing.assert_close(layer(x[..., None])[..., 0], by_hand)


def test_anomalies_have_no_mean_in_the_fitting_months(example: Any, sea: Any) -> None:
    anomaly = example.anomalies(sea, sea.year < 2018)
    march = anomaly[(sea.year < 2018) & (sea.month == 3)]
    torch.testing.assert_close(march.mean(0), torch.zeros(96), atol=1e-5, rtol=0)
    assert (anomaly[:, ~sea.grid.valid] == 0).all()


@pytest.mark.parametrize("tile", [(1, 1000), (3, 5), (1000, 1000)])
def test_tiles_are_solved_together(equations: Any, sea: Any, tile: tuple[int, int]) -> None:
    found = equations.shared(3.0, tile).numpy()
    row, column = np.divmod(np.arange(96), 12)
    for cell in (0, 17, 95):
        alike = (row // tile[0] == row[cell] // tile[0]) & (
            column // tile[1] == column[cell] // tile[1]
        )
        gram = equations.gram[alike].sum(0).numpy() + 3 * np.eye(16)
        solved = np.linalg.solve(gram, equations.rhs[alike].sum(0).numpy())
        np.testing.assert_allclose(found[cell], solved)


def test_pooling_rows_weighs_the_near_ones(equations: Any) -> None:
    kernel = np.exp(-0.5 * ((np.arange(8) - 2) / 1.5) ** 2)
    gram = np.einsum("r,rckl->kl", kernel, equations.gram.view(8, 12, 16, 16).numpy())
    rhs = np.einsum("r,rck->k", kernel, equations.rhs.view(8, 12, 16).numpy())
    found = equations.shared(3.0, (1, 1000), 1.5)[2 * 12 + 4].numpy()
    np.testing.assert_allclose(found, np.linalg.solve(gram + 3 * np.eye(16), rhs))


def test_full_rank_is_untied_and_low_rank_is_low(equations: Any) -> None:
    torch.testing.assert_close(equations.low_rank(3.0, 16), equations.alone(3.0))
    assert torch.linalg.matrix_rank(equations.low_rank(3.0, 2)) == 2


def test_smooth_solves_with_the_penalty_of_the_layers(equations: Any, sea: Any) -> None:
    ridge, strength = 50.0, 2.0
    d = equations.smooth(ridge, strength)
    centre = patterns.window(sea.grid, 1)
    layer = LocallyConnected(centre, 1, 16, bias=False, dtype=torch.float64)
    layer.weight.copy_(d[sea.grid.valid][:, None])
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(layer.smoothness() * 96 / 2, layer.weight)
    pull = torch.zeros_like(d)
    pull[sea.grid.valid] = slope[:, 0]
    left = (equations.gram @ d[..., None])[..., 0] + ridge * d + strength * pull
    torch.testing.assert_close(left, equations.rhs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["zonal", "regions", "untied", "untied + far", "low rank"])
def test_a_rung_held_to_the_one_below_forecasts_the_same(
    example: Any, task: Any, name: str
) -> None:
    chain = [name]
    while example.RUNGS[chain[0]].below:
        chain.insert(0, example.RUNGS[chain[0]].below)
    rungs = {rung: example.RUNGS[rung] for rung in chain}
    rungs[name] = rungs[name]._replace(ridge=1e12)
    errors = example.climb(task, rungs)
    torch.testing.assert_close(errors[name][1], errors[chain[-2]][1], atol=1e-4, rtol=1e-4)


def test_low_rank_layer_is_the_convolution_and_the_departure(example: Any, task: Any) -> None:
    start = LocallyConnected(task.sea.stencil, 1, 1, tie="all", bias=False)
    start.weight.zero_()
    below = example.fit_rung(example.RUNGS["convolution"], start, task)
    mixed = example.fit_rung(example.RUNGS["low rank"], below, task)
    site, tap = task.sea.stencil.rows(), task.sea.stencil.tap
    weights = below.weight[:, 0, 0].double().expand(96, 16)
    free = (torch.arange(16) < 11).double()
    rhs = (task.rhs[1] - (task.gram @ weights[..., None])[..., 0]) * free
    equations = example.Equations(task.sea, task.gram * free * free[:, None], rhs)
    weights = weights + equations.low_rank(30, 4)
    torch.testing.assert_close(mixed.untie().weight[:, 0, 0], weights[site, tap].float())


def test_persistence_and_its_damping_by_hand(example: Any, sea: Any, task: Any) -> None:
    a, valid = example.anomalies(sea, sea.year < 2018)[:, sea.grid.valid], sea.grid.valid
    first, last = a[1:95], a[2:96]  # the base needs the month before, so that one pair is left out
    slope = (first * last).sum(0) / (first * first).sum(0)
    found = example.climb(task, {"damped persistence": example.RUNGS["damped persistence"]})
    by_hand: dict[str, Tensor] = {
        "climatology": a[96:],
        "persistence": a[96:] - a[95:-1],
        "damped persistence": a[96:] - slope * a[95:-1],
    }
    for name, error in by_hand.items():
        torch.testing.assert_close(found[name][1][:, valid], error**2, atol=1e-5, rtol=1e-4)


def test_gain_of_equals_is_nothing_and_has_a_sign(example: Any) -> None:
    error = torch.rand(32, 5) + 1
    assert (example.gain(error, error, 50) == 0).all()
    mean, low, high = example.gain(0.8 * error, error, 200)
    assert (low <= mean).all()
    assert (mean <= high).all()
    assert (high < 0).all()


def test_search_takes_the_lower_score_and_stays_on_a_draw(
    example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(tasks: list[Any], rungs: dict[str, Any]) -> dict[str, float]:
        return {name: rung.ridge if name == "untied" else 1.0 for name, rung in rungs.items()}

    monkeypatch.setattr(example, "cross_validate", score)
    chosen = example.search([])
    assert chosen.pop("untied").ridge == example.RUNGS["untied"].ridge / 2
    assert chosen == {name: rung for name, rung in example.RUNGS.items() if name != "untied"}


def test_runs_from_data_to_table_and_map(
    example: Any, data: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(datasets, "load", lambda name: data)
    names = ("convolution", "low rank", "zonal", "smooth + far")
    monkeypatch.setattr(example, "RUNGS", {name: example.RUNGS[name] for name in names})
    example.main(["--output", str(tmp_path / "new")])
    files = {path.suffix: path for path in (tmp_path / "new").iterdir()}
    assert set(files) == {".csv", ".md", ".png"}
    rows = [line.split(",") for line in files[".csv"].read_text().splitlines()]
    assert {len(row) for row in rows} == {11}
    assert [row[0] for row in rows[4:]] == list(names)
    assert len(files[".md"].read_text().splitlines()) == len(rows) + 1


def test_says_in_one_line_that_there_are_no_data(
    example: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(datasets.DATA_VARIABLE, str(tmp_path / "nowhere"))
    example.main(["--output", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert "no data" in said
    assert datasets.DATA_VARIABLE in said
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("data_dir")
def test_scores_on_the_test_months(example: Any) -> None:
    sea = example.read_sea(datasets.load("ersst"))
    assert int(sea.grid.valid.sum()) == 8361
    task = example.prepare(sea, sea.year < 2018, sea.year >= 2018)
    names = (*list(BASELINES)[2:], "convolution", "zonal", "smooth + far")
    errors = example.climb(task, {name: example.RUNGS[name] for name in names})
    rmse = {name: (e @ sea.share).mean().sqrt().item() for name, (_, e) in errors.items()}
    for name, published in BASELINES.items():
        assert rmse[name] == pytest.approx(published, abs=5e-4), name
    assert rmse["smooth + far"] < 0.318
    assert rmse["zonal"] < rmse["convolution"] < rmse["base"] < rmse["damped persistence"]
