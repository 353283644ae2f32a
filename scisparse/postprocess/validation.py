"""Choices made inside the training cases: cross-validation over blocks of time, and its score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from scisparse.losses import Distribution
from scisparse.postprocess.samples import Forecast
from scisparse.postprocess.standard import Standard

__all__ = ["Folds", "blocks", "choose_spread", "score_by_case"]

FloatArray = NDArray[np.float64]
# Less than 1: where all members agree, as on a day without rain, the error is not sure to be 0.
_SPREADS = (0.0, 0.25, 0.5, 0.9)
_MOST_BLOCKS = 30


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
        Observed anomalies, standard deviation and relative ensemble spread of every case as its own
        fold sees them, ``[S, P]``.
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
            mean[block], std[block] = standard.mean, standard.std
            spread[block] = standard.spread(forecast.take(block))
        return cls(parts, standards, target, mean, std, spread, weights)

    def mean_error(self, location: FloatArray) -> float:
        """Root of the weighted mean square error of predictions, in standardised units."""
        error = self.target - location
        weight = np.where(np.isfinite(error), self.weights, 0.0)
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


def choose_spread(
    folds: Folds, distribution: Distribution, location: FloatArray
) -> tuple[float, float]:
    """Factor ``sigma`` on the climatological spread, and share ``rho`` that follows the ensemble's.

    `rho` leaves 0 only where the gain exceeds its standard error over cases: ensembles with little
    spread-skill relation are better left alone.
    """

    def best(rho: float) -> tuple[float, FloatArray]:
        shape = np.sqrt(1 - rho + rho * folds.spread)
        found = minimize_scalar(
            lambda sigma: folds.score(distribution, location, sigma * shape),
            bounds=(0.05, 5.0),
            method="bounded",
            options={"xatol": 1e-3},
        )
        return float(found.x), score_by_case(folds, distribution, location, found.x * shape)

    rho = 0.0
    sigma, scores = best(rho)
    for share in _SPREADS[1:]:
        other_sigma, other = best(share)
        gain = scores - other
        if gain.mean() > gain.std(ddof=1) / np.sqrt(len(gain)):
            rho, sigma, scores = share, other_sigma, other
    return sigma, rho
