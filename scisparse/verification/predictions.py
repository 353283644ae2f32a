"""Predictions of every form behind one face: score, best guess, variance and histogram."""

from __future__ import annotations

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

__all__ = ["Deterministic", "Ensemble", "Parametric", "Prediction", "Quantiles"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction(ABC):
    """Variables of a prediction, and how to score them.

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

    def with_data(self, data: xr.Dataset) -> Self:
        """Return the same form with other data."""
        return replace(self, data=data)

    @abstractmethod
    def crps(self, observed: xr.DataArray) -> xr.DataArray:
        """Score of each case, NaN where `observed` is."""

    @abstractmethod
    def point(self) -> xr.DataArray:
        """Best single value of each case."""

    def variance(self) -> xr.DataArray | None:
        """Predicted variance of the observation about `point`, where the form tells it."""
        return None

    def bins(self, observed: xr.DataArray, count: int) -> xr.DataArray | None:
        """Share of each case in each bin of the histogram, where the form has one."""
        del observed, count
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
class _Cumulative(Prediction):
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
class Parametric(_Cumulative):
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

    def probabilities(self, observed: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
        """Probability of values below, and of values up to and including, the observation."""
        before = xr.apply_ufunc(np.nextafter, observed, -np.inf)
        below = _apply(self.family.cdf, before, *self.data.values())
        return below, _apply(self.family.cdf, observed, *self.data.values())


@dataclass(frozen=True)
class Quantiles(_Cumulative):
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

    def crps(self, observed: xr.DataArray) -> xr.DataArray:
        """Twice the mean pinball loss over the levels."""
        from scoringrules import crps_quantile

        def score(y: FloatArray, q: FloatArray) -> FloatArray:
            values: FloatArray = crps_quantile(y, q, self.levels, backend="numpy")
            return values

        observed, quantiles = xr.broadcast(observed, self._first(), exclude=[self.dim])
        core = [[], [self.dim]]
        found = xr.apply_ufunc(score, observed, quantiles, input_core_dims=core)
        return xr.DataArray(found).where(observed.notnull())

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


def _apply(function: Callable[..., torch.Tensor], *arrays: xr.DataArray) -> xr.DataArray:
    """Apply a function of tensors, matching dims by name."""

    def on_values(*values: FloatArray) -> FloatArray:
        tensors = (torch.from_numpy(np.array(v)) for v in np.broadcast_arrays(*values))
        result: FloatArray = function(*tensors).numpy()
        return result

    return xr.DataArray(xr.apply_ufunc(on_values, *arrays))
