"""Times that do not fit: each a one-line error that names both sides and the remedy."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from postprocess_cases import ensemble, error_of, fit_error, fitted, on_calendar

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
    assert text == "the forecast has no coordinate for its time dim 'time'; assign one"


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
    assert "convert one, for example with .convert_calendar('standard', use_cftime=False)" in text


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
