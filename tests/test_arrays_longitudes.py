"""Longitudes are counted eastward, in one form whatever the convention, precision and step."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from scisparse.arrays import Frame, same_points
from scisparse.grids import LatLonGrid


@pytest.mark.parametrize(
    ("lon", "first"),
    [
        ([350.0, 355.0, 0.0, 5.0], 350.0),  # jumps at Greenwich
        ([-10.0, -5.0, 0.0, 5.0], 350.0),
        ([170.0, 175.0, 180.0, -175.0], 170.0),  # jumps at the date line
        ([170.0, 175.0, 180.0, 185.0], 170.0),
        ([-190.0, -185.0, -180.0, -175.0], 170.0),
        ([5.0, 0.0, -5.0, -10.0], 350.0),  # westward
    ],
)
def test_regions_are_not_cut_where_longitude_jumps(lon: list[float], first: float) -> None:
    data = xr.DataArray(
        np.arange(8.0).reshape(2, 4), {"lat": [1.0, 2.0], "lon": lon}, ("lat", "lon")
    )
    frame = Frame.of(data)
    assert isinstance(frame.grid, LatLonGrid)
    np.testing.assert_allclose(np.rad2deg(frame.grid.lon_axis), first + np.arange(4) * 5.0)
    assert frame.grid.periodic == (False, False)
    eastward = np.argsort(np.mod(np.array(lon) - first, 360.0))
    np.testing.assert_array_equal(frame.values(data, []), data.values[:, eastward])


@pytest.mark.parametrize("step", [0.1, 0.25, 0.3, 1 / 3, 1.40625])
def test_single_precision_longitudes_are_the_same_in_both_conventions(step: float) -> None:
    lon = (np.arange(round(30 / step)) * step - 15.0).astype(np.float32)
    data = xr.DataArray(np.zeros((1, len(lon))), {"lat": [5.0], "lon": lon}, ("lat", "lon"))
    other = data.assign_coords(lon=(lon % np.float32(360)).astype(np.float32))
    assert not np.array_equal(lon, other["lon"])
    assert Frame.of(data).grid == Frame.of(other).grid


@pytest.mark.parametrize("west", [False, True])
def test_minutes_in_single_precision_begin_at_greenwich(west: bool) -> None:
    lon = np.arange(21600) / 60.0
    lon[0] += -1e-5 if west else 1e-5
    data = xr.DataArray(np.zeros((1, 21600)), {"lat": [5.0], "lon": lon % 360.0}, ("lat", "lon"))
    frame = Frame.of(data.sortby("lon"))
    assert same_points(frame.grid, LatLonGrid.from_degrees([5.0], np.arange(21600) / 60.0))


@pytest.mark.parametrize("step", [1 / 600, 1 / 900, 1 / 3600, 1 / 10800, 1e-6])
def test_longitudes_as_fine_as_single_precision(step: float) -> None:
    lon = (np.arange(40) * step - 20 * step) % 360.0
    data = xr.DataArray(np.zeros((1, 40)), {"lat": [5.0], "lon": lon}, ("lat", "lon"))
    areas = Frame.of(data).grid.areas
    np.testing.assert_allclose(areas / areas.mean(), 1.0, atol=0.005)
