"""The command line as a user meets it: netCDF to netCDF, one-line errors, exit code 2."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from scisparse import cli, doctor
from scisparse.verification import evaluate


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call."""
    monkeypatch.setattr(sys, "argv", ["scisparse", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), out, err


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """An ensemble with a bias that depends on place, and its truth, as two netCDF files."""
    rng = np.random.default_rng(0)
    time = pd.date_range("2001-01-01", periods=24)
    coords = {"time": time, "lat": [10.0, 20.0, 30.0], "lon": [0.0, 5.0, 10.0, 15.0]}
    truth = rng.normal(280, 5, size=(24, 3, 4))
    members = truth + rng.normal(size=(6, 24, 3, 4)) + np.linspace(-3, 3, 12).reshape(3, 4)
    units = {"units": "K", "standard_name": "air_temperature"}
    forecast = xr.Dataset({"t2m": (("member", "time", "lat", "lon"), members, units)}, coords)
    observed = xr.Dataset({"t2m": (("time", "lat", "lon"), truth, units)}, coords)
    forecast.to_netcdf(tmp_path / "forecast.nc")
    for name, times in (("past", slice(0, 16)), ("new", slice(16, 24))):
        forecast.isel(time=times).to_netcdf(tmp_path / f"{name}.nc")
    observed.to_netcdf(tmp_path / "observed.nc")
    return tmp_path


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(monkeypatch, capsys, "--version")
    assert (code, out) == (0, f"scisparse {version('scisparse')}\n")
    _, out, _ = run(monkeypatch, capsys, "--help")
    assert "correct forecasts from netCDF" in " ".join(out.split())


def test_train_predict_evaluate(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, corrected = files / "model.safetensors", files / "corrected.nc"
    forecast, observed = files / "forecast.nc", files / "observed.nc"
    code, out, _ = run(
        monkeypatch, capsys, "train", files / "past.nc", observed,
        "--target", "t2m", "--method", "emos_local", "-o", model,
    )  # fmt: skip
    assert code == 0
    assert "fitted on 16 cases" in out
    code, out, _ = run(monkeypatch, capsys, "predict", model, files / "new.nc", "-o", corrected)
    assert code == 0
    with xr.open_dataset(corrected) as written:
        assert set(written.data_vars) == {"t2m_mean", "t2m_std"}
        assert written["t2m_mean"].attrs["units"] == "K"
        assert "emos_local" in written.attrs["history"]
    code, out, _ = run(
        monkeypatch, capsys, "evaluate", corrected, observed,
        "--reference", forecast, "-o", files / "scores.nc",
    )  # fmt: skip
    assert code == 0
    values = dict(line.split()[:2] for line in out.splitlines() if len(line.split()) > 1)
    assert float(values["crps_skill"]) > 0.3
    assert values["weights"] == "area"
    with xr.open_dataset(files / "scores.nc") as scores:
        assert float(scores["crps"]) == pytest.approx(float(values["crps"]), rel=1e-4)


def test_quantiles_and_members(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, forecast = files / "model.safetensors", files / "new.nc"
    run(
        monkeypatch, capsys, "train", files / "past.nc", files / "observed.nc",
        "--target", "t2m", "--method", "emos", "-o", model,
    )  # fmt: skip
    target = files / "out.nc"
    for option, name in (
        (["--quantiles", "0.1,0.9"], "t2m_quantile"),
        (["--members"], "t2m"),
        (["--thresholds", "-5,280"], "t2m_probability"),
    ):
        assert run(monkeypatch, capsys, "predict", model, forecast, "-o", target, *option)[0] == 0
        with xr.open_dataset(target) as written:
            assert list(written.data_vars) == [name]
    scores = files / "scores.nc"
    options: list[tuple[list[object], str]] = [
        ([], "-5 280"),
        (["--reference", forecast, "--thresholds", "280"], "280"),
    ]
    for given, expected in options:
        out = run(
            monkeypatch, capsys, "evaluate", target, files / "observed.nc", "-o", scores, *given
        )[1]
        with xr.open_dataset(scores) as read:
            for limit in expected.split():
                value = float(read["brier_score"].sel(threshold=float(limit)))
                assert f"brier_score (> {limit})" in out
                assert f"{value:.5g}" in out
            assert ("brier_score_skill (> 280)" in out) is bool(given)


def test_every_error_of_the_input_is_one_line_and_code_2(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forecast, observed, model = (
        files / "forecast.nc",
        files / "observed.nc",
        files / "m.safetensors",
    )
    train = ["train", forecast, observed, "--target", "t2m", "-o", model]
    cut = files / "cut.nc"
    cut.write_bytes(forecast.read_bytes()[:300])
    celsius = files / "celsius.nc"
    with xr.open_dataset(observed) as data:
        other = data.load()
    other["t2m"].attrs["units"] = "degC"
    other.to_netcdf(celsius)
    cases = [
        (["train", files / "none.nc", *train[2:]], "none.nc: no such file"),
        (["train", cut, *train[2:]], "cut.nc: cannot be read"),
        (
            [*train[:3], "--target", "t850", "-o", model],
            "the forecast has no variable 't850' among 't2m'",
        ),
        ([*train, "--method", "magic"], "`method` is 'magic'; the choices are 'emos'"),
        (["train", forecast, celsius, *train[3:]], "'degC'"),
        ([*train[:-1], files / "no" / "m.safetensors"], "does not exist; create it first"),
        (["predict", files / "none.safetensors", forecast], "none.safetensors: no such file"),
        (["predict", cut, forecast], "cut.nc: not a whole safetensors file"),
        (["predict", cut, forecast, "--quantiles", "a,b"], "must be numbers separated by commas"),
        (["predict", cut, forecast, "--thresholds", "a"], "`--thresholds` (='a') must be numbers"),
    ]
    for arguments, message in cases:
        before = sorted(files.iterdir())
        code, out, err = run(monkeypatch, capsys, *arguments)
        assert code == 2, (arguments, err)
        assert err.startswith("scisparse: error: "), err
        assert err.count("\n") == 1
        assert message in err
        assert out == ""
        assert sorted(files.iterdir()) == before


def test_bad_content_is_one_line_and_code_2(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the data may hold: each is refused by name, and leaves nothing behind."""
    forecast, observed = (xr.load_dataset(files / name) for name in ("forecast.nc", "observed.nc"))
    field, truth = forecast["t2m"], observed["t2m"]
    later = observed.assign_coords(time=observed["time"] + np.timedelta64(900, "D"))
    twice = forecast.isel(time=[0, 0, *range(2, 24)])
    infinite = forecast.assign(t2m=field.where(field["lon"] > 0, np.inf))
    bad = {
        "no time is common": (forecast, later, "no common times"),
        "one time": (forecast.isel(time=[3]), observed, "times"),
        "times twice": (twice, observed, "repeats in the forecast"),
        "infinite": (infinite, observed, "infinite"),
        "all missing": (forecast, observed.assign(t2m=truth.where(truth < 0)), "NaN everywhere"),
        "no time": (forecast.isel(time=0, drop=True), observed, "time"),
        "another grid": (forecast, observed.assign_coords(lat=[11.0, 21.0, 31.0]), "grid"),
        "no grid": (forecast.drop_vars("lat"), observed, "lat"),
    }
    model = files / "model.safetensors"
    for name, (left, right, message) in bad.items():
        left.to_netcdf(files / "left.nc")
        right.to_netcdf(files / "right.nc")
        before = sorted(files.iterdir())
        arguments = ["train", files / "left.nc", files / "right.nc", "--target", "t2m", "-o", model]
        code, out, err = run(monkeypatch, capsys, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1), (name, err)
        assert err.startswith("scisparse: error: "), (name, err)
        assert message in err, (name, err)
        assert sorted(files.iterdir()) == before
    paths = files / "forecast.nc", files / "observed.nc"
    assert run(monkeypatch, capsys, "train", *paths, "--target", "t2m", "-o", model)[0] == 0
    forecast.isel(lon=slice(3)).to_netcdf(files / "left.nc")
    before = sorted(files.iterdir())
    changed = ["predict", model, files / "left.nc", "-o", files / "out.nc"]
    code, _, err = run(monkeypatch, capsys, *changed)
    assert (code, err.count("\n")) == (2, 1), err
    assert "grid" in err
    assert sorted(files.iterdir()) == before


def test_an_output_that_is_an_input_is_refused_before_any_work(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forecast, observed = files / "forecast.nc", files / "observed.nc"
    before = {path: path.read_bytes() for path in (forecast, observed)}
    commands = (
        ["train", forecast, observed, "--target", "t2m", "-o", observed],
        ["predict", files / "model.safetensors", forecast, "-o", files / "." / "forecast.nc"],
        ["evaluate", forecast, observed, "-o", forecast],
    )
    for arguments in commands:
        code, _, err = run(monkeypatch, capsys, *arguments)
        assert code == 2
        assert "is read as well, and would be lost; choose another output" in err
        assert {path: path.read_bytes() for path in before} == before


def test_a_store_that_is_read_is_neither_replaced_nor_written_into(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Groups of one store: replacing the store would lose those that are read, and all others."""
    archive, model = files / "archive.zarr", files / "model.safetensors"
    for name in ("forecast", "observed"):
        data = xr.load_dataset(files / f"{name}.nc")
        data.to_zarr(archive, group=name, mode="a", consolidated=False)
    (files / "link").symlink_to(archive)
    read = archive / "forecast", archive / "observed"
    train = ["train", *read, "--target", "t2m", "--method", "emos", "-o", model]
    assert run(monkeypatch, capsys, *train)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in archive.rglob("*")}
    for arguments, message in (
        (["predict", model, read[0], "-o", archive], f"holds {read[0]}, which is read and would"),
        (["predict", model, files / "link" / "forecast", "-o", archive], "which is read and would"),
        (["evaluate", *read, "-o", archive], f"holds {read[0]}, which"),
        (["predict", model, read[0], "-o", read[0] / "new.zarr"], f"lies in {read[0]}, which is"),
        (["predict", model, read[0], "-o", read[0] / "new.nc"], f"lies in {read[0]}, which is"),
    ):
        code, _, err = run(monkeypatch, capsys, *arguments)
        assert (code, err.count("\n")) == (2, 1), arguments
        assert message in err
        assert "choose another output" in err
        assert {path: path.stat().st_mtime_ns for path in archive.rglob("*")} == before


def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forecast, observed = files / "forecast.nc", files / "observed.nc"
    folder = files / "work.zarr"
    (folder / "inside").mkdir(parents=True)
    table = files / "scores.csv"
    commands = (
        (["evaluate", files / "none", observed, "-o", table], f"write {files}/scores.nc, and make"),
        (["train", forecast, observed, "--target", "t2m", "-o", folder], "is a folder, not a file"),
        (["predict", files / "none", forecast, "-o", folder], "no Zarr store, and would be lost"),
        (["evaluate", files / "none", observed, "-o", folder / "inside"], "is a folder, not a"),
    )
    before = sorted(files.rglob("*"))
    for arguments, message in commands:
        code, _, err = run(monkeypatch, capsys, *arguments)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
        assert sorted(files.rglob("*")) == before


def test_evaluate_takes_the_estimator_and_the_dims(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forecast, observed, scores = (files / f"{n}.nc" for n in ("forecast", "observed", "scores"))
    command = ["evaluate", forecast, observed, "-o", scores]
    code, out, _ = run(
        monkeypatch, capsys, *command, "--dims", "time, lon", "--estimator", "standard"
    )
    assert code == 0
    assert "by lat" in out
    with xr.open_dataset(forecast) as members, xr.open_dataset(observed) as truth:
        expected = evaluate(members, truth, dims=("time", "lon"), estimator="standard")
    with xr.open_dataset(scores) as written:
        xr.testing.assert_allclose(written["crps"], expected["crps"])
        assert written["crps"].attrs["estimator"] == "standard"
    for option, value in (("--dims", "level"), ("--estimator", "best")):
        code, _, err = run(monkeypatch, capsys, *command, option, value)
        assert (code, err.count("\n")) == (2, 1)
        assert f"`{option.strip('-')}`" in err
        assert repr(value) in err


@pytest.mark.filterwarnings("default::UserWarning")
def test_warnings_are_one_line(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, forecast, observed = (files / n for n in ("m.safetensors", "forecast.nc", "observed.nc"))
    train = ["train", forecast, observed, "--target", "t2m", "--method", "emos", "-o", model]
    assert run(monkeypatch, capsys, *train)[0] == 0
    with xr.open_dataset(forecast) as members:
        members.isel(member=slice(3)).to_netcdf(files / "fewer.nc")
    code, _, err = run(
        monkeypatch, capsys, "predict", model, files / "fewer.nc", "-o", files / "p.nc"
    )
    assert code == 0
    assert err.startswith("scisparse: warning: ")
    assert err.count("\n") == 1
    assert "3" in err


@pytest.mark.parametrize("dims", [None, "time,lat,lon", "time", "time, lat"])
@pytest.mark.parametrize("limits", [[280.0], [278.0, 281.5]])
def test_evaluate_prints_every_number_whatever_the_dims(
    files: Path,
    dims: str | None,
    limits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    forecast, observed, written = (files / f"{n}.nc" for n in ("forecast", "observed", "scores"))
    thresholds = ["--thresholds", ",".join(map(str, limits))]
    command = ["evaluate", forecast, observed, "-o", written, *thresholds]
    code, out, err = run(monkeypatch, capsys, *command, *([] if dims is None else ["--dims", dims]))
    assert (code, err) == (0, "")
    scores = xr.load_dataset(written)
    assert scores.attrs["history"].endswith("against observed.nc")
    assert "scored by scisparse" in scores.attrs["history"]
    lines = out.splitlines()
    for name, values in scores.data_vars.items():
        rest = [str(dim) for dim in values.dims if dim != "threshold"]
        if rest:
            shown = [str(dim) for dim in values.dims]
            assert f"{name:22s} by {', '.join(shown)}" in lines
        elif values.ndim:
            for limit in limits:
                number = float(values.sel(threshold=limit))
                assert any(
                    line.startswith(f"{name} (> {limit:g})") and f" {number:.5g}" in line
                    for line in lines
                )
        else:
            found = [line.split()[1] for line in lines if line.split()[0] == name]
            assert found == [f"{float(values):.5g}"]


def test_long_labels_keep_the_columns_of_the_table() -> None:
    names = {"brier_score_reference": ("threshold", [0.25]), "crps": ((), 0.5)}
    scores = xr.Dataset(names, {"threshold": [273.15]}, {"weights": "area"})
    lines = list(cli._lines(scores))
    assert (
        len(
            {
                line.index(text) + len(text)
                for line, text in zip(lines, ("0.25", "0.5"), strict=False)
            }
        )
        == 1
    )
    assert lines[2].index("area") == len("brier_score_reference (> 273.15)") + 1


@pytest.mark.parametrize("command", ["demo", "train", "predict", "evaluate", "doctor"])
def test_help_of_every_command_shows_an_example(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(monkeypatch, capsys, command, "--help")
    assert code == 0
    assert f"scisparse {command}" in out
    assert "Example" in out


def test_doctor_reports_devices_backends_and_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"edge_outer": doctor.KERNELS["edge_outer"]}  # test_doctor.py has all
    monkeypatch.setattr(doctor, "KERNELS", one)
    code, out, _ = run(monkeypatch, capsys, "doctor")
    assert code == 0
    assert "backend reference: largest relative error against float64" in out
    assert "cuda" in out


@pytest.mark.filterwarnings("default::UserWarning")
def test_scores_of_what_was_trained_on_come_with_a_warning(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, corrected, observed = (files / n for n in ("m.safetensors", "c.nc", "observed.nc"))
    train = ["train", files / "past.nc", observed, "--target", "t2m", "--method", "emos"]
    assert run(monkeypatch, capsys, *train, "-o", model)[0] == 0
    for name, expected in (("new.nc", 0), ("forecast.nc", 16)):
        code, _, err = run(monkeypatch, capsys, "predict", model, files / name, "-o", corrected)
        assert (code, err) == (0, "")
        code, out, err = run(monkeypatch, capsys, "evaluate", corrected, observed)
        assert code == 0
        assert "crps" in out
        assert err.count("\n") == bool(expected)
        assert not expected or f"warning: {expected} of 24 times of the prediction were in" in err
