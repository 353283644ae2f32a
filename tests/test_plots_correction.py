"""What a map of a correction compares: the same cases, at every point."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import QuadMesh

from scisparse import plots
from scisparse.errors import DataError

LAT, LON = np.array([10.0, 20.0, 30.0]), np.array([0.0, 5.0, 10.0, 15.0])
DIMS = ("time", "lead", "lat", "lon")


def forecasts(seed: int = 0) -> tuple[xr.DataArray, xr.DataArray]:
    """An ensemble of 12 months with a season, and its correction; a fifth of both is missing."""
    rng = np.random.default_rng(seed)
    season = 10.0 * np.cos(np.arange(12) * np.pi / 6.0)[:, None, None, None]
    time = np.arange("2001-01", "2002-01", dtype="datetime64[M]").astype("datetime64[ns]")
    coords = {"time": time, "lead": [1, 2], "lat": LAT, "lon": LON}
    values = season + rng.normal(280.0, 2.0, (2, 12, 2, 3, 4))
    values[rng.random(values.shape) < 0.2] = np.nan
    raw, corrected = (xr.DataArray(v, coords, DIMS, "t2m", {"units": "K"}) for v in values)
    members = xr.DataArray(rng.normal(size=5), dims="member")
    return raw + (members - members.mean()), corrected - 1.0


def shown(raw: xr.DataArray, corrected: xr.DataArray) -> list[Any]:
    """Values of the three maps, northward and eastward."""
    found: list[Any] = []
    for axes in plots.map_correction(raw, corrected).axes[:3]:
        (mesh,) = [child for child in axes.get_children() if isinstance(child, QuadMesh)]
        found.append(np.ma.filled(np.ma.asarray(mesh.get_array()), np.nan))
    return found


def expected(raw: xr.DataArray, corrected: xr.DataArray, times: list[int]) -> list[Any]:
    """The same of fields on the same coordinates, at these times."""
    first, second = (field.isel(time=times) for field in (raw.mean("member"), corrected))
    both = first.notnull() & second.notnull()
    means = [field.where(both).mean(["time", "lead"]) for field in (first, second)]
    return [*means, means[1] - means[0]]


@pytest.mark.parametrize("form", ["plain", "north first", "transposed", "renamed", "shuffled"])
@pytest.mark.parametrize("times", [list(range(12)), [0, 3, 11], [6]])
def test_means_are_of_the_cases_that_both_have(form: str, times: list[int]) -> None:
    raw, corrected = forecasts()
    part = corrected.isel(time=times)
    other = {
        "plain": part,
        "north first": part.isel(lat=slice(None, None, -1)),
        "transposed": part.transpose("lon", "time", "lat", "lead"),
        "renamed": part.rename(lat="latitude", time="valid_time"),
        "shuffled": part.isel(time=slice(None, None, -1), lead=[1, 0]),
    }[form]
    for found in (shown(raw, other), shown(other, raw)[1::-1]):
        for values, exact in zip(found, expected(raw, corrected, times), strict=False):
            np.testing.assert_allclose(values, exact, rtol=1e-12)


def test_one_time_meets_its_own() -> None:
    raw, corrected = forecasts(1)
    exact = expected(raw, corrected, [4])
    for pair in ((raw, corrected.isel(time=4)), (raw.isel(time=4), corrected)):
        np.testing.assert_allclose(shown(*pair), exact, rtol=1e-12)
    np.testing.assert_allclose(shown(raw.isel(time=4), corrected.isel(time=4)), exact, rtol=1e-12)
    for pair in (
        (raw.isel(time=3), corrected.isel(time=4)),
        (raw.isel(time=slice(4)), corrected.isel(time=4)),
        (raw.isel(time=slice(4)), corrected.isel(time=slice(4, None))),
        (raw.isel(lead=0), corrected.isel(lead=[1])),
    ):
        with pytest.raises(
            DataError, match=r"no value of '(time|lead)' in common; select the same"
        ):
            plots.map_correction(*pair)


def test_cases_that_cannot_be_matched_are_refused() -> None:
    raw, corrected = forecasts(2)
    bare = corrected.drop_vars("lead")
    for pair in (
        (raw.drop_vars("lead"), bare.isel(lead=[0, 1, 1])),
        (raw, corrected.isel(time=[0, 0, 1])),
    ):
        with pytest.raises(DataError, match=r"cannot be matched \(.*\); give both coordinates"):
            plots.map_correction(*pair)


def stamped(signed: bool, seed: int) -> tuple[xr.DataArray, xr.DataArray, list[Any]]:
    """Both of one lead time, on starts, with their valid times; and what their map shows."""
    raw, corrected = (
        field.isel(lead=[0]).assign_coords(
            time=np.arange("2001-01-01", "2001-01-13", dtype="datetime64[D]").astype("M8[ns]")
        )
        for field in forecasts(seed)
    )
    step = np.timedelta64(1 + seed, "D").astype("m8[ns]")
    told = {"standard_name": "forecast_reference_time"} if signed else {}
    both = []
    for field in (raw, corrected):
        field = field.isel(lead=0, drop=True).assign_coords(step=step)
        field = field.assign_coords(time=field["time"].assign_attrs(told))
        both.append(field.assign_coords(valid_time=("time", field["time"].values + step)))
    return both[0], both[1], expected(raw, corrected, [2, 4, 5, 11])


@pytest.mark.parametrize("signed", [True, False])
def test_starts_and_valid_times_are_matched_where_both_have_them(signed: bool) -> None:
    *pair, exact = stamped(signed, seed=int(signed))
    pair[1] = pair[1].isel(time=[2, 4, 5, 11])
    same = shown(pair[0].isel(time=4), pair[1].isel(time=1))
    forms = [
        {
            "starts": field,
            "valid times": field.swap_dims(time="valid_time"),
            "valid times alone": field.swap_dims(time="valid_time").drop_vars(["time", "step"]),
        }
        for field in pair
    ]
    for ours, raw in forms[0].items():
        for theirs, corrected in forms[1].items():
            found = shown(raw, corrected)
            for values, right in zip(found, exact, strict=True):
                np.testing.assert_allclose(values, right, rtol=1e-12, err_msg=f"{ours}, {theirs}")
            one = shown(raw, corrected.isel({corrected.dims[0]: 1}))
            np.testing.assert_allclose(one, same, rtol=1e-12, err_msg=f"{ours}, {theirs}")


@pytest.mark.parametrize("name", ["time", "date", "valid_time"])
def test_starts_are_not_taken_for_valid_times(name: str) -> None:
    raw, corrected, _ = stamped(True, 1)
    alone = corrected.swap_dims(time="valid_time").drop_vars(["time", "step"])
    alone = alone.rename(valid_time=name)
    bare = raw if name != "valid_time" else raw.drop_vars("valid_time")
    with pytest.raises(DataError, match="'time' of raw holds starts") as info:
        plots.map_correction(bare, alone)
    with pytest.raises(DataError, match="'time' of corrected holds starts"):
        plots.map_correction(alone, bare)
    if name != "valid_time":
        remedy = str(info.value).split("give raw its valid times: ")[1]
        given = shown(eval(remedy, {"raw": raw}), alone)
        np.testing.assert_allclose(given, shown(raw, corrected), rtol=1e-12)


def test_words_may_differ_but_dates_may_not() -> None:
    raw, corrected = forecasts(3)
    exact = shown(raw, corrected)
    for kind in (object, str):
        words = [np.array(word, dtype=kind) for word in ("raw", "emos")]
        pair = (raw.assign_coords(model=words[0]), corrected.assign_coords(model=words[1]))
        np.testing.assert_allclose(shown(*pair), exact, rtol=1e-12)
    for use_cftime in (False, True):
        dated = [
            each.convert_calendar("standard", use_cftime=use_cftime) for each in (raw, corrected)
        ]
        with pytest.raises(DataError, match="no value of 'time' in common"):
            plots.map_correction(dated[0].isel(time=3), dated[1].isel(time=4))


def test_points_meet_their_like_in_any_order() -> None:
    """Stations, of which two lie at one place and have one id each."""
    rng = np.random.default_rng(7)
    places = {"lat": ("id", [50.0, 51.0, 52.0, 51.0]), "lon": ("id", [5.0, 6.0, 7.0, 6.0])}
    raw = xr.DataArray(rng.normal(size=(6, 4)), places | {"id": list("abcd")}, ("time", "id"))
    corrected = raw + np.array([1.0, 2.0, 3.0, 4.0])
    for order in ([0, 3, 2, 1], [3, 0, 1, 2]):
        figure = plots.map_correction(raw, corrected[:, order])
        change = figure.axes[2].collections[0].get_array()
        np.testing.assert_allclose(np.sort(np.asarray(change)), [1.0, 2.0, 3.0, 4.0])
