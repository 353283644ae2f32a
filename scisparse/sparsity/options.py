"""Options of a sparsifier: checked, and filled in where left out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from scisparse.errors import OptionError
from scisparse.grids.integers import integer, integer_from
from scisparse.names import choice
from scisparse.sparsity import growth, importance, methods
from scisparse.sparsity.allotment import check_budget_names
from scisparse.sparsity.areas import area_of_edges
from scisparse.sparsity.budgets import AreaWeighted, Budget, Regions, check_fraction
from scisparse.sparsity.discovery import TRANSPOSED
from scisparse.sparsity.edge_structures import SiteRows
from scisparse.sparsity.edge_target import EdgeTarget
from scisparse.sparsity.importance import Score
from scisparse.sparsity.masked import MaskedTarget
from scisparse.sparsity.schedules import Cubic, Iterative, OneShot, Schedule, Steady
from scisparse.sparsity.structures import NM, Sites, Structure, Unstructured
from scisparse.sparsity.target import Rules, Target

__all__ = [
    "check_audit",
    "check_copy",
    "check_optimizer",
    "check_parts",
    "check_rules",
    "check_sparsity",
    "check_steady_number",
    "check_teleconnections",
    "choose_rules",
    "choose_schedule",
]

_SCHEDULES = ("OneShot", "Cubic", "CosineDrop", "Steady", "Iterative")
# After torch.manual_seed(seed), a start with the same numbers would keep the largest first weights.
_OWN = 0x5CA1AB1E
_MOST_NUMBERS = 1 << 26  # of running means of candidates


def check_sparsity(sparsity: float | None) -> float | None:
    """Return it, or raise unless it lies in [0, 1)."""
    return None if sparsity is None else check_fraction("sparsity", sparsity)


def check_steady_number(
    targets: Sequence[Target], structure: Structure, budget: Budget | None, rules: Rules
) -> None:
    """Raise unless edges can move at the number that there is now; warn if none can."""
    edges = [target for target in targets if isinstance(target, EdgeTarget)]
    if budget is not None:
        raise OptionError(
            "`budget` shares out `sparsity`, which is None: layers keep as many edges as they "
            "have; give `sparsity`, in [0, 1), or leave `budget` out"
        )
    for target in edges if isinstance(structure, Sites) else []:
        now, whole = target.layer.pattern.fan_in, target.candidates.fan_in
        if bool(((now > 0) & (whole > now)).any()):
            raise OptionError(
                f"sites of {target.name} have up to {int(whole.max())} candidates each and are "
                f"active as wholes with {structure!r}: with as many edges as now, others would go "
                "empty; give `sparsity`, or no `candidates` beyond the edges of the layer"
            )
    full = all(target.candidates.size <= target.active.numel() for target in edges)
    if full and rules.growth is not None:
        warnings.warn(
            f"no edge of {', '.join(target.name for target in edges)} can move, as `sparsity` is "
            "None and there are no candidates besides the edges that there are; give `candidates`, "
            "such as a wider window, or `sparsity`",
            stacklevel=3,
        )


def check_teleconnections(
    slots: Any,
    method: methods.Method,
    rules: Rules,
    sparsity: float | None,
    structure: Structure,
    budget: Budget | None,
) -> int:
    """Return the number of far slots, or raise unless the rest fits; `budget` as it was given."""
    if not isinstance(slots, int) or isinstance(slots, bool) or slots < 0:
        raise OptionError(f"`teleconnections` (={slots!r}) must be whole and must not be negative")
    if slots and (not method.sparse_start or rules.reserve or rules.importance.gating is not None):
        raise OptionError(f"`teleconnections` need a method that moves edges, not {method.name!r}")
    if slots and sparsity is not None:
        raise OptionError(
            f"`teleconnections` (={slots}) and `sparsity` (={sparsity}) are both given; far slots "
            "are rewired while local edges stay: prune those with a second sparsifier afterwards"
        )
    if slots and (budget is not None or not isinstance(structure, Unstructured)):
        own = budget is None and structure is method.structure
        remedy = "choose method='rigl'" if own else "leave one of the two out"
        what = repr(structure) if budget is None else "`budget`"
        raise OptionError(
            f"`teleconnections` fills the slots of each site by itself, whatever {what} says of "
            f"the edges that a site has; {remedy}"
        )
    return int(slots)


def check_audit(slots: int, schedule: Schedule, total_steps: int | None, steps: int) -> None:
    """Raise unless far slots can be audited before the training ends."""
    end = getattr(schedule, "end", None)
    if slots and end is None:
        raise OptionError(
            f"`schedule` (={schedule!r}) has no `end`, after which far slots could be tested; give "
            "one that has, such as CosineDrop"
        )
    if slots and end is not None and total_steps is not None and end + steps > total_steps:
        raise OptionError(
            f"`total_steps` (={total_steps}) must be at least {end + steps}: rewiring ends at step "
            f"{end}, and it takes {steps} steps to see which far slots have an effect"
        )


def check_parts(
    targets: Sequence[Target], structure: Structure, budget: Budget, schedule: Schedule
) -> None:
    """Raise unless every layer can have this structure, budget and schedule together."""
    check_budget_names(budget, targets)
    masked = [target for target in targets if isinstance(target, MaskedTarget)]
    if isinstance(budget, Regions | AreaWeighted) and not any(
        isinstance(t, EdgeTarget) or isinstance(t.structure, SiteRows)
        for t in targets
        if isinstance(t, EdgeTarget | MaskedTarget)
    ):
        raise OptionError(
            f"`budget` {type(budget).__name__} is for pattern layers with a weight of its own on "
            f"each edge, and {targets[0].name} is none; name such layers in `params`"
        )
    if budget == "global" and len(masked) < len(targets):
        raise OptionError(
            "`budget` 'global' needs the scores of all weights, which edges that move do not have; "
            "choose 'uniform' or 'erdos_renyi', or a method that only prunes"
        )
    gradual = isinstance(schedule, Cubic | Iterative)
    for target in masked:
        target.structure.pool(target.mask.float())  # raises where it does not fit
        target.structure.groups(target.shape)
        if isinstance(target.structure, NM) and gradual:
            raise OptionError(
                f"{target.structure!r} has one sparsity and cannot be reached step by step; choose "
                "method='magnitude', or schedule=OneShot(step)"
            )


def check_rules(targets: Sequence[Target], rules: Rules, schedule: Schedule) -> None:
    """Raise unless scores have what they need of every weight, and the schedule suits them."""
    gated = rules.importance.gating is not None
    if isinstance(schedule, Iterative) and (gated or rules.reserve):
        raise OptionError(
            f"{schedule!r} rewinds weights, but neither learned gates nor weights in reserve; "
            "choose another schedule, such as Cubic or Steady"
        )
    _check_without_gradient(targets, rules)
    by_name, by_area = rules.importance.by_name, rules.importance.by_area
    prunes_only = isinstance(schedule, OneShot | Cubic | Iterative)
    for target in targets:
        _check_growth(target, rules, prunes_only)
        pattern = getattr(target.module, "pattern", None)
        if by_area and pattern is not None:
            weight = target.parameter
            area_of_edges(
                pattern, target.name, pattern.num_edges if weight is None else len(weight)
            )
        if by_name is None:
            continue
        if not isinstance(target, MaskedTarget):
            raise OptionError(
                f"`score` is given for weights that stay, and the edges of {target.name} move; "
                "choose a method that only prunes, such as 'magnitude'"
            )
        if target.name not in by_name:
            raise OptionError(choice("score", target.name, by_name))
        if by_name[target.name].shape != target.parameter.shape:
            raise OptionError(
                f"`score` of {target.name} has shape {list(by_name[target.name].shape)}, the "
                f"weight {list(target.parameter.shape)}"
            )
        rules.importance.check(by_name[target.name], of=target.name)


def _check_without_gradient(targets: Sequence[Target], rules: Rules) -> None:
    """Raise if a score reads gradients, where weights in reserve have none."""
    goes = rules.importance
    weight = targets[0].parameter
    if not rules.reserve or not goes.needs_gradient or weight is None:
        return
    try:
        goes.evaluate(weight.detach(), None)
    except importance.NoGradientError as error:
        raise OptionError(
            f"growth 'superset' also ranks weights that have no gradient, and the function of "
            f"`score` {goes.name!r} reads it ({error.__cause__}); rank by the weights alone, or "
            "choose method='rigl'"
        ) from error


def _check_growth(target: Target, rules: Rules, prunes_only: bool) -> None:
    """Raise unless scores and growth can be had of a weight, or of edges that move."""
    if isinstance(target, EdgeTarget) and rules.importance.sums:
        raise OptionError(
            f"the score {rules.importance.name!r} is summed over steps, and the edges of "
            f"{target.name} move meanwhile; choose a score of the step, such as 'magnitude', or a "
            "method that only prunes"
        )
    grows = rules.growth
    if grows is None or rules.reserve or prunes_only:
        return
    if grows.needs_distance and not _has_distances(target):
        raise OptionError(
            f"growth {grows.name!r} needs distances, which {target.name} does not have; build its "
            "pattern on a grid, or give them: Pattern.from_edge_index(distance=...)"
        )
    if grows.needs_sites and not isinstance(target, EdgeTarget):
        raise OptionError(
            f"growth {grows.name!r} reads sites, which layers over patterns have and {target.name} "
            "does not; leave it out of `params`"
        )
    if isinstance(target, EdgeTarget) and grows.needs_momentum:
        size = target.candidates.size
        if size * target.block > _MOST_NUMBERS:
            raise OptionError(
                f"growth by momentum keeps a number for each of the {size} candidates of "
                f"{target.name}; give fewer in `candidates`, or grow by gradient"
            )
    if not isinstance(target, MaskedTarget):
        return
    if type(target.structure).choose is not Structure.choose:
        raise OptionError(
            f"{target.structure!r} of {target.name} cannot grow; use a method that only prunes, "
            "or leave it out of `params`"
        )
    if (grows.needs_links or grows.needs_degrees) and isinstance(target.module, TRANSPOSED):
        raise OptionError(
            f"growth {grows.name!r} reads the rows of a weight as outputs, and those of "
            f"{target.name} are inputs, as its convolution is transposed; choose 'gradient' or "
            "'random', or leave it out of `params`"
        )
    if (grows.needs_links or grows.needs_degrees) and target.pattern is not None:
        raise OptionError(
            f"growth {grows.name!r} by links is not known for {target.name}, which is masked on "
            "the edges of a pattern; build it with tie=None and groups=1, or leave it out of "
            "`params`"
        )


def _has_distances(target: Target) -> bool:
    if not isinstance(target, EdgeTarget):
        return False
    chunk = next(iter(target.candidates.chunks(1)), None)
    return chunk is None or target.candidates.distance(chunk) is not None


def choose_schedule(
    method: methods.Method, schedule: Schedule | None, total_steps: int | None
) -> Schedule:
    """Return the schedule that was given, or the method's own for so many steps."""
    if schedule is not None:
        if not (hasattr(schedule, "at") and hasattr(schedule, "start")):
            named = choice("schedule", schedule, _SCHEDULES)
            raise OptionError(f"{named}, with their steps: schedules.Cubic(begin=0, end=7500)")
        return schedule
    if total_steps is None:
        if method.name in ("static", "magnitude"):
            return method.schedule(1)
        raise OptionError(f"method {method.name!r} needs `total_steps`, the steps of the training")
    integer_from("total_steps", total_steps, 1, OptionError)
    return method.schedule(total_steps)


