"""Methods by name: each is a choice of parts, every one of which a user may replace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scisparse.errors import OptionError
from scisparse.names import choice
from scisparse.sparsity.budgets import Budget
from scisparse.sparsity.schedules import CosineDrop, Cubic, Iterative, OneShot, Schedule, Steady
from scisparse.sparsity.structures import ConstantFanIn, Structure, Unstructured

__all__ = ["Method", "named"]


_ANY = Unstructured()


@dataclass(frozen=True)
class Method:
    """Parts that a method is made of.

    Parameters
    ----------
    name
        Of the method.
    score
        Name of the importance by which connections go.
    growth
        Name of the growth by which they come; ``None``: the method only prunes.
    schedule
        Default schedule for a number of steps.
    sparse_start
        Whether the model is sparse from the first step on.
    structure
        Default structure.
    budget
        Default budget.
    """

    name: str
    score: str
    growth: str | None
    schedule: Callable[[int], Schedule]
    sparse_start: bool
    structure: Structure = _ANY
    budget: Budget = "uniform"


def _every(steps: int) -> int:
    """Steps between changes: 100 as usual, less in a short training."""
    return max(1, min(100, steps // 40))


def _cosine(steps: int) -> Schedule:
    return CosineDrop(end=max(2, round(0.75 * steps)), every=_every(steps))


def _steady(steps: int) -> Schedule:
    return Steady(every=_every(steps), end=max(2, round(0.75 * steps)))


def _cubic(steps: int) -> Schedule:
    return Cubic(begin=0, end=max(1, round(0.75 * steps)), every=_every(steps))


def _rounds(steps: int) -> Schedule:
    rounds = min(10, max(1, steps - 1))
    return Iterative(rounds=rounds, every=max(1, steps // (rounds + 1)))


_METHODS = (
    Method("static", "magnitude", None, lambda steps: OneShot(0), True, budget="erdos_renyi"),
    Method("set", "magnitude", "random", _cosine, True, budget="erdos_renyi"),
    Method("rigl", "magnitude", "gradient", _cosine, True, budget="erdos_renyi"),
    Method("srigl", "magnitude", "gradient", _cosine, True, ConstantFanIn(0.3), "erdos_renyi"),
    Method("mest", "mest", "random", _cosine, True, budget="erdos_renyi"),
    Method("sparse_momentum", "magnitude", "momentum", _cosine, True, budget="momentum"),
    Method("top_kast", "magnitude", "superset", _steady, True, budget="erdos_renyi"),
    Method("magnitude", "magnitude", None, lambda steps: OneShot(0), False),
    Method("gmp", "magnitude", None, _cubic, False),
    Method("movement", "movement", None, _cubic, False, budget="global"),
    Method("l0", "hard_concrete", None, _cubic, False, budget="erdos_renyi"),
    Method("lottery", "magnitude", None, _rounds, False, budget="global"),
)
BY_NAME = {method.name: method for method in _METHODS}


def named(method: str) -> Method:
    """Return the method of a name.

    Raises
    ------
    OptionError
        There is none; names the nearest.

    Examples
    --------
    >>> named("gmp").schedule(1000)
    Cubic(begin=0, end=750, every=25)
    """
    if method not in BY_NAME:
        raise OptionError(choice("method", method, BY_NAME))
    return BY_NAME[method]
