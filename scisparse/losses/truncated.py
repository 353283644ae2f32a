"""The three regimes of the CRPS of a truncated normal, each accurate where the others are not.

Legend: l, u the standardised bounds with l + u >= 0, z the standardised observation. Places where
`elsewhere` is true get harmless inputs: their results are thrown away, and a NaN in them would
reach the gradient.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from scisparse.losses import tails

__all__ = ["narrow", "tail", "wide"]

# Nodes and weights of Gauss-Legendre quadrature on [0, 1].
_FEW, _MORE = (
    [(0.5 + 0.5 * float(node), 0.5 * float(weight)) for node, weight in zip(*rule, strict=True)]
    for rule in (np.polynomial.legendre.leggauss(6), np.polynomial.legendre.leggauss(8))
)
_ROOT_2 = math.sqrt(2.0)
_ROOT_PI = math.sqrt(math.pi)


def wide(error: Tensor, scale: Tensor, low: Tensor, high: Tensor, elsewhere: Tensor) -> Tensor:
    """Return the closed form of Jordan et al. (2019), for small or negative l."""
    low, high = torch.where(elsewhere, 0.0, low), torch.where(elsewhere, torch.inf, high)
    above, beyond = tails.survival(low), tails.survival(high)
    mass = above - beyond
    away = tails.ratio(error, scale).abs()
    double = tails.survival(_ROOT_2 * low) - tails.survival(_ROOT_2 * high)
    # z + 2 A(z) / mass, where A(z) = A(|z|) - z for z < 0 and A(|z|) does not grow. The sign is 0
    # at 0, which is what the derivative of both together needs.
    slope = (above + beyond - 1.0 + torch.sign(error)) / mass
    constant = 2.0 * tails.excess(away) / mass - double / (_ROOT_PI * mass * mass)
    return error * slope + scale * constant


def tail(
    inside: Tensor,
    scale: Tensor,
    lower: Tensor,
    upper: Tensor | None,
    low: Tensor,
    elsewhere: Tensor,
) -> Tensor:
    """Return the score by the excess over the lower bound, for l > 0; `upper` None means none.

    With p = Q(z) / Q(l) and q = Q(u) / Q(l), it is the integral of (1 - p)^2 below the observation
    and of (p - q)^2 above it, divided by (1 - q)^2.
    """
    low = torch.where(elsewhere, 1.0, low)
    over = torch.where(elsewhere, 0.0, inside - lower)
    step = tails.ratio(over, scale)
    mean, mean_above = tails.scaled_excess(low), tails.scaled_excess(low + step)
    below = tails.scaled_squared_tail(low) - 2.0 * mean
    above = 2.0 * tails.survival_ratio(low, step, mean, mean_above) * mean_above
    if upper is None:
        return over + scale * (below + above)
    width = tails.ratio(torch.where(elsewhere, torch.inf, upper - lower), scale)
    mean_beyond = tails.scaled_excess(low + width)
    q = tails.survival_ratio(low, width, mean, mean_beyond)
    beyond = 2.0 * mean_beyond - tails.scaled_squared_tail(low + width)
    under = torch.where(torch.isinf(upper) | elsewhere, 0.0, upper - inside)
    score = over + scale * (below + (1.0 - q) * above) + q * q * (under + scale * beyond)
    return score / (1.0 - q) ** 2


def narrow(
    inside: Tensor, scale: Tensor, lower: Tensor, upper: Tensor, low: Tensor, elsewhere: Tensor
) -> Tensor:
    """Return the score by quadrature, where the density hardly changes between the bounds."""
    low = torch.where(elsewhere, 0.0, low)
    span = torch.where(elsewhere, 1.0, upper - lower)
    width = torch.where(elsewhere, 0.1, upper - lower) / torch.where(elsewhere, 1.0, scale)
    part = torch.where(elsewhere, 0.5, inside - lower) / span
    whole = _mean_density(torch.ones_like(part), low, width)
    below, above = torch.zeros_like(part), torch.zeros_like(part)
    for node, weight in _MORE:
        point = part * node
        below = below + weight * (point * _mean_density(point, low, width) / whole) ** 2
        point = part + (1.0 - part) * node
        above = above + weight * (1.0 - point * _mean_density(point, low, width) / whole) ** 2
    return span * (part * below + (1.0 - part) * above)


def _mean_density(part: Tensor, low: Tensor, width: Tensor) -> Tensor:
    """Return the mean of phi(x) / phi(l) from l to l + part * width."""
    total = torch.zeros_like(part)
    for node, weight in _FEW:
        step = node * part * width
        total = total + weight * torch.exp(-0.5 * step * (2.0 * low + step))
    return total
