"""The watches of a target: what backward passes of the loss over a layer tell it, while it records.

A layer is differentiated for more than its optimizer's sake: by the inputs for a loss made of
derivatives, or for another loss that goes through it to train something else. What counts is what
``.grad`` of its parameter is made of, so a pass counts where it adds to that, until it is emptied.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from scisparse.kernels._watch import watch

__all__ = ["Mark", "Watches"]

#: A buffer to watch, and what makes a pass of the tensors that were multiplied over it.
Recorder = tuple[Tensor, Callable[..., Any]]


class Mark:
    """What ``.grad`` of a parameter was after a backward pass, to tell whether it still counts."""

    def __init__(self) -> None:
        self._grad: TensorWeakRef | None = None
        self._version = -1

    def set(self, parameter: Tensor) -> None:
        """A backward pass has added to the gradient."""
        grad = parameter.grad
        self._grad = None if grad is None else TensorWeakRef(grad)
        self._version = -1 if grad is None else grad._version

    def was_emptied(self, parameter: Tensor) -> bool:
        """Whether the gradient has been set to nothing or to 0 since, in place or anew."""
        grad = parameter.grad
        if grad is None:
            return True
        known = self._grad is not None and self._grad() is grad and self._version == grad._version
        return not known and not bool(grad.any())  # where nobody wrote, nothing is read


class _Step:
    """What one step of the optimizer goes by."""

    def __init__(self, passes: list[Any], parameter: nn.Parameter | None) -> None:
        self.passes, self.parameter = passes, parameter
        self.begin()

    def begin(self) -> None:
        """Begin the next step; what `passes` hold by now stays."""
        self.first = len(self.passes)
        self.waiting: list[tuple[int, Any]] = []
        self.added: set[int] = set()  # backward passes that have added to the gradient
        self.emptied, self._mark = False, Mark()
        self.gradient: Tensor | None = None

    def tell(self, one: Any) -> None:
        """Keep a pass, at first until its backward pass adds to the gradient."""
        running = torch._C._current_graph_task_id()
        trained = self.parameter is not None and self.parameter.requires_grad
        if not trained or running in self.added:
            self.passes.append(one)
            return
        if running >= 0 and all(task != running for task, _ in self.waiting):
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(lambda: self._drop(running))
        self.waiting.append((running, one))

    def _drop(self, task: int) -> None:
        """Forget what a backward pass that has ended did not add to the gradient."""
        self.waiting = [waits for waits in self.waiting if waits[0] != task]

    def before(self, _: Tensor) -> None:
        """See whether the gradient that a backward pass finds is what the last one has left."""
        if self.parameter is not None:
            self.emptied = self._mark.was_emptied(self.parameter)

    # In a compiled step of training it would be compiled again for each backward pass.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def after(self, parameter: Tensor) -> None:
        """Take over what this backward pass has told."""
        if self.emptied:
            del self.passes[self.first :]
            self.added.clear()
        running = torch._C._current_graph_task_id()
        self.added.add(running)
        self.passes += [one for task, one in self.waiting if task == running]
        self._drop(running)
        self._mark.set(parameter)
        if parameter.grad is not None:
            self.gradient = parameter.grad.detach().clone()


class Watches:
    """Watches on the buffers of a layer; they end with this object. A copy watches nothing."""

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._step: _Step | None = None
        self._ends: list[Callable[[], None]] = []
        weakref.finalize(self, _stop, self._ends)

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._ends)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """None: the copied layer has other buffers."""
        return type(self)()

    @property
    def gradient(self) -> Tensor | None:
        """Gradient of the parameter when the last pass had added to it, before it was unscaled."""
        return None if self._step is None else self._step.gradient

    def start(
        self, recorders: Sequence[Recorder], parameter: nn.Parameter | None, passes: list[Any]
    ) -> None:
        """Append to `passes` from now on what a next step of the optimizer goes by.

        Parameters
        ----------
        recorders
            Buffers to watch, and what to make of what is told; watches on the same go on, unless
            the parameter is another one or has been frozen or freed.
        parameter
            Of the layer, which every pass of the loss adds a gradient to. Without one, or while it
            is not trained, every pass counts.
        passes
            What is there already stays.
        """
        if parameter is not None and not parameter.requires_grad:
            parameter = None
        buffers, step = [buffer for buffer, _ in recorders], self._step
        same = list(map(id, buffers)) == list(map(id, self._buffers))
        if step is not None and same and step.parameter is parameter:
            return step.begin()
        self.stop()
        step = self._step = _Step(passes, parameter)

        def tells(make: Callable[..., Any]) -> Callable[..., None]:
            return lambda *tensors: step.tell(make(*tensors))

        self._buffers = buffers
        self._ends += [watch(buffer, tells(make)).stop for buffer, make in recorders]
        if parameter is not None:
            hooks = (
                parameter.register_hook(step.before),
                parameter.register_post_accumulate_grad_hook(step.after),
            )
            self._ends += [hook.remove for hook in hooks]

    def stop(self) -> None:
        """End all."""
        _stop(self._ends)
        self._buffers, self._step = [], None


def _stop(ends: list[Callable[[], None]]) -> None:
    for end in ends:
        end()
    ends.clear()
