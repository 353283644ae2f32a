"""``emos`` and ``emos_local``: regression on the ensemble, one for all points or own ones.

In standardised anomalies, ``location = q . (k * b + d_p)``, where ``q`` holds the mean over groups,
the contrasts of the groups to it, and other predictors.  The shared coefficients ``b`` are least
squares over all points and cases, all but the first penalised; ``k`` shrinks them; the departures
``d_p`` of a point are a ridge regression of what is left.  Every strength is chosen by
cross-validation over blocks of training cases, with all statistics refitted in each.  The scale is
one factor on the climatological spread of the points; ``emos_local`` gives each point a factor of
its own where that surely scores better.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from scisparse.grids import Grid
from scisparse.losses import Distribution
from scisparse.models.regression import EnsembleRegression
from scisparse.postprocess.samples import Forecast
from scisparse.postprocess.standard import Standard
from scisparse.postprocess.validation import Folds, calibrate

__all__ = ["LocalRegression", "SharedFit", "fit_emos", "fit_emos_local"]

FloatArray = NDArray[np.float64]
_SHRINK = (0.0, 0.25, 0.5, 0.7, 0.85, 1.0)
_CONTRAST = (0.0, 1.0, 10.0, np.inf)
_DEPARTURE = (0.3, 0.6, 1.0, 2.0, 4.0, 8.0, np.inf)


class LocalRegression(NamedTuple):
    """A fitted regression, and what it predicts for cases that it has not seen.

    Attributes
    ----------
    model
        Fitted to all cases.
    folds, location
        Standardised out-of-fold predictions ``[S, P]``, in the units of the folds.
    """

    model: EnsembleRegression
    folds: Folds
    location: FloatArray


class SharedFit:
    """Shared coefficients: the choice of penalty and shrinkage, and the fit with that choice.

    Attributes
    ----------
    points
        Points that were ever observed; all else here is at these P points alone.
    forecast, observed, standard, weights
        Cases, truth ``[S, P]``, statistics of all cases, area of each point.
    folds
        What each block of cases looks like to the others.
    penalty, shrink
        Chosen by cross-validation.
    location
        Out-of-fold standardised predictions, ``[S, P]``.
    """

    def __init__(
        self,
        forecast: Forecast,
        observed: FloatArray,
        standard: Standard,
        weights: FloatArray,
        distribution: Distribution,
    ) -> None:
        self.points = np.flatnonzero(weights > 0)
        self.forecast, self.observed = forecast.at(self.points), observed[:, self.points]
        self.standard, self.weights = standard.at(self.points), weights[self.points]
        self.distribution = distribution
        self.basis = _basis(forecast.mean.shape[1], forecast.extra.shape[1])
        self.folds = Folds.of(self.forecast, self.observed, self.weights)
        penalties = _CONTRAST if len(self.basis) > 1 else (np.inf,)
        full = {penalty: self._out_of_fold(penalty) for penalty in penalties}
        choices = [(penalty, shrink) for penalty in penalties for shrink in _SHRINK]
        self.penalty, self.shrink = min(
            choices, key=lambda c: self.folds.calibrated_score(distribution, c[1] * full[c[0]])
        )
        self.location = self.shrink * full[self.penalty]

    def coefficients(self, standard: Standard, cases: NDArray[np.int64]) -> FloatArray:
        """Shared coefficients ``[F]`` in the basis, from some cases and their statistics."""
        return self.shrink * self._solve(standard, cases, self.penalty)

    def _solve(self, standard: Standard, cases: NDArray[np.int64], penalty: float) -> FloatArray:
        q, z = self.anomalies(standard, cases)
        gram = np.einsum("p,sfp,sgp->fg", self.weights, q, q)
        right = np.einsum("p,sfp,sp->f", self.weights, q, z)
        if gram[0, 0] == 0:
            return np.zeros(len(gram))
        if np.isinf(penalty):
            only_first: FloatArray = np.eye(len(gram))[0] * (right[0] / gram[0, 0])
            return only_first
        # A trace of ridge keeps predictors that never vary, or repeat each other, solvable.
        ridge = gram[0, 0] * np.maximum(penalty * (np.arange(len(gram)) > 0), 1e-9)
        solved: FloatArray = np.linalg.solve(gram + np.diag(ridge), right)
        return solved

    def anomalies(
        self, standard: Standard, cases: NDArray[np.int64]
    ) -> tuple[FloatArray, FloatArray]:
        """Predictors in the basis ``[S, F, P]`` and target ``[S, P]``; 0 where one is missing."""
        q = np.einsum("sfp,fg->sgp", standard.predictors(self.forecast.take(cases)), self.basis)
        z = standard.target(self.observed[cases])
        missing = ~np.isfinite(z) | ~np.isfinite(q).all(1)
        return np.where(missing[:, None], 0.0, q), np.where(missing, 0.0, z)

    def _out_of_fold(self, penalty: float) -> FloatArray:
        """Predictions ``[S, P]`` of each block by coefficients fitted to the others."""
        location = np.empty_like(self.observed)
        for block, standard in zip(self.folds.blocks, self.folds.standards, strict=True):
            rest = np.setdiff1d(np.arange(len(self.observed)), block)
            b = self.basis @ self._solve(standard, rest, penalty)
            a = standard.predictors(self.forecast.take(block))
            location[block] = np.einsum("sfp,f->sp", a, b)
        return location


def fit_emos(shared: SharedFit, grid: Grid) -> EnsembleRegression:
    """One set of coefficients for all points."""
    cases = np.arange(len(shared.observed))
    b = shared.basis @ shared.coefficients(shared.standard, cases)
    model = _pointwise(grid, len(b), tie="all")
    calibration = calibrate(shared.folds, shared.distribution, shared.location)
    model.set_(b[None, :, None], calibration)
    return model


def fit_emos_local(shared: SharedFit, grid: Grid) -> LocalRegression:
    """Own coefficients at every point, shrunk to the shared ones."""
    locations = {strength: np.empty_like(shared.observed) for strength in _DEPARTURE}
    everything = np.arange(len(shared.observed))
    for block, fold in zip(shared.folds.blocks, shared.folds.standards, strict=True):
        local = _LocalFit(shared, fold, np.setdiff1d(everything, block))
        a = fold.predictors(shared.forecast.take(block))
        for strength in _DEPARTURE:
            locations[strength][block] = np.einsum("sfp,fp->sp", a, local.coefficients(strength))
    strength = min(
        _DEPARTURE,
        key=lambda s: shared.folds.calibrated_score(shared.distribution, locations[s]),
    )
    final = np.zeros((len(shared.basis), grid.size))
    final[:, shared.points] = _LocalFit(shared, shared.standard, everything).coefficients(strength)
    model = _pointwise(grid, len(final))
    location = locations[strength]
    calibration = calibrate(shared.folds, shared.distribution, location, own=True)
    model.set_(final.T[:, :, None], calibration.on_grid(shared.points, grid.size))
    location = calibration.shift + calibration.gain * location
    return LocalRegression(model, shared.folds, location)


class _LocalFit:
    """Departures of each point from the shared coefficients, for any strength of shrinkage."""

    def __init__(self, shared: SharedFit, standard: Standard, cases: NDArray[np.int64]) -> None:
        q, z = shared.anomalies(standard, cases)
        b = shared.coefficients(standard, cases)
        left = z - np.einsum("sfp,f->sp", q, b)
        # Where the groups are equal for all points, they are equal at each.
        self.active = slice(0, 1) if np.isinf(shared.penalty) else slice(None)
        self.shared, self.basis = b, shared.basis
        self.gram = np.einsum("sfp,sgp->pfg", q[:, self.active], q[:, self.active])
        self.right = np.einsum("sfp,sp->pf", q[:, self.active], left)
        # A predictor that never varies says nothing, nor whether the others vary.
        varying = np.count_nonzero(np.einsum("pff->f", self.gram))
        trace = np.einsum("pff->p", self.gram) / max(varying, 1)
        self.scale = float((shared.weights * trace).sum() / max(shared.weights.sum(), 1e-300))

    def coefficients(self, strength: float) -> FloatArray:
        """Coefficients of the predictors at each point, ``[F, P]``."""
        b = np.repeat(self.shared[:, None], len(self.gram), 1)
        if np.isfinite(strength) and self.scale > 0:
            ridge = strength * self.scale * np.eye(self.gram.shape[1])
            b[self.active] += np.linalg.solve(self.gram + ridge, self.right[..., None])[..., 0].T
        return self.basis @ b


def _basis(groups: int, extra: int) -> FloatArray:
    """Columns: mean over groups, contrasts of all groups but the first to it, other predictors."""
    basis = np.eye(groups + extra)
    basis[:groups, :groups] -= 1 / groups
    basis[:groups, 0] = 1 / groups
    return basis


def _pointwise(grid: Grid, features: int, tie: str | None = None) -> EnsembleRegression:
    """Regression in which every point reads itself."""
    points = torch.arange(grid.size + 1)
    return EnsembleRegression(grid, points, points[:-1], features, tie=tie)
