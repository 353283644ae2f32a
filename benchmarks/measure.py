"""Times of implementations, taken in turns."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.registry import Implementation, Samples, Work

__all__ = ["STAGES", "Result", "fault", "in_turns", "read_bandwidth", "step"]

STAGES = ("forward", "backward", "full")
LONG = 2.0  # seconds; a step that takes longer counts although it was the one to warm up
TOLERANCE = 1e-4  # of the largest value


@dataclass
class Result:
    """Seconds of the single steps of one implementation, or why there are none."""

    ours: bool
    seconds: dict[str, list[float]] = field(default_factory=lambda: {s: [] for s in STAGES})
    not_run: str | None = None

    def median(self, stage: str) -> float | None:
        """Median seconds of a stage; ``None`` without a measurement."""
        values = self.seconds[stage]
        return statistics.median(values) if values else None

    def add(self, timed: tuple[float, float, float]) -> None:
        """Keep the times of one step."""
        for stage, seconds in zip(STAGES, timed, strict=True):
            self.seconds[stage].append(seconds)


def step(implementation: Implementation) -> tuple[tuple[float, float, float], list[Tensor]]:
    """Time a forward pass alone, then forward and backward; return the results as well.

    The backward pass makes both gradients.
    """
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


def fault(got: Samples, expected: Samples) -> str | None:
    """Say what differs from float64 by more than rounding, or ``None``."""
    for name, want in vars(expected).items():
        values = getattr(got, name).double()
        error = float((values - want).abs().max() / want.abs().max().clamp_min(1e-30))
        if not error <= TOLERANCE:
            return f"wrong: {name} differs from float64 by {error:.1e} of its largest value"
    return None


def in_turns(work: Work, budget: float) -> dict[str, Result]:
    """Run all implementations of `work` in turns, for about `budget` seconds each.

    The first step of each warms up and is checked; what fails the check is not timed.
    """
    results: dict[str, Result] = {}
    turns: list[tuple[Implementation, int]] = []
    for make in work.makers:
        implementation = make()
        timed, outputs = step(implementation)
        result = results[implementation.name] = Result(implementation.ours)
        result.not_run = fault(implementation.samples(*outputs), work.expected)
        del outputs
        if result.not_run is not None:
            continue
        took = timed[0] + timed[2]
        if took > LONG:
            result.add(timed)
        rounds = int(budget / took) if took > LONG else max(5, int(budget / took))
        if rounds:
            turns.append((implementation, min(rounds, 200)))
    for turn in range(max((rounds for _, rounds in turns), default=0)):
        for implementation, rounds in turns:
            if turn < rounds:
                results[implementation.name].add(step(implementation)[0])
    return results


def read_bandwidth(repeats: int = 5) -> float:
    """Bytes a second at which torch's threads sum 256 MB of float32, at the best of `repeats`."""
    values = torch.ones(1 << 26)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        values.sum()
        seconds.append(time.perf_counter() - start)
    return values.numel() * values.element_size() / statistics.median(seconds)
