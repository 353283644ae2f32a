"""Which weights of a model a sparsifier works on, and how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from scisparse.errors import OptionError, PatternError
from scisparse.layers.edges import PatternEdges
from scisparse.names import choice, stands_for
from scisparse.pattern import Pattern
from scisparse.sparsity.methods import Method
from scisparse.sparsity.target import Rules

__all__ = [
    "TRANSPOSED",
    "Found",
    "check_candidates",
    "check_own",
    "edges_alone",
    "find",
]

_ATTRIBUTES = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_EDGES = "edges"
_USUAL = "of a linear, convolution, attention or pattern layer, trained and not parametrized"
_DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: Their weights are ``[C, O, K...]``: what reads rows of weights as outputs does not fit.
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Found:
    """A weight of a model, or the edges of an attention layer.

    Parameters
    ----------
    name
        Of the parameter or of the edges in the model.
    module, attribute
        Which holds it, under which name.
    edges
        Whether it lies on the edges of a pattern that may change.
    """

    name: str
    module: nn.Module
    attribute: str
    edges: bool

    @property
    def path(self) -> str:
        """Name of the module."""
        return self.name.rpartition(".")[0]

    @property
    def attends(self) -> bool:
        """Whether these are edges without weights."""
        return isinstance(getattr(self.module, self.attribute), PatternEdges)


def find(
    model: nn.Module,
    params: Sequence[str] | None,
    candidates: Pattern | Mapping[str, Pattern] | None = None,
) -> list[Found]:
    """Return the weights to work on, and edges of attention, in the order of the model.

    Parameters
    ----------
    model
        Any module.
    params
        Names of parameters or modules, with ``*`` and ``?``; ``None``: all weights of linear,
        convolution, attention and pattern layers. One that modules share is found once. Weights of
        other layers join under their own name, those of transposed convolutions among them. Edges
        of attention carry no weights and join only under their own name, ``"attend.edges"`` or
        ``"*.edges"``, or with `candidates`.
    candidates
        Edges that may be grown, a Pattern for all layers of its size or one for each layer name.

    Raises
    ------
    OptionError
        A name matches nothing, or there is no weight at all.
    """
    everything = list(_weights(model))
    wanted = {f.name for f in everything if not f.attends or _has_candidates(f, candidates)}
    known = [found for found in everything if found.name in wanted]
    if params is None:
        if not known:
            raise OptionError(
                f"`model` has no weight that is made sparse by default, {_USUAL}; "
                + _named_alone([*_by_every_name(model, []), *(f.name for f in everything)])
            )
        return known
    if isinstance(params, str):
        params = [params]
    if not params:
        raise OptionError("`params` is empty; name weights or modules, or leave it out for all")
    every = _by_every_name(model, everything)
    if not _are_names(params):
        raise OptionError(
            "`params` takes the names of weights or modules, or patterns of such as '*.weight', "
            f"not what they name; the model has {', '.join(map(repr, every)) or 'none'}"
        )
    chosen: dict[str, Found] = {}
    for word in params:
        matched = {
            name: found
            for name, found in every.items()
            if any(stands_for(word, part) for part in (name, *_parents(name)))
        }
        # A module's name stands for its weights, not for its biases, norms and edges.
        own = word.rpartition(".")[2] == _EDGES
        usual = {
            n: f for n, f in matched.items() if f.name in wanted or n == word or (f.attends and own)
        }
        if matched and not usual:
            raise OptionError(
                f"`params` has {word!r}, which stands for no weight that is made sparse by "
                f"default, {_USUAL}; {_named_alone(list(matched))}"
            )
        if not matched:
            raise OptionError(choice("params", word, every))
        chosen |= {found.name: found for found in usual.values()}
    return [found for name, found in every.items() if name in chosen]


def _are_names(params: object) -> bool:
    return isinstance(params, Collection) and all(isinstance(word, str) for word in params)


def _named_alone(names: Sequence[str]) -> str:
    """How weights are made sparse all the same."""
    names = [name for name in names if "parametrizations." not in name]
    if not names:
        return "thaw its weights, remove parametrizations, or give a model with such layers"
    return f"name others in full: params=[{names[0]!r}]"


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _weights(model: nn.Module) -> Iterator[Found]:
    seen: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(getattr(module, _EDGES, None), PatternEdges) and hasattr(module, "rewire"):
            yield Found(f"{path}.{_EDGES}" if path else _EDGES, module, _EDGES, True)
        for attribute in _ATTRIBUTES:
            weight = module._parameters.get(attribute)
            edges = _moves_edges(module)
            if weight is None or not weight.requires_grad:
                continue
            if id(weight) in seen:
                if edges:
                    raise OptionError(
                        f"the weight of {path} belongs to another pattern layer as well; its edges "
                        "cannot move in one of them alone: give each layer weights of its own"
                    )
                continue
            name = f"{path}.{attribute}" if path else attribute
            if is_lazy(weight):
                raise OptionError(
                    f"{name} of a lazy layer has no shape yet; call the model on one batch before "
                    "building the sparsifier"
                )
            if weight.is_meta:
                raise OptionError(
                    f"{name} is on the device 'meta' and has no values yet; give it some before "
                    "building the sparsifier: model.to_empty(device=...), then load a state"
                )
            if not edges and not weight.numel():
                continue
            dense = isinstance(module, (*_DENSE, nn.MultiheadAttention))
            if edges or dense or hasattr(module, "pattern"):
                seen.add(id(weight))
                yield Found(name, module, attribute, edges)


def _by_every_name(model: nn.Module, known: list[Found]) -> dict[str, Found]:
    """What is `known`, then all other parameters with at least 2 dimensions.

    A parameter that several modules share is found by each of its names, as one.
    """
    every = {found.name: found for found in known}
    of_weight = {id(getattr(found.module, found.attribute)): found for found in known}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in of_weight and parameter.dim() >= 2:
            path, _, attribute = name.rpartition(".")
            of_weight[id(parameter)] = Found(name, model.get_submodule(path), attribute, False)
        if id(parameter) in of_weight:
            every.setdefault(name, of_weight[id(parameter)])
    return every


def _has_candidates(found: Found, candidates: Pattern | Mapping[str, Pattern] | None) -> bool:
    """Whether candidates are given for the edges of an attention layer."""
    if isinstance(candidates, Mapping):
        return found.path in candidates or found.name in candidates
    layer: Any = found.module
    fits = isinstance(candidates, Pattern) and candidates.shape == layer.pattern.shape
    return fits and _moves_edges(layer)


def _moves_edges(module: Any) -> bool:
    if not hasattr(module, "rewire"):
        return False
    try:
        module.check_rewirable()
    except PatternError:
        return False
    return True


def edges_alone(found: list[Found], moves: bool) -> list[Found]:
    """Return the pattern layers, which a sparsifier without a sparsity can work on."""
    layers = [f for f in found if f.edges and moves]
    if not layers and moves:
        raise OptionError(
            "`sparsity` is None, and no layer in `params` has edges that can move; those of an "
            'attention layer move where they are named, as in params=["*.edges"], and those of a '
            "locally connected layer with tie=None and groups=1. Or give `sparsity`, in [0, 1)"
        )
    if not layers:
        raise OptionError(
            "`sparsity` is None; give it, in [0, 1), or use a method that regrows on a model with "
            "pattern layers"
        )
    return layers


def check_candidates(
    found: list[Found],
    candidates: Pattern | Mapping[str, Pattern] | None,
    method: Method,
    rules: Rules,
) -> None:
    """Raise unless there is a layer for all candidates, and a method that grows edges."""
    if candidates is not None and (not method.sparse_start or rules.growth is None):
        does = "never moves edges" if method.sparse_start else "only prunes"
        raise OptionError(
            f"`candidates` are for methods that regrow and {method.name!r} {does}; choose "
            "method='rigl' or leave them out"
        )
    if candidates is not None and rules.reserve:
        raise OptionError(
            "`candidates` are for edges that move, and with growth='superset' weights only wait "
            "for their turn; build the layer on the candidates"
        )
    names = {f.path: f.name for f in found if f.edges}
    if isinstance(candidates, Mapping):
        for name in candidates:
            if name not in names and name not in names.values():
                raise OptionError(choice("candidates", name, names))
    elif candidates is not None and not names:
        raise OptionError(
            "`candidates` are given and no layer has edges that can move: pattern layers with "
            "tie=None and groups=1, SparseLinear, or attention over a pattern of their size"
        )


def check_own(model: nn.Module, found: list[Found], rules: Rules) -> None:
    """Raise if another module reads a weight that is to get gates."""
    if rules.importance.gating is None:
        return
    every = model.named_parameters(remove_duplicate=False)
    count = Counter(id(parameter) for _, parameter in every)
    for one in found:
        if count[id(getattr(one.module, one.attribute))] > 1:
            raise OptionError(
                f"{one.name} is shared with another module, which would read it without its gates; "
                "leave it out of `params`, or choose method='gmp'"
            )
