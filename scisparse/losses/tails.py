"""Tail integrals of the standard normal distribution, accurate where the textbook forms cancel.

Legend: Z is standard normal, phi its density, Q(x) = P(Z > x), A the integral of Q above x and B
that of Q^2. The functions named `scaled` are divided by Q or Q^2, and hold for x >= 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = [
    "density",
    "excess",
    "ratio",
    "scaled_excess",
    "scaled_squared_tail",
    "scaled_variance",
    "squared_tail",
    "survival",
    "survival_ratio",
]

_SATURATED = 40.0  # phi and Q beyond this are 0 in every dtype
_ROOT_2 = math.sqrt(2.0)
_ROOT_PI = math.sqrt(math.pi)
_ROOT_2PI = math.sqrt(2.0 * math.pi)

# r = A / Q = sum of a_k x^-(2k+1), from r' = (x + r) r - 1; and
# kappa = B / Q^2 = sum of b_k x^-(2k+1), from kappa' = 2 (x + r) kappa - 1.
_EXCESS = (1.0, -2.0, 10.0, -74.0, 706.0, -8162.0, 110410.0, -1708394.0)
_SQUARED = (
    1 / 2,
    -3 / 4,
    23 / 8,
    -265 / 16,
    3993 / 32,
    -74027 / 64,
    1632871 / 128,
    -41937681 / 256,
)
_VARIANCE = tuple((2 * k + 1) * a for k, a in enumerate(_EXCESS))  # -x r'


def ratio(numerator: Tensor, scale: Tensor, limit: float = _SATURATED) -> Tensor:
    """Return numerator / scale held within +-limit, finite in value and gradient as scale -> 0."""
    beyond = numerator.abs() >= limit * scale
    inner = torch.where(beyond, 0.0, numerator) / torch.where(beyond, 1.0, scale)
    return torch.where(beyond, limit * torch.sign(numerator), inner)


def density(x: Tensor) -> Tensor:
    """Return phi(x)."""
    return torch.exp(-0.5 * x * x) / _ROOT_2PI


def survival(x: Tensor) -> Tensor:
    """Return Q(x)."""
    return 0.5 * torch.erfc(x / _ROOT_2)


def excess(x: Tensor) -> Tensor:
    """Return A(x) = E[max(Z - x, 0)]."""
    return density(x) - x * survival(x)


def squared_tail(x: Tensor) -> Tensor:
    """Return B(x)."""
    tail = survival(x)
    return tail * (2.0 * density(x) - x * tail) - survival(_ROOT_2 * x) / _ROOT_PI


def scaled_excess(x: Tensor) -> Tensor:
    """Return r(x) = A / Q = E[Z - x | Z > x]."""
    far, close, away = _split(x)
    return torch.where(far, _series(_EXCESS, away), _hazard(close) - close)


def scaled_squared_tail(x: Tensor) -> Tensor:
    """Return kappa(x) = B / Q^2."""
    far, close, away = _split(x)
    mills = torch.special.erfcx(close / _ROOT_2)
    double = (2.0 / _ROOT_PI) * torch.special.erfcx(close) / (mills * mills)
    return torch.where(far, _series(_SQUARED, away), 2.0 * _hazard(close) - close - double)


def scaled_variance(x: Tensor) -> Tensor:
    """Return Var[Z | Z > x]."""
    far, close, away = _split(x)
    hazard = _hazard(close)
    return torch.where(far, _series(_VARIANCE, away) / away, 1.0 - hazard * (hazard - close))


def survival_ratio(x: Tensor, step: Tensor, excess_at: Tensor, excess_after: Tensor) -> Tensor:
    """Return Q(x + step) / Q(x) for step >= 0, also where both underflow, given r at both ends."""
    hazards = (x + excess_at) / (x + step + excess_after)
    return hazards * torch.exp(-0.5 * step * (2.0 * x + step))


def _split(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return where the series hold, and x for the closed forms and for the series."""
    start = 20.0 if x.dtype == torch.float64 else 8.0
    far = x >= start
    return far, torch.where(far, 0.0, x), torch.where(far, x, start)


def _hazard(x: Tensor) -> Tensor:
    """Return phi / Q for x >= 0."""
    mills = torch.special.erfcx(x / _ROOT_2) * math.sqrt(0.5 * math.pi)
    return torch.reciprocal(mills)


def _series(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Return the sum of coefficients[k] x^-(2k+1)."""
    inverse = 1.0 / (x * x)
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * inverse + coefficient
    return total / x
