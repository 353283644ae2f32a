"""The clock of a GPU: marks lie in its queue, behind work that keeps it busy."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch


class Event:
    """Stands for one of a GPU that takes 3 ms for each piece of work that is launched."""

    queue: ClassVar[list[str]] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.queue.append("mark")
        self.time = 3.0 * len([word for word in self.queue if word == "work"])

    def synchronize(self) -> None:
        self.queue.append("wait")

    def elapsed_time(self, other: Event) -> float:
        assert "wait" in self.queue[-1]
        return other.time - self.time


@pytest.fixture
def clock(harness: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    module = importlib.import_module("benchmarks.clock")
    monkeypatch.setattr(Event, "queue", [])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    properties = SimpleNamespace(L2_cache_size=1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: Event.queue.append("hold"))
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda size, dtype, device: empty(size, dtype=dtype)
    )  # device is "cuda"
    return module.clock_of("cuda")


def test_a_step_on_a_gpu_is_timed_in_its_queue(
    harness: Any, monkeypatch: pytest.MonkeyPatch, clock: Any
) -> None:
    monkeypatch.setattr(harness.measure, "clock_of", lambda device: clock)

    def run(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        Event.queue.append("work")
        return x * weight

    x, weight = torch.ones(4), torch.full((4,), 2.0)
    implementation = SimpleNamespace(x=x, weight=weight, run=run, grad=x, trains=True)
    (forward, backward, full), outputs = harness.measure.step(implementation)
    assert Event.queue == [
        "hold",
        "mark",
        "work",
        "mark",
        "wait",
        "hold",
        "mark",
        "work",
        "mark",
        "mark",
        "wait",
        "wait",
    ]
    assert (forward, backward, full) == pytest.approx((3e-3, 0.0, 3e-3))
    assert [float(each.sum()) for each in outputs] == [8.0, 8.0, 4.0]
