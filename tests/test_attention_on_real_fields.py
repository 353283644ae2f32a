"""The example on attention to real fields: parts against each other, and what it promises."""

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

from scisparse import datasets, patterns
from scisparse.layers import approximation_error

PATH = Path(__file__).resolve().parents[1] / "examples" / "attention_on_real_fields.py"


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("example_attention_on_real_fields", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    with torch.no_grad():
        yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def sea(example: Any) -> Any:
    """Noise with a cycle of the year, on a small globe with some land."""
    rng = np.random.default_rng(0)
    sst = rng.normal(size=(128, 8, 12)) + 5 * np.sin(np.arange(128) * np.pi / 6)[:, None, None]
    sst[:, 2:4, 5:7] = np.nan
    time = np.arange("2010-01", "2020-09", dtype="datetime64[M]").astype("datetime64[ns]")
    coords = {"time": time, "lat": np.linspace(77, -77, 8), "lon": np.arange(0.0, 360.0, 30.0)}
    return example.tokens(xr.DataArray(sst, coords, ("time", "lat", "lon")))


def test_tokens_are_the_anomalies_of_sea_cells(sea: Any) -> None:
    assert sea.cells.size == 8 * 12 - 4
    assert (sea.query.shape, sea.value.shape) == ((1, 92, 1, 96), (1, 92, 1, 32))
    months = sea.query.view(92, 8, 12)
    assert months.mean(1).abs().max() < 1e-6  # the cycle of the year is gone
    torch.testing.assert_close(sea.query.square().mean((0, 2, 3)), torch.ones(92))
    areas = sea.globe.areas[sea.globe.valid]
    np.testing.assert_array_equal(sea.cells.areas, areas)


def test_the_map_averages_to_the_weight_of_the_table(example: Any, sea: Any) -> None:
    pattern = patterns.radius(sea.cells, 4e6)
    found = approximation_error(sea.query, sea.query, sea.value, pattern)
    assert example.caught(sea, pattern).mean().item() == pytest.approx(found.weight, rel=1e-5)


def test_candidates_are_sound_and_read_about_as_much(example: Any) -> None:
    rng = np.random.default_rng(1)
    lat, lon = np.arcsin(rng.uniform(-1, 1, 3000)), rng.uniform(0, 2 * np.pi, 3000)
    found = dict(example.candidates(example.UnstructuredGrid(lat, lon)))
    fan_in = {name: p.validate().num_edges / 3000 for name, p in found.items()}
    like = [name for name in found if not name.startswith(("radius", "own"))]
    assert all(0.5 < fan_in[name] / fan_in["radius 1000 km"] < 2 for name in like), fan_in


@pytest.mark.skipif("not __import__('os').environ.get('SCISPARSE_DATA_DIR')")
def test_promises_on_the_real_fields(example: Any) -> None:
    sst = datasets.load("ersst")["sst"]
    sea = example.tokens(sst.where((sst >= -1.7).all("time")))
    assert sea.cells.size == 8361
    pattern = patterns.radius(sea.cells, 1000e3)
    some = torch.arange(8361) % 16 == 3
    part = pattern.restrict(some, relabel=True)
    real = approximation_error(sea.query[:, some], sea.query, sea.value, part)
    assert 0.5 < real.weight < 0.65
    assert 0.3 < real.error < 0.45
    where = example.caught(sea, pattern)
    lat, lon = np.rad2deg(sea.cells.lat), np.rad2deg(sea.cells.lon)
    pacific = torch.from_numpy((np.abs(lat) < 6) & (lon > 200) & (lon < 270))
    assert where[pacific].mean() < 0.5 * where.mean()
