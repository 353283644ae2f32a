"""Clocks: of the machine, and of a GPU, which counts from kernel to kernel."""

from __future__ import annotations

import time
from typing import Any

import torch

__all__ = ["Clock", "clock_of"]

# Cycles and seconds that a GPU is kept busy, so that what is to be timed waits in its queue.
_CYCLES, _HELD = 4_000_000, 2.5e-3


class Clock:
    """Time of the machine."""

    held = 0.0  #: seconds that :meth:`hold` takes

    def hold(self) -> None:
        """Make ready for what is to be timed."""

    def mark(self) -> Any:
        """Return a mark in time."""
        return time.perf_counter()

    def between(self, first: Any, last: Any) -> float:
        """Seconds between two marks."""
        return float(last - first)


class _GpuClock(Clock):
    """Time of the GPU, from its last work before a mark.

    Launches are ahead of the GPU, which is held for a while first: what is timed is what kernels
    take, not Python, unless that takes longer than both. Caches are emptied, as they would be by
    the other layers of a model.
    """

    held = _HELD

    def hold(self) -> None:
        """Empty the second-level cache, and keep the GPU busy for a while."""
        size = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        torch.empty(2 * size, dtype=torch.uint8, device="cuda").zero_()
        torch.cuda._sleep(_CYCLES)

    def mark(self) -> torch.cuda.Event:
        """Put an event in the queue."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: torch.cuda.Event, last: torch.cuda.Event) -> float:
        """Seconds between two events, once the second has come."""
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3


def clock_of(device: torch.device | str) -> Clock:
    """Clock that times work on `device`."""
    return _GpuClock() if torch.device(device).type == "cuda" else Clock()
