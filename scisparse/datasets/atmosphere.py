"""A small atmosphere on a real sphere: land and sea, wind, seasons, noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from scisparse.datasets.sphere import (
    apply_zonal,
    area_weights,
    band_latitudes,
    diffusion_matrices,
    kernel_variance,
    transport_matrices,
)
from scisparse.errors import OptionError, ShapeError

__all__ = [
    "NOISE_LENGTH",
    "Array",
    "Atmosphere",
    "Geography",
    "Physics",
    "SmoothNoise",
    "zonal_wind",
]

Array = NDArray[np.float64]

NOISE_LENGTH = 900e3
"""Smoothing length of the stochastic forcing and of errors of the initial state, metres."""

_DAY = 86_400.0
_YEAR = 365.2425
_LAND_SHARE = 0.3
_LAPSE_RATE = 6.5e-3  # K/m
_SEA_NOISE = 0.4  # of that over land
_CONTINENT_LENGTH = 2_200e3
_MOUNTAIN_LENGTH = 900e3
_MOUNTAIN_HEIGHT = 1_000.0


@dataclass(frozen=True, kw_only=True)
class Physics:
    """Constants of an `Atmosphere`; the defaults are the truth of `simulated_ensemble`.

    Parameters
    ----------
    wind_factor
        Factor on the zonal wind.
    diffusivity
        In m^2/s, at least 0.
    land_days, sea_days
        Time in which the temperature relaxes towards equilibrium, days.
    noise
        Standard deviation that one day's stochastic forcing adds over land, K; 0.4 of it over sea.
    initial_error
        Standard deviation of the error of the state that forecasts start from, K.
    resolution
        Length over which coasts and mountains are smoothed, metres; 0 keeps them sharp.
    """

    wind_factor: float = 1.0
    diffusivity: float = 4e5
    land_days: float = 4.0
    sea_days: float = 40.0
    noise: float = 0.9
    initial_error: float = 0.4
    resolution: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value):
                raise OptionError(f"{field.name} (={value!r}) must be finite")
            if field.name in ("land_days", "sea_days") and value <= 0:
                raise OptionError(f"{field.name} (={value!r}) must be more than 0 days")
            if field.name != "wind_factor" and value < 0:
                raise OptionError(f"{field.name} (={value!r}) must be at least 0")


@dataclass(frozen=True)
class Geography:
    """Continents and mountains.

    Parameters
    ----------
    land
        Share of land in each cell, 0 to 1, ``[lat, lon]``.
    height
        Height of the surface in metres, ``[lat, lon]``.
    """

    land: Array
    height: Array

    @classmethod
    def random(cls, shape: tuple[int, int], rng: np.random.Generator) -> Geography:
        """Draw continents over 30 % of the sphere, with mountains."""
        land, mountains = (
            SmoothNoise(shape, length).draw(rng, 1)[0]
            for length in (_CONTINENT_LENGTH, _MOUNTAIN_LENGTH)
        )
        order = np.argsort(-land, axis=None)
        area = np.broadcast_to(area_weights(shape[0])[:, None], shape).ravel() / shape[1]
        is_land = np.zeros(land.size, dtype=bool)
        is_land[order] = np.cumsum(area[order]) <= _LAND_SHARE
        share = is_land.reshape(shape).astype(np.float64)
        return cls(share, share * _MOUNTAIN_HEIGHT * np.maximum(mountains, 0.0))

    def smoothed(self, length: float) -> Geography:
        """Return the geography that a model of a coarser resolution has."""
        if length == 0:
            return self
        shape = (self.land.shape[0], self.land.shape[1])
        blur = diffusion_matrices(shape, length**2 / 2)
        return Geography(
            np.clip(apply_zonal(blur, self.land), 0.0, 1.0),
            np.maximum(apply_zonal(blur, self.height), 0.0),
        )


class SmoothNoise:
    """Gaussian noise of unit variance, with the same correlation length everywhere on the sphere.

    Parameters
    ----------
    shape
        Numbers of latitudes and longitudes.
    length
        Smoothing length in metres.
    """

    def __init__(self, shape: tuple[int, int], length: float) -> None:
        nlat, nlon = shape
        blur = diffusion_matrices(shape, length**2 / 2)
        deviation = np.sqrt(kernel_variance(blur, nlon))
        white = nlon / np.sqrt(2 * area_weights(nlat))
        # White noise is drawn as Fourier coefficients; the real ones have twice the variance.
        real = np.ones(nlon // 2 + 1)
        real[0] = np.sqrt(2.0)
        if nlon % 2 == 0:
            real[-1] = np.sqrt(2.0)
        self.shape = shape
        self._blur = blur / deviation[:, None] * white * real[:, None, None]

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """Draw fields ``[count, lat, lon]``."""
        nlat, nlon = self.shape
        white = rng.standard_normal((nlon // 2 + 1, nlat, 2 * count))
        waves = (self._blur @ white).view(np.complex128)
        return np.fft.irfft(waves.transpose(2, 1, 0), n=nlon, axis=-1)


def zonal_wind(lat: Array) -> Array:
    """Eastward wind in m/s at latitudes in radians: trades, and westerlies strongest near 55."""
    return 14.0 * (np.sin(lat) ** 2 * np.cos(lat)) / 0.385 - 5.0 * np.cos(lat) ** 5


class Atmosphere:
    r"""Temperature near the surface, advected, diffused, relaxed to the season, stirred by noise.

    .. math:: \partial_t T + \frac{u(\phi)}{R \cos\phi} \partial_\lambda T = \kappa \nabla^2 T
              - r(\phi, \lambda) (T - T_e(\phi, \lambda, t)) + \sigma(\phi, \lambda) \dot w

    with a relaxation rate r between those of land and sea. A step of one day is half the
    relaxation, advection and diffusion, the other half, each solved exactly (Strang splitting), so
    that it is stable on every grid and with every constant.

    Parameters
    ----------
    geography
        Continents and mountains, as sharp as the real ones; smoothed here to `physics.resolution`.
    physics
        Constants.

    Raises
    ------
    ShapeError
        If the geography is not two fields of one shape, at least 4 x 8.
    """

    def __init__(self, geography: Geography, physics: Physics) -> None:
        shape = geography.land.shape
        if len(shape) != 2 or geography.height.shape != shape or shape[0] < 4 or shape[1] < 8:
            raise ShapeError(
                f"land and height (of shapes {shape} and {geography.height.shape}) must be fields "
                "of one shape, at least 4 latitudes x 8 longitudes"
            )
        seen = geography.smoothed(physics.resolution)
        lat = band_latitudes(shape[0])[:, None]
        rate = seen.land / physics.land_days + (1.0 - seen.land) / physics.sea_days
        self.shape = (shape[0], shape[1])
        self.noise = physics.noise * (_SEA_NOISE + (1.0 - _SEA_NOISE) * seen.land)
        self._half_day = np.exp(-0.5 * rate)
        self._mean = 301.0 - 42.0 * np.sin(lat) ** 2 - _LAPSE_RATE * seen.height
        self._season = 20.0 * np.sin(lat)
        wind = physics.wind_factor * zonal_wind(lat[:, 0])
        self._transport = transport_matrices(self.shape, wind, physics.diffusivity, _DAY)

    def equilibrium(self, day: Array | float) -> Array:
        """Temperature [K] that the surface relaxes to, ``[..., lat, lon]`` for days ``[...]``."""
        phase = 2 * np.pi * (np.asarray(day, dtype=np.float64) - 172.0) / _YEAR
        return self._mean + self._season * np.cos(phase)[..., None, None]

    def step(self, temperature: Array, day: Array | float, noise: Array | None = None) -> Array:
        """Go on by one day.

        Parameters
        ----------
        temperature
            In K, ``[..., lat, lon]``.
        day
            Days since the first of January at the start of the step, ``[...]`` or one number.
        noise
            Fields of unit variance, for the stochastic forcing; none without.

        Returns
        -------
        numpy.ndarray
            Temperature a day later, of the same shape.
        """
        target = self.equilibrium(np.asarray(day) + 0.5)
        state = target + (temperature - target) * self._half_day
        state = apply_zonal(self._transport, state)
        state = target + (state - target) * self._half_day
        return state if noise is None else state + self.noise * noise