def check_optimizer(optimizer: Optimizer | None, targets: list[Target]) -> None:
    """Raise unless the optimizer, if there is one, holds every weight."""
    if optimizer is None:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for target in targets:
        weight = target.parameter
        if weight is not None and weight.requires_grad and id(weight) not in held:
            raise OptionError(
                f"`optimizer` does not hold {target.name}; build it from this model's parameters, "
                "or name the weights to make sparse in `params`"
            )


def check_copy(copy: nn.Module, targets: Sequence[Target]) -> nn.Module:
    """Return the module of a copy that can follow, or raise."""
    if isinstance(copy, AveragedModel):
        edges = [target.name for target in targets if isinstance(target, EdgeTarget)]
        if copy.use_buffers and edges:
            raise OptionError(
                f"`copy` averages buffers (use_buffers=True), and edges of {edges[0]} are buffers, "
                "whose numbers have no mean; build AveragedModel with use_buffers=False"
            )
        copy = copy.module
    modules = dict(copy.named_modules())
    for target in targets:
        path = target.name.rpartition(".")[0]
        if path not in modules:
            raise OptionError(
                f"`copy` has no module {path!r}, which holds {target.name}; give a copy of the "
                "model that is trained"
            )
    return copy


def choose_rules(
    method: methods.Method,
    score: Score | None,
    grows: growth.Rule | None,
    seed: int,
    optimizer: Optimizer | None,
    schedule: Schedule,
) -> Rules:
    """Score and growth that were given, or the method's own."""
    given, grows = grows, method.growth if grows is None else grows
    goes = importance.named(method.score if score is None else score)
    if goes.gating is not None and (method.sparse_start or grows is not None):
        raise OptionError(
            f"learned gates (`score` {goes.name!r}) close and do not open again; choose "
            f"method='l0', or another that only prunes, instead of {method.name!r}"
        )
    rules = Rules(
        goes,
        None if grows is None else growth.named(grows),
        torch.Generator().manual_seed(integer("seed", seed, OptionError) ^ _OWN),
        optimizer,
    )
    if method.score == "hard_concrete" and goes.gating is None:
        raise OptionError(
            f"method {method.name!r} learns gates, and `score` {goes.name!r} has none; leave "
            "`score` out or give importance.hard_concrete(...), or choose method='gmp'"
        )
    _check_acts(method, given is None, rules, schedule)
    if rules.reserve and (goes.sums or (goes.name in importance.BY_NAME and goes.needs_gradient)):
        raise OptionError(
            f"growth 'superset' also ranks weights that have no gradient, which `score` "
            f"{goes.name!r} needs; choose 'magnitude'"
        )
    return rules


