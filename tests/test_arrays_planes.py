"""Fields on a plane: latitude and longitude of the cells go along."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from postprocess_cases import PLANE, ensemble, fitted

from scisparse.arrays import Frame, with_coordinates
from scisparse.errors import GridError
from scisparse.grids import ProjectedGrid
from scisparse.verification import evaluate


def placed(field: xr.DataArray) -> xr.DataArray:
    """`field`, which lies on a plane, with latitude and longitude of every cell."""
    y, x = field["y"].values[:, None], field["x"].values
    lat, lon = 50.0 + (y + 0.1 * x) / 111e3, 8.0 + (x - 0.1 * y) / 70e3
    return field.assign_coords(lat=(("x", "y"), lat.T), lon=(("y", "x"), lon))


def field() -> xr.DataArray:
    """North first."""
    return placed(ensemble(1, axes=PLANE)[1][0, ::-1].drop_vars("time"))


def test_the_grid_has_latitude_and_longitude_in_its_order() -> None:
    data = field()
    grid = Frame.of(data).grid
    assert isinstance(grid, ProjectedGrid)
    for name, found in (("lat", grid.lat), ("lon", grid.lon)):
        expected = data[name].sortby("y").transpose("y", "x").values
        np.testing.assert_allclose(np.rad2deg(found).reshape(grid.shape), expected, rtol=1e-12)
    assert grid == Frame.of(data[::-1, ::-1].T).grid


@pytest.mark.parametrize("attrs", [{}, {"units": "degrees_north"}, {"standard_name": "latitude"}])
def test_latitudes_among_the_variables_become_coordinates(attrs: dict[str, str]) -> None:
    name = "phi" if attrs else "lat"
    data = field().rename(lat=name).to_dataset(name="t2m")
    data["lat_bounds"] = data[name].variable.expand_dims("corner")
    data["lat_bounds"].attrs = {"units": "degrees_north"}
    data[name].attrs = {**attrs, "bounds": "lat_bounds"}
    data = data.reset_coords([name, "lon"])
    assert {*with_coordinates(data).data_vars} == {"t2m", "lat_bounds"}
    data = data.drop_vars("lon").assign_coords(latitude=("y", np.arange(4.0)))
    found = {*with_coordinates(data).data_vars} - {"t2m", "lat_bounds"}
    assert found == (set() if "standard_name" in attrs else {name})


@pytest.mark.parametrize("target", ["lat", "centre_lat"])
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("attrs", [{"units": "degrees_north"}, {"standard_name": "latitude"}])
def test_latitudes_of_tracks_are_no_places(target: str, given: bool, attrs: dict[str, str]) -> None:
    rng = np.random.default_rng(0)
    tracks = xr.Dataset({target: (("member", "time"), rng.normal(20.0, 1.0, (4, 9)), attrs)})
    seen = tracks.isel(member=0)
    scores = evaluate(tracks, seen, target=target if given else None)
    assert scores["rmse"] > 0
    if given:  # a field beside others
        tracks["lon"] = tracks[target].assign_attrs(standard_name="longitude", units="degrees_east")
        tracks["wind"] = tracks[target].assign_attrs(standard_name="wind_speed", units="m s-1")
        xr.testing.assert_identical(evaluate(tracks, seen, target=target)["rmse"], scores["rmse"])


@pytest.mark.parametrize("dims", [("time",), ("time", "lat", "lon")])
def test_a_field_with_coordinates_may_have_the_track_of_a_storm_beside_it(
    dims: tuple[str, ...],
) -> None:
    """It lay on the points of the track, of which there are as many as times."""
    wind, rng = ensemble(5)[1], np.random.default_rng(0)
    data = wind.to_dataset(name="wind")
    for name in ("latitude", "longitude"):
        shape = [wind.sizes[dim] for dim in dims]
        data[f"centre_{name}"] = (dims, rng.normal(20.0, 1.0, shape), {"standard_name": name})
    found = with_coordinates(data)
    assert {*found.coords} == {*data.coords}
    told = data.set_coords(["centre_latitude", "centre_longitude"])
    for moved in (found["wind"], told["wind"], told["wind"].drop_attrs()):
        assert Frame.of(moved).grid == Frame.of(wind).grid
    scores = [evaluate(each.rename("wind") + 1.0, each) for each in (wind, told["wind"])]
    xr.testing.assert_identical(*(each["crps"].drop_attrs() for each in scores))


def test_latitudes_along_rows_that_are_numbered_are_not_passed_over() -> None:
    """As in files joined with what each of them repeats: numbers of rows were taken for degrees."""
    wind = ensemble(5)[1].drop_attrs()
    wind = wind.assign_coords({dim: np.arange(wind.sizes[dim]) for dim in ("lat", "lon")})
    for name in ("latitude", "longitude"):
        values = wind.dims, np.full(wind.shape, 20.0), {"standard_name": name}
        wind = wind.assign_coords({f"mass_{name}": values})
    with pytest.raises(GridError, match="mass_latitude"):
        Frame.of(wind)


@pytest.mark.parametrize("dims", [("time",), ("member", "time"), ("time", "x"), ("lead", "y", "x")])
def test_latitudes_that_change_are_variables(dims: tuple[str, ...]) -> None:
    data = field().drop_vars(["lat", "lon"]).expand_dims(time=2, member=3, lead=2).to_dataset()
    for name in ("lat", "lon"):
        data[name] = (dims, np.zeros([data.sizes[dim] for dim in dims]))
    assert with_coordinates(data).data_vars.keys() == {"analysis", "lat", "lon"}


def test_a_target_at_points_is_no_place() -> None:
    data = xr.Dataset({name: ("cell", [1.0, 2.0]) for name in ("lat", "lon", "t2m")})
    assert with_coordinates(data, "t2m").data_vars.keys() == {"t2m"}
    assert "lat" in with_coordinates(data, "lat").data_vars


def test_predictions_keep_latitude_and_longitude_that_a_file_does_not_name() -> None:
    forecast, observed = ensemble(12, axes=PLANE)
    data = placed(forecast).to_dataset().reset_coords(["lat", "lon"])
    predicted = fitted("local", data, observed).predict(data)
    for name in ("lat", "lon"):
        xr.testing.assert_equal(
            predicted[name].variable.transpose(*data[name].dims), data[name].variable
        )


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("missing", [np.nan, np.inf, -9999.0])
def test_a_plane_may_have_cells_without_a_place(missing: float, named: bool) -> None:
    """As off the disk that a geostationary satellite sees."""
    forecast, observed = ensemble(12, axes=PLANE)
    data = placed(forecast)
    off = (data["x"] == data["x"][0]) & (data["y"] == data["y"][0])
    data = data.assign_coords({name: data[name].where(~off, missing) for name in ("lat", "lon")})
    assert Frame.of(data).grid == Frame.of(forecast).grid
    file = data.to_dataset() if named else data.to_dataset().reset_coords(["lat", "lon"])
    predicted = fitted("local", file, observed).predict(file)
    xr.testing.assert_equal(
        predicted["t2m_mean"].drop_vars(["lat", "lon"]),
        fitted("local", forecast, observed).predict(forecast)["t2m_mean"],
    )
    np.testing.assert_array_equal(predicted["lat"].transpose(*data["lat"].dims), data["lat"])
