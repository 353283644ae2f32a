"""Continuous ranked probability scores: differentiable, safe at std 0 and where data are missing.

A score is NaN, and its gradient 0, where an input is not finite, a scale is negative or bounds are
NaN or not in order: a mean that masks these out stays clean in value and gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scisparse.errors import OptionError, ShapeError
from scisparse.losses import tails, truncated

__all__ = [
    "crps_censored_normal",
    "crps_ensemble",
    "crps_normal",
    "crps_truncated_normal",
]

_ROOT_PI = math.sqrt(math.pi)
_LARGE = 1e8  # a standardised bound beyond this is at infinity
_ESTIMATORS = ("standard", "fair", "almost_fair")


def crps_normal(mean: Tensor, std: Tensor, observed: Tensor) -> Tensor:
    r"""Return the CRPS of normal distributions (Gneiting et al. 2005).

    .. math:: \sigma \left[ \omega (2 \Phi(\omega) - 1) + 2 \varphi(\omega) - 1/\sqrt\pi \right],
              \quad \omega = (y - \mu) / \sigma

    Parameters
    ----------
    mean, std : Tensor
        Parameters, in the units of `observed`. Where std is 0 the score is the absolute error.
    observed : Tensor
        Observed values. All three broadcast.

    Returns
    -------
    Tensor
        Scores in the units of `observed`, of the broadcast shape, float32 or float64.

    Raises
    ------
    ShapeError
        The shapes do not broadcast.

    References
    ----------
    Gneiting, T., Raftery, A. E., Westveld, A. H. and Goldman, T. (2005). Calibrated probabilistic
    forecasting using ensemble model output statistics and minimum CRPS estimation.
    doi:10.1175/MWR2904.1

    Examples
    --------
    >>> import torch
    >>> crps_normal(torch.zeros(1), torch.ones(1), torch.zeros(1))
    tensor([0.2337])
    """
    mean, std, observed, missing = _prepare(mean, std, observed)
    error = observed - mean
    away = tails.ratio(error, std).abs()
    score = error.abs() + std * (2.0 * tails.excess(away) - 1.0 / _ROOT_PI)
    return torch.where(missing, math.nan, score)


def crps_censored_normal(
    location: Tensor,
    scale: Tensor,
    observed: Tensor,
    lower: Tensor | float = -math.inf,
    upper: Tensor | float = math.inf,
) -> Tensor:
    r"""Return the CRPS of censored normal distributions (Thorarinsdottir and Gneiting 2010).

    All probability below `lower` sits on `lower`, all above `upper` on `upper`. The score is
    :math:`\int_l^u (F(x) - 1\{x \ge y\})^2 dx` plus the distance of `observed` to [l, u].

    Parameters
    ----------
    location, scale : Tensor
        Mean and standard deviation before censoring, in the units of `observed`.
    observed : Tensor
        Observed values.
    lower, upper : Tensor or float
        Bounds, ``lower < upper``; infinite means none.

    Returns
    -------
    Tensor
        Scores in the units of `observed`, of the broadcast shape, float32 or float64.

    Raises
    ------
    ShapeError
        The shapes do not broadcast.
    OptionError
        The bounds are numbers and ``lower`` is not below ``upper``.

    References
    ----------
    Thorarinsdottir, T. L. and Gneiting, T. (2010). Probabilistic forecasts of wind speed: ensemble
    model output statistics by using heteroscedastic censored regression.
    doi:10.1111/j.1467-985X.2009.00616.x

    Jordan, A., Krueger, F. and Lerch, S. (2019). Evaluating probabilistic forecasts with
    scoringRules. doi:10.18637/jss.v090.i12

    Examples
    --------
    >>> import torch
    >>> location, scale = torch.tensor([0.1]), torch.tensor([0.4])
    >>> crps_censored_normal(location, scale, torch.tensor([0.0]), lower=0.0)
    tensor([0.0770])
    """
    location, scale, observed, missing = _prepare(location, scale, observed)
    lower, upper, missing = _bounds(lower, upper, location, missing)
    location, observed, lower, upper = _reflect(location, observed, lower, upper)
    inside = torch.clamp(observed, lower, upper)
    low = tails.ratio(lower - location, scale)
    high = tails.ratio(upper - location, scale)
    away = tails.ratio(inside - location, scale).abs()

    # With K the integral of Phi^2 below and B that of Q^2 above, z and l the standardised
    # observation and bound, the score inside is K(z) - K(l) + B(z) - B(u). Here
    # K(z) + B(z) = |z| + 2 A(|z|) - 1/sqrt(pi), and, so that nothing cancels when l > 0,
    # K(z) + B(z) - K(l) = z - l + 2 A(z) - 2 A(l) + B(l).
    # |z| and z - l are taken in data units: a scale of 0 divides nothing.
    under, over = (-low).clamp(min=0.0), low.clamp(min=0.0)
    below_zero = (inside - location).abs() - scale * (1.0 / _ROOT_PI + tails.squared_tail(under))
    above_zero = (inside - lower) + scale * (tails.squared_tail(over) - 2.0 * tails.excess(over))
    common = scale * (2.0 * tails.excess(away) - tails.squared_tail(high))
    score = (observed - inside).abs() + torch.where(low <= 0, below_zero, above_zero) + common
    return torch.where(missing, math.nan, score)


def crps_truncated_normal(
    location: Tensor,
    scale: Tensor,
    observed: Tensor,
    lower: Tensor | float = -math.inf,
    upper: Tensor | float = math.inf,
) -> Tensor:
    r"""Return the CRPS of truncated normal distributions (Gneiting et al. 2006).

    The density is that of N(location, scale) between the bounds, renormalised, and 0 outside. It
    stays accurate where nearly all of the normal lies outside the bounds (an exponential
    distribution in the limit) and where the bounds are close together (a uniform one).

    Parameters
    ----------
    location, scale : Tensor
        Mean and standard deviation before truncation, in the units of `observed`.
    observed : Tensor
        Observed values.
    lower, upper : Tensor or float
        Bounds, ``lower < upper``; infinite means none.

    Returns
    -------
    Tensor
        Scores in the units of `observed`, of the broadcast shape, float32 or float64.

    Raises
    ------
    ShapeError
        The shapes do not broadcast.
    OptionError
        The bounds are numbers and ``lower`` is not below ``upper``.

    References
    ----------
    Gneiting, T., Larson, K., Westrick, K., Genton, M. G. and Aldrich, E. (2006). Calibrated
    probabilistic forecasting at the Stateline wind energy center. doi:10.1198/016214506000000456

    Jordan, A., Krueger, F. and Lerch, S. (2019). Evaluating probabilistic forecasts with
    scoringRules. doi:10.18637/jss.v090.i12

    Examples
    --------
    >>> import torch
    >>> location, scale = torch.tensor([0.1]), torch.tensor([0.4])
    >>> crps_truncated_normal(location, scale, torch.tensor([0.0]), lower=0.0)
    tensor([0.2149])
    """
    location, scale, observed, missing = _prepare(location, scale, observed)
    one_sided = _is_infinite(lower) or _is_infinite(upper)
    lower, upper, missing = _bounds(lower, upper, location, missing)
    location, observed, lower, upper = _reflect(location, observed, lower, upper)
    inside = torch.clamp(observed, lower, upper)
    low = tails.ratio(lower - location, scale, _LARGE)
    high = tails.ratio(upper - location, scale, _LARGE)
    tail = low >= 1.0
    narrow = torch.zeros_like(tail)
    if not one_sided:
        narrow = (upper - lower) * low.clamp(min=1.0) < 0.5 * scale

    wide_score = truncated.wide(inside - location, scale, low, high, tail | narrow)
    other = None if one_sided else upper
    tail_score = truncated.tail(inside, scale, lower, other, low, ~tail | narrow)
    score = torch.where(tail, tail_score, wide_score)
    if not one_sided:
        narrow_score = truncated.narrow(inside, scale, lower, upper, low, ~narrow)
        score = torch.where(narrow, narrow_score, score)
    return torch.where(missing, math.nan, score + (observed - inside).abs())


def crps_ensemble(
    members: Tensor,
    observed: Tensor,
    *,
    dim: int = -1,
    estimator: str = "fair",
    alpha: float = 0.95,
) -> Tensor:
    r"""Return the CRPS of ensembles in O(R log R) (Ferro 2014; almost fair: Lang et al. 2024).

    .. math:: \frac1R \sum_i |x_i - y| - \frac{1 - \epsilon}{2 R (R - 1)} \sum_{i, j} |x_i - x_j|

    where :math:`\epsilon` is 0 for ``"fair"`` (unbiased for the distribution that the members are
    drawn from), :math:`1 / R` for ``"standard"`` (the members are the distribution) and
    :math:`(1 - \alpha) / R` for ``"almost_fair"``, a mean of both. With R - 1 members at the
    observation the fair score no longer sees the last one; the almost fair score does.

    Parameters
    ----------
    members : Tensor
        Ensemble, R members along `dim`.
    observed : Tensor
        Observed values, of the shape of `members` without `dim`, or broadcast to it.
    dim : int
        The members' dimension.
    estimator : {"fair", "standard", "almost_fair"}
        Estimator of the spread term.
    alpha : float
        Weight of the fair score in the almost fair one, in [0, 1].

    Returns
    -------
    Tensor
        Scores in the units of `observed`, without `dim`, float32 or float64.

    Raises
    ------
    OptionError
        Unknown `estimator`, `alpha` outside [0, 1], or one member where two are needed.
    ShapeError
        `observed` does not fit `members`, or there is no member.

    References
    ----------
    Ferro, C. A. T. (2014). Fair scores for ensemble forecasts. doi:10.1002/qj.2270

    Lang, S. et al. (2024). AIFS-CRPS: ensemble forecasting using a model trained with a loss
    function based on the continuous ranked probability score. doi:10.48550/arXiv.2412.15832

    Examples
    --------
    >>> import torch
    >>> members, observed = torch.tensor([1.0, 2.0, 5.0]), torch.tensor(2.0)
    >>> crps_ensemble(members, observed)
    tensor(0.)
    >>> crps_ensemble(members, observed, estimator="standard")
    tensor(0.4444)
    """
    dim = _member_dim(members, dim)
    size = members.shape[dim]
    part = _spread_part(estimator, alpha, size)
    members, observed = _common_dtype(members, observed)
    # Deviations, for in float32 the spread of members near 1e5 Pa is lost in sums over them.
    deviation = members - _for_members(observed, members, dim).unsqueeze(dim)
    missing = ~torch.isfinite(deviation).all(dim)
    deviation = torch.where(missing.unsqueeze(dim), 0.0, deviation)
    score = deviation.abs().mean(dim)
    if size > 1:
        gaps = torch.sort(deviation, dim=dim).values.diff(dim=dim)
        rank = torch.arange(1, size, dtype=gaps.dtype, device=gaps.device)
        pairs = (rank * (size - rank)).reshape(-1, *[1] * (-1 - dim))  # that span each gap
        score = score - part * (pairs * gaps).sum(dim)
    return torch.where(missing, math.nan, score)


def _member_dim(members: Tensor, dim: int) -> int:
    """Return the members' dimension counted from the end."""
    if not -members.ndim <= dim < members.ndim:
        raise ShapeError(f"`members` has {members.ndim} dims, so `dim` (={dim}) is not one of them")
    if members.shape[dim] == 0:
        raise ShapeError(f"`members` has no member along dim {dim}: shape {tuple(members.shape)}")
    return dim if dim < 0 else dim - members.ndim


