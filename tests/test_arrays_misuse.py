"""Arrays that do not fit a frame are named: what is left over is not dropped, as indexing would."""

from __future__ import annotations

import re

import numpy as np
import pytest
import xarray as xr

from scisparse import plots
from scisparse.arrays import Frame
from scisparse.errors import DataError, ShapeError

COORDS = {"time": [1, 2], "lat": [30.0, 0.0, -30.0], "lon": [0.0, 90.0, 180.0, 270.0]}
FIELD = xr.DataArray(np.arange(24.0).reshape(2, 3, 4), COORDS, tuple(COORDS))
FRAME = Frame.of(FIELD)


@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 3, 5), (2, 4, 3), (2, 12), (3, 4), (1, 2, 3, 4)])
def test_values_of_another_shape_are_not_cut_to_the_grid(shape: tuple[int, ...]) -> None:
    told = re.escape(f"`values` {list(shape)} must be [time, 3, 4], on the grid")
    with pytest.raises(ShapeError, match=told):
        FRAME.wrap(np.zeros(shape), ["time"], FIELD)


def test_points_of_another_number_are_not_cut() -> None:
    points = FIELD.stack(cell=("lat", "lon"))
    frame = Frame.of(points)
    assert frame.wrap(frame.values(points, ["time"]), ["time"], points).equals(points)
    with pytest.raises(ShapeError, match=r"`values` \[2, 13\] must be \[time, 12\]"):
        frame.wrap(np.zeros((2, 13)), ["time"], points)


def test_dims_that_do_not_lead_are_named() -> None:
    with pytest.raises(DataError, match=r"dims \['time'\], neither .* `leading` \(=\[\]\); name"):
        FRAME.values(FIELD, [])
    assert FRAME.values(FIELD.isel(time=0), []).shape == (3, 4)


def test_dates_and_durations_are_no_numbers() -> None:
    """Missing ones were -9.2e18, and so were drawn on maps."""
    seconds = FIELD.astype("timedelta64[s]").where(FIELD > 3)
    for field in (seconds, seconds + np.datetime64("2001-01-01"), FIELD.astype(str)):
        told = re.escape(f"has dtype {field.dtype}; it must hold numbers: convert it")
        with pytest.raises(DataError, match=told):
            FRAME.values(field, ["time"])
        with pytest.raises(DataError, match=told):
            plots.map_field(field.isel(time=0))
    x = FRAME.values((seconds / np.timedelta64(1, "s")), ["time"])
    np.testing.assert_array_equal(x, FRAME.values(FIELD.where(FIELD > 3), ["time"]))
