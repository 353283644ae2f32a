"""Which layers feed which: found by following a number of a model through functions of one number.

Models are traced by ``torch.fx``; modules that cannot be traced (their path depends on values) are
taken as they are, and their children looked at one by one.
"""

from __future__ import annotations

import ast
import inspect
import logging
import textwrap
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from scisparse.layers.linear import SparseLinear

__all__ = ["ELEMENTWISE", "Chain", "find_chains"]

logger = logging.getLogger("scisparse.sparsity")

_LINEAR = (nn.Linear, SparseLinear)
LAYERS = (*_LINEAR, nn.Conv1d, nn.Conv2d, nn.Conv3d)
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
# Axes besides batch and channels.
_AXES = {
    getattr(nn, f"{name}{axes}d"): axes
    for name in ("Conv", "BatchNorm", "MaxPool", "AdaptiveAvgPool")
    for axes in (1, 2, 3)
}
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
        if _is_leaf(module):
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
        if module in found
        and ((above := _above(model, path, known)) is None or above in untraceable)
        and (above is None or not _is_container(module) or _is_called_whole(model, path))
        for chain in found[module]
    ]


# By which a module reaches its children without naming them.
_BY_OTHER_NAMES = ("children", "named_children", "get_submodule", "_modules")


def _is_called_whole(model: nn.Module, path: str) -> bool:
    """Whether the code of the module around is seen to call a module and not its parts.

    What cannot be traced may as well run through the parts of an ``nn.Sequential`` one by one.
    """
    name, called = path.rpartition(".")[2], False
    for kind in type(model.get_submodule(_parent(path))).__mro__:
        if kind in (nn.Module, object):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
        except (OSError, TypeError, SyntaxError):  # written in a console, or not in Python
            return False
        functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id == "getattr":
                return False
            if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, ast.Load):
                continue
            if node.attr in _BY_OTHER_NAMES or (node.attr == name and id(node) not in functions):
                return False
            called |= node.attr == name
    return called


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
    """Undo what forward passes write into modules, and the random numbers that they draw."""
    before = [(part, dict(part.__dict__)) for part in module.modules()]
    values = [value for _, attributes in before for value in attributes.values()]
    known = (dict, OrderedDict, list, set, deque)  # buffers and children are in dicts
    contents: list[tuple[Any, Any]] = [(v, v.copy()) for v in values if type(v) in known]
    tensors = [
        (tensor, tensor.detach().clone())
        for part in module.modules()
        if not _is_leaf(part)
        for tensor in (*part._buffers.values(), *part.__dict__.values())
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided
    ]
    devices = {p.device for p in module.parameters() if p.is_cuda}
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        for part, attributes in before:
            part.__dict__.clear()
            part.__dict__.update(attributes)
        for value, content in contents:
            value.clear()
            (value.extend if isinstance(value, list | deque) else value.update)(content)
        for tensor, old in tensors:
            if not torch.equal(tensor, old):
                tensor.data.copy_(old)


def _is_leaf(module: nn.Module) -> bool:
    """Whether traces call a module without going through its code."""
    own = type(module).__module__.startswith("torch.nn") and not _is_container(module)
    return own or isinstance(module, SparseLinear)


def _of_graph(module: nn.Module, graph: fx.Graph) -> Iterator[Chain]:
    calls: dict[str, int] = {}
    read: set[str] = set()  # parameters that are used other than by calling their module
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
        elif node.op == "get_attr":
            read.add(_parent(str(node.target)))

    def is_own(path: str) -> bool:
        return calls[path] == 1 and path not in read

    plain = _of_two_dimensions(module, graph)
    for node in graph.nodes:
        if node.op != "call_module" or type(module.get_submodule(node.target)) not in LAYERS:
            continue
        chain = _follow(module, node, plain)
        if chain is not None and all(map(is_own, (chain.first, chain.second, *chain.norms))):
            yield chain


def _of_two_dimensions(module: nn.Module, graph: fx.Graph) -> set[fx.Node]:
    """Nodes that are known to be ``[B, features]``, as a batch norm after a linear layer needs.

    They were flattened before, or go through batch norms of different sizes, which would all have
    size T if they were ``[B, T, features]``.
    """
    first: dict[fx.Node, fx.Node] = {}  # of nodes with as many dimensions, one after another
    sizes: dict[fx.Node, set[int]] = {}
    flattened: set[fx.Node] = set()
    for node in graph.nodes:
        called: Any = module.get_submodule(node.target) if node.op == "call_module" else node.target
        before = node.args[0] if node.args else None
        like = type(called) in (*_LINEAR, nn.BatchNorm1d, *_DROPOUT, *ELEMENTWISE)
        like |= node.op == "call_function" and called in _FUNCTIONS | _SAME_FUNCTIONS
        like |= node.op == "call_method" and called in _METHODS
        first[node] = first[before] if like and isinstance(before, fx.Node) else node
        if type(called) is nn.BatchNorm1d:
            sizes.setdefault(first[node], set()).add(called.num_features)
        sized = node.op == "call_method" and called in ("view", "reshape") and len(node.args) == 3
        if sized or _flattens(node, called):
            flattened.add(node)
    known = flattened | {node for node, found in sizes.items() if len(found) > 1}
    return {node for node, start in first.items() if start in known}


def _flattens(node: fx.Node, called: Any) -> bool:
    """Whether a node makes one dimension of all but the batch."""
    if isinstance(called, nn.Flatten):
        return (called.start_dim, called.end_dim) == (1, -1)
    if called in (torch.flatten, "flatten"):
        return node.args[1:] in ((1,), (1, -1)) and not node.kwargs
    return False


def _is_of_channels(layer: Any, part: Any, plain: bool) -> bool:
    """Whether a pooling or a norm takes the outputs of a layer for its channels."""
    outputs = layer.out_features if isinstance(layer, _LINEAR) else layer.out_channels
    if isinstance(part, NORMS) and part.num_features != outputs:
        return False
    if isinstance(layer, _LINEAR):  # as many positions as features would look the same
        return isinstance(part, nn.BatchNorm1d) and plain
    return _AXES[type(layer)] == _AXES[type(part)]


def _follow(module: nn.Module, start: fx.Node, plain: Collection[fx.Node]) -> Chain | None:
    """Return the chain that begins at a layer, if it goes on to another without a fork.

    Parameters
    ----------
    module
        That was traced.
    start
        Call of the layer.
    plain
        Nodes that are known to be ``[B, features]``.
    """
    layer = module.get_submodule(str(start.target))
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
            if type(part) in (*NORMS, *_POOLING):
                if flat or not _is_of_channels(layer, part, node in plain):
                    return None
                if type(part) in NORMS:
                    norms.append(str(node.target))
                    functions.append(_norm(part))
            elif type(part) in ELEMENTWISE and type(part) not in _DROPOUT:
                functions.append(part)
            elif _flattens(node, part) and not flat:
                flat = True
            elif type(part) not in _DROPOUT:
                return None
        elif node.target in _FUNCTIONS or (node.op == "call_method" and node.target in _METHODS):
            functions.append(_call(node))
        elif _flattens(node, node.target) and not flat:
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
