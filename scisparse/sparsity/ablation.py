"""Removal of neurons that nothing reaches or that reach nothing, through the layers around."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from scisparse.sparsity.ownership import is_held

__all__ = ["ELEMENTWISE", "remove_neurons"]

# Functions of one number: a constant goes through them as a constant.
ELEMENTWISE = (
    nn.ReLU,
    nn.GELU,
    nn.Tanh,
    nn.Sigmoid,
    nn.SiLU,
    nn.ELU,
    nn.LeakyReLU,
    nn.Softplus,
    nn.Identity,
    nn.Hardtanh,
    nn.Mish,
    nn.Dropout,
)


def remove_neurons(model: nn.Module) -> int:
    """Remove the idle neurons between linear layers of every ``nn.Sequential``, exactly.

    A neuron whose weights are all 0 gives a constant, ``f(bias)``, which moves into the bias of the
    next layer; one that the next layer does not read is left out. Between the two may be functions
    of single numbers (ReLU, GELU, dropout ...). Layers under a sparsifier stay as they are.

    Returns
    -------
    int
        Neurons removed.

    Examples
    --------
    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> _ = model[0].weight.data[1].zero_()
    >>> x, before = torch.randn(5, 3), model
    >>> y = model(x)
    >>> remove_neurons(model), model[0], torch.allclose(y, model(x), atol=1e-6)
    (1, Linear(in_features=3, out_features=3, bias=True), True)
    """
    removed = 0
    seen = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))

    def may_shrink(layer: nn.Module) -> bool:
        own = all(seen[id(p)] == 1 and not is_held(p) for p in layer.parameters())
        return type(layer) is nn.Linear and own

    for module in model.modules():
        if type(module).forward is nn.Sequential.forward:
            assert isinstance(module, nn.Sequential)
            layers = [i for i, m in enumerate(module) if not isinstance(m, ELEMENTWISE)]
            for first, second in pairwise(layers):
                if may_shrink(module[first]) and may_shrink(module[second]):
                    removed += _remove_between(module, first, second)
    return removed


@torch.no_grad()
def _remove_between(chain: nn.Sequential, first: int, second: int) -> int:
    before: Any = chain[first]
    after: Any = chain[second]
    unreached = (before.weight == 0).all(1)
    idle = unreached | (after.weight == 0).all(0)
    if not bool(idle.any()) or bool(idle.all()):
        return 0
    constant = before.weight.new_zeros(before.out_features)
    if before.bias is not None:
        constant += before.bias
    for i in range(first + 1, second):
        if not isinstance(chain[i], nn.Dropout):
            constant = chain[i](constant)
    shift = after.weight[:, unreached] @ constant[unreached]
    chain[first] = _linear(before, before.weight[~idle], before.bias, ~idle)
    bias = shift if after.bias is None else after.bias + shift
    every = torch.ones_like(bias, dtype=torch.bool)
    needs_bias = after.bias is not None or bool(shift.any())
    chain[second] = _linear(after, after.weight[:, ~idle], bias if needs_bias else None, every)
    return int(idle.sum())


def _linear(like: nn.Linear, weight: Tensor, bias: Tensor | None, keep: Tensor) -> nn.Linear:
    """Return a linear layer with these weights, and those biases that are kept."""
    layer = nn.utils.skip_init(
        nn.Linear,
        weight.shape[1],
        weight.shape[0],
        bias=bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    layer.weight.copy_(weight)
    layer.weight.requires_grad_(like.weight.requires_grad)
    if bias is not None:
        layer.bias.copy_(bias[keep])
        layer.bias.requires_grad_(all(p.requires_grad for p in like.parameters(recurse=False)))
    made: nn.Linear = layer.train(like.training)
    return made
