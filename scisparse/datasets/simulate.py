"""Forecasts of a simulated climate by a model that is wrong in known ways."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.datasets import cf
from scisparse.datasets.atmosphere import (
    NOISE_LENGTH,
    Array,
    Atmosphere,
    Geography,
    Physics,
    SmoothNoise,
)
from scisparse.datasets.sphere import band_latitudes
from scisparse.errors import OptionError

__all__ = ["MODEL", "TRUTH", "simulated_ensemble"]

_FIRST_DAY = "2001-01-01"
_SPIN_UP = 365
_BATCH = 8  # days of noise drawn at once

TRUTH = Physics()
"""Constants of the true climate, unless others are given."""

MODEL = Physics(
    wind_factor=1.2,
    land_days=7.0,
    sea_days=30.0,
    noise=0.35,
    initial_error=0.15,
    resolution=900e3,
)
"""Constants of the forecast model, unless others are given."""


def simulated_ensemble(
    shape: tuple[int, int] = (32, 64),
    *,
    members: int = 10,
    times: int = 240,
    lead_steps: int = 4,
    interval: int = 6,
    seed: int = 0,
    truth: Physics = TRUTH,
    model: Physics = MODEL,
) -> xr.Dataset:
    """Simulate a climate, and ensemble forecasts of it by a model with systematic errors.

    The model's wind is 20 % too strong, its land reacts too slowly and its sea too fast, its coasts
    and mountains are too smooth: its bias depends on location and season, its errors on the flow.
    Its perturbations are too small: it is under-dispersive. With ``model=truth`` it is a reliable
    ensemble without bias.

    Parameters
    ----------
    shape
        Numbers of latitudes (at least 4) and longitudes (at least 8).
    members
        Ensemble members of a forecast.
    times
        Number of forecasts.
    lead_steps
        Length of each forecast in days.
    interval
        Days from one start to the next.
    seed
        Of everything random; the same seed gives the same continents and weather.
    truth, model
        Constants of the true climate and of the forecast model.

    Returns
    -------
    xarray.Dataset
        ``temperature(time, member, lat, lon)`` and ``observed(time, lat, lon)`` [K, float32],
        ``land(lat, lon)``; time is that which the forecast is for.

    Raises
    ------
    OptionError
        If a number is not a whole number in its range.

    Examples
    --------
    >>> data = simulated_ensemble((8, 16), members=3, times=5)
    >>> dict(data.temperature.sizes)
    {'time': 5, 'member': 3, 'lat': 8, 'lon': 16}
    """
    _check(shape, members=members, times=times, lead_steps=lead_steps, interval=interval, seed=seed)
    land_rng, weather_rng, *forecast_rngs = _generators(seed, 2 + times)
    geography = Geography.random(shape, land_rng)
    noise = SmoothNoise(shape, NOISE_LENGTH)
    last = (times - 1) * interval + lead_steps
    weather = _weather(Atmosphere(geography, truth), noise, weather_rng, last)
    starts = np.arange(times) * interval
    forecast = np.empty((times, members, *shape), dtype=np.float32)
    atmosphere = Atmosphere(geography, model)
    for index, (start, rng) in enumerate(zip(starts, forecast_rngs, strict=True)):
        analysis = weather[start] + truth.initial_error * noise.draw(rng, 1)
        state = analysis + model.initial_error * noise.draw(rng, members)
        for day in range(start, start + lead_steps):
            state = atmosphere.step(state, float(day), noise.draw(rng, members))
        forecast[index] = state
    observed = weather[starts + lead_steps].astype(np.float32)
    return _dataset(forecast, observed, geography.land > 0.5, starts, lead_steps)


def _weather(
    atmosphere: Atmosphere, noise: SmoothNoise, rng: np.random.Generator, days: int
) -> Array:
    """Daily states ``[days + 1, lat, lon]`` after a year of spin-up."""
    state = np.broadcast_to(atmosphere.equilibrium(-float(_SPIN_UP)), atmosphere.shape)
    states = np.empty((days + 1, *atmosphere.shape))
    draws = np.empty((0, *atmosphere.shape))
    for index in range(_SPIN_UP + days + 1):
        day = index - _SPIN_UP
        if day >= 0:
            states[day] = state
        if index % _BATCH == 0:
            draws = noise.draw(rng, _BATCH)
        state = atmosphere.step(state, float(day), draws[index % _BATCH])
    return states


def _generators(seed: int, count: int) -> Iterator[np.random.Generator]:
    children = np.random.SeedSequence(seed).spawn(count)
    return (np.random.default_rng(child) for child in children)


def _check(shape: object, **numbers: object) -> None:
    for name, value in numbers.items():
        least = 0 if name == "seed" else 1
        if not _is_whole(value, least):
            raise OptionError(f"{name} (={value!r}) must be a whole number of at least {least}")
    if (
        not isinstance(shape, tuple | list)
        or len(shape) != 2
        or not (_is_whole(shape[0], 4) and _is_whole(shape[1], 8))
    ):
        raise OptionError(
            f"shape (={shape!r}) must be two whole numbers: latitudes (at least 4), "
            "longitudes (at least 8)"
        )


def _is_whole(value: object, least: int) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int | np.integer) and bool(value >= least)


def _dataset(
    forecast: NDArray[np.float32],
    observed: NDArray[np.float32],
    is_land: NDArray[np.bool_],
    starts: NDArray[np.int64],
    lead_steps: int,
) -> xr.Dataset:
    start = np.datetime64(_FIRST_DAY) + starts.astype("timedelta64[D]")
    lat = np.rad2deg(band_latitudes(observed.shape[1]))
    lon = np.arange(observed.shape[2]) * (360.0 / observed.shape[2])
    attrs = {"standard_name": "air_temperature", "units": "K", "cell_methods": "time: point"}
    named = (
        {"long_name": "air temperature, forecast"},
        {"long_name": "air temperature, simulated truth"},
    )
    return xr.Dataset(
        {
            "temperature": (("time", "member", "lat", "lon"), forecast, attrs | named[0]),
            "observed": (("time", "lat", "lon"), observed, attrs | named[1]),
            "land": cf.land_mask(("lat", "lon"), is_land, "land of the simulated planet"),
        },
        coords={
            "time": cf.valid_time(start + np.timedelta64(lead_steps, "D")),
            "forecast_reference_time": cf.reference_time(start),
            "member": cf.members(forecast.shape[1]),
            "lat": cf.latitude(lat),
            "lon": cf.longitude(lon),
        },
        attrs={
            "Conventions": "CF-1.10",
            "title": "Simulated ensemble forecasts of temperature, with the simulated truth",
            "source": "scisparse.datasets.simulated_ensemble",
            "references": "none; simulated",
            "license": "CC0-1.0",
        },
    )
