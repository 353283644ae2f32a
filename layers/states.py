"""States that callers hold by reference, as torch gives them, while the layers change."""

from __future__ import annotations

import weakref
from collections.abc import Iterator

from torch import Tensor, nn

__all__ = ["held", "hold"]

_Pair = tuple[weakref.ref[Tensor], weakref.ref[Tensor]]
_held: weakref.WeakKeyDictionary[nn.Module, list[_Pair]] = weakref.WeakKeyDictionary()


def hold(layer: nn.Module, weight: Tensor, edges: Tensor) -> None:
    """Remember the weight in a state of a layer, and what the state says of its edges."""
    alive = [*held(layer), (weight, edges)]
    _held[layer] = [(weakref.ref(weight), weakref.ref(edges)) for weight, edges in alive]


def held(layer: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """What is remembered of a layer and still in use."""
    for weight, edges in _held.get(layer, []):
        pair = weight(), edges()
        if pair[0] is not None and pair[1] is not None:
            yield pair[0], pair[1]
