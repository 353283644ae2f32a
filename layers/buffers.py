"""Buffers that follow from a pattern, which are not saved and of which averages mean nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from scisparse.errors import PatternError

__all__ = ["OwnBuffers", "write_beside_parameters"]


class OwnBuffers(nn.Module):
    """Module with buffers that follow from a pattern, which may be exchanged for another.

    They are the module's own, as a pattern is frozen and copies of the module belong to it as well,
    and are written in place where sizes have not changed: so compiled graphs and distributed
    training go on with the same tensors.

    They are not saved: subclasses write them in ``_write_buffers``, which is called again whenever
    the module moves or its parameters are loaded off the meta device, so that neither ``to_empty``
    nor ``load_state_dict(..., assign=True)`` leaves them unwritten.

    What else writes to them, such as averages of whole models, does not know of the pattern:
    ``train``, ``eval`` and ``state_dict`` raise a ``PatternError`` where they are no longer its.
    """

    rewired = False  #: whether the pattern is another than the one the layer was built on
    _others: list[str] | None = None  # while buffers are compared: names of those that differ

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_post_hook(write_beside_parameters)

    def _write_buffers(self, device: torch.device) -> None:
        """Write the buffers that follow from the pattern."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        after = self._buffers
        if any(after[name] is not tensor for name, tensor in before.items()):
            self._write_buffers(next(t.device for t in after.values() if t is not None))
        return self

    def _put_buffer(self, name: str, values: Tensor | None, device: torch.device) -> None:
        """Write a buffer: in place if the module has one of this size, else a copy of `values`."""
        old = self._buffers.get(name)
        if self._others is not None:
            if old is not None and values is not None and not torch.equal(old, values.to(old)):
                self._others.append(name)
            return
        if values is None:
            self.register_buffer(name, None, False)
        elif old is not None and _takes(old, values, device):
            old.copy_(values)
        else:
            self.register_buffer(name, values.to(device, copy=True), False)
        self._written[name] = _version(self._buffers[name])

    def train(self, mode: bool = True) -> Self:
        """Set the mode, once it is clear that buffers are still those of the pattern."""
        self._check_buffers()
        return super().train(mode)

    def _save_to_state_dict(self, *args: Any) -> None:
        self._check_buffers()
        super()._save_to_state_dict(*args)

    def _check_buffers(self) -> None:
        """Raise if something else has written other values to the buffers than follow.

        Raises
        ------
        PatternError
            As averages of models do, whose layers have moved their edges, or of the buffers.
        """
        if torch.compiler.is_compiling():  # a graph has no count of writes
            return
        now = {name: self._buffers.get(name) for name in self._written}
        touched = [
            buffer
            for name, buffer in now.items()
            if buffer is not None and _version(buffer) != self._written[name]
        ]
        if not touched or any(buffer.is_meta for buffer in touched):
            return
        kept = vars(self).copy()
        others: list[str] = []
        self._others = others
        try:
            self._write_buffers(touched[0].device)
        finally:  # a comparison leaves no trace, such as caches that are made anew
            vars(self).update(kept)
            self._others = None
        if others:
            raise PatternError(
                f"{', '.join(others)} of {type(self).__name__} are not those of its pattern any "
                "more, as something else has written to them: let averages and other copies of a "
                "model whose edges move take part, sparsifier.follow(average.module), and leave "
                "`use_buffers` of torch's AveragedModel at False, as numbers of edges have no "
                "mean; an average of weights that were on the same edges all along is good: save a "
                "copy.deepcopy(model) that has it, by torch.nn.utils.vector_to_parameters("
                "parameters_to_vector(average.parameters()), copied.parameters())"
            )
        self._written.update((name, _version(b)) for name, b in now.items())

    @property
    def _written(self) -> dict[str, int]:
        """What torch counted for each buffer when it was written here."""
        written: dict[str, int] = self.__dict__.setdefault("_versions_written", {})
        return written


def _version(buffer: Tensor | None) -> int:
    """How often a tensor has been written to in place, which inference mode does not count."""
    return -1 if buffer is None or buffer.is_inference() else buffer._version


def write_beside_parameters(module: nn.Module, _: object = None) -> None:
    """Write buffers of a module and its parts that are on meta where its parameters are not.

    ``load_state_dict(..., assign=True)`` puts real parameters in the place of those on meta.
    """
    device = next((parameter.device for parameter in module.parameters()), None)
    if device is None or device.type == "meta":
        return
    for part in module.modules():
        if isinstance(part, OwnBuffers) and any(t.is_meta for t in part.buffers(recurse=False)):
            part._write_buffers(device)


def _takes(old: Tensor, new: Tensor, device: torch.device) -> bool:
    """Whether values can be written to a tensor that is there."""
    alike = old.shape == new.shape and old.dtype == new.dtype and old.device == device
    return alike and (not old.is_inference() or torch.is_inference_mode_enabled())
