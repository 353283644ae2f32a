"""Weights behind learned gates, which close until the wanted sparsity is reached: L0."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from scisparse.errors import OptionError
from scisparse.sparsity.gates import HardConcrete
from scisparse.sparsity.importance import Gating
from scisparse.sparsity.masked import MaskedTarget
from scisparse.sparsity.ranks import agree
from scisparse.sparsity.structures import Structure
from scisparse.sparsity.target import Rules

__all__ = ["GatedTarget"]


class _Gate(nn.Module):
    """Multiplies a weight by gates: drawn in training, settled in evaluation."""

    drawn: Tensor
    settled: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        for name in ("drawn", "settled"):
            self.register_buffer(name, torch.ones_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (self.drawn if self.training else self.settled)


class GatedTarget(MaskedTarget):
    r"""Weight times hard concrete gates, one for each unit of the structure (Louizos et al. 2018).

    Gates are drawn once for each step of the optimizer. They are trained by the gradient of

    .. math:: L + \lambda (\mathrm{E}[\text{open weights}] - n) / N, \quad
              \lambda \leftarrow \lambda + \eta (\mathrm{E}[\text{open weights}] - n) / N

    with n weights to keep of N: the price :math:`\lambda` of an open gate rises until the wanted
    sparsity is met, and is 0 from then on, so that no penalty has to be tuned (Gallego-Posada et
    al. 2022). Changes close the least open gates for good, the last of them down to n. The end of
    training multiplies the weights by their settled gates, of which some may be 0: then fewer are
    left.

    Until then the weight is a parametrization: in the model's ``state_dict`` it is called
    ``parametrizations.<name>.original``.

    References
    ----------
    Louizos, C., Welling, M., Kingma, D. P. (2018). Learning sparse neural networks through L0
    regularization. https://doi.org/10.48550/arXiv.1712.01312

    Gallego-Posada, J., et al. (2022). Controlled sparsity via constrained optimization or: how I
    learned to stop tuning penalties and love constraints. https://doi.org/10.48550/arXiv.2208.04425
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        attribute: str,
        structure: Structure,
        gating: Gating,
        rules: Rules,
    ) -> None:
        if parametrize.is_parametrized(module, attribute):
            raise OptionError(
                f"{name} has a parametrization already, such as another gate or weight_norm; "
                "remove it before, or leave the layer out of `params`"
            )
        self._order = list(module._parameters)
        self._gate = _Gate(getattr(module, attribute))
        super().__init__(name, module, attribute, structure)
        weight = self.parameter
        units = structure.pool(torch.ones_like(weight, dtype=torch.float32))
        self._weights = units  # of each gate
        self._gating, self._price = gating, 0.0
        self._gates = HardConcrete(
            units.shape, open_probability=gating.open_probability, device=weight.device
        )
        seed = torch.randint(2**62, (1,), generator=rules.generator).to(weight.device)
        self._generator = torch.Generator(weight.device).manual_seed(int(agree(seed)))
        with torch.no_grad():  # no two gates alike, so that none is first by its index
            jitter = torch.randn(units.shape, generator=self._generator, device=weight.device)
            self._gates.log_alpha.add_(0.01 * jitter)
        self._adam = torch.optim.Adam(self._gates.parameters(), lr=gating.learning_rate)
        parametrize.register_parametrization(module, attribute, self._gate)
        self._modules = [module]  # and the same layer of copies
        self._trained = False
        self._draw()

    @property
    def parameter(self) -> nn.Parameter:
        """The weights without their gates."""
        if not parametrize.is_parametrized(self.module, self._attribute):
            return super().parameter
        lists: Any = self.module.parametrizations
        original: nn.Parameter = lists[self._attribute].original
        return original

    @torch.no_grad()
    def _draw(self) -> None:
        self._before, self._used = self._generator.get_state(), False
        drawn = self._gates(self._generator)
        self._gate.drawn.copy_(self.structure.expand(drawn, self.shape))
        self._gate.settled.copy_(self._settled())

    def _settled(self) -> Tensor:
        """Gates without noise; those that were never trained say nothing and are open."""
        settled = self._gates.settled() if self._trained else torch.ones_like(self._weights)
        return self.structure.expand(settled, self.shape)

    def gather(self, rules: Rules) -> None:
        """Train the gates by the gradient that the optimizer is about to use."""
        super().gather(rules)
        grad, scale = self.parameter.grad, getattr(rules.optimizer, "grad_scale", None)
        if grad is None or self._used or not self.finite():
            return
        again = torch.Generator(self._generator.device)
        again.set_state(self._before)
        drawn = self._gates(again)  # the same once more, with its graph
        gate, weight = self._gate.drawn, self.parameter.detach()
        grad = grad if scale is None else grad / scale
        # The loss by an open gate; one that is 0 or 1 has no gradient at all.
        pull = torch.where((gate > 0) & self.mask, grad * weight / gate, 0.0)
        pull = self.structure.pool(pull).to(drawn)
        stays = (self.structure.pool(self.mask.to(weight)) > 0).to(drawn)
        opened = (self._gates.open_probability() * stays * self._weights).sum() / max(1, self.size)
        self._adam.zero_grad()
        gain = (drawn * pull).sum()
        (gain + self._price * opened).backward()
        self._adam.step()
        excess = opened.item() - self.goal / max(1, self.size)
        self._price = self._price + self._gating.price_rate * excess if excess > 0 else 0.0
        self._used = self._trained = True

    def enforce(self) -> None:
        """Set what is closed for good to 0, and draw gates for the next step."""
        super().enforce()
        if self._used:
            self._draw()

    def importance(self, rules: Rules) -> Tensor:
        """How open the gates are, as log odds."""
        log_odds = self._gates.log_alpha.detach().float().to(self.mask.device)
        return self.structure.expand(log_odds, self.shape)

    def follow(self, copy: nn.Module) -> None:
        """Zero the same weights of a copy made with its gates."""
        path = self.name.rpartition(".")[0]
        module = copy.get_submodule(path)
        if not parametrize.is_parametrized(module, self._attribute):
            raise OptionError(f"copy the model after its sparsifier was built: {path} has no gates")
        lists: Any = module.parametrizations
        self._copies.append(lists[self._attribute].original)
        self._modules.append(module)

    @property
    def final_mask(self) -> Tensor:
        """What will be active once it is released: a gate may have closed by itself."""
        if not parametrize.is_parametrized(self.module, self._attribute):  # it is released
            return self.mask
        return self.mask & (self._settled().to(self.mask.device) > 0)

    @torch.no_grad()
    def release(self) -> None:
        """Multiply the weights by their settled gates, and take gates and hook off."""
        super().release()
        self.mask = self.final_mask
        settled = self._settled().to(self.mask.device).masked_fill(~self.mask, 0)
        for module in self._modules:
            if parametrize.is_parametrized(module, self._attribute):
                _fold(module, self._attribute, settled, self._order)

    def state_dict(self) -> dict[str, Any]:
        """Add the gates and what trains them."""
        return super().state_dict() | {
            "gates": self._gates.log_alpha.detach().clone(),
            "adam": copy.deepcopy(self._adam.state_dict()),
            "price": self._price,
            "goal": self.goal,
            "trained": self._trained,
            "generator": self._before,
            "used": self._used,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        super().load_state_dict(state)
        with torch.no_grad():
            self._gates.log_alpha.copy_(state["gates"])
        self._adam.load_state_dict(copy.deepcopy(state["adam"]))
        self._price, self.goal = state["price"], state["goal"]
        self._trained = state["trained"]
        self._generator.set_state(state["generator"])
        self._draw()
        self._used = state["used"]


def _fold(module: nn.Module, attribute: str, settled: Tensor, order: list[str]) -> None:
    lists: Any = module.parametrizations
    weight = lists[attribute].original
    weight.mul_(settled.to(weight))
    if len(lists) > 1:
        parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
    else:  # torch's function would take the weight from copies as well, which share the class
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
        module.register_parameter(attribute, weight)
    # Back to its place among the parameters: optimizers and averages count on the order.
    for name in order:
        if name in module._parameters:  # others may have gates still
            module._parameters[name] = module._parameters.pop(name)
