"""Which layers feed which: found by following a number of a model through functions of one number.

Models are traced by ``torch.fx``; modules that cannot be traced (their path depends on values) are
taken as they are, and their children looked at one by one.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from scisparse.layers.linear import SparseLinear

__all__ = ["ELEMENTWISE", "Chain", "find_chains"]

logger = logging.getLogger("scisparse.sparsity")

LAYERS = (nn.Linear, SparseLinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

#: Functions of one number: a constant goes through them as a constant.
ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.GELU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Softplus),
    *(nn.Identity, nn.Hardtanh, nn.Hardswish, nn.Mish, nn.Dropout),
)
_FUNCTIONS = {
    *(torch.relu, torch.tanh, torch.sigmoid),
    *(getattr(nn.functional, name) for name in ("relu", "relu6", "gelu", "tanh", "sigmoid")),
    *(getattr(nn.functional, name) for name in ("silu", "elu", "leaky_relu", "softplus", "mish")),
}
_METHODS = ("relu", "tanh", "sigmoid")
# What leaves a constant as it is: dropout means nothing once a model is trained.
_DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_POOLING = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_SAME_FUNCTIONS = {nn.functional.dropout, nn.functional.dropout1d, nn.functional.dropout2d}


@dataclass(frozen=True)
class Chain:
    """A layer and the only one that reads it.

    Parameters
    ----------
    first, second
        Names of the layers in the model.
    functions
        Between them, each of a vector of one number a channel.
    norms
        Names of the batch norms between them.
    flat
        Whether positions and channels are one dimension where the second layer reads them.
    """

    first: str
    second: str
    functions: tuple[Callable[[Tensor], Tensor], ...] = field(compare=False)
    norms: tuple[str, ...] = ()
    flat: bool = False


def find_chains(model: nn.Module) -> list[Chain]:
    """Return the chains of a model, in the order of its calls.

    A chain holds for training and evaluation, and whether optional arguments are given or not.
    """
    untraceable: set[nn.Module] = set()
    found: dict[nn.Module, list[Chain]] = {}
    modules = list(model.named_modules())
    for _, module in reversed(modules):  # children before their parents
        if type(module).__module__.startswith("torch.nn") and not _is_container(module):
            continue
        try:
            found[module] = _chains(module, untraceable)
        except Exception as error:  # whatever the model's own code raises
            logger.debug("%s cannot be traced: %s", type(module).__name__, error)
            untraceable.add(module)
    known = found.keys() | untraceable
    return [
        _under(path, chain)
        for path, module in modules
        if module in found and _above(model, path, known) in (None, *untraceable)
        for chain in found[module]
    ]


def _above(model: nn.Module, path: str, known: Collection[nn.Module]) -> nn.Module | None:
    """Innermost of the known modules that a module lies in."""
    while path:
        path = _parent(path)
        if (module := model.get_submodule(path)) in known:
            return module
    return None


def _parent(path: str) -> str:
    return path.rpartition(".")[0]


def _under(path: str, chain: Chain) -> Chain:
    start = f"{path}." if path else ""
    norms = tuple(start + name for name in chain.norms)
    return Chain(start + chain.first, start + chain.second, chain.functions, norms, chain.flat)


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential)


class _Tracer(fx.Tracer):
    def __init__(self, untraceable: set[nn.Module]) -> None:
        super().__init__()
        self._untraceable = untraceable

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = isinstance(m, SparseLinear) or m in self._untraceable
        return own or super().is_leaf_module(m, module_qualified_name)


def _chains(module: nn.Module, untraceable: set[nn.Module]) -> list[Chain]:
    """Return the chains that all traces of a module have."""
    parameters = inspect.signature(module.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    results = []
    with _as_it_was(module):
        for training in (True, False):
            module.train(training)
            for given in [{}, defaults] if defaults else [{}]:
                graph = _Tracer(untraceable).trace(module, given)
                results.append(list(_of_graph(module, graph)))
    return [chain for chain in results[-1] if all(chain in others for others in results)]


@contextmanager
def _as_it_was(module: nn.Module) -> Iterator[None]:
    """Undo what forward passes leave in the attributes of modules."""
    before = [(part, dict(part.__dict__)) for part in module.modules()]
    try:
        yield
    finally:
        for part, attributes in before:
            part.__dict__.clear()
            part.__dict__.update(attributes)


def _of_graph(module: nn.Module, graph: fx.Graph) -> Iterator[Chain]:
    calls: dict[str, int] = {}
    read: set[str] = set()  # parameters that are used other than by calling their module
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
        elif node.op == "get_attr":
            read.add(_parent(str(node.target)))

    def is_own(path: str) -> bool:
        part = module.get_submodule(path)
        hooks = len(part._forward_hooks) + len(part._forward_pre_hooks)
        return calls[path] == 1 and path not in read and not hooks

    for node in graph.nodes:
        if node.op != "call_module" or type(module.get_submodule(node.target)) not in LAYERS:
            continue
        chain = _follow(module, node)
        if chain is not None and all(map(is_own, (chain.first, chain.second, *chain.norms))):
            yield chain


def _follow(module: nn.Module, start: fx.Node) -> Chain | None:
    """Return the chain that begins at a layer, if it goes on to another without a fork."""
    functions: list[Callable[[Tensor], Tensor]] = []
    norms: list[str] = []
    node, flat = start, False
    while len(node.users) == 1:
        before, node = node, next(iter(node.users))
        if not node.args or node.args[0] is not before or node.all_input_nodes != [before]:
            return None
        if node.op == "call_module":
            part = module.get_submodule(str(node.target))
            if type(part) in LAYERS:
                return Chain(str(start.target), str(node.target), tuple(functions), (*norms,), flat)
            if type(part) in NORMS and not flat:
                norms.append(str(node.target))
                functions.append(_norm(part))
            elif type(part) in _DROPOUT or (type(part) in _POOLING and not flat):
                continue
            elif type(part) in ELEMENTWISE:
                functions.append(part)
            elif isinstance(part, nn.Flatten) and not flat:
                flat = (part.start_dim, part.end_dim) == (1, -1)
                if not flat:
                    return None
            else:
                return None
        elif node.target in _FUNCTIONS or (node.op == "call_method" and node.target in _METHODS):
            functions.append(_call(node))
        elif node.target in (torch.flatten, "flatten") and not flat:
            if node.args[1:] not in ((1,), (1, -1)) or node.kwargs:
                return None
            flat = True
        elif node.target not in _SAME_FUNCTIONS:
            return None
    return None


def _call(node: fx.Node) -> Callable[[Tensor], Tensor]:
    """Return the call of a node as a function of its first argument."""
    target: Any = node.target
    function = getattr(Tensor, target) if node.op == "call_method" else target

    def call(x: Tensor) -> Tensor:
        y: Tensor = function(x, *node.args[1:], **node.kwargs)
        return y

    return call


def _norm(part: Any) -> Callable[[Tensor], Tensor]:
    """What a batch norm makes of a channel that is constant, in evaluation."""

    def normalize(x: Tensor) -> Tensor:
        if part.running_mean is None:  # its own mean goes, and nothing is left
            x = torch.zeros_like(x)
        else:
            x = (x - part.running_mean) * (part.running_var + part.eps).rsqrt()
        return x if part.weight is None else x * part.weight + part.bias

    return normalize
