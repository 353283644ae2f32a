"""Times that a model was trained on: predictions tell of them, and scores warn."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from postprocess_cases import ensemble, fitted, on_calendar, points

from scisparse.errors import CheckpointError
from scisparse.files import open_data, write_data
from scisparse.postprocess import PostProcessor
from scisparse.postprocess.checkpoint import read_checkpoint, write_checkpoint
from scisparse.verification import evaluate

FORECAST, OBSERVED = ensemble(12)
PAST, NEW = slice(0, 8), slice(8, 12)
EXPECTED = np.arange(12) < 8
DAY = np.timedelta64(24, "h").astype("m8[ns]")


def silent(prediction: Any, observed: Any = OBSERVED, **options: Any) -> xr.Dataset:
    """Scores of what must not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return evaluate(prediction, observed, target="t2m", **options)


def warning_of(prediction: Any, observed: Any = OBSERVED, **options: Any) -> str:
    with pytest.warns(UserWarning, match="in the training of its model") as found:
        evaluate(prediction, observed, target="t2m", **options)
    assert [Path(each.filename).name for each in found] == ["test_in_training.py"]
    return str(found[0].message)


def numbered(data: xr.DataArray) -> xr.DataArray:
    return data.assign_coords(time=("time", np.arange(1991, 2003), {"units": "year"}))


def as_starts(data: xr.DataArray) -> xr.DataArray:
    """Three lead times of four starts, with valid times beside, as cfgrib reads them."""
    starts = ("time", data["time"].values[::3], {"standard_name": "forecast_reference_time"})
    rows = [data[lead::3].assign_coords(time=starts) for lead in range(3)]
    both = xr.concat(rows, "step").assign_coords(step=np.arange(3) * DAY)
    return both.assign_coords(valid_time=(both["time"] + both["step"]).variable)


@pytest.mark.parametrize("form", [None, "noleap", "360_day", "cftime", "numbers", "stations"])
def test_times_of_the_training_are_marked(form: str | None, tmp_path: Path) -> None:
    field, observed = FORECAST, OBSERVED
    if form == "stations":
        field, observed = points(field)[..., :5], points(observed)[..., :5]
    elif form == "numbers":
        field, observed = numbered(field), numbered(observed)
    elif form is not None:
        calendar = "standard" if form == "cftime" else form
        field, observed = on_calendar(field, calendar), on_calendar(observed, calendar)
    model = fitted("emos", field[PAST], observed)
    model.save(tmp_path / "model")
    for each in (model, PostProcessor.load(tmp_path / "model")):
        backwards = each.predict(field[::-1])
        np.testing.assert_array_equal(backwards["in_training"], EXPECTED[::-1])
        silent(each.predict(field[NEW]), observed)
        assert warning_of(backwards, observed).startswith("8 of 12 times of the prediction were")
    if form == "cftime":  # the same dates in another type
        assert int(model.predict(FORECAST)["in_training"].sum()) == 8


def test_the_remedy_scores_the_other_times_alone() -> None:
    predicted = fitted("emos", FORECAST[PAST], OBSERVED).predict(FORECAST)
    text = warning_of(predicted)
    remedy = text.split("score the others, with ")[1]
    expected = silent(predicted.isel(time=NEW))
    xr.testing.assert_allclose(silent(eval(remedy, {"prediction": predicted})), expected)
    xr.testing.assert_allclose(silent(predicted, OBSERVED[NEW]), expected)
    unseen = OBSERVED.where(~predicted["in_training"])
    xr.testing.assert_allclose(silent(predicted, unseen), expected)
    assert "score the others" not in warning_of(predicted.isel(time=PAST))
    assert warning_of(predicted.isel(time=3)).startswith("1 of 1 times")
    silent(predicted.isel(time=9))


@pytest.mark.parametrize("name", ["prediction.nc", "prediction.zarr"])
def test_files_and_xarray_keep_the_mark(name: str, tmp_path: Path) -> None:
    model = fitted("emos", FORECAST[PAST], OBSERVED)
    asked: dict[str, Any]
    for asked in ({}, {"members": True}, {"quantiles": [0.1, 0.9]}, {"thresholds": [280.0]}):
        write_data(model.predict(FORECAST, **asked), tmp_path / name)
        read = open_data(tmp_path / name)
        assert warning_of(read).startswith("8 of 12 times of the prediction")
        silent(read.isel(time=NEW))
        assert warning_of(read.isel(time=slice(2, 9))).startswith("6 of 7 times")
    parts = [model.predict(FORECAST[part]) for part in (NEW, PAST)]
    assert warning_of(xr.concat(parts, "time")).startswith("8 of 12")


