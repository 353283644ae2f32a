"""Standardised anomalies: the space in which every method works.

Observation and group means become departures from their own climatology at each point, in units of
their own spread there::

    z = (y - m) / s,   a_g = (xbar_g - m_g) / s_g,   s_g^2 = E[variance over members] + Var[xbar_g]

``s_g`` is the spread of single members, so that a forecast with little signal has small anomalies.
With few cases the statistics of a point are noise; they are shrunk towards the field by empirical
Bayes: the bias by its sampling variance, the log variances by the trigamma of their degrees of
freedom (Smyth 2004).  With many cases nothing is shrunk.  A predictor that never varied at a point
says nothing there: its anomaly is 0, whatever it does later.  An observation that never varied in
30 cases or more, or nowhere in the field, is certain: its spread is 0.  Fewer equal values are
chance, such as some dry days, and such a point has the spread of the field.

References
----------
Smyth, G. K. (2004). Linear models and empirical Bayes methods.
https://doi.org/10.2202/1544-6115.1027
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import polygamma

from scisparse.errors import DataError
from scisparse.postprocess.samples import Forecast

__all__ = ["Standard", "shrunk_variance"]

FloatArray = NDArray[np.float64]
# Spread relative to the field's usual one, or to the value itself, below which a point is constant.
_SMALLEST = 1e-6
# Of equal values of an observation that make it certain, as long as it varies elsewhere.
_FEWEST_EQUAL = 30


@dataclass(frozen=True)
class Standard:
    """Statistics of the training cases at every point.

    Attributes
    ----------
    mean, std
        Statistics of the observation, ``[P]``; NaN where it was never observed. A point of spread 0
        never varied: it has its one value for certain.
    forecast_mean, forecast_std
        Statistics of groups and other predictors, ``[F, P]``; the spread of a constant is infinite.
    forecast_variance
        Mean variance over the members of each group, ``[G, P]``; 0 where it is not known.
    """

    mean: FloatArray
    std: FloatArray
    forecast_mean: FloatArray
    forecast_std: FloatArray
    forecast_variance: FloatArray

    @classmethod
    def of(cls, forecast: Forecast, observed: FloatArray) -> Self:
        """Statistics of cases ``[S, P]`` with NaN where missing.

        Of a point that is observed at some times the forecast counts at these: else both means
        were of different times, and a point observed in summer had a bias of half a year.
        """
        seen = np.isfinite(observed)
        every, forecast = forecast, forecast.where(seen | ~seen.any(0))
        with warnings.catch_warnings():
            # Points without any value give NaN, which is what they are.
            warnings.simplefilter("ignore", RuntimeWarning)
            count, pairs = seen.sum(0), zip(_variances(forecast), _variances(every), strict=True)
            variance, total = (_of_seen(*pair, count) for pair in pairs)
            spreads = np.sqrt(total)
            means = np.nanmean(np.concatenate([forecast.mean, forecast.extra], 1), 0)
            usual = np.nanmean(spreads, 1, keepdims=True)
            mean = _shrunk_mean(np.nanmean(forecast.mean, 1), observed)
            std = _shrunk_std(observed)
            only = np.nanmax(observed, 0)  # the one value of a point that never varied
        constant = spreads <= _SMALLEST * np.maximum(usual, np.abs(means))
        return cls(
            mean=np.where(std == 0, only, mean),
            std=std,
            forecast_mean=means,
            forecast_std=np.where(constant, np.inf, spreads),
            forecast_variance=variance,
        )

    def at(self, points: NDArray[np.int64]) -> Standard:
        """Statistics of some points."""
        return Standard(**{name: array[..., points] for name, array in self.arrays().items()})

    def predictors(self, forecast: Forecast) -> FloatArray:
        """Anomalies ``[S, F, P]``; NaN where the forecast is missing.

        Other predictors that a point never had in training say nothing there: 0.
        """
        values = np.concatenate([forecast.mean, forecast.extra], 1)
        told = ~np.isnan(self.forecast_std)
        told[: len(self.forecast_variance)] = True
        anomalies = (values - self.forecast_mean) / self.forecast_std
        return np.where(told, anomalies, 0.0)

    def spread(self, forecast: Forecast) -> FloatArray:
        """Variance over members relative to its mean at the point, over groups, ``[S, P]``.

        1, which says nothing, where there are too few members, now or in training.
        """
        usual = self.forecast_variance
        told = (usual > _SMALLEST**2 * usual.mean()) & np.isfinite(forecast.variance)
        ratio = np.divide(forecast.variance, usual, out=np.ones_like(forecast.variance), where=told)
        average: FloatArray = ratio.mean(1)
        return average

    def target(self, observed: FloatArray) -> FloatArray:
        """Observed anomalies ``[S, P]``."""
        return (observed - self.mean) / self.divisor()

    def divisor(self) -> FloatArray:
        """Spreads ``[P]`` that anomalies are relative to.

        Where a point never varied they are so small that its first event lies outside of all that
        methods read.
        """
        return np.where(self.std == 0, _smallest(self.std), self.std)

    def in_units(self, location: FloatArray, scale: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Location and scale ``[S, P]`` of anomalies in units of the target.

        A point that never varied has its one value, with scale 0: of dry points a spread that is
        small but not 0 would tell that it rains, however little, on many days.
        """
        return self.mean + self.std * location, self.std * scale

    def arrays(self) -> dict[str, FloatArray]:
        """All statistics by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, FloatArray]) -> Self:
        """Read what :meth:`arrays` wrote."""
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    def check(self, features: int, points: int) -> None:
        """Raise unless these can be statistics of so many predictors at so many points.

        Raises
        ------
        DataError
            One has another type or shape, or values that no training leaves.
        """
        groups = (*self.forecast_variance.shape, 0)[0]
        shapes = {"forecast_mean": (features, points), "forecast_std": (features, points)}
        shapes["forecast_variance"] = (groups, points)
        if not 0 < groups <= features:
            raise DataError(f"forecast_variance is of {groups} groups of {features} predictors")
        for name, array in self.arrays().items():
            shape = shapes.get(name, (points,))
            if array.dtype != np.float64 or array.shape != shape:
                raise DataError(
                    f"{name} is {array.dtype} of shape {array.shape} but float64 of {shape} is "
                    f"needed for {features} predictors at {points} points"
                )
            least = -np.inf if name.endswith("mean") else 0.0
            wrong = (array < least) | (np.isinf(array) & (name != "forecast_std"))
            if wrong.any() or np.isnan(array).all():
                raise DataError(f"{name} has values that are infinite, negative or all missing")


def _smallest(std: FloatArray) -> float:
    """Give the spread that stands for that of points that never varied, of those that did."""
    varied = std[std > 0]
    return max(_SMALLEST * float(varied.mean()), 1e-30) if varied.size else 1e-30


def _variances(forecast: Forecast) -> tuple[FloatArray, FloatArray]:
    """Mean variance over members ``[G, P]``, and variance of single values ``[F, P]``."""
    within = np.nan_to_num(np.nanmean(forecast.variance, 0))
    groups = within + np.nanvar(forecast.mean, 0)
    return within, np.concatenate([groups, np.nanvar(forecast.extra, 0)])


def _of_seen(seen: FloatArray, every: FloatArray, count: NDArray[np.int64]) -> FloatArray:
    """Variances of the cases with an observation, drawn to those of all where they are few.

    By the noise of the logarithm of a variance, where logarithms of ratios are of order 1.
    """
    keep = np.where(count > 1, 1 / (1 + polygamma(1, np.maximum(count - 1, 1) / 2)), 0.0)
    known = (seen > 0) & (every > 0)
    ratio = np.divide(seen, every, out=np.ones_like(every), where=known)
    return np.where(np.isnan(seen), np.nan, every * ratio**keep)


def _shrunk_mean(forecast: FloatArray, observed: FloatArray) -> FloatArray:
    """Observed mean of each point, drawn to the forecast's plus the field's bias where it is noise.

    With error ``e = y - x`` over n cases and the variance B of the bias over the field, the most
    precise weight of the observed mean is ``k = (B - Cov(x, e) / n) / (B + Var(e) / n)``.
    """
    errors = observed - forecast
    present = np.isfinite(errors)
    count = present.sum(0)
    bias, climate = np.nanmean(errors, 0), np.nanmean(np.where(present, forecast, np.nan), 0)
    departures = np.where(present, errors - bias, 0.0)
    variance = _per_case((departures**2).sum(0), count)
    covariance = _per_case((np.nan_to_num(forecast - climate) * departures).sum(0), count)
    between = max(np.nanvar(bias) - variance[count > 0].mean(), 0.0)
    sampling = between + variance
    keep = np.divide(between - covariance, sampling, out=np.ones_like(bias), where=sampling > 0)
    shrunk = np.clip(keep, 0.0, 1.0) * (bias - np.nanmean(bias))
    mean: FloatArray = climate + np.nanmean(bias) + shrunk
    return mean


def _per_case(total: FloatArray, count: NDArray[np.int64]) -> FloatArray:
    """Estimate sampling variances of means from sums of squares; of the field for one case."""
    single = total / np.maximum(count - 1, 1)
    usual = float(single[count > 1].mean()) if (count > 1).any() else 0.0
    return np.where(count > 1, single, usual) / np.maximum(count, 1)


def _shrunk_std(observed: FloatArray) -> FloatArray:
    """Give standard deviations, their logarithms drawn to the field's as far as they are noise."""
    count = np.isfinite(observed).sum(0)
    freedom = np.maximum(count - 1, 1)
    squares = np.nansum((observed - np.nanmean(observed, 0)) ** 2, 0)
    # Equal values have squares of rounding, of which the logarithm would move the field's.
    known = (count > 1) & (squares > 0) & (np.nanmax(observed, 0) > np.nanmin(observed, 0))
    if not known.any():
        return np.where(count > 0, 0.0, np.nan)
    std = np.sqrt(shrunk_variance(squares, freedom, known))
    # Few equal values say nothing of the spread, many that there is none.
    return np.where(count > 0, np.where(known | (count < _FEWEST_EQUAL), std, 0.0), np.nan)


def shrunk_variance(
    squares: FloatArray, freedom: NDArray[np.int64], known: NDArray[np.bool_]
) -> FloatArray:
    """Give ``squares / freedom``, their logarithms drawn to the field's as far as they are noise.

    Points that are not `known` get the field's; one at least must be.
    """
    variance = np.divide(squares, freedom, out=np.ones_like(squares), where=known)
    log, noise = np.log(variance), polygamma(1, np.maximum(freedom, 1) / 2)
    field = log[known].mean()
    between = log[known].var() - noise[known].mean()
    keep = between / (between + noise) if between > 0 else np.zeros_like(log)
    shrunk: FloatArray = np.exp(field + np.where(known, keep * (log - field), 0.0))
    return shrunk
