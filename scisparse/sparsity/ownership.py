"""Who else works on layers: sparsifiers, which would undo each other's work, and hooks."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import nn

from scisparse.errors import OptionError
from scisparse.sparsity.ranks import every
from scisparse.sparsity.target import Target

__all__ = ["has_hooks", "hold", "is_held", "let_go"]

# By identity: parameters are compared by value.
_held: dict[int, tuple[weakref.ref[nn.Parameter | nn.Module], weakref.ref[Target]]] = {}


def hold(targets: Sequence[Target]) -> None:
    """Take the weights, or raise if a living sparsifier holds one."""
    for target in targets:
        if is_held(target.owned):
            raise OptionError(
                f"{target.name} is under another sparsifier; call finalize() or release() on that "
                "one first"
            )
    for target in targets:
        _held[id(target.owned)] = (weakref.ref(target.owned), weakref.ref(target))


def is_held(owned: nn.Parameter | nn.Module, *, besides: Sequence[Target] = ()) -> bool:
    """Whether a living sparsifier holds these weights, besides the one with some targets."""
    known, owner = _held.get(id(owned), (None, None))
    target = None if owner is None else owner()
    held = known is not None and known() is owned and target is not None
    return held and all(target is not one for one in besides)


def let_go(targets: Sequence[Target]) -> None:
    """Give back the weights that these targets hold."""
    mine = {id(target) for target in targets}
    for key, (_, owner) in list(_held.items()):
        target = owner()
        if target is None or id(target) in mine:
            del _held[key]


def has_hooks(module: nn.Module) -> bool:
    """Whether a layer has hooks, which no other would call, on any rank: some log on one alone."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return not every(not any(hooks), torch.empty(0))
