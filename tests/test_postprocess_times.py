"""Times that do not fit: each a one-line error that names both sides and the remedy."""

from __future__ import annotations

import datetime

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

from scisparse.postprocess import PostProcessor
from scisparse.verification import evaluate

FORECAST, OBSERVED = ensemble(6)
MODEL = fitted("emos", FORECAST, OBSERVED)


def moved(data: xr.DataArray, hours: int) -> xr.DataArray:
    return data.assign_coords(time=data["time"] + np.timedelta64(hours, "h"))


def test_no_common_times() -> None:
    text = fit_error(FORECAST, moved(OBSERVED, 24 * 400))
    assert "no common times: the forecast has 6 from 2001-01-01 00:00:00 to 2001-01-06" in text
    assert "the observation 6 from 2002-02-05 00:00:00 to 2002-02-10" in text
    assert "select overlapping periods, and give both the same stamps" in text
    assert "no common times" in fit_error(FORECAST, moved(OBSERVED, 12))


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_times(count: int) -> None:
    text = fit_error(FORECAST[:count], OBSERVED)
    assert f"'t2m' are both there at {count} common times; at least 3 are needed" in text
    leads = FORECAST[:count].expand_dims(lead_time=[1, 2, 3, 4])
    assert f"both there at {count} common times" in fit_error(leads, OBSERVED)
    holes = OBSERVED.where(OBSERVED["time"] < OBSERVED["time"][count])
    assert f"both there at {count} common times" in fit_error(FORECAST, holes)


def test_duplicate_times() -> None:
    twice = [0, 1, 2, 3, 4, 5, 2]
    for what, pair in (
        ("forecast", (FORECAST.isel(time=twice), OBSERVED)),
        ("observation", (FORECAST, OBSERVED.isel(time=twice))),
    ):
        text = fit_error(*pair)
        assert text.startswith(f"time 2001-01-03 00:00:00 repeats in the {what}; keep one of each")
        assert ".drop_duplicates('time')" in text


def test_missing_times() -> None:
    holes = FORECAST.assign_coords(time=FORECAST["time"].where(np.arange(6) > 0))
    assert "the forecast has missing times along 'time'; drop them" in fit_error(holes, OBSERVED)


def test_times_without_a_coordinate() -> None:
    text = fit_error(FORECAST.drop_vars("time"), OBSERVED)
    assert text == (
        "the forecast has no coordinate for its time dim 'time' alone; assign one, with "
        ".assign_coords(time=times)"
    )
    # As WRF has it:
    dates = FORECAST["time"].rename(time="Time").variable
    data = FORECAST.drop_vars("time").rename(time="Time").assign_coords(XTIME=dates)
    remedy = ".assign_coords(Time=data['XTIME'].values)"
    assert fit_error(data, OBSERVED).endswith(f"assign one, with {remedy}")
    PostProcessor("emos", target="t2m").fit(data.assign_coords(Time=data["XTIME"].values), OBSERVED)


@pytest.mark.parametrize(
    ("first", "second", "kinds"),
    [
        ("noleap", None, ("cftime dates of calendar 'noleap'", "datetime64 dates")),
        ("noleap", "360_day", ("calendar 'noleap'", "calendar '360_day'")),
        ("standard", None, ("cftime dates of calendar 'standard'", "datetime64 dates")),
    ],
)
def test_calendars_that_differ(first: str, second: str | None, kinds: tuple[str, str]) -> None:
    observed = OBSERVED if second is None else on_calendar(OBSERVED, second)
    text = fit_error(on_calendar(FORECAST, first), observed)
    assert f"{kinds[0]} but of the observation " in text
    assert kinds[1] in text
    target = "'standard', use_cftime=False" if second is None else "'360_day', use_cftime=True"
    assert f"convert one: forecast.convert_calendar({target}" in text


def test_the_remedy_for_calendars_works() -> None:
    dates = on_calendar(FORECAST, "standard").convert_calendar("standard", use_cftime=False)
    other = fitted("emos", dates, OBSERVED).predict(FORECAST)
    np.testing.assert_array_equal(other["t2m_mean"], MODEL.predict(FORECAST)["t2m_mean"])


