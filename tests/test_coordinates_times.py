"""Forecasts and analyses as cfgrib reads them: starts, lead times and valid times side by side."""

from __future__ import annotations

from functools import partial

import cftime
import numpy as np
import pytest
import xarray as xr
from postprocess_cases import (
    ensemble,
    error_of,
    fit_error,
    fitted,
    on_calendar,
    scores_its_training,
)
from test_remedies import done

from scisparse.verification import evaluate

DAY = np.timedelta64(24, "h").astype("m8[ns]")
ATTRS = {
    "time": {"standard_name": "forecast_reference_time"},
    "step": {"standard_name": "forecast_period"},
    "valid_time": {"standard_name": "time"},
}
FORECAST, OBSERVED = ensemble(14)
COUNT = 12 * OBSERVED[0].size


def as_read(data: xr.DataArray, lead: np.timedelta64) -> xr.DataArray:
    """Data at valid times as cfgrib reads them: by starts, with one lead time."""
    valid = data["time"].values
    starts = data.drop_vars("time").assign_coords(time=("time", valid - lead, ATTRS["time"]))
    step, valid_time = ((), lead, ATTRS["step"]), ("time", valid, ATTRS["valid_time"])
    return starts.assign_coords(step=step, valid_time=valid_time).assign_coords(surface=0.0)


def as_run(data: xr.DataArray, leads: np.ndarray) -> xr.DataArray:
    """One run: the data at the valid times of the first start and each lead time."""
    start = data["time"].values[0]
    run = data.sel(time=start + leads).drop_vars("time").rename(time="step")
    run = run.assign_coords(step=("step", leads, ATTRS["step"]), time=((), start, ATTRS["time"]))
    return run.assign_coords(valid_time=("step", start + leads, ATTRS["valid_time"]))


START, ANALYSIS = as_read(FORECAST[2:], DAY), as_read(OBSERVED, 0 * DAY)


@scores_its_training
def test_the_remedy_for_starts_works_beside_starts_of_the_analysis() -> None:
    expected = float(evaluate(FORECAST[2:], OBSERVED)["crps"])
    text = error_of(lambda: evaluate(START, ANALYSIS))
    valid = done(text.split("valid times: ")[1], prediction=START)
    corrected = fitted("emos", valid, ANALYSIS).predict(valid)
    assert int(evaluate(corrected, ANALYSIS, target="t2m")["count"]) == COUNT
    for truth in (ANALYSIS, ANALYSIS.swap_dims(time="valid_time"), OBSERVED):
        assert float(evaluate(valid, truth)["crps"]) == pytest.approx(expected)
        mirrored = evaluate(truth.rename("t2m"), valid.isel(member=0, drop=True))
        assert int(mirrored["count"]) == COUNT
    plain = FORECAST[2:].drop_attrs().assign_attrs(units="K")
    scores = evaluate(plain, OBSERVED.drop_attrs().assign_attrs(units="K"), reference=valid)
    assert float(scores["crps_reference"]) == pytest.approx(expected)


@pytest.mark.parametrize("truth", ["cfgrib", "bare", "told"])
def test_one_run_is_compared_at_its_valid_times(truth: str) -> None:
    leads = np.array([1, 2, 5, 9]) * DAY
    observed = {"cfgrib": ANALYSIS, "told": OBSERVED, "bare": OBSERVED.drop_attrs()}[truth]
    observed = observed.assign_attrs(units="K")
    run = as_run(FORECAST, leads)
    text = error_of(lambda: evaluate(run, observed))
    by_valid = done(text.split("valid times: ")[1], prediction=run)
    expected = evaluate(FORECAST.isel(time=[1, 2, 5, 9]), OBSERVED)
    for given in (by_valid, by_valid.drop_vars("step")):
        scores = evaluate(given, observed)
        assert float(scores["crps"]) == pytest.approx(float(expected["crps"]))
        assert int(scores["count"]) == 4 * OBSERVED[0].size
    assert fitted("emos", by_valid, observed).predict(by_valid).sizes["valid_time"] == 4


@pytest.mark.parametrize("signs", [[], ["valid_time"]])
def test_single_valid_times_must_be_the_same(signs: list[str]) -> None:
    forecast, analysis = (data.drop_vars(signs) for data in (START, ANALYSIS))
    for place in (0, 7):
        one = forecast.isel(time=place)
        for seen in (analysis.isel(time=place + 2), OBSERVED[place + 2]):
            assert int(evaluate(one, seen)["count"]) == OBSERVED[0].size
        for seen in (analysis.isel(time=place + 1), OBSERVED[place + 1]):
            text = error_of(partial(evaluate, one, seen))
            assert f"is {one['time'].values + DAY}"[:13] in text
            assert "must be the same in both; select the same one" in text
            assert "drop" not in text