def _for_members(observed: Tensor, members: Tensor, dim: int) -> Tensor:
    """Return one observation for each ensemble."""
    expected = members.select(dim, 0).shape
    try:
        return observed.broadcast_to(expected)
    except RuntimeError:
        raise ShapeError(
            f"`observed` has shape {tuple(observed.shape)}, which does not broadcast to "
            f"{tuple(expected)}, the shape of `members` without dim {dim}"
        ) from None


def _spread_part(estimator: str, alpha: float, size: int) -> float:
    """Return (1 - epsilon) / (R (R - 1)), the weight of the sum over pairs of members."""
    if estimator not in _ESTIMATORS:
        raise OptionError(f"`estimator` is {estimator!r}; choose one of {', '.join(_ESTIMATORS)}")
    if not 0.0 <= alpha <= 1.0:
        raise OptionError(f"`alpha` (={alpha}) must be in [0, 1]")
    if estimator == "standard":
        return 1.0 / size**2
    if size < 2:
        raise OptionError(
            f"`estimator` {estimator!r} needs at least 2 members, not {size}; use 'standard'"
        )
    epsilon = 0.0 if estimator == "fair" else (1.0 - alpha) / size
    return (1.0 - epsilon) / (size * (size - 1))


def _common_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in their common dtype, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def _prepare(
    location: Tensor, scale: Tensor, observed: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the three in one dtype, harmless where any is unusable, and where that is."""
    shapes = [tuple(tensor.shape) for tensor in (location, scale, observed)]
    try:
        torch.broadcast_shapes(*shapes)
    except RuntimeError:
        raise ShapeError(
            "location, scale and `observed` must broadcast, but have shapes "
            + ", ".join(map(str, shapes))
        ) from None
    location, scale, observed = _common_dtype(location, scale, observed)
    total = location + scale + observed
    missing = ~torch.isfinite(total) | (scale < 0)
    return (
        torch.where(missing, 0.0, location),
        torch.where(missing, 1.0, scale),
        torch.where(missing, 0.0, observed),
        missing,
    )


def _is_infinite(bound: Tensor | float) -> bool:
    return not isinstance(bound, Tensor) and math.isinf(bound)


def _bounds(
    lower: Tensor | float, upper: Tensor | float, like: Tensor, missing: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the bounds as tensors, harmless where unusable, and where anything is missing."""
    numbers = not isinstance(lower, Tensor) and not isinstance(upper, Tensor)
    if numbers and not lower < upper:
        raise OptionError(f"`lower` (={lower}) must be below `upper` (={upper})")
    low, high = (
        torch.as_tensor(bound, dtype=like.dtype, device=like.device) for bound in (lower, upper)
    )
    if numbers:
        return low, high, missing
    unusable = ~(low < high)
    low, high = torch.where(unusable, -math.inf, low), torch.where(unusable, math.inf, high)
    return low, high, missing | unusable


def _reflect(
    location: Tensor, observed: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mirror all where `upper` is nearer to `location` than `lower`, so that l + u >= 0."""
    flip = lower + upper < 2.0 * location
    sign = torch.where(flip, -1.0, 1.0).to(location)
    low, high = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    return sign * location, sign * observed, low, high
