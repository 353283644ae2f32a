"""The one reduction of scores to a number, weighted and masked."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scisparse.errors import ShapeError

__all__ = ["weighted_mean"]


def weighted_mean(
    score: Tensor, weights: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    r"""Return the mean of scores, by area and where there are data.

    .. math:: \sum_i m_i w_i s_i / \sum_i m_i w_i

    Parameters
    ----------
    score : Tensor
        Scores, of any shape.
    weights : Tensor, optional
        Weights of at least 0, such as cell areas, that broadcast to `score`. Scale does not matter.
    mask : Tensor, optional
        Bool, broadcasts to `score`; only scores and weights where it is true are used, so that
        others may be NaN.

    Returns
    -------
    Tensor
        Scalar. NaN, with gradient 0, where no weight is left; NaN if a score in use is.

    Raises
    ------
    ShapeError
        `weights` or `mask` does not broadcast to `score`, or `mask` is not bool.

    Examples
    --------
    >>> import torch
    >>> score = torch.tensor([1.0, 3.0, float("nan")])
    >>> weighted_mean(score, torch.tensor([3.0, 1.0, 1.0]), score.isfinite())
    tensor(1.5000)
    """
    if mask is not None and mask.dtype != torch.bool:
        raise ShapeError(f"`mask` has dtype {mask.dtype}, not bool; use `mask.bool()`")
    weights = torch.ones_like(score) if weights is None else _fit("weights", weights, score)
    weights = weights.to(torch.promote_types(torch.float32, score.dtype))
    if mask is not None:
        mask = _fit("mask", mask, score)
        score, weights = torch.where(mask, score, 0.0), torch.where(mask, weights, 0.0)
    total = weights.sum()
    empty = total <= 0
    mean = (weights * score).sum() / torch.where(empty, 1.0, total)
    return torch.where(empty, math.nan, mean)


def _fit(name: str, value: Tensor, score: Tensor) -> Tensor:
    """Return the value broadcast to the scores."""
    try:
        return value.broadcast_to(score.shape)
    except RuntimeError:
        raise ShapeError(
            f"`{name}` has shape {tuple(value.shape)}, which does not broadcast to "
            f"{tuple(score.shape)}, the shape of `score`"
        ) from None
