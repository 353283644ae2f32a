"""Forecast distributions as values: scores, moments, probabilities, quantiles and samples."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.losses import tails
from scisparse.losses.crps import crps_censored_normal, crps_normal, crps_truncated_normal

__all__ = [
    "CensoredNormal",
    "Distribution",
    "Normal",
    "TruncatedNormal",
    "distribution",
    "on_certain",
]

_NAMES = ("normal", "truncated_normal", "censored_normal")
_STEPS = 52  # of bisection: the bits of a float64


class Distribution(ABC):
    """A family of distributions with a location and a scale, in the units of the data.

    All methods take and return tensors that broadcast, in float32 or float64, and differentiate.
    `location` and `scale` are the mean and standard deviation of the normal distribution before
    bounds act; `mean` and `std` are the moments of the distribution itself.
    """

    name: ClassVar[str]

    @abstractmethod
    def crps(self, location: Tensor, scale: Tensor, observed: Tensor) -> Tensor:
        """Return the continuous ranked probability score."""

    @abstractmethod
    def mean(self, location: Tensor, scale: Tensor) -> Tensor:
        """Return the mean."""

    @abstractmethod
    def std(self, location: Tensor, scale: Tensor) -> Tensor:
        """Return the standard deviation."""

    @abstractmethod
    def cdf(self, value: Tensor, location: Tensor, scale: Tensor) -> Tensor:
        """Return the probability of values up to and including `value`."""

    @abstractmethod
    def quantile(self, p: Tensor | float, location: Tensor, scale: Tensor) -> Tensor:
        """Return the value that probability `p`, in [0, 1], lies below."""

    @abstractmethod
    def from_moments(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Return the location and scale that have this mean and std; NaN where none have."""

    def sample(
        self,
        count: int,
        location: Tensor,
        scale: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return `count` independent draws, ``[count, *shape]``."""
        like = location + scale
        uniform = torch.rand(
            (count, *like.shape), generator=generator, dtype=like.dtype, device=like.device
        )
        # The draws are multiples of half an eps, 0 among them, whose quantile may be infinite.
        least = 0.25 * torch.finfo(like.dtype).eps
        return self.quantile(uniform.clamp(min=least), location, scale)


@dataclass(frozen=True)
class Normal(Distribution):
    """Normal distribution.

    Examples
    --------
    >>> import torch
    >>> Normal().quantile(0.975, torch.tensor([10.0]), torch.tensor([2.0]))
    tensor([13.9199])
    """

    name: ClassVar[str] = "normal"

    def crps(self, location: Tensor, scale: Tensor, observed: Tensor) -> Tensor:
        """Return the continuous ranked probability score: `crps_normal`."""
        return crps_normal(location, scale, observed)

    def mean(self, location: Tensor, scale: Tensor) -> Tensor:
        """Return the mean, which is `location`."""
        return location + torch.zeros_like(scale)

    def std(self, location: Tensor, scale: Tensor) -> Tensor:
        """Return the standard deviation, which is `scale`."""
        return scale + torch.zeros_like(location)

    def cdf(self, value: Tensor, location: Tensor, scale: Tensor) -> Tensor:
        """Return the probability of values up to `value`."""
        upto = tails.survival(tails.ratio(location - value, scale))
        # Without spread the location has all of the probability: values up to it have it too.
        return torch.where((scale == 0) & (value >= location), 1.0, upto)

    def quantile(self, p: Tensor | float, location: Tensor, scale: Tensor) -> Tensor:
        """Return the value that probability `p`, in [0, 1], lies below."""
        return location + _in_units(torch.special.ndtri(_probability(p, location)), scale)

    def from_moments(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Return `mean` and `std`."""
        return mean, std


@dataclass(frozen=True)
class _Bounded(Distribution):
    """A normal distribution that a lower bound acts on."""

    lower: float = 0.0
    _largest_bound: ClassVar[float]  # standardised, to look up to
    _least_ratio: ClassVar[float]  # of (mean - lower) / std

    def __post_init__(self) -> None:
        if not math.isfinite(self.lower):
            raise OptionError(f"`lower` (={self.lower}) must be finite; without it use 'normal'")

    def from_moments(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Return the location and scale that have this mean and std; NaN where none have.

        The standardised bound l follows from (mean - lower) / std, which falls as l rises.
        """
        wanted = tails.ratio(mean - self.lower, std)
        one, plain = torch.ones_like(wanted), type(self)(0.0)
        left = torch.full_like(wanted, math.asinh(-50.0))
        right = torch.full_like(wanted, math.asinh(self._largest_bound))
        for _ in range(_STEPS):
            middle = 0.5 * (left + right)
            location = -torch.sinh(middle)
            above = plain.mean(location, one) > wanted * plain.std(location, one)
            left, right = torch.where(above, middle, left), torch.where(above, right, middle)
        location = -torch.sinh(0.5 * (left + right))
        scale = std / plain.std(location, one)
        # Where the bound changes nothing, and the ratio is at its limit.
        free = (wanted >= 38.0) | (std == 0)
        possible = (mean >= self.lower) & (free | (wanted >= self._least_ratio * (1.0 - 1e-6)))
        scale = torch.where(possible, torch.where(free, std, scale), math.nan)
        return torch.where(free, mean, self.lower + scale * location), scale


@dataclass(frozen=True)
class TruncatedNormal(_Bounded):
    """Normal distribution given that it is at least `lower`.

    Parameters
    ----------
    lower : float
        Bound, in the units of the data.

    Raises
    ------
    OptionError
        `lower` is not finite.

    Examples
    --------
    >>> import torch
    >>> TruncatedNormal(0.0).mean(torch.tensor([0.0]), torch.tensor([1.0]))
    tensor([0.7979])
    """

    name: ClassVar[str] = "truncated_normal"
    _largest_bound: ClassVar[float] = 1e5
    _least_ratio: ClassVar[float] = 1.0

    def crps(self, location: Tensor, scale: Tensor, observed: Tensor) -> Tensor:
        """Return the continuous ranked probability score: `crps_truncated_normal`."""
        return crps_truncated_normal(location, scale, observed, self.lower)

    def mean(self, location: Tensor, scale: Tensor) -> Tensor:
        """Return the mean, always above the bound."""
        low = self._bound(location, scale)
        below, above = low.clamp(max=0.0), low.clamp(min=0.0)
        central = location + scale * (tails.density(below) / tails.survival(below))
        return torch.where(low < 0, central, self.lower + scale * tails.scaled_excess(above))

    def std(self, location: Tensor, scale: Tensor) -> Tensor:
        """Return the standard deviation."""
        low = self._bound(location, scale)
        below, above = low.clamp(-50.0, 0.0), low.clamp(min=0.0)
        hazard = tails.density(below) / tails.survival(below)
        central = 1.0 - hazard * (hazard - below)
        return scale * torch.where(low < 0, central, tails.scaled_variance(above)).sqrt()

    def cdf(self, value: Tensor, location: Tensor, scale: Tensor) -> Tensor:
        """Return the probability of values up to `value`."""
        low = self._bound(location, scale)
        step = tails.ratio((value - self.lower).clamp(min=0.0), scale)
        z = tails.ratio(value - location, scale)
        below = low.clamp(max=0.0)
        # Difference of lower tails, so that small probabilities keep their digits.
        central = (tails.survival(-z) - tails.survival(-below)) / tails.survival(below)
        above = low.clamp(min=0.0)
        ends = tails.scaled_excess(above), tails.scaled_excess(above + step)
        beyond = 1.0 - tails.survival_ratio(above, step, *ends)
        inside = torch.where(low < 0, central, beyond)
        certain = (scale == 0) & (value >= location.clamp(min=self.lower))
        inside = torch.where(certain, 1.0, inside)
        return torch.where((value < self.lower) & ~_missing(location, scale), 0.0, inside)

    def quantile(self, p: Tensor | float, location: Tensor, scale: Tensor) -> Tensor:
        """Return the value that probability `p`, in [0, 1], lies below."""
        p = _probability(p, location)
        low = self._bound(location, scale)
        below = low.clamp(max=0.0)
        lesser = p + (1.0 - p) * tails.survival(-below)
        greater = (1.0 - p) * tails.survival(below)
        z = torch.where(lesser < 0.5, torch.special.ndtri(lesser), -torch.special.ndtri(greater))
        central = (location + _in_units(z, scale)).clamp(min=self.lower)
        beyond = self.lower + _in_units(_tail_step(p, low.clamp(min=0.0)), scale)
        return torch.where(low < 0, central, beyond)

    def _bound(self, location: Tensor, scale: Tensor) -> Tensor:
        return tails.ratio(self.lower - location, scale, 1e8)


@dataclass(frozen=True)
class CensoredNormal(_Bounded):
    """Normal distribution whose part below `lower` sits on `lower`.

    Parameters
    ----------
    lower : float
        Bound, in the units of the data.

    Raises
    ------
    OptionError
        `lower` is not finite.

    Examples
    --------
    >>> import torch
    >>> CensoredNormal(0.0).cdf(torch.zeros(1), torch.tensor([0.0]), torch.tensor([1.0]))
    tensor([0.5000])
    """

    name: ClassVar[str] = "censored_normal"
    _largest_bound: ClassVar[float] = 10.0
    _least_ratio: ClassVar[float] = 0.0

    def crps(self, location: Tensor, scale: Tensor, observed: Tensor) -> Tensor:
        """Return the continuous ranked probability score: `crps_censored_normal`."""
        return crps_censored_normal(location, scale, observed, self.lower)

    def mean(self, location: Tensor, scale: Tensor) -> Tensor:
        """Return the mean, never below the bound."""
        low = tails.ratio(self.lower - location, scale)
        bound = torch.full_like(location, self.lower)
        return torch.maximum(location, bound) + scale * tails.excess(low.abs())

    def std(self, location: Tensor, scale: Tensor) -> Tensor:
        """Return the standard deviation."""
        low = tails.ratio(self.lower - location, scale)
        under, over = (-low).clamp(min=0.0), low.clamp(min=0.0)
        # Of Z + max(l - Z, 0), whose parts have the covariance -Phi(l); of max(Z - l, 0).
        below_zero = 1.0 + _excess_variance(under) - 2.0 * tails.survival(under)
        variance = torch.where(low <= 0, below_zero, _excess_variance(over))
        return scale * variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()

    def cdf(self, value: Tensor, location: Tensor, scale: Tensor) -> Tensor:
        """Return the probability of values up to and including `value`."""
        below = (value < self.lower) & ~_missing(location, scale)
        return torch.where(below, 0.0, Normal().cdf(value, location, scale))

    def quantile(self, p: Tensor | float, location: Tensor, scale: Tensor) -> Tensor:
        """Return the value that probability `p`, in [0, 1], lies below."""
        return Normal().quantile(p, location, scale).clamp(min=self.lower)


def distribution(name: str, lower: float = 0.0) -> Distribution:
    """Return the distribution of this name.

    Parameters
    ----------
    name : {"normal", "truncated_normal", "censored_normal"}
        Family.
    lower : float
        Lower bound of the truncated and the censored normal, in the units of the data.

    Returns
    -------
    Distribution
        The family, an immutable value.

    Raises
    ------
    OptionError
        Unknown name.

    Examples
    --------
    >>> distribution("censored_normal")
    CensoredNormal(lower=0.0)
    """
    if name == "normal":
        return Normal()
    if name == "truncated_normal":
        return TruncatedNormal(lower)
    if name == "censored_normal":
        return CensoredNormal(lower)
    raise OptionError(f"`distribution` is {name!r}; choose one of {', '.join(_NAMES)}")


def on_certain(value: Tensor, location: Tensor, scale: Tensor) -> Tensor:
    """Give `value`, moved onto the location where that is certain (scale 0) and next to it.

    Observations and predictions in single precision have the certain value of a point as another
    number, up to 1e-6 of it away, and the cumulative distribution function jumps there.
    """
    certain = scale == 0
    if not certain.any():
        return value
    near = (value - location).abs() <= 1e-6 * location.abs()
    return torch.where(certain & near, location, value)


def _probability(p: Tensor | float, like: Tensor) -> Tensor:
    """Return `p` as a tensor, checked where that costs nothing."""
    if not isinstance(p, Tensor) and not 0.0 <= p <= 1.0:
        raise OptionError(f"`p` (={p}) must be a probability, in [0, 1]")
    return torch.as_tensor(p, dtype=like.dtype, device=like.device)


def _missing(location: Tensor, scale: Tensor) -> Tensor:
    """Where the distribution is not known: no probability of it is, not even outside the bound."""
    return location.isnan() | scale.isnan()


def _in_units(standard: Tensor, scale: Tensor) -> Tensor:
    """Return ``scale * standard``, of infinity without spread 0."""
    return scale * torch.where((scale == 0) & standard.isinf(), 0.0, standard)


def _tail_step(p: Tensor, low: Tensor) -> Tensor:
    """Return the step above l >= 0 that holds probability p, by Newton's method on the log of Q."""
    last = p >= 1.0
    target = -torch.log1p(-torch.where(last, 0.0, p))
    step = 2.0 * target / ((low * low + 2.0 * target).sqrt() + low)
    for _ in range(5):
        x = low + step
        hazard = x + tails.scaled_excess(x)
        reached = 0.5 * step * (2.0 * low + step) - torch.log(
            (low + tails.scaled_excess(low)) / hazard
        )
        step = step - (reached - target) / hazard
    return step + torch.where(last, torch.inf, 0.0)


def _excess_variance(x: Tensor) -> Tensor:
    """Return Var[max(Z - x, 0)] for x >= 0."""
    square = (1.0 + x * x) * tails.survival(x) - x * tails.density(x)
    return square - tails.excess(x) ** 2