@pytest.mark.parametrize("signs", [[], ["valid_time"]])
@pytest.mark.parametrize("truth", ["plain", "cfgrib", "noleap"])
def test_a_single_valid_time_is_looked_up(signs: list[str], truth: str) -> None:
    forecast, analysis = (data.drop_vars(signs) for data in (START, ANALYSIS))
    observed = analysis if truth == "cfgrib" else OBSERVED
    if truth == "noleap":
        forecast, observed = (on_calendar(data, truth) for data in (FORECAST, OBSERVED))
    later = 0 if truth == "noleap" else 2
    for place in (0, 7):
        one = forecast.isel(time=place)
        expected = evaluate(one, observed.isel(time=place + later), reference=one)
        for reference in (one, FORECAST) if truth != "noleap" else (one, forecast):
            found = evaluate(one, observed, reference=reference)
            for name, score in expected.items():
                np.testing.assert_array_equal(found[name], score, err_msg=str(name))
        others = observed.isel(time=[k for k in range(14) if k != place + later])
        text = error_of(partial(evaluate, one, others))
        assert "(13 values) in the observation; select a time that both have" in text
        assert "in the prediction, which is none of 2001-01-0" in text


@pytest.mark.parametrize("name", ["S", "init_time", "forecast_reference_time"])
@pytest.mark.parametrize("leads", [False, True])
def test_a_single_start_is_looked_up(name: str, leads: bool) -> None:
    """It was compared with the truth of every start."""
    forecast, observed = (data.drop_attrs().rename(time=name) for data in (FORECAST, OBSERVED))
    if leads:
        forecast, observed = (data.expand_dims(L=[1.0, 2.0]) for data in (forecast, observed))
    one = forecast.isel({name: 4})
    found = evaluate(one, observed)
    assert int(found["count"]) == observed.isel({name: 4}).size
    each = evaluate(forecast, observed, dims=["lat", "lon"])["crps"]
    assert float(found["crps"]) == pytest.approx(float(each.isel({name: 4}).mean()))
    text = error_of(lambda: evaluate(one, observed.isel({name: slice(5, None)})))
    assert f"{name!r} is 2001-01-05 00:00:00 in the prediction, which is none of 2001-01-06" in text
    text = error_of(lambda: evaluate(forecast, observed.isel({name: 4})))
    assert "and 2001-01-05 00:00:00 in the observation, and must be the same in both" in text
    text = error_of(lambda: evaluate(one, OBSERVED))
    assert f"of one time, {name!r} 2001-01-05 00:00:00, that does not tell which of the" in text
    given = one.isel(L=0) if leads else one
    valid = given.assign_coords(valid_time=OBSERVED["time"].values[6])
    assert int(evaluate(valid, OBSERVED)["count"]) == OBSERVED[0].size


@pytest.mark.parametrize("signs", [[], ["valid_time"], ["valid_time", "step"]])
def test_one_truth_is_not_that_of_several_starts(signs: list[str]) -> None:
    parts = [as_read(FORECAST[k : k + 10], k * DAY) for k in (1, 2)]
    runs = xr.concat(parts, "step", join="exact", coords="different", compat="equals")
    for forecast in (START, runs):
        text = error_of(partial(evaluate, forecast.drop_vars(signs), OBSERVED[3]))
        assert "and 2001-01-04 00:00:00 in the observation, and must be the same" in text


def test_starts_must_be_the_same_where_lead_times_are() -> None:
    leads = np.arange(3) * DAY
    runs = [as_run(FORECAST[k:], leads).drop_vars("valid_time") for k in range(2)]
    for first, second in (runs, [run.isel(step=1, drop=True) for run in runs]):
        assert int(evaluate(first, first.isel(member=0, drop=True))["count"]) > 0
        text = error_of(partial(evaluate, first, second.isel(member=0, drop=True)))
        assert "'time' is 2001-01-01 00:00:00 in the prediction and 2001-01-02" in text


def test_dates_of_another_meaning_are_not_compared() -> None:
    for ours, theirs in (
        (np.datetime64("2001-01-01", "ns"), np.datetime64("2001-02-01", "ns")),
        (((), 0.0, {"units": "hours since 2000-01-01"}), ((), 9, {"units": "days since 1900-1-1"})),
    ):
        first, second = FORECAST.assign_coords(reftime=ours), OBSERVED.assign_coords(reftime=theirs)
        assert int(evaluate(first, second)["count"]) == OBSERVED.size
        assert fitted("emos", first, second).predict(FORECAST.assign_coords(reftime=theirs))


@pytest.mark.parametrize("change", [0, 1])
@pytest.mark.parametrize("kind", [cftime.DatetimeNoLeap, cftime.Datetime360Day])
def test_single_dates_of_two_calendars(change: int, kind: type) -> None:
    data = [FORECAST[3].drop_attrs(), OBSERVED[3].drop_attrs()]
    data = [each.assign_attrs(units="K") for each in data]
    data[change] = data[change].assign_coords(time=kind(2001, 1, 4))
    text = error_of(lambda: evaluate(*data))
    assert "datetime64 dates" in text
    names = dict(zip(("prediction", "observation"), data, strict=True))
    remedy = text.split("convert one: ")[1]
    names[remedy.split(".")[0]] = done(remedy, **names)
    assert int(evaluate(*names.values())["count"]) == OBSERVED[0].size
    assert "no time dim" in fit_error(*data)