def test_a_reference_is_named() -> None:
    models = [fitted("emos", FORECAST[part], OBSERVED) for part in (PAST, NEW)]
    first, second = (model.predict(FORECAST[:10]) for model in models)
    with pytest.warns(UserWarning, match="in the training of its model") as found:
        scores = evaluate(first, OBSERVED, reference=second, target="t2m", dims=["lat", "lon"])
    told = [re.split(" were in", str(each.message))[0] for each in found]
    assert told == ["8 of 10 times of the prediction", "2 of 10 times of the reference"]
    assert scores["crps_skill"].dims == ("time",)
    assert warning_of(FORECAST[:10], reference=second).startswith("2 of 10 times of the reference")


def test_times_without_a_truth_were_not_trained_on() -> None:
    seen = OBSERVED.copy()
    seen[2], seen[5, 0] = np.nan, np.nan
    predicted = fitted("emos", FORECAST[PAST], seen).predict(FORECAST)
    np.testing.assert_array_equal(predicted["in_training"], EXPECTED & (np.arange(12) != 2))


def test_a_model_that_is_fitted_again_knows_the_last_training_alone() -> None:
    model = fitted("emos", FORECAST[PAST], OBSERVED)
    model.fit(FORECAST[5:], OBSERVED)
    np.testing.assert_array_equal(model.predict(FORECAST)["in_training"], np.arange(12) >= 5)


def test_a_correction_of_a_correction_was_trained_on_both() -> None:
    first = fitted("emos", FORECAST[:4], OBSERVED).predict(FORECAST, members=True)
    second = fitted("emos", first.isel(time=slice(3, 8)), OBSERVED)
    np.testing.assert_array_equal(second.predict(first)["in_training"], EXPECTED)


def test_starts_are_compared_with_starts() -> None:
    field, observed = as_starts(FORECAST), as_starts(OBSERVED)
    model = fitted("emos", field.isel(time=slice(3)), observed)
    predicted = model.predict(field)
    assert predicted["in_training"].dims == ("time",)
    np.testing.assert_array_equal(predicted["in_training"], [True, True, True, False])
    assert warning_of(predicted, observed).startswith("3 of 4 times")
    one = field.isel(time=1)
    assert bool(model.predict(one)["in_training"])
    # valid times alone do not tell the start
    assert "in_training" not in model.predict(FORECAST).coords
    by_valid = fitted("emos", FORECAST[PAST], OBSERVED).predict(field)["in_training"]
    np.testing.assert_array_equal(by_valid.transpose("time", "step"), EXPECTED.reshape(4, 3))


def test_times_on_another_scale_are_not_compared() -> None:
    model = fitted("emos", numbered(FORECAST)[PAST], numbered(OBSERVED))
    other = numbered(FORECAST)
    other["time"].attrs["units"] = "days since 1900-01-01"
    assert "in_training" not in model.predict(other).coords
    assert "in_training" not in model.predict(FORECAST.drop_vars("time")).coords


def test_times_that_no_training_leaves(tmp_path: Path) -> None:
    path = tmp_path / "model"
    fitted("emos", FORECAST[PAST], OBSERVED).save(path)
    tensors, spec = read_checkpoint(path)
    times = tensors["seen.values"]
    damaged: list[tuple[torch.Tensor, Any]] = [
        (times.flip(0), spec["seen"]),
        (times.float(), spec["seen"]),
        (times[None], spec["seen"]),
        (times, {"starts": 0, "scale": "standard"}),
        (times, {"starts": False, "scale": None}),
        (times, []),
    ]
    for values, told in damaged:
        write_checkpoint(path, tensors | {"seen.values": values}, spec | {"seen": told})
        with pytest.raises(CheckpointError, match=r"does not fit together.*train it again"):
            PostProcessor.load(path)
