"""What the operators cost, for ``torch.utils.flop_counter``.

As torch counts: two operations for each term of a sum of products, none for a softmax or a bias,
and scores that a backward pass makes again. What a ``Sparsifier`` reports of a layer is the same
for one sample, where every weight belongs to one edge.

The counter takes half a second to import, mostly Triton, which reads its environment then. So
formulas wait for whoever imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

import torch

__all__ = ["register_when_imported"]

_COUNTER = "torch.utils.flop_counter"
_Shape = Sequence[int]


def register_when_imported() -> None:
    """Give torch's counter the formulas, now or as soon as something imports it."""
    if _COUNTER in sys.modules:
        _register()
    else:  # stays there: to shorten the list could make an import on another thread fail
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds the counter, and registers the formulas when it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _COUNTER:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def load(module: ModuleType) -> None:
                execute(module)
                _register()

            spec.loader.exec_module = load  # type: ignore[method-assign]
        return spec


def _register() -> None:
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    for name, formula in _FORMULAS.items():
        operator = getattr(torch.ops.scisparse, name)
        if operator not in flop_registry:  # else this module is loaded again
            register_flop_formula(operator)(formula)


# Tensors come as their shapes, in the order of the schemas.


def _gather_matmul(
    x: _Shape, weight: _Shape, row_ptr: _Shape, col: _Shape, *_: Any, **__: Any
) -> int:
    return 2 * x[0] * col[0] * weight[1] * weight[2]


def _edge_outer(x: _Shape, grad: _Shape, row_ptr: _Shape, col: _Shape, *_: Any, **__: Any) -> int:
    return 2 * x[0] * col[0] * x[2] * grad[2]


def _product(first: _Shape, x: _Shape, row_ptr: _Shape, col: _Shape, *_: Any, **__: Any) -> int:
    return 2 * x[0] * col[0] * x[2] * x[3]


def _attention(*shapes: Any, **_: Any) -> int:
    """Scores and sums of values, each also of what edges carry."""
    width, values, attr = _widths(shapes)
    return (width + values + 2 * attr) * _heads_of_edges(shapes)


def _attention_backward(
    grad: _Shape, grad_edge: _Shape | None, lse: _Shape, *rest: Any, **_: Any
) -> int:
    """Scores again; gradients of weights, queries, keys and values, and of what edges carry."""
    width, values, attr = _widths(rest)
    back = 0 if grad_edge is None else attr
    wants_attr = rest[11]
    of_attr = attr + back if wants_attr else 0
    return (3 * width + 2 * values + 2 * attr + back + of_attr) * _heads_of_edges(rest)


def _widths(shapes: Sequence[Any]) -> tuple[int, int, int]:
    """Widths of queries, of values and of what edges carry."""
    q, _, v, _, attr = shapes[:5]
    return q[3], v[3], 0 if attr is None else attr[1]


def _heads_of_edges(shapes: Sequence[Any]) -> int:
    """Twice the edges of all heads and batch entries."""
    q, col = shapes[0], shapes[7]
    operations: int = 2 * q[0] * q[2] * col[0]
    return operations


def _differences(x: _Shape, row_ptr: _Shape, col: _Shape, *_: Any, **__: Any) -> int:
    return 2 * col[0] * x[1]


_FORMULAS: dict[str, Callable[..., int]] = {
    "gather_matmul": _gather_matmul,
    "edge_outer": _edge_outer,
    "spmm": _product,
    "sddmm": _product,
    "graph_attention": _attention,
    "graph_attention_backward": _attention_backward,
    "laplacian": _differences,
    "dirichlet_energy": _differences,
}
