"""What an error tells to do is done here as it is written, and helps."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import xarray as xr
from postprocess_cases import ensemble, error_of, fit_error, fitted, on_calendar

from scisparse.verification import evaluate

LONG, TRUTH = ensemble(34)
FORECAST, OBSERVED = LONG[:30], TRUTH[:30]
DAY = np.timedelta64(24, "h").astype("m8[ns]")
START = {"standard_name": "forecast_reference_time"}


def done(text: str, **names: Any) -> xr.DataArray:
    """Value of the expression that ends a text, with the data by their names in it."""
    expression = text.strip().removesuffix(".")
    value = eval(expression, {"np": np, "sorted": sorted, **names})
    assert isinstance(value, xr.DataArray)
    return value


def by_starts(leads: list[int], signs: set[str]) -> xr.DataArray:
    """The forecast by starts and lead times, as told by some of the signs."""
    starts = LONG["time"].values[:24]
    parts = [LONG.isel(time=slice(k, k + 24)).assign_coords(time=starts) for k in leads]
    whole = xr.concat([part.drop_attrs() for part in parts], "step", join="exact")
    whole = whole.assign_coords(step=("step", np.array(leads) * DAY)).assign_attrs(units="K")
    valid = whole["time"] + whole["step"]
    whole = whole.squeeze("step") if len(leads) == 1 else whole
    if "valid" in signs:
        whole = whole.assign_coords(valid_time=valid.squeeze())
        whole["valid_time"].attrs = {"standard_name": "time"}
    if "name" in signs:
        whole = whole.rename(time="init_time")
    if "attrs" in signs:
        whole["init_time" if "name" in signs else "time"].attrs = START
    return whole.drop_vars("step") if "no step" in signs else whole


@pytest.mark.parametrize("leads", [[1], [0, 1, 2], [2, 9]])
@pytest.mark.parametrize(
    "signs", [{"attrs"}, {"valid"}, {"attrs", "valid"}, {"name"}, {"name", "valid", "attrs"}]
)
@pytest.mark.parametrize("kind", ["plain", "named", "analysis"])
def test_the_same_starts(leads: list[int], signs: set[str], kind: str) -> None:
    forecast = by_starts(leads, signs)
    observed = OBSERVED.copy()
    observed["time"].attrs = {"standard_name": "time"} if kind == "named" else {}
    if kind == "analysis":  # as cfgrib opens one
        observed = observed.assign_coords(step=0 * DAY, valid_time=observed["time"])
        observed["time"].attrs = START
    texts = (
        fit_error(forecast, observed),
        error_of(lambda: evaluate(forecast, observed)),
    )
    expected = [evaluate(LONG.isel(time=slice(k, k + 24)), OBSERVED) for k in leads]
    inside = all(k + 24 <= OBSERVED.sizes["time"] for k in leads)
    for text, name in zip(texts, ("forecast", "prediction"), strict=True):
        remedies = text.split(": ", 1)[1].split(", or give ")
        seen = done(remedies[0], observation=observed, **{name: forecast})
        if inside:
            assert float(evaluate(forecast, seen)["crps"]) == pytest.approx(
                float(np.mean([each["crps"] for each in expected]))
            )
        else:
            assert ".reindex(" in remedies[0]
            assert int(evaluate(forecast, seen)["count"]) < seen.size
        assert fitted("emos", forecast, seen).predict(forecast).sizes["lat"] == 4
        if len(remedies) > 1:
            moved = done(remedies[1].split(": ")[1], **{name: forecast})
            plain = observed.drop_vars(["step", "valid_time"], errors="ignore").drop_attrs()
            plain = plain.assign_attrs(units="K")
            assert float(evaluate(moved, plain)["crps"]) == pytest.approx(
                float(expected[0]["crps"])
            )
            assert fitted("emos", moved, plain).predict(moved).sizes["lat"] == 4


@pytest.mark.parametrize("leads", [[1], [0, 1, 2], [2, 9]])
@pytest.mark.parametrize("calendar", ["noleap", "360_day"])
def test_the_same_starts_of_other_calendars(leads: list[int], calendar: str) -> None:
    """Their dates and lead times were added, which xarray does not do: a raw UFuncTypeError."""
    forecast = on_calendar(by_starts(leads, {"attrs"}), calendar)
    observed = on_calendar(OBSERVED, calendar)
    forecast["time"].attrs = START
    texts = fit_error(forecast, observed), error_of(lambda: evaluate(forecast, observed))
    for text, name in zip(texts, ("forecast", "prediction"), strict=True):
        given = {"observation": observed, name: forecast, "xr": xr}
        seen = done(text.split(": ", 1)[1], **given)
        each = [OBSERVED.values[k : k + 20] for k in leads]
        expected = np.stack(each, 1) if len(leads) > 1 else each[0]
        np.testing.assert_array_equal(seen.transpose("time", ...)[:20], expected)
        assert fitted("emos", forecast, seen).predict(forecast).sizes["time"] == 24
    one = forecast.isel(time=5)
    one = one.isel(step=-1) if len(leads) > 1 else one
    found = evaluate(one, observed)
    plain = one.drop_vars(["time", "step"]), observed[5 + leads[-1]].drop_vars("time")
    assert float(found["crps"]) == float(evaluate(*plain)["crps"])


@pytest.mark.parametrize("names", ["time", "init_time"])
@pytest.mark.parametrize(
    "calendars", [("noleap", None), (None, "noleap"), ("noleap", "360_day"), ("360_day", None)]
)
def test_one_calendar(calendars: tuple[str | None, str | None], names: str) -> None:
    forecast, observed = (
        data if calendar is None else on_calendar(data, calendar)
        for data, calendar in zip((FORECAST, OBSERVED), calendars, strict=True)
    )
    forecast, observed = (data.drop_attrs().rename(time=names) for data in (forecast, observed))
    text = fit_error(forecast, observed).split("convert one: ")[1]
    change = text.split(".")[0]
    new = done(text, forecast=forecast, observation=observed)
    pair = (new, observed) if change == "forecast" else (forecast, new)
    assert fitted("emos", *pair).predict(pair[0]).sizes[names] >= 25
    assert int(evaluate(*pair)["count"]) > 0


@pytest.mark.parametrize("name", ["time", "init_time"])
@pytest.mark.parametrize("trained", [None, "noleap", "360_day"])
@pytest.mark.parametrize("given", [None, "noleap", "360_day"])
def test_the_calendar_of_the_training(trained: str | None, given: str | None, name: str) -> None:
    def on(data: xr.DataArray, calendar: str | None) -> xr.DataArray:
        dated = data if calendar is None else on_calendar(data, calendar)
        return dated.drop_attrs().rename(time=name)

    model = fitted("emos", on(FORECAST, trained), on(OBSERVED, trained))
    forecast = on(FORECAST, given)
    if given != trained:
        text = error_of(lambda: model.predict(forecast))
        forecast = done("forecast" + text.split("convert it with ")[1], forecast=forecast)
    assert model.predict(forecast).sizes[name] >= 25


MONTHS = np.arange("2001-01", "2003-07", dtype="M8[M]").astype("M8[ns]")
NEAR: dict[str, tuple[Any, Any]] = {
    "seconds": (MONTHS, MONTHS + np.timedelta64(200, "ms")),
    "half a day": (MONTHS, MONTHS + np.timedelta64(12, "h")),
    "mornings": (MONTHS + np.timedelta64(6, "h"), MONTHS + np.timedelta64(18, "h")),
    "first and second": (MONTHS, MONTHS + np.timedelta64(36, "h")),
    "over the end of a month": (MONTHS, MONTHS - np.timedelta64(36, "h")),
    "numbers": (np.arange(30.0), np.arange(30.0) + 0.01),
    "large numbers": (np.arange(30.0) * 1e3 + 1e6, np.arange(30.0) * 1e3 + 1e6 + 30.0),
}


@pytest.mark.parametrize("case", NEAR)
def test_the_same_stamps(case: str) -> None:
    forecast, observed = (
        data.drop_vars("time").assign_coords(time=stamps)
        for data, stamps in zip((FORECAST, OBSERVED), NEAR[case], strict=True)
    )
    text = fit_error(forecast, observed)
    assert "30 of 30 times of the forecast nearly match a time of the observation" in text
    for remedy in re.split(r"same stamps: | and (?=observation\.)", text)[1:]:
        value = done(remedy, forecast=forecast, observation=observed)
        if remedy.startswith("forecast"):
            forecast = value
        else:
            observed = value
    assert fitted("emos", forecast, observed).predict(forecast).sizes["time"] == 30
    assert int(evaluate(forecast, observed)["count"]) == observed.size


def test_single_times_far_apart_do_not_nearly_match() -> None:
    first, second = FORECAST[:1], OBSERVED[7:8]
    assert "no common times" in fit_error(first, second)
    assert "nearly" not in error_of(lambda: evaluate(first, second))
    late = OBSERVED[:1].assign_coords(time=OBSERVED["time"][:1] + np.timedelta64(100, "s"))
    assert "1 of 1 times of the prediction nearly" in error_of(lambda: evaluate(first, late))


def test_times_without_an_index_of_their_own() -> None:
    forecast = by_starts([1, 2], {"attrs", "valid"})
    seen = OBSERVED.drop_attrs().sel(time=forecast["valid_time"])
    text = fit_error(forecast, seen)
    assert "dim 'time' alone but one along ['time', 'step']; assign one" in text
    remedy = "observation" + text.split(", with ")[1]
    seen = done(remedy, observation=seen, times=forecast["time"])
    assert fitted("emos", forecast, seen).predict(forecast).sizes["step"] == 2


def test_dims_of_unknown_meaning() -> None:
    forecast = FORECAST.drop_attrs().rename(member="run")
    text = fit_error(forecast, OBSERVED)
    remedies = re.findall(r"with (\.\w+\(.*?\))(?=,|$)", text)
    assert len(remedies) == 2
    for remedy in remedies:
        if remedy.startswith(".rename"):
            model = fitted("emos", done(f"data{remedy}", data=forecast), OBSERVED)
            assert "of 4 members" in repr(model)
        else:
            seen = done(f"data{remedy}", data=OBSERVED, forecast=forecast)
            assert fitted("emos", forecast, seen).predict(forecast).sizes["run"] == 4
