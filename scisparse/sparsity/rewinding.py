"""Lottery tickets: weights that go back to where they were early in training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scisparse.errors import CheckpointError
from scisparse.sparsity import optimizer_state

__all__ = ["Rewinding"]


class Rewinding:
    """Weights of a model at one step of its training.

    Parameters
    ----------
    model, optimizer
        What is rewound; an optimizer starts anew.
    step
        When weights are remembered; ``None``: never.

    References
    ----------
    Frankle, J., Dziugaite, G. K., Roy, D. M., Carbin, M. (2020). Linear mode connectivity and the
    lottery ticket hypothesis. https://doi.org/10.48550/arXiv.1912.05671
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | None, step: int | None) -> None:
        self.model, self.optimizer, self.step = model, optimizer, step
        self.weights: dict[str, Tensor] = {}

    def remember(self, step: int) -> None:
        """Keep all weights, if this is the step."""
        if step == self.step:
            self.weights = {n: p.detach().clone() for n, p in self.model.named_parameters()}

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
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self.weights[name])
            optimizer_state.forget(self.optimizer, parameter)
