"""How many weights each layer of a model keeps, by the budget of its sparsifier."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from scisparse.errors import OptionError
from scisparse.names import choice, stands_for
from scisparse.sparsity import budgets, methods
from scisparse.sparsity.budgets import AreaWeighted, Budget, Regions, check_fraction
from scisparse.sparsity.masked import MaskedTarget
from scisparse.sparsity.ranks import agree
from scisparse.sparsity.redistribution import redistribute
from scisparse.sparsity.structures import NM, Structure
from scisparse.sparsity.target import Rules, Target

__all__ = [
    "Allotment",
    "allot",
    "check_budget",
    "check_budget_names",
    "check_counts",
    "choose_budget",
    "names_of",
]

_BUDGETS = ("uniform", "erdos_renyi", "global", "momentum")


@dataclass
class Allotment:
    """Weights of each target while sparsity changes.

    Parameters
    ----------
    targets, budget, rules
        As in :func:`allot`.
    final
        Sparsity at the end; ``None`` where only far slots move.
    moves
        Whether connections move at a steady number: then each layer keeps what it was given as
        long as the sparsity stays the same.
    now
        Sparsity that was asked for last.
    """

    targets: Sequence[Target]
    budget: Budget
    final: float | None
    rules: Rules
    moves: bool
    now: float = 0.0

    def at(self, sparsity: float) -> list[int]:
        """Weights that each target keeps at a sparsity of all."""
        counts = allot(self.targets, self.budget, sparsity, self.final or 0.0, self.rules)
        if self.budget == "global":
            _warn_of_empty(self.targets, counts)
        return counts

    def after(
        self, sparsity: float, drop: float = 0.0, resting: Collection[Target] = ()
    ) -> list[int]:
        """Weights that each target has after a change to a sparsity of all.

        Parameters
        ----------
        sparsity
            Of all.
        drop
            Fraction of the active weights that each drops, and others may take over.
        resting
            Targets that this change leaves as they are.
        """
        if self.final is None or (self.moves and sparsity == self.now):
            if drop and self.final is not None and self.budget == "momentum":
                self._redistribute(drop, resting)
            return [target.goal for target in self.targets]
        counts, self.now = self.at(sparsity), sparsity
        if self.moves:
            self._aim_at(counts)
        return counts

    def _redistribute(self, drop: float, resting: Collection[Target]) -> None:
        """Aim at other counts of the targets whose number of weights is free, with one sum."""
        goals = [target.goal for target in self.targets]
        known, places, total = [], [], 0
        for k, begun in enumerate(self.at(self.now)):
            standing = self.targets[k].standing()
            if standing is None:
                continue
            # The sum of the start, which does not lose what once found no room.
            total += standing.unit * round(begun / standing.unit)
            if self.targets[k] in resting:
                total -= standing.count
            else:
                known.append(standing)
                places.append(k)
        for k, count in zip(places, redistribute(known, drop, total), strict=True):
            goals[k] = count
        self._aim_at(agree(torch.tensor(goals)).tolist())

    def aim(self) -> None:
        """Tell learned gates how many weights are to be left in the end."""
        if self.rules.importance.gating is not None and self.final is not None:
            self._aim_at(self.at(self.final))

    def _aim_at(self, counts: list[int]) -> None:
        for target, count in zip(self.targets, counts, strict=True):
            target.goal = count

    def state_dict(self) -> dict[str, Any]:
        """Return the sparsity of now and the aim of each target."""
        return {"now": self.now, "goals": {t.name: t.goal for t in self.targets}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.now = state["now"]
        self._aim_at([state["goals"][target.name] for target in self.targets])


def allot(
    targets: Sequence[Target], budget: Budget, sparsity: float, final: float, rules: Rules
) -> list[int]:
    """Return how many weights each target keeps.

    Parameters
    ----------
    targets
        The layers.
    budget
        How sparsity is shared out.
    sparsity
        Of all of them together, now.
    final
        At the end: what a budget by names is relative to.
    rules
        Scores, for the budget ``"global"``.
    """
    density, sizes = 1 - sparsity, [target.size for target in targets]
    if isinstance(budget, Mapping):
        progress = sparsity / final if final else 1.0
        return [_named(target, budget, sparsity, progress) for target in targets]
    shapes = [target.shape for target in targets]
    if budget in ("erdos_renyi", "momentum"):  # what momentum changes comes later
        return budgets.erdos_renyi(shapes, density, sizes)
    masked = [target for target in targets if isinstance(target, MaskedTarget)]
    if budget == "global" and len(masked) == len(targets):
        return budgets.global_magnitude([target.contest(rules) for target in masked], density)
    return budgets.uniform(shapes, density, sizes)


def names_of(target: Target) -> list[str]:
    """Names by which users may call a weight: its own, and those of the modules it lies in."""
    parts = target.name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts), 0, -1)]


def _warn_of_empty(targets: Sequence[Target], counts: Sequence[int]) -> None:
    """Warn of layers that are about to lose all their weights."""
    pairs = zip(targets, counts, strict=True)
    names = [target.name for target, count in pairs if not count and target.count]
    if names:
        warnings.warn(
            f"`budget` 'global' leaves no weight to {', '.join(names)}, as others score higher: "
            "only biases pass through; choose 'uniform' or 'erdos_renyi', lower `sparsity`, or "
            "leave them out by `params`",
            stacklevel=4,
        )


def check_counts(targets: Sequence[Target], counts: Sequence[int], budget: Budget) -> None:
    """Raise if a layer would lose all its weights, or keep far more than it may.

    A structure rounds to whole units and keeps one at least: a layer that is to keep less than half
    a unit cannot.

    Raises
    ------
    OptionError
        Names the layer and the highest sparsity that it can have.
    """
    for target, count in zip(targets, counts, strict=True):
        reached = target.reached(count)
        if isinstance(budget, Regions) and target.size and reached > 2 * count:
            kept, asked = (1 - edges / target.size for edges in (reached, count))
            raise OptionError(
                f"`budget` keeps {reached} of {target.size} weights of {target.name} in its "
                f"regions, a sparsity of {kept:.3g}, and `sparsity` leaves {count}, one of "
                f"{asked:.3g}; lower `sparsity`, or raise those of the regions"
            )
        if target.size and (not reached or reached > 2 * count):
            why = f"keep {reached} at least, in whole units" if reached else "be left without any"
            raise OptionError(
                f"`sparsity` leaves {count} of {target.size} weights to {target.name}, which would "
                f"{why}; lower it, or give the layer more by `budget` or leave it out by `params`"
            )


def _named(target: Target, budget: Mapping[str, float], sparsity: float, progress: float) -> int:
    names = names_of(target)
    words = [word for word in budget if any(stands_for(word, name) for name in names)]
    if not words:
        return round((1 - sparsity) * target.size)
    nearest = max(words, key=lambda word: (word in names, len(word)))
    return round((1 - budget[nearest] * progress) * target.size)


def check_budget(budget: Budget) -> Budget:
    """Return it by its full name, or raise."""
    if isinstance(budget, str):
        budget = "erdos_renyi" if budget == "erk" else budget
        if budget not in _BUDGETS:
            raise OptionError(choice("budget", budget, _BUDGETS))
    elif isinstance(budget, Mapping):
        for name, value in budget.items():
            if not isinstance(name, str):
                raise OptionError(f"`budget` names {name!r}; names are text, such as {str(name)!r}")
            check_fraction(f"budget[{name!r}]", value)
    elif not isinstance(budget, Regions | AreaWeighted):
        raise OptionError(f"`budget` is {budget!r}; give a name, a dict or one of sparsity.budgets")
    return budget


def choose_budget(
    method: methods.Method, structure: Structure, budget: Budget | None, rules: Rules
) -> Budget:
    """Return the budget that was given, or the method's own as structure and growth have it."""
    keeps_momentum = rules.growth is not None and rules.growth.needs_momentum
    if budget is None:
        if isinstance(structure, NM):  # needs the same sparsity everywhere
            return "uniform"
        own = method.budget
        return "erdos_renyi" if own == "momentum" and not keeps_momentum else own
    budget = check_budget(budget)
    if budget == "momentum" and not keeps_momentum:
        raise OptionError(
            "`budget` 'momentum' goes by running means of gradients, which are kept for growth by "
            "them alone; give growth='momentum', or choose 'erdos_renyi'"
        )
    return budget


def check_budget_names(budget: Budget, targets: Sequence[Target]) -> None:
    """Raise unless every name in a budget by names matches a weight or its module."""
    if not isinstance(budget, Mapping):
        return
    names = [name for t in targets for name in names_of(t)]
    for word in budget:
        if not any(stands_for(word, name) for name in names):
            raise OptionError(choice("budget", word, [t.name for t in targets]))
