"""The simulated climate and its forecasts, against closed forms and what they are meant to be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from scisparse.datasets import Physics, simulated_ensemble
from scisparse.datasets.atmosphere import Atmosphere, Geography
from scisparse.datasets.simulate import MODEL, TRUTH
from scisparse.datasets.sphere import area_weights, band_latitudes
from scisparse.errors import OptionError, ShapeError
from scisparse.grids import LatLonGrid

Array = NDArray[np.float64]


def sphere_mean(field: Array) -> Array:
    mean: Array = (field.mean(axis=-1) * area_weights(field.shape[-2])).sum(axis=-1)
    return mean


def random_geography(shape: tuple[int, int], rng: np.random.Generator) -> Geography:
    return Geography(rng.uniform(size=shape), rng.uniform(0, 3000, size=shape))


# The atmosphere


def test_turning_the_planet_turns_its_weather() -> None:
    rng = np.random.default_rng(6)
    shape = (10, 24)
    ground, state, noise = random_geography(shape, rng), *rng.normal(280, 9, size=(2, 3, *shape))
    turned = Geography(np.roll(ground.land, 7, axis=-1), np.roll(ground.height, 7, axis=-1))
    step = Atmosphere(ground, MODEL).step(state, 40.0, noise)
    other = Atmosphere(turned, MODEL).step(
        np.roll(state, 7, axis=-1), 40.0, np.roll(noise, 7, axis=-1)
    )
    np.testing.assert_allclose(other, np.roll(step, 7, axis=-1), rtol=1e-12)


def test_members_and_starts_are_independent_of_each_other() -> None:
    rng = np.random.default_rng(7)
    shape = (6, 9)
    air = Atmosphere(random_geography(shape, rng), TRUTH)
    state, noise = rng.normal(280, 9, size=(2, 4, 2, *shape))
    days = np.array([[0.0], [50.0], [183.0], [300.0]])
    together = air.step(state, days, noise)
    for start in range(4):
        alone = air.step(state[start, 1], float(days[start, 0]), noise[start, 1])
        np.testing.assert_allclose(together[start, 1], alone, rtol=1e-13)


@pytest.mark.parametrize(("share", "days"), [(1.0, 5.0), (0.0, 60.0)])
def test_the_season_lags_and_is_damped_as_linear_response_says(share: float, days: float) -> None:
    shape = (8, 9)
    ground = Geography(np.full(shape, share), np.zeros(shape))
    physics = Physics(wind_factor=0.0, diffusivity=0.0, land_days=days, sea_days=days)
    air = Atmosphere(ground, physics)
    state = air.equilibrium(0.0)
    year = np.empty((365, *shape))
    for day in range(-1_200, 365):
        if day >= 0:
            year[day] = state
        state = air.step(state, float(day))
    rate = 2 * np.pi / 365.2425
    phase = rate * (np.arange(365) - 172.0) - np.arctan(rate * days)
    swing = 20.0 * np.sin(band_latitudes(8)) / np.hypot(1.0, rate * days)
    expected = 301.0 - 42.0 * np.sin(band_latitudes(8)) ** 2 + swing * np.cos(phase)[:, None]
    np.testing.assert_allclose(year[:, :, 4], expected, atol=0.02)


def test_smoothing_the_geography_keeps_its_land_and_its_bounds() -> None:
    ground = Geography.random((24, 48), np.random.default_rng(8))
    smooth = ground.smoothed(900e3)
    assert smooth.land.std() < 0.9 * ground.land.std()
    assert smooth.land.min() >= 0
    assert smooth.land.max() <= 1
    assert smooth.height.min() >= 0
    assert sphere_mean(smooth.land) == pytest.approx(sphere_mean(ground.land), rel=1e-3)
    assert ground.smoothed(0.0) is ground


def test_geographies_of_two_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"shapes \(4, 8\) and \(4, 9\)"):
        Atmosphere(Geography(np.zeros((4, 8)), np.zeros((4, 9))), TRUTH)
    with pytest.raises(ShapeError, match="at least 4 latitudes x 8 longitudes"):
        Atmosphere(Geography(np.zeros((3, 8)), np.zeros((3, 8))), TRUTH)


# The Dataset


@pytest.fixture(scope="module")
def data() -> xr.Dataset:
    return simulated_ensemble()


def area_weight(data: xr.DataArray | xr.Dataset) -> xr.DataArray:
    lat = data["lat"]
    return lat.copy(data=np.cos(np.deg2rad(lat.values)))


def weighted_rmse(error: xr.DataArray) -> float:
    return float(np.sqrt((error**2).weighted(area_weight(error)).mean().item()))


def spread_skill(data: xr.Dataset) -> float:
    """Ratio of spread to error, 1 for an ensemble that is a draw from the same as the truth."""
    count = data.sizes["member"]
    variance = data["temperature"].astype(float).var("member", ddof=1) * (1 + 1 / count)
    error = data["temperature"].astype(float).mean("member") - data["observed"]
    return weighted_rmse(variance**0.5) / weighted_rmse(error)


def test_the_form_is_that_of_a_real_data_set(data: xr.Dataset) -> None:
    assert data["temperature"].dims == ("time", "member", "lat", "lon")
    assert data["temperature"].shape == (240, 10, 32, 64)
    assert data["observed"].dims == ("time", "lat", "lon")
    assert data["land"].dims == ("lat", "lon")
    assert data["land"].dtype == bool
    assert data["temperature"].dtype == data["observed"].dtype == np.float32
    for name in ("temperature", "observed"):
        assert data[name].attrs["units"] == "K"
        assert data[name].attrs["standard_name"] == "air_temperature"
    assert data["time"].dtype == "datetime64[ns]"
    lead = data["time"] - data["forecast_reference_time"]
    assert bool((lead == np.timedelta64(4, "D")).all())
    assert bool((data["time"].diff("time") == np.timedelta64(6, "D")).all())
    assert LatLonGrid.from_degrees(data["lat"].values, data["lon"].values).periodic == (False, True)
    assert {"Conventions", "title", "source", "references", "license"} <= set(data.attrs)


def test_the_planet_is_like_the_earth(data: xr.Dataset) -> None:
    observed = data["observed"].astype(float)
    weights = area_weight(data)
    assert float(data["land"].astype(float).weighted(weights).mean()) == pytest.approx(
        0.3, abs=0.02
    )
    assert 270 < float(observed.weighted(weights).mean()) < 295
    assert float(observed.min()) > 200
    assert float(observed.max()) < 330
    # Continents have the larger seasons; the hemispheres have theirs half a year apart.
    middle = (abs(data["lat"]) > 30) & (abs(data["lat"]) < 70)
    swing = observed.std("time")
    assert float(swing.where(middle & data["land"]).mean()) > 1.15 * float(
        swing.where(middle & ~data["land"]).mean()
    )
    summer = observed["time"].dt.month.isin([7, 8]).values
    north = (observed[summer].mean("time") - observed[~summer].mean("time")).mean("lon")
    assert float(north.sel(lat=slice(30, 70)).min()) > 0
    assert float(north.sel(lat=slice(-70, -30)).max()) < 0


def test_the_ensemble_is_under_dispersive(data: xr.Dataset) -> None:
    assert 0.1 < spread_skill(data) < 0.6
    spread = data["temperature"].std("member")
    assert float(spread.min()) > 0


def test_the_bias_depends_on_location_and_can_be_learned(data: xr.Dataset) -> None:
    error = data["temperature"].astype(float).mean("member") - data["observed"]
    past, later = error[:180], error[180:]
    raw = weighted_rmse(later)
    one_number = weighted_rmse(later - past.weighted(area_weight(error)).mean())
    each_cell = weighted_rmse(later - past.mean("time"))
    assert one_number > 0.97 * raw
    assert each_cell < 0.85 * raw
    # The same cells are wrong later: not noise.
    bias, again = past.mean("time").values.ravel(), later.mean("time").values.ravel()
    assert np.corrcoef(bias, again)[0, 1] > 0.8


def test_the_error_depends_on_the_flow(data: xr.Dataset) -> None:
    """The wind is too strong: where there are westerlies, forecasts run ahead to the east."""
    forecast = data["temperature"].astype(float).mean("member")
    anomaly = (forecast - forecast.mean("time")).groupby("time.month")
    observed = data["observed"].astype(float).groupby("time.month")
    a = (anomaly - anomaly.mean()).sel(lat=slice(35, 70)).values
    b = (observed - observed.mean()).sel(lat=slice(35, 70)).values
    ahead, behind = ((a * np.roll(b, shift, axis=-1)).mean() for shift in (1, -1))
    assert ahead > 1.02 * behind


def test_a_perfect_model_is_reliable_and_unbiased() -> None:
    data = simulated_ensemble((16, 32), members=8, times=200, model=TRUTH, seed=3)
    assert spread_skill(data) == pytest.approx(1.0, abs=0.04)
    error = data["temperature"].astype(float).mean("member") - data["observed"]
    assert abs(float(error.mean())) < 0.05
    rank = (data["temperature"] < data["observed"]).sum("member")
    share = np.bincount(rank.values.ravel(), minlength=9) / rank.size
    np.testing.assert_allclose(share, 1 / 9, atol=0.015)


def test_a_longer_forecast_is_worse() -> None:
    errors = []
    for lead_steps in (1, 4, 12):
        data = simulated_ensemble((12, 24), members=3, times=60, lead_steps=lead_steps)
        errors.append(weighted_rmse(data["temperature"].mean("member") - data["observed"]))
    assert errors == sorted(errors)
    assert errors[2] > 1.5 * errors[0]


def test_a_seed_decides_everything() -> None:
    first, again, other = (
        simulated_ensemble((6, 9), members=2, times=4, seed=seed) for seed in (5, 5, 6)
    )
    assert first.identical(again)
    assert not np.array_equal(first["land"], other["land"])
    assert not np.array_equal(first["observed"], other["observed"])


def test_more_times_begin_with_the_same_ones() -> None:
    few, many = (simulated_ensemble((6, 9), members=2, times=times) for times in (3, 9))
    assert many.isel(time=slice(3)).identical(few)


def test_the_truth_does_not_depend_on_the_model() -> None:
    one = simulated_ensemble((6, 9), members=2, times=4)
    other = simulated_ensemble((6, 9), members=5, times=4, model=replace(MODEL, wind_factor=0.0))
    assert one["observed"].identical(other["observed"])


def test_one_of_everything() -> None:
    data = simulated_ensemble((4, 8), members=1, times=1, lead_steps=1, interval=1)
    assert data["temperature"].shape == (1, 1, 4, 8)
    assert bool(np.isfinite(data["temperature"]).all())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"members": 0}, r"members \(=0\) must be a whole number of at least 1"),
        ({"members": True}, r"members \(=True\) must be a whole number"),
        ({"times": -2}, r"times \(=-2\)"),
        ({"lead_steps": 1.5}, r"lead_steps \(=1.5\)"),
        ({"interval": 0}, r"interval \(=0\)"),
        ({"seed": -1}, r"seed \(=-1\) must be a whole number of at least 0"),
        ({"seed": None}, r"seed \(=None\)"),
        ({"shape": (3, 64)}, r"shape \(=\(3, 64\)\) .*latitudes \(at least 4\)"),
        ({"shape": (32, 7)}, r"shape \(=\(32, 7\)\)"),
        ({"shape": (32,)}, r"shape \(=\(32,\)\)"),
        ({"shape": (32.0, 64)}, r"shape \(=\(32.0, 64\)\)"),
        ({"shape": 32}, r"shape \(=32\)"),
    ],
)
def test_bad_numbers_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        simulated_ensemble(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"land_days": 0.0}, r"land_days \(=0.0\) must be more than 0 days"),
        ({"sea_days": -1.0}, r"sea_days \(=-1.0\)"),
        ({"diffusivity": -1.0}, r"diffusivity \(=-1.0\) must be at least 0"),
        ({"noise": float("nan")}, r"noise \(=nan\) must be finite"),
        ({"wind_factor": float("inf")}, r"wind_factor \(=inf\) must be finite"),
    ],
)
def test_impossible_physics_is_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Physics(**arguments)


def test_netcdf_round_trip(tmp_path: Path) -> None:
    data = simulated_ensemble((4, 8), members=2, times=3)
    path = tmp_path / "simulated.nc"
    data.to_netcdf(path)
    with xr.open_dataset(path) as read:
        xr.testing.assert_equal(read.load(), data)
        assert read["land"].dtype == bool
        assert read["temperature"].attrs == data["temperature"].attrs
