"""Scores of quantiles and of probabilities of exceedance, case by case."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import DTypeLike, NDArray

__all__ = [
    "along_thresholds",
    "brier_score",
    "exceeds",
    "places",
    "quantile_score",
    "rounded",
]

FloatArray = NDArray[np.float64]


def along_thresholds(thresholds: FloatArray, dtype: DTypeLike) -> xr.DataArray:
    """Thresholds in `dtype` along dim ``threshold``, whose coordinate has them as they were given.

    In single precision 0.1 is more than in double: values and thresholds are compared in the lower
    precision of the two, in which equal ones are equal.
    """
    with np.errstate(over="ignore"):  # what a type cannot hold is exceeded by none of it
        return xr.DataArray(thresholds.astype(dtype), {"threshold": thresholds}, "threshold")


def exceeds(values: xr.DataArray, thresholds: xr.DataArray) -> xr.DataArray:
    """Whether values exceed each of :func:`along_thresholds`, in their precision."""
    return rounded(values, thresholds) > thresholds


def rounded(values: xr.DataArray, thresholds: xr.DataArray) -> xr.DataArray:
    """Round values to the precision of thresholds."""
    with np.errstate(over="ignore"):
        return values.astype(thresholds.dtype)


def brier_score(
    probability: xr.DataArray, observed: xr.DataArray, thresholds: xr.DataArray
) -> xr.DataArray:
    """Score (p - 1)^2 where a threshold was exceeded, else p^2; NaN where `observed` is (Brier)."""
    exceeded = exceeds(observed, thresholds)
    return ((probability - exceeded) ** 2).where(observed.notnull())


def quantile_score(
    quantiles: xr.DataArray, levels: FloatArray, observed: xr.DataArray
) -> xr.DataArray:
    """Score of quantiles at `levels`: twice the pinball loss, weighted by level.

    ``2 sum_k w_k max(p_k (y - q_k), (p_k - 1) (y - q_k))``, where w_k is the probability that is
    nearer to level p_k than to the other levels.
    """
    edges = np.concatenate([[0.0], 0.5 * (levels[1:] + levels[:-1]), [1.0]])
    level = xr.DataArray(levels, {"quantile": levels}, "quantile")
    error = observed - quantiles
    loss = xr.DataArray(np.maximum(level * error, (level - 1.0) * error))
    return 2.0 * (loss * level.copy(data=np.diff(edges))).sum("quantile", skipna=False)


def places(wanted: FloatArray, known: FloatArray) -> NDArray[np.int64] | None:
    """Index of each wanted number among the known ones, up to rounding; ``None`` if one is not."""
    equal = np.isclose(wanted[:, None], known, rtol=1e-6, atol=1e-12)
    return equal.argmax(1) if bool(equal.any(1).all()) else None
