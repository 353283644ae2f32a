"""Weights that layers hand on to each other, while their number stays the same.

Shares are those of :func:`redistribute`, for the budget ``"momentum"``. The number of weights of a
layer stays as it is where it is not free: of edges of attention, which carry no weights, and under
structures of other than single weights or blocks, such as constant fan-in and N:M. Layers over
patterns have room for twice the weights that they begin with, as parameters keep their size; with
``sparsity=None`` they have none.

The index tensors of such a layer change their size with each change: compiled code is compiled
anew, and not any more after ``torch._dynamo.config.recompile_limit`` times. Other budgets keep
sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scisparse.sparsity.budgets import proportional

__all__ = ["Standing", "redistribute"]


@dataclass(frozen=True)
class Standing:
    """What the share of a layer goes by.

    Parameters
    ----------
    count
        Weights that are active.
    unit
        Weights that come and go together.
    most
        Weights that the layer has room and sources for.
    momentum
        Mean magnitude of the running means of the gradients of active weights.
    """

    count: int
    unit: int
    most: int
    momentum: float

    def kept(self, drop: float) -> int:
        """Weights that are left when a fraction has been dropped, one unit at least."""
        left = self.count - self.unit * math.floor(drop * (self.count // self.unit))
        return max(left, min(self.unit, self.count))


def redistribute(standings: Sequence[Standing], drop: float, total: int) -> list[int]:
    """Give what layers drop to all of them, in proportion to their mean magnitude of momentum.

    What is more than a layer has room for goes to the others, in the same proportion.

    Parameters
    ----------
    standings
        Of the layers, before they drop anything.
    drop
        Fraction of its active weights that each layer drops.
    total
        Weights of all layers together afterwards.

    Returns
    -------
    list of int
        Weights of each layer. Their sum is `total`; it may be less by part of a unit where layers
        have no weights but in units of several, and where there is no more room.

    References
    ----------
    Dettmers, T., Zettlemoyer, L. (2019). Sparse networks from scratch: faster training without
    losing performance. https://doi.org/10.48550/arXiv.1907.04840

    Examples
    --------
    >>> layers = [Standing(40, 1, 100, momentum=0.3), Standing(40, 1, 100, momentum=0.1)]
    >>> redistribute(layers, drop=0.5, total=80)
    [50, 30]
    """
    kept = [standing.kept(drop) for standing in standings]
    rooms = [max(0, s.most - k) // s.unit * s.unit for s, k in zip(standings, kept, strict=True)]
    pool = max(0, total - sum(kept))
    wanted = proportional([s.momentum for s in standings], rooms, pool)
    # Layers without any momentum take what all others have no room for.
    left = [room - w for room, w in zip(rooms, wanted, strict=True)]
    more = proportional(left, left, pool - sum(wanted))
    wanted = [w + m for w, m in zip(wanted, more, strict=True)]
    grown = _in_units(wanted, [s.unit for s in standings], rooms, pool)
    return [k + g for k, g in zip(kept, grown, strict=True)]


def _in_units(
    wanted: Sequence[float], units: Sequence[int], rooms: Sequence[int], total: int
) -> list[int]:
    """Round to whole units with a sum of at most `total`: largest remainders first."""
    counts = [
        min(math.floor(w / unit + 1e-9) * unit, room)
        for w, unit, room in zip(wanted, units, rooms, strict=True)
    ]
    order = sorted(range(len(counts)), key=lambda i: counts[i] - wanted[i])
    left, before = total - sum(counts), -1
    while left != before:
        before = left
        for i in order:
            if units[i] <= left and counts[i] < rooms[i]:
                counts[i] += units[i]
                left -= units[i]
    return counts
