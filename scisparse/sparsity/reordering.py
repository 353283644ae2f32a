"""Sites, sources and neurons in an order that moves few values between slow and fast memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from scisparse.layers.linear import SparseLinear
from scisparse.pattern import Pattern
from scisparse.pattern.renumber import reordered as reordered
from scisparse.sparsity.annealing import Ordering as Ordering
from scisparse.sparsity.annealing import anneal as anneal
from scisparse.sparsity.annealing import check_steps
from scisparse.sparsity.chains import ELEMENTWISE
from scisparse.sparsity.simulated_io import IO as IO
from scisparse.sparsity.simulated_io import check_memory
from scisparse.sparsity.simulated_io import simulated_io as simulated_io

__all__ = [
    "IO",
    "LayerIO",
    "Ordering",
    "anneal",
    "reorder",
    "reordered",
    "simulated_io",
]


@dataclass(frozen=True)
class LayerIO:
    """Simulated I/O of a layer before and after its neurons were put in another order.

    Examples
    --------
    >>> print(LayerIO("0", IO(30, 10, 20), IO(20, 10, 20)))
    0: 40 lines before, 30 after, at least 20
    """

    name: str
    before: IO
    after: IO

    def __str__(self) -> str:
        counts = f"{self.before.total} lines before, {self.after.total} after"
        return f"{self.name}: {counts}, at least {self.after.bound}"


def reorder(
    model: nn.Module, cache: int, *, line: int = 1, steps: int = 5000, seed: int = 0
) -> list[LayerIO]:
    """Number the hidden neurons of sparse linear layers anew, in place, so that they read less.

    Between two linear layers of an ``nn.Sequential``, at least one of them sparse, the outputs of
    the first and the inputs of the second may come in any order if only functions of single numbers
    (ReLU, GELU, dropout ...) lie between. Three orders are compared by the simulated I/O of both
    layers: the given one; that of :func:`anneal` over the sites of the first; that over the sources
    of the second. Layers are gone through once, from the first to the last.

    The model gives the same numbers but for the order of sums. Parameters keep their identity and
    shape; the state of an optimizer does not move along, so do this when training is over. The
    outputs of a layer inside that other code picks up are in another order.

    Parameters
    ----------
    model
        Changed in place.
    cache, line
        As in :func:`simulated_io`. On a CPU, one cache line holds a neuron for 16 samples in single
        precision, so that for batches ``line=1`` and the bytes of a cache over 64 are near.
    steps, seed
        As in :func:`anneal`, for each of two orders a layer.

    Returns
    -------
    list
        A :class:`LayerIO` for each sparse linear layer.

    Raises
    ------
    OptionError
        `cache` or `line` is less than 1, or `steps` is negative.

    References
    ----------
    Gleinig, N., Ben-Nun, T., Hoefler, T. (2023). A theory of I/O-efficient sparse neural network
    inference. https://doi.org/10.48550/arXiv.2301.01048

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> layers = SparseLinear(64, 256, fan_in=4), nn.ReLU(), SparseLinear(256, 8, fan_in=64)
    >>> model, x = nn.Sequential(*layers), torch.randn(5, 64)
    >>> y = model(x)
    >>> [layer.after.reads < layer.before.reads for layer in reorder(model, 16, steps=0)]
    [True, False]
    >>> torch.allclose(model(x), y, atol=1e-6)
    True
    """
    cache, line = check_memory(cache, line)
    steps = check_steps(steps)
    sparse = {name: m for name, m in model.named_modules() if isinstance(m, SparseLinear)}
    before = {name: simulated_io(m.pattern, cache, line=line) for name, m in sparse.items()}
    for first, second in _neighbours(model):
        order = _best_order(first, second, cache, line, steps, seed)
        if order is not None:
            _permute(first, order, 0)
            _permute(second, order, 1)
    return [
        LayerIO(name, before[name], simulated_io(m.pattern, cache, line=line))
        for name, m in sparse.items()
    ]


def _neighbours(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Pairs of linear layers that feed each other, at least one of them sparse."""
    seen = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))

    def own(layer: nn.Module) -> bool:
        linear = type(layer) in (nn.Linear, SparseLinear)
        return linear and all(seen[id(p)] == 1 for p in layer.parameters())

    for chain in model.modules():
        if type(chain).forward is not nn.Sequential.forward:
            continue
        layers = [m for m in chain.children() if not isinstance(m, ELEMENTWISE)]
        for pair in pairwise(layers):
            if all(map(own, pair)) and any(isinstance(m, SparseLinear) for m in pair):
                yield pair


def _best_order(
    first: nn.Module, second: nn.Module, cache: int, line: int, steps: int, seed: int
) -> Tensor | None:
    """Order of the neurons between two layers with the least I/O; ``None`` for the given one."""

    def cost(order: Tensor | None) -> int:
        total = 0
        if isinstance(first, SparseLinear):
            pattern, _ = reordered(first.pattern, site_order=order)
            total += simulated_io(pattern, cache, line=line).total
        if isinstance(second, SparseLinear):
            pattern, _ = reordered(second.pattern, source_order=order)
            total += simulated_io(pattern, cache, line=line).total
        return total

    def search(pattern: Pattern) -> Tensor:
        options = {"line": line, "steps": steps, "seed": seed}
        return anneal(pattern, cache, within_rows=False, **options).sites

    orders: list[Tensor | None] = [None]
    if isinstance(first, SparseLinear):
        orders.append(search(first.pattern))
    if isinstance(second, SparseLinear):
        orders.append(search(second.pattern.transpose()[0]))
    return min(orders, key=cost)


@torch.no_grad()
def _permute(layer: nn.Module, order: Tensor, dim: int) -> None:
    """Number the outputs (`dim` 0) or inputs (`dim` 1) of a linear layer anew."""
    assert isinstance(layer, nn.Linear | SparseLinear)
    if isinstance(layer, SparseLinear):
        given = {"site_order": order} if dim == 0 else {"source_order": order}
        layer.rewire(*reordered(layer.pattern, **given), rows=layer.weight.shape[0])
    else:
        _move(layer.weight, order, dim)
    if dim == 0 and layer.bias is not None:
        _move(layer.bias, order, 0)


def _move(parameter: Tensor, order: Tensor, dim: int) -> None:
    """Put a parameter and its gradient in another order along an axis, where they lie."""
    order = order.to(parameter.device)
    for values in (parameter, parameter.grad):
        if values is not None:
            values.copy_(values.index_select(dim, order))
