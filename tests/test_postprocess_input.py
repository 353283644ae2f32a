"""Bad input: each a one-line error that names argument or variable, value, rule and remedy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from postprocess_cases import PLANE, ensemble, error_of, fit_error, fitted, points

from scisparse.arrays import find_axes
from scisparse.errors import DataError, GridError, OptionError
from scisparse.postprocess import Options, PostProcessor

FORECAST, OBSERVED = ensemble(6)
DATA = FORECAST.to_dataset()
MODEL = fitted("emos", FORECAST, OBSERVED)
GROUPED = FORECAST.assign_coords(model=("member", list("aabb")))


def predict_error(forecast: Any, model: PostProcessor = MODEL, **options: Any) -> str:
    return error_of(lambda: model.predict(forecast, **options))


def at(data: xr.DataArray, value: float, count: int = 3) -> xr.DataArray:
    """The data with some values replaced."""
    values = data.values.copy()
    values.reshape(-1)[:count] = value
    return data.copy(data=values)


NOT_DATA = "must be an xarray DataArray or Dataset"


@pytest.mark.parametrize("thing", [None, [1.0], np.zeros(3), "forecast.nc"])
def test_other_types(thing: Any) -> None:
    name = type(thing).__name__
    assert fit_error(thing, OBSERVED) == f"the forecast is of type {name}; it {NOT_DATA}"
    assert fit_error(FORECAST, thing) == f"the observation is of type {name}; it {NOT_DATA}"
    assert predict_error(thing) == f"the forecast is of type {name}; it {NOT_DATA}"


# variables


def test_missing_variable() -> None:
    other = DATA.rename(t2m="tas").assign(pr=FORECAST)
    expected = "the forecast has no variable 't2m' among 'tas', 'pr'; name or select one"
    assert fit_error(other, OBSERVED) == expected
    assert predict_error(other) == expected
    assert predict_error(xr.Dataset()).startswith("the forecast has no variable 't2m' among none")
    two = xr.Dataset({"a": OBSERVED, "b": OBSERVED})
    assert "the observation has no variable 't2m' among 'a', 'b'" in fit_error(FORECAST, two)


def test_array_of_another_variable() -> None:
    expected = "the forecast is 'tp' but 't2m' is needed; give that variable, or rename this one"
    assert fit_error(FORECAST.rename("tp"), OBSERVED) == expected
    assert predict_error(FORECAST.rename("tp")) == expected


@pytest.mark.parametrize("dtype", ["U8", "O", "m8[ns]"])
def test_values_that_are_no_numbers(dtype: str) -> None:
    text = (FORECAST * 1e9).rename("t2m").astype(dtype)
    match = f"variable 't2m' of the forecast has dtype {text.dtype}; it must hold numbers"
    assert match in fit_error(text, OBSERVED)
    assert match in predict_error(text)
    other = DATA.assign(flag=text)
    assert "variable 'flag' of the forecast has dtype" in fit_error(other, OBSERVED)


def test_predictors_that_are_missing() -> None:
    wind = DATA.assign(wind=FORECAST * 2)
    model = fitted("emos", wind, OBSERVED)
    for forecast in (DATA, FORECAST):
        text = predict_error(forecast, model)
        assert "has predictors ['t2m'] but the model was trained on ['t2m', 'wind']" in text
        assert "give the same variables" in text


def test_predictors_with_dims_of_their_own() -> None:
    level = DATA.assign(wind=FORECAST.expand_dims(level=[1, 2]))
    expected = "predictor 'wind' has dims ['level'] that the target lacks; reduce or drop it"
    assert fit_error(level, OBSERVED) == expected


# dims and grids


@pytest.mark.parametrize(
    ("dim", "match"),
    [
        ("lat", "the forecast: `data` has no grid: latitude missing, longitude 'lon'"),
        ("lon", "the forecast: `data` has no grid: latitude 'lat', longitude missing"),
        ("time", "the forecast has no time dim among ['lat', 'lon']; name it 'time', or"),
    ],
)
def test_missing_dims_of_the_forecast(dim: str, match: str) -> None:
    assert match in fit_error(FORECAST.isel({dim: 0}, drop=True), OBSERVED)


def test_wrong_dims_of_the_observation() -> None:
    assert "the observation has no time dim" in fit_error(FORECAST, OBSERVED[0])
    assert "the observation: `data` has no grid" in fit_error(
        FORECAST, OBSERVED[:, 0].drop_vars("lat")
    )
    text = fit_error(FORECAST, FORECAST.rename("obs"))
    assert text == "the observation has members along 'member'; select one, or take their mean"
    text = fit_error(FORECAST, OBSERVED.expand_dims(depth=[1.0, 2.0]))
    assert "the observation has dims ['depth'] that the forecast lacks; select one value" in text


@pytest.mark.parametrize("name", ["ens_id", "sample", "ensemble"])
def test_dims_that_may_number_members_are_no_cases(name: str) -> None:
    field = FORECAST.rename(member=name).drop_vars(name).drop_attrs()
    if name == "ensemble":  # beside a dim of members, a second one is not understood
        field = field.expand_dims(member=2)
        name = find_axes(field).extra[0]
    text = fit_error(field, OBSERVED)
    assert f"the forecast has a dim {name!r} that the observation lacks" in text
    assert f".rename({name}='member')" in text
    assert f".expand_dims({name}=forecast[{name!r}])" in text
    one = fitted("emos", field.isel({name: [0]}), OBSERVED)  # of one value, it changes nothing
    assert f"fitted on 6 cases {'of' if 'member' in field.dims else 'without'} " in repr(one)
    if name != "ensemble":  # an observation has no members
        repeated = OBSERVED.expand_dims({name: field.sizes[name]})
        assert f"fitted on {6 * field.sizes[name]} cases" in repr(fitted("emos", field, repeated))


def test_further_dims_that_differ() -> None:
    leads = FORECAST.expand_dims(lead_time=[24, 48])
    text = fit_error(leads, OBSERVED.expand_dims(lead_time=[24, 72]))
    assert "dim 'lead_time' of the observation lacks 48, one of 1 values that only" in text
    assert "select the same values in both" in text
    bare = OBSERVED.expand_dims(lead_time=3)
    assert "dim 'lead_time' has 3 values in the observation but 2" in fit_error(leads, bare)


def test_observation_on_another_grid() -> None:
    shifted = OBSERVED.assign_coords(lat=OBSERVED["lat"] + 1.0)
    text = fit_error(FORECAST, shifted)
    for part in (
        "the observation is on LatLonGrid(4 x 6, lat -74 to 76",
        "but LatLonGrid(4 x 6, lat -75 to 75",
        "(points are up to 111 km apart); interpolate it",
    ):
        assert part in text
    assert "is needed; interpolate" in fit_error(FORECAST, OBSERVED.isel(lat=slice(1, 4)))


@pytest.mark.parametrize(
    ("other", "part"),
    [
        (FORECAST.assign_coords(lon=FORECAST["lon"] + 5.0), "lon 5 to 305"),
        (FORECAST.isel(lon=slice(0, 5)), "LatLonGrid(4 x 5"),
        (ensemble(6, axes=PLANE)[0], "ProjectedGrid(4 x 5"),
        (points(FORECAST), "UnstructuredGrid(24 points"),
    ],
)
def test_forecast_on_another_grid_than_in_training(other: xr.DataArray, part: str) -> None:
    text = predict_error(other)
    assert text.startswith("the forecast is on ")
    assert part in text
    assert "but LatLonGrid(4 x 6, lat -75 to 75, lon 0 to 300, periodic) is needed" in text


def test_unsorted_coordinates() -> None:
    unsorted, repeated = FORECAST.isel(lat=[0, 2, 1, 3]), FORECAST.isel(lat=[0, 1, 1, 3])
    for call in (lambda data: fit_error(data, OBSERVED), predict_error):
        text = call(unsorted)
        assert "the forecast: coordinate 'lat' must strictly rise or strictly fall" in text
        assert "values 1 and 2 are 25 and -25; sort it with .sortby('lat')" in text
        assert "values 1 and 2 are -25 and -25" in call(repeated)
    text = fit_error(FORECAST, OBSERVED.isel(lon=[0, 2, 1, 3, 4, 5]))
    assert "the observation: coordinate 'lon' must" in text


def test_unsorted_times_are_no_error() -> None:
    order = [3, 0, 5, 1, 2, 4]
    predicted = fitted("emos", FORECAST.isel(time=order), OBSERVED).predict(FORECAST)
    np.testing.assert_array_equal(predicted["t2m_mean"], MODEL.predict(FORECAST)["t2m_mean"])


def test_a_u_net_needs_rows_and_columns() -> None:
    model = PostProcessor("unet_local", target="t2m")
    text = error_of(lambda: model.fit(points(FORECAST), points(OBSERVED)), GridError)
    assert "needs a grid with rows and columns, not UnstructuredGrid(24 points" in text
    assert "use method='local'" in text


# values


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_values(value: float) -> None:
    text = fit_error(at(FORECAST, value), OBSERVED)
    assert text == (
        "variable 't2m' of the forecast has 3 infinite values; mark missing values as NaN"
    )
    assert "variable 'analysis' of the observation has 3 infinite" in fit_error(
        FORECAST, at(OBSERVED, value)
    )
    assert "variable 't2m' of the forecast has 3 infinite" in predict_error(at(FORECAST, value))
    wind = DATA.assign(wind=at(FORECAST, value))
    assert "variable 'wind' of the forecast has 3 infinite" in fit_error(wind, OBSERVED)


def test_nothing_but_missing_values() -> None:
    expected = "variable 't2m' of the forecast is NaN everywhere; check file and selection"
    empty = at(FORECAST, np.nan, FORECAST.size)
    assert fit_error(empty, OBSERVED) == expected
    assert predict_error(empty) == expected
    assert "variable 'analysis' of the observation is NaN everywhere" in fit_error(
        FORECAST, at(OBSERVED, np.nan, OBSERVED.size)
    )


def test_forecast_and_observation_never_together() -> None:
    early = FORECAST["time"] < FORECAST["time"][3]
    text = fit_error(FORECAST.where(early), OBSERVED.where(~early))
    assert "both there at 0 common times" in text


@pytest.mark.parametrize(
    ("dim", "match"),
    [
        ("time", "the forecast has no times along 'time'; check the selection"),
        ("member", "the forecast has no members along 'member'; select at least one"),
        ("lat", "the forecast: dim 'lat' is empty; check the selection"),
    ],
)
def test_empty_selections(dim: str, match: str) -> None:
    empty = FORECAST.isel({dim: slice(0, 0)})
    assert match in fit_error(empty, OBSERVED)
    if dim == "time":
        assert "the observation has no times" in fit_error(FORECAST, OBSERVED[:0])
        match = "variable 't2m' of the forecast is empty, of shape (0, 4, 4, 6)"
    assert match in predict_error(empty)


def test_units_that_differ() -> None:
    celsius = OBSERVED.assign_attrs(units="degC")
    text = fit_error(FORECAST, celsius)
    assert text.startswith("the observation 'analysis' has units 'degC' but 'K' is needed; convert")
    text = predict_error(FORECAST.assign_attrs(units="degC"))
    assert text.startswith("the forecast has units 'degC' but 'K' is needed; convert it and set")
    assert "variable 't2m' of the forecast has units 'degC'" in predict_error(
        DATA.assign(t2m=DATA["t2m"].assign_attrs(units="degC"))
    )


def test_units_of_predictors_that_differ() -> None:
    wind = DATA.assign(wind=FORECAST.assign_attrs(units="m s-1"))
    model = fitted("emos", wind, OBSERVED)
    knots = wind.assign(wind=FORECAST.assign_attrs(units="knot"))
    text = predict_error(knots, model)
    assert "variable 'wind' of the forecast has units 'knot' but 'm s-1' is needed" in text


def test_units_of_one_side_are_enough() -> None:
    bare = OBSERVED.drop_attrs(deep=False)
    assert "'degC' but 'K'" in predict_error(
        FORECAST.assign_attrs(units="degC"), fitted("emos", FORECAST, bare)
    )
    model = fitted("emos", FORECAST.drop_attrs(deep=False), OBSERVED)
    assert "'degC' but 'K'" in predict_error(FORECAST.assign_attrs(units="degC"), model)
    ones = [data.assign_attrs(units=1) for data in (FORECAST, OBSERVED)]
    assert fitted("emos", *ones).predict(ones[0])["t2m_mean"].attrs["units"] == 1


# groups


def test_groups_that_are_not_there() -> None:
    text = fit_error(FORECAST, OBSERVED, groups="model")
    assert "`groups` is 'model' but the forecast has no such coordinate along its members" in text
    assert "along 'member' it has ['member']" in text
    along_time = FORECAST.assign_coords(model=("time", np.arange(6)))
    assert "no such coordinate along its members" in fit_error(along_time, OBSERVED, groups="model")
    single = FORECAST.isel(member=0, drop=True)
    text = fit_error(single, OBSERVED, groups="model")
    assert text == "`groups` is 'model' but the forecast has no members; leave `groups` out"


def test_groups_that_changed_since_training() -> None:
    model = fitted("emos", GROUPED, OBSERVED, groups="model")
    trained = "but the model was trained on ['t2m[a]', 't2m[b]']"
    text = predict_error(GROUPED.isel(member=[0, 1]), model)
    assert f"has predictors ['t2m[a]'] {trained}" in text
    other = GROUPED.assign_coords(model=("member", list("aabc")))
    assert f"['t2m[a]', 't2m[b]', 't2m[c]'] {trained}" in predict_error(other, model)


@pytest.mark.filterwarnings("ignore:.*exactly 0, where 'truncated_normal':UserWarning")
@pytest.mark.parametrize("name", ["truncated_normal", "censored_normal"])
def test_observations_below_the_bound(name: str) -> None:
    rain = (OBSERVED - 280.0).rename("rain")
    below = int((rain < 0).sum())
    text = fit_error(FORECAST - 280.0, rain, distribution=name)
    assert (
        f"the observation 'rain' has {below} values below 0, down to {float(rain.min()):.4g}"
        in text
    )
    assert f"where {name!r} has none; raise them with .clip(min=0)" in text
    clipped = rain.clip(min=0).where(rain < 1.0)
    assert fitted("emos", FORECAST - 280.0, clipped, distribution=name).predict(FORECAST - 280.0)
    assert fitted("emos", FORECAST - 280.0, rain).predict(FORECAST - 280.0)


# arguments


def test_predict_and_save_before_fit(tmp_path: Any) -> None:
    model = PostProcessor("emos", target="t2m")
    expected = "the post-processor is not fitted; call fit(forecast, observed) first"
    assert error_of(lambda: model.predict(FORECAST), DataError) == expected
    assert error_of(lambda: model.save(tmp_path / "model"), DataError) == expected
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (
            {"method": "emoss"},
            "`method` is 'emoss'; did you mean 'emos'? The choices are 'emos', ",
        ),
        ({"distribution": "gauss"}, "`distribution` is 'gauss'; choose one of normal, truncated"),
        ({"method": ["emos"]}, "`method` is ['emos']; did you mean 'emos'?"),
        ({"target": ["t2m"]}, "`target` is ['t2m']; it must be the name of one variable"),
        ({"seed": -1}, "`seed` (=-1) must be a whole number from 0 to 2**63 - 1"),
        ({"seed": 1.5}, "`seed` (=1.5) must be"),
        ({"seed": 2**63}, "`seed` (=9223372036854775808) must be"),
        ({"options": {"epochs": 3}}, "`options` (={'epochs': 3}) must be an Options, such as"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], match: str) -> None:
    assert match in error_of(lambda: PostProcessor(**{"target": "t2m", **arguments}), OptionError)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        *((name, 0, "a whole number, at least 1") for name in ("width", "epochs", "patience")),
        ("batch_size", 2.5, "a whole number, at least 1"),
        ("epochs", "3", "a whole number, at least 1"),
        ("depth", -1, "a whole number, at least 0"),
        *((name, -1e-9, "a finite number, at least 0") for name in ("weight_decay", "smoothness")),
        ("learning_rate", float("nan"), "a finite number, at least 0"),
        ("learning_rate", float("inf"), "a finite number, at least 0"),
        ("smoothness", None, "a finite number, at least 0"),
        ("validation", 0.0, "lie between 0 and 1"),
        ("validation", 1.0, "lie between 0 and 1"),
    ],
)
def test_bad_options(name: str, value: Any, rule: str) -> None:
    text = error_of(lambda: Options(**{name: value}), OptionError)
    assert text.startswith(f"`{name}` (={value!r}) must ")
    assert text.endswith(rule)


@pytest.mark.parametrize("levels", [0.5, [], ["a"], [0.0, 0.5], [1.0], [np.nan], [[0.5]], "0.5"])
def test_bad_quantiles(levels: Any) -> None:
    text = predict_error(FORECAST, quantiles=levels)
    assert text.startswith(
        f"`quantiles` (={levels!r}) must be a list of numbers strictly between 0"
    )


def test_long_arrays_of_bad_quantiles() -> None:
    text = predict_error(FORECAST, quantiles=np.linspace(0, 1, 101))
    assert text.startswith("`quantiles` (=array([0. , 0.01, 0.02")


@pytest.mark.parametrize("values", [[], 20.0, [np.nan], [np.inf], "warm", [[1.0]]])
def test_bad_thresholds(values: Any) -> None:
    text = predict_error(FORECAST, thresholds=values)
    assert text.startswith("`thresholds` (=")
    assert "must be a list of finite numbers in units of the target, such as [20.0, 30.0]" in text


def test_members_and_quantiles() -> None:
    text = predict_error(FORECAST, members=True, quantiles=[0.5])
    assert text == "`members` and `quantiles` are given together; ask for one of them"
    text = predict_error(FORECAST, quantiles=[0.5], thresholds=[280.0])
    assert text == "`quantiles` and `thresholds` are given together; ask for one of them"
    with pytest.warns(UserWarning, match="fewer members"):
        text = predict_error(FORECAST.isel(member=0), members=True)
    assert "members=True needs a forecast with members; this one has none" in text


def test_the_truth_under_another_name_is_no_predictor() -> None:
    data = FORECAST.to_dataset().assign(analysis=OBSERVED.transpose("lon", "time", "lat"))
    truth = OBSERVED.rename("t2m")
    west, some = truth.assign_coords(lon=truth["lon"] - 360.0), truth.where(truth["lat"] > 0)
    flipped, single = truth.isel(lat=slice(None, None, -1)), truth.astype(np.float32)
    for other in (truth, truth.rename(None), west, some, flipped, single):
        assert "drop_vars('analysis')" in fit_error(data, other)
    fitted("emos", data.assign(analysis=data["analysis"] * (1.0 + 1e-5)), single)
