"""The demonstration: its baselines against the reference scores, and what it leaves behind."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from scisparse import demo
from scisparse.errors import DataError, MissingDependencyError
from scisparse.postprocess.cross import leave_one_out
from scisparse.verification import evaluate


def small_case() -> demo.Case:
    rng = np.random.default_rng(2)
    coords = {
        "time": pd.date_range("2001-01-01", periods=9),
        "lat": [0.0, 10.0, 20.0],
        "lon": [0.0, 10.0, 20.0, 30.0],
        "model": ("member", ["a", "a", "b", "b"]),
    }
    truth = rng.normal(5, 1, size=(9, 3, 4))
    truth[:, 0, 0] = np.nan
    members = (
        np.nan_to_num(truth)
        + rng.normal(size=(4, 9, 3, 4))
        + np.array([3, 3, -1, -1])[:, None, None, None]
    )
    units = {"units": "mm"}
    return demo.Case(
        "a small case",
        xr.Dataset({"rain": (("member", "time", "lat", "lon"), members, units)}, coords),
        xr.DataArray(
            truth,
            {k: coords[k] for k in ("time", "lat", "lon")},
            ("time", "lat", "lon"),
            attrs=units,
            name="observed",
        ),
        "rain",
        "model",
        leave_one_out(9),
        "rain of the last day",
    )


def test_baselines_of_the_rainfall_equal_the_reference_scores(data_dir: Path) -> None:
    case = demo.rainfall_case()
    expected = {
        "raw ensemble": 157.6,
        "bias removed": 77.5,
        "climatology, normal": 68.8,
        "climatology, ensemble": 67.0,
    }
    for name, prediction in demo.baselines(case).items():
        scores = evaluate(prediction, case.tested, target=case.target)
        assert float(scores["crps"]) == pytest.approx(expected[name], abs=0.06), name
        assert int(scores["count"]) == 30 * 643


def test_bias_is_removed_per_model_and_point_without_the_case_itself() -> None:
    case = small_case()
    unbiased = demo.baselines(case)["bias removed"]["rain"].transpose(
        "time", "member", "lat", "lon"
    )
    field = case.forecast["rain"].transpose("time", "member", "lat", "lon").values
    truth = case.observed.values
    rest = np.delete(np.arange(9), 4)
    for members in ([0, 1], [2, 3]):
        bias = field[rest][:, members].mean((0, 1)) - truth[rest].mean(0)
        np.testing.assert_allclose(
            unbiased.values[4, members], field[4, members] - bias, rtol=1e-12
        )


def test_run_writes_scores_figures_and_the_corrected_forecast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "rainfall_case", small_case)
    monkeypatch.setattr(demo, "METHODS", ("emos", "emos_local"))
    said: list[str] = []
    table = demo.run(tmp_path / "out", jobs=1, say=said.append)
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {
        "corrected.nc",
        "scores.csv",
        "scores.png",
        "correction.png",
        "skill.png",
        "calibration.png",
    }
    assert len(pd.read_csv(tmp_path / "out" / "scores.csv")) == 6
    assert float(table["crps"].sel(forecast="emos")) < float(
        table["crps"].sel(forecast="raw ensemble")
    )
    with xr.open_dataset(tmp_path / "out" / "corrected.nc") as corrected:
        assert set(corrected.data_vars) == {"rain_mean", "rain_std"}
        assert bool(corrected["rain_mean"].isel(lat=0, lon=0).isnull().all())
        assert bool(corrected["rain_mean"].isel(lat=1).notnull().all())


def test_what_cannot_be_done_is_said_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "rainfall_case", lambda: pytest.fail("work has begun"))
    file = tmp_path / "file"
    file.write_text("something else")
    for output in (file, file / "inside"):
        with pytest.raises(DataError, match=rf"{output}: cannot be written .*; .*another folder"):
            demo.run(output)
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "matplotlib" else name)
    with pytest.raises(MissingDependencyError, match=r"matplotlib.*scisparse\[verify,plot\]"):
        demo.run(tmp_path / "out")
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_text() == "something else"


def test_a_demonstration_that_fails_late_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "rainfall_case", small_case)
    monkeypatch.setattr(demo, "METHODS", ("emos",))
    (tmp_path / "scores.csv").write_text("of last time")

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(demo, "_draw", fail)
    with pytest.raises(DataError, match=r"cannot be written \(disk full\)"):
        demo.run(tmp_path, jobs=1, say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]
    assert (tmp_path / "scores.csv").read_text() == "of last time"


@pytest.mark.parametrize("bias", [0.0, 50.0])
def test_what_scores_better_than_the_best_method_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bias: float
) -> None:
    """Few cases: nothing beats an ensemble that needs no correction."""
    case = small_case()
    drawn = case.observed.fillna(0.0) + bias
    members = drawn + 0.1 * xr.DataArray(np.random.default_rng(4).normal(size=4), dims="member")
    forecast = case.forecast.assign(rain=members.assign_attrs(units="mm"))
    monkeypatch.setattr(demo, "rainfall_case", lambda: dataclasses.replace(case, forecast=forecast))
    monkeypatch.setattr(demo, "METHODS", ("emos",))
    said: list[str] = []
    table = demo.run(tmp_path, jobs=1, say=said.append)
    crps = dict(zip(table["forecast"].values, table["crps"].values, strict=True))
    better = [name for name in crps if crps[name] < crps["emos"]]
    assert ("raw ensemble" in better) is (bias == 0.0)
    but = f"; better: {', '.join(better)}" if better else ""
    assert f"(by emos, the best of the trained methods{but})" in said[-1]


def test_the_map_of_the_rainfall_is_titled_by_season_and_year(data_dir: Path) -> None:
    case = demo.rainfall_case()
    assert case.last == "June to August rainfall of 2020"
    assert case.tested["time"].dt.year[-1] == 2020
    simulated = demo.simulated_case()
    date = np.datetime_as_string(simulated.tested["time"].values[-1], "D")
    assert simulated.last == f"temperature of {date}"


def test_without_data_it_says_so_and_simulates(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SCISPARSE_DATA_DIR", str(tmp_path))
    said: list[str] = []
    monkeypatch.setattr(demo, "simulated_case", small_case)
    case = demo._real_or_simulated(said.append)
    assert case.title == "a small case"
    assert "cannot be had, so a simulated ensemble is used" in said[0]
