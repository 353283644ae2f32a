"""Dense weights under a mask."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scisparse.errors import CheckpointError, OptionError
from scisparse.pattern import Pattern
from scisparse.sparsity import optimizer_state
from scisparse.sparsity.areas import by_area
from scisparse.sparsity.growth import Candidates
from scisparse.sparsity.link_prediction import Links
from scisparse.sparsity.momentum import running_mean, scale_of
from scisparse.sparsity.ranks import agree, average, every
from scisparse.sparsity.redistribution import Standing
from scisparse.sparsity.scores import at_least_single
from scisparse.sparsity.select import next_active, survivors
from scisparse.sparsity.structures import Block, ConstantFanIn, Structure, Unstructured
from scisparse.sparsity.target import Move, Rules, Target
from scisparse.sparsity.watches import Mark

__all__ = ["MaskedTarget"]


class MaskedTarget(Target):
    """Weight ``[O, C, ...]`` of any module, 0 where its mask is false.

    The forward pass is untouched. Gradients are masked as they are made, so that clipping and
    momenta see active weights alone; what the optimizer moves all the same (weight decay, noise) is
    set back after its step.
    """

    def __init__(self, name: str, module: nn.Module, attribute: str, structure: Structure) -> None:
        self.name, self.module, self.structure = name, module, structure
        self._attribute = attribute
        pattern = getattr(module, "pattern", None)
        self.pattern = pattern if isinstance(pattern, Pattern) else None  #: which the mask is over
        weight = self.parameter
        self.size = self.goal = weight.numel()
        self.mask = torch.ones_like(weight, dtype=torch.bool)
        self._ever = self.mask.clone()
        found = weight.detach() != 0
        self._found = None if bool(found.all()) else found  # of weights that were sparse before
        self._momentum: Tensor | None = None
        self._gradient: Tensor | None = None
        self._made: Tensor | None = None  # by a backward pass that has not added it yet
        self._emptied = False  # whether it found no masked gradient, or one of 0
        self._mark = Mark()  # of the masked gradient, when that was last added to
        self._recording = False
        self._copies: list[nn.Parameter] = []
        self._fan_in: Tensor | None = None  # of ablated structures
        self._hooks = self._mask_gradients()

    @property
    def parameter(self) -> nn.Parameter:
        """The weights."""
        parameter: nn.Parameter = getattr(self.module, self._attribute)
        return parameter

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weights."""
        return tuple(self.parameter.shape)

    @property
    def count(self) -> int:
        """Weights that are active."""
        return int(self.mask.sum())

    @property
    def explored(self) -> int:
        """Weights that have been active at some time of the training."""
        return int(self._ever.sum())

    # -- gradients -----------------------------------------------------------------------------

    def _mask_gradients(self) -> list[Any]:
        if not (self.parameter.requires_grad or self.parameter.is_floating_point()):
            return []
        known = weakref.ref(self)  # a sparsifier that is dropped masks nothing more

        def on_gradient(grad: Tensor | None) -> Tensor | None:
            target = known()  # a compiled graph has no gradient of what it reads detached
            return grad if target is None or grad is None else target._on_gradient(grad)

        def on_sum(parameter: Tensor) -> None:
            if (target := known()) is not None:
                target._on_sum(parameter)

        parameter, trained = self.parameter, self.parameter.requires_grad
        parameter.requires_grad_(True)  # a frozen weight takes no hooks, and may be thawed later
        hooks = [
            parameter.register_hook(on_gradient),
            parameter.register_post_accumulate_grad_hook(on_sum),
        ]
        parameter.requires_grad_(trained)
        return hooks

    @property
    def has_gradients(self) -> bool:
        """Whether there was a gradient since it began to record."""
        return self._gradient is not None

    def _on_gradient(self, grad: Tensor) -> Tensor:
        if self._recording:
            self._made = grad.detach()
            self._emptied = self._mark.was_emptied(self.parameter)
        if self.mask.device != grad.device:
            self._move(grad.device)
        return grad.masked_fill(~self.learning, 0)

    def _on_sum(self, parameter: Tensor) -> None:
        """Sum up what ``.grad`` is made of: another loss may have gone through before it."""
        if self._made is None:
            return
        before = None if self._emptied else self._gradient
        self._gradient = self._made if before is None else before + self._made
        self._made = None
        self._mark.set(parameter)

    def _move(self, device: torch.device) -> None:
        """Go where the model has gone."""
        self.mask = self.mask.to(device)

    @property
    def final_mask(self) -> Tensor:
        """What will be active once it is released."""
        return self.mask

    @property
    def learning(self) -> Tensor:
        """Weights that get a gradient."""
        return self.mask

    def record(self, gradients: bool) -> None:
        """Begin or end to keep dense gradients; they are summed over backward passes."""
        self._recording, self._gradient, self._made = gradients, None, None

    def finite(self) -> bool:
        """Whether the gradients are."""
        return all(
            g is None or bool(torch.isfinite(g).all())
            for g in (self._gradient, self.parameter.grad)
        )

    def gather(self, rules: Rules) -> None:
        """Sum scores and running means of gradients."""
        grad = self.parameter.grad
        scale = getattr(rules.optimizer, "grad_scale", None)  # fused optimizers unscale themselves
        finite = self.finite()
        if finite and rules.importance.sums and grad is not None:
            unscaled = grad if scale is None else grad / scale
            step = rules.importance.share(
                self.parameter.detach(), unscaled, rules.generator, of=self.name
            )
            before = step.new_zeros((), dtype=torch.float32) if self._sum is None else self._sum
            precision = torch.promote_types(before.dtype, step.dtype)
            self._sum = before.to(step.device, precision) + step.to(precision)
        if rules.growth is None or not rules.growth.needs_momentum:
            return
        recorded = self._gradient if finite else None
        if every(recorded is not None, self.parameter) and recorded is not None:
            recorded = average(recorded)
            used = None if grad is None else grad[self.mask]
            recorded = recorded / scale_of(recorded[self.mask], used, scale)
            self._momentum = running_mean(self._momentum, recorded)

    # -- changes -------------------------------------------------------------------------------

    def reached(self, count: int) -> int:
        """How many weights the structure keeps."""
        return int(self.structure.choose(self.mask.float(), count).sum())

    def sparsify(self, count: int, rules: Rules) -> None:
        """Keep `count` weights at random."""
        self.goal = count
        drawn = torch.rand(self.mask.shape, generator=rules.generator).to(self.mask.device)
        chosen = self.structure.choose(drawn, count)
        self._set(agree(chosen.to(torch.uint8)).bool(), rules)

    def begin(self) -> None:
        """Count what has been active from now on."""
        self._ever = self.mask.clone()

    def change(self, count: int, drop: float, rules: Rules) -> Move:
        """Drop a fraction of what is active, then grow or drop until `count` are active."""
        keep = self.importance(rules)
        if drop == 0 or rules.growth is None:
            count = min(count, self.count)
            chosen = self.structure.choose(torch.where(self.mask, keep, -torch.inf), count)
        else:
            chosen = self._rewired(keep, count, drop, rules)
        return self._set(agree(chosen.to(torch.uint8)).bool(), rules)

    def standing(self) -> Standing | None:
        """Weights or blocks, as many as may be; other structures fix their number."""
        structure = self.structure
        if self._momentum is None or not isinstance(structure, Block | Unstructured):
            return None
        unit = structure.height * structure.width if isinstance(structure, Block) else 1
        own = self._momentum[self.mask].abs().double()
        return Standing(self.count, unit, self.size, float(own.sum()) / max(1, own.numel()))

    def importance(self, rules: Rules) -> Tensor:
        """Scores of all weights, of the shape of the weight."""
        score = self._score(rules)
        rules.importance.check(score[self.ranked], of=self.name)
        if not rules.importance.by_area or self.pattern is None:
            return score
        return by_area(score, self.pattern, self.name)

    @property
    def ranked(self) -> Tensor:
        """Weights whose scores decide, booleans."""
        return self.mask

    def _score(self, rules: Rules) -> Tensor:
        if rules.importance.by_name is not None:
            return at_least_single(rules.importance.by_name[self.name].to(self.mask.device))
        if rules.importance.sums:
            if self._sum is None:
                raise OptionError(
                    f"the score {rules.importance.name!r} sums gradients of {self.name} over "
                    "steps, and there were none; train the layer before the first change, as with "
                    "schedule=OneShot(step), or leave it out of `params`"
                )
            return rules.importance.of_sum(self.parameter, average(self._sum))
        score = self._evaluate(rules, self.parameter.detach(), self.parameter.grad)
        return average(at_least_single(score))

    def _evaluate(self, rules: Rules, weight: Tensor, grad: Tensor | None) -> Tensor:
        return rules.importance.evaluate(weight, grad, rules.generator, of=self.name)

    def contest(self, rules: Rules) -> Tensor:
        """Scores by which layers compete; what was pruned stays pruned, whatever its score is."""
        return self.importance(rules).masked_fill(~self.mask, -torch.inf)

    def _rewired(self, keep: Tensor, count: int, drop: float, rules: Rules) -> Tensor:
        structure, shape = self.structure, self.shape
        if type(structure).choose is not Structure.choose:
            raise OptionError(f"{structure!r} cannot grow; use a method that only prunes")
        active = structure.pool(self.mask.float()) > 0
        keep = structure.pool(keep)
        group, quota = structure.groups_on(self.mask), structure.quota(shape, count)
        drops = math.floor(drop * int(active.sum()))
        quota = quota.to(keep.device)
        ablates = isinstance(structure, ConstantFanIn) and structure.ablation > 0
        whole = torch.full((1,), count, device=keep.device)
        limits = (None, whole) if ablates else (group, quota)
        kept = structure.expand(survivors(active, keep, *limits, drops), shape)
        grow = structure.pool(self._growth(rules, kept))
        if isinstance(structure, ConstantFanIn) and ablates:
            before = quota if self._fan_in is None else self._fan_in
            salient = next_active(active, keep, grow, None, whole, drops)
            rows = salient.reshape(shape[0], -1)
            quota = structure.ablated(rows.sum(1), before, count, rows.shape[1])
            self._fan_in = quota
        return structure.expand(next_active(active, keep, grow, group, quota, drops), shape)

    def _growth(self, rules: Rules, kept: Tensor) -> Tensor:
        """Scores of growth at all weights; links and degrees are those that survive dropping."""
        assert rules.growth is not None
        gradient = self._gradient if rules.growth.needs_gradient else None
        gradient = None if gradient is None else average(gradient).abs()
        matrix = kept.reshape(self._groups, -1, math.prod(self.shape[1:]))
        degrees = [matrix.sum(axis, keepdim=True).expand_as(matrix).reshape(-1) for axis in (2, 1)]
        found = Candidates(
            count=self.size,
            site_degree=degrees[0],
            source_degree=degrees[1],
            generator=rules.generator,
            gradient=None if gradient is None else gradient.reshape(-1),
            momentum=None if self._momentum is None else self._momentum.abs().reshape(-1),
            explored=self._ever.reshape(-1),
            links=self._links(matrix) if rules.growth.needs_links else None,
        )
        return rules.growth.evaluate(found).reshape(self.shape).to(self.mask.device)

    @property
    def _groups(self) -> int:
        """Of outputs that read inputs of their own."""
        module = self.module
        return module.groups if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) else 1

    def _links(self, matrix: Tensor) -> Links:
        """Between outputs and all numbers that an output reads, those of a kernel's taps, too."""
        return Links.of_matrix(matrix.flatten(0, 1), self._groups)

    @torch.no_grad()
    def _set(self, mask: Tensor, rules: Rules) -> Move:
        """Take over a mask: what it adds starts at 0, with a clean state of the optimizer."""
        grown, dropped = mask & ~self.mask, self.mask & ~mask
        self.mask, self._ever = mask, self._ever | mask
        changed = grown | dropped
        optimizer_state.clear(rules.optimizer, self.parameter, changed)
        for weight in (self.parameter, *self._copies):
            weight.masked_fill_(changed.to(weight.device), 0)
        if self._sum is not None:
            rules.importance.forget(self._sum, changed)
        if self.parameter.grad is not None:
            self.parameter.grad.masked_fill_(changed, 0)
        return Move(int(dropped.sum()), int(grown.sum()))

    @torch.no_grad()
    def enforce(self) -> None:
        """Set what is not active to 0, also in copies, which may be averaged before."""
        for weight in (self.parameter, *self._copies):
            weight.masked_fill_(~self.mask.to(weight.device), 0)

    def reattach(self, like: Target) -> None:
        """Mask the gradients of the copied weight."""
        self._hooks = self._mask_gradients()

    def release(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()

    def follow(self, copy: nn.Module) -> None:
        """Zero the same weights of a copy."""
        self._copies.append(copy.get_parameter(self.name))
        self.enforce()

    def refresh(self, model: nn.Module) -> None:
        """Take over the weight of this name, and what of it is not 0 as active."""
        module = model.get_submodule(self.name.rpartition(".")[0])
        if module is not self.module:
            self.module, self.pattern = module, getattr(module, "pattern", None)
            self.mask = self.parameter.detach() != 0

    def state_dict(self) -> dict[str, Any]:
        """Mask, record of what was active, sums."""
        return {
            "mask": self.mask.cpu(),
            "ever": self._ever.cpu(),
            "sum": self._sum,
            "momentum": self._momentum,
            "fan_in": self._fan_in,
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise unless it is of a weight of this shape, whose values have not been lost."""
        if state["mask"].shape != self.mask.shape:
            raise CheckpointError(
                f"the saved mask of {self.name} has shape {list(state['mask'].shape)}, the weight "
                f"{list(self.mask.shape)}; build the same model before loading"
            )
        self._check_start(state["mask"].to(self.parameter.device))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave."""
        device = self.parameter.device
        self.mask, self._ever = state["mask"].to(device), state["ever"].to(device)
        self._sum, self._momentum = (
            None if state[key] is None else state[key].to(device) for key in ("sum", "momentum")
        )
        self._fan_in = None if state["fan_in"] is None else state["fan_in"].to(device)
        self.enforce()

    def _check_start(self, mask: Tensor) -> None:
        """Raise if the sparse start has set weights to 0 that were those of a saved mask."""
        if self._found is None:
            return
        found = self._found.to(mask.device)
        lost = int((found & (self.parameter == 0)).sum())
        if lost and not bool((found & ~mask).any()):
            raise CheckpointError(
                f"{self.name} had its saved weights when the sparsifier was built, which set "
                f"{lost} of them to 0 by its sparse start; build the sparsifier first, and load "
                "the states of model and optimizer after it"
            )
