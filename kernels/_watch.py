"""Let others see what a backward pass makes the gradients on edges of.

The gradient of every weight over a pattern is an outer product on its edges. Who wants the gradient
on edges that a layer does not have (yet) needs the same two tensors; for edges of attention, its
inputs. Operators are called with the layer's own index buffers, also under ``torch.compile``, which
is how a watcher knows its layer: no hook on a module, nothing to trace.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["Watch", "tell", "watch"]

Callback = Callable[..., None]

_watches: dict[int, Watch] = {}


class Watch:
    """A running watch; it holds the buffer, so that nothing else can take its place in memory."""

    def __init__(self, col: Tensor, callback: Callback) -> None:
        self.col, self.callback = col, callback

    def stop(self) -> None:
        """End it; a second time does nothing."""
        if _watches.get(self.col.data_ptr()) is self:
            del _watches[self.col.data_ptr()]


def watch(col: Tensor, callback: Callback) -> Watch:
    """Call `callback` in every backward pass of an operator over the edges of `col`.

    Parameters
    ----------
    col
        The very buffer ``[E]`` that the operators get, not a copy; watched by one at a time.
    callback
        Gets, of an operator with weights, the sources ``[B, N, C]`` and the gradient at the sites
        ``[B, M, O]`` whose outer products are the gradients of the weights; of attention, its
        inputs, the gradient at the sites ``[B, M, H, V]``, the logarithms of the denominators
        ``[B, M, H]`` and the scale. May be called several times in a pass.
    """
    one = Watch(col, callback)
    if col.numel():
        _watches[col.data_ptr()] = one
    return one


def tell(col: Tensor, *what: Any) -> None:
    """Tell the watcher of `col`, if there is one."""
    if _watches and col.numel() and (one := _watches.get(col.data_ptr())) is not None:
        one.callback(*what)
