"""Coordinates with their CF attributes, as every data set here carries them."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike

__all__ = ["land_mask", "latitude", "longitude", "members", "reference_time", "valid_time"]


def latitude(degrees: ArrayLike) -> xr.Variable:
    """Latitude axis, degrees north."""
    attrs = {
        "standard_name": "latitude",
        "long_name": "latitude",
        "units": "degrees_north",
        "axis": "Y",
    }
    return xr.Variable("lat", np.asarray(degrees, dtype=np.float64), attrs)


def longitude(degrees: ArrayLike) -> xr.Variable:
    """Longitude axis, degrees east."""
    attrs = {
        "standard_name": "longitude",
        "long_name": "longitude",
        "units": "degrees_east",
        "axis": "X",
    }
    return xr.Variable("lon", np.asarray(degrees, dtype=np.float64), attrs)


def valid_time(times: ArrayLike, long_name: str = "valid time") -> xr.Variable:
    """Time axis as datetime64; `long_name` says which moment of an interval it marks."""
    attrs = {"standard_name": "time", "long_name": long_name, "axis": "T"}
    return xr.Variable("time", np.asarray(times).astype("datetime64[ns]"), attrs)


def reference_time(times: ArrayLike) -> xr.Variable:
    """Start of each forecast, along the time axis."""
    attrs = {"standard_name": "forecast_reference_time", "long_name": "start of the forecast"}
    return xr.Variable("time", np.asarray(times).astype("datetime64[ns]"), attrs)


def members(count: int) -> xr.Variable:
    """Ensemble members 0 to `count` - 1."""
    attrs = {
        "standard_name": "realization",
        "long_name": "ensemble member",
        "units": "1",
        "axis": "E",
    }
    return xr.Variable("member", np.arange(count, dtype=np.int32), attrs)


def land_mask(dims: tuple[str, ...], is_land: ArrayLike, long_name: str) -> xr.Variable:
    """Boolean land mask; `long_name` says what counts as land."""
    attrs = {"standard_name": "land_binary_mask", "long_name": long_name}
    return xr.Variable(dims, np.asarray(is_land, dtype=bool), attrs)
