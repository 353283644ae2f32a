"""What a saved sparsifier was built with, compared with the one that goes on from its state."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from scisparse.errors import CheckpointError
from scisparse.sparsity.budgets import AreaWeighted, Budget, Regions
from scisparse.sparsity.growth import Growth
from scisparse.sparsity.importance import Importance

if TYPE_CHECKING:
    from scisparse.sparsity.sparsifier import Sparsifier

__all__ = ["check_state", "plain", "settings"]


def settings(of: Sparsifier) -> dict[str, Any]:
    """Return the arguments of a sparsifier, written down."""
    growth = of.rules.growth
    return {
        "method": of.method.name,
        "sparsity": of.sparsity,
        "structure": _written(of.structure),
        "budget": _written_budget(of.budget),
        "score": _written_rule(of.rules.importance),
        "growth": None if growth is None else _written_rule(growth),
        "teleconnections": of.far,
        "schedule": _written(of.schedule),
    }


def check_state(state: Mapping[str, Any], of: Sparsifier) -> None:
    """Raise unless a saved state is of the same arguments and weights.

    Another schedule, as of a longer training, gets a warning.

    Raises
    ------
    CheckpointError
        Layers would go on by other rules than those that made them what they are.
    """
    if "settings" not in state:
        held = ", ".join(map(repr, list(state)[:5])) or "nothing"
        raise CheckpointError(
            f"`state` is not of a sparsifier: it holds {held}; give what the `state_dict()` of a "
            "sparsifier returned"
        )
    mine = of.state_dict()
    for part in (None, "settings", "progress", "allotment"):
        _check_whole(part, mine, state)
    saved, ours = state["settings"], mine["settings"]
    for name in ours:  # in their order: the method first
        if name != "schedule" and saved[name] != ours[name]:
            raise CheckpointError(
                f"the saved state is of {name}={saved[name]}, this sparsifier of "
                f"{name}={ours[name]}: build it with the same arguments"
            )
    weights = [target.name for target in of.targets]
    if sorted(state["targets"]) != sorted(weights):
        raise CheckpointError(
            f"the saved state is of the weights {', '.join(state['targets'])}, this sparsifier of "
            f"{', '.join(weights)}: build it with the same model and `params`"
        )
    for target in of.targets:
        _check_whole(target.name, mine["targets"], state["targets"])
        target.check_state(state["targets"][target.name])
    if saved["schedule"] != ours["schedule"]:
        warnings.warn(
            f"the saved state is of schedule {saved['schedule']}, and training goes on by "
            f"{ours['schedule']}, at the next step with what it had pruned by now; give the same "
            "`schedule` or `total_steps` to go on as before",
            stacklevel=3,
        )


def _check_whole(part: str | None, mine: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise unless a part of a saved state, or all of it, holds what that of this sparsifier does.

    Raises
    ------
    CheckpointError
        Names what is lost, before anything is taken over.
    """
    if part is not None:
        mine, saved = mine[part], saved[part]
    lost = [name for name in mine if name not in saved]
    if lost:
        raise CheckpointError(
            f"the saved state lacks {', '.join(map(repr, lost))}{f' of {part}' if part else ''}: "
            "another version has made it, or something else has changed it; train anew, or build a "
            "sparsifier on the loaded model and go on without its state"
        )


def _written_rule(rule: Growth | Importance) -> str:
    """Write down the name of a rule, and the numbers that it was made with."""
    if isinstance(rule, Growth):
        reserve = {"extra": _without_point(rule.extra), "penalty": _without_point(rule.penalty)}
        numbers = (reserve if rule.extra else {}) | _numbers(rule.score)
    else:
        numbers = ({"block": rule.block} if rule.block else {}) | _numbers(rule.gating)
    written = ", ".join(f"{name}={value!r}" for name, value in numbers.items())
    return f"{rule.name}({written})" if numbers else rule.name


def _numbers(part: object) -> dict[str, float]:
    """Numbers among the fields of a dataclass."""
    if not is_dataclass(part):
        return {}
    values = {one.name: _without_point(getattr(part, one.name)) for one in fields(part)}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _written(part: object) -> str:
    """Write a part down; those that are no dataclasses may write where in memory they are."""
    if not is_dataclass(part):
        return type(part).__name__
    values = [f"{one.name}={_without_point(getattr(part, one.name))!r}" for one in fields(part)]
    return f"{type(part).__name__}({', '.join(values)})"


def _written_budget(budget: Budget) -> str:
    """Write a budget down, without labels and areas, which are as long as the sites are many."""
    if isinstance(budget, str):
        return budget
    if isinstance(budget, AreaWeighted):
        return "AreaWeighted"
    shares = budget.sparsity if isinstance(budget, Regions) else budget
    written = ", ".join(sorted(f"{str(name)!r}: {float(value)}" for name, value in shares.items()))
    return f"Regions({{{written}}})" if isinstance(budget, Regions) else f"{{{written}}}"


def plain(value: Any) -> Any:
    """Return a number of NumPy as one of Python, and all else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def _without_point(value: Any) -> Any:
    """Return it as :func:`plain` does, and whole numbers without a point."""
    value = plain(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value
