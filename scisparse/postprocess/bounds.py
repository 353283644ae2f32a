"""Observations against the bound of a distribution."""

from __future__ import annotations

import warnings

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.errors import DataError
from scisparse.losses import Distribution, TruncatedNormal
from scisparse.postprocess.samples import quoted

__all__ = ["check_bound"]

# Rounding of what is never 0 leaves fewer values there.
_MOST_AT_BOUND = 0.1


def check_bound(truth: NDArray[np.float64], distribution: Distribution, seen: xr.DataArray) -> None:
    """Raise when something was observed that cannot be, according to the distribution.

    Raises
    ------
    DataError
        Values are below its bound; their number and the lowest are named.

    Warns
    -----
    UserWarning
        Many values are at the bound of a truncated normal distribution, which has none there.
    """
    lower = getattr(distribution, "lower", -np.inf)
    below = int((truth < lower).sum())
    if below:
        raise DataError(
            f"the observation{quoted(seen)} has {below} values below {lower:g}, down to "
            f"{np.nanmin(truth):.4g}, where {distribution.name!r} has none; raise them with "
            f".clip(min={lower:g}), or use distribution='normal'"
        )
    share = float((truth == lower).sum() / max(int(np.isfinite(truth).sum()), 1))
    if isinstance(distribution, TruncatedNormal) and share > _MOST_AT_BOUND:
        warnings.warn(
            f"{share:.0%} of the observation{quoted(seen)} are exactly {lower:g}, where "
            "'truncated_normal' has no probability: predictions will be too high; use "
            "distribution='censored_normal'",
            UserWarning,
            stacklevel=3,
        )
