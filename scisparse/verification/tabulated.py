"""Predictions at given points of a distribution: quantiles, and probabilities of exceedance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from scisparse.errors import DataError, OptionError
from scisparse.verification.pointwise import brier_score, places
from scisparse.verification.predictions import Cumulative, Prediction

__all__ = ["Probabilities", "Quantiles"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Quantiles(Cumulative):
    """Quantiles along a dim whose coordinate holds their levels."""

    dim: str

    def __post_init__(self) -> None:
        levels = self.levels
        rising = levels.size > 0 and bool((np.diff(levels, prepend=0.0, append=1.0) > 0).all())
        if not rising or not levels[0] <= 0.5 <= levels[-1]:
            raise DataError(
                f"{self.what} has quantile levels {levels.tolist()} along {self.dim!r}; they must "
                "rise strictly between 0 and 1, with 0.5 among or between them"
            )

    @property
    def own_dim(self) -> str | None:
        """Dim of the quantiles."""
        return self.dim

    @property
    def levels(self) -> FloatArray:
        """Probabilities of the quantiles."""
        return np.asarray(self.data[self.dim].values, dtype=np.float64)

    def at_levels(self, levels: FloatArray) -> xr.DataArray:
        """Return the quantiles of these levels.

        Raises
        ------
        DataError
            One is not there; all are named.
        """
        index = places(levels, self.levels)
        if index is None:
            raise DataError(
                f"{self.what} has quantile levels {self.levels.tolist()}, which must hold those of "
                f"the prediction it is compared with, {levels.tolist()}; give both the same levels"
            )
        return self._first().isel({self.dim: index}).assign_coords({self.dim: levels})

    def brier(self, observed: xr.DataArray, thresholds: xr.DataArray) -> xr.DataArray:
        """Raise: beyond the outermost quantiles no probability is known.

        Raises
        ------
        OptionError
            Always.
        """
        given = thresholds["threshold"].values.tolist()
        raise OptionError(
            f"`thresholds` (={given}) cannot be scored: {self.what} holds quantiles, "
            "which tell no probability beyond the outermost ones; give a distribution, members or "
            "probabilities, as of predict(thresholds=...)"
        )

    def point(self) -> xr.DataArray:
        """Return the median, linear between the levels beside it."""
        above = int(np.searchsorted(self.levels, 0.5))
        upper = self._first().isel({self.dim: above}, drop=True)
        if self.levels[above] == 0.5:
            return upper
        lower = self._first().isel({self.dim: above - 1}, drop=True)
        first, last = self.levels[above - 1 : above + 1]
        part = float((0.5 - first) / (last - first))
        return lower + (upper - lower) * part

    def probabilities(self, observed: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
        """Probabilities, linear between quantiles; all that is known beyond them is a range."""
        observed, quantiles = xr.broadcast(observed, self._first(), exclude=[self.dim])
        found = xr.apply_ufunc(
            _between_levels,
            observed,
            quantiles,
            kwargs={"levels": self.levels},
            input_core_dims=[[], [self.dim]],
            output_core_dims=[[], []],
        )
        return found[0], found[1]


@dataclass(frozen=True)
class Probabilities(Prediction):
    """Probabilities of exceeding thresholds, which a dim has as its coordinate."""

    dim: str

    def __post_init__(self) -> None:
        values = self._first().values
        outside = int(((values < 0.0) | (values > 1.0)).sum())
        if outside:
            raise DataError(
                f"{str(self._first().name)!r} of {self.what} has {outside} values outside 0 to 1; "
                "probabilities of exceeding a threshold must lie there"
            )

    @property
    def own_dim(self) -> str | None:
        """Dim of the thresholds."""
        return self.dim

    @property
    def units(self) -> str | None:
        """Units of the thresholds, which are those of the target."""
        units = self.data[self.dim].attrs.get("units")
        return None if units is None else str(units)

    @property
    def thresholds(self) -> FloatArray:
        """Values to be exceeded."""
        return np.asarray(self.data[self.dim].values, dtype=np.float64)

    def brier(self, observed: xr.DataArray, thresholds: xr.DataArray) -> xr.DataArray:
        """Score of the probabilities of these thresholds.

        Raises
        ------
        DataError
            One is not there; all are named.
        """
        wanted = thresholds["threshold"].values
        index = places(wanted, self.thresholds)
        if index is None:
            raise DataError(
                f"{self.what} has thresholds {self.thresholds.tolist()}, which must hold those to "
                f"score, {wanted.tolist()}; predict the same ones"
            )
        probability = self._first().isel({self.dim: index}).assign_coords({self.dim: wanted})
        return brier_score(probability, observed, thresholds)


def _between_levels(
    y: FloatArray, quantiles: FloatArray, levels: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Probabilities below and up to `y`, of the shape of `y`; `quantiles` has levels last."""
    last = levels.size - 1
    before = (quantiles < y[..., None]).sum(-1)
    upto = (quantiles <= y[..., None]).sum(-1)
    reach = np.concatenate([[0.0], levels, [1.0]])
    # On quantiles: from the first of them to the last, or to 0 or 1 from the outermost ones.
    low = np.where(before == 0, 0.0, reach[np.minimum(before + 1, last + 2)])
    high = np.where(upto > last, 1.0, reach[upto])
    # Between two quantiles.
    left, right = np.clip(before - 1, 0, last), np.clip(before, 0, last)
    ends = [np.take_along_axis(quantiles, k[..., None], -1)[..., 0] for k in (left, right)]
    gap = ends[1] - ends[0]
    part = np.divide(y - ends[0], gap, out=np.zeros_like(y), where=gap > 0)
    inner = levels[left] + part * (levels[right] - levels[left])
    open_ = before == upto
    outside = (before == 0) | (before > last)
    low = np.where(open_, np.where(outside, reach[before], inner), low)
    high = np.where(open_, np.where(outside, reach[before + 1], inner), high)
    return low, high
