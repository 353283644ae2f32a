"""Times of implementations, taken in turns."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.clock import clock_of
from benchmarks.registry import Implementation, Samples, Work

__all__ = ["STAGES", "WRONG", "Result", "bandwidth", "fault", "in_turns", "one_line", "step"]

WRONG = "wrong: "  # begins the reason why what failed the check is not timed
STAGES = ("forward", "backward", "full")
# Seconds. Peers whose step takes longer are timed once, and if very much longer while they warm up.
LONG, VERY_LONG = 2.0, 20.0
# Of the largest value.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}


@dataclass
class Result:
    """Seconds of the single steps of one implementation, or why there are none."""

    ours: bool
    seconds: dict[str, list[float]] = field(default_factory=lambda: {s: [] for s in STAGES})
    not_run: str | None = None
    same: bool = True

    def median(self, stage: str) -> float | None:
        """Median seconds of a stage; ``None`` without a measurement."""
        values = self.seconds[stage]
        return statistics.median(values) if values else None

    def add(self, timed: tuple[float, float, float]) -> None:
        """Keep the times of one step."""
        for stage, seconds in zip(STAGES, timed, strict=True):
            if not math.isnan(seconds):
                self.seconds[stage].append(seconds)


def step(implementation: Implementation) -> tuple[tuple[float, float, float], list[Tensor]]:
    """Time a forward pass alone, then forward and backward; return the results as well.

    The backward pass makes both gradients.
    """
    x = implementation.x.detach().requires_grad_()
    weight = implementation.weight.detach().requires_grad_()
    clock = clock_of(x.device)
    clock.hold()
    start = clock.mark()
    with torch.no_grad():
        alone = implementation.run(x, weight)
    forward = clock.between(start, clock.mark())
    if not implementation.trains:
        return (forward, math.nan, math.nan), [alone, torch.zeros_like(x), torch.zeros_like(weight)]
    del alone
    clock.hold()
    begin = clock.mark()
    output = implementation.run(x, weight)
    middle = clock.mark()
    gradients = torch.autograd.grad(output, (x, weight), implementation.grad)
    end = clock.mark()
    backward, full = clock.between(middle, end), clock.between(begin, end)
    return (forward, backward, full), [output.detach(), *gradients]


def fault(got: Samples, expected: Samples, trains: bool = True) -> str | None:
    """Say what differs from float64 by more than rounding, or ``None``."""
    for name, want in vars(expected).items():
        if not trains and name != "output":
            continue
        values = getattr(got, name)
        error = float(
            (values.cpu().double() - want).abs().max() / want.abs().max().clamp_min(1e-30)
        )
        if not error <= TOLERANCE[values.dtype]:
            return f"{WRONG}{name} differs from float64 by {error:.1e} of its largest value"
    return None


def in_turns(work: Work, budget: float, deadline: float = math.inf) -> dict[str, Result]:
    """Run all implementations of `work` in turns, for about `budget` seconds each.

    The first step of each warms up and is checked; what fails the check is not timed, nor is a peer
    that is to begin after the `deadline` of ``time.monotonic``.
    """
    results: dict[str, Result] = {}
    turns: list[tuple[Implementation, int]] = []
    torch.compiler.reset()  # else a later case may be taken for a variant of an earlier one
    for place, make in enumerate(work.makers):
        implementation = None
        try:
            implementation = make()
            rounds = _first_step(implementation, work, results, budget, deadline)
            if rounds:
                turns.append((implementation, min(rounds, 200)))
        except Exception as error:  # a peer that fails is listed with its reason
            if place == 0:
                raise
            name = implementation.name if implementation else f"implementation {place}"
            ours = bool(implementation and implementation.ours)
            results[name] = Result(ours, not_run=one_line(error))
    for turn in range(max((rounds for _, rounds in turns), default=0)):
        for implementation, rounds in turns:
            if turn < rounds:
                results[implementation.name].add(step(implementation)[0])
    return results


def one_line(error: Exception) -> str:
    """Kind and first line of an error, as the reason why something was not run."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _first_step(
    implementation: Implementation,
    work: Work,
    results: dict[str, Result],
    budget: float,
    deadline: float,
) -> int:
    """Warm up and check; return how many steps to time."""
    result = Result(implementation.ours, same=implementation.same)
    if not implementation.ours and time.monotonic() > deadline:
        result.not_run = "the time for all cases was up"
        results[implementation.name] = result
        return 0
    timed, outputs = step(implementation)
    if implementation.x.is_cuda or "compiled" in implementation.name:  # the first one compiles
        timed, outputs = step(implementation)
    if implementation.same:
        result.not_run = fault(
            implementation.samples(*outputs), work.expected, implementation.trains
        )
    results[implementation.name] = result
    if result.not_run is not None:
        return 0
    took = timed[0] + (timed[2] if implementation.trains else 0)
    if took > VERY_LONG:
        result.add(timed)
        return int(budget / took)
    fewest = 5 if implementation.ours or took <= LONG else 1
    return max(fewest, int(budget / (took + 2 * clock_of(implementation.x.device).held)))


def bandwidth(device: str) -> float:
    """Bytes a second that can be read or, on a GPU, copied: each byte read and written."""
    return copy_bandwidth() if device == "cuda" else read_bandwidth()


def copy_bandwidth(repeats: int = 9) -> float:
    """Bytes read and written a second when 1 GB is copied on the GPU, at the median."""
    values = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(values)
    clock, seconds = clock_of("cuda"), []
    for _ in range(repeats):
        clock.hold()
        start = clock.mark()
        target.copy_(values)
        seconds.append(clock.between(start, clock.mark()))
    return 2 * values.numel() * values.element_size() / statistics.median(seconds)


def read_bandwidth(repeats: int = 5) -> float:
    """Bytes a second at which torch's threads sum 256 MB of float32, at the median."""
    values = torch.ones(1 << 26)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        values.sum()
        seconds.append(time.perf_counter() - start)
    return values.numel() * values.element_size() / statistics.median(seconds)
