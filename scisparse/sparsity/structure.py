"""What a structure is: see :mod:`scisparse.sparsity.structures` for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scisparse.sparsity.select import best_of_groups

__all__ = ["Shape", "Structure", "nearest"]

Shape = Sequence[int]


class Structure:
    """Base: every number is a unit, all are one group.

    Examples
    --------
    >>> import torch
    >>> score = torch.tensor([[1.0, 4.0], [3.0, 2.0]])
    >>> Structure().choose(score, 2).tolist()
    [[False, True], [True, False]]
    """

    def pool(self, score: Tensor) -> Tensor:
        """Sum the scores of each unit, ``[units]``."""
        return score.reshape(-1)

    def expand(self, units: Tensor, shape: Shape) -> Tensor:
        """Give every weight of `shape` the value of its unit."""
        return units.reshape(tuple(shape))

    def groups(self, shape: Shape) -> Tensor | None:
        """Group of each unit, int64 ``[units]``; ``None``: one group."""
        return None

    def quota(self, shape: Shape, count: int) -> Tensor:
        """Units that each group keeps when `count` weights are kept, int64 ``[G]``."""
        return torch.tensor([count])

    def choose(self, score: Tensor, count: int) -> Tensor:
        """Keep `count` weights with the highest scores that the structure allows, as booleans."""
        shape = score.shape
        quota = self.quota(shape, count).to(score.device)
        chosen = best_of_groups(self.pool(score), self.groups_on(score), quota)
        return self.expand(chosen, shape)

    def groups_on(self, values: Tensor) -> Tensor | None:
        """Return :meth:`groups` for values of a weight, on their device."""
        groups = self.groups(values.shape)
        return None if groups is None else groups.to(values.device)


def nearest(count: int, size: float) -> int:
    """Units of `size` weights that come nearest to `count`, the fewer of two equally near.

    Examples
    --------
    >>> nearest(10, 4), nearest(11, 4), nearest(14, 4)
    (2, 3, 3)
    """
    return math.ceil(count / size - 0.5)
