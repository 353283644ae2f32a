"""One layer under a sparsifier: what is active, what it may become."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from scisparse.errors import OptionError
from scisparse.sparsity import optimizer_state
from scisparse.sparsity.growth import Growth
from scisparse.sparsity.importance import Importance
from scisparse.sparsity.ranks import every
from scisparse.sparsity.redistribution import Standing

__all__ = [
    "Move",
    "Rules",
    "Target",
    "all_finite",
    "attend_steps",
    "check_gathers",
    "without_passes",
]


@dataclass(frozen=True)
class Rules:
    """What decides about connections, the same for all layers.

    Parameters
    ----------
    importance
        Which go.
    growth
        Which come; ``None``: none, layers only get sparser.
    generator
        Of random numbers, on the CPU.
    optimizer
        Whose state moves along.
    """

    importance: Importance
    growth: Growth | None
    generator: torch.Generator
    optimizer: Optimizer | None

    @property
    def reserve(self) -> bool:
        """Whether weights keep their values while they are not in use."""
        return self.growth is not None and self.growth.extra > 0

    @property
    def gathers(self) -> bool:
        """Whether something is to be done before each step of the optimizer."""
        momentum = self.growth is not None and self.growth.needs_momentum
        gated = self.importance.gating is not None
        return self.importance.sums or momentum or gated or self.reserve


@dataclass(frozen=True)
class Move:
    """What a change did: how many connections went and came."""

    dropped: int
    grown: int


class Target(ABC):
    """A weight, or edges, whose connections change.

    Attributes
    ----------
    name
        Of the parameter or of the edges, in the model.
    module
        Which holds them.
    size
        Weights of the layer with nothing pruned: what sparsity is a fraction of.
    goal
        Weights that are active while connections move.
    stored
        Values of the layer that the end of training put in place of this one, if it did.
    """

    name: str
    module: nn.Module
    size: int
    goal: int
    stored: Tensor | None = None
    _momentum: Tensor | None
    _sum: Tensor | None = None  # of scores over steps
    _checked = -1  # when it was last clear that what is to be gathered at steps is

    @property
    @abstractmethod
    def parameter(self) -> nn.Parameter | None:
        """The weights; ``None`` for edges that carry none."""

    @property
    def _leaf(self) -> nn.Parameter | None:
        """A parameter that gets a gradient wherever the connections take part in the loss."""
        return self.parameter

    @property
    def owned(self) -> nn.Parameter | nn.Module:
        """What one sparsifier alone may work on: the weights."""
        assert self.parameter is not None  # subclasses without one say what it is
        return self.parameter

    @property
    def is_frozen(self) -> bool:
        """Whether its weights are not trained: what grows at 0 would stay there."""
        return self.parameter is not None and not self.parameter.requires_grad

    @property
    def bytes(self) -> int:
        """Bytes of what is stored: of the weights, without indices."""
        values = self.parameter if self.stored is None else self.stored
        return 0 if values is None else values.numel() * values.element_size()

    @property
    def operations(self) -> int:
        """Operations of one active weight for one sample."""
        return 2

    @property
    @abstractmethod
    def count(self) -> int:
        """Weights that are active."""

    @property
    @abstractmethod
    def explored(self) -> int:
        """Weights that have been active at some time of the training."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Outputs, inputs and further dimensions, for budgets."""

    @abstractmethod
    def reached(self, count: int) -> int:
        """How many weights are left when `count` are asked for: structures have whole units."""

    @abstractmethod
    def sparsify(self, count: int, rules: Rules) -> None:
        """Keep `count` weights, chosen at random: a sparse start."""

    @abstractmethod
    def begin(self) -> None:
        """Count what has been active from now on: training begins."""

    @abstractmethod
    def change(self, count: int, drop: float, rules: Rules) -> Move:
        """Drop a fraction of the active weights, then grow or drop until `count` are active."""

    def standing(self) -> Standing | None:
        """What layers hand on weights by; ``None`` where the number of weights is fixed."""
        return None

    def needs_passes(self, rules: Rules) -> bool:
        """Whether a change needs backward passes: by default, where growth does."""
        return rules.growth is not None and rules.growth.needs_gradient

    def reads_passes(self, rules: Rules) -> bool:
        """Whether a change looks at backward passes if there are any: by default, if it must."""
        return self.needs_passes(rules)

    @abstractmethod
    def record(self, gradients: bool) -> None:
        """Begin or end to keep what growth needs of the next backward passes."""

    @property
    @abstractmethod
    def has_gradients(self) -> bool:
        """Whether there were gradients since it began to record."""

    def lacks_gradients(self, rules: Rules) -> bool:
        """Whether growth or scores read what the last step has not given, on this rank."""
        grows, leaf = rules.growth, self._leaf
        if self.needs_passes(rules) and not self.has_gradients:
            return True
        if grows is not None and grows.needs_momentum and self._momentum is None:
            return True
        if rules.importance.sums:
            return self._sum is None
        reads = rules.importance.needs_gradient
        return reads and leaf is not None and leaf.grad is None

    @abstractmethod
    def finite(self) -> bool:
        """Whether all gradients since then are finite."""

    @abstractmethod
    def gather(self, rules: Rules) -> None:
        """Add this step's share to scores that are sums or running means, before the optimizer."""

    @abstractmethod
    def enforce(self) -> None:
        """Hold what is not active at 0, after the optimizer."""

    @abstractmethod
    def reattach(self, like: Target) -> None:
        """Hang on a copied layer what the target that this is a copy of has on its own."""

    @abstractmethod
    def release(self) -> None:
        """Take all hooks off."""

    @abstractmethod
    def follow(self, copy: nn.Module) -> None:
        """Let the same layer of a copy of the model take part in every change from now on."""

    @abstractmethod
    def refresh(self, model: nn.Module) -> None:
        """Find the layer again, after layers of the model were replaced by smaller ones."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Topology and everything that later changes depend on."""

    @abstractmethod
    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise, with nothing changed, unless it can be taken over."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over one that was checked."""


