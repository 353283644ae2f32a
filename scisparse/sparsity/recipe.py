"""Recipes: the options of a sparsifier as a file, so that a run can be shared and repeated."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from scisparse.errors import OptionError
from scisparse.names import choice
from scisparse.sparsity import growth, importance, methods, options, schedules, structures
from scisparse.sparsity.allotment import check_budget
from scisparse.sparsity.resuming import plain
from scisparse.sparsity.sparsifier import Sparsifier

__all__ = ["Recipe"]

# What may be written with arguments: ``schedule: {cubic: {begin: 0, end: 100}}``.
_PARTS: dict[str, dict[str, Callable[..., Any]]] = {
    "schedule": {
        "one_shot": schedules.OneShot,
        "cubic": schedules.Cubic,
        "cosine_drop": schedules.CosineDrop,
        "steady": schedules.Steady,
        "iterative": schedules.Iterative,
    },
    "structure": structures.BY_NAME,
    "growth": {**growth.BY_NAME, "distance_prior": growth.distance_prior},
}
_FLOAT = "tag:yaml.org,2002:float"
_TYPES = {
    "method": "string",
    "sparsity": "number",
    "total_steps": "integer",
    "teleconnections": "integer",
    "seed": "integer",
    "params": "array",
    "score": "string",
}
_PYTHON: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "array": (list, tuple),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Options of :class:`scisparse.Sparsifier` as plain values.

    Parts with arguments are a name and its arguments: ``{"cosine_drop": {"end": 7500}}``. What
    holds arrays or functions cannot be written: budgets by sites (``Regions``, ``AreaWeighted``),
    `candidates`, and scores or growth of one's own; give them to the sparsifier itself. Whether
    names and sizes fit a model shows when the recipe is applied.

    Parameters
    ----------
    method, sparsity, total_steps, structure, budget, schedule, score, growth, params
        As in :class:`scisparse.Sparsifier`.
    teleconnections, seed
        As there.

    Raises
    ------
    OptionError
        A key or a word is not known (names the nearest), or a value is of the wrong type or range.

    Examples
    --------
    >>> recipe = Recipe.from_yaml('''
    ... method: rigl
    ... sparsity: 0.9
    ... schedule: {cosine_drop: {end: 7500, every: 100}}
    ... ''')
    >>> recipe.sparsity, Recipe.from_yaml(recipe.to_yaml()) == recipe
    (0.9, True)
    >>> import torch
    >>> recipe.apply(torch.nn.Linear(20, 30)).report().sparsity
    0.9
    """

    method: str = "rigl"
    sparsity: float | None = None
    total_steps: int | None = None
    structure: str | Mapping[str, Any] | None = None
    budget: str | Mapping[str, float] | None = None
    schedule: str | Mapping[str, Any] | None = None
    score: str | None = None
    growth: str | Mapping[str, Any] | None = None
    params: list[str] | None = None
    teleconnections: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for key, kind in _TYPES.items():
            value = getattr(self, key)
            if value is not None and (
                not isinstance(value, _PYTHON[kind]) or isinstance(value, bool)
            ):
                raise OptionError(f"`{key}` is {value!r}; it must be of type {kind}")
        methods.named(self.method)
        options.check_sparsity(self.sparsity)
        if self.budget is not None:
            check_budget(self.budget)
        if self.score is not None:
            importance.named(self.score)
        for key in _PARTS:
            _part(key, getattr(self, key))

    @classmethod
    def from_yaml(cls, source: str | Path) -> Recipe:
        """Read a recipe.

        Parameters
        ----------
        source
            A file, or YAML itself.
        """
        import yaml

        is_file = isinstance(source, Path) or not ("\n" in source or ": " in source)
        try:
            text = Path(source).read_text(encoding="utf-8") if is_file else str(source)
            values = _load(text)
        except OSError as error:
            raise OptionError(f"cannot read recipe {str(source)!r}: {error.strerror}") from error
        except yaml.YAMLError as error:
            where = getattr(error, "problem_mark", None)
            line = f" at line {where.line + 1}" if where else ""
            raise OptionError(f"the recipe is not YAML{line}: {error}".split("\n")[0]) from error
        if not isinstance(values, dict):
            raise OptionError(
                f"the recipe holds {type(values).__name__}; it must hold keys: values"
            )
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                raise OptionError(choice("recipe key", key, known))
        return cls(**values)

    def to_yaml(self) -> str:
        """Write the recipe, without what has its default value."""
        import yaml

        default = Recipe()
        given = {k: _plain(v) for k, v in asdict(self).items() if v != getattr(default, k)}
        # Words that would be read as numbers get quotes.
        dumper = type("Dumper", (yaml.SafeDumper,), {"yaml_implicit_resolvers": _resolvers()})
        text: str = yaml.dump({"method": self.method} | given, Dumper=dumper, sort_keys=False)
        return text

    def apply(self, model: nn.Module, optimizer: Optimizer | None = None) -> Sparsifier:
        """Return a sparsifier with these options."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        for key in _PARTS:
            given[key] = _part(key, given[key])
        return Sparsifier(model, optimizer, **given)

    @staticmethod
    def schema() -> dict[str, Any]:
        """Return a JSON Schema of recipes, for editors.

        Examples
        --------
        >>> sorted(Recipe.schema()["properties"])[:3]
        ['budget', 'growth', 'method']
        """
        properties: dict[str, Any] = {key: {"type": kind} for key, kind in _TYPES.items()}
        properties["method"]["enum"] = list(methods.BY_NAME)
        properties["score"]["enum"] = list(importance.BY_NAME)
        properties["sparsity"] |= {"minimum": 0, "exclusiveMaximum": 1}
        properties["params"]["items"] = {"type": "string"}
        properties["budget"] = {"type": ["string", "object"]}
        for key, known in _PARTS.items():
            words: dict[str, Any] = {"type": "string", "enum": list(known)}
            if key == "structure":
                words = {"type": "string"}  # "2:4" and the like
            with_arguments = {
                "type": "object",
                "maxProperties": 1,
                "additionalProperties": False,
                "properties": {name: _arguments(make) for name, make in known.items()},
            }
            properties[key] = {"anyOf": [words, with_arguments]}
        return {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "scisparse recipe",
            "type": "object",
            "additionalProperties": False,
            "properties": properties,
        }


def _plain(value: Any) -> Any:
    """Return what YAML knows: not NumPy's numbers, nor mappings that are no dictionaries."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return plain(value)


