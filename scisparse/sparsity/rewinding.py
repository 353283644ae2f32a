"""Lottery tickets: weights that go back to where they were early in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scisparse.errors import CheckpointError
from scisparse.sparsity import optimizer_state
from scisparse.sparsity.ownership import is_held
from scisparse.sparsity.target import Target

__all__ = ["Rewinding"]


class Rewinding:
    """Weights of a model at one step of its training.

    Those that another sparsifier has held since are left to it, as it has pruned or moved them.

    Parameters
    ----------
    model, optimizer
        What is rewound; an optimizer starts anew.
    step
        When weights are remembered; ``None``: never.
    targets
        Of the sparsifier.

    References
    ----------
    Frankle, J., Dziugaite, G. K., Roy, D. M., Carbin, M. (2020). Linear mode connectivity and the
    lottery ticket hypothesis. https://doi.org/10.48550/arXiv.1912.05671
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        step: int | None,
        targets: Sequence[Target],
    ) -> None:
        self.model, self.optimizer, self.step, self._targets = model, optimizer, step, targets
        self.weights: dict[str, Tensor] = {}

    def remember(self, step: int) -> None:
        """Keep all weights, if this is the step; forget those that are another's by now."""
        if step == self.step:
            self.weights = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        if self.weights:
            self.weights = {name: self.weights[name] for name in self._own()}

    def _own(self) -> dict[str, nn.Parameter]:
        """Parameters that are remembered and not another sparsifier's."""
        known = ((n, p) for n, p in self.model.named_parameters() if n in self.weights)
        return {n: p for n, p in known if not is_held(p, besides=self._targets)}

    def check_state(self, weights: Mapping[str, Tensor], steps: int) -> None:
        """Raise unless these can be what was remembered in the training of so many steps.

        Raises
        ------
        CheckpointError
            The step to go back to has passed, and was not remembered.
        """
        if self.step is not None and self.step <= steps and not weights:
            raise CheckpointError(
                f"`schedule` goes back to the weights of step {self.step}, and the saved state, of "
                f"step {steps}, does not have them: give the `rewind_to` that it was made with"
            )

    @torch.no_grad()
    def go_back(self) -> None:
        """Set all weights back; what is pruned must be set to 0 again."""
        for name, parameter in self._own().items():
            parameter.copy_(self.weights[name])
            optimizer_state.forget(self.optimizer, parameter)
