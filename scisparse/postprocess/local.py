"""``local``: an untied stencil that tapers off with distance, by ridge regression at every point.

Each point reads the anomalies of the observed points around it. Its weights minimise ``sum_t (z - a
. w)^2 + ridge * sum_j (w_j - p_j)^2 / taper_j`` with ``taper = exp(-d^2 / 2 L^2)``; the prior ``p``
is 0, or the slope that all points share on a point's own anomaly; the target ``z`` is the point's
own anomaly or, as what can be predicted may be broader than what is observed, the mean of those
around. How each length ``L``, ridge, prior and target would have predicted every block of cases
left out is known in closed form: the errors are ``(1 - 1/T - H)^-1 e`` with the block's part of the
hat matrix ``H`` (Cook and Weisberg 1982). The stencils of all choices are averaged, each by
``score^-blocks``: their likelihood, were the errors of each block one draw from a scale family
(pseudo-Bayesian model averaging, Yao et al. 2018). Picking the best one instead would follow the
noise of the score.

References
----------
Cook, R. D., Weisberg, S. (1982). Residuals and influence in regression. Chapman and Hall, section
2.2.

Yao, Y., Vehtari, A., Simpson, D., Gelman, A. (2018). Using stacking to average Bayesian predictive
distributions. https://doi.org/10.1214/17-BA1091
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from scisparse.errors import MemoryLimitError
from scisparse.grids import Grid
from scisparse.losses import Distribution
from scisparse.memory import available_bytes, readable
from scisparse.models.regression import EnsembleRegression
from scisparse.patterns import radius
from scisparse.postprocess.samples import Forecast, cell_areas
from scisparse.postprocess.standard import Standard
from scisparse.postprocess.validation import Folds, blocks, calibrate

__all__ = ["fit_local"]

FloatArray = NDArray[np.float64]
_LENGTHS = (1.0, 2.0, 4.0, 8.0, 16.0)  # of the taper, in grid spacings
_SMOOTHED = 2  # targets: means of the surroundings, over the shortest lengths
_RIDGES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8)
_GAINS = (0.0, 0.25, 0.5, 0.7, 0.85, 1.0)
_REACH = 2.5  # where a stencil ends, in lengths: the taper has fallen to 4 %
_MOST_EDGES = 1_000_000  # of a stencil longer than the shortest
_SMALLEST = 1e-6  # spread of anomalies below which a point is constant, but for rounding
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
    z = standard.target(observed)[:, points]
    folds, deviation = _folds(
        standard.at(points), forecast.at(points), observed[:, points], weights[points]
    )
    stencils = list(_stencils(grid, weights > 0))
    _check_fits(len(stencils), *z.shape)
    targets = (z, *(stencil.smooth(z) for stencil in stencils[:_SMOOTHED]))
    fits = [_Fit.of(s, a, targets, weights[points], folds.blocks) for s in stencils]
    scores = [
        folds.calibrated_score(distribution, signal / deviation)
        for fit in fits
        for signal in fit.signals(a)
    ]
    shares = np.split(_shares(np.asarray(scores), len(folds.blocks)), len(fits))
    location = np.zeros_like(a)
    for fit, share in zip(fits, shares, strict=True):
        location += fit.signal(a, share) / deviation
    # Where there is no skill nothing must be left of the stencil: averaging alone would keep some.
    gain = min(_GAINS, key=lambda g: folds.calibrated_score(distribution, g * location))
    widest = fits[-1].stencil
    mixed = np.zeros(len(widest.col))
    for fit, share in zip(fits, shares, strict=True):
        mixed[fit.stencil.places_in(widest)] += gain * fit.weights(a, share)
    location = gain * location
    row_ptr, col = widest.on_grid()
    model = EnsembleRegression(grid, row_ptr, col, standard.forecast_mean.shape[0])
    weight = np.zeros((len(mixed), standard.forecast_mean.shape[0], 1))
    weight[:, :groups, 0] = mixed[:, None] / groups
    calibration = calibrate(folds, distribution, location, own=True)
    model.set_(weight, calibration.on_grid(points, grid.size))
    return model


def _check_fits(lengths: int, cases: int, points: int) -> None:
    """Say before allocating that the fits of all choices would not fit into memory."""
    targets = _SMOOTHED + 2
    needed = lengths * len(_RIDGES) * targets * cases * points * 2 * np.dtype(np.float32).itemsize
    available = available_bytes(torch.device("cpu"))
    if available is not None and needed > available:
        raise MemoryLimitError(
            f"method 'local' needs {readable(needed)} for {cases} cases at {points} points and "
            f"{readable(available)} are free; use fewer cases, a coarser grid, or 'emos_local'"
        )


@dataclass(frozen=True)
class _Fit:
    """One length: every ridge on every target, and on the first with the shared slope as prior.

    With the prior, a ridge on ``z - slope * a`` is fitted and the slope added again; a ridge is
    linear, so that fits to ``z`` and to ``a`` give both.
    """

    stencil: _Stencil
    ridges: list[_Ridge]
    slope: float
    slopes: FloatArray  # without each block, [S, 1]

    @classmethod
    def of(
        cls,
        stencil: _Stencil,
        a: FloatArray,
        targets: tuple[FloatArray, ...],
        areas: FloatArray,
        parts: list[NDArray[np.int64]],
    ) -> _Fit:
        z, present = np.nan_to_num(targets[0]), np.isfinite(targets[0])
        square, product = (present * a * a) @ areas, (a * z) @ areas
        slopes = np.empty((len(a), 1))
        for part in parts:
            rest = square.sum() - square[part].sum()
            slopes[part] = (product.sum() - product[part].sum()) / max(rest, 1e-300)
        slope = float(product.sum() / max(square.sum(), 1e-300))
        return cls(stencil, stencil.fit(a, (*targets, a), present, parts), slope, slopes)

    def signals(self, a: FloatArray) -> Iterator[FloatArray]:
        """Give what each choice predicts for each block that is left out, ``[S, P]``."""
        for ridge in self.ridges:
            yield from ridge.signal[:-1]
            yield ridge.signal[0] + self.slopes * (a - ridge.signal[-1])

    def signal(self, a: FloatArray, share: FloatArray) -> FloatArray:
        """Average of all choices, in the order of :meth:`signals`."""
        total = np.zeros_like(a)
        for part, signal in zip(share, self.signals(a), strict=True):
            total += part * signal
        return total

    def weights(self, a: FloatArray, share: FloatArray) -> FloatArray:
        """Weights ``[E]`` of the average of all choices, in the order of :meth:`signals`."""
        dual, prior = np.zeros_like(a.T), 0.0
        for ridge, parts in zip(self.ridges, np.split(share, len(self.ridges)), strict=True):
            of_targets = np.append(parts[:-1], -self.slope * parts[-1])
            of_targets[0] += parts[-1]
            dual += np.tensordot(of_targets, ridge.dual, 1)
            prior += self.slope * parts[-1]
        weights = self.stencil.weights(a, dual)
        weights[self.stencil.col == self.stencil.rows] += prior
        return weights


class _Ridge(NamedTuple):
    """Dual weights ``[K, P, S]`` and signals of blocks left out ``[K, S, P]``, of every target.

    In single precision: they are what takes most memory.
    """

    dual: NDArray[np.float32]
    signal: NDArray[np.float32]


def _shares(scores: FloatArray, cases: int) -> FloatArray:
    """Weights in proportion to ``score^-cases``; equal ones among scores of 0."""
    best = scores.min()
    likelihood = (scores / best) ** -cases if best > 0 else (scores == best).astype(float)
    share: FloatArray = likelihood / likelihood.sum()
    return share


def _folds(
    standard: Standard, forecast: Forecast, observed: FloatArray, weights: FloatArray
) -> tuple[Folds, FloatArray]:
    """Folds by the mean and spread of the other blocks, and that spread, ``[S, P]``."""
    z, parts = standard.target(observed), blocks(forecast.time)
    middle, deviation = np.empty_like(z), np.empty_like(z)
    for block in parts:
        rest = np.delete(z, block, 0)
        present = np.isfinite(rest)
        count = present.sum(0)
        middle[block] = np.where(present, rest, 0.0).sum(0) / np.maximum(count, 1)
        squares = np.where(present, rest - middle[block[0]], 0.0) ** 2
        deviation[block] = np.sqrt(squares.sum(0) / np.maximum(count - 1, 1))
    deviation = np.where(deviation > _SMALLEST, deviation, 1.0)
    folds = Folds(
        blocks=parts,
        standards=[],
        target=(z - middle) / deviation,
        mean=standard.mean + standard.divisor() * middle,
        std=standard.divisor() * deviation,
        spread=standard.spread(forecast),
        weights=weights,
    )
    return folds, deviation


def _stencils(grid: Grid, valid: NDArray[np.bool_]) -> Iterator[_Stencil]:
    """Stencils of rising length, as long as they are small enough to fit; always the first."""
    count = int(valid.sum())
    for length in _LENGTHS:
        edges = count * min(count, np.pi * (_REACH * length) ** 2)
        if length == _LENGTHS[0] or edges <= _MOST_EDGES:
            yield _stencil(grid, length, valid.tobytes())


@functools.lru_cache(maxsize=8)
def _stencil(grid: Grid, length: float, valid: bytes) -> _Stencil:
    """Stencil of a grid, kept for the next fit on it: cross-validation fits many times."""
    return _Stencil(grid, length, np.frombuffer(valid, dtype=np.bool_))


class _Stencil:
    """Observed points around every observed point, numbered among themselves, and a taper."""

    def __init__(self, grid: Grid, length: float, valid: NDArray[np.bool_]) -> None:
        self.points = np.flatnonzero(valid)
        self.size = grid.size
        areas = cell_areas(grid)[self.points]
        spacing = float(np.sqrt(areas.mean()))
        mask = torch.from_numpy(valid.copy())
        pattern = radius(grid, _REACH * length * spacing).restrict(mask, mask, relabel=True)
        self.row_ptr, self.col = pattern.row_ptr.numpy(), pattern.col.numpy()
        self.rows = pattern.rows().numpy()
        distance = np.zeros(0) if pattern.distance is None else pattern.distance.double().numpy()
        taper = np.exp(-0.5 * (distance / (length * spacing)) ** 2)
        taper *= areas[self.col]
        total = np.bincount(self.rows, taper, minlength=len(self.points))
        self.taper: FloatArray = taper / total[self.rows]

    def smooth(self, z: FloatArray) -> FloatArray:
        """Mean over the points around that are observed, weighted by the taper; NaN without any."""
        smoothed = np.empty_like(z)
        step = max(1, _CHUNK // len(self.col))
        for start in range(0, len(z), step):
            read = z[start : start + step, self.col]
            present = np.isfinite(read)
            total, weight = (
                np.add.reduceat(values, self.row_ptr[:-1], axis=1)
                for values in (self.taper * np.where(present, read, 0.0), self.taper * present)
            )
            with np.errstate(invalid="ignore"):
                smoothed[start : start + step] = total / weight
        return smoothed

    def fit(
        self,
        a: FloatArray,
        targets: tuple[FloatArray, ...],
        present: NDArray[np.bool_],
        parts: list[NDArray[np.int64]],
    ) -> list[_Ridge]:
        """Ridge regression of all targets on the anomalies around, for every ridge.

        Only cases that are `present` ``[S, P]`` count at a point.
        """
        shape = (len(targets), *a.shape)
        # Anomalies have the mean 0 over the cases of their own point, which others may not share.
        centred = present.all() and np.abs(a.mean(0)).max() < _SMALLEST
        ridges = [
            _Ridge(np.empty((len(targets), *a.T.shape), np.float32), np.empty(shape, np.float32))
            for _ in _RIDGES
        ]
        for sites, edges in self._chunks(len(a)):
            root = np.sqrt(np.where(edges >= 0, self.taper[edges], 0.0))
            reads = a[:, self.col[edges]].transpose(1, 0, 2) * root[:, None]
            here = present[:, sites].T
            if not centred:
                reads = _centred(reads, here)
            target = _centred(np.stack([z[:, sites].T for z in targets], -1), here)
            vectors, values = _decompose(reads)
            along = vectors.swapaxes(1, 2) @ target
            total = values.sum(1, keepdims=True)
            for ridge, strength in zip(ridges, _RIDGES, strict=True):
                # Anomalies are of order 1: less than rounding, and there is nothing to read.
                varies = total > 1e-12 * len(a)
                inverse = varies / np.where(varies, values + strength * total, 1.0)
                dual = vectors @ (along * inverse[..., None])
                signal = _leave_out(vectors, values * inverse, target, here, parts)
                ridge.dual[:, sites] = dual.transpose(2, 0, 1)
                ridge.signal[:, :, sites] = signal.transpose(2, 1, 0)
        return ridges

    def weights(self, a: FloatArray, dual: FloatArray) -> FloatArray:
        """Weights ``[E]`` of dual weights ``[P, S]``."""
        weights = np.empty(len(self.col))
        step = max(1, _CHUNK // len(a))
        for start in range(0, len(weights), step):
            edges = slice(start, start + step)
            read = np.ascontiguousarray(a.T)[self.col[edges]]
            weights[edges] = np.einsum("et,et->e", read, dual[self.rows[edges]])
        return weights * self.taper

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
        places: NDArray[np.int64] = np.searchsorted(
            wider.rows.astype(np.int64) * count + wider.col, mine
        )
        return places

    def on_grid(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``row_ptr`` and ``col`` among all points of the grid."""
        fan_in = np.zeros(self.size, dtype=np.int64)
        fan_in[self.points] = np.diff(self.row_ptr)
        row_ptr = np.concatenate([[0], fan_in.cumsum()])
        return torch.from_numpy(row_ptr), torch.from_numpy(self.points[self.col])


