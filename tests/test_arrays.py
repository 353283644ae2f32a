"""The door between xarray and arrays: every form of a field is one field."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from postprocess_cases import GLOBAL, PLANE, ensemble, points

from scisparse.arrays import Axes, Frame, add_history, find_axes, find_dim, same_points
from scisparse.errors import DataError, GridError
from scisparse.grids import EARTH_RADIUS, LatLonGrid, ProjectedGrid, UnstructuredGrid
from scisparse.units import check_units


def named(*dims: str) -> xr.DataArray:
    return xr.DataArray(np.zeros((1,) * len(dims)), dims=dims)


@pytest.mark.parametrize(
    ("dim", "role"),
    [
        *((name, "time") for name in ("time", "valid_time", "forecast_reference_time", "S", "T")),
        *((name, "member") for name in ("member", "realization", "number", "ensemble", "M")),
        *((name, "lead") for name in ("lead_time", "step", "forecast_period", "L")),
    ],
)
def test_dims_are_found_by_name(dim: str, role: str) -> None:
    assert find_dim(named("x", dim, "y"), role) == dim
    others = {"time", "member", "lead"} - {role}
    assert [find_dim(named("x", dim, "y"), other) for other in others] == [None, None]


@pytest.mark.parametrize(
    ("attrs", "role"),
    [
        ({"standard_name": "time"}, "time"),
        ({"standard_name": "realization"}, "member"),
        ({"standard_name": "forecast_period"}, "lead"),
        ({"axis": "T"}, "time"),
        ({"axis": "E"}, "member"),
    ],
)
def test_attributes_beat_names(attrs: dict[str, str], role: str) -> None:
    decoys = ("time", "member", "step")
    data = named(*decoys, "odd").assign_coords(odd=("odd", [1], attrs))
    assert find_dim(data, role) == "odd"
    assert find_dim(data.to_dataset(name="v"), role) == "odd"


@pytest.mark.parametrize("dims", [("init_time", "time"), ("time", "init_time")])
def test_the_order_of_dims_does_not_choose(dims: tuple[str, str]) -> None:
    data = named(*dims, "x")
    assert find_dim(data, "time") == "time"
    assert find_dim(named(*("m" if dim == "time" else "member" for dim in dims)), "member") == (
        "member"
    )
    reference, time = {"standard_name": "forecast_reference_time"}, {"standard_name": "time"}
    both = named(*(dim.replace("time", "t") for dim in dims))
    both = both.assign_coords(init_t=("init_t", [0], reference), t=("t", [0], time))
    assert find_dim(both, "time") == "t"
    alike = data.assign_coords({dim: (dim, [0], {"axis": "T"}) for dim in dims})
    assert find_dim(alike, "time") == "time"


def test_starts_of_a_forecast_are_not_its_time() -> None:
    field, _ = ensemble(2)
    field = field.assign_coords(time=field["time"].variable.values)  # no attributes: names alone
    expanded = field.expand_dims(init_time=[0, 1])
    for data in (expanded, expanded.transpose(..., "init_time")):
        assert find_axes(data) == Axes("time", "member", ("lat", "lon"), ("init_time",))


def test_axes_of_a_forecast() -> None:
    field, observed = ensemble(2)
    field = field.expand_dims(step=[1, 2], level=[850.0])
    assert find_axes(field) == Axes("time", "member", ("lat", "lon"), ("step", "level"))
    assert find_axes(observed.isel(time=0)) == Axes(None, None, ("lat", "lon"), ())
    with pytest.raises(GridError, match="no grid: latitude missing"):
        find_axes(field.isel(lat=0, drop=True))


def roll(data: xr.DataArray, by: int) -> xr.DataArray:
    return data.isel(lon=np.roll(np.arange(data.sizes["lon"]), by))


def to_180(data: xr.DataArray) -> xr.DataArray:
    """Longitudes from -180 to 180, in rising order."""
    lon = (data["lon"] + 180.0) % 360.0 - 180.0
    return data.assign_coords(lon=lon.assign_attrs(data["lon"].attrs)).sortby("lon")


@settings(max_examples=40)
@given(
    order=st.permutations(["time", "member", "lat", "lon"]),
    flip=st.booleans(),
    by=st.integers(0, 9),
    signed=st.booleans(),
    first=st.sampled_from([0.0, 0.1, 17.25, 359.9]),
    count=st.integers(2, 10),
    dtype=st.sampled_from(["f4", "f8"]),
)
@example(["time", "member", "lat", "lon"], False, 0, True, 0.1, 7, "f4")  # rounds apart
def test_every_form_of_a_global_field_is_one_field(
    order: list[str], flip: bool, by: int, signed: bool, first: float, count: int, dtype: str
) -> None:
    lon = (first + np.arange(count) * 360.0 / count) % 360.0
    axes = {"lat": np.array([-40.1, 0.0, 33.3]), "lon": lon[np.argsort(lon)]}
    field, _ = ensemble(2, 3, axes={k: v.astype(dtype) for k, v in axes.items()})
    other = field.transpose(*order).isel(lat=slice(None, None, -1 if flip else 1))
    other = roll(to_180(other) if signed else other, by)
    frames = Frame.of(field), Frame.of(other)
    if dtype == "f8":
        assert frames[0].grid == frames[1].grid  # bit for bit
    assert same_points(frames[0].grid, frames[1].grid)  # -180 to 180 rounds otherwise in single
    inside = [
        frame.values(form, ["time", "member"])
        for frame, form in zip(frames, (field, other), strict=True)
    ]
    np.testing.assert_array_equal(inside[0], inside[1])
    again = frames[1].wrap(inside[0], ["time", "member"], other)
    xr.testing.assert_identical(again, other.drop_attrs(deep=False).rename(None))


@pytest.mark.parametrize("stacked", [False, True])
def test_arrays_are_read_and_written_in_their_own_order(stacked: bool) -> None:
    coords = {"lat": [10.0, 0.0, -10.0], "lon": [0.0, 90.0, 180.0, 270.0]}
    field = xr.DataArray(np.arange(12.0).reshape(3, 4), coords, ("lat", "lon"))
    if stacked:
        field = field.stack(cell=("lat", "lon"), create_index=False)
    frame = Frame.of(field)
    other = field.isel({field.dims[0]: slice(None, None, -1)})
    inside = frame.values(field, [])
    np.testing.assert_array_equal(frame.values(other, []), inside)
    xr.testing.assert_equal(frame.wrap(inside, [], other), other)
    bare = field.drop_vars(["lat", "lon"])
    np.testing.assert_array_equal(frame.values(bare, []), inside)
    for wrong in (field.assign_coords(lat=field["lat"] + 30.0), field[:2]):
        with pytest.raises(DataError, match=r"the array is on .* but .* is needed"):
            frame.values(wrong, [])


def test_projected_axes_rise_in_metres() -> None:
    data = xr.DataArray(
        np.arange(6.0).reshape(2, 3),
        {
            "north": (
                "north",
                [4.0, 2.0],
                {"standard_name": "projection_y_coordinate", "units": "km"},
            ),
            "east": ("east", [1.0, 3.0, 5.0], {"axis": "X", "units": "km"}),
        },
        ("north", "east"),
    )
    frame = Frame.of(data.transpose("east", "north"))
    assert frame.grid == ProjectedGrid([2000.0, 4000.0], [1000.0, 3000.0, 5000.0])
    assert frame.space == ("north", "east")
    np.testing.assert_array_equal(frame.values(data, []), [[3.0, 4.0, 5.0], [0.0, 1.0, 2.0]])
    xr.testing.assert_identical(frame.wrap(frame.values(data, []), [], data), data)


def test_points_are_the_same_in_both_conventions() -> None:
    _, observed = ensemble(2)
    data = points(observed)
    lon = (data["lon"] + 180.0) % 360.0 - 180.0
    other = data.assign_coords(lon=lon.assign_attrs(data["lon"].attrs))
    frames = Frame.of(data), Frame.of(other)
    assert isinstance(frames[0].grid, UnstructuredGrid)
    assert frames[0].grid == frames[1].grid
    assert frames[0].space == ("point",)
    np.testing.assert_array_equal(frames[0].values(data, ["time"]), data.values)
    assert frames[0].grid.areas.sum() == pytest.approx(4 * np.pi * EARTH_RADIUS**2, rel=1e-6)


@pytest.mark.parametrize(
    ("lat", "lon", "area"),
    [
        # 1 degree of a great circle between neighbours; one point has none
        ([0.0, 0.0, 0.0], [10.0, 11.0, 12.0], np.deg2rad(1.0) ** 2 * EARTH_RADIUS**2),
        ([0.0, 0.0, 0.0, 0.0], [10.0, 11.0, 12.0, 12.0], np.deg2rad(1.0) ** 2 * EARTH_RADIUS**2),
        ([50.0], [10.0], 1.0),
    ],
)
def test_stations_count_equally(lat: list[float], lon: list[float], area: float) -> None:
    attrs = {"units": "degrees_north"}, {"units": "degrees_east"}
    coords = {"lat": ("station", lat, attrs[0]), "lon": ("station", lon, attrs[1])}
    frame = Frame.of(xr.DataArray(np.zeros(len(lat)), coords, ("station",)))
    np.testing.assert_allclose(frame.grid.areas, area, rtol=1e-4)


def test_wrap_keeps_coordinates_with_their_attributes() -> None:
    field, _ = ensemble(3)
    field = field.assign_coords(
        start=("time", np.arange(3), {"standard_name": "forecast_reference_time"}),
        height=((), 2.0, {"units": "m", "positive": "up"}),
        region=(("lat", "lon"), np.arange(24).reshape(4, 6), {"long_name": "region"}),
        model=("member", list("aabb")),
    ).transpose("lon", "member", "lat", "time")
    frame = Frame.of(field)
    result = frame.wrap(frame.values(field.mean("member"), ["time"]), ["time"], field)
    xr.testing.assert_identical(result, field.mean("member", keep_attrs=False).rename(None))
    assert {*result.coords} == {"time", "lat", "lon", "start", "height", "region"}
    quantile = frame.wrap(np.zeros((2, 3, 4, 6)), ["quantile", "time"], field)
    assert quantile.dims == ("quantile", "lon", "lat", "time")


def test_missing_leading_dims_have_length_one() -> None:
    _, observed = ensemble(2)
    values = Frame.of(observed).values(observed.isel(time=0), ["time", "step"])
    assert values.shape == (1, 1, 4, 6)
    assert values.dtype == np.float64


@pytest.mark.parametrize("kind", ["global", "plane", "points"])
def test_a_frame_on_another_grid_names_both(kind: str) -> None:
    _, data = ensemble(2, axes=PLANE if kind == "plane" else GLOBAL)
    dim = "x" if kind == "plane" else "lon"
    if kind == "points":
        data = points(data)
    grid = Frame.of(data).grid
    moved = data.assign_coords({dim: data[dim] + (1000.0 if kind == "plane" else 1.0)})
    moved[dim].attrs = data[dim].attrs
    apart = "1 km" if kind == "plane" else r"1\d\d km"
    match = rf"the truth is on .*but {re.escape(repr(grid))} is needed \(points are up to {apart}"
    with pytest.raises(DataError, match=match):
        Frame.on(moved, grid, "the truth")
    smaller = data.isel({data.dims[-1]: slice(0, 3)})
    remedy = "select the same points, or" if kind == "points" else "interpolate it to that grid"
    with pytest.raises(DataError, match=f"is needed; {remedy}"):
        Frame.on(smaller, grid, "the truth")


def test_stations_and_a_grid_are_brought_together_at_the_stations() -> None:
    _, field = ensemble(2)
    stations = points(field)[..., :5].assign_coords(lat=("point", np.linspace(-40.0, 40.0, 5)))
    remedy = r"first, for example with \.interp\(lat=points\['lat'\], lon=points\['lon'\]\)"
    with pytest.raises(DataError, match=remedy):
        Frame.on(stations, Frame.of(field).grid, "the observation")
    there = field.interp(lat=stations["lat"], lon=stations["lon"])
    assert Frame.on(stations, Frame.of(there).grid, "the observation").grid.size == 5
    # Cells next to the stations keep their own coordinates.
    near = field.sel(lat=stations["lat"], lon=stations["lon"], method="nearest")
    with pytest.raises(DataError, match="for the same stations, give both the same coordinates"):
        Frame.on(stations, Frame.of(near).grid, "the observation")


@pytest.mark.parametrize("names", [["lat"], ["lat", "lon"]])
def test_single_coordinates_are_given_dims(names: list[str]) -> None:
    """The remedy of the error, run."""
    _, field = ensemble(2)
    single = field.isel(dict.fromkeys(names, 1))
    with pytest.raises(GridError, match=re.escape(f"with .expand_dims({names})")):
        Frame.of(single)
    assert Frame.of(single.expand_dims(names)).grid.size == (6 if len(names) == 1 else 1)


def test_a_frame_on_the_known_grid_forgives_single_precision() -> None:
    axes = {"lat": np.linspace(-75.3, 75.3, 4), "lon": np.arange(6) * 60.0 + 0.7}
    data, _ = ensemble(2, axes=axes)
    single, _ = ensemble(2, axes={name: axis.astype(np.float32) for name, axis in axes.items()})
    frame = Frame.on(single, Frame.of(data).grid, "the forecast")
    assert frame.grid is not Frame.of(single).grid
    np.testing.assert_array_equal(frame.values(single, ["time", "member"]), data.values)


def test_grids_of_another_kind_are_not_the_same() -> None:
    flat = ProjectedGrid([0.0, 1.0], [0.0, 1.0])
    assert not same_points(LatLonGrid.from_degrees([0.0, 1.0], [0.0, 1.0]), flat)
    assert same_points(flat, ProjectedGrid([0.0, 1.0], [0.0, 1.5]))  # half a metre


def with_lat(values: list[float]) -> dict[str, Any]:
    return {"lat": ("lat", values), "lon": ("lon", [0.0, 10.0, 20.0])}


@pytest.mark.parametrize(
    ("coords", "match"),
    [
        (
            with_lat([0.0, 20.0, 10.0]),
            r"the forecast: coordinate 'lat' must strictly rise or strictly fall, but values 1 and "
            r"2 are 20 and 10; sort it with \.sortby\('lat'\)",
        ),
        (with_lat([10.0, 10.0, 20.0]), "values 0 and 1 are 10 and 10; .*keep one of each"),
        (
            {"lat": ("lat", [1.0, 2.0, 3.0]), "lon": ("lon", [0.0, 20.0, 10.0])},
            "coordinate 'lon' must .* values 1 and 2 are 20 and 10",
        ),
        (
            {"lat": ("lat", [1.0, 2.0, 3.0]), "lon": ("lon", [0.0, 2.0, 4.0, -4.0, -2.0])},
            "coordinate 'lon' must .* values 2 and 3 are 4 and -4",
        ),
        (
            {"lat": ("lat", [1.0, 2.0, 3.0]), "lon": ("lon", [0.0, 180.0, 360.0])},
            "the forecast: `lon_axis` .*drop the column that repeats the first meridian",
        ),
        (
            with_lat([80.0, 90.0, 100.0]),
            "the forecast: `lat` has a latitude of 100 deg.* at most 90",
        ),
        (with_lat([0.0, 10.0, np.nan]), "the forecast: `lat_axis` must be finite"),
        ({"lon": ("lon", [0.0, 10.0, 20.0])}, "the forecast: `data` has no grid: latitude missing"),
        (
            {
                "y": (
                    "lat",
                    [0.0, 2.0, 1.0],
                    {"standard_name": "projection_y_coordinate", "units": "m"},
                ),
                "x": (
                    "lon",
                    [0.0, 1.0, 2.0],
                    {"standard_name": "projection_x_coordinate", "units": "m"},
                ),
            },
            "the forecast: `y_axis` must strictly rise",
        ),
    ],
)
def test_axes_that_are_no_grid_are_named(coords: dict[str, Any], match: str) -> None:
    columns = len(coords["lon"][1]) if "lon" in coords else 3
    data = xr.DataArray(np.zeros((3, columns)), coords, ("lat", "lon"))
    with pytest.raises(GridError, match=match) as raised:
        Frame.of(data, "the forecast")
    assert "\n" not in str(raised.value)


def test_empty_axes_are_named() -> None:
    _, data = ensemble(2)
    with pytest.raises(GridError, match="data: dim 'lon' is empty; check the selection"):
        Frame.of(data.sel(lon=slice(1000.0, 2000.0)))


@pytest.mark.parametrize("units", [("K", "K"), ("K ", "K"), (None, "K"), ("K", None), (1, "1")])
def test_units_agree_as_far_as_both_are_known(units: tuple[Any, Any]) -> None:
    check_units("the forecast", *units)


def test_units_that_differ_are_named() -> None:
    match = r"the forecast has units 'degC' but 'K' is needed; convert it and set attrs\['units'\]"
    with pytest.raises(DataError, match=match):
        check_units("the forecast", "degC", "K")


def test_history_is_prepended_with_its_time() -> None:
    data = xr.Dataset(attrs={"title": "kept"})
    result = add_history(data, "did this", {"history": "2001: that\n2000: and that"})
    first, *rest = result.attrs["history"].splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ: did this", first)
    assert rest == ["2001: that", "2000: and that"]
    assert result.attrs["title"] == "kept"
    assert len(add_history(data, "did this", {}).attrs["history"].splitlines()) == 1
