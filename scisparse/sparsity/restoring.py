"""Finalized models from their saved state: layers are built anew as the state has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scisparse.layers.linear import SparseLinear
from scisparse.layers.rewiring import packed_shape
from scisparse.sparsity.chains import NORMS
from scisparse.sparsity.forms import CompressedLinear, SemiStructuredLinear

__all__ = ["restore"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def restore(model: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Load the state of a finalized model into one that was built as before training.

    Layers that have another form or other sizes in the state are replaced; device, type and what is
    frozen are those of the model.

    Parameters
    ----------
    model
        As it was built before training; changed in place, but for a model that is itself a linear
        layer.
    state_dict
        Of the model that ``Sparsifier.finalize`` returned.

    Returns
    -------
    nn.Module
        The model.

    Raises
    ------
    RuntimeError
        The state is of another model, as from ``load_state_dict``.

    Examples
    --------
    >>> import torch
    >>> from scisparse.sparsity import Sparsifier
    >>> def build():
    ...     return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
    >>> model = Sparsifier(build(), method="magnitude", sparsity=0.9).finalize("condensed")
    >>> again, x = restore(build(), model.state_dict()), torch.randn(4, 8)
    >>> torch.equal(again(x), model(x))
    True
    """
    for path, module in list(model.named_modules()):
        prefix = f"{path}." if path else ""
        own = {k: state_dict[prefix + k] for k in _KEYS if prefix + k in state_dict}
        new = _rebuilt(module, own)
        if new is module:
            continue
        for name, parameter in new.named_parameters():
            old = getattr(module, name, None)
            if old is not None and name != "values":
                parameter.requires_grad_(old.requires_grad)
        new.train(module.training)
        if not path:
            model = new
        else:
            model.set_submodule(path, new)
    model.load_state_dict(state_dict)
    return model


_KEYS = ("weight", "bias", "values", "row_ptr", "col", "place", "running_mean", "_extra_state")


def _rebuilt(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Return the module, or one of the sizes and the form in its state."""
    layer: Any = module
    linear, weight = type(module) in (nn.Linear, SparseLinear), state.get("weight")
    if linear and "values" in state:
        return _stored(layer, state)
    if linear and weight is not None:
        if weight.dim() == 1 and "_extra_state" in state:
            own = layer.pattern.shape if isinstance(layer, SparseLinear) else None
            return layer if packed_shape(state["_extra_state"]) == own else _sparse(layer, state)
        if weight.shape != layer.weight.shape or ("bias" in state) != (layer.bias is not None):
            sizes = weight.shape[1], weight.shape[0]
            return nn.Linear(*sizes, bias="bias" in state, **_like(layer.weight))
    if type(module) in _CONVOLUTIONS and weight is not None:
        return _convolution(layer, state)
    values = state.get("running_mean", weight)
    if type(module) in NORMS and values is not None:
        return _norm(layer, len(values))
    return module


def _like(values: Tensor) -> dict[str, Any]:
    return {"device": values.device, "dtype": values.dtype}


def _sparse(layer: Any, state: dict[str, Tensor]) -> nn.Module:
    """Sizes alone: edges come with the state."""
    sites, sources = packed_shape(state["_extra_state"])
    return SparseLinear(sources, sites, 0, bias="bias" in state, **_like(layer.weight))


def _stored(layer: Any, state: dict[str, Tensor]) -> nn.Module:
    values = torch.empty(state["values"].shape, **_like(layer.weight))
    indices = {
        name: torch.empty_like(state[name], device=layer.weight.device)
        for name in ("row_ptr", "col", "place")
        if name in state
    }
    bias = state.get("bias")
    new = None if bias is None else nn.Parameter(torch.empty(len(bias), **_like(layer.weight)))
    if "place" in indices:
        return SemiStructuredLinear(values, indices["place"], new)
    inputs = int(state["_extra_state"])
    return CompressedLinear(inputs, indices["row_ptr"], indices["col"], values, new)


def _convolution(layer: Any, state: dict[str, Tensor]) -> nn.Module:
    weight = state["weight"]
    if weight.shape == layer.weight.shape and ("bias" in state) == (layer.bias is not None):
        return layer  # type: ignore[no-any-return]
    made: nn.Module = type(layer)(
        *(weight.shape[1] * layer.groups, weight.shape[0], layer.kernel_size),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias="bias" in state,
        padding_mode=layer.padding_mode,
        **_like(layer.weight),
    )
    return made


def _norm(layer: Any, features: int) -> nn.Module:
    if features == layer.num_features:
        return layer  # type: ignore[no-any-return]
    made: nn.Module = type(layer)(
        *(features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats),
        **_like(layer.weight if layer.running_mean is None else layer.running_mean),
    )
    return made
