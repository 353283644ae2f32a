"""Predictions of every form behind one face: score, best guess, variance and histogram."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from scisparse.errors import DataError
from scisparse.losses import Distribution
from scisparse.losses.distributions import on_certain
from scisparse.verification.pointwise import brier_score, exceeds, rounded

__all__ = ["Cumulative", "Deterministic", "Ensemble", "Parametric", "Prediction"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """Variables of a prediction, and how to score them.

    A method returns ``None`` where the form of the prediction does not tell what it is asked for.

    Attributes
    ----------
    data
        Only the variables that the scores read.
    what
        Name for errors, ``"the prediction"`` or ``"the reference"``.
    """

    data: xr.Dataset
    what: str
    histogram: ClassVar[str] = ""

    @property
    def own_dim(self) -> str | None:
        """Dim of members or quantiles, which other data do not share."""
        return None

    @property
    def units(self) -> str | None:
        """Units, where a variable tells."""
        named = [
            str(array.attrs["units"]) for array in self.data.values() if "units" in array.attrs
        ]
        return named[0] if named else None

    def present(self) -> xr.DataArray:
        """Where nothing is missing."""
        own = [] if self.own_dim is None else [self.own_dim]
        whole = xr.DataArray(True)
        for array in self.data.values():
            whole = whole & array.notnull().all(own)
        return whole

    def ragged(self) -> xr.DataArray | None:
        """Where some members are missing, but not all."""
        return None

    def with_data(self, data: xr.Dataset) -> Self:
        """Return the same form with other data."""
        return replace(self, data=data)

    def crps(self, observed: xr.DataArray) -> xr.DataArray | None:
        """CRPS of each case, NaN where `observed` is."""
        del observed
        return None

    def point(self) -> xr.DataArray | None:
        """Best single value of each case."""
        return None

    def variance(self) -> xr.DataArray | None:
        """Predicted variance of the observation about `point`."""
        return None

    def bins(self, observed: xr.DataArray, count: int) -> xr.DataArray | None:
        """Share of each case in each bin of the histogram."""
        del observed, count
        return None

    def at_levels(self, levels: FloatArray) -> xr.DataArray | None:
        """Quantiles of each case at `levels`, along dim ``quantile`` unless they are all equal."""
        del levels
        return None

    def brier(self, observed: xr.DataArray, thresholds: xr.DataArray) -> xr.DataArray | None:
        """Brier score of exceeding each of `thresholds`, made by `along_thresholds`."""
        del observed, thresholds
        return None

    def _first(self) -> xr.DataArray:
        return next(iter(self.data.values()))


@dataclass(frozen=True)
class Deterministic(Prediction):
    """One value a case."""

    def crps(self, observed: xr.DataArray) -> xr.DataArray:
        """Absolute error: the CRPS of a distribution without spread."""
        from scores.continuous import mae

        return xr.DataArray(mae(*xr.broadcast(self._first(), observed), preserve_dims="all"))

    def point(self) -> xr.DataArray:
        """Return the value."""
        return self._first()

    def at_levels(self, levels: FloatArray) -> xr.DataArray:
        """Return the value, which is every quantile."""
        del levels
        return self._first()

    def brier(self, observed: xr.DataArray, thresholds: xr.DataArray) -> xr.DataArray:
        """Score of probabilities 0 and 1."""
        exceeded = exceeds(self._first(), thresholds)
        return brier_score(exceeded.astype(np.float64), observed, thresholds)


@dataclass(frozen=True)
class Ensemble(Prediction):
    """Members that are equally likely.

    Attributes
    ----------
    member
        Dim of the members.
    estimator
        ``"fair"`` or ``"standard"``.
    """

    member: str
    estimator: str
    histogram: ClassVar[str] = "rank_histogram"

    def __post_init__(self) -> None:
        size = self.data.sizes[self.member]
        if size == 0:
            raise DataError(
                f"{self.what} has no members along {self.member!r}; check the selection"
            )
        if size == 1 and self.estimator == "fair":
            raise DataError(
                f"{self.what} has 1 member along {self.member!r}, and the fair CRPS needs 2 or "
                "more; use estimator='standard'"
            )

    @property
    def own_dim(self) -> str | None:
        """Dim of the members."""
        return self.member

    def ragged(self) -> xr.DataArray:
        """Where some members are missing, but not all."""
        there = self._first().notnull()
        return there.any(self.member) & ~there.all(self.member)

    def crps(self, observed: xr.DataArray) -> xr.DataArray:
        """Ensemble CRPS."""
        from scores.probability import crps_for_ensemble

        method = "fair" if self.estimator == "fair" else "ecdf"
        members = self._first()
        return xr.DataArray(
            crps_for_ensemble(members, observed, self.member, method=method, preserve_dims="all")
        )

    def point(self) -> xr.DataArray:
        """Return the mean of the members."""
        return self._first().mean(self.member)

    def at_levels(self, levels: FloatArray) -> xr.DataArray:
        """Linear between members, of which the k-th of R has level (k - 1/2) / R."""
        # Cases with a missing member are left out: no need to skip it.
        return self._first().quantile(levels.tolist(), self.member, method="hazen", skipna=False)

    def brier(self, observed: xr.DataArray, thresholds: xr.DataArray) -> xr.DataArray:
        """Score of the share of members that exceed; fair as the CRPS is (Ferro 2014)."""
        from scores.probability import brier_score_for_ensemble

        found = brier_score_for_ensemble(
            rounded(self._first(), thresholds),
            rounded(observed, thresholds),
            self.member,
            thresholds.values.tolist(),
            preserve_dims="all",
            fair_correction=self.estimator == "fair",
            event_threshold_operator=operator.gt,
        )
        return xr.DataArray(found).assign_coords(threshold=thresholds["threshold"])

    def variance(self) -> xr.DataArray | None:
        """Variance of one more member about the mean of R: (1 + 1 / R) s^2 (Fortin et al. 2014)."""
        size = self.data.sizes[self.member]
        if size == 1:
            return None
        return self._first().var(self.member, ddof=1) * (1.0 + 1.0 / size)

    def bins(self, observed: xr.DataArray, count: int) -> xr.DataArray | None:
        """Rank of the observation among the members, shared between equal ones."""
        from scores.probability import rank_histogram

        del count
        # A missing member makes the library warn; the observation is missing there too.
        members = self._first().fillna(0.0)
        ranks = xr.DataArray(rank_histogram(members, observed, self.member, preserve_dims="all"))
        ranks["rank"].attrs = {"long_name": "rank of the observation among the members"}
        return ranks


@dataclass(frozen=True)
class Cumulative(Prediction, ABC):
    """A form with a cumulative distribution function."""

    histogram: ClassVar[str] = "pit_histogram"

    @abstractmethod
    def probabilities(self, observed: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
        """Probability of values below, and of values up to and including, the observation."""

    def bins(self, observed: xr.DataArray, count: int) -> xr.DataArray | None:
        """Probability integral transform, spread evenly where a value has probability itself."""
        below, upto = self.probabilities(observed)
        edges = np.linspace(0.0, 1.0, count + 1)
        attrs = {"long_name": "probability integral transform", "units": "1"}
        centres = {"pit": ("pit", 0.5 * (edges[:-1] + edges[1:]), attrs)}
        left = xr.DataArray(edges[:-1], dims="pit", coords=centres)
        right = xr.DataArray(edges[1:], dims="pit", coords=centres)
        jump = upto > below
        size = (upto - below).where(jump, 1.0)
        reach = xr.DataArray(np.minimum(upto, right)) - xr.DataArray(np.maximum(below, left))
        overlap = reach.clip(min=0.0) / size
        inside = (upto >= left) & ((upto < right) | (right == 1.0))
        shares = overlap.where(jump, inside.astype(np.float64))
        return shares.where(observed.notnull())


@dataclass(frozen=True)
class Parametric(Cumulative):
    """A distribution: location and scale are the two variables, in this order."""

    family: Distribution

    def crps(self, observed: xr.DataArray) -> xr.DataArray:
        """Return the closed form of `scisparse.losses`."""
        # scoringrules has it too, but NaN at scale 0 and where the location is far below a bound.
        return _apply(self.family.crps, *self.data.values(), observed)

    def point(self) -> xr.DataArray:
        """Return the mean of the distribution."""
        return _apply(self.family.mean, *self.data.values())

    def variance(self) -> xr.DataArray | None:
        """Return the variance of the distribution."""
        return _apply(self.family.std, *self.data.values()) ** 2

    def at_levels(self, levels: FloatArray) -> xr.DataArray:
        """Return quantiles of the distribution."""
        level = xr.DataArray(levels, {"quantile": levels}, "quantile")
        return _apply(self.family.quantile, level, *self.data.values())

    def brier(self, observed: xr.DataArray, thresholds: xr.DataArray) -> xr.DataArray:
        """Score of 1 minus the cumulative distribution function."""
        limits = _apply(on_certain, thresholds["threshold"], *self.data.values())
        upto = _apply(self.family.cdf, limits, *self.data.values())
        return brier_score(1.0 - upto, observed, thresholds)

    def probabilities(self, observed: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
        """Probability of values below, and of values up to and including, the observation."""
        observed = _apply(on_certain, observed, *self.data.values())
        before = xr.apply_ufunc(np.nextafter, observed, -np.inf)
        below = _apply(self.family.cdf, before, *self.data.values())
        return below, _apply(self.family.cdf, observed, *self.data.values())


def _apply(function: Callable[..., torch.Tensor], *arrays: xr.DataArray) -> xr.DataArray:
    """Apply a function of tensors, matching dims by name."""

    def on_values(*values: FloatArray) -> FloatArray:
        tensors = (torch.from_numpy(np.array(v)) for v in np.broadcast_arrays(*values))
        result: FloatArray = function(*tensors).numpy()
        return result

    return xr.DataArray(xr.apply_ufunc(on_values, *arrays))