def _decompose(reads: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Left singular vectors ``[p, S, r]`` and squared singular values ``[p, r]``."""
    if reads.shape[2] >= reads.shape[1]:
        values, vectors = np.linalg.eigh(reads @ reads.transpose(0, 2, 1))
        return vectors, np.maximum(values, 0.0)
    values, right = np.linalg.eigh(reads.transpose(0, 2, 1) @ reads)
    values = np.maximum(values, 0.0)
    left = reads @ right / np.sqrt(np.maximum(values, 1e-300))[:, None]
    significant = values[:, None] > 1e-12 * values.max(1)[:, None, None]
    return np.where(significant, left, 0.0), values


def _centred(values: FloatArray, present: NDArray[np.bool_]) -> FloatArray:
    """Departures ``[p, S, K]`` from the mean over cases present ``[p, S]``, 0 in the others."""
    there = present[..., None]
    count = np.maximum(there.sum(1, keepdims=True), 1)
    mean = np.where(there, values, 0.0).sum(1, keepdims=True) / count
    return np.where(there, values - mean, 0.0)


def _leave_out(
    vectors: FloatArray,
    keep: FloatArray,
    target: FloatArray,
    present: NDArray[np.bool_],
    parts: list[NDArray[np.int64]],
) -> FloatArray:
    """Signals, departures from the mean of the other cases, predicted for blocks left out.

    Of centred targets ``[p, S, K]``, by singular vectors ``[p, S, r]`` of which the ridge keeps the
    share ``keep [p, r]``; only cases `present` ``[p, S]`` count.
    """
    cases = np.maximum(present.sum(1), 1)
    kept = vectors * keep[:, None]
    error = target - kept @ (vectors.swapaxes(1, 2) @ target)
    signal = np.empty_like(target)
    for size in {len(part) for part in parts}:
        block = np.stack([part for part in parts if len(part) == size])  # [n, size]
        hat = kept[:, block] @ vectors[:, block].swapaxes(2, 3)  # [p, n, size, size]
        there = present[:, block, None].astype(np.float64)
        others = cases[:, None] - present[:, block].sum(2)  # [p, n]
        # Without any other case there is no mean to take into account.
        part_of_mean = np.where(others > 0, 1 / cases[:, None], 0.0)[..., None, None]
        share = part_of_mean * (there @ there.swapaxes(2, 3))
        out = np.linalg.solve(np.eye(size) - share - hat, error[:, block])
        mean = target[:, block].sum(2, keepdims=True) / np.maximum(others, 1)[..., None, None]
        signal[:, block] = target[:, block] - out + mean
    return signal
