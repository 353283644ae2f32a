"""Times and memory of implementations, taken in turns."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.registry import Implementation

__all__ = ["Times", "in_turns", "read_bandwidth", "step"]

LONG = 2.0  # seconds after which one step is enough to know


@dataclass(frozen=True)
class Times:
    """Seconds of the single steps of one implementation."""

    forward: list[float]
    backward: list[float]
    full: list[float]

    def medians(self) -> dict[str, float]:
        """Median of each, in milliseconds."""
        parts = {"forward": self.forward, "backward": self.backward, "full": self.full}
        return {name: 1e3 * statistics.median(values) for name, values in parts.items()}


def step(implementation: Implementation) -> tuple[tuple[float, float, float], list[Tensor]]:
    """Time one forward pass alone, and one forward and backward pass; return also the results."""
    x = implementation.x.detach().requires_grad_()
    weight = implementation.weight.detach().requires_grad_()
    start = time.perf_counter()
    with torch.no_grad():
        implementation.run(x, weight)
    forward = time.perf_counter() - start
    begin = time.perf_counter()
    output = implementation.run(x, weight)
    middle = time.perf_counter()
    gradients = torch.autograd.grad(output, (x, weight), implementation.grad)
    end = time.perf_counter()
    return (forward, end - middle, end - begin), [output.detach(), *gradients]


def in_turns(
    implementations: Mapping[str, Callable[[], Implementation]],
    check: Callable[[Implementation, list[Tensor]], str | None],
    budget: float,
) -> tuple[dict[str, Times], dict[str, str]]:
    """Run all implementations in turns for about `budget` seconds each.

    The first step warms up and is checked; what fails the check is not timed. Steps that take
    longer than two seconds are not repeated more often than the budget allows, and stay in the
    turns with the single step that warmed up where it allows none.
    """
    made: dict[str, Implementation] = {}
    times: dict[str, Times] = {}
    rounds: dict[str, int] = {}
    failures: dict[str, str] = {}
    for name, make in implementations.items():
        implementation = make()
        (forward, backward, full), results = step(implementation)
        failure = check(implementation, results)
        del results
        gc.collect()
        if failure is not None:
            failures[name] = failure
            continue
        took = forward + full
        long = took > LONG
        times[name] = Times(*([[forward], [backward], [full]] if long else [[], [], []]))
        rounds[name] = int(min(200, budget / took)) if long else max(3, int(min(200, budget / took)))
        if rounds[name]:
            made[name] = implementation
    for turn in range(max(rounds.values(), default=0)):
        for name, implementation in made.items():
            if turn < rounds[name]:
                (forward, backward, full), _ = step(implementation)
                times[name].forward.append(forward)
                times[name].backward.append(backward)
                times[name].full.append(full)
    return times, failures


def read_bandwidth(repeats: int = 5) -> float:
    """Bytes a second at which all threads read 256 MB of float32; the median of `repeats`."""
    values = torch.ones(1 << 26)
    seconds = []
    values.sum()
    for _ in range(repeats):
        start = time.perf_counter()
        values.sum()
        seconds.append(time.perf_counter() - start)
    return values.numel() * values.element_size() / statistics.median(seconds)
