"""Material that tests of verification share."""

from __future__ import annotations

import numpy as np
import scipy.stats
import xarray as xr
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
LAT, LON = np.array([-30.0, -10.0, 5.0, 35.0]), np.array([0.0, 72.0, 144.0, 216.0, 288.0])
DIMS = ("time", "lat", "lon")


def coordinates(times: int) -> dict[str, object]:
    start = np.datetime64("2001-01-01", "ns")
    return {
        "time": start + np.arange(times) * np.timedelta64(1, "D"),
        "lat": ("lat", LAT, {"units": "degrees_north"}),
        "lon": ("lon", LON, {"units": "degrees_east"}),
    }


def field(values: FloatArray, name: str = "t2m", units: str = "K") -> xr.DataArray:
    """Values ``[time, lat, lon]`` or ``[time, lat, lon, member]``."""
    dims = (*DIMS, "member")[: values.ndim]
    return xr.DataArray(values, coordinates(len(values)), dims, name, {"units": units})


def data(seed: int = 0, times: int = 6, members: int = 5) -> tuple[xr.DataArray, xr.DataArray]:
    """An ensemble and an observation, a tenth of it missing."""
    generator = np.random.default_rng(seed)
    shape = (times, LAT.size, LON.size)
    ensemble = generator.gamma(1.5, 2.0, (*shape, members))
    observed = generator.gamma(1.5, 2.0, shape)
    observed[generator.random(shape) < 0.1] = np.nan
    return field(ensemble), field(observed)


def parametric(seed: int = 1, times: int = 6) -> xr.Dataset:
    generator = np.random.default_rng(seed)
    shape = (times, LAT.size, LON.size)
    mean, std = field(generator.normal(3.0, 1.0, shape)), field(generator.gamma(4.0, 0.5, shape))
    return xr.Dataset({"t2m_mean": mean, "t2m_std": std})


def area(observed: xr.DataArray) -> xr.DataArray:
    """Area of the bands between midpoints of latitude, the same along each."""
    edges = np.concatenate([[-40.0], 0.5 * (LAT[1:] + LAT[:-1]), [50.0]])
    bands = np.diff(np.sin(np.deg2rad(edges)))
    return xr.DataArray(bands, {"lat": LAT}, "lat").broadcast_like(observed.isel(time=0, drop=True))


def average(values: FloatArray, weights: xr.DataArray, valid: FloatArray) -> float:
    spread = np.broadcast_to(weights.values, values.shape)
    return float(np.average(values[valid], weights=spread[valid]))


def quantile_prediction(levels: FloatArray) -> tuple[xr.Dataset, xr.Dataset]:
    """Quantiles of a normal prediction, and the prediction."""
    prediction = parametric(7)
    standard = xr.DataArray(scipy.stats.norm.ppf(levels), {"quantile": levels}, "quantile")
    values = prediction["t2m_mean"] + prediction["t2m_std"] * standard
    return xr.Dataset({"t2m_quantile": values.assign_attrs(units="K")}), prediction
