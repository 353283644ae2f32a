"""When the topology changes, how sparse it is then, and how much of it moves.

A schedule is a frozen value with one method, ``at(step, sparsity)``: the change that is due after
optimizer step `step` (the first is 1), or ``None``. Steps are counted in calls of
``Sparsifier.step``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from scisparse.errors import OptionError
from scisparse.grids.integers import integer, is_finite

__all__ = ["Change", "CosineDrop", "Cubic", "Iterative", "OneShot", "Schedule", "Steady", "overdue"]


@dataclass(frozen=True)
class Change:
    """What a schedule asks for.

    Parameters
    ----------
    sparsity
        Fraction of weights that are zero afterwards.
    drop
        Fraction of the active weights that are dropped, and as many grown.
    rewind
        Whether weights go back to their values of :attr:`Iterative.rewind_to`.
    """

    sparsity: float
    drop: float = 0.0
    rewind: bool = False


class Schedule(Protocol):
    """Anything with the methods of the schedules here."""

    def at(self, step: int, sparsity: float) -> Change | None:
        """Return the change due after step `step` on the way to `sparsity`, or ``None``."""

    def start(self, sparsity: float) -> float:
        """Sparsity before the first step."""


@dataclass(frozen=True)
class OneShot:
    """Prune once, after step `step`.

    Examples
    --------
    >>> OneShot(step=100).at(100, 0.9)
    Change(sparsity=0.9, drop=0.0, rewind=False)
    """

    step: int

    def __post_init__(self) -> None:
        _check_whole(self, "step")

    def at(self, step: int, sparsity: float) -> Change | None:
        """Return the change due after `step`, or ``None``."""
        return Change(sparsity) if step == self.step else None

    def start(self, sparsity: float) -> float:
        """Sparsity before the first step."""
        return sparsity if self.step <= 0 else 0.0


@dataclass(frozen=True)
class Cubic:
    """Prune gradually, fast at first: ``s(t) = s * (1 - (1 - (t - begin) / (end - begin))^3)``.

    The last change comes at `end` whatever `every` is, and ends exactly on the target.

    Parameters
    ----------
    begin, end
        First and last step of pruning.
    every
        Steps between changes.

    References
    ----------
    Zhu, M., Gupta, S. (2017). To prune, or not to prune: exploring the efficacy of pruning for
    model compression. https://doi.org/10.48550/arXiv.1710.01878

    Examples
    --------
    >>> schedule = Cubic(begin=0, end=100, every=50)
    >>> [round(schedule.at(step, 0.8).sparsity, 3) for step in (50, 100)], schedule.at(51, 0.8)
    ([0.7, 0.8], None)
    """

    begin: int
    end: int
    every: int = 100

    def __post_init__(self) -> None:
        _check_whole(self, "begin", "end", "every")
        _check(self.every >= 1 and self.begin < self.end, self, "`begin` must lie before `end`")

    def at(self, step: int, sparsity: float) -> Change | None:
        """Return the change due after `step`, or ``None``."""
        if step == self.end:
            return Change(sparsity)
        if not self.begin <= step < self.end or (step - self.begin) % self.every:
            return None
        rest = 1 - (step - self.begin) / (self.end - self.begin)
        return Change(sparsity * (1 - rest**3))

    def start(self, sparsity: float) -> float:
        """Sparsity before the first step."""
        return 0.0


@dataclass(frozen=True)
class CosineDrop:
    """Sparse from the start; move a fraction that falls as a cosine until step `end`.

    ``drop(t) = fraction / 2 * (1 + cos(pi * t / end))``

    Parameters
    ----------
    end
        No change comes at this step or later, so that what grew last can be trained.
    every
        Steps between changes.
    fraction
        Fraction of active weights that move at first.

    References
    ----------
    Evci, U., Gale, T., Menick, J., Castro, P. S., Elsen, E. (2020). Rigging the lottery: making all
    tickets winners. https://doi.org/10.48550/arXiv.1911.11134

    Examples
    --------
    >>> CosineDrop(end=200, every=100, fraction=0.3).at(100, 0.9)
    Change(sparsity=0.9, drop=0.15, rewind=False)
    """

    end: int
    every: int = 100
    fraction: float = 0.3

    def __post_init__(self) -> None:
        _check_whole(self, "end", "every")
        _check(self.every >= 1, self, "`every` must be at least 1")
        within = is_finite(self.fraction) and 0 <= self.fraction <= 1
        _check(within, self, "`fraction` must lie between 0 and 1")

    def at(self, step: int, sparsity: float) -> Change | None:
        """Return the change due after `step`, or ``None``."""
        if not 0 < step < self.end or step % self.every:
            return None
        return Change(sparsity, self.fraction / 2 * (1 + math.cos(math.pi * step / self.end)))

    def start(self, sparsity: float) -> float:
        """Sparsity before the first step."""
        return sparsity


@dataclass(frozen=True)
class Steady:
    """Sparse from the start, and chosen anew at equal intervals.

    Parameters
    ----------
    every
        Steps between choices.
    end
        No choice comes at this step or later, so that the last one can be trained; ``None``: there
        is no end.

    Examples
    --------
    >>> schedule = Steady(every=100, end=400)
    >>> schedule.at(300, 0.9), schedule.at(400, 0.9)
    (Change(sparsity=0.9, drop=0.0, rewind=False), None)
    """

    every: int = 100
    end: int | None = None

    def __post_init__(self) -> None:
        _check_whole(self, "every", *([] if self.end is None else ["end"]))
        _check(self.every >= 1, self, "`every` must be at least 1")

    def at(self, step: int, sparsity: float) -> Change | None:
        """Return the change due after `step`, or ``None``."""
        if step < 1 or step % self.every or (self.end is not None and step >= self.end):
            return None
        return Change(sparsity)

    def start(self, sparsity: float) -> float:
        """Sparsity before the first step."""
        return sparsity


@dataclass(frozen=True)
class Iterative:
    """Prune in rounds by equal factors of density, and rewind the survivors after each.

    After round ``k`` of ``n`` the density is ``(1 - s)^(k / n)``, the last exactly ``1 - s``. All
    weights of the model go back, but for those that another sparsifier has held since.

    Parameters
    ----------
    rounds
        Number of rounds.
    every
        Steps in a round.
    rewind_to
        Step whose weights the survivors go back to; 0: those at the start.

    References
    ----------
    Frankle, J., Carbin, M. (2019). The lottery ticket hypothesis: finding sparse, trainable neural
    networks. https://doi.org/10.48550/arXiv.1803.03635

    Frankle, J., Dziugaite, G. K., Roy, D. M., Carbin, M. (2020). Linear mode connectivity and the
    lottery ticket hypothesis. https://doi.org/10.48550/arXiv.1912.05671

    Examples
    --------
    >>> schedule = Iterative(rounds=2, every=10)
    >>> [round(schedule.at(step, 0.75).sparsity, 3) for step in (10, 20)], schedule.at(30, 0.75)
    ([0.5, 0.75], None)
    """

    rounds: int
    every: int
    rewind_to: int = 0

    def __post_init__(self) -> None:
        _check_whole(self, "rounds", "every", "rewind_to")
        _check(self.rounds >= 1 and self.every >= 1, self, "`rounds`, `every` must be at least 1")
        _check(0 <= self.rewind_to < self.every, self, "`rewind_to` must lie in the first round")

    def at(self, step: int, sparsity: float) -> Change | None:
        """Return the change due after `step`, or ``None``."""
        done, rest = divmod(step, self.every)
        if rest or not 1 <= done <= self.rounds:
            return None
        now = sparsity if done == self.rounds else 1 - (1 - sparsity) ** (done / self.rounds)
        return Change(now, rewind=True)

    def start(self, sparsity: float) -> float:
        """Sparsity before the first step."""
        return 0.0


def overdue(schedule: Schedule, step: int, sparsity: float, now: float) -> Change | None:
    """Return what a schedule has asked for until `step`, if that is sparser than it is `now`.

    Parameters
    ----------
    schedule
        By which training goes on after `step`; before, it may have been another one.
    sparsity
        On the way to this one.
    now
        Sparsity that was asked for last.

    Examples
    --------
    >>> overdue(Cubic(begin=0, end=30), step=50, sparsity=0.8, now=0.75)
    Change(sparsity=0.8, drop=0.0, rewind=False)
    """
    if now >= sparsity:
        return None
    changes = (schedule.at(before, sparsity) for before in range(step, -1, -1))
    last = next((change for change in changes if change is not None), None)
    return last if last is not None and last.sparsity > now else None


def _check(holds: bool, schedule: object, rule: str) -> None:
    if not holds:
        raise OptionError(f"{schedule!r}: {rule}")


def _check_whole(schedule: object, *names: str) -> None:
    for name in names:  # a step between two would never come
        integer(name, getattr(schedule, name), OptionError)
