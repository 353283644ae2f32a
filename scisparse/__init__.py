"""Sparse layers for scientific machine learning.

A sparse layer is a :class:`Pattern` (who reads whom), values on its edges, and one gather kernel.
Names are loaded when they are first used, so that ``import scisparse`` costs next to nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scisparse import arrays as arrays
    from scisparse import datasets as datasets
    from scisparse import errors as errors
    from scisparse import grids as grids
    from scisparse import kernels as kernels
    from scisparse import layers as layers
    from scisparse import losses as losses
    from scisparse import models as models
    from scisparse import orders as orders
    from scisparse import patterns as patterns
    from scisparse import plots as plots
    from scisparse import postprocess as postprocess
    from scisparse import sparsity as sparsity
    from scisparse import testing as testing
    from scisparse import verification as verification
    from scisparse.pattern import Pattern as Pattern
    from scisparse.postprocess import PostProcessor as PostProcessor
    from scisparse.sparsity import Recipe as Recipe
    from scisparse.sparsity import Sparsifier as Sparsifier
    from scisparse.verification import evaluate as evaluate

if importlib.util.find_spec("scisparse.kernels") is None:
    raise ImportError(
        f"scisparse was found in its source folder, {__path__[0]}, which is not the whole package: "
        "run `pip install --editable .` in the folder above it, or start Python elsewhere"
    )

__version__ = version("scisparse")

_MODULES = frozenset(
    {
        "arrays",
        "datasets",
        "errors",
        "grids",
        "kernels",
        "layers",
        "losses",
        "models",
        "orders",
        "patterns",
        "plots",
        "postprocess",
        "sparsity",
        "testing",
        "verification",
    }
)
_NAMES = {
    "Pattern": "scisparse.pattern",
    "PostProcessor": "scisparse.postprocess",
    "Recipe": "scisparse.sparsity",
    "Sparsifier": "scisparse.sparsity",
    "evaluate": "scisparse.verification",
}
__all__ = sorted([*_MODULES, *_NAMES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"scisparse.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(
        f"module 'scisparse' has no attribute {name!r}; it has {', '.join(__all__)}"
    )


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