def _check_acts(method: methods.Method, own: bool, rules: Rules, schedule: Schedule) -> None:
    """Raise if the schedule never lets growth act, the method's own or one that is asked for."""
    grows = rules.growth
    if grows is None or not isinstance(schedule, _idle(grows, own)):
        return
    who, out = f"method {method.name!r}", "`schedule`"
    if not own:
        usual = None if method.growth is None else growth.named(method.growth)
        acts = usual is None or not isinstance(schedule, _idle(usual, True))
        who, out = f"growth {grows.name!r}", "`growth`" if acts else "`growth` and `schedule`"
    does, other = "replaces connections that are dropped, and {} drops none", "CosineDrop(end=...)"
    if rules.reserve:
        does, other = "chooses again as weights change, and {} chooses once", "Steady(every=...)"
    raise OptionError(f"{who} {does.format(schedule)}; choose schedule={other}, or leave {out} out")


def _idle(grows: growth.Growth, own: bool) -> tuple[type, ...]:
    """Schedules with which growth does nothing, or, for a method's own, makes no sense."""
    if grows.extra > 0:  # in reserve
        return (OneShot,)
    # Methods that regrow may also be pruned step by step, but a rule that is asked for must act.
    return (Steady,) if own else (Steady, OneShot, Cubic, Iterative)
