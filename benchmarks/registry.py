"""The cases that can be run: an operator, a shape, and the implementations compared on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

__all__ = [
    "Case",
    "Cost",
    "Implementation",
    "Samples",
    "Work",
    "find",
    "register",
    "select",
    "suites",
]


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
    checked. What a training step would have to pay each time belongs into `run`; nobody is charged
    for a layout that a tensor could have had from the start. One that is not the `same` function is
    there for scale: it is not checked, and is no peer to be ahead of. One that does not train has a
    forward pass alone.
    """

    name: str
    ours: bool
    x: Tensor
    weight: Tensor
    grad: Tensor
    run: Callable[[Tensor, Tensor], Tensor]
    samples: Callable[[Tensor, Tensor, Tensor], Samples]
    same: bool = True
    trains: bool = True


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Bytes that must move once, and operations (a multiply-add is two)."""

    forward_bytes: int
    forward_flops: int
    backward_bytes: int
    backward_flops: int
    weight_bytes: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """A case with its tensors; `expected` is computed without any of the implementations."""

    makers: list[Callable[[], Implementation]]
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

    @property
    def device(self) -> str:
        """Where its tensors are."""
        return "cuda" if self.suite == "gpu" else "cpu"


_CASES: dict[str, Case] = {}


def register(case: Case) -> None:
    """Add a case; names are unique."""
    if case.name in _CASES:
        raise ValueError(f"case {case.name!r} is registered already; names are unique")
    _CASES[case.name] = case


def find(name: str) -> Case:
    """Return the case called `name`."""
    if name not in _CASES:
        raise ValueError(f"no case is called {name!r}")
    return _CASES[name]


def suites() -> list[str]:
    """Return the names of all suites."""
    return sorted({case.suite for case in _CASES.values()})


def select(suite: str, words: Iterable[str] = ()) -> list[Case]:
    """Return the cases of `suite` whose operator or name contains one of `words`, if any."""
    words = list(words)
    chosen = [
        case
        for case in _CASES.values()
        if case.suite == suite
        and (not words or any(word in f"{case.op} {case.name}" for word in words))
    ]
    if not chosen:
        names = [case.name for case in _CASES.values() if case.suite == suite]
        if not names:
            raise ValueError(f"no suite is called {suite!r}; suites: {', '.join(suites())}")
        raise ValueError(f"no case of suite {suite!r} matches {words}; cases: {', '.join(names)}")
    return chosen