def all_finite(targets: Sequence[Target]) -> bool:
    """Whether gradients of all targets are finite, on all ranks."""
    return every(all(t.finite() for t in targets), next(targets[0].module.parameters()))


def without_passes(targets: Sequence[Target], rules: Rules) -> list[Target]:
    """Return those that are frozen, or that a change needs gradients of which some rank lacks.

    Raises
    ------
    OptionError
        All that are trained lack them: the loop calls things in another order.
    """
    frozen = [target for target in targets if target.is_frozen]
    trained = [target for target in targets if not target.is_frozen]
    # All ranks skip a layer without gradients on one: they compute scores together.
    without = [
        target
        for target in trained
        if not every(not target.lacks_gradients(rules), next(target.module.parameters()))
    ]
    if without and len(without) == len(trained):
        raise OptionError(
            "no weight had a gradient before a change; call loss.backward() before, and "
            "sparsifier.step() once after, each step of the optimizer, and optimizer.zero_grad() "
            "not in between"
        )
    return frozen + without


def check_gathers(targets: Sequence[Target], rules: Rules) -> None:
    """Raise if what is to be gathered at the steps of an optimizer is not, as another one steps."""
    for target in targets if rules.gathers else []:
        weight, since = target.parameter, target._checked
        if weight is not None and optimizer_state.is_replaced(rules.optimizer, weight, since):
            raise OptionError(
                f"{target.name} is stepped by another optimizer than `optimizer`, at whose steps "
                "this method gathers gradients; build the sparsifier with the one that trains"
            )
        target._checked = optimizer_state.now()


def attend_steps(targets: Sequence[Target], rules: Rules) -> optimizer_state.StepNotice | None:
    """Notice which optimizers step, whose state is to move along; gather before steps if due.

    Raises
    ------
    OptionError
        There is no optimizer to gather before its steps, or one that makes several at once.
    """
    handles = [_gather_before_steps(targets, rules)] if rules.gathers else []
    if rules.growth is None and rules.optimizer is None:
        return None
    return optimizer_state.StepNotice(*handles)


def _gather_before_steps(targets: Sequence[Target], rules: Rules) -> RemovableHandle:
    """Let targets gather from weights and gradients as the optimizer finds them."""
    if rules.optimizer is None:
        raise OptionError("this method gathers gradients at each step; give `optimizer`")
    known = [weakref.ref(target) for target in targets]  # a dropped sparsifier gathers no more

    # A compiled step of training leaves its graph here: gates have a backward pass of their own.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def gather() -> None:
        for reference in known:
            if (target := reference()) is not None:
                target.gather(rules)

    def before_step(_: Any, args: Any, kwargs: Any) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            return gather()
        # Gradients are there when the closure has run, which the step does first.

        def then_gather() -> Any:
            loss = closure()
            gather()
            return loss

        rest = {key: value for key, value in kwargs.items() if key != "closure"}
        return (args[:1], rest | {"closure": then_gather})

    if isinstance(rules.optimizer, torch.optim.LBFGS):
        raise OptionError(
            "this method gathers gradients once a step, and LBFGS makes several; choose another "
            "optimizer or method"
        )
    handle: RemovableHandle = rules.optimizer.register_step_pre_hook(before_step)
    return handle
