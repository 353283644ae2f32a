"""The post-processor from xarray to xarray: what its predictions may depend on, and what not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from postprocess_cases import (
    GLOBAL,
    METHODS,
    PLANE,
    crps_normal,
    ensemble,
    fitted,
    incomplete,
    moments,
    points,
)

from scisparse.postprocess import Options, PostProcessor

# Of `local`, which takes part where the data have predictors.
pytestmark = pytest.mark.filterwarnings("ignore:this method reads the target alone")

WIDEST = ("emos_local", "local", "unet_local")  # emos_local starts from emos


FORECAST, OBSERVED, DATA = incomplete()


@pytest.fixture(scope="module", params=METHODS)
def model(request: pytest.FixtureRequest) -> PostProcessor:
    """Each method, fitted on incomplete data with predictors."""
    return fitted(request.param, DATA, OBSERVED)


def flipped(data: Any) -> Any:
    return data.isel(lat=slice(None, None, -1))


def rolled(data: Any) -> Any:
    return data.isel(lon=np.roll(np.arange(data.sizes["lon"]), 2))


def signed(data: Any) -> Any:
    lon = (data["lon"] + 180.0) % 360.0 - 180.0
    return data.assign_coords(lon=lon.assign_attrs(data["lon"].attrs)).sortby("lon")


def transposed(data: Any) -> Any:
    return data.transpose("lon", ..., "time")


def everything(data: Any) -> Any:
    return transposed(rolled(signed(flipped(data))))


FORMS = (flipped, rolled, signed, transposed, everything)


def undone(data: xr.Dataset) -> xr.Dataset:
    """The same prediction in the form of `DATA`."""
    lon = (data["lon"] % 360.0).assign_attrs(data["lon"].attrs)
    data = data.assign_coords(lon=lon).sortby("lon").sortby("lat")
    return data.transpose("time", ...).transpose(..., "lat", "lon")


def assert_same(first: xr.Dataset, second: xr.Dataset) -> None:
    """Bit for bit, but for the time in the history."""
    xr.testing.assert_identical(first.drop_attrs(deep=False), undone(second).drop_attrs(deep=False))


@pytest.mark.parametrize("form", FORMS)
def test_predictions_do_not_depend_on_the_form(model: PostProcessor, form: Any) -> None:
    predicted = model.predict(form(DATA))
    assert predicted["t2m_mean"].dims == tuple(d for d in form(FORECAST).dims if d != "member")
    assert_same(model.predict(DATA), predicted)


def test_training_does_not_depend_on_the_form(model: PostProcessor) -> None:
    other = fitted(model.method, everything(DATA), everything(OBSERVED))
    assert_same(model.predict(DATA), other.predict(DATA))
    mixed = fitted(model.method, signed(DATA), flipped(OBSERVED))
    assert_same(model.predict(DATA), mixed.predict(everything(DATA)))


def test_order_of_times_variables_and_names_does_not_matter(model: PostProcessor) -> None:
    shuffled = np.random.default_rng(0).permutation(DATA.sizes["time"])
    other = DATA[["height", "wind", "t2m", "cape"]].isel(time=shuffled)
    assert_same(
        model.predict(DATA),
        fitted(model.method, other, OBSERVED.isel(time=shuffled[::-1]))
        .predict(other)
        .sortby("time"),
    )
    renamed = DATA.rename(member="number", time="valid_time", lat="latitude", lon="longitude")
    predicted = model.predict(renamed)
    assert predicted["t2m_mean"].dims == ("valid_time", "latitude", "longitude")
    names = {"valid_time": "time", "latitude": "lat", "longitude": "lon"}
    assert_same(model.predict(DATA), predicted.rename(names))


def test_only_common_times_are_learned_from(model: PostProcessor) -> None:
    part = DATA.isel(time=slice(0, 14)), OBSERVED.isel(time=slice(3, 16))
    common = slice(3, 14)
    expected = fitted(model.method, DATA.isel(time=common), OBSERVED.isel(time=common))
    assert_same(fitted(model.method, *part).predict(DATA), expected.predict(DATA))
    assert "fitted on 11 cases" in repr(expected)


def test_training_repeats_bit_for_bit(model: PostProcessor) -> None:
    assert_same(model.predict(DATA), fitted(model.method, DATA, OBSERVED).predict(DATA))


def test_predictions_are_missing_exactly_where_the_forecast_is(model: PostProcessor) -> None:
    hole = DATA.copy(deep=True)
    hole["t2m"][3, :, 1, 2] = np.nan  # no member
    hole["t2m"][5, :, 1, 2] = [283.0, np.nan, np.nan, np.nan]
    hole["cape"][7, 0, 0] = np.nan
    predicted = model.predict(hole)
    expected = np.zeros(OBSERVED.shape, dtype=bool)
    expected[3, 1, 2] = True
    expected[7, 0, 0] = model.method != "local"  # which does not read it
    for name in ("t2m_mean", "t2m_std"):
        np.testing.assert_array_equal(np.isnan(predicted[name]), expected)
    if model.method.startswith("emos"):
        other = ~expected
        other[5, 1, 2] = False
        for name in ("t2m_mean", "t2m_std"):
            before = model.predict(DATA)[name].values
            np.testing.assert_array_equal(predicted[name].values[other], before[other])


@pytest.mark.parametrize("method", METHODS)
def test_points_never_observed_are_missing(method: str) -> None:
    land = xr.zeros_like(OBSERVED.isel(time=0, drop=True), dtype=bool)
    land[1:3, 2:5] = True
    predicted = fitted(method, FORECAST, OBSERVED.where(land)).predict(FORECAST)
    for name in ("t2m_mean", "t2m_std"):
        np.testing.assert_array_equal(
            np.isnan(predicted[name]), np.broadcast_to(~land.values, OBSERVED.shape)
        )


@pytest.mark.parametrize("method", ["emos", "emos_local", "local"])  # a U-Net reads all points
def test_forecasts_where_nothing_was_observed_change_no_statistics(method: str) -> None:
    seen = OBSERVED.copy(deep=True)
    seen[:, 0, 0] = np.nan
    changed = FORECAST.copy(deep=True)
    changed[:, :, 0, 0] += 50.0
    assert_same(
        fitted(method, FORECAST, seen).predict(FORECAST),
        fitted(method, changed, seen).predict(FORECAST),
    )


def test_a_dataset_and_an_array_are_corrected_alike() -> None:
    seen = OBSERVED.to_dataset()
    model = fitted("emos", FORECAST, OBSERVED)
    other = fitted("emos", FORECAST.to_dataset(), seen)
    assert_same(model.predict(FORECAST), other.predict(FORECAST.to_dataset()))
    assert_same(model.predict(FORECAST), model.predict(FORECAST.rename(None)))
    # variables that the model was not trained on do no harm
    assert_same(model.predict(FORECAST), model.predict(DATA))


def test_the_truth_is_no_predictor_of_itself() -> None:
    model = fitted("emos", FORECAST.to_dataset(), OBSERVED)
    both = FORECAST.to_dataset().assign(analysis=OBSERVED)
    for seen in (OBSERVED, OBSERVED.to_dataset()):
        assert_same(model.predict(FORECAST), fitted("emos", both, seen).predict(FORECAST))


@pytest.mark.parametrize("method", WIDEST)
def test_forecasts_without_members(method: str) -> None:
    single = FORECAST.isel(member=0)
    one = FORECAST.isel(member=[0])
    model = fitted(method, single, OBSERVED)
    predicted = model.predict(single)
    assert predicted["t2m_mean"].dims == ("time", "lat", "lon")
    assert int(predicted["member"]) == 0  # a scalar coordinate stays
    np.testing.assert_array_equal(np.isnan(predicted["t2m_mean"]), np.isnan(single))
    alike = fitted(method, one, OBSERVED).predict(one)
    np.testing.assert_array_equal(alike["t2m_mean"], predicted["t2m_mean"])
    np.testing.assert_array_equal(alike["t2m_std"], predicted["t2m_std"])


@pytest.mark.parametrize("method", WIDEST)
@pytest.mark.parametrize("constant", ["forecast", "observed", "both", "point"])
def test_constant_fields_do_not_blow_up(method: str, constant: str) -> None:
    field, observed = FORECAST.copy(deep=True), OBSERVED.copy(deep=True)
    place = {"lat": 1, "lon": 2} if constant == "point" else {}
    if constant != "observed":
        field[place] = field[place] * 0 + 281.7
    if constant in ("observed", "both"):
        observed = observed * 0 + 279.3
    model = fitted(method, field, observed)
    # what never varied in training may vary later
    later = model.predict(FORECAST)
    assert np.isfinite(later["t2m_std"].where(FORECAST.notnull().any("member"), 1.0)).all()
    away = np.abs(later["t2m_mean"] - observed.mean())
    assert float(away.max()) < 5.0
    if constant in ("observed", "both"):
        np.testing.assert_allclose(
            later["t2m_mean"].values[~np.isnan(later["t2m_mean"])], 279.3, rtol=1e-6
        )


@pytest.mark.parametrize("method", WIDEST)
def test_static_predictors_do_not_blow_up(method: str) -> None:
    """A static field says nothing at its point, in single precision or changed later."""
    model = fitted(method, DATA, OBSERVED)
    without = fitted(method, DATA.drop_vars("height"), OBSERVED).predict(DATA)
    rough = DATA.assign(height=DATA["height"].astype(np.float32))
    changed = DATA.assign(height=DATA["height"] + 17.0)
    for data in (DATA, rough, changed):
        assert_same(model.predict(DATA), model.predict(data))
    if method != "unet_local":  # more channels, other random weights
        for name, values in without.items():
            np.testing.assert_allclose(model.predict(DATA)[name], values, rtol=1e-5)


def test_groups_are_corrected_each_on_its_own() -> None:
    field, observed = ensemble(60, 6)
    model = np.array(list("aabbbb"))
    poor = xr.DataArray(model == "a", dims="member")
    noise = observed.copy(data=np.random.default_rng(9).normal(size=observed.shape))
    poor = (field + xr.where(poor, 5.0 + 2.0 * noise, -2.0)).transpose(*field.dims)
    poor = poor.assign_coords(model=("member", model)).rename("t2m").assign_attrs(field.attrs)
    grouped = fitted("emos", poor, observed, groups="model")
    mixed = fitted("emos", poor, observed)
    scores = [crps_normal(*moments(m.predict(poor)), observed.values) for m in (mixed, grouped)]
    assert scores[1] < 0.8 * scores[0]
    # neither the order of members nor how many each group has matters
    shuffled = poor.isel(member=[5, 1, 2, 0, 3, 4])
    np.testing.assert_allclose(
        grouped.predict(shuffled)["t2m_mean"], grouped.predict(poor)["t2m_mean"], rtol=1e-6
    )
    assert grouped.predict(poor.isel(member=[0, 2] * 3)).sizes["time"] == 60


def test_further_dims_are_cases_and_are_carried() -> None:
    field, observed = ensemble(20)
    levels = field.expand_dims(level=[850.0, 500.0], lead_time=[24, 48, 72]).copy()
    observed = observed.expand_dims(level=levels["level"])
    levels = levels + xr.DataArray([0.0, 0.1, 0.2], dims="lead_time")
    levels = levels.rename("t2m").assign_attrs(field.attrs)
    model = fitted("emos", levels, observed)
    predicted = model.predict(levels)
    assert predicted["t2m_mean"].dims == ("level", "lead_time", "time", "lat", "lon")
    order = ("lead_time", "lat", "time", "member", "level", "lon")
    other = fitted("emos", levels.transpose(*order), observed).predict(levels.transpose(*order))
    assert other["t2m_mean"].dims == ("lead_time", "lat", "time", "level", "lon")
    for name, values in predicted.items():
        np.testing.assert_array_equal(other[name].transpose(*values.dims), values)
    assert "fitted on 120 cases" in repr(model)
    # dims that the observation has too are matched by value, not by place
    seen = observed.expand_dims(lead_time=[72, 48, 24, 96]).copy()
    alike = fitted("emos", levels, seen).predict(levels)
    np.testing.assert_array_equal(alike["t2m_mean"], predicted["t2m_mean"])


@pytest.mark.parametrize("method", ["emos", "emos_local", "local"])
def test_points_on_the_sphere(method: str) -> None:
    field, observed = points(FORECAST), points(OBSERVED)
    result = fitted(method, field, observed).predict(field)
    assert result["t2m_mean"].dims == ("time", "point")
    assert {"lat", "lon"} < {*result.coords}
    lon = (field["lon"] + 180.0) % 360.0 - 180.0
    signed_points = field.assign_coords(lon=lon.assign_attrs(field["lon"].attrs))
    other = fitted(method, signed_points, observed).predict(signed_points)
    np.testing.assert_array_equal(other["t2m_mean"], result["t2m_mean"])


def test_coordinates_that_a_file_holds_as_variables() -> None:
    field, observed = points(FORECAST), points(OBSERVED)
    bare = [data.to_dataset().reset_coords(["lat", "lon"]) for data in (field, observed)]
    assert {"lat", "lon"} < {*bare[0].data_vars}
    predicted = fitted("emos", *bare).predict(bare[0])
    expected = fitted("emos", field, observed).predict(field)
    xr.testing.assert_identical(predicted.drop_attrs(deep=False), expected.drop_attrs(deep=False))


@pytest.mark.parametrize("method", WIDEST[1:])
def test_projected_grids(method: str) -> None:
    field, observed = ensemble(axes=PLANE)
    model = fitted(method, field, observed)
    kilometres = field.assign_coords(
        {d: field[d].copy(data=field[d].values / 1000).assign_attrs(units="km") for d in "xy"}
    )
    turned = kilometres.isel(x=slice(None, None, -1)).transpose("x", "member", "time", "y")
    predicted = model.predict(turned)["t2m_mean"].isel(x=slice(None, None, -1))
    np.testing.assert_array_equal(
        predicted.transpose("time", "y", "x"), model.predict(field)["t2m_mean"]
    )


@pytest.mark.parametrize("method", ["emos", "local"])
@pytest.mark.parametrize("first", [-10.0, 165.0])
def test_regions_across_greenwich_and_the_date_line(method: str, first: float) -> None:
    lon = first + np.arange(6) * 5.0
    field, observed = ensemble(axes={"lat": GLOBAL["lat"], "lon": lon})

    def jumping(data: xr.DataArray) -> xr.DataArray:
        """Longitudes in the convention that cuts the region, in the order of the region."""
        cut = lon % 360.0 if first < 0 else (lon + 180.0) % 360.0 - 180.0
        return data.assign_coords(lon=data["lon"].copy(data=cut))

    def sorted_by_value(data: xr.DataArray) -> xr.DataArray:
        return jumping(data).sortby("lon")

    expected = fitted(method, field, observed).predict(field)["t2m_mean"].values
    other = fitted(method, jumping(field), sorted_by_value(observed))
    np.testing.assert_array_equal(other.predict(jumping(field))["t2m_mean"], expected)


@pytest.mark.parametrize("method", WIDEST[1:])
@pytest.mark.parametrize("shape", [(1, 6), (4, 1), (2, 2)])
def test_grids_of_few_points(method: str, shape: tuple[int, int]) -> None:
    axes = {"lat": np.arange(shape[0]) * 10.0, "lon": np.arange(shape[1]) * 10.0}
    field, observed = ensemble(axes=axes)
    result = fitted(method, field, observed).predict(field)
    assert all(np.isfinite(array).all() for array in result.values())


def test_one_point() -> None:
    field, observed = ensemble(axes={"lat": np.array([50.0]), "lon": np.array([10.0])})
    result = fitted("emos", field, observed).predict(field)
    assert result["t2m_mean"].shape == (16, 1, 1)
    assert np.isfinite(result["t2m_mean"]).all()


def test_three_times_are_enough() -> None:
    for method in METHODS:
        result = fitted(method, FORECAST[:3], OBSERVED).predict(FORECAST)
        seen = OBSERVED[:3].notnull().any("time") & FORECAST.notnull().any("member")
        assert np.isfinite(result["t2m_mean"].where(seen, 0.0)).all()


def test_seeds_matter_only_where_something_is_random() -> None:
    options = Options(width=2, depth=1, epochs=3, learning_rate=0.02)
    field, observed = ensemble(60)
    west = (field.mean("member") - 283.0).roll(lon=1, roll_coords=False)
    truth = observed + 1.5 * np.tanh(west)
    results = [
        fitted("unet_local", field, truth, seed=seed, options=options).predict(field)
        for seed in (0, 0, 1)
    ]
    assert_same(results[0], results[1])
    assert (results[0]["t2m_mean"] != results[2]["t2m_mean"]).any()
    assert_same(
        fitted("emos", field, truth, seed=0).predict(field),
        fitted("emos", field, truth, seed=1).predict(field),
    )


def test_training_leaves_the_random_state_alone() -> None:
    import torch

    before = torch.get_rng_state()
    fitted("unet_local", FORECAST, OBSERVED)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_progress_bar_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown = fitted("unet_local", FORECAST, OBSERVED, progress=True).predict(FORECAST)
    assert_same(fitted("unet_local", FORECAST, OBSERVED).predict(FORECAST), shown)
    assert capsys.readouterr().out == ""  # standard output is for results


def test_repr_tells_the_state() -> None:
    model = PostProcessor("emos", target="t2m")
    assert repr(model) == "PostProcessor('emos', target='t2m', not fitted)"
    text = repr(model.fit(FORECAST, OBSERVED))
    assert ", fitted on 16 cases of 4 members, LatLonGrid(4 x" in text
    assert " cases without members, " in repr(model.fit(FORECAST[:, 0], OBSERVED))


def test_a_second_fit_replaces_the_first() -> None:
    model = fitted("emos", FORECAST[:10], OBSERVED)
    model.fit(FORECAST, OBSERVED)
    assert_same(model.predict(FORECAST), fitted("emos", FORECAST, OBSERVED).predict(FORECAST))


def test_inputs_are_left_alone() -> None:
    data, seen = DATA.copy(deep=True), OBSERVED.copy(deep=True)
    model = fitted("emos_local", data, seen)
    model.predict(data, members=True)
    xr.testing.assert_identical(data, DATA)
    xr.testing.assert_identical(seen, OBSERVED)
