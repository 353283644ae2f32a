"""Train on a device that is not the CPU, where there is none: a program, as it changes torch.

Its tensors hold numbers of the CPU. As in torch, an operator takes tensors of one device alone. As
JSON it says for each method of sparsity what was refused. When all is done, torch's thread of the
device may still let go of tensors, which aborts where Python has ended: the program ends at once.
"""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._python_dispatch import return_and_correct_aliasing as with_aliases
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from scisparse.sparsity import Sparsifier
from scisparse.sparsity.methods import BY_NAME

MAY_MIX = {"copy_", "_to_copy", "index"}  # copies, and indices that are on the CPU
NOT_TRIED = {"l0"}  # draws there, for which torch needs a generator of the device


class There(torch.Tensor):
    """A tensor on the other device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> There:
        made: There = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            dtype=held.dtype,
            device=torch.device("elsewhere:0"),
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """Where tensors are made there too."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    there = any(isinstance(t, There) for t in tensors)
    here = any(not isinstance(t, There) and t.dim() > 0 for t in tensors)
    name = func._schema.name.partition("::")[2]
    if there and here and name not in MAY_MIX:
        raise RuntimeError(f"{name} of tensors on two devices")
    asked = kwargs.get("device")
    if asked is not None:
        there = torch.device(asked).type == "elsewhere"
        kwargs = kwargs | {"device": "cpu"}
    elif name == "copy_":
        there = isinstance(args[0], There)
    with _disable_current_modes():
        inside = tree_map(lambda x: x.held if isinstance(x, There) else x, (args, kwargs))
        result = func(*inside[0], **inside[1])
    if not there:
        return result
    result = tree_map(lambda x: There(x) if isinstance(x, Tensor) else x, result)
    return with_aliases(func, args, kwargs, result)


def train(method: str) -> None:
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 6))
    for layer in model:
        for name, parameter in layer.named_parameters():
            setattr(layer, name, nn.Parameter(There(parameter.detach())))
    with Device():
        x, y = There(torch.randn(16, 12)), There(torch.randn(16, 6))
        optimizer = torch.optim.Adam(model.parameters(), foreach=False)
        sparsifier = Sparsifier(model, optimizer, method, sparsity=0.5, total_steps=8)
        for _ in range(8):
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()
            sparsifier.step()


def refused(method: str) -> str | None:
    try:
        train(method)
    except RuntimeError as error:
        return str(error)
    return None


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend("elsewhere")
    torch.manual_seed(0)
    said = json.dumps({method: refused(method) for method in BY_NAME if method not in NOT_TRIED})
    print(said, flush=True)
    os._exit(0)
