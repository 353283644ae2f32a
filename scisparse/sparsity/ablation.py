"""Removal of neurons that nothing reaches or that reach nothing, through the layers around."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from scisparse.layers.linear import SparseLinear
from scisparse.sparsity.chains import Chain, find_chains
from scisparse.sparsity.ownership import has_hooks, is_held

__all__ = ["remove_neurons"]


def remove_neurons(model: nn.Module) -> int:
    """Remove idle neurons, sites and channels between two layers, exactly.

    One whose weights are all 0 gives a constant, ``f(bias)``, which moves into the bias of the next
    layer; one that the next layer does not read is left out. The layers are ``nn.Linear``,
    ``SparseLinear`` and convolutions without groups; between the two may be functions of single
    numbers (ReLU, GELU, dropout ...), max pooling of convolutions, flattening, and batch norms,
    which are taken as in evaluation. A norm after a linear layer, which may be over positions, is
    followed where features are flattened before it, or norms of different sizes are in a row. A
    convolution that pads with zeros does not take constants other than 0.

    How layers follow each other is found by ``torch.fx``; where the path of a model depends on
    values, nothing is removed, but for its parts: those of an ``nn.Sequential`` only if the code
    around is seen to call it as a whole. Layers stay as they are whose weights another
    module reads or a sparsifier holds, that are called more than once, or that have hooks.

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
    seen = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))

    def may_shrink(path: str) -> bool:
        layer: Any = model.get_submodule(path)
        own = all(seen[id(p)] <= 1 and not is_held(p) for p in layer.parameters())
        return own and getattr(layer, "groups", 1) == 1 and not has_hooks(layer)

    removed, chains = 0, find_chains(model)
    chains = [c for c in chains if all(map(may_shrink, (c.first, c.second, *c.norms)))]
    # What one removal leaves may be idle in its turn, before it or after it.
    while count := sum(_remove_between(model, chain) for chain in reversed(chains)):
        removed += count
        chains = [_with_norms_of(model, chain) for chain in chains]
    return removed


def _with_norms_of(model: nn.Module, chain: Chain) -> Chain:
    """Return the chain as it goes through the batch norms that the model has now."""
    return next((c for c in find_chains(model) if c == chain), chain) if chain.norms else chain


@torch.no_grad()
def _remove_between(model: nn.Module, chain: Chain) -> int:
    before, after = model.get_submodule(chain.first), model.get_submodule(chain.second)
    outputs = _outputs(before)
    reads = _reads(after, outputs, chain.flat, before)
    if reads is None:
        return 0
    unread, gain = reads
    unreached = _unreached(before)
    constant = _constant(before, chain)
    if _pads_with_zeros(after):
        unreached &= constant == 0
    idle = unreached | unread
    if not bool(idle.any()) or bool(idle.all()):
        return 0
    shift = gain[:, unreached] @ constant[unreached]
    spread = _inputs(after) // outputs if chain.flat else 1
    model.set_submodule(chain.first, _shrunk(before, outputs=~idle))
    for name in chain.norms:
        model.set_submodule(name, _norm_of(model.get_submodule(name), ~idle))
    kept = (~idle).repeat_interleave(spread)
    model.set_submodule(chain.second, _shrunk(after, inputs=kept, shift=shift))
    return int(idle.sum())


# -- what layers read and give ------------------------------------------------------------------


def _weight(layer: Any) -> Tensor:
    """Weights as a dense matrix or kernel, ``[O, C, ...]``."""
    weight: Tensor = layer.to_dense().weight if isinstance(layer, SparseLinear) else layer.weight
    return weight


def _outputs(layer: Any) -> int:
    return int(layer.out_features if hasattr(layer, "out_features") else layer.out_channels)


def _inputs(layer: Any) -> int:
    return int(layer.in_features if hasattr(layer, "in_features") else layer.in_channels)


def _unreached(layer: nn.Module) -> Tensor:
    """Outputs without a weight, booleans ``[O]``."""
    return (_weight(layer) == 0).flatten(1).all(1)


