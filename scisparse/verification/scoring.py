"""Scores of predictions that are matched with observations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.verification.pointwise import quantile_score
from scisparse.verification.predictions import Prediction
from scisparse.verification.tabulated import Quantiles

__all__ = ["Mean", "all_scores"]

FloatArray = NDArray[np.float64]
#: Averages cases.
Mean = Callable[[xr.DataArray], xr.DataArray]
_SKILLS = ("crps", "rmse", "quantile_score", "brier_score")


def all_scores(
    scored: Sequence[Prediction],
    truth: xr.DataArray,
    mean: Mean,
    bins: int,
    thresholds: xr.DataArray | None,
) -> xr.Dataset:
    """Return the scores of the first, and of the reference after it, without attributes."""
    prediction = scored[0]
    levels = next((each.levels for each in scored if isinstance(each, Quantiles)), None)
    scores = xr.Dataset(_basic(prediction, truth, mean, levels, thresholds))
    variance = prediction.variance()
    if variance is not None:
        spread = mean(variance.where(truth.notnull())) ** 0.5
        scores["spread"] = spread
        scores["spread_skill_ratio"] = _divide(spread, scores["rmse"])
    shares = prediction.bins(truth, bins)
    if shares is not None:
        scores[prediction.histogram] = mean(shares)
    for reference in scored[1:]:
        for name, score in _basic(reference, truth, mean, levels, thresholds).items():
            scores[f"{name}_reference"] = score
        for name in _SKILLS:
            if name in scores and f"{name}_reference" in scores:
                scores[f"{name}_skill"] = 1.0 - _divide(scores[name], scores[f"{name}_reference"])
    return scores


def _basic(
    prediction: Prediction,
    truth: xr.DataArray,
    mean: Mean,
    levels: FloatArray | None,
    thresholds: xr.DataArray | None,
) -> dict[str, xr.DataArray]:
    """Return the scores that prediction and reference share, as far as the form has them."""
    from scores.continuous import additive_bias, mse

    scores: dict[str, xr.DataArray] = {}
    crps, point = prediction.crps(truth), prediction.point()
    if crps is not None:
        scores["crps"] = mean(crps)
    if point is not None:
        best, observed = xr.broadcast(point, truth)
        scores["bias"] = mean(additive_bias(best, observed, preserve_dims="all"))
        scores["rmse"] = mean(mse(best, observed, preserve_dims="all")) ** 0.5
    quantiles = None if levels is None else prediction.at_levels(levels)
    if levels is not None and quantiles is not None:
        scores["quantile_score"] = mean(quantile_score(quantiles, levels, truth))
    brier = None if thresholds is None else prediction.brier(truth, thresholds)
    if brier is not None:
        scores["brier_score"] = mean(brier)
    return scores


def _divide(top: xr.DataArray, bottom: xr.DataArray) -> xr.DataArray:
    """Return the ratio, NaN where the divisor is 0."""
    return top / bottom.where(bottom != 0)
