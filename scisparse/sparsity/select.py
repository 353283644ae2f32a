"""Choose the best of many, deterministically: equal scores go by their place."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["best", "best_of_groups", "best_of_rows", "next_active", "places", "survivors"]

_NONE = -torch.inf


def best(score: Tensor, count: int) -> Tensor:
    """Mark the `count` highest of ``[n]`` as booleans ``[n]``; scores of minus infinity never.

    Examples
    --------
    >>> import torch
    >>> best(torch.tensor([1.0, 3.0, 3.0, 2.0]), 1).tolist()
    [False, True, False, False]
    """
    count = min(count, score.numel())
    if count <= 0:
        return torch.zeros_like(score, dtype=torch.bool)
    bound = torch.kthvalue(score, score.numel() - count + 1).values
    chosen = score > bound
    equal = (score == bound).nonzero().squeeze(1)
    chosen[equal[: count - int(chosen.sum())]] = True
    return chosen & (score > _NONE)


def best_of_groups(score: Tensor, group: Tensor | None, quota: Tensor) -> Tensor:
    """Mark the ``quota[g]`` highest scores of every group.

    Parameters
    ----------
    score
        ``[n]``; minus infinity is never chosen.
    group
        int64 ``[n]``; ``None``: all are in group 0.
    quota
        int64 ``[G]``.

    Returns
    -------
    Tensor
        Booleans ``[n]``.

    Examples
    --------
    >>> import torch
    >>> score, group = torch.tensor([1.0, 2.0, 9.0, 8.0]), torch.tensor([0, 0, 1, 1])
    >>> best_of_groups(score, group, torch.tensor([1, 2])).tolist()
    [False, True, True, True]
    """
    if group is None or quota.numel() == 1:
        return best(score, int(quota[0]))
    order = torch.argsort(score, descending=True, stable=True)
    order = order[torch.argsort(group[order], stable=True)]
    start = torch.searchsorted(group[order], torch.arange(quota.numel(), device=group.device))
    rank = torch.arange(order.numel(), device=group.device) - start[group[order]]
    chosen = torch.zeros_like(score, dtype=torch.bool)
    chosen[order] = rank < quota[group[order]]
    return chosen & (score > _NONE)


def best_of_rows(score: Tensor, quota: Tensor) -> Tensor:
    """Return the places of the ``quota[m]`` highest of each row, rising, of all ``M * N``.

    Examples
    --------
    >>> import torch
    >>> score = torch.tensor([[0.0, 3.0, 3.0, 3.0], [0.0, 0.0, 1.0, 0.0]])
    >>> best_of_rows(score, torch.tensor([2, 2])).tolist()
    [1, 2, 4, 6]
    """
    rows, columns = score.shape
    most = min(int(quota.max()) + 1 if rows else 0, columns)
    values, places = score.topk(most, dim=1)
    if most > 1:  # of equal scores topk takes any: where they meet the quota, places decide
        next_one = quota[:, None].clamp(1, most - 1)
        tied = (values.gather(1, next_one - 1) == values.gather(1, next_one)).squeeze(1)
        ordered = score[tied].sort(dim=1, descending=True, stable=True)
        values[tied], places[tied] = ordered.values[:, :most], ordered.indices[:, :most]
    numbers = torch.arange(max(rows, most), device=score.device)
    wanted = (numbers[:most] < quota[:, None]) & (values > _NONE)
    return (numbers[:rows, None] * columns + places)[wanted].sort().values


def survivors(
    active: Tensor, keep_score: Tensor, group: Tensor | None, quota: Tensor, drops: int
) -> Tensor:
    """Drop the `drops` lowest of what is active, then those beyond each group's quota.

    Parameters and result are those of :func:`next_active`.
    """
    keep_score = torch.where(active, keep_score, _NONE)
    kept = best(keep_score, int(active.sum()) - drops)
    return best_of_groups(torch.where(kept, keep_score, _NONE), group, quota)


def next_active(
    active: Tensor,
    keep_score: Tensor,
    grow_score: Tensor,
    group: Tensor | None,
    quota: Tensor,
    drops: int,
) -> Tensor:
    """Drop the `drops` lowest of what is active, then fill each group's quota with the best others.

    What was dropped is among the others and may come back.

    Parameters
    ----------
    active
        Booleans ``[n]``.
    keep_score, grow_score
        ``[n]``; the first counts where active, the second elsewhere and where dropped.
    group, quota
        As in :func:`best_of_groups`.
    drops
        How many to drop over all groups.

    Returns
    -------
    Tensor
        Booleans ``[n]``.
    """
    kept = survivors(active, keep_score, group, quota, drops)
    grown = best_of_groups(
        torch.where(kept, _NONE, grow_score), group, quota - count_of_groups(kept, group, quota)
    )
    return kept | grown


def count_of_groups(chosen: Tensor, group: Tensor | None, quota: Tensor) -> Tensor:
    """How many of each group are chosen, int64 ``[G]``."""
    if group is None or quota.numel() == 1:
        return chosen.sum().reshape(1)
    return torch.bincount(group[chosen], minlength=quota.numel())


def places(wanted: Tensor, known: Tensor) -> Tensor:
    """Place in `known`, rising, of each of the numbers `wanted`, int64 ``[n]``; -1 where it is not.

    Examples
    --------
    >>> places(torch.tensor([1, 4, 7]), torch.tensor([0, 4, 7, 9])).tolist()
    [-1, 1, 2]
    """
    if not known.numel():
        return torch.full_like(wanted, -1)
    place = torch.searchsorted(known, wanted).clamp(max=known.numel() - 1)
    return torch.where(known[place] == wanted, place, -1)
