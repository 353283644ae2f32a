"""Standardised anomalies: the space in which every method works.

Observation and group means become departures from their own climatology at each point, in units of their own spread there::

    z = (y - m) / s            a_g = (xbar_g - m_g) / s_g,    s_g^2 = E[variance over members] + Var[xbar_g]

``s_g`` is the spread of single members, so that a forecast with little signal has small anomalies.  With few cases the
statistics of a point are noise; they are shrunk towards the field by empirical Bayes: the bias by its sampling variance, the
log variances by the trigamma of their degrees of freedom (Smyth 2004).  With many cases nothing is shrunk.

References
----------
Smyth, G. K. (2004). Linear models and empirical Bayes methods. https://doi.org/10.2202/1544-6115.1027
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import polygamma

from scisparse.postprocess.samples import Forecast

__all__ = ["Standard"]

FloatArray = NDArray[np.float64]
_SMALLEST = 1e-6  # spread of a point relative to the field's, below which it counts as constant


@dataclass(frozen=True)
class Standard:
    """Statistics of the training cases at every point.

    Attributes
    ----------
    mean, std
        Of the observation, ``[P]``; NaN where it was never observed.
    forecast_mean, forecast_std
        Of groups and other predictors, ``[F, P]``.
    forecast_variance
        Mean variance over the members of each group, ``[G, P]``.
    """

    mean: FloatArray
    std: FloatArray
    forecast_mean: FloatArray
    forecast_std: FloatArray
    forecast_variance: FloatArray

    @classmethod
    def of(cls, forecast: Forecast, observed: FloatArray) -> Self:
        """Statistics of cases ``[S, P]`` with NaN where missing."""
        with warnings.catch_warnings():
            # Points without any value give NaN, which is what they are.
            warnings.simplefilter("ignore", RuntimeWarning)
            mean = np.nanmean(forecast.mean, 0)
            variance = np.nanmean(forecast.variance, 0)
            spread = np.sqrt(variance + np.nanvar(forecast.mean, 0))
            extra_mean, extra_std = np.nanmean(forecast.extra, 0), np.nanstd(forecast.extra, 0)
            errors = observed - np.nanmean(forecast.mean, 1)
            bias = _shrink_means(errors)
            climate = np.nanmean(np.nanmean(forecast.mean, 1) + 0 * observed, 0)
            std = _shrink_stds(observed)
        return cls(
            mean=climate + bias,
            std=_positive(std),
            forecast_mean=np.concatenate([mean, extra_mean]),
            forecast_std=np.concatenate([_positive(spread), _positive(extra_std)]),
            forecast_variance=variance,
        )

    def at(self, points: NDArray[np.int64]) -> Standard:
        """Statistics of some points."""
        return Standard(**{name: array[..., points] for name, array in self.arrays().items()})

    def predictors(self, forecast: Forecast) -> FloatArray:
        """Anomalies ``[S, F, P]``; NaN where the forecast is missing."""
        values = np.concatenate([forecast.mean, forecast.extra], 1)
        return (values - self.forecast_mean) / self.forecast_std

    def spread(self, forecast: Forecast) -> FloatArray:
        """Variance over members relative to its mean at the point, averaged over groups, ``[S, P]``."""
        usual = self.forecast_variance
        ratio = np.divide(
            forecast.variance, usual, out=np.ones_like(forecast.variance), where=usual > 0
        )
        ratio[np.isnan(forecast.variance)] = np.nan
        return ratio.mean(1)

    def target(self, observed: FloatArray) -> FloatArray:
        """Observed anomalies ``[S, P]``."""
        return (observed - self.mean) / self.std

    def arrays(self) -> dict[str, FloatArray]:
        """All statistics by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, FloatArray]) -> Self:
        """Read what :meth:`arrays` wrote."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def _shrink_means(errors: FloatArray) -> FloatArray:
    """Mean of each point over cases, drawn to the mean of the field as far as it is noise."""
    count = np.maximum(np.isfinite(errors).sum(0), 1)
    mean = np.nanmean(errors, 0)
    freedom = np.maximum(count - 1, 1)
    sampling = np.nansum((errors - mean) ** 2, 0) / freedom / count
    between = np.nanvar(mean) - np.nanmean(sampling[np.isfinite(mean)])
    keep = between / (between + sampling) if between > 0 else np.zeros_like(mean)
    field = np.nanmean(mean)
    return field + np.where(sampling > 0, keep, 1.0) * (mean - field)


def _shrink_stds(observed: FloatArray) -> FloatArray:
    """Standard deviation of each point, its logarithm drawn to the field's as far as it is noise."""
    count = np.isfinite(observed).sum(0)
    freedom = np.maximum(count - 1, 1)
    variance = np.nansum((observed - np.nanmean(observed, 0)) ** 2, 0) / freedom
    known = (count > 1) & (variance > 0)
    if not known.any():
        return np.where(count > 0, 0.0, np.nan)
    log = np.log(variance, out=np.zeros_like(variance), where=known)
    noise = polygamma(1, freedom / 2)
    field = log[known].mean()
    between = log[known].var() - noise[known].mean()
    keep = between / (between + noise) if between > 0 else np.zeros_like(log)
    std = np.exp((field + keep * (log - field)) / 2)
    return np.where(count > 0, np.where(known, std, 0.0), np.nan)


def _positive(std: FloatArray) -> FloatArray:
    """Keep points that never vary from dividing by 0."""
    finite = std[np.isfinite(std)]
    floor = _SMALLEST * float(finite.mean()) if finite.size else 0.0
    return np.where(np.isnan(std), np.nan, np.maximum(std, max(floor, 1e-30)))
