"""`from_xarray`: coordinates by CF attributes, units and names; errors list what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scisparse.adjacency import neighbouring_sites
from scisparse.errors import GridError
from scisparse.grids import LatLonGrid, ProjectedGrid, UnstructuredGrid, from_xarray
from scisparse.grids.discovery import grid_dims
from scisparse.patterns import radius, window

xr = pytest.importorskip("xarray")
arrays = pytest.importorskip("scisparse.arrays")

NORTH, EAST = {"units": "degrees_north"}, {"units": "degrees_east"}
LAT, LON = {"standard_name": "latitude"}, {"standard_name": "longitude"}
METRES_Y = {"standard_name": "projection_y_coordinate", "units": "m"}
ROTATED = {"standard_name": "grid_latitude", "axis": "Y", "units": "degrees"}
METRES_X = {"standard_name": "projection_x_coordinate", "units": "m"}


def field(y: Any, x: Any, y_attrs: dict[str, str], x_attrs: dict[str, str], names: str) -> Any:
    """Zeros [y, x] with one-dimensional coordinates of the given names and attributes."""
    first, second = names.split()
    coords = {first: (first, y, y_attrs), second: (second, x, x_attrs)}
    return xr.DataArray(np.zeros((len(y), len(x))), dims=(first, second), coords=coords)


@pytest.mark.parametrize(
    ("names", "y_attrs", "x_attrs"),
    [
        ("a b", LAT, LON),
        ("a b", NORTH, EAST),
        ("a b", {"axis": "Y", "units": "degrees"}, {"axis": "X", "units": "degree"}),
        ("Y X", {"standard_name": "latitude", "units": "degree_north"}, EAST),
        ("lat lon", {}, {}),
        ("latitude Longitude", {"units": "degrees"}, {}),
        ("lon lat", LAT, LON),
        ("y lon", NORTH, {}),
    ],
)
def test_latitude_and_longitude_are_found(
    names: str, y_attrs: dict[str, str], x_attrs: dict[str, str]
) -> None:
    expected = LatLonGrid.from_degrees([30, 20], [5, 6, 7])
    data = field([30, 20], [5, 6, 7], y_attrs, x_attrs, names)
    assert from_xarray(data) == expected
    assert from_xarray(data.transpose()) == expected
    assert from_xarray(data.expand_dims(time=3)) == expected
    assert from_xarray(data.to_dataset(name="t2m")) == expected
    assert from_xarray(data.coords.to_dataset()) == expected


def test_radians_are_taken_as_they_are() -> None:
    data = field([0.5, 0.7], [1, 2], {"units": "radians"}, {"units": "radian"}, "lat lon")
    assert from_xarray(data) == LatLonGrid([0.5, 0.7], [1, 2])


@pytest.mark.parametrize("unit", ["m", "km", "Metres"])
def test_projection_coordinates_are_in_metres(unit: str) -> None:
    scale = 1000 if unit == "km" else 1
    attrs = METRES_Y | {"units": unit}, METRES_X | {"units": unit}
    assert from_xarray(field([1, 2], [5, 8], *attrs, "a b")) == ProjectedGrid(
        np.array([1, 2]) * scale, np.array([5, 8]) * scale
    )
    by_axis = {"axis": "Y", "units": unit}, {"axis": "X", "units": unit}
    assert isinstance(from_xarray(field([1, 2], [5, 8], *by_axis, "a b")), ProjectedGrid)


def test_projected_data_keep_their_latitude_and_longitude() -> None:
    data = field([1, 2], [5, 6, 8], METRES_Y, METRES_X, "y x")
    lat, lon = np.random.default_rng(0).uniform(0, 80, (2, 2, 3))
    data = data.assign_coords(nav_lat=(("y", "x"), lat), nav_lon=(("x", "y"), lon.T))
    grid = from_xarray(data)
    assert isinstance(grid, ProjectedGrid)
    np.testing.assert_allclose(np.rad2deg(grid.lat), lat.ravel())
    np.testing.assert_allclose(np.rad2deg(grid.lon), lon.ravel())


def test_coordinates_that_share_a_dim_are_points() -> None:
    coords = {"clat": ("cell", [0.1, 0.2], {"units": "radian"}), "clon": ("cell", [60.0, 90.0])}
    grid = from_xarray(xr.DataArray([1.0, 2.0], dims="cell", coords=coords))
    assert grid == UnstructuredGrid([0.1, 0.2], np.deg2rad([60, 90]))
    assert grid.dims == ("cell",)


def test_coordinates_among_the_variables_are_found() -> None:
    data = xr.Dataset({"lat": ("cell", [1.0, 2.0]), "lon": ("cell", [3.0, 4.0])})
    assert isinstance(from_xarray(data.assign(t=("cell", [5.0, 6.0]))), UnstructuredGrid)


def test_bounds_are_no_coordinates() -> None:
    data = field([1, 2], [3, 4], LAT | {"bounds": "lat_b"}, LON, "lat lon").to_dataset(name="t")
    data["lat_b"] = (("lat", "nv"), np.zeros((2, 2)), LAT)
    assert isinstance(from_xarray(data), LatLonGrid)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("reanalysis/sst.mnmean.nc", "LatLonGrid(89 x 180, lat 88 to -88, lon 0 to 358, periodic)"),
        ("reanalysis/2t-era5.nc", "LatLonGrid(73 x 144, lat -90 to 90, lon 0 to 357.5, periodic)"),
        ("nmme_south_asia/CCSM4.PRCP.nc", "LatLonGrid(36 x 41, lat 0 to 35, lon 60 to 100)"),
        (
            "improver_uk/landmask.nc",
            "ProjectedGrid(200 x 200, y -636000 to -238000 m, x -358000 to 40000 m)",
        ),
        (
            "unstructured/psyplot_icon_test.nc",
            "UnstructuredGrid(5120 points, lat -87.7812 to 87.7812)",
        ),
        ("masks/lsm_O96.nc", "UnstructuredGrid(40320 points, lat -89.2842 to 89.2842)"),
    ],
)
def test_grids_of_real_files(data_dir: Path, file: str, expected: str) -> None:
    with xr.open_dataset(data_dir / file, decode_times=False) as data:
        assert repr(from_xarray(data)) == expected


def test_two_grids_in_one_file_are_told_apart_by_variable(data_dir: Path) -> None:
    with xr.open_dataset(data_dir / "cnrm_iberia" / "ncep_r1_djf.nc", decode_times=False) as data:
        assert from_xarray(data["tas"]).shape == (6, 8)
        assert from_xarray(data[["psl"]]).shape == (5, 7)
        with pytest.raises(GridError, match=r"2 latitude coordinates \['lat', 'lat_pl'\]; select"):
            from_xarray(data)


def curvilinear_on_plane(plain: bool) -> Any:
    """Latitude and longitude on (y, x), with or without numbers for the rows and columns."""
    lat, lon = np.random.default_rng(0).uniform(0, 80, (2, 3, 4))
    plane = {"latitude": (("y", "x"), lat), "longitude": (("y", "x"), lon)}
    data = xr.Dataset({"t": (("time", "y", "x"), np.arange(24.0).reshape(2, 3, 4))}, plane)
    return data.assign_coords(y=[0, 1, 2], x=[5, 6, 7, 8]) if plain else data


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("index", [False, True])
def test_curvilinear_grids_are_points_once_stacked(plain: bool, index: bool) -> None:
    """The remedy of the error, by its own words."""
    data = curvilinear_on_plane(plain)
    remedy = r"stack\(cell=\('y', 'x'\), create_index=False\)"
    with pytest.raises(GridError, match="must be one-dimensional.*" + remedy):
        from_xarray(data)
    stacked = data.stack(cell=("y", "x"), create_index=index)
    grid = from_xarray(stacked)
    lat, lon = (np.deg2rad(data[name].values.ravel()) for name in ("latitude", "longitude"))
    assert grid == UnstructuredGrid(lat, lon)
    assert grid.dims == grid_dims(stacked) == ("cell",)
    assert from_xarray(stacked["t"]) == grid


def test_a_grid_that_is_told_for_each_time_is_read_once() -> None:
    """The remedy of the error, run: stacking times too would leave no cases."""
    data = curvilinear_on_plane(False).rename(latitude="XLAT", longitude="XLONG")
    told = data.expand_dims(Time=2).rename(time="lead")
    told = told.assign_coords({n: told[n].expand_dims(Time=2) for n in ("XLAT", "XLONG")})
    with pytest.raises(GridError, match=r"are told along \['Time'\]") as info:
        from_xarray(told)
    single = eval(str(info.value).rsplit(": ", 1)[1], {"data": told})
    xr.testing.assert_equal(single["XLAT"], data["XLAT"])
    assert grid_dims(single.stack(cell=("y", "x"), create_index=False)) == ("cell",)


def test_index_of_a_plane_may_be_projected_once_it_has_units() -> None:
    data = curvilinear_on_plane(True)
    with pytest.raises(GridError, match="; set units of 'y' and 'x' if projected"):
        from_xarray(data)
    for name in ("y", "x"):
        data[name].attrs["units"] = "km"
    assert isinstance(from_xarray(data), ProjectedGrid)


def curvilinear() -> Any:
    return xr.DataArray(
        np.zeros((2, 2)),
        dims=("j", "i"),
        coords={"lat": (("j", "i"), np.eye(2)), "lon": (("j", "i"), np.eye(2))},
    )


def in_one_dim() -> Any:
    coords = {"y": ("p", [0], METRES_Y), "x": ("p", [0], METRES_X)}
    return xr.DataArray([0.0], dims="p", coords=coords)


ERRORS: dict[str, tuple[Any, str]] = {
    "no grid": (xr.DataArray([1.0], dims="t", coords={"t": [0]}), "has no grid: .* among .'t'."),
    "nothing": (xr.DataArray([1.0]), "among no coordinates; set standard_name"),
    "half": (field([1], [2], LAT, {}, "a b"), "latitude 'a', longitude missing"),
    "curvilinear": (curvilinear(), r"latitude 'lat' \('j', 'i'\).* stack the two dims"),
    "rotated": (field([1], [2], ROTATED, {}, "lat lon"), "latitude missing"),
    "lat units": (field([1], [2], {"units": "m"}, {}, "lat lon"), "`lat` has units 'm', which"),
    "no units": (field([1], [2], {}, {}, "y x"), "`y` has units missing, .* set attrs"),
    "y units": (field([1], [2], METRES_Y | {"units": "ft"}, METRES_X, "y x"), "units 'ft'"),
    "text": (field(["a"], [2], LAT, LON, "lat lon"), r"`lat` \(dtype .*\) must hold numbers"),
    "one dim": (in_one_dim(), "must lie on a dim of their own each"),
}  # fmt: skip


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_what_was_found(case: str) -> None:
    data, message = ERRORS[case]
    with pytest.raises(GridError, match=message):
        from_xarray(data)


# -- masks -------------------------------------------------------------------------------------


def lat_lon_mask() -> Any:
    """A global mask, and the grid of a part of it."""
    rng = np.random.default_rng(0)
    coords = {"lat": np.linspace(-80, 80, 9), "lon": np.arange(16) * 22.5}
    return xr.DataArray(rng.random((9, 16)) < 0.5, coords, ("lat", "lon"))


def points_mask(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    coords = {"lat": ("cell", rng.uniform(-80, 80, 40)), "lon": ("cell", rng.uniform(0, 360, 40))}
    return xr.DataArray(rng.random(40) < 0.5, coords, "cell")


def plane_mask() -> Any:
    mask = field(np.arange(5) * 2e3, np.arange(7) * 2e3, METRES_Y, METRES_X, "y x")
    return mask.copy(data=np.random.default_rng(1).random((5, 7)) < 0.5)


FORMS: dict[str, Any] = {
    "same": lambda mask: mask,
    "transposed": lambda mask: mask.transpose(),
    "flipped": lambda mask: mask.isel({mask.dims[0]: slice(None, None, -1)}),
    "flipped and transposed": lambda mask: mask[::-1, ..., ::-1].transpose(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [lat_lon_mask, plane_mask])
def test_masks_are_matched_by_their_coordinates(make: Any, form: str) -> None:
    mask = make()
    grid = from_xarray(mask)
    expected = grid.with_mask(mask.values)
    assert grid.with_mask(FORMS[form](mask)) == expected
    part = from_xarray(mask[1:4, 2:])
    assert part.with_mask(FORMS[form](mask)) == part.with_mask(mask[1:4, 2:].values)


def test_masks_of_longitudes_in_another_form() -> None:
    mask = lat_lon_mask()
    west = mask.assign_coords(lon=(mask["lon"] + 180.0) % 360.0 - 180.0).sortby("lon")
    grid = from_xarray(mask)
    assert grid.with_mask(west) == grid.with_mask(mask.values)
    single = west.assign_coords(lat=west["lat"].astype("f4"), lon=west["lon"].astype("f4"))
    assert grid.with_mask(single) == grid.with_mask(mask.values)
    axes = np.deg2rad(mask["lat"].values), np.deg2rad(mask["lon"].values)
    assert LatLonGrid(*axes, west) == grid.with_mask(mask.values)


def test_masks_of_points_in_another_order() -> None:
    mask = points_mask()
    grid, order = from_xarray(mask), np.random.default_rng(1).permutation(40)
    assert grid.with_mask(mask[order]) == grid.with_mask(mask.values)
    twice = xr.concat([mask, ~mask], "cell")  # where points repeat, their order counts
    assert from_xarray(twice).with_mask(twice) == from_xarray(twice).with_mask(twice.values)


def test_masks_that_do_not_fit_are_named() -> None:
    mask = lat_lon_mask()
    grid = from_xarray(mask)
    with pytest.raises(GridError, match=r"`mask` is on .*, which lacks 1 of 9 coordinates of Lat"):
        grid.with_mask(mask[1:])
    with pytest.raises(GridError, match="which lacks 16 of 16 coordinates"):
        grid.with_mask(mask.assign_coords(lon=mask["lon"] + 1.0))
    with pytest.raises(GridError, match=r"`mask` has dims \['time'\] beside those of its grid"):
        grid.with_mask(mask.expand_dims(time=2))
    with pytest.raises(GridError, match=r"whose points are not known .* or take .values in the"):
        grid.with_mask(mask.drop_vars("lat"))
    with pytest.raises(GridError, match=r"`mask` is on Unstr.* but the grid is LatLonGrid"):
        grid.with_mask(points_mask())
    with pytest.raises(GridError, match=r"`mask` \(dtype float64\) must be boolean"):
        grid.with_mask(mask.astype(float))


def test_dims_of_the_grid_come_in_the_order_of_its_axes() -> None:
    data = field([30, 20], [5, 6, 7], LAT, LON, "a b").expand_dims(time=3).transpose("b", ...)
    assert grid_dims(data) == ("a", "b")
    assert grid_dims(field([1, 2], [5, 8], METRES_Y, METRES_X, "north east")) == ("north", "east")
    coords = {"lat": ("cell", [0.1, 0.2]), "lon": ("cell", [60.0, 90.0])}
    assert grid_dims(xr.DataArray([1.0, 2.0], dims="cell", coords=coords)) == ("cell",)


@pytest.mark.parametrize("wrong", [[1.0], None, "t2m", np.zeros((2, 3))])
def test_only_xarray_objects_have_a_grid(wrong: object) -> None:
    with pytest.raises(GridError, match=r"`data` \(\w+\) must be a DataArray or a Dataset"):
        from_xarray(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("radians", [False, True])
def test_latitudes_beyond_the_pole_are_named_in_degrees(sign: float, radians: bool) -> None:
    turn = np.pi / 180.0 if radians else 1.0
    lat = {"units": "radians"} if radians else NORTH
    data = field(sign * turn * np.array([80.0, 90.0, 100.0]), [0.0, 5.0], lat, {}, "lat lon")
    match = "`lat` has a latitude of 100 degrees, which must be at most 90; check its values"
    with pytest.raises(GridError, match=match):
        from_xarray(data)
    with pytest.raises(GridError, match=match):
        from_xarray(data.isel(lon=0, drop=True).assign_coords(lon=("lat", [0.0, 1.0, 2.0])))


def test_degrees_without_units_on_y_and_x_are_told_what_to_set() -> None:
    data = field([10.0, 20.0], [0.0, 5.0], {}, {}, "Y X")
    with pytest.raises(GridError, match=r"`Y` has units missing, .* and 'degrees_north' where it"):
        from_xarray(data)
    data["Y"].attrs["units"] = "degrees_north"
    data["X"].attrs["units"] = "degrees_east"
    assert from_xarray(data).shape == (2, 2)
    data = field([10.0, 20.0], [0.0, 5.0], {"units": "m"}, {}, "Y X")
    with pytest.raises(GridError, match=r"`X` has units missing, .* and 'degrees_east' where it"):
        from_xarray(data)


@pytest.mark.parametrize("seed", range(4))
def test_a_region_across_the_meridian_where_an_axis_starts(seed: int) -> None:
    """Sorted from 0 to 360, or from -180 to 180, it is cut in two; its cells stay as they are."""
    rng = np.random.default_rng(seed)
    steps = rng.uniform(5.0, 7.0, rng.integers(3, 9))
    for zero, turn in ((0.0, 0.0), (180.0, 180.0)):  # Greenwich and the date line
        lon = zero - steps.sum() / 2 + np.concatenate([[0.0], np.cumsum(steps)])
        whole = field([-5.0, 0.0, 20.0], lon, NORTH, EAST, "lat lon")
        cut = whole.assign_coords(lon=(lon + turn) % 360.0 - turn).sortby("lon")
        grid, cut_grid = from_xarray(whole), from_xarray(cut)
        assert isinstance(cut_grid, LatLonGrid)
        assert grid.periodic == cut_grid.periodic == (False, False)
        areas = arrays.Frame.of(whole).wrap(grid.areas.reshape(grid.shape), [], whole)
        places = whole["lon"].copy(data=(lon + turn) % 360.0 - turn)
        in_order = areas.assign_coords(lon=places).sortby("lon")
        np.testing.assert_allclose(cut_grid.areas.reshape(grid.shape), in_order, rtol=1e-9)
        with pytest.raises(GridError, match=r"no neighbours; start them after the jump") as info:
            window(cut_grid, 3)
        remedy = str(info.value).split("where their dim is 'lon' with ")[1]
        turned = from_xarray(eval(remedy, {"data": cut}))
        assert torch.equal(window(turned, 3).col, window(grid, 3).col)
        smooth = radius(cut_grid, 7e5)
        with pytest.raises(GridError, match="start them after the jump"):
            neighbouring_sites(smooth)


def test_longitudes_all_around_close_wherever_they_start() -> None:
    """Also stretched ones; a wide gap does not, wherever it lies."""
    rng = np.random.default_rng(5)
    stretched = np.cumsum(1.0 + 0.6 * np.sin(np.arange(24) * np.pi / 12))
    for steps, closes in (
        (rng.uniform(1.0, 1.4, 9), True),
        (stretched[1:] - stretched[:-1], True),
        (np.array([1.0, 1.0, 1.0, 2.0, 1.0, 1.0]), False),
    ):
        lon = np.cumsum(steps) / steps.sum() * 360.0
        around = (field([1.0, 2.0], lon, NORTH, EAST, "lat lon")).assign_coords(k=("lon", lon))
        widths = []
        for start in range(lon.size):
            turned = around.roll(lon=start, roll_coords=True)
            grid = from_xarray(turned)
            assert grid.periodic == (False, closes)
            widths.append(grid.areas.reshape(grid.shape)[:, np.argsort(turned["k"].values)])
        np.testing.assert_allclose(widths, np.broadcast_to(widths[0], np.shape(widths)), rtol=1e-9)
