"""Small simulated forecasts whose truth is known, for the tests of post-processing."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.postprocess import Options, PostProcessor

METHODS = ("emos", "emos_local", "local", "unet_local")
QUICK = Options(width=2, depth=1, epochs=2, batch_size=8)

SLOPE, NOISE = 0.5, 0.3
FIRST_DAY = np.datetime64("2001-01-01", "ns")
_ATTRS = {
    "time": {"standard_name": "time", "long_name": "valid time"},
    "lat": {"standard_name": "latitude", "units": "degrees_north", "long_name": "latitude"},
    "lon": {"standard_name": "longitude", "units": "degrees_east", "long_name": "longitude"},
    "y": {"standard_name": "projection_y_coordinate", "units": "m"},
    "x": {"standard_name": "projection_x_coordinate", "units": "m"},
}
GLOBAL = {"lat": np.linspace(-75.0, 75.0, 4), "lon": np.arange(6) * 60.0}
PLANE = {"y": np.arange(4) * 2000.0, "x": np.arange(5) * 2000.0}


def ensemble(
    times: int = 16, members: int = 4, *, axes: dict[str, Any] | None = None, seed: int = 0
) -> tuple[xr.DataArray, xr.DataArray]:
    """Forecast ``t2m(time, member, ...)`` and truth ``analysis(time, ...)``, with CF attributes.

    The truth is 280 plus `SLOPE` times the signal that all members see, plus `NOISE`; the forecast
    is 3 too warm.
    """
    axes = GLOBAL if axes is None else axes
    rng = np.random.default_rng(seed)
    shape = tuple(len(axis) for axis in axes.values())
    signal = rng.normal(size=(times, *shape))
    truth = 280.0 + SLOPE * signal + NOISE * rng.normal(size=signal.shape)
    forecast = 283.0 + signal[:, None] + 0.1 * rng.normal(size=(times, members, *shape))
    coords = {name: (name, values, _ATTRS[name]) for name, values in axes.items()}
    coords["time"] = ("time", FIRST_DAY + np.arange(times) * np.timedelta64(1, "D"), _ATTRS["time"])
    attrs = {"units": "K", "standard_name": "air_temperature", "cell_methods": "time: point"}
    observed = xr.DataArray(truth, coords, ("time", *axes), name="analysis", attrs=attrs)
    coords["member"] = ("member", np.arange(members) * 10, {"standard_name": "realization"})
    field = xr.DataArray(forecast, coords, ("time", "member", *axes), name="t2m", attrs=attrs)
    return field, observed


def points(data: xr.DataArray) -> xr.DataArray:
    """The same field on one dim of points, with latitude and longitude beside it."""
    flat = data.stack(point=("lat", "lon"))
    lat, lon = (flat[name].values for name in ("lat", "lon"))
    bare = flat.drop_vars(["point", "lat", "lon"])
    return bare.assign_coords(lat=("point", lat, _ATTRS["lat"]), lon=("point", lon, _ATTRS["lon"]))


def fitted(
    method: str,
    forecast: xr.DataArray | xr.Dataset,
    observed: xr.DataArray | xr.Dataset,
    **options: Any,
) -> PostProcessor:
    """Post-processor of `t2m`, fitted, with little training."""
    model = PostProcessor(method, target="t2m", **{"options": QUICK, **options})
    return model.fit(forecast, observed)


def crps_normal(mean: NDArray[Any], std: NDArray[Any], truth: NDArray[Any]) -> float:
    """Mean CRPS of normal distributions, in closed form (Gneiting et al. 2005)."""
    from scipy.stats import norm

    z = (truth - mean) / std
    score = std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    return float(np.nanmean(score))