def test_numbers_are_no_dates() -> None:
    years = FORECAST.assign_coords(time=np.arange(2001, 2007))
    assert "times of the forecast are numbers but of the observation datetime64" in fit_error(
        years, OBSERVED
    )
    # but years with years are fine
    seen = OBSERVED.assign_coords(time=np.arange(2001, 2007))
    assert fitted("emos", years, seen).predict(years).sizes["time"] == 6


def test_calendar_that_changed_since_training() -> None:
    text = error_of(lambda: MODEL.predict(on_calendar(FORECAST, "noleap")))
    assert "is on calendar 'noleap' but the model was trained on 'standard'" in text
    assert ".convert_calendar('standard')" in text
    same = fitted("emos", on_calendar(FORECAST, "noleap"), on_calendar(OBSERVED, "noleap"))
    assert "on calendar 'standard' but the model was trained on 'noleap'" in error_of(
        lambda: same.predict(FORECAST)
    )
    # one calendar in two encodings is one calendar
    assert MODEL.predict(on_calendar(FORECAST, "standard")).sizes["time"] == 6


def test_starts_are_no_valid_times() -> None:
    """Forecasts by start and lead time must not be compared with observations at the start."""
    start = FORECAST.assign_coords(
        time=FORECAST["time"].assign_attrs(standard_name="forecast_reference_time")
    )
    text = fit_error(start, OBSERVED)
    assert (
        "dim 'time' of the forecast holds starts (standard_name 'forecast_reference_time')" in text
    )
    assert "give the observation the same starts" in text
    unknown = OBSERVED.copy()
    unknown["time"].attrs = {}
    assert fitted("emos", start, unknown).predict(start).sizes["time"] == 6
    assert "starts and dims ['step']" in fit_error(start.expand_dims(step=[1, 2]), unknown)
    # the observation may be stamped with the starts too
    seen = OBSERVED.assign_coords(time=start["time"])
    assert fitted("emos", start, seen).predict(start).sizes["time"] == 6


_LATER = np.timedelta64(24, "h").astype("m8[ns]")
_START = {"standard_name": "forecast_reference_time"}


def started(data: xr.DataArray, *signs: str) -> xr.DataArray:
    """The same forecast by its starts, a day before, as told by some of the signs."""
    valid = data["time"].values
    data = data.assign_coords(time=("time", valid - _LATER, _START if "attrs" in signs else {}))
    if "step" in signs:
        data = data.assign_coords(step=_LATER)
    if "hours" in signs:
        data = data.assign_coords(h=((), 24.0, {"standard_name": "forecast_period"}))
    if "valid" in signs:
        data = data.assign_coords(valid_time=("time", valid))
    if "other valid" in signs:
        data = data.assign_coords(vt=("time", valid, {"standard_name": "time"}))
    return data.rename(time="init_time") if "name" in signs else data


@pytest.mark.parametrize(
    "signs",
    [
        ("attrs", "step", "valid"),
        ("attrs", "step"),
        ("attrs", "hours"),
        ("name", "step"),
        ("valid",),
        ("other valid",),
    ],
)
@pytest.mark.parametrize("attrs", [{}, {"standard_name": "time"}])
def test_starts_meet_no_valid_times_whatever_the_observation_says(
    signs: tuple[str, ...], attrs: dict[str, str]
) -> None:
    start = started(FORECAST, *signs)
    seen = OBSERVED.copy()
    seen["time"].attrs = attrs
    texts = [
        fit_error(start, seen),
        error_of(lambda: evaluate(start, seen)),
        error_of(lambda: evaluate(seen, seen, reference=start)),
    ]
    for text in texts:
        assert "holds starts (" in text
        assert "'time' of the observation does not; give the observation the same starts" in text
    dim = "init_time" if "name" in signs else "time"
    # with the starts on both sides, and with valid times on both, all is as it was
    pairs = [(start, seen.assign_coords(time=("time", start[dim].values, _START)))]
    for name in {"valid_time", "vt"} & {*map(str, start.coords)}:
        assert f".swap_dims({dim}={name!r})" in texts[0]
        swapped = start.swap_dims({dim: name})
        swapped[name].attrs = {"standard_name": "time"}
        pairs.append((swapped, seen))
    for pair in pairs:
        result = fitted("emos", *pair).predict(pair[0])
        np.testing.assert_array_equal(result["t2m_mean"], MODEL.predict(FORECAST)["t2m_mean"])
        assert float(evaluate(*pair)["crps"]) == float(evaluate(FORECAST, OBSERVED)["crps"])


