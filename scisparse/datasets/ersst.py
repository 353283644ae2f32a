"""Monthly sea surface temperature of the globe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr

from scisparse.datasets import cf

__all__ = ["read_ersst"]


def read_ersst(paths: Mapping[str, Path]) -> xr.Dataset:
    """Read monthly means of ERSSTv5, latitude ascending.

    Parameters
    ----------
    paths
        Path of each file by its name.

    Returns
    -------
    xarray.Dataset
        ``sst(time, lat, lon)`` [degC], NaN over land, and ``land(lat, lon)``; time is the first day
        of the month. Water under sea ice has -1.8 degC.
    """
    with xr.open_dataset(paths["sst.mnmean.nc"]) as data:
        sst = data["sst"].transpose("time", "lat", "lon").sortby("lat").load()
    attrs = {
        "standard_name": "sea_surface_temperature",
        "long_name": "sea surface temperature, monthly mean",
        "units": "degC",
        "cell_methods": "time: mean",
    }
    land = np.isnan(sst.values).all(axis=0)
    return xr.Dataset(
        {
            "sst": (("time", "lat", "lon"), sst.values, attrs),
            "land": cf.land_mask(("lat", "lon"), land, "cells that never have a value"),
        },
        coords={
            "time": cf.valid_time(sst["time"].values, "first day of the month"),
            "lat": cf.latitude(sst["lat"].values),
            "lon": cf.longitude(sst["lon"].values),
        },
    )
