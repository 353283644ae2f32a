"""Levels of quantiles and thresholds of exceedance, as callers give them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scisparse.errors import OptionError

__all__ = ["exceedance_thresholds", "quantile_levels"]

FloatArray = NDArray[np.float64]


def quantile_levels(levels: Sequence[float] | FloatArray) -> FloatArray:
    """Return probabilities ``[Q]`` of quantiles.

    Raises
    ------
    OptionError
        There is no level, one is not strictly between 0 and 1, or they do not strictly rise.

    Examples
    --------
    >>> quantile_levels([0.1, 0.5])
    array([0.1, 0.5])
    """
    rule = "numbers strictly between 0 and 1, such as [0.1, 0.5, 0.9]"
    return _rising("quantiles", levels, (0.0, 1.0), rule)


def exceedance_thresholds(thresholds: Sequence[float] | FloatArray) -> FloatArray:
    """Return thresholds ``[Q]``, in the units of the data.

    Raises
    ------
    OptionError
        There is no threshold, one is not finite, or they do not strictly rise.

    Examples
    --------
    >>> exceedance_thresholds([20, 30])
    array([20., 30.])
    """
    rule = "finite numbers in units of the target, such as [20.0, 30.0]"
    return _rising("thresholds", thresholds, (-np.inf, np.inf), rule)


def _rising(
    name: str, given: Sequence[float] | FloatArray, ends: tuple[float, float], rule: str
) -> FloatArray:
    """Numbers strictly between `ends` that strictly rise."""
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    inside = (values > ends[0]) & (values < ends[1])
    if values.ndim != 1 or values.size == 0 or not inside.all():
        shown = " ".join(repr(given).split())  # of one line, also for a long array
        raise OptionError(f"`{name}` (={shown}) must be a list of {rule}")
    if not (np.diff(values) > 0).all():
        raise OptionError(
            f"`{name}` (={values.tolist()}) must strictly rise, as scores need them; give "
            f"{np.unique(values).tolist()}"
        )
    return values