def test_valid_times_beside_starts_and_leads_of_zero_are_fine() -> None:
    expected = float(evaluate(FORECAST, OBSERVED)["crps"])
    valid = FORECAST.assign_coords(valid_time=("time", FORECAST["time"].values))
    beside = FORECAST.assign_coords(
        forecast_reference_time=("time", FORECAST["time"].values - _LATER, _START), step=_LATER
    )
    analysis = started(moved(FORECAST, 24), "attrs").assign_coords(step=0 * _LATER)
    unknown = OBSERVED.copy()
    unknown["time"].attrs = {}
    for data in (valid, beside, analysis):
        assert float(evaluate(data, unknown)["crps"]) == expected
        assert fitted("emos", data, unknown).predict(data).sizes["time"] == 6


def test_times_that_nearly_match_are_not_lost_without_a_word() -> None:
    field, observed = ensemble(48)
    exact = np.datetime64("2001-01-01", "ns") + np.arange(48) * np.timedelta64(8, "h")
    days = (exact - np.datetime64("1900-01-01")) / np.timedelta64(1, "D")
    attrs = {"units": "days since 1900-01-01"}
    single = xr.Dataset(coords={"time": ("time", days.astype(np.float32), attrs)})
    field = field.assign_coords(time=exact)
    observed = observed.assign_coords(xr.decode_cf(single).coords)
    matching = int(np.isin(field["time"], observed["time"]).sum())
    assert 0 < matching < 48
    near = f"{48 - matching} of 48 times of the"
    assert near in fit_error(field, observed)
    for call in (
        lambda: evaluate(field, observed),
        lambda: evaluate(observed, observed, reference=field),
    ):
        text = error_of(call)
        assert f"and {matching} match; round both to the same stamps" in text
        assert ".assign_coords(time=prediction['time'].dt.round('h')) and " in text
    fixed = observed.assign_coords(time=observed["time"].dt.round("h"))
    assert int(evaluate(field, fixed)["count"]) == fixed.size


@pytest.mark.parametrize("calendar", ["noleap", "360_day"])
def test_near_times_of_other_calendars_and_numbers(calendar: str) -> None:
    days, seen = on_calendar(FORECAST, calendar), on_calendar(OBSERVED, calendar)
    late = seen["time"].values.copy()
    late[[1, 4]] += datetime.timedelta(minutes=2)
    text = "2 of 6 times of the forecast nearly match a time of the observation, such as 2001-01-02"
    assert text in fit_error(days, seen.assign_coords(time=late))
    years = np.arange(2001.0, 2007.0)
    numbers = FORECAST.assign_coords(time=years), OBSERVED.assign_coords(time=years + 1e-6)
    assert "6 of 6 times of the prediction nearly match" in error_of(lambda: evaluate(*numbers))
    # half a step away is another time
    half = OBSERVED.assign_coords(time=np.sort([*years[:3], *(years[:3] + 0.5)]))
    assert int(evaluate(numbers[0], half)["count"]) == 3 * OBSERVED[0].size


def test_calendars_that_differ_are_named_in_evaluate() -> None:
    text = error_of(lambda: evaluate(on_calendar(FORECAST, "noleap"), OBSERVED))
    assert "times of the prediction are cftime dates of calendar 'noleap' but of the obs" in text
    assert "convert one: prediction.convert_calendar('standard', use_cftime=False)" in text


def test_stacked_times_are_named() -> None:
    stacked = [
        data.expand_dims(step=[1, 2]).stack(time_step=("time", "step"), create_index=True)
        for data in (FORECAST, OBSERVED)
    ]
    for data in stacked:
        data["time_step"].attrs["axis"] = "T"
    for text in (fit_error(*stacked), error_of(lambda: evaluate(*stacked))):
        assert "a stack of ['time', 'step']; unstack it first, with .unstack(" in text