def _load(text: str) -> Any:
    """Read YAML, where 1e-4 and 1e3 are numbers, the latter an integer."""
    import yaml

    def number(loader: Any, node: Any) -> float:
        value: float = loader.construct_yaml_float(node)
        return int(value) if "e" in node.value.lower() and value.is_integer() else value

    loader = type("Loader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": _resolvers()})
    loader.add_constructor(_FLOAT, number)  # type: ignore[attr-defined]
    return yaml.load(text, loader)


def _resolvers() -> dict[Any, list[Any]]:
    """What YAML takes words for: 2:4 for a word, elsewhere a number to the base of 60."""
    import yaml

    words = [
        ("tag:yaml.org,2002:str", re.compile(r"\d+:\d+$")),
        (_FLOAT, re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")),
    ]
    return {
        first: [*words, *known] if first in "-+.0123456789" else known
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _part(key: str, value: Any) -> Any:
    """Build a part from its name, or from its name and arguments."""
    known = _PARTS[key]
    if value is None:
        return None
    if isinstance(value, str):
        if key == "structure":
            return structures.named(value)
        if value not in known:
            raise OptionError(choice(key, value, known))
        value = {value: {}}
    if not isinstance(value, Mapping) or len(value) != 1:
        raise OptionError(f"`{key}` is {value!r}; give a name, or one name with its arguments")
    ((name, arguments),) = value.items()
    if name not in known:
        raise OptionError(choice(key, name, known))
    parameters = inspect.signature(known[name]).parameters
    if not isinstance(arguments, Mapping | None):
        raise OptionError(f"`{key}.{name}` is {arguments!r}; give its arguments by name")
    for argument, given in (arguments or {}).items():
        if argument not in parameters:
            raise OptionError(choice(f"{key}.{name}", argument, parameters))
        kinds = str(parameters[argument].annotation)
        whole = kinds.startswith("int")
        if given is None and kinds.endswith("None"):
            continue
        if isinstance(given, bool) or not isinstance(given, int if whole else int | float):
            kind = "integer" if whole else "number"
            raise OptionError(f"`{key}.{name}.{argument}` is {given!r}; it must be of type {kind}")
    try:
        return known[name](**(arguments or {}))
    except TypeError as error:
        raise OptionError(f"`{key}.{name}`: {error}") from error


def _arguments(make: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(make).parameters
    required = [name for name, p in parameters.items() if p.default is p.empty]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name: {"type": "number"} for name in parameters},
        "required": required,
    }
