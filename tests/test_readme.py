"""The Python blocks of the README run as they stand, those of a section one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
SECTIONS = {
    title: "\n".join(blocks)
    for title, text in re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", README, re.M | re.S)
    if (blocks := re.findall(r"^```python$(.*?)^```$", text, re.M | re.S))
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ensemble and its truth, in the working directory."""
    rng = np.random.default_rng(0)
    coords = {
        "time": pd.date_range("2015-01-01", "2021-12-01", freq="QS"),
        "lat": np.arange(60.0, 0, -10),
        "lon": np.arange(0.0, 80, 10),
    }
    truth = xr.DataArray(rng.normal(280, 5, (28, 6, 8)), coords, attrs={"units": "K"})
    noise = rng.normal(1, 1, (28, 5, 6, 8))
    members = truth + xr.DataArray(noise, dims=("time", "member", "lat", "lon"))
    members = members.assign_attrs(units="K").assign_coords(member=range(5))
    truth = truth.where((truth["lat"] > 10) | (truth["lon"] > 10))
    monkeypatch.chdir(tmp_path)
    members.to_dataset(name="t2m").to_netcdf("ensemble.nc")
    truth.to_dataset(name="t2m").to_netcdf("analysis.nc")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("section", SECTIONS)
def test_blocks_run(section: str) -> None:
    names: dict[str, object] = {}
    exec(compile(SECTIONS[section], f"README.md, {section}", "exec"), names)
    if section == "Correct a forecast":
        assert Path("corrected.png").stat().st_size > 0
        assert Path("model.safetensors").stat().st_size > 0
    if section == "Build a model":
        smooth, observed = names["smooth"], names["observed"]
        assert isinstance(smooth, xr.DataArray)
        assert isinstance(observed, xr.DataArray)
        assert smooth.dims == observed.dims
        xr.testing.assert_equal(smooth.isnull(), observed.isnull())


def test_there_are_blocks() -> None:
    assert len(SECTIONS) >= 5
