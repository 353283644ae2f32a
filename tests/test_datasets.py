"""Real data sets: every trap in their files, and the reference scores of their README."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cf_xarray  # noqa: F401  (the `cf` accessor)
import numpy as np
import pytest
import scoringrules
import xarray as xr
from numpy.typing import NDArray

from scisparse import datasets
from scisparse.datasets import ScenarioData, nmme
from scisparse.datasets.registry import SOURCES
from scisparse.errors import DataError

NAMES = list(datasets.available())


@cache
def loaded(name: str) -> xr.Dataset | ScenarioData:
    """Load a data set once for all tests; they do not change it."""
    return datasets.load(name)


def dataset(name: str) -> xr.Dataset:
    data = loaded(name)
    assert isinstance(data, xr.Dataset)
    return data


def iberia() -> ScenarioData:
    data = loaded("cnrm_iberia")
    assert isinstance(data, ScenarioData)
    return data


def parts_of(name: str) -> list[xr.Dataset]:
    data = loaded(name)
    return [data] if isinstance(data, xr.Dataset) else [data[part] for part in data]


# Every real data set


@pytest.mark.parametrize("name", NAMES)
def test_data_are_cf(name: str, data_dir: Path) -> None:
    for data in parts_of(name):
        assert data.attrs["Conventions"].startswith("CF-")
        assert "doi:" in data.attrs["references"]
        assert SOURCES[name].origin in data.attrs["source"]
        assert data.attrs["license"] == SOURCES[name].license
        assert data["time"].dtype == "datetime64[ns]"
        assert data.indexes["time"].is_monotonic_increasing
        assert data.indexes["time"].is_unique
        for axis in "TYX":
            (found,) = data.cf.axes[axis]
            assert data.indexes[found].is_monotonic_increasing
        for variable in data.data_vars.values():
            assert variable.attrs["long_name"]
            assert variable.dtype == bool or variable.attrs["units"]
            if variable.dtype != bool:
                assert variable.dtype == np.float32


@pytest.mark.parametrize("name", NAMES)
def test_netcdf_round_trip(name: str, data_dir: Path, tmp_path: Path) -> None:
    for number, data in enumerate(parts_of(name)):
        path = tmp_path / f"{number}.nc"
        data.to_netcdf(path)
        with xr.open_dataset(path) as read:
            xr.testing.assert_equal(read.load().reset_coords(), data.reset_coords())
            for variable in data.data_vars:
                assert read[variable].attrs == data[variable].attrs


# nmme_south_asia


def test_nmme_holds_what_the_readme_counts(data_dir: Path) -> None:
    data = dataset("nmme_south_asia")
    assert data["precipitation"].dims == ("time", "member", "lat", "lon")
    assert data["precipitation"].shape == (30, 30, 34, 39)
    assert data["observed"].dims == ("time", "lat", "lon")
    assert int(data["land"].sum()) == 643
    assert np.array_equal(data["observed"].notnull().all("time"), data["land"])
    assert np.array_equal(data["observed"].notnull().any("time"), data["land"])
    assert bool(data["precipitation"].notnull().all())
    assert float(data["precipitation"].min()) >= 0
    np.testing.assert_array_equal(data["lat"], np.arange(1.0, 35.0))
    np.testing.assert_array_equal(data["lon"], np.arange(61.0, 100.0))
    years = np.arange(1991, 2021)
    assert [str(day)[:10] for day in data["time"].values] == [f"{y}-06-01" for y in years]
    starts = data["forecast_reference_time"].values
    assert [str(day)[:10] for day in starts] == [f"{y}-05-01" for y in years]
    assert list(data["model"].values) == ["CCSM4"] * 10 + ["CanSIPS-IC3"] * 20
    # Monsoon totals, not rates: the mean over land is some hundred mm.
    for name in ("precipitation", "observed"):
        assert data[name].attrs["units"] == "mm"
        assert data[name].attrs["cell_methods"].startswith("time: sum")
        assert 300 < float(data[name].where(data["land"]).mean()) < 900


def test_nmme_members_are_those_of_the_files(data_dir: Path) -> None:
    data = dataset("nmme_south_asia")
    folder = data_dir / "nmme_south_asia"
    with xr.open_dataset(folder / "CanSIPSIC3.PRCP.nc", decode_times=False) as raw:
        value = raw["prec"].sel(S=376 + 12 * 7, M=13, Y=20, X=77).item()
    chosen = data["precipitation"].sel(time="1998-06-01", lat=20, lon=77, member=10 + 12)
    assert chosen.item() == value
    with xr.open_dataset(folder / "UCSB.PRCP.nc", decode_times=False) as raw:
        block = raw["prcp"].isel(M=0, T=7).sel(Y=slice(19.5, 20.5), X=slice(76.5, 77.5)).values
    assert block.shape == (4, 4)
    observed = data["observed"].sel(time="1998-06-01", lat=20, lon=77)
    assert observed.item() == pytest.approx(block.mean(dtype=float), rel=1e-6)


def test_nmme_raw_ensemble_has_the_reference_score(data_dir: Path) -> None:
    data = dataset("nmme_south_asia").stack(cell=("lat", "lon"))
    data = data.isel(cell=np.flatnonzero(data["land"]))
    forecast = data["precipitation"].transpose("time", "cell", "member").values.astype(float)
    crps = scoringrules.crps_ensemble(
        data["observed"].transpose("time", "cell").values.astype(float), forecast, estimator="fair"
    )
    weights = np.cos(np.deg2rad(data["lat"].values))
    assert np.average(crps.mean(axis=0), weights=weights) == pytest.approx(157.6, abs=0.05)


def write_nmme(folder: Path, months: int = 2, shift: float = 0.0) -> dict[str, Path]:
    """Small files with the traps of the real ones; `shift` moves the seasons observed."""
    rng = np.random.default_rng(0)
    starts = 376.0 + 12 * np.arange(months)
    axes = {"Y": np.arange(3.0, 8.0), "X": np.arange(60.0, 66.0)}
    units = {"units": "months since 1960-01-01", "calendar": "360"}
    for name, dims, members in (
        ("CCSM4.PRCP.nc", "SLMYX", 2),
        ("CanSIPSIC3.PRCP.nc", "SMLYX", 3),
    ):
        sizes = {"S": months, "L": 1, "M": members, "Y": 5, "X": 6}
        values = rng.gamma(2.0, 200.0, size=[sizes[dim] for dim in dims])
        xr.Dataset(
            {"prec": (list(dims), values, {"units": "mm/day"})},
            {"S": ("S", starts, units), "L": [2.5], "M": 1.0 + np.arange(members), **axes},
        ).to_netcdf(folder / name)
    rain = rng.gamma(2.0, 200.0, size=(1, months, 20, 24))
    rain[..., :6] = np.nan  # sea: the first whole cell, and half of the next
    xr.Dataset(
        {"prcp": (["M", "T", "Y", "X"], rain, {"units": "mm/day"})},
        {
            "M": ["UCSB.PRCP"],
            "T": ("T", starts + 2.5 + shift, units),
            "Y": 2.625 + 0.25 * np.arange(20),
            "X": 59.625 + 0.25 * np.arange(24),
        },
    ).to_netcdf(folder / "UCSB.PRCP.nc")
    return {path.name: path for path in folder.iterdir()}


def test_nmme_reader_on_small_files_with_the_same_traps(tmp_path: Path) -> None:
    paths = write_nmme(tmp_path)
    data = nmme.read_nmme_south_asia(paths)
    assert data["precipitation"].shape == (2, 5, 5, 6)
    assert list(data["model"].values) == ["CCSM4"] * 2 + ["CanSIPS-IC3"] * 3
    assert data["precipitation"].attrs["units"] == "mm"
    assert np.array_equal(data["land"].values, np.arange(6) * np.ones((5, 1)) >= 1)
    with xr.open_dataset(paths["CanSIPSIC3.PRCP.nc"], decode_times=False) as raw:
        expected = raw["prec"].isel(L=0, M=1).transpose("S", "Y", "X").values
    np.testing.assert_array_equal(data["precipitation"][:, 3], expected.astype(np.float32))


def test_nmme_seasons_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="CCSM4 and CHIRPS hold different seasons"):
        nmme.read_nmme_south_asia(write_nmme(tmp_path, shift=1.0))


@pytest.mark.parametrize(
    ("months", "lead", "expected"),
    [
        (376.0, 2.5, "1991-06-01"),
        (378.5, 0.0, "1991-06-01"),
        (-10.5, 0.0, "1959-01-01"),
        (11.0, 2.5, "1961-01-01"),
    ],
)
def test_months_since_1960_in_a_360_day_calendar(months: float, lead: float, expected: str) -> None:
    axis = xr.DataArray([months], dims="S", name="S")
    assert str(nmme.season_start(axis, np.array(lead))[0])[:10] == expected


def test_a_season_that_starts_within_a_month_is_refused() -> None:
    with pytest.raises(DataError, match="T is not at the start of a month"):
        nmme.season_start(xr.DataArray([378.0], dims="T", name="T"), np.array(0.0))


def fine_field(values: NDArray[np.float64], south: float, west: float) -> xr.DataArray:
    rows, columns = values.shape
    axes = {
        "Y": south + 0.125 + 0.25 * np.arange(rows),
        "X": west + 0.125 + 0.25 * np.arange(columns),
    }
    return xr.DataArray(values, axes, ("Y", "X"))


@pytest.mark.parametrize("seed", range(5))
def test_coarsening_is_the_mean_of_what_is_there(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.gamma(1.0, 100.0, size=(4 * 5 + 4, 4 * 6 + 4))
    values[rng.uniform(size=values.shape) < 0.5] = np.nan
    # From 0 to 6 degrees north: the cells centred on 1 to 5 are whole, those on 0 and 6 are not.
    mean, land = nmme.coarsen_to(fine_field(values, 0.0, 60.0), np.arange(7.0), np.arange(60.0, 68))
    assert (mean["Y"].values[0], mean["Y"].values[-1]) == (1.0, 5.0)
    assert (mean["X"].values[0], mean["X"].values[-1]) == (61.0, 66.0)
    for row in range(5):
        for column in range(6):
            top, left = 4 * row + 2, 4 * column + 2
            block = values[top : top + 4, left : left + 4]
            count = np.isfinite(block).sum()
            assert bool(land[row, column]) == (count >= 8)
            expected = np.nanmean(block) if count >= 8 else np.nan
            np.testing.assert_allclose(mean[row, column].item(), expected, rtol=1e-12)


@pytest.mark.parametrize(("count", "is_land"), [(0, False), (7, False), (8, True), (16, True)])
def test_half_of_a_cell_is_enough(count: int, is_land: bool) -> None:
    values = np.full(16, np.nan)
    values[:count] = 5.0
    field = fine_field(values.reshape(4, 4), 0.5, 0.5)
    mean, land = nmme.coarsen_to(field, np.array([1.0]), np.array([1.0]))
    assert land.item() is is_land
    np.testing.assert_array_equal(mean.item(), 5.0 if is_land else np.nan)


def test_cells_that_do_not_fit_are_refused() -> None:
    field = fine_field(np.ones((12, 12)), 0.0, 0.0)
    with pytest.raises(DataError, match="each must hold 4 x 4"):
        nmme.coarsen_to(
            field.isel(Y=[0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]), np.arange(3.0), np.ones(1)
        )
    with pytest.raises(DataError, match="no 1-degree cell lies between"):
        nmme.coarsen_to(field, np.array([30.0]), np.array([1.0]))


# improver_uk


def test_improver_holds_what_the_readme_says(data_dir: Path) -> None:
    data = dataset("improver_uk")
    plane = ("projection_y_coordinate", "projection_x_coordinate")
    for name, units in (("temperature", "K"), ("wind_speed", "m s-1")):
        assert data[name].dims == ("time", "realization", *plane)
        assert data[name].shape == (3, 12, 200, 200)
        assert data[f"{name}_observed"].dims == ("time", *plane)
        assert data[name].attrs["units"] == data[f"{name}_observed"].attrs["units"] == units
        standard = data[name].attrs["standard_name"]
        assert data[f"{name}_observed"].attrs["standard_name"] == standard
    assert data["land"].dims == data["roughness"].dims == plane
    assert 0.2 < float(data["land"].mean()) < 0.8
    assert all(not variable.isnull().any() for variable in data.data_vars.values())
    assert float(data["wind_speed"].min()) >= 0
    stamps = [str(time)[:16] for time in data["time"].values]
    assert stamps == [f"2017-06-0{day}T15:00" for day in (2, 3, 4)]
    lead = data["time"] - data["forecast_reference_time"]
    assert bool((lead == np.timedelta64(12, "h")).all())
    assert np.array_equal(data["realization"], np.arange(12))


def test_improver_is_on_a_plane_in_metres(data_dir: Path) -> None:
    data = dataset("improver_uk")
    for axis in ("projection_y_coordinate", "projection_x_coordinate"):
        assert data[axis].attrs["units"] == "m"
        np.testing.assert_array_equal(np.diff(data[axis]), 2000.0)
    for name in data.data_vars:
        mapping = data[data[name].attrs["grid_mapping"]]
        assert mapping.attrs["grid_mapping_name"] == "lambert_azimuthal_equal_area"
    assert "lat" not in data.variables


def test_improver_cases_go_with_their_analyses(data_dir: Path) -> None:
    data = dataset("improver_uk")
    error = data["temperature"].mean("realization").values - data["temperature_observed"].values
    other = data["temperature"].mean("realization").values - np.roll(
        data["temperature_observed"].values, 1, axis=0
    )
    assert (error**2).mean() < 0.5 * (other**2).mean()
    # Land is what is rough.
    assert float(data["roughness"].where(data["land"]).mean()) > 10 * float(
        data["roughness"].where(~data["land"]).mean()
    )


# cnrm_iberia


def test_cnrm_has_a_grid_a_part(data_dir: Path) -> None:
    data = iberia()
    sizes = {name: tuple(data[name].sizes[dim] for dim in ("time", "lat", "lon")) for name in data}
    assert sizes == {
        "historical": (1805, 8, 11),
        "scenario": (1804, 8, 11),
        "observed": (1805, 6, 8),
        "observed_upper_air": (1805, 5, 7),
    }
    assert set(data.historical) == set(data.scenario) == {"tas", "pr", "psl", "ta850", "hus850"}
    assert set(data.observed) == {"tas", "pr"}
    assert set(data.observed_upper_air) == {"psl", "ta850", "hus850"}
    for part in data:
        assert set(data[part].dims) == {"time", "lat", "lon"}
        assert all(not variable.isnull().any() for variable in data[part].data_vars.values())
    assert data.historical["time"].equals(data.observed["time"])
    assert data.historical["lat"].equals(data.scenario["lat"])
    assert "1805" in repr(data)
    assert len(repr(data)) < 400
    assert xr.DataTree.from_dict(dict(data))["observed_upper_air/psl"].shape == (1805, 5, 7)
    with pytest.raises(KeyError, match="future"):
        data["future"]


def test_cnrm_rain_is_never_negative(data_dir: Path) -> None:
    data = iberia()
    with xr.open_dataset(data_dir / "cnrm_iberia" / "ncep_r1_djf.nc") as raw:
        values = raw["pr"].values
    assert (values < 0).sum() == 41372
    assert values.min() > -1e-4
    assert float(data.observed["pr"].min()) == 0
    np.testing.assert_array_equal(data.observed["pr"].values[values >= 0], values[values >= 0])


@pytest.mark.parametrize(("name", "expected", "digits"), [("tas", 1.057, 3), ("pr", 0.86, 2)])
def test_cnrm_has_the_reference_error(
    name: str, expected: float, digits: int, data_dir: Path
) -> None:
    data = iberia()
    model, observed = data.historical[name], data.observed[name]
    inside = observed.sel(lat=slice(model["lat"].min(), model["lat"].max()))
    inside = inside.sel(lon=slice(model["lon"].min(), model["lon"].max()))
    assert inside.sizes["lat"] * inside.sizes["lon"] == 40
    verified = slice("1992-11", "2002-02")
    there = model.sel(time=verified).astype(float).interp(lat=inside["lat"], lon=inside["lon"])
    # Between two samples of one size this is the Wasserstein-1 distance.
    sample, truth = np.sort(there.values, axis=0), np.sort(inside.sel(time=verified).values, axis=0)
    assert round(float(np.abs(sample - truth).mean()), digits) == expected


# ersst


def test_ersst_ascends_and_knows_its_land(data_dir: Path) -> None:
    data = dataset("ersst")
    assert data["sst"].dims == ("time", "lat", "lon")
    assert data["sst"].shape == (128, 89, 180)
    assert data["sst"].attrs["units"] == "degC"
    assert (data["lat"].values[0], data["lat"].values[-1]) == (-88.0, 88.0)
    assert [str(data["time"].values[i])[:10] for i in (0, -1)] == ["2010-01-01", "2020-08-01"]
    assert np.array_equal(data["sst"].isnull().all("time"), data["land"])
    assert np.array_equal(data["sst"].isnull().any("time"), data["land"])
    assert float(data["land"].mean()) == pytest.approx(0.314, abs=5e-4)
    # Right way up: the equatorial Pacific is warm, Siberia and the South Pole are land.
    assert float(data["sst"].sel(lat=0, lon=160).min()) > 25
    assert bool(data["land"].sel(lat=60, lon=100))
    assert bool(data["land"].sel(lat=-88, lon=0))
    assert not bool(data["land"].sel(lat=88, lon=0))


def test_ersst_has_the_reference_errors(data_dir: Path) -> None:
    sst = dataset("ersst")["sst"].astype(float)
    sea = (sst >= -1.7).all("time")
    assert int(sea.sum()) == 8361
    fit = sst.sel(time=slice("2010", "2017")).groupby("time.month").mean()
    anomaly = (sst.groupby("time.month") - fit).where(sea)
    test = anomaly.sel(time=slice("2018-01", "2020-08"))
    assert test.sizes["time"] == 32
    lat = sst["lat"]
    weights = lat.copy(data=np.cos(np.deg2rad(lat.values)))

    def rmse(error: xr.DataArray) -> float:
        return float(np.sqrt((error**2).weighted(weights).mean().item()))

    assert rmse(test) == pytest.approx(0.527, abs=6e-4)
    assert rmse(test - anomaly.shift(time=1)) == pytest.approx(0.346, abs=6e-4)
