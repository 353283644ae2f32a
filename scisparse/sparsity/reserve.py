"""Weights of which the largest are used and more are trained: the superset of Top-KAST."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scisparse.errors import OptionError
from scisparse.sparsity import optimizer_state
from scisparse.sparsity.masked import MaskedTarget
from scisparse.sparsity.ranks import agree, average
from scisparse.sparsity.scores import at_least_single
from scisparse.sparsity.structures import NM, Structure
from scisparse.sparsity.target import Move, Rules

__all__ = ["ReserveTarget"]


class ReserveTarget(MaskedTarget):
    r"""Weight whose largest entries A are used, while a superset B of them is trained (Top-KAST).

    The parameter holds A alone. What B has beyond it is lent to the parameter for the step of the
    optimizer, whose decay and moments so treat all of B alike, and is taken back afterwards. What
    is not in B keeps its value and waits until others have shrunk below it. To the gradient of the
    loss comes that of :math:`\frac{\lambda}{2} (\sum_A w^2 + \sum_{B \setminus A} w^2 / d)`, where
    d is the density of A: weights that are tried out but do not make it into A fade.

    References
    ----------
    Jayakumar, S. M., Pascanu, R., Rae, J. W., Osindero, S., Elsen, E. (2020). Top-KAST: top-K
    always sparse training. https://doi.org/10.48550/arXiv.2106.03517
    """

    def __init__(self, name: str, module: nn.Module, attribute: str, structure: Structure) -> None:
        if isinstance(structure, NM):
            raise OptionError(
                f"{structure!r} has one sparsity, and growth='superset' needs a second one; choose "
                "another structure or growth"
            )
        super().__init__(name, module, attribute, structure)
        self._rest = torch.zeros_like(self.parameter)  # values of all that is not active
        self._trained = self.mask.clone()
        self._lent = False

    @property
    def learning(self) -> Tensor:
        """Weights that get a gradient: B."""
        return self._trained

    @property
    def ranked(self) -> Tensor:
        """Weights whose scores decide: all of them, whether in use or not."""
        return torch.ones_like(self.mask)

    def _move(self, device: torch.device) -> None:
        super()._move(device)
        self._rest, self._trained = self._rest.to(device), self._trained.to(device)

    @torch.no_grad()
    def gather(self, rules: Rules) -> None:
        """Lend what is trained beyond the active weights, and add the penalty to the gradient."""
        super().gather(rules)
        weight, grad, growth = self.parameter, self.parameter.grad, rules.growth
        if not self._lent:
            lent = self._rest.masked_fill(~self._trained, 0)
            weight.copy_(torch.where(self.mask, weight, lent))
            self._lent = True
        if grad is None or growth is None or not growth.penalty:
            return
        scale = getattr(rules.optimizer, "grad_scale", None)
        penalty = growth.penalty * (1.0 if scale is None else scale)
        density = max(1, self.count) / max(1, self.size)
        share = torch.where(self.mask, 1.0, 1 / density).masked_fill(~self._trained, 0)
        grad.add_(penalty * share * weight)

    @torch.no_grad()
    def enforce(self) -> None:
        """Take back what was lent; what is not active is 0 again."""
        self._rest, self._lent = self._returned(), False
        super().enforce()

    def _returned(self) -> Tensor:
        """Values of all that is not active, those that are lent as the optimizer left them."""
        if not self._lent:
            return self._rest
        return torch.where(self._trained & ~self.mask, self.parameter.detach(), self._rest)

    def release(self) -> None:
        """Take back what is lent, and take the hook off."""
        self.enforce()
        super().release()

    def _score(self, rules: Rules) -> Tensor:
        """Scores of all weights, those included that are not in use."""
        if rules.importance.by_name is not None:
            return super()._score(rules)
        everything = self.parameter.detach() + self._rest
        return average(at_least_single(self._evaluate(rules, everything, self.parameter.grad)))

    def change(self, count: int, drop: float, rules: Rules) -> Move:
        """Use the `count` best weights of all, and train those that come next as well."""
        assert rules.growth is not None
        keep = self.importance(rules)
        more = min(self.size, math.floor(count * (1 + rules.growth.extra)))
        used, trained = (self.structure.choose(keep, number) for number in (count, more))
        used, trained = (agree(chosen.to(torch.uint8)).bool() for chosen in (used, trained))
        return self._use(used, trained | used, rules)

    @torch.no_grad()
    def _use(self, used: Tensor, trained: Tensor, rules: Rules) -> Move:
        values = self.parameter + self._rest
        grown, dropped = used & ~self.mask, self.mask & ~used
        optimizer_state.clear(rules.optimizer, self.parameter, trained ^ self._trained)
        for copy in self._copies:
            copy.copy_(torch.where(grown.to(copy.device), values.to(copy), copy))
            copy.masked_fill_(~used.to(copy.device), 0)
        self.mask, self._ever, self._trained = used, self._ever | used, trained
        self._rest = values.masked_fill(used, 0)
        self.parameter.copy_(values.masked_fill(~used, 0))
        return Move(int(dropped.sum()), int(grown.sum()))

    def contest(self, rules: Rules) -> Tensor:
        """Scores by which layers compete; every weight may come back."""
        return self.importance(rules)

    def state_dict(self) -> dict[str, Any]:
        """Add the weights that are not in use, and which of them are trained."""
        return super().state_dict() | {"rest": self._returned(), "trained": self._trained.cpu()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._lent = False
        super().load_state_dict(state)
        device = self.parameter.device
        self._rest, self._trained = state["rest"].to(device), state["trained"].to(device)
