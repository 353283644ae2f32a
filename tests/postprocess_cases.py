"""Small simulated forecasts whose truth is known, for the tests of post-processing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from numpy.typing import NDArray

from scisparse.errors import ScisparseError
from scisparse.postprocess import Options, PostProcessor
from scisparse.postprocess.samples import Forecast

FloatArray = NDArray[np.float64]
METHODS = ("emos", "emos_local", "local", "unet_local")
QUICK = Options(width=2, depth=1, epochs=2, batch_size=8)

SLOPE, NOISE = 0.5, 0.3
# Of tests of something else that score what a model was trained on.
scores_its_training = pytest.mark.filterwarnings("ignore:.*were in the training of its model")
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


def moments(predicted: xr.Dataset) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and standard deviation."""
    return predicted["t2m_mean"].values, predicted["t2m_std"].values


def crps_normal(mean: NDArray[Any], std: NDArray[Any], truth: NDArray[Any]) -> float:
    """Mean CRPS of normal distributions, in closed form (Gneiting et al. 2005)."""
    from scipy.stats import norm

    z = (truth - mean) / std
    score = std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    return float(np.nanmean(score))


def incomplete() -> tuple[xr.DataArray, xr.DataArray, xr.Dataset]:
    """Forecast and truth with missing values, and the forecast with predictors.

    One predictor has members, one has not, and one is static.
    """
    field, observed = ensemble()
    field = field.where(np.random.default_rng(2).random(field.shape) > 0.02)
    observed = observed.where(np.random.default_rng(3).random(observed.shape) > 0.1)
    rng = np.random.default_rng(1)
    one = field.isel(member=0, drop=True)
    data = xr.Dataset(
        {
            "t2m": field,
            "wind": field.copy(data=rng.gamma(2.0, 3.0, field.shape)).assign_attrs(units="m s-1"),
            "cape": one.copy(data=rng.normal(size=one.shape)).assign_attrs(units="J kg-1"),
            "height": xr.zeros_like(one[0].drop_vars("time")) + 123.4,
        },
        attrs={"title": "test", "history": "before", "institution": "here"},
    )
    return field, observed, data


def error_of(call: Callable[[], object], kind: type[ScisparseError] = ScisparseError) -> str:
    """Text of the error that a call raises, which must be one line."""
    with pytest.raises(kind) as info:
        call()
    assert isinstance(info.value, ValueError)
    text = str(info.value)
    assert "\n" not in text
    return text


def fit_error(forecast: Any, observed: Any, **options: Any) -> str:
    """Error of fitting; the model must stay as it was."""
    model = PostProcessor("emos", target="t2m", **options)
    text = error_of(lambda: model.fit(forecast, observed))
    assert "not fitted" in repr(model)
    return text


def on_calendar(data: xr.DataArray, calendar: str) -> xr.DataArray:
    """The same data on days of another calendar, as cftime dates."""
    count = data.sizes["time"]
    dates = xr.date_range("2001-01-01", periods=count, calendar=calendar, use_cftime=True)
    return data.assign_coords(time=dates)


def cases(
    mean: FloatArray, variance: FloatArray | float = 1.0, extra: FloatArray | None = None
) -> Forecast:
    """Forecast of one group from its mean ``[S, P]``, and other predictors ``[S, F, P]``."""
    extra = np.empty((len(mean), 0, mean.shape[1])) if extra is None else extra
    spread = np.broadcast_to(variance, mean.shape)[:, None].copy()
    names = ("x", *(f"f{k}" for k in range(extra.shape[1])))
    return Forecast(mean[:, None], spread, extra, names, np.arange(len(mean)), {"time": len(mean)})


def toy(times: int, points: int, seed: int = 0) -> tuple[Forecast, FloatArray, FloatArray]:
    """Forecast, truth and area weights whose relation differs from point to point."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(5.0, 2.0, (times, points))
    truth = 1.0 + 0.5 * mean + rng.normal(size=mean.shape)
    extra = rng.normal(size=(times, 2, points))
    weights = rng.uniform(0.5, 2.0, points)
    return cases(mean, rng.gamma(4.0, 0.25, mean.shape), extra), truth, weights
