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
