"""Predictions of times that their model was trained on: scores of them are too good."""

from __future__ import annotations

import warnings

import xarray as xr

from scisparse.verification.predictions import Prediction

__all__ = ["warn_trained"]

# scisparse.postprocess writes it along the times of a prediction.
_NAME = "in_training"


def warn_trained(prediction: Prediction, truth: xr.DataArray) -> None:
    """Warn where times that are scored were in the training of the model.

    Parameters
    ----------
    prediction
        Matched with `truth`; without a coordinate ``in_training`` nothing is known of it.
    truth
        Observations, NaN where nothing is scored.

    Warns
    -----
    UserWarning
        Some were; says how many, and what to do.
    """
    coords = prediction.data.coords
    if _NAME not in coords or not {*coords[_NAME].dims} <= {*truth.dims}:
        return
    # Not its truth value: joining makes numbers or objects of it, with NaN.
    seen = coords[_NAME].variable == 1
    scored = truth.variable.notnull().any([dim for dim in truth.dims if dim not in seen.dims])
    count, total = int((seen & scored).sum()), int(scored.sum())
    if not count:
        return
    data = prediction.what.removeprefix("the ")
    left = (
        f", or score the others, with {data}.where({data}[{_NAME!r}] == 0)" if count < total else ""
    )
    warnings.warn(
        f"{count} of {total} times of {prediction.what} were in the training of its model, which "
        "knows their truth: scores are too good to tell how well it does on new forecasts; train "
        f"without these times{left}",
        UserWarning,
        stacklevel=3,
    )
