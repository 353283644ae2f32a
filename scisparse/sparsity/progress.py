"""How far a sparsifier has come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scisparse.sparsity.schedules import Change, Schedule, overdue
from scisparse.sparsity.target import Move, Target, all_finite
from scisparse.sparsity.waiting import warn_of_waiting

__all__ = ["Progress"]


@dataclass
class Progress:
    """What changes while a sparsifier runs, besides its targets.

    Parameters
    ----------
    steps
        Steps of the optimizer so far.
    pending
        A change that waits for finite gradients.
    waited
        Steps for which it has.
    audited
        Whether the test of far slots has begun.
    moved
        The last move of each target, by name.
    """

    steps: int = 0
    pending: Change | None = None
    waited: int = 0
    audited: bool = False
    moved: dict[str, Move] = field(default_factory=dict)

    def due(self, schedule: Schedule, sparsity: float | None, ahead: int = 0) -> Change | None:
        """Return what a schedule asks for now, or some steps ahead.

        Without a sparsity the number of connections stays, so that only those that move count.
        """
        change = schedule.at(self.steps + ahead, 0.0 if sparsity is None else sparsity)
        idle = sparsity is None and change is not None and not change.drop
        return None if idle else change

    def expects_change(self, schedule: Schedule, sparsity: float | None) -> bool:
        """Whether there may be a change after the next step."""
        return self.pending is not None or self.due(schedule, sparsity, ahead=1) is not None

    def is_past(self, schedule: Schedule) -> bool:
        """Whether a schedule has an end, and nothing is left to do."""
        end = getattr(schedule, "end", None)
        return end is not None and self.steps >= end and self.pending is None

    def ready(self, change: Change | None, targets: Sequence[Target]) -> Change | None:
        """Return `change`, or the pending one; where gradients are not finite, it waits."""
        change = change or self.pending
        waits = change is not None and not all_finite(targets)
        self.pending = change if waits else None
        self.waited = self.waited + 1 if waits else 0
        warn_of_waiting(self.waited, targets)
        return None if waits else change

    def catch_up(self, schedule: Schedule, sparsity: float | None, now: float) -> None:
        """Let what a schedule has asked for by this step, beyond the sparsity of `now`, be next."""
        if sparsity is not None:
            self.pending = overdue(schedule, self.steps, sparsity, now) or self.pending

    def state_dict(self) -> dict[str, Any]:
        """Return everything in plain types, which load with ``weights_only=True``."""
        return vars(self) | {
            "pending": None if self.pending is None else vars(self.pending),
            "moved": {name: (move.dropped, move.grown) for name, move in self.moved.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.steps, self.waited, self.audited = (state[k] for k in ("steps", "waited", "audited"))
        self.pending = None if state["pending"] is None else Change(**state["pending"])
        self.moved = {name: Move(*pair) for name, pair in state["moved"].items()}
