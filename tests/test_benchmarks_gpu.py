"""A run on a GPU: its tests end in time and say what failed, and one failure costs no other."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest


def test_memory_is_measured_of_all_that_run(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver or compiler that is missing raises errors of its own."""
    work = harness.cases.linear.linear_work(2, 30, 20, 5)
    sound = work.makers[0]()

    def fails(*_: Any) -> Any:
        raise RuntimeError("no libnvrtc.so")

    def measure(implementation: Any) -> dict[str, float]:
        implementation.run(sound.x, sound.weight)
        return {"forward": 0.0}

    monkeypatch.setattr(harness.memory, "_measure", measure)
    broken = dataclasses.replace(sound, name="broken", run=fails)
    last = dataclasses.replace(sound, name="last")
    for second in (lambda: broken, fails):
        some = dataclasses.replace(work, makers=[lambda: sound, second, lambda: last])
        assert harness.memory.measure_here(some, peers=False).keys() == {sound.name, "last"}
    with pytest.raises(RuntimeError, match="no libnvrtc"):
        harness.memory.measure_here(dataclasses.replace(work, makers=[lambda: broken]), False)

