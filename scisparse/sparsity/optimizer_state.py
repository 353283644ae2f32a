"""State of an optimizer, moved with the weights it belongs to.

Every tensor that an optimizer keeps for a parameter in its shape has one number for each weight:
momenta, squared gradients, their maxima, copies in higher precision. A weight that is new must not
inherit any from the weight that had its place. The same holds for what others keep, such as parts
of gradients that have not been sent yet: they :func:`join`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scisparse.layers.rewiring import move_rows
from scisparse.pattern import Pattern

__all__ = ["Keeper", "clear", "clear_rows", "forget", "join", "move", "rewire"]


class Keeper(Protocol):
    """Who keeps a number for each weight, besides optimizers; a new weight has 0."""

    def kept_of(self, parameter: nn.Parameter) -> tuple[dict[str, Tensor], str]:
        """Where what belongs to a parameter is held, and its key, which may be missing there."""


_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()


def join(keeper: Keeper) -> None:
    """Let what `keeper` has move with the weights, as long as it lives."""
    _keepers.add(keeper)


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
    if optimizer is None or isinstance(optimizer, torch.optim.LBFGS):
        return
    state = optimizer.state.get(parameter, {})
    groups = optimizer.param_groups
    group = next((g for g in groups if any(p is parameter for p in g["params"])), {})
    for key, value in list(state.items()):
        if isinstance(value, Tensor) and value.dim():
            yield state, key, value, float(group.get(_STARTS.get(key, ""), 0.0))


def _forget_curvature(optimizer: Optimizer | None) -> None:
    """Let L-BFGS start anew: its history is of all weights together, as they were."""
    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.state.clear()


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
        _forget_curvature(optimizer)
    for _, _, value, start in _entries(optimizer, parameter):
        if value.shape == parameter.shape:
            value.masked_fill_(where.to(value.device), start)


@torch.no_grad()
def clear_rows(optimizer: Optimizer | None, parameter: nn.Parameter, rows: Tensor) -> None:
    """Let the state of some rows, int64 ``[n]``, start anew."""
    _forget_curvature(optimizer)
    for _, _, value, start in _entries(optimizer, parameter):
        if value.shape == parameter.shape:
            value[rows.to(value.device)] = start


def forget(optimizer: Optimizer | None, parameter: nn.Parameter) -> None:
    """Let all state of a parameter start anew, its count of steps included."""
    clear(None, parameter, torch.ones_like(parameter, dtype=torch.bool))
    if optimizer is not None:
        optimizer.state.pop(parameter, None)


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
    _forget_curvature(optimizer)
    for state, key, value, start in _entries(optimizer, parameter):
        # A factored state (Adafactor's) has the rows but not the shape.
        if value.shape[0] != rows_before or (value.dim() == 1 and parameter.dim() > 1):
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
