"""A forecast, its truth and its training are of one level, lead time and size."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from postprocess_cases import (
    METHODS,
    ensemble,
    error_of,
    fit_error,
    fitted,
    on_calendar,
    points,
    scores_its_training,
)

from scisparse.arrays import Frame
from scisparse.postprocess import PostProcessor
from scisparse.verification import evaluate

FORECAST, OBSERVED = ensemble(12)
DAY = np.timedelta64(24, "h").astype("m8[ns]")


@pytest.mark.parametrize("seed", range(3))
def test_forecast_and_truth_of_one_level(seed: int) -> None:
    low, high = np.random.default_rng(seed).uniform(100.0, 1000.0, 2)
    forecast, observed = FORECAST.assign_coords(level=low), OBSERVED.assign_coords(level=high)
    text = fit_error(forecast, observed)
    assert f"'level' is {low} in the forecast and {high} in the observation, and must be" in text
    assert ".drop_vars('level')" in text
    same = observed.assign_coords(level=np.float32(low))
    assert fitted("emos", forecast, same).predict(forecast).sizes["time"] == 12
    assert fitted("emos", forecast, OBSERVED).predict(forecast).sizes["time"] == 12
    # An analysis is the truth at any lead time; another forecast is not.
    led = FORECAST.assign_coords(step=DAY)
    assert fitted("emos", led, OBSERVED.assign_coords(step=0 * DAY)).predict(led)
    assert float(evaluate(led, OBSERVED.assign_coords(step=0 * DAY))["count"]) == OBSERVED.size
    assert "'step' is 1 days" in fit_error(led, OBSERVED.assign_coords(step=2 * DAY))


CHANGES: dict[str, tuple[Any, Any, str]] = {
    "level": ((850.0, "hPa"), (500.0, "hPa"), "is 500 hPa in the forecast, but .* at 850 hPa"),
    "units": ((850, "hPa"), (850, "Pa"), "is 850 Pa in the forecast, but .* at 850 hPa"),
    "hours": ((24, "hours"), (48, "hours"), "is 48 h in the forecast, but .* at 24 h"),
    "kinds": ((DAY, None), (36.0, "h"), "is 36 h in the forecast, but .* at 86400 s"),
    "bare": ((2.0, None), (10, None), "is 10 in the forecast, but .* at 2; give"),
}
SAME: list[tuple[Any, Any]] = [
    ((DAY, None), (24, "hours")),
    ((1.0, "day"), (24.0, "h")),
    ((np.float32(0.1), "m"), (0.1, "metre")),
    ((850, "hPa"), (850.0, None)),
    ((850, "hPa"), (85000.0, "Pa")),
    ((DAY, None), (24, None)),
    ((2, "m"), (200.0, "cm")),
]


def at(value: Any, units: str | None) -> xr.DataArray:
    attrs = {} if units is None else {"units": units}
    return FORECAST.assign_coords(where=((), value, attrs))


@pytest.mark.parametrize("case", CHANGES)
def test_training_and_forecast_of_one_level_and_lead_time(case: str, tmp_path: Path) -> None:
    trained, given, match = CHANGES[case]
    model = fitted("emos", at(*trained), OBSERVED)
    model.save(tmp_path / "model")
    for each in (model, PostProcessor.load(tmp_path / "model")):
        with pytest.raises(ValueError, match=f"^'where' {match}"):
            each.predict(at(*given))
        expected = each.predict(at(*trained))["t2m_mean"].values
        for other in (at(*given).drop_vars("where"), FORECAST):
            np.testing.assert_array_equal(each.predict(other)["t2m_mean"], expected)


@pytest.mark.parametrize(("trained", "given"), SAME)
def test_one_value_written_in_two_ways(trained: Any, given: Any) -> None:
    for first, second in ((trained, given), (given, trained)):
        assert fitted("emos", at(*first), OBSERVED).predict(at(*second)).sizes["time"] == 12


@pytest.mark.parametrize(("first", "second"), SAME)
def test_one_value_of_forecast_and_truth_in_two_units(first: Any, second: Any) -> None:
    for ours, theirs in ((first, second), (second, first)):
        seen = OBSERVED.assign_coords(where=at(*theirs)["where"])
        assert int(evaluate(at(*ours), seen)["count"]) == OBSERVED.size
        assert fitted("emos", at(*ours), seen).predict(at(*ours)).sizes["time"] == 12


@pytest.mark.parametrize("case", CHANGES)
def test_forecast_and_truth_of_one_unit(case: str) -> None:
    first, second, _ = CHANGES[case]
    seen = OBSERVED.assign_coords(where=at(*second)["where"])
    message = "'where' is .* in the .*, and must be the same in both"
    assert re.search(message, fit_error(at(*first), seen))
    assert re.search(message, error_of(lambda: evaluate(at(*first), seen)))


@pytest.mark.parametrize("name", ["level", "lead", "heightAboveGround"])
def test_dims_of_one_level_or_lead_time(name: str, tmp_path: Path) -> None:
    values = np.random.default_rng(len(name)).permutation(np.arange(1.0, 9.0))[:3]
    both = FORECAST.expand_dims({name: values[:2]})
    models = {
        "scalar": fitted("emos", FORECAST.assign_coords({name: values[0]}), OBSERVED),
        "one": fitted("emos", both[:1], OBSERVED),
        "two": fitted("emos", both, OBSERVED.expand_dims({name: values[:2]})),
    }
    models["two"].save(tmp_path / "model")
    models["loaded"] = PostProcessor.load(tmp_path / "model")
    for model in models.values():
        for same in (FORECAST, both[:1], both[0]):
            assert model.predict(same)
        for other in ([values[2]], values[::2]):
            data = FORECAST.expand_dims({name: other})
            text = error_of(partial(model.predict, data))
            assert text.startswith(f"{name!r} is {values[2]:.9g} in the forecast, but the model")
            assert model.predict(data.drop_vars(name))


def test_dims_that_number_cases_go_on() -> None:
    years = FORECAST.expand_dims(year=[2001, 2002]), OBSERVED.expand_dims(year=[2001, 2002])
    assert fitted("emos", *years).predict(FORECAST.expand_dims(year=[2003])).sizes["year"] == 1


@pytest.mark.parametrize("kinds", [("f4", "f8"), ("f8", "f4"), ("f4", "f4")])
def test_levels_in_single_and_in_double_precision(kinds: tuple[str, str]) -> None:
    depth = np.random.default_rng(5).uniform(0.5, 100.0, 5)
    order = np.array([3, 0, 4])
    first = FORECAST.expand_dims(depth=depth.astype(kinds[0]))
    second = OBSERVED.expand_dims(depth=depth.astype(kinds[1])) + xr.DataArray(
        np.arange(5.0), dims="depth"
    )
    scores = evaluate(first, second[order], reference=first[::-1])
    expected = evaluate(
        first.assign_coords(depth=range(5)), second.assign_coords(depth=range(5))[order]
    )
    assert int(scores["count"]) == 3 * OBSERVED.size
    assert float(scores["crps"]) == float(scores["crps_reference"])
    assert float(scores["crps"]) == pytest.approx(float(expected["crps"]))
    assert fitted("emos", first[order], second).predict(first[order]).sizes["depth"] == 3


HOUR = np.timedelta64(3600, "s").astype("m8[ns]")
# Values and units of the forecast, then of the truth; the places of the first among the second.
UNITS: dict[str, tuple[Any, str, Any, str, list[int]]] = {
    "levels": ([1000.0, 850.0, 10.0], "hPa", [1e3, 85e3, 1e5], "Pa", [2, 1, 0]),
    "days": ([1, 2, 3], "days", [1, 24, 2, 48, 3, 72], "hours", [1, 3, 5]),
    "durations": ([6, 12, 24], "hours", np.array([24, 6, 12]) * HOUR, "", [1, 2, 0]),
    "hours": (np.array([6, 12, 24]) * HOUR, "", [24.0, 6.0, 12.0, 86400.0], "h", [1, 2, 0]),
}


@scores_its_training
@pytest.mark.parametrize("case", UNITS)
def test_dims_of_levels_and_lead_times_in_two_units(case: str) -> None:
    """1000 hPa met 1000 Pa, and the forecast of a day the truth of an hour."""
    values, unit, others, other_unit, places = UNITS[case]
    name = "level" if case == "levels" else "lead"
    ours, theirs = (
        (name, v, {"units": u} if u else {}) for v, u in ((values, unit), (others, other_unit))
    )
    steps = 20.0 * np.arange(len(others))
    seen = (OBSERVED + xr.DataArray(steps, {name: theirs}, name)).assign_attrs(units="K")
    field = FORECAST + xr.DataArray(steps[places], {name: ours}, name)
    field = field.assign_attrs(units="K")
    alike = seen.isel({name: places}).assign_coords({name: field[name]})
    corrected = fitted("emos", field, seen).predict(field)
    xr.testing.assert_equal(corrected, fitted("emos", field, alike).predict(field))
    for one, other in ((field, seen), (seen.rename("t2m"), field.isel(member=0, drop=True))):
        assert int(evaluate(one, other)["count"]) == alike.size
    found, expected = (evaluate(corrected, each, reference=field) for each in (seen, alike))
    xr.testing.assert_equal(found, expected)


def test_dims_in_units_of_two_kinds() -> None:
    field = FORECAST.expand_dims(lead=[1, 2]).assign_coords(
        lead=("lead", [1, 2], {"units": "days"})
    )
    months = OBSERVED.expand_dims(lead=[1, 2]).assign_coords(
        lead=("lead", [1, 2], {"units": "months"})
    )
    told = "'lead' is in 'days' in the {} but 'months' in the observation; bring both to one unit"
    assert fit_error(field, months) == told.format("forecast")
    assert error_of(lambda: evaluate(field, months)) == told.format("prediction")
    assert fitted("emos", field, months.assign_coords(lead=[1, 2])).predict(field)


@pytest.mark.parametrize("method", METHODS)
def test_fewer_members_than_in_training_are_a_warning(method: str) -> None:
    model = fitted(method, FORECAST, OBSERVED)
    many = FORECAST.isel(member=[0, 1, 2, 3, 0, 1, 2, 3]).assign_coords(member=np.arange(8))
    assert model.predict(many, members=True).sizes["member"] == 8
    for few, count in ((FORECAST[:, :2], 2), (FORECAST[:, 0], 1)):
        match = rf"has fewer members \({count}\) than the training \(4\): .* too narrow"
        with pytest.warns(UserWarning, match=match) as warned:
            model.predict(few)
        assert Path(warned[0].filename) == Path(__file__)
    single = fitted(method, FORECAST[:, 0], OBSERVED)
    assert single.predict(FORECAST).sizes["time"] == 12


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
@pytest.mark.parametrize("form", ["coordinate", "variable", "named variable"])
def test_valid_times_of_any_resolution(unit: str, form: str) -> None:
    valid = (FORECAST["time"] + DAY).astype(f"datetime64[{unit}]").drop_attrs()
    start = FORECAST.drop_attrs().assign_attrs(units="K").rename("t2m")
    seen = OBSERVED.drop_attrs().assign_attrs(units="K")
    name = "until" if form == "named variable" else "valid_time"
    valid.attrs = {"standard_name": "time"} if form == "named variable" else {}
    data = start.to_dataset().assign({name: valid})
    data = data.set_coords(name) if form == "coordinate" else data
    for text in (
        fit_error(data, seen),
        error_of(lambda: evaluate(data, seen, target="t2m")),
        error_of(lambda: evaluate(seen.rename("t2m"), seen, reference=data)),
    ):
        assert f"holds starts (coordinate '{name}' tells of later times)" in text
    same = data.assign({name: valid - DAY}).set_coords(name)
    assert fitted("emos", same, seen).predict(same).sizes["time"] == 12


def test_points_in_another_order() -> None:
    field, observed = points(FORECAST), points(OBSERVED)
    model = fitted("emos_local", field, observed)
    expected = model.predict(field)
    order = np.random.default_rng(4).permutation(field.sizes["point"])
    xr.testing.assert_equal(model.predict(field[..., order]), expected.isel(point=order))
    other = fitted("emos_local", field, observed[..., order]).predict(field)
    np.testing.assert_array_equal(other["t2m_mean"], expected["t2m_mean"])
    order[0] = order[1]
    assert "points are up to" in error_of(lambda: model.predict(field[..., order]))


@scores_its_training
@pytest.mark.parametrize("metres", [0.5, 3.0, 10.0])
def test_stations_next_to_each_other_are_told_apart(metres: float) -> None:
    """Whose coordinates differ by less than those of one station may, in another order."""
    beside = np.array([0.0, 1.0, 2.0, 5.0]) * metres / 111e3
    coords = {"lat": ("point", 50.0 + beside), "lon": ("point", np.full(4, 8.0))}
    field, observed = (points(data)[..., :4].assign_coords(coords) for data in (FORECAST, OBSERVED))
    observed = observed + 9.0 * (np.arange(4) == 3)
    order = [3, 1, 2, 0]
    model = fitted("emos_local", field, observed)
    expected = model.predict(field)
    np.testing.assert_array_equal(expected["lat"], coords["lat"][1])
    other = fitted("emos_local", field, observed[..., order]).predict(field)
    np.testing.assert_array_equal(other["t2m_mean"], expected["t2m_mean"])
    xr.testing.assert_equal(model.predict(field[..., order]), expected.isel(point=order))
    assert evaluate(expected, observed[..., order]).equals(evaluate(expected, observed))
    frame = Frame.of(field)
    np.testing.assert_array_equal(
        frame.values(field[..., order], ["time", "member"]), frame.values(field, ["time", "member"])
    )


@scores_its_training
@pytest.mark.parametrize("dtype", ["U2", object, "i8"])
def test_points_at_one_place_are_known_by_what_names_them(dtype: Any, tmp_path: Path) -> None:
    """Two stations of one town, whose observations differ by 9 K, in another order."""
    field, observed = (points(each)[..., [0, 1, 2, 3, 1, 4]] for each in (FORECAST, OBSERVED))
    observed = observed + 9.0 * (np.arange(6) == 4)
    wmo = ("point", np.arange(10, 16).astype(dtype))
    bare = field, observed
    field, observed = (each.assign_coords(wmo=wmo) for each in bare)
    fitted("emos_local", field, observed).save(tmp_path / "model")
    model = PostProcessor.load(tmp_path / "model")
    expected = model.predict(field)
    assert float((expected["t2m_mean"][:, 4] - expected["t2m_mean"][:, 1]).mean()) > 8.0
    for order in ([0, 4, 2, 3, 1, 5], [5, 4, 3, 2, 1, 0]):
        other = fitted("emos_local", field, observed[..., order]).predict(field)
        np.testing.assert_array_equal(other["t2m_mean"], expected["t2m_mean"])
        xr.testing.assert_equal(model.predict(field[..., order]), expected.isel(point=order))
        assert evaluate(expected, observed[..., order]).equals(evaluate(expected, observed))
    backwards = bare[1][..., ::-1]
    for error in (
        fit_error(bare[0], backwards),
        score_error(expected.drop_vars("wmo"), backwards),
    ):
        assert "at one place a coordinate of names" in error


def score_error(prediction: xr.Dataset, observed: xr.DataArray) -> str:
    return error_of(lambda: evaluate(prediction, observed))


def test_points_of_a_stack_are_known_by_their_places() -> None:
    field, observed = (each.stack(point=("lat", "lon")) for each in (FORECAST, OBSERVED))
    order = np.random.default_rng(5).permutation(field.sizes["point"])
    expected = fitted("emos", field, observed).predict(field)
    xr.testing.assert_equal(fitted("emos", field, observed[..., order]).predict(field), expected)


LABELS: dict[str, tuple[Any, Any]] = {
    "model": ("ecmwf", "era5"),
    "expver": ("0001", "0005"),
    "station_name": (np.array("Bern", dtype=object), "BERN"),
    "method": ("emos", "raw"),
}


@pytest.mark.parametrize("name", LABELS)
def test_what_only_describes_is_not_compared(name: str) -> None:
    ours, theirs = LABELS[name]
    first, second = FORECAST.assign_coords({name: ours}), OBSERVED.assign_coords({name: theirs})
    assert fitted("emos", first, second).predict(FORECAST.assign_coords({name: theirs}))
    reference = FORECAST.isel(member=0, drop=True).assign_coords({name: theirs})
    assert int(evaluate(first, second, reference=reference)["count"]) == OBSERVED.size
    pair = xr.concat([FORECAST, FORECAST + 1.0], xr.Variable(name, ["one", "two"]))
    scores = evaluate(pair, second, dims=["time", "lat", "lon"])
    assert scores["crps"].sizes == {name: 2}


@pytest.mark.parametrize("calendar", [None, "noleap"])
def test_levels_beside_dims_of_names_and_dates(calendar: str | None) -> None:
    first, second = (
        points(data).assign_coords(point=[f"station {k}" for k in range(24)], height=2.0)
        for data in (FORECAST, OBSERVED)
    )
    if calendar is not None:
        first, second = (on_calendar(data, calendar) for data in (first, second))
    assert int(evaluate(first, second[:, ::-1])["count"]) == OBSERVED.size
    assert fitted("emos", first, second).predict(first).sizes["point"] == 24
    # A dim and a single value of one name need not be of one kind.
    named = first.assign_coords(height="ground")
    assert int(evaluate(named, second)["count"]) == OBSERVED.size
    pair = xr.concat([first, first], xr.Variable("model", ["one", "two"]))
    scores = evaluate(pair, second.assign_coords(model=3), dims=["time", "point"])
    assert scores["crps"].sizes == {"model": 2}


@pytest.mark.parametrize(
    ("name", "values"), [("expver", (1, 5)), ("month", (1, 2)), ("season", (0, 3))]
)
def test_a_model_is_applied_at_other_dates(name: str, values: tuple[int, int]) -> None:
    first, second = (FORECAST.assign_coords({name: value}) for value in values)
    assert fitted("emos", first, OBSERVED).predict(second).sizes["time"] == 12
    assert fitted("emos", FORECAST, OBSERVED.assign_coords(expver=values[0])).predict(first)
