"""What users see of scores: the order of their dims, names and units."""

from __future__ import annotations

import xarray as xr

from scisparse.verification.predictions import Prediction

__all__ = ["described", "in_order"]

_DESCRIPTIONS: dict[str, tuple[str, bool]] = {
    "crps": ("continuous ranked probability score", False),
    "bias": ("mean error of the best guess", False),
    "rmse": ("root mean square error of the best guess", False),
    "spread": ("root of the mean predicted variance", False),
    "spread_skill_ratio": ("spread over root mean square error", True),
    "rank_histogram": ("share of observations at each rank among the members", True),
    "pit_histogram": ("share of observations in each bin of predicted probability", True),
    "crps_reference": ("continuous ranked probability score of the reference", False),
    "bias_reference": ("mean error of the best guess of the reference", False),
    "rmse_reference": ("root mean square error of the best guess of the reference", False),
    "crps_skill": ("CRPS skill over the reference", True),
    "rmse_skill": ("RMSE skill over the reference", True),
    "quantile_score": ("quantile score, over all levels", False),
    "quantile_score_reference": ("quantile score of the reference, over all levels", False),
    "quantile_score_skill": ("quantile score skill over the reference", True),
    "brier_score": ("Brier score of exceeding the threshold", True),
    "brier_score_reference": ("Brier score of the reference of exceeding the threshold", True),
    "brier_score_skill": ("Brier skill score over the reference", True),
    "count": ("number of cases", True),
}


def in_order(scores: xr.Dataset, prediction: Prediction) -> xr.Dataset:
    """Give all scores one order: dims as in the prediction, then those of scores alone."""
    dims = [*dict.fromkeys(d for array in prediction.data.values() for d in array.dims)]
    shared = [dim for dim in dims if dim in scores.dims and dim != prediction.own_dim]
    return scores.transpose(*shared, *(dim for dim in scores.dims if dim not in shared))


def described(scores: xr.Dataset, units: str | None) -> xr.Dataset:
    """Give every variable its long name and units."""
    for name, score in scores.items():
        long_name, dimensionless = _DESCRIPTIONS[str(name)]
        score.attrs = {"long_name": long_name}
        if dimensionless or units is not None:
            score.attrs["units"] = "1" if dimensionless else units
    if "threshold" in scores.coords:
        told = {} if units is None else {"units": units}
        scores["threshold"].attrs = {"long_name": "threshold", **told}
    return scores
