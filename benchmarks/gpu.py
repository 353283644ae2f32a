"""``python -m benchmarks gpu``: kernel tests, then all timings, on a machine with a GPU.

Needs torch, triton, numpy and pytest, and takes less than 8 minutes: peers that would begin later
are listed as not run.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.registry import select
from benchmarks.report import FOLDER

__all__ = ["add_command", "require_gpu"]

TESTS = (
    "test_triton.py",
    "test_triton_attention.py",
    "test_triton_choices.py",
    "test_streams.py",
    "test_debug.py",
    "test_calculus.py",
    "test_products.py",
    "test_graph_attention_calls.py",
)
LONG = ("test_gather_matmul.py", "test_graph_attention.py")
LIMIT = 300  # seconds for all tests
GRACE = 20  # seconds in which tests that are stopped may say what failed before
SHARDS = ("float64", "float32", "bfloat16", "float16")  # of each long file, side by side


def add_command(commands: Any, run_cases: Callable[..., bool]) -> None:
    """Add the command to the parsers of ``python -m benchmarks``."""
    parser = commands.add_parser("gpu", help="kernel tests and timings on this machine's GPU")
    parser.add_argument("--filter", nargs="*", default=[], help="only cases that contain a word")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each implementation")
    parser.add_argument("--minutes", type=float, default=5.5, help="no peer begins after these")
    parser.add_argument("--no-tests", action="store_true", help="leave the kernel tests out")
    parser.add_argument("--out", type=Path, help="JSON file; the table is written beside it")
    parser.set_defaults(command=lambda options: _run(options, run_cases))


def require_gpu() -> None:
    """Raise where torch finds no GPU."""
    if not torch.cuda.is_available():
        raise ValueError("torch finds no CUDA device; run this on a machine with an NVIDIA GPU")


def _run(options: argparse.Namespace, run_cases: Callable[..., bool]) -> int:
    require_gpu()
    deadline = time.monotonic() + 60 * options.minutes
    tests_failed = not options.no_tests and not _tests_pass()  # times are had all the same
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    words = f" --filter {' '.join(options.filter)}" if options.filter else ""
    cases = sorted(select("gpu", options.filter), key=lambda case: case.op != "gather_matmul")
    failed = run_cases(
        cases,  # stencils first: their peers are the last to be left out
        options.out or FOLDER / f"gpu-{name}.json",
        f"python -m benchmarks gpu{words}",
        options.seconds,
        deadline=deadline,
        tests_failed=tests_failed,
    )
    return int(failed)


def _tests_pass() -> bool:
    """Run the kernel tests on the GPU, in several processes, and print what they say."""
    start = time.monotonic()
    folder = Path(__file__).parent.parent / "tests"
    rest = " and ".join(f"not {word}" for word in SHARDS)
    words = [rest, *map(_exactly, SHARDS)]
    selections = [[str(folder / name) for name in TESTS]]
    selections += [[str(folder / name), "-k", word] for name in LONG for word in words]
    command = [sys.executable, "-m", "pytest", "-q", "--maxfail=5", "-p", "no:cacheprovider"]
    # A shell has what it runs in the background ignore Ctrl-C, and so would these.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # All threads in each of them would wait for one another on the same cores.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [*command, *each],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for each in selections
    ]
    passed = True
    for each, process in zip(selections, running, strict=True):
        said = _said_by(process, LIMIT - (time.monotonic() - start))
        passed = passed and process.returncode == 0
        shown = said if process.returncode else (said.strip().splitlines() or [""])[-1]
        print(f"tests {' '.join(Path(word).name for word in each)}: {shown}", flush=True)
    print(f"tests took {time.monotonic() - start:.0f} s", flush=True)
    return passed


def _said_by(process: subprocess.Popen[str], seconds: float) -> str:
    """What a process prints; after so many seconds it is asked to end, as Ctrl-C does."""
    try:
        return process.communicate(timeout=max(1, seconds))[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        said = process.communicate(timeout=GRACE)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        said = process.communicate()[0]
    return f"{said}\nstopped after {LIMIT} s"


def _exactly(word: str) -> str:
    """Select tests of this type alone: ``float16`` is also in ``bfloat16``."""
    return f"{word} and not bfloat16" if word == "float16" else word
