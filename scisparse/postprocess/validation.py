"""Choices made inside the training cases: cross-validation over blocks of time, and its score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

from scisparse.losses import Distribution, Normal
from scisparse.models.regression import Calibration
from scisparse.postprocess.samples import Forecast
from scisparse.postprocess.standard import Standard, shrunk_variance

__all__ = ["Folds", "blocks", "calibrate", "score_by_case"]

FloatArray = NDArray[np.float64]
# Less than 1: where all members agree, as on a day without rain, the error is not sure to be 0.
_SPREADS = (0.0, 0.25, 0.5, 0.9)
_MOST_BLOCKS = 30
# Standardised errors beyond are of first events, at points that never varied in the other blocks.
_LARGEST_ERROR = 1e3


def blocks(cases: int | NDArray[np.int64], most: int = _MOST_BLOCKS) -> list[NDArray[np.int64]]:
    """Contiguous blocks of cases in time; one time each as far as `most` allows.

    Parameters
    ----------
    cases
        Time of each case, of which those of one time stay together; or the number of cases, one a
        time.
    most
        Largest number of blocks.

    Examples
    --------
    >>> [block.tolist() for block in blocks(5, 2)]
    [[0, 1, 2], [3, 4]]
    >>> [block.tolist() for block in blocks(np.array([0, 0, 4, 4, 6, 6]))]
    [[0, 1], [2, 3], [4, 5]]
    """
    time = np.arange(cases) if isinstance(cases, int) else cases
    times = np.unique(time)
    parts = np.array_split(times, min(len(times), most))
    return [np.flatnonzero(np.isin(time, part)) for part in parts]


@dataclass(frozen=True)
class Folds:
    """What each block of cases looks like to statistics made without it.

    Attributes
    ----------
    blocks
        Cases of each block.
    standards
        Statistics without each block.
    target, std, spread
        Observed anomalies, what they were divided by, and relative ensemble spread of every case as
        its own fold sees them, ``[S, P]``.
    mean
        Observed mean of each case's fold, ``[S, P]``.
    weights
        Area weights, ``[P]``.
    """

    blocks: list[NDArray[np.int64]]
    standards: list[Standard]
    target: FloatArray
    mean: FloatArray
    std: FloatArray
    spread: FloatArray
    weights: FloatArray

    @classmethod
    def of(cls, forecast: Forecast, observed: FloatArray, weights: FloatArray) -> Folds:
        """Split the cases of `forecast` and refit all statistics without each block."""
        parts, standards = blocks(forecast.time), []
        target, mean, std, spread = (np.empty_like(observed) for _ in range(4))
        for block in parts:
            rest = np.setdiff1d(np.arange(len(observed)), block)
            standard = Standard.of(forecast.take(rest), observed[rest])
            standards.append(standard)
            target[block] = standard.target(observed[block])
            mean[block], std[block] = standard.mean, standard.divisor()
            spread[block] = standard.spread(forecast.take(block))
        return cls(parts, standards, target, mean, std, spread, weights)

    def mean_error(self, location: FloatArray) -> float:
        """Root of the weighted mean square error of predictions, in standardised units."""
        error = self.target - location
        weight = np.where(np.abs(error) < _LARGEST_ERROR, self.weights, 0.0)
        mean_square = (weight * np.nan_to_num(error) ** 2).sum() / max(weight.sum(), 1e-300)
        return float(np.sqrt(mean_square))

    def calibrated_score(self, distribution: Distribution, location: FloatArray) -> float:
        """Score of predictions whose one spread is that of their own errors."""
        return self.score(distribution, location, self.mean_error(location))

    def score(
        self, distribution: Distribution, location: FloatArray, scale: FloatArray | float
    ) -> float:
        """Mean score, in units of the target, of standardised out-of-fold predictions, by area."""
        return float(score_by_case(self, distribution, location, scale).mean())


def score_by_case(
    folds: Folds, distribution: Distribution, location: FloatArray, scale: FloatArray | float
) -> FloatArray:
    """Weighted CRPS of each case, ``[S]``; points without observation or forecast do not count."""
    observed = folds.mean + folds.std * folds.target
    tensors = (
        folds.mean + folds.std * location,
        folds.std * np.broadcast_to(scale, location.shape),
        observed,
    )
    crps = distribution.crps(*(torch.from_numpy(np.ascontiguousarray(t)) for t in tensors)).numpy()
    weight = np.where(np.isfinite(crps), folds.weights, 0.0)
    total = np.where(np.isfinite(crps), crps, 0.0) * weight
    result: FloatArray = total.sum(1) / np.maximum(weight.sum(1), 1e-300)
    return result


def calibrate(
    folds: Folds, distribution: Distribution, location: FloatArray, *, own: bool = False
) -> Calibration:
    """Turn out-of-fold locations into distributions by minimum CRPS.

    What makes the scale more than one number is taken only where the gain exceeds its standard
    error over cases: a share `rho` that follows the ensemble's spread, as many have little relation
    of spread and skill, and with `own` a factor of each point, made of the errors of other blocks.

    Where the distribution has a bound, `shift` and `gain` move the location too: least squares has
    fitted it to the mean of what was observed, and of what lies at the bound it is below.
    """
    shift, gain = 0.0, 1.0
    flat = np.ones_like(folds.spread)
    if not isinstance(distribution, Normal):
        shift, gain = _move(folds, distribution, location)
        location = shift + gain * location

    def best(shape: FloatArray) -> tuple[float, FloatArray]:
        found = minimize_scalar(
            lambda sigma: folds.score(distribution, location, sigma * shape),
            bounds=(0.05, 5.0),
            method="bounded",
            options={"xatol": 1e-3},
        )
        return float(found.x), score_by_case(folds, distribution, location, found.x * shape)

    rho, shape = 0.0, flat
    sigma, scores = best(shape)
    for share in _SPREADS[1:]:
        other_shape = np.sqrt(1 - share + share * folds.spread)
        other_sigma, other = best(other_shape)
        if _is_surely_less(other, scores):
            rho, sigma, shape, scores = share, other_sigma, other_shape, other
    if own:
        held_out, factor = _own_spread(folds, (folds.target - location) / shape)
        other_sigma, other = best(held_out * shape)
        if _is_surely_less(other, scores):
            return Calibration(shift, gain, other_sigma * factor, rho)
    return Calibration(shift, gain, sigma, rho)


def _is_surely_less(scores: FloatArray, others: FloatArray) -> bool:
    """Whether scores of cases are below others by more than the standard error of the mean."""
    gain = others - scores
    return bool(gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)))


def _move(folds: Folds, distribution: Distribution, location: FloatArray) -> tuple[float, float]:
    """Shift and gain of the location that, with a spread of their own, have the least CRPS."""

    def score(parts: FloatArray) -> float:
        return folds.score(distribution, parts[0] + parts[1] * location, float(np.exp(parts[2])))

    start = np.array([0.0, 1.0, np.log(max(folds.mean_error(location), 0.05))])
    simplex = start + np.vstack([np.zeros(3), np.diag([-0.5, 0.5, 0.3])])
    options = {"initial_simplex": simplex, "xatol": 2e-3, "fatol": 0.0, "maxiter": 150}
    found = minimize(score, start, method="Nelder-Mead", options=options).x
    return float(found[0]), float(found[1])


def _own_spread(folds: Folds, errors: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Spread of the errors of each point, drawn to the field's where they are few.

    Returns
    -------
    held_out, factor
        ``[S, P]`` of the other blocks, and ``[P]`` of all.
    """
    present = np.isfinite(errors)
    squares, count = np.where(present, errors, 0.0) ** 2, present.sum(0)
    total = squares.sum(0)

    def spread(squares: FloatArray, count: NDArray[np.int64]) -> FloatArray:
        known = (count > 0) & (squares > 0)
        if not known.any():
            return np.ones_like(squares)
        return np.sqrt(shrunk_variance(squares, count, known))

    held_out = np.empty_like(errors)
    for block in folds.blocks:
        rest = np.maximum(total - squares[block].sum(0), 0.0)
        held_out[block] = spread(rest, count - present[block].sum(0))
    return held_out, spread(total, count)
