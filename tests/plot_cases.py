"""Fields and scores to draw."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from scisparse.verification import evaluate

UNITS = {"long_name": "rainfall", "units": "mm"}


def region(seed: int = 0, **changes: Sequence[float]) -> xr.DataArray:
    """Random field with a hole, latitude falling."""
    lat = np.array([30.0, 25.0, 20.0, 15.0])
    lon = np.array([60.0, 65.0, 70.0, 75.0, 80.0])
    values = np.random.default_rng(seed).normal(100.0, 20.0, (4, 5))
    values[1, 2] = np.nan
    coords = {"lat": lat, "lon": lon} | {name: np.asarray(v) for name, v in changes.items()}
    return xr.DataArray(values, coords, ("lat", "lon"), "rain", UNITS)


def scores(members: int = 9, **kwargs: object) -> xr.Dataset:
    draws = np.random.default_rng(1).normal(size=(30, members + 1, 4, 5))
    coords = {"lat": region()["lat"], "lon": region()["lon"]}
    ensemble = xr.DataArray(draws, coords, ("time", "member", "lat", "lon"), "rain", UNITS)
    return evaluate(ensemble[:, 1:], ensemble[:, 0], **kwargs)  # type: ignore[arg-type]