def test_duplicate_times_in_predict() -> None:
    text = error_of(lambda: MODEL.predict(FORECAST.isel(time=[0, 1, 1])))
    assert text.startswith("time 2001-01-02 00:00:00 repeats in the forecast; keep one of each")
    assert MODEL.predict(FORECAST.drop_vars("time")).sizes["time"] == 6


def test_a_missing_grid_in_predict_names_the_forecast() -> None:
    bare = FORECAST.drop_vars(["lat", "lon"])
    assert error_of(lambda: MODEL.predict(bare)).startswith("the forecast: `data` has no grid")


@pytest.mark.parametrize(
    "name", ["S", "init_time", "forecast_reference_time", "init", "sdate", "start_date"]
)
def test_starts_by_name_with_several_leads(name: str) -> None:
    """The error said to call them time, and all leads met the truth of the start."""
    start = FORECAST.rename(time=name).expand_dims(L=[1.5, 2.5])
    start[name].attrs = {}
    unknown = OBSERVED.copy()
    unknown["time"].attrs = {}
    for text in (fit_error(start, unknown), error_of(lambda: evaluate(start, unknown))):
        assert "give the observation the same starts and dims ['L']" in text
    both = unknown.rename(time=name).expand_dims(L=[1.5, 2.5])
    assert fitted("emos", start, both).predict(start).sizes["L"] == 2
    assert int(evaluate(start, both)["count"]) == both.size


@pytest.mark.parametrize("lead", ["forecastMonth", "leadtime_month", "prediction_timedelta"])
@pytest.mark.parametrize("dim", ["time", "forecast_reference_time"])
def test_starts_that_archives_call_time(lead: str, dim: str) -> None:
    """The mean of a seasonal forecast's month 1 has the stamp of the start, later ones have not."""
    unit = np.timedelta64(24, "h") if lead == "prediction_timedelta" else 1
    first = 0 * unit if lead == "prediction_timedelta" else unit
    start, seen = FORECAST.rename(time=dim) if dim != "time" else FORECAST.copy(), OBSERVED.copy()
    start[dim].attrs, seen["time"].attrs = {}, {}
    one = start.assign_coords({lead: first + 2 * unit})
    several = start.expand_dims({lead: [first, first + unit]})
    texts = [fit_error(ahead, seen) for ahead in (one, several)]
    texts += [error_of(lambda: evaluate(one, seen)), error_of(lambda: evaluate(several, seen))]
    for text in texts:
        assert f"dim {dim!r} of the " in text
        assert "holds starts (a lead time tells of later times)" in text
    same = start.assign_coords({lead: first})
    assert float(evaluate(same, seen)["crps"]) == float(evaluate(FORECAST, OBSERVED)["crps"])
    # and times that say that they are the valid ones are
    told = FORECAST.assign_coords({lead: first + unit})
    told["time"].attrs = {"standard_name": "time"}
    assert fitted("emos", told, seen).predict(told).sizes["time"] == 6


