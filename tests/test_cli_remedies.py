"""What the command line says to do names the user's files, and does what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import test_cli
import xarray as xr
from test_cli import run

files = test_cli.files


def done(text: str) -> xr.Dataset:
    """What the last expression of an error gives, with the names that it explains."""
    remedy, meant = text.strip().split(", where ")
    names = {"xarray": xr}
    for part in meant.split(" and "):
        exec(part, names)
    given: xr.Dataset = eval(remedy.rsplit(": ", 1)[-1].split("with ")[-1], names)
    return given


def test_remedies_of_errors_name_the_files(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forecast, observed, changed = (files / f"{n}.nc" for n in ("forecast", "observed", "changed"))
    train = ["--target", "t2m", "--method", "emos", "-o", files / "m.safetensors"]
    with xr.open_dataset(observed) as truth, xr.open_dataset(forecast) as members:
        truth.convert_calendar("noleap").to_netcdf(changed)
        members.assign(truth=truth["t2m"]).to_netcdf(files / "leaky.nc")
    for given, name, names in (
        ((forecast, changed), "changed", "observation"),
        ((files / "leaky.nc", observed), "leaky", "forecast"),
    ):
        code, _, err = run(monkeypatch, capsys, "train", *given, *train)
        assert (code, err.count("\n")) == (2, 1)
        assert err.endswith(f", where {names} = xarray.open_dataset('{files / name}.nc')\n")
        mended = done(err)
        mended.to_netcdf(files / "mended.nc")
        again = [files / "mended.nc" if each.stem == name else each for each in given]
        assert run(monkeypatch, capsys, "train", *again, *train)[0] == 0
    code, _, err = run(monkeypatch, capsys, "evaluate", forecast, changed)
    assert code == 2
    assert "prediction = xarray.open_dataset" not in err
    assert f"observation = xarray.open_dataset('{changed}')" in err


def test_errors_about_files_themselves_explain_no_names(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forecast, observed = files / "forecast.nc", files / "observed.nc"
    whole = forecast.read_bytes()
    forecast.write_bytes(whole[: len(whole) // 2])
    train = ["train", forecast, observed, "--target", "t2m", "-o", files / "m.safetensors"]
    code, _, err = run(monkeypatch, capsys, *train)
    assert code == 2
    assert "where" not in err


@pytest.mark.filterwarnings("default::UserWarning")
def test_remedies_of_warnings_name_the_files(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, corrected, observed = (files / n for n in ("m.safetensors", "c.nc", "observed.nc"))
    train = ["train", files / "past.nc", observed, "--target", "t2m", "--method", "emos"]
    assert run(monkeypatch, capsys, *train, "-o", model)[0] == 0
    predict = ["predict", model, files / "forecast.nc", "-o", corrected]
    assert run(monkeypatch, capsys, *predict)[0] == 0
    code, _, err = run(monkeypatch, capsys, "evaluate", corrected, observed)
    assert (code, err.count("\n")) == (0, 1)
    assert err.endswith(f", where prediction = xarray.open_dataset('{corrected}')\n")
    done(err).to_netcdf(files / "unseen.nc")
    code, out, err = run(monkeypatch, capsys, "evaluate", files / "unseen.nc", observed)
    assert (code, err) == (0, "")
    count = next(line.split()[1] for line in out.splitlines() if line.startswith("count"))
    assert int(count) == np.prod((8, 3, 4))


def test_a_model_in_the_place_of_data_and_the_other_way_round(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, past, observed = (files / n for n in ("model", "past.nc", "observed.nc"))
    train = ["train", past, observed, "--target", "t2m", "--method", "emos", "-o", model]
    assert run(monkeypatch, capsys, *train)[0] == 0
    for arguments, message in (
        (["predict", past, model], "past.nc: not a whole safetensors file, but netCDF; give the"),
        (["evaluate", model, observed], "model: cannot be read: it seems to be a model, not netC"),
    ):
        code, _, err = run(monkeypatch, capsys, *arguments, "-o", files / "out.nc")
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
