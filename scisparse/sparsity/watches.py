"""The watches of a target: what backward passes over a layer tell it, while it records."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Self

from torch import Tensor

from scisparse.kernels._watch import Watch, watch

__all__ = ["Watches"]

#: A buffer to watch, and what makes a pass of the tensors that were multiplied over it.
Recorder = tuple[Tensor, Callable[..., Any]]


class Watches:
    """Watches on the buffers of a layer; they end with this object. A copy watches nothing."""

    def __init__(self) -> None:
        self._running: list[Watch] = []
        weakref.finalize(self, _stop, self._running)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._running)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """None: the copied layer has other buffers."""
        return type(self)()

    def start(self, recorders: Sequence[Recorder], passes: list[Any]) -> None:
        """Append to `passes` from now on; goes on where the buffers are those of before."""
        if [id(w.col) for w in self._running] == [id(buffer) for buffer, _ in recorders]:
            return

        def appends(make: Callable[..., Any]) -> Callable[..., None]:
            return lambda *tensors: passes.append(make(*tensors))

        self.stop()
        self._running += [watch(buffer, appends(make)) for buffer, make in recorders]

    def stop(self) -> None:
        """End all."""
        _stop(self._running)


def _stop(watches: list[Watch]) -> None:
    for one in watches:
        one.stop()
    watches.clear()
