"""A run on a GPU: its tests end in time and say what failed, and one failure costs no other."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from scisparse import orders, patterns

# Of torch itself, where it loads its compiler.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")


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


INTERRUPTED = """
import signal, sys, time
deaf = sys.argv[1] == "deaf"  # else as asked, also where a shell in the background ignores it
signal.signal(signal.SIGINT, signal.SIG_IGN if deaf else signal.default_int_handler)
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("1 failed")
"""


@pytest.mark.parametrize(("kind", "said"), [("well", "1 failed\n"), ("deaf", "")])
def test_tests_that_take_too_long_say_what_failed(
    harness: Any, monkeypatch: pytest.MonkeyPatch, kind: str, said: str
) -> None:
    monkeypatch.setattr(harness.gpu, "GRACE", 30 if said else 1)
    command = [sys.executable, "-c", INTERRUPTED, kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert harness.gpu._said_by(process, 0) == f"{said}\nstopped after 300 s"


def test_tests_side_by_side_have_one_thread_each(
    harness: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[dict[str, Any]] = []

    def start(command: list[str], **options: Any) -> Any:
        started.append(options)
        return SimpleNamespace(returncode=0, communicate=lambda timeout: ("2 passed", None))

    monkeypatch.setattr(harness.gpu.subprocess, "Popen", start)
    assert harness.gpu._tests_pass()
    assert len(started) == 1 + 2 * 5
    assert {options["env"]["OMP_NUM_THREADS"] for options in started} == {"1"}
    assert capsys.readouterr().out.count("2 passed") == len(started)


def test_bytes_of_attention_are_those_of_its_tensors(harness: Any) -> None:
    """Floats of four bytes: what goes in and comes out of each pass, once."""
    cases, channels, heads = harness.cases.attention, 12, 3
    pattern = harness.cases.globe.encoder(1, "O5")
    site, source = channels * pattern.num_sites, channels * pattern.num_sources
    edges, rows = pattern.num_edges, 2 * (pattern.num_sites + 1)
    rows_t = 2 * (pattern.num_sources + 1)
    alone = cases.cost_of(pattern, cases.Sizes(channels, heads), 0)
    q, k, v, out = site, source, source, site
    assert alone.forward_bytes == 4 * (q + k + v + out + edges + rows)
    assert alone.backward_bytes == 4 * (2 * (q + k + v) + out + 3 * edges + rows + rows_t)
    x, y, attr, weights = source, site, 5 * edges, 70
    layer = cases.cost_of(pattern, cases.Sizes(channels, heads, 5), weights)
    assert layer.forward_bytes == 4 * (x + y + attr + weights + edges + rows)
    ends = 2 * x + y + attr + 2 * weights
    assert layer.backward_bytes == 4 * (ends + 3 * edges + rows + rows_t)


def test_points_are_put_along_curves_once(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the mesh of level 6 it takes seconds of the minutes that a run has."""
    gpu, made = harness.cases.attention_gpu, []

    def counted(grid: Any) -> Any:
        made.append(grid)
        return orders.hilbert(grid)

    monkeypatch.setattr(gpu, "hilbert", counted)
    pattern = partial(patterns.mesh, 1, multiscale=True)
    work = gpu.operator_work(pattern, harness.cases.attention.Sizes(8, 2), gpu.Place())
    names = [work.makers[1]().name for _ in range(2)]
    assert names == ["scisparse, Hilbert order"] * 2
    assert len(made) == 2  # of sites and of sources
