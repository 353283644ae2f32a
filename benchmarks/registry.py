"""The cases that can be run: an operator, a shape, and the implementations that are compared on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Case", "Cost", "Implementation", "Samples", "Work", "register", "select"]


@dataclass(frozen=True)
class Samples:
    """Parts of output and gradients, in the layout of the contract, to be held against float64."""

    output: Tensor
    grad_x: Tensor
    grad_weight: Tensor


@dataclass(frozen=True, kw_only=True)
class Implementation:
    """One way to do the work, with inputs in the layout that suits it best.

    ``run(x, weight)`` is differentiable; ``samples(output, grad_x, grad_weight)`` picks what is
    checked.  Layout changes that a user would have to pay in each step belong into `run`; none of
    the peers is charged for a layout that its input could have had from the start.
    """

    name: str
    ours: bool
    x: Tensor
    weight: Tensor
    grad: Tensor
    run: Callable[[Tensor, Tensor], Tensor]
    samples: Callable[[Tensor, Tensor, Tensor], Samples]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Bytes that must be moved once, and multiply-adds counted as two operations."""

    forward_bytes: int
    forward_flops: int
    backward_bytes: int
    backward_flops: int
    weight_bytes: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """A case with its tensors.

    `implementations` make an implementation when called, so that only one holds memory where
    memory is short; `expected` is computed in float64, independently of all of them.
    """

    implementations: dict[str, Callable[[], Implementation]]
    not_run: dict[str, str]
    expected: Samples
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Case:
    """A named piece of work; `make` allocates its tensors."""

    name: str
    op: str
    suite: str
    shape: str
    make: Callable[[], Work]


_CASES: dict[str, Case] = {}


def register(case: Case) -> None:
    """Add a case; names are unique."""
    if case.name in _CASES:
        raise ValueError(f"case {case.name!r} is registered already; case names are unique")
    _CASES[case.name] = case


def select(suite: str, words: Iterable[str] = ()) -> list[Case]:
    """Cases of `suite` whose operator or name contains one of `words`, if any are given."""
    chosen = [
        case
        for case in _CASES.values()
        if case.suite == suite
        and (not words or any(word in f"{case.op} {case.name}" for word in words))
    ]
    if not chosen:
        known = ", ".join(sorted(_CASES))
        raise ValueError(f"no case of suite {suite!r} matches {list(words)}; cases: {known}")
    return chosen
