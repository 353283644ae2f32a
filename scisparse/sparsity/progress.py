"""How far a sparsifier has come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scisparse.sparsity.schedules import Change
from scisparse.sparsity.target import Move

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
    audited
        Whether the test of far slots has begun.
    moved
        The last move of each target, by name.
    """

    steps: int = 0
    pending: Change | None = None
    audited: bool = False
    moved: dict[str, Move] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Return everything in plain types, which load with ``weights_only=True``."""
        return vars(self) | {
            "pending": None if self.pending is None else vars(self.pending),
            "moved": {name: (move.dropped, move.grown) for name, move in self.moved.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self.steps, self.audited = state["steps"], state["audited"]
        self.pending = None if state["pending"] is None else Change(**state["pending"])
        self.moved = {name: Move(*pair) for name, pair in state["moved"].items()}
