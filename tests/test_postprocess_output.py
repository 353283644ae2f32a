"""What predictions look like: moments, quantiles and members as CF Datasets."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from postprocess_cases import PLANE, ensemble, fitted, incomplete

from scisparse.errors import DataError, OptionError
from scisparse.verification import evaluate

FORECAST, OBSERVED, DATA = incomplete()
WIDEST = ("emos_local", "local", "unet_local")  # emos_local starts from emos


def test_moments_are_a_cf_dataset() -> None:
    result = fitted("emos", DATA, OBSERVED).predict(DATA)
    assert {*result.data_vars} == {"t2m_mean", "t2m_std"}
    assert result.attrs["title"] == "test"
    assert result.attrs["institution"] == "here"
    assert result.attrs["Conventions"].startswith("CF-1.")
    assert result.attrs["distribution"] == "normal"
    first, before = result.attrs["history"].splitlines()
    assert "corrected by scisparse" in first
    assert "method emos" in first
    assert before == "before"
    common = {"units": "K", "standard_name": "air_temperature"}
    methods = {"mean": "mean", "std": "standard_deviation"}
    for suffix, method in methods.items():
        array = result[f"t2m_{suffix}"]
        assert array.dtype == np.float32
        assert common.items() <= array.attrs.items()
        assert array.attrs["cell_methods"] == f"time: point realization: {method}"
        assert "corrected t2m" in array.attrs["long_name"]
    assert {*result.coords} == {"time", "lat", "lon", "in_training"}
    bare = result.drop_vars("in_training")
    for name in ("time", "lat", "lon"):
        xr.testing.assert_identical(bare[name], DATA[name])


def test_attributes_of_values_are_not_kept() -> None:
    told = {"comment": "kept", "valid_range": [0, 1], "actual_range": [0, 1], "long_name": "raw"}
    field = FORECAST.assign_attrs(told | {"ensemble_members": "equidistant quantiles"})
    model = fitted("emos", field, OBSERVED)
    kept = {"comment", "units", "standard_name", "cell_methods", "long_name"}
    assert {*model.predict(field)["t2m_mean"].attrs} == kept
    result = model.predict(field, members=True)["t2m"]
    assert {*result.attrs} == kept | {"ensemble_members"}
    assert result.attrs["cell_methods"] == "time: point"
    assert result.attrs["long_name"] == "corrected t2m"


def test_units_of_the_training_are_those_of_a_forecast_without() -> None:
    model = fitted("emos", FORECAST, OBSERVED)
    bare = FORECAST.drop_attrs()
    results = (model.predict(bare), model.predict(bare, members=True))
    for result in (*results, model.predict(bare, quantiles=[0.5])):
        assert all(array.attrs["units"] == "K" for array in result.values())
    assert model.predict(bare, thresholds=[280.0])["threshold"].attrs["units"] == "K"
    unknown = fitted("emos", bare, OBSERVED.drop_attrs())
    assert "units" not in unknown.predict(bare)["t2m_mean"].attrs


def test_probabilities_do_not_say_that_they_are_the_target() -> None:
    told = {"GRIB_paramId": 167, "GRIB_units": "K", "short_name": "2t", "comment": "kept"}
    field = FORECAST.assign_attrs(told)
    result = fitted("emos", field, OBSERVED).predict(field, thresholds=[280.0])
    attrs = result["t2m_probability"].attrs
    assert {*attrs} == {"long_name", "units", "cell_methods", "comment"}
    assert attrs["units"] == "1"
    assert {*result["threshold"].attrs} == {"long_name", "units", "standard_name"}


def test_a_dim_that_may_grow_stays_so(tmp_path: Path) -> None:
    DATA.to_netcdf(tmp_path / "forecast.nc", unlimited_dims=["time", "member"])
    with xr.open_dataset(tmp_path / "forecast.nc") as opened:
        model = fitted("emos", opened, OBSERVED)
        some = opened.isel(time=slice(2, 5))
        assert model.predict(some).encoding["unlimited_dims"] == {"time"}
        growing = {"time", "member"}
        assert model.predict(some, members=True).encoding["unlimited_dims"] == growing
        assert "unlimited_dims" not in model.predict(opened.isel(time=1)).encoding


def test_members_tell_that_they_are_quantiles(tmp_path: Path) -> None:
    result = fitted("emos", FORECAST, OBSERVED).predict(FORECAST, members=True)
    result.to_netcdf(tmp_path / "members.nc")
    with xr.open_dataset(tmp_path / "members.nc") as read:
        assert read["t2m"].attrs["ensemble_members"] == "equidistant quantiles"


def test_bounds_and_projection_are_kept(tmp_path: Path) -> None:
    field, observed = ensemble(12, axes=PLANE)
    data = field.assign_attrs(grid_mapping="crs").to_dataset()
    data["crs"] = ((), 0, {"grid_mapping_name": "lambert_azimuthal_equal_area"})
    data["x_bnds"] = (("x", "bnds"), np.stack([data["x"] - 1e3, data["x"] + 1e3], 1))
    data["unrelated"] = (("bnds",), [1.0, 2.0])
    data["x"].attrs["bounds"] = "x_bnds"
    data.to_netcdf(tmp_path / "forecast.nc")
    for decode in (True, "all"):
        with xr.open_dataset(tmp_path / "forecast.nc", decode_coords=decode) as opened:
            result = fitted("emos", opened, observed).predict(opened)
        result.to_netcdf(tmp_path / f"{decode}.nc")
        with xr.open_dataset(tmp_path / f"{decode}.nc", decode_coords=False) as written:
            assert {"crs", "x_bnds"} < {*written.data_vars}
            assert "unrelated" not in written
            assert written["t2m_std"].attrs["grid_mapping"] == "crs"
            assert written["x"].attrs["bounds"] == "x_bnds"
            xr.testing.assert_equal(written["x_bnds"].variable, data["x_bnds"].variable)


def test_bounds_and_projections_are_no_fields() -> None:
    """The truth has another name than the forecast, as analyses do, and each is the only field."""
    field, observed = ensemble(12, axes=PLANE)
    projection = ((), 0, {"grid_mapping_name": "lambert_azimuthal_equal_area"})
    beside = {"crs": projection, "x_bnds": (("x", "bnds"), np.zeros((field.sizes["x"], 2)))}
    forecast, truth = (
        each.assign_attrs(grid_mapping="crs: x y").to_dataset(name=name).assign(beside)
        for each, name in ((field, "t2m"), (observed, "tas"))
    )
    for data in (forecast, truth):
        data["x"].attrs["bounds"] = "x_bnds"
    model = fitted("emos", forecast, truth)
    plain = fitted("emos", field, observed).predict(field)
    result = model.predict(forecast)
    assert {"crs", "x_bnds"} < {*result.data_vars}
    assert result[[*plain.data_vars]].equals(plain)
    expected = evaluate(field, observed)
    xr.testing.assert_allclose(evaluate(forecast, truth), expected)
    with pytest.raises(DataError, match=r"among 'tas'; name or select one"):
        fitted("emos", truth, truth)


def test_one_member_tells_no_spread() -> None:
    """A model trained on many members keeps its usual spread for one: its variance is not 0."""
    field, observed = spread_tells_error()
    model = fitted("emos", field, observed)
    with pytest.warns(UserWarning, match=r"fewer members \(1\) than the training \(8\)"):
        one = model.predict(field.isel(member=[0]))["t2m_std"]
    assert float(one.std("time").max()) < 1e-5  # in single precision
    many = model.predict(field)["t2m_std"]
    assert float(many.std("time").min()) > 0.1
    assert float((one**2).mean()) == pytest.approx(float((many**2).mean()), rel=0.3)


def spread_tells_error() -> tuple[xr.DataArray, xr.DataArray]:
    """Ensemble whose spread is that of its error, from day to day."""
    field, observed = ensemble(120, 8)
    rng = np.random.default_rng(5)
    scale = np.exp(rng.normal(size=(120, 1, 1, 1)))
    centre = rng.normal(size=(120, 1, 4, 6))
    values = 280.0 + centre + scale * rng.normal(size=field.shape)
    truth = 280.0 + centre[:, 0] + scale[:, 0] * rng.normal(size=observed.shape)
    return field.copy(data=values), observed.copy(data=truth)


@pytest.mark.filterwarnings("ignore:.*exactly 0, where 'truncated_normal':UserWarning")
@pytest.mark.parametrize("distribution", ["normal", "truncated_normal", "censored_normal"])
def test_an_ensemble_without_spread_is_no_error(distribution: str) -> None:
    field, observed = spread_tells_error()
    truth = observed - 279.0 if distribution == "normal" else (observed - 279.0).clip(min=0.0)
    model = fitted("emos", field - 279.0, truth, distribution=distribution)
    same = (field - 279.0).isel(member=[0] * 8)
    for result in (model.predict(same), model.predict(same, quantiles=[0.1, 0.9])):
        assert all(np.isfinite(array).all() for array in result.values())
        kept = [array for name, array in result.items() if name != "t2m_location"]
        assert distribution == "normal" or all((array >= 0).all() for array in kept)


def test_one_time_without_a_time_dim() -> None:
    model = fitted("emos", FORECAST, OBSERVED)
    one = model.predict(FORECAST.isel(time=7))
    assert one["t2m_mean"].dims == ("lat", "lon")
    xr.testing.assert_equal(one, model.predict(FORECAST).isel(time=7))
    xr.testing.assert_equal(
        model.predict(FORECAST.isel(time=[7])), model.predict(FORECAST).isel(time=[7])
    )


def test_quantiles_rise_and_are_those_of_the_distribution() -> None:
    from scipy.stats import norm

    model = fitted("emos", FORECAST, OBSERVED)
    levels = [0.05, 0.5, 0.9]
    result = model.predict(FORECAST, quantiles=levels)["t2m_quantile"]
    assert result.dims == ("quantile", "time", "lat", "lon")
    np.testing.assert_array_equal(result["quantile"], levels)
    moments = model.predict(FORECAST)
    expected = moments["t2m_mean"] + moments["t2m_std"] * xr.DataArray(
        norm.ppf(levels), dims="quantile", coords={"quantile": levels}
    )
    np.testing.assert_allclose(result, expected.transpose(*result.dims), rtol=1e-6)
    many = model.predict(FORECAST, quantiles=np.linspace(0.01, 0.99, 23))["t2m_quantile"]
    assert (many.dropna("time").diff("quantile") > 0).all()


@pytest.mark.parametrize("levels", [[0.9, 0.05, 0.5], [0.05, 0.5, 0.5, 0.9]])
def test_quantiles_that_do_not_rise_are_refused(levels: list[float]) -> None:
    """Scores cannot be computed of them."""
    model = fitted("emos", FORECAST, OBSERVED)
    message = (
        rf"`quantiles` \(={re.escape(str(levels))}\) must strictly rise.*; give \[0.05, 0.5, 0.9\]"
    )
    with pytest.raises(OptionError, match=message):
        model.predict(FORECAST, quantiles=levels)


@pytest.mark.filterwarnings("ignore:.*exactly 0, where 'truncated_normal':UserWarning")
@pytest.mark.parametrize("distribution", ["normal", "truncated_normal", "censored_normal"])
def test_probabilities_of_exceedance_are_those_of_the_distribution(distribution: str) -> None:
    from scipy.stats import norm

    field, observed = (
        FORECAST.where(FORECAST["time"] != FORECAST["time"][5]) - 280.0,
        OBSERVED - 280.0,
    )
    kelvin = {"units": "K", "standard_name": "air_temperature"}
    field, observed = (
        (data.clip(min=0.0) if distribution != "normal" else data).assign_attrs(kelvin)
        for data in (field, observed)
    )
    model = fitted("emos", field, observed, distribution=distribution)
    limits = [-1.0, 0.0, 0.3, 2.0]
    probability = model.predict(field, thresholds=limits)["t2m_probability"]
    assert probability.dims == ("threshold", "time", "lat", "lon")
    moments = model.predict(field).astype(np.float64)
    pair = ("location", "scale") if distribution != "normal" else ("mean", "std")
    location, scale = (moments[f"t2m_{name}"] for name in pair)
    threshold = xr.DataArray(limits, {"threshold": limits}, "threshold")
    above = xr.apply_ufunc(norm.sf, (threshold - location) / scale)
    if distribution == "truncated_normal":
        above = above / xr.apply_ufunc(norm.sf, -location / scale)
    if distribution != "normal":
        above = above.where((threshold >= 0.0) | above.isnull(), 1.0)
    np.testing.assert_allclose(probability, above.transpose(*probability.dims), atol=2e-6)
    assert bool(probability[:, 5].isnull().all())  # where the forecast is missing


def test_probabilities_of_exceedance_have_attributes_of_their_own(tmp_path: Path) -> None:
    result = fitted("emos", DATA, OBSERVED).predict(DATA, thresholds=[281.0, 282.5])
    assert list(result.data_vars) == ["t2m_probability"]
    probability = result["t2m_probability"]
    assert probability.attrs["units"] == "1"
    assert "standard_name" not in probability.attrs
    assert probability.attrs["long_name"] == (
        "probability that the corrected t2m exceeds the threshold"
    )
    told = {"units": "K", "standard_name": "air_temperature", "long_name": "threshold of t2m"}
    assert probability["threshold"].attrs == told
    result.to_netcdf(tmp_path / "probability.nc")
    with xr.open_dataset(tmp_path / "probability.nc") as read:
        xr.testing.assert_identical(read.load(), result)


@pytest.mark.filterwarnings("ignore:.*exactly 0, where 'truncated_normal':UserWarning")
@pytest.mark.parametrize("distribution", ["truncated_normal", "censored_normal"])
@pytest.mark.parametrize("method", WIDEST)
def test_bounded_distributions_stay_above_their_bound(method: str, distribution: str) -> None:
    field, observed = ensemble()
    field, observed = (field - 283.0).clip(0.0), (observed - 280.0).clip(0.0)
    model = fitted(method, field, observed, distribution=distribution)
    moments = model.predict(field)
    assert {*moments.data_vars} == {f"t2m_{s}" for s in ("mean", "std", "location", "scale")}
    assert moments.attrs["distribution"] == distribution
    assert "realization" not in moments["t2m_scale"].attrs.get("cell_methods", "")
    quantiles = model.predict(field, quantiles=[0.001, 0.01, 0.5, 0.99])["t2m_quantile"]
    members = model.predict(field, members=True)["t2m"]
    assert all((array >= 0).all() for array in (moments["t2m_mean"], quantiles, members))
    assert (moments["t2m_std"] >= 0).all()
    assert (moments["t2m_location"] < 0).any()  # the bound acts
    assert (quantiles.diff("quantile") >= 0).all()


def test_members_keep_the_ranks_of_the_raw_ones() -> None:
    field, observed = ensemble(members=5)
    field = field.transpose("lat", "member", "time", "lon")
    model = fitted("emos", field, observed)
    result = model.predict(field, members=True)["t2m"]
    assert result.dims == field.dims
    xr.testing.assert_identical(result["member"], field["member"])
    for ranked in (field, result):
        assert ranked.dtype.kind == "f"
    np.testing.assert_array_equal(
        result.argsort(result.get_axis_num("member")).values,
        field.argsort(field.get_axis_num("member")).values,
    )
    levels = (np.arange(5) + 0.5) / 5
    quantiles = model.predict(field, quantiles=levels)["t2m_quantile"]
    np.testing.assert_array_equal(
        np.sort(result.transpose("member", "time", "lat", "lon"), 0),
        quantiles.transpose("quantile", "time", "lat", "lon"),
    )


def test_missing_members_stay_missing() -> None:
    field, observed = ensemble(members=4)
    hole = field.copy(deep=True)
    hole[2, 1, 0, 0] = np.nan
    model = fitted("emos", field, observed)
    result = model.predict(hole, members=True)["t2m"]
    np.testing.assert_array_equal(np.isnan(result), np.isnan(hole))
    there = result[2, [0, 2, 3], 0, 0]
    three = model.predict(hole[2], quantiles=[1 / 6, 3 / 6, 5 / 6])["t2m_quantile"]
    np.testing.assert_array_equal(np.sort(there), three[:, 0, 0])


def test_corrected_members_and_quantiles_are_calibrated() -> None:
    field, observed = ensemble(300, 9, seed=4)
    train, test = slice(0, 150), slice(150, 300)
    model = fitted("emos", field.isel(time=train), observed.isel(time=train))
    new, truth = field.isel(time=test), observed.isel(time=test)
    quantile = model.predict(new, quantiles=[0.1, 0.5, 0.9])["t2m_quantile"]
    covered = (truth < quantile).mean(("time", "lat", "lon"))
    np.testing.assert_allclose(covered, [0.1, 0.5, 0.9], atol=0.03)
    members = model.predict(new, members=True)["t2m"]
    ranks = (members < truth).sum("member")
    share = np.bincount(ranks.values.ravel(), minlength=10) / ranks.size
    # the outermost of 9 equidistant quantiles lie at 1/18
    expected = np.diff(np.concatenate([[0], (np.arange(9) + 0.5) / 9, [1]]))
    np.testing.assert_allclose(share, expected, atol=0.025)
    raw = np.bincount((new < truth).sum("member").values.ravel(), minlength=10)
    assert raw[0] > 0.9 * ranks.size  # the raw ensemble is too warm


def test_lazy_arrays_are_loaded() -> None:
    pytest.importorskip("dask")
    lazy = DATA.chunk({"time": 5, "lat": 2})
    model = fitted("emos", lazy, OBSERVED.chunk({"lon": 4}))
    expected = fitted("emos", DATA, OBSERVED).predict(DATA)
    xr.testing.assert_equal(model.predict(lazy), expected)
