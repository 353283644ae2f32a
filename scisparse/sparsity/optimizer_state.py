"""State of an optimizer, moved with the weights it belongs to.

Every tensor that an optimizer keeps for a parameter in its shape has one number for each weight:
momenta, squared gradients, their maxima, copies in higher precision. A weight that is new must not
inherit any from the weight that had its place. The same holds for what others keep, such as parts
of gradients that have not been sent yet: they :func:`join`; and for optimizers that nobody named,
such as one that is made after the sparsifier: they are noticed as they step.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from scisparse.layers.rewiring import move_rows
from scisparse.pattern import Pattern

__all__ = [
    "Keeper",
    "StepNotice",
    "clear",
    "clear_rows",
    "forget",
    "is_replaced",
    "join",
    "move",
    "now",
    "rewire",
]


class Keeper(Protocol):
    """Who keeps a number for each weight, besides optimizers; a new weight has 0."""

    def kept_of(self, parameter: nn.Parameter) -> tuple[dict[str, Tensor], str]:
        """Where what belongs to a parameter is held, and its key, which may be missing there."""


_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()


def join(keeper: Keeper) -> None:
    """Let what `keeper` has move with the weights, as long as it lives."""
    _keepers.add(keeper)


class _Steps(NamedTuple):
    """The last two times of an optimizer that has stepped, on a clock of such steps."""

    optimizer: weakref.ref[Optimizer]
    before: int
    last: int


# By identity, as optimizers may lack a hash. Listed as a copy: others may step meanwhile.
_stepped: dict[int, _Steps] = {}
_clock = itertools.count()


class StepNotice:
    """Lets the state of every optimizer move with the weights, from its next step on.

    Until it is removed; one that is dropped notices no more.

    Parameters
    ----------
    handles
        Of hooks that go with it.
    """

    def __init__(self, *handles: RemovableHandle) -> None:
        self._handles = handles
        _notices.add(self)
        if not _hook:
            # Compiled steps leave their graph here, as they do a line later in torch.
            _hook.append(register_optimizer_step_pre_hook(torch.compiler.disable(_notice)))

    def remove(self) -> None:
        """Take the hooks off; that of all optimizers where nobody else needs it."""
        for handle in self._handles:
            handle.remove()
        _notices.discard(self)
        if not _notices and _hook:
            _hook.pop().remove()


_notices: weakref.WeakSet[StepNotice] = weakref.WeakSet()
_hook: list[RemovableHandle] = []


def _notice(optimizer: Optimizer, *_: Any) -> None:
    if not _notices:  # dropped, which is no time to change torch's list of hooks
        return
    if _steps(optimizer) is None:
        for key, known in _stepped.copy().items():
            if known.optimizer() is None:
                _stepped.pop(key, None)
    _stepped[id(optimizer)] = _Steps(weakref.ref(optimizer), _last_step(optimizer), next(_clock))


def _steps(optimizer: Optimizer) -> _Steps | None:
    known = _stepped.get(id(optimizer))  # may be of one that is gone
    return known if known is not None and known.optimizer() is optimizer else None


def _last_step(optimizer: Optimizer | None) -> int:
    """When an optimizer has made its last step that was noticed; -1 for none."""
    known = None if optimizer is None else _steps(optimizer)
    return -1 if known is None else known.last


def now() -> int:
    """A time on the clock of steps."""
    return next(_clock)


def is_replaced(optimizer: Optimizer | None, parameter: nn.Parameter, since: int) -> bool:
    """Whether others step a parameter, and an optimizer has made no step since some time.

    Nor may it have made one since another has stepped twice: once may be what a wrapper, which
    steps before, has wrapped.
    """
    if _last_step(optimizer) > since:
        return False
    others = [_steps(one) for one in _optimizers(None, parameter) if one is not optimizer]
    return any(known is not None and known.before > _last_step(optimizer) for known in others)


def _group(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any] | None:
    """Return the options by which an optimizer steps a parameter, if it does."""
    groups = optimizer.param_groups
    return next((g for g in groups if any(p is parameter for p in g["params"])), None)


def _optimizers(optimizer: Optimizer | None, parameter: nn.Parameter) -> list[Optimizer]:
    """Return the optimizer that is given, and others that have stepped the parameter."""
    others = [known.optimizer() for known in _stepped.copy().values()]
    stepping = [o for o in others if o is not None and _group(o, parameter) is not None]
    return list({id(one): one for one in (optimizer, *stepping) if one is not None}.values())


# Options of an optimizer from which its state starts, where that is not 0: Rprop's, Adagrad's.
_STARTS = {"step_size": "lr", "sum": "initial_accumulator_value"}


def _entries(
    optimizer: Optimizer | None, parameter: nn.Parameter
) -> Iterator[tuple[dict[str, Any], str, Tensor, float]]:
    """State of a parameter: where it is held, its key, its values, and what new ones are."""
    for keeper in list(_keepers):
        kept, name = keeper.kept_of(parameter)
        if name in kept:
            yield kept, name, kept[name], 0.0
    known = set()  # a wrapper has the state of what it wraps
    for one in _optimizers(optimizer, parameter):
        state = {} if isinstance(one, torch.optim.LBFGS) else one.state.get(parameter, {})
        if id(state) in known:
            continue
        known.add(id(state))
        group = _group(one, parameter) or {}
        for key, value in list(state.items()):
            if isinstance(value, Tensor) and value.dim():
                yield state, key, value, float(group.get(_STARTS.get(key, ""), 0.0))


def _forget_curvature(optimizer: Optimizer | None, parameter: nn.Parameter) -> None:
    """Let L-BFGS start anew: its history is of all weights together, as they were."""
    for one in _optimizers(optimizer, parameter):
        if isinstance(one, torch.optim.LBFGS):
            one.state.clear()


@torch.no_grad()
def clear(optimizer: Optimizer | None, parameter: nn.Parameter, where: Tensor) -> None:
    """Let the state of some weights start anew.

    Parameters
    ----------
    optimizer
        Any optimizer, or ``None``.
    parameter
        The weights.
    where
        Booleans of its shape.
    """
    if bool(where.any()):
        _forget_curvature(optimizer, parameter)
    for _, _, value, start in _entries(optimizer, parameter):
        if value.shape == parameter.shape:
            value.masked_fill_(where.to(value.device), start)


@torch.no_grad()
def clear_rows(optimizer: Optimizer | None, parameter: nn.Parameter, rows: Tensor) -> None:
    """Let the state of some rows, int64 ``[n]``, start anew."""
    _forget_curvature(optimizer, parameter)
    for _, _, value, start in _entries(optimizer, parameter):
        if _goes_by_rows(value, parameter, len(parameter)):
            value[rows.to(value.device)] = start


def _goes_by_rows(value: Tensor, parameter: nn.Parameter, rows: int) -> bool:
    """Whether a state is of the rows that there are: factored ones have no more than these."""
    return value.shape[0] == rows and (value.dim() > 1 or parameter.dim() == 1)


def forget(optimizer: Optimizer | None, parameter: nn.Parameter) -> None:
    """Let all state of a parameter start anew, its count of steps included."""
    clear(None, parameter, torch.ones_like(parameter, dtype=torch.bool))
    for one in _optimizers(optimizer, parameter):
        one.state.pop(parameter, None)


@torch.no_grad()
def move(
    optimizer: Optimizer | None, parameter: nn.Parameter, kept: Tensor, rows_before: int
) -> None:
    """Move the state of rows as the rows of the weights have moved; new rows start anew.

    Parameters
    ----------
    optimizer
        Any optimizer, or ``None``.
    parameter
        Weights ``[E', ...]``, moved already.
    kept
        int64 ``[E']``: old row of each new one, -1 for a new one.
    rows_before
        Number of rows before.
    """
    _forget_curvature(optimizer, parameter)
    for state, key, value, start in _entries(optimizer, parameter):
        if not _goes_by_rows(value, parameter, rows_before):
            continue
        moved = move_rows(value, kept)
        moved[kept.to(moved.device) < 0] = start
        if moved.shape == value.shape:
            value.copy_(moved)
        else:
            state[key] = moved


def rewire(
    optimizer: Optimizer | None, layer: Any, pattern: Pattern, kept: Tensor | None = None
) -> None:
    """Rewire a layer outside of training, without spare rows, and move the state along.

    Parameters
    ----------
    optimizer
        Any optimizer, or ``None``.
    layer
        One that can be rewired.
    pattern, kept
        As in :meth:`scisparse.layers.rewiring.Rewirable.rewire`.
    """
    rows = layer.weight.shape[0]
    move(optimizer, layer.weight, layer.rewire(pattern, kept), rows)
