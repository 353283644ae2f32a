"""Command line: ``run``, ``training``, ``gpu``, ``compare``, ``plot``."""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

import benchmarks.cases  # noqa: F401 (registers the cases)
from benchmarks.compare import compare
from benchmarks.gpu import add_command as add_gpu
from benchmarks.gpu import require_gpu
from benchmarks.measure import bandwidth, in_turns, one_line
from benchmarks.memory import extra_memory, measure_here
from benchmarks.plot import plot
from benchmarks.registry import Case, find, select, suites
from benchmarks.report import (
    FOLDER,
    describe_case,
    describe_machine,
    describe_unmade,
    failures,
    read,
    write,
)
from benchmarks.training import add_command as add_training


def main(arguments: list[str] | None = None) -> int:
    """Run a command; 1 when something is slower, wrong or missing, 2 on bad arguments."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure, compare and draw."
    )
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="measure, and write JSON and Markdown")
    run.add_argument("--suite", default="cpu", help=f"one of {', '.join(suites())}")
    run.add_argument("--filter", nargs="*", default=[], help="only cases that contain a word")
    run.add_argument("--seconds", type=float, default=3.0, help="for each implementation of a case")
    run.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    run.add_argument(
        "--keep-memory",
        action="store_true",
        help="have the C library keep freed memory: nothing waits for new pages (glibc only)",
    )
    run.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    run.add_argument("--out", type=Path, help="JSON file; the table is written beside it")
    run.set_defaults(command=_run)
    memory = commands.add_parser("memory", help="peak memory of one case, as JSON (used by run)")
    memory.add_argument("case")
    memory.add_argument("--peers", action="store_true")
    memory.add_argument("--threads", type=int, default=0)
    memory.set_defaults(command=_memory)
    add_training(commands)
    add_gpu(commands, run_cases)
    comparison = commands.add_parser("compare", help="compare two runs of a suite")
    comparison.add_argument("base", type=Path, help="JSON file of the run before")
    comparison.add_argument(
        "new",
        type=Path,
        nargs="?",
        help="JSON file of the run after; results/SUITE.json of the same suite if not given",
    )
    comparison.set_defaults(command=_compare)
    figures = commands.add_parser("plot", help="draw the figures of a run")
    figures.add_argument(
        "results",
        type=Path,
        nargs="?",
        default=FOLDER / "cpu.json",
        help="JSON file; results/cpu.json if not given",
    )
    figures.set_defaults(command=_plot)
    return parser


# glibc takes large tensors from the system and gives them back at once. These keep them.
_KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}


def _run(options: argparse.Namespace) -> int:
    if options.keep_memory and not _KEEP_MEMORY.items() <= os.environ.items():
        arguments = [sys.executable, "-m", "benchmarks", *sys.argv[1:]]
        os.execve(sys.executable, arguments, os.environ | _KEEP_MEMORY)
    cases = select(options.suite, options.filter)
    if any(case.device == "cuda" for case in cases):
        require_gpu()
    if options.threads:
        torch.set_num_threads(options.threads)
    words = f" --filter {' '.join(options.filter)}" if options.filter else ""
    words += f" --threads {options.threads}" if options.threads else ""
    words += " --keep-memory" if options.keep_memory else ""
    failed = run_cases(
        cases,
        options.out or FOLDER / f"{options.suite}.json",
        f"python -m benchmarks run --suite {options.suite}{words}",
        options.seconds,
        memory=not options.no_memory,
    )
    return int(failed)


def run_cases(
    cases: list[Case],
    path: Path,
    command: str,
    seconds: float,
    *,
    memory: bool = True,
    deadline: float = math.inf,
    tests_failed: bool = False,
) -> bool:
    """Measure cases of one suite and write the results; `command` is how a reader repeats it.

    Return whether one could not be made or measured, ours was wrong, or kernel tests run before
    failed, which the results then say.
    """
    described: list[dict[str, Any]] = []
    run: dict[str, Any] = {}
    for case in cases:
        start = time.perf_counter()
        described.append(_measure(case, seconds, memory, deadline))
        summary = described[-1]["summary"]
        ratios = ", ".join(
            f"{s} {p['ours_ms']:.3g} ms x{p.get('speedup', 0):.1f}" for s, p in summary.items()
        )
        print(
            f"{case.shape}: {ratios or 'not timed'} ({time.perf_counter() - start:.0f} s)",
            flush=True,
        )
        most = max(case["bandwidth_GB_s"] for case in described)
        run = {
            "suite": case.suite,
            "command": command,
            "machine": describe_machine(most * 1e9, case.device),
            "cases": described,
        }
        if tests_failed:
            run["tests_failed"] = True
        write(run, path)  # after each, so that what comes later can lose nothing
    print(f"wrote {path} and {path.with_suffix('.md').name}")
    failed = failures(run)
    print(*(f"failed: {failure}" for failure in failed), sep="\n", end="\n" if failed else "")
    return bool(failed)


def _measure(case: Case, seconds: float, memory: bool, deadline: float) -> dict[str, Any]:
    """Time a case between two measurements of the bandwidth, then its memory."""
    before = bandwidth(case.device)
    try:
        work = case.make()
        results = in_turns(work, seconds, deadline)
        cost = work.cost
        kept = work if case.device == "cuda" else None  # for memory; a CPU needs what it took
        del work
        gc.collect()
        between = (before + bandwidth(case.device)) / 2
        extra = extra_memory(case, kept, peers=case.suite == "attention") if memory else {}
    except Exception as error:  # what fails in one case must not end the others
        return describe_unmade(case, one_line(error), before)
    return describe_case(case, cost, results, extra, between)


def _memory(options: argparse.Namespace) -> int:
    if options.threads:
        torch.set_num_threads(options.threads)
    print(json.dumps(measure_here(find(options.case).make(), options.peers)))
    return 0


def _compare(options: argparse.Namespace) -> int:
    base = read(options.base)
    lines, regressed = compare(base, read(options.new or FOLDER / f"{base['suite']}.json"))
    print(*lines, sep="\n")
    return int(regressed)


def _plot(options: argparse.Namespace) -> int:
    for path in plot(read(options.results), options.results):
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
