"""Sparse activations: how many numbers between layers are 0, and more of them by ReLU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["measure_zeros", "relufy"]

# Smooth relatives of ReLU: a trained network takes the exchange with a little more training.
_SMOOTH = (nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.Hardswish)
_SMOOTH_FUNCTIONS = tuple(
    getattr(nn.functional, name)
    for name in ("gelu", "silu", "mish", "elu", "celu", "selu", "softplus", "hardswish")
)


def relufy(model: nn.Module) -> list[str]:
    """Put ReLU in the place of its smooth relatives: GELU, SiLU, Mish, ELU, Softplus and the like.

    Outputs change; train on for a while. Activations called as functions are not seen, but for
    those that torch's transformer layers hold.

    Parameters
    ----------
    model
        Changed in place.

    Returns
    -------
    list of str
        Names of the modules and attributes that were replaced.

    References
    ----------
    Mirzadeh, I., et al. (2023). ReLU strikes back: exploiting activation sparsity in large language
    models. https://doi.org/10.48550/arXiv.2310.04564

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.GELU())
    >>> relufy(model), model[1]
    (['1'], ReLU())
    """
    # A module used in two places has two names.
    found = [
        (name, module)
        for name, module in model.named_modules(remove_duplicate=False)
        if name and type(module) in _SMOOTH
    ]
    for name, module in found:
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, nn.ReLU().train(module.training))
    names = [name for name, _ in found]
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            continue
        if layer.activation in _SMOOTH_FUNCTIONS:
            layer.activation = nn.functional.relu
            names.append(f"{name}.activation" if name else "activation")
        is_relu = layer.activation is nn.functional.relu or type(layer.activation) is nn.ReLU
        if is_relu and isinstance(layer, nn.TransformerEncoderLayer):
            layer.activation_relu_or_gelu = 1  # by which the fast path of evaluation goes
    return names


@contextmanager
def measure_zeros(model: nn.Module) -> Iterator[dict[str, float]]:
    """Measure the fraction of zeros in the output of every innermost module.

    Parameters
    ----------
    model
        Called inside the block as often as wanted.

    Returns
    -------
    dict
        Fraction for each module name over all calls, in the order of first use; whole after the
        block. Modules without a floating tensor as output are left out.

    Examples
    --------
    >>> model = nn.Sequential(nn.Identity(), nn.ReLU())
    >>> with measure_zeros(model) as zeros:
    ...     _ = model(torch.tensor([-2.0, -1.0, 1.0, 2.0]))
    >>> zeros
    {'0': 0.0, '1': 0.5}
    """
    counts: dict[str, list[int]] = {}
    fractions: dict[str, float] = {}

    def count(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                so_far = counts.setdefault(name, [0, 0])
                so_far[0] += output.numel() - int(torch.count_nonzero(output))
                so_far[1] += output.numel()

        return hook

    handles = [
        module.register_forward_hook(count(name))
        for name, module in model.named_modules()
        if next(module.children(), None) is None
    ]
    try:
        yield fractions
    finally:
        for handle in handles:
            handle.remove()
        fractions.update({name: zeros / max(1, size) for name, (zeros, size) in counts.items()})