def _reads(
    layer: nn.Module, channels: int, flat: bool, before: nn.Module
) -> tuple[Tensor, Tensor] | None:
    """Channels that a layer does not read, ``[C]``, and what a constant in each adds, ``[O, C]``.

    ``None`` where its inputs are others than the channels of the layer before.
    """
    linear, from_linear = (isinstance(m, nn.Linear | SparseLinear) for m in (layer, before))
    fits = _inputs(layer) == channels
    if linear and not from_linear:
        fits = flat and _inputs(layer) % channels == 0
    elif linear != from_linear or (flat and not linear):
        fits = False
    if not fits:
        return None
    weight = _weight(layer)
    weight = weight.reshape(len(weight), channels, weight.shape[1:].numel() // max(1, channels))
    return (weight == 0).all(2).all(0), weight.sum(2)


def _constant(layer: Any, chain: Chain) -> Tensor:
    """What each output is at the next layer if nothing reaches it, ``[O]``."""
    bias = layer.bias
    constant: Tensor = layer.weight.new_zeros(_outputs(layer)) if bias is None else bias.clone()
    for function in chain.functions:
        constant = function(constant)
    return constant


def _pads_with_zeros(layer: Any) -> bool:
    """Whether a constant channel is not the same at the rim."""
    padding: str | tuple[int, ...] = getattr(layer, "padding", ())
    some = padding == "same" if isinstance(padding, str) else any(padding)
    return some and layer.padding_mode == "zeros"


# -- smaller layers -----------------------------------------------------------------------------


def _shrunk(
    layer: Any,
    outputs: Tensor | None = None,
    inputs: Tensor | None = None,
    shift: Tensor | None = None,
) -> nn.Module:
    """Return a layer with some of its outputs or inputs, and a shift of its biases."""
    bias = layer.bias
    if shift is not None and (bias is not None or bool(shift.any())):
        bias = shift if bias is None else bias + shift
    if bias is not None and outputs is not None:
        bias = bias[outputs]
    made = _sparse(layer, outputs, inputs, bias is not None)
    if made is None:
        made = _dense(layer, outputs, inputs, bias is not None)
    if bias is not None:
        made.bias.copy_(bias)
    frozen = [not p.requires_grad for p in layer.parameters(recurse=False)]
    for name, parameter in made.named_parameters(recurse=False):
        old = getattr(layer, name)
        parameter.requires_grad_(not all(frozen) if old is None else old.requires_grad)
    return made.train(layer.training)  # type: ignore[no-any-return]


def _sparse(layer: Any, outputs: Tensor | None, inputs: Tensor | None, bias: bool) -> Any:
    if not isinstance(layer, SparseLinear):
        return None
    masks = [None if mask is None else mask.cpu() for mask in (outputs, inputs)]
    pattern = layer.pattern.restrict(*masks, relabel=True)
    site, source = layer.pattern.rows(), layer.pattern.col.long()
    kept = torch.ones_like(site, dtype=torch.bool)
    for mask, ends in zip(masks, (site, source), strict=True):
        kept &= True if mask is None else mask[ends]
    sizes = pattern.num_sources, pattern.num_sites
    like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    made = SparseLinear(*sizes, pattern=pattern, bias=bias, **like)
    made.weight.copy_(layer.edge_weight[kept.to(layer.weight.device)])
    return made


def _dense(layer: Any, outputs: Tensor | None, inputs: Tensor | None, bias: bool) -> Any:
    weight = layer.weight if outputs is None else layer.weight[outputs]
    weight = weight if inputs is None else weight[:, inputs]
    like = {"device": weight.device, "dtype": weight.dtype}
    sizes = weight.shape[1], weight.shape[0]
    if isinstance(layer, nn.Linear):
        made = nn.utils.skip_init(nn.Linear, *sizes, bias=bias, **like)
    else:
        made = nn.utils.skip_init(
            *(type(layer), *sizes, layer.kernel_size),
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            bias=bias,
            padding_mode=layer.padding_mode,
            **like,
        )
    made.weight.copy_(weight)
    return made


def _norm_of(norm: Any, keep: Tensor) -> nn.Module:
    made = copy.deepcopy(norm)
    made.num_features = int(keep.sum())
    for values in (made._parameters, made._buffers):
        for name, old in values.items():
            if old is not None and old.dim():
                new = old.detach()[keep]
                is_weight = isinstance(old, nn.Parameter)
                values[name] = nn.Parameter(new, old.requires_grad) if is_weight else new
    return made  # type: ignore[no-any-return]
