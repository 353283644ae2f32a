"""``local``: an untied stencil whose weights taper off with distance, by ridge regression at every point.

Each point reads the anomalies of the observed points around it.  Its weights minimise
``sum_t (z - a . w)^2 + ridge * sum_j w_j^2 / taper_j`` with ``taper = exp(-d^2 / 2 L^2)``.  How each length ``L`` and ridge
would have predicted every block of cases left out is known in closed form: the errors are ``(1 - 1/T - H)^-1 e`` with the
block's part of the hat matrix ``H`` (Cook and Weisberg 1982).  The stencils of all lengths and ridges are averaged, each by
``score^-blocks``: their likelihood, were the errors of each block one draw from a scale family (pseudo-Bayesian model
averaging, Yao et al. 2018).  Picking the best one instead would follow the noise of the score.

References
----------
Cook, R. D., Weisberg, S. (1982). Residuals and influence in regression. Chapman and Hall, section 2.2.

Yao, Y., Vehtari, A., Simpson, D., Gelman, A. (2018). Using stacking to average Bayesian predictive distributions.
https://doi.org/10.1214/17-BA1091
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from scisparse.grids import Grid
from scisparse.losses import Distribution
from scisparse.models.regression import EnsembleRegression
from scisparse.patterns import radius
from scisparse.postprocess.samples import Forecast
from scisparse.postprocess.standard import Standard
from scisparse.postprocess.validation import Folds, blocks, choose_spread

__all__ = ["fit_local"]

FloatArray = NDArray[np.float64]
_LENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0)  # of the taper, in grid spacings
_RIDGES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
_REACH = 2.5  # where a stencil ends, in lengths: the taper has fallen to 4 %
_MOST_READS = 100_000_000  # edges times cases of one stencil
_CHUNK = 20_000_000  # numbers held at once


def fit_local(
    forecast: Forecast,
    observed: FloatArray,
    standard: Standard,
    grid: Grid,
    weights: FloatArray,
    distribution: Distribution,
) -> EnsembleRegression:
    """Fit an untied stencil over the observed points; the mean over groups is its one predictor."""
    points = np.flatnonzero(weights > 0)
    groups = forecast.mean.shape[1]
    a = np.nan_to_num(standard.predictors(forecast)[:, :groups].mean(1))[:, points]
    z = np.nan_to_num(standard.target(observed))[:, points]
    folds, deviation = _folds(
        standard.at(points), forecast.at(points), observed[:, points], weights[points]
    )
    fits = []
    for stencil in _stencils(grid, weights > 0, len(a)):
        for edges, signal in stencil.fit(a, z, folds.blocks):
            location = signal / deviation
            score = folds.calibrated_score(distribution, location)
            fits.append((stencil, edges, location, score))
    share = _shares(np.array([score for *_, score in fits]), len(folds.blocks))
    widest = fits[-1][0]
    mixed = np.zeros(len(widest.col))
    for (stencil, edges, _, _), part in zip(fits, share, strict=True):
        mixed[stencil.places_in(widest)] += part * edges
    location = np.einsum("h,hsp->sp", share, np.stack([location for _, _, location, _ in fits]))
    row_ptr, col = widest.on_grid()
    model = EnsembleRegression(grid, row_ptr, col, standard.forecast_mean.shape[0])
    weight = np.zeros((len(mixed), standard.forecast_mean.shape[0], 1))
    weight[:, :groups, 0] = mixed[:, None] / groups
    model.set_(weight, *choose_spread(folds, distribution, location))
    return model


def _shares(scores: FloatArray, cases: int) -> FloatArray:
    """Weights in proportion to ``score^-cases``."""
    log = -cases * np.log(scores / scores.min())
    return np.exp(log) / np.exp(log).sum()


def _folds(
    standard: Standard, forecast: Forecast, observed: FloatArray, weights: FloatArray
) -> tuple[Folds, FloatArray]:
    """What each case looks like to the mean and spread of the other blocks, and that spread, ``[S, P]``."""
    z, parts = standard.target(observed), blocks(len(observed))
    middle, deviation = np.empty_like(z), np.empty_like(z)
    for block in parts:
        rest = np.delete(z, block, 0)
        present = np.isfinite(rest)
        count = present.sum(0)
        middle[block] = np.where(present, rest, 0.0).sum(0) / np.maximum(count, 1)
        squares = np.where(present, rest - middle[block[0]], 0.0) ** 2
        deviation[block] = np.sqrt(squares.sum(0) / np.maximum(count - 1, 1))
    deviation = np.where(deviation > 0, deviation, 1.0)
    folds = Folds(
        blocks=parts,
        standards=[],
        target=(z - middle) / deviation,
        mean=standard.mean + standard.std * middle,
        std=standard.std * deviation,
        spread=standard.spread(forecast),
        weights=weights,
    )
    return folds, deviation


def _stencils(grid: Grid, valid: NDArray[np.bool_], cases: int) -> Iterator[_Stencil]:
    """Stencils of rising length, as long as they are small enough to fit; always the first."""
    count = int(valid.sum())
    for length in _LENGTHS:
        edges = count * min(count, np.pi * (_REACH * length) ** 2)
        if length == _LENGTHS[0] or edges * cases <= _MOST_READS:
            yield _stencil(grid, length, valid.tobytes())


@functools.lru_cache(maxsize=8)
def _stencil(grid: Grid, length: float, valid: bytes) -> _Stencil:
    """Stencil of a grid, kept for the next fit on it: cross-validation fits many times."""
    return _Stencil(grid, length, np.frombuffer(valid, dtype=np.bool_))


class _Stencil:
    """Observed points around every observed point, numbered among themselves, and the taper of each edge."""

    def __init__(self, grid: Grid, length: float, valid: NDArray[np.bool_]) -> None:
        self.points = np.flatnonzero(valid)
        self.size = grid.size
        spacing = float(np.sqrt(grid.areas[self.points].mean()))
        mask = torch.from_numpy(valid.copy())
        pattern = radius(grid, _REACH * length * spacing).restrict(mask, mask, relabel=True)
        self.row_ptr, self.col = pattern.row_ptr.numpy(), pattern.col.numpy()
        self.rows = pattern.rows().numpy()
        distance = np.zeros(0) if pattern.distance is None else pattern.distance.double().numpy()
        taper = np.exp(-0.5 * (distance / (length * spacing)) ** 2)
        taper *= grid.areas[self.points][self.col]
        total = np.bincount(self.rows, taper, minlength=len(self.points))
        self.taper: FloatArray = taper / total[self.rows]

    def fit(
        self, a: FloatArray, z: FloatArray, parts: list[NDArray[np.int64]]
    ) -> list[tuple[FloatArray, FloatArray]]:
        """For each ridge, the weights ``[E]``, and what is predicted for each block left out ``[S, P]``."""
        results = [(np.zeros(len(self.col)), np.zeros_like(z)) for _ in _RIDGES]
        for sites, edges in self._chunks(len(a)):
            present = edges >= 0
            root = np.sqrt(np.where(present, self.taper[edges], 0.0))
            reads = a[:, self.col[edges]].transpose(1, 0, 2) * root[:, None]
            vectors, values = _decompose(reads)
            for (weights, signal), ridge in zip(results, _RIDGES, strict=True):
                damped = np.maximum(values + ridge * values.sum(1, keepdims=True), 1e-300)
                centred = z[:, sites] - z[:, sites].mean(0)
                along = np.einsum("ptr,tp->pr", vectors, centred)
                dual = np.einsum("ptr,pr->pt", vectors, along / damped)
                primal = np.einsum("ptk,pt->pk", reads, dual) * root
                weights[edges[present]] = primal[present]
                signal[:, sites] = _leave_out(vectors, values / damped, centred, parts)
        return results

    def _chunks(self, cases: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Sites, and their edges ``[sites, widest fan-in]`` with -1 past the last."""
        fan_in = np.diff(self.row_ptr)
        place = np.arange(int(fan_in.max()))
        step = max(1, _CHUNK // (len(place) * cases))
        for start in range(0, len(fan_in), step):
            sites = np.arange(start, min(start + step, len(fan_in)))
            edges = self.row_ptr[sites, None] + place
            yield sites, np.where(place < fan_in[sites, None], edges, -1)

    def places_in(self, wider: _Stencil) -> NDArray[np.int64]:
        """Where each edge stands among those of a stencil that has them all."""
        count = len(self.points)
        mine = self.rows.astype(np.int64) * count + self.col
        return np.searchsorted(wider.rows.astype(np.int64) * count + wider.col, mine)

    def on_grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``row_ptr`` and ``col`` among all points of the grid."""
        fan_in = np.zeros(self.size, dtype=np.int64)
        fan_in[self.points] = np.diff(self.row_ptr)
        row_ptr = np.concatenate([[0], fan_in.cumsum()])
        return torch.from_numpy(row_ptr), torch.from_numpy(self.points[self.col])


def _decompose(reads: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Left singular vectors ``[p, S, r]`` and squared singular values ``[p, r]``, by the smaller of the two products."""
    if reads.shape[2] >= reads.shape[1]:
        values, vectors = np.linalg.eigh(reads @ reads.transpose(0, 2, 1))
        return vectors, np.maximum(values, 0.0)
    values, right = np.linalg.eigh(reads.transpose(0, 2, 1) @ reads)
    values = np.maximum(values, 0.0)
    left = reads @ right / np.sqrt(np.maximum(values, 1e-300))[:, None]
    significant = values[:, None] > 1e-12 * values.max(1)[:, None, None]
    return np.where(significant, left, 0.0), values


def _leave_out(
    vectors: FloatArray, keep: FloatArray, centred: FloatArray, parts: list[NDArray[np.int64]]
) -> FloatArray:
    """Signal, a departure from the mean of the other cases, predicted for each block that is left out."""
    cases = len(centred)
    fitted = np.einsum("ptr,pr->tp", vectors, keep * np.einsum("ptr,tp->pr", vectors, centred))
    error, signal = centred - fitted, np.empty_like(centred)
    for size in {len(part) for part in parts}:
        block = np.stack([part for part in parts if len(part) == size])  # [n, size]
        part = vectors[:, block]  # [p, n, size, r]
        hat = (part * keep[:, None, None]) @ part.swapaxes(2, 3)
        out = np.linalg.solve(
            np.eye(size) - 1 / cases - hat, error[block].transpose(2, 0, 1)[..., None]
        )
        mean = centred[block].sum(1, keepdims=True) / max(cases - size, 1)
        signal[block] = centred[block] - out[..., 0].transpose(1, 2, 0) + mean
    return signal