@pytest.mark.parametrize("step", [_LATER, ((), 24, {"units": "hours"})])
def test_starts_beside_a_step_without_attributes(step: object) -> None:
    """As of cfgrib, once attributes and valid times are lost: they met the truth of the start."""
    start = FORECAST.assign_coords(time=FORECAST["time"].values - _LATER, step=step)
    seen = OBSERVED.assign_coords(time=OBSERVED["time"].drop_attrs())
    texts = fit_error(start, seen), error_of(lambda: evaluate(start, seen))
    for text, name in zip(texts, ("forecast", "prediction"), strict=True):
        assert f"'time' of the {name} holds starts (a lead time tells of later times)" in text
        assert text.endswith(
            f", or, if 'time' is the valid time, drop 'step': {name}.drop_vars('step')"
        )
    known = start.assign_coords(time=seen["time"], init_time=("time", start["time"].values))
    counts = FORECAST.assign_coords(time=seen["time"], step=3)
    named = FORECAST.drop_attrs().rename(time="valid_time").assign_coords(step=step)
    for data in (start.drop_vars("step"), known, counts, named):
        assert fitted("emos", data, seen).predict(data).sizes[data.dims[0]] == 6
        assert float(evaluate(data, seen)["crps"]) > 0
    several = start.drop_vars("step").expand_dims(step=np.arange(2) * _LATER)
    assert "the same starts and dims ['step']" in fit_error(several, seen)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"units": "days since 1950-01-01"}, {"units": "days since 2000-01-01"}),
        ({"units": "days since 1950-01-01"}, {"units": "hours since 1950-01-01"}),
        ({"units": "months since 1950-01-01"}, {"units": "months since 1960-01-01"}),
        (
            {"units": "days since 1950-01-01", "calendar": "noleap"},
            {"units": "days since 1950-01-01", "calendar": "standard"},
        ),
    ],
)
def test_undecoded_times_of_other_origins(ours: dict[str, str], theirs: dict[str, str]) -> None:
    first = FORECAST.assign_coords(time=("time", np.arange(6), ours))
    second = OBSERVED.assign_coords(time=("time", np.arange(6), theirs))
    for text in (fit_error(first, second), error_of(lambda: evaluate(first, second))):
        assert f"are numbers of {ours['units']!r}" in text
        assert f"of the observation of {theirs['units']!r}" in text
        assert "decode both to dates, with xr.decode_cf" in text
    written = {"units": ours["units"].replace("-01-01", "-1-1 00:00"), "calendar": "gregorian"}
    if "calendar" not in ours and "months" not in ours["units"]:
        again = OBSERVED.assign_coords(time=("time", np.arange(6), written))
        assert int(evaluate(first, again)["count"]) == OBSERVED.size


def test_times_with_a_zone_meet_none_without() -> None:
    zone = FORECAST.indexes["time"].tz_localize("UTC")
    first, second = FORECAST.assign_coords(time=zone), OBSERVED.assign_coords(time=zone)
    text = fit_error(first, OBSERVED)
    assert "are dates of time zone UTC but of the observation datetime64 dates" in text
    assert "forecast.assign_coords(time=forecast.indexes['time'].tz_convert(None))" in text
    text = error_of(lambda: evaluate(FORECAST, second))
    assert "observation.assign_coords(time=observation.indexes['time'].tz_convert(None))" in text
    plain = second.assign_coords(time=second.indexes["time"].tz_convert(None))
    assert int(evaluate(FORECAST, plain)["count"]) == OBSERVED.size


@scores_its_training
@pytest.mark.parametrize("calendar", ["standard", "360_day"])
@pytest.mark.parametrize("stamp", ["MS", "ME"])
def test_means_over_months_beside_days(stamp: str, calendar: str) -> None:
    """The first day of each month was the truth of the month, without a word."""
    cftime = calendar != "standard"
    count = 360 if cftime else 365
    days = xr.date_range("2001-01-01", periods=count, calendar=calendar, use_cftime=cftime)
    daily, observed = (each.assign_coords(time=days) for each in ensemble(count))
    forecast = daily.resample(time=stamp).mean()
    with pytest.warns(UserWarning, match="has one time a month and the observation 30, of") as all_:
        model = fitted("emos", forecast, observed)
    with pytest.warns(UserWarning, match=r"observation\.resample\(time='MS'\)\.mean\(\)"):
        evaluate(model.predict(forecast), observed)
    with pytest.warns(UserWarning, match=r" 30, .*forecast\[.time.\]\.isin\(observation"):
        fitted("emos", daily, forecast.mean("member"))
    chosen = daily.sel(time=daily["time"].isin(forecast["time"]))  # as it advises
    evaluate(chosen, forecast.mean("member"))
    assert "postprocess_cases" in all_[0].filename
    for truth in (observed.sel(time=forecast["time"]), observed.resample(time=stamp).mean()):
        evaluate(fitted("emos", forecast, truth).predict(forecast), truth)
    weeks = observed[::7]
    evaluate(fitted("emos", weeks.rename("t2m"), observed).predict(weeks.rename("t2m")), observed)
