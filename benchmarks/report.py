"""Results of a run: gathered, written as JSON, and as a Markdown table."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import STAGES, WRONG, Result
from benchmarks.registry import Case, Cost

__all__ = [
    "FOLDER",
    "describe_case",
    "describe_machine",
    "describe_unmade",
    "failures",
    "markdown",
    "read",
    "write",
]

FOLDER = Path(__file__).parent / "results"

Json = dict[str, Any]


def describe_machine(bandwidth: float, device: str) -> Json:
    """Processor or GPU, threads, versions and the bandwidth measured in this run."""
    if device == "cuda":
        part = {"processor": torch.cuda.get_device_name(), "bandwidth": "copy"}
        part["instructions"] = "sm_{}{}".format(*torch.cuda.get_device_capability())
    else:
        part = {"processor": _processor(), "bandwidth": "read"}
        part["instructions"] = torch.backends.cpu.get_cpu_capability()
    return part | {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "bandwidth_GB_s": bandwidth / 1e9,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def describe_case(
    case: Case,
    cost: Cost,
    results: dict[str, Result],
    memory: dict[str, dict[str, float]],
    bandwidth: float,
) -> Json:
    """Everything measured of a case, and what follows from it."""
    implementations: Json = {}
    for name, result in results.items():
        medians = {s: 1e3 * m for s in STAGES if (m := result.median(s)) is not None}
        implementations[name] = {
            "ours": result.ours,
            "same": result.same,
            "milliseconds": medians,
            "steps": len(result.seconds["forward"]),
            "extra_memory": memory.get(name, {}),
            "not_run": result.not_run,
        }
    described = {
        "name": case.name,
        "op": case.op,
        "shape": case.shape,
        "cost": vars(cost),
        "bandwidth_GB_s": bandwidth / 1e9,
        "implementations": implementations,
    }
    return described | {"summary": _summary(described)}


def describe_unmade(case: Case, reason: str, bandwidth: float) -> Json:
    """A case that could not be made or measured, and why."""
    return {
        "name": case.name,
        "op": case.op,
        "shape": case.shape,
        "not_run": reason,
        "bandwidth_GB_s": bandwidth / 1e9,
        "implementations": {},
        "summary": {},
    }


def failures(run: Json) -> list[str]:
    """Say if kernel tests failed, which cases could not be made or measured, and where ours fails.

    Ours fails where it is wrong, or where what users get did not run.
    """
    found = ["kernel tests"] if run.get("tests_failed") else []
    for case in run["cases"]:
        reasons = [(case["name"], case.get("not_run"))]
        ours = [(n, v["not_run"]) for n, v in case["implementations"].items() if v["ours"]]
        reasons += [
            (f"{case['name']}, {name}", reason)
            for place, (name, reason) in enumerate(ours)
            if place == 0 or (reason or "").startswith(WRONG)
        ]
        found += [f"{name}: {reason}" for name, reason in reasons if reason]
    return found


def _summary(case: Json) -> Json:
    """Times of ours and of the best peer, their ratio, and the fraction of the bandwidth."""
    parts: Json = {}
    for stage in STAGES:
        ours = next(v for v in case["implementations"].values() if v["ours"])  # what users get
        if stage not in ours["milliseconds"]:
            continue
        part: Json = {"ours_ms": ours["milliseconds"][stage]}
        peers = {
            name: values["milliseconds"][stage]
            for name, values in case["implementations"].items()
            if not values["ours"] and values["same"] and stage in values["milliseconds"]
        }
        if peers:
            best = min(peers, key=lambda name: peers[name])
            part |= {"best_peer": best, "best_peer_ms": peers[best]}
            part["speedup"] = peers[best] / part["ours_ms"]
        if stage != "full":
            moved = case["cost"][f"{stage}_bytes"]
            part["GB_s"] = moved / part["ours_ms"] / 1e6
            part["bandwidth_fraction"] = part["GB_s"] / case["bandwidth_GB_s"]
            part["GFLOP_s"] = case["cost"][f"{stage}_flops"] / part["ours_ms"] / 1e6
        parts[stage] = part
    return parts


def write(run: Json, path: Path) -> None:
    """Write JSON to `path` and the table beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(run))


def read(path: Path) -> Json:
    """Read the JSON of a run."""
    if not path.exists():
        raise ValueError(f"no results at {path}; make them with: python -m benchmarks run")
    run: Json = json.loads(path.read_text())
    if "suite" not in run:
        raise ValueError(f"{path} holds no suite of cases; give a file of `run` or of `gpu`")
    return run


def markdown(run: Json) -> str:
    """Return the tables of a run: ours beside the best peer, then every implementation."""
    machine = run["machine"]
    on_gpu = machine["bandwidth"] == "copy"
    lines = [
        f"# Suite `{run['suite']}`",
        "",
        f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']} "
        f"({machine['instructions']}), {machine['date']}; made with `{run['command']}`.",
        *(["", "Kernel tests failed before this run."] if run.get("tests_failed") else []),
        "",
        "Median milliseconds"
        + (" of the GPU, with empty caches and launches ahead of it" if on_gpu else "")
        + ", of float32 where no type is named; backward makes both gradients. "
        "Ratio: best peer / ours, in the same run, in turns. Bandwidth: bytes that must move once, "
        f"as a fraction of the {machine['bandwidth']} bandwidth measured beside each case. Memory: "
        "peak beyond inputs, outputs and gradients, as a fraction of these ("
        + (
            "what torch has allocated)."
            if on_gpu
            else "high-water mark of resident memory, in a process of its own)."
        ),
        "",
        "| case | forward | best peer | ratio | bandwidth | backward | best peer | ratio "
        "| bandwidth | memory forward, backward |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_summary_row(case) for case in run["cases"]]
    lines += ["", "## Every implementation", ""]
    lines += ["| case | implementation | forward | backward | full | steps | extra memory |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for case in run["cases"]:
        if case.get("not_run"):
            lines.append(f"| {case['shape']} | all | not run: {case['not_run']} | | | | |")
        for name, values in case["implementations"].items():
            lines.append(_row(case["shape"], name, values))
    return "\n".join(lines) + "\n"


def _summary_row(case: Json) -> str:
    cells = [case["shape"]]
    for stage in ("forward", "backward"):
        part = case["summary"].get(stage, {})
        peer = f"{_number(part.get('best_peer_ms'))} ({part.get('best_peer', 'none')})"
        ratio, fraction = part.get("speedup"), part.get("bandwidth_fraction")
        cells += [
            _number(part.get("ours_ms")),
            peer,
            f"{ratio:.1f}" if ratio else "-",
            f"{part['GB_s']:.1f} GB/s = {100 * fraction:.0f} %" if fraction else "-",
        ]
    ours = (v["extra_memory"] for v in case["implementations"].values() if v["ours"])
    memory: dict[str, float] = next(ours, {})
    cells.append(", ".join(f"{100 * value:.1f} %" for value in memory.values()) or "-")
    return "| " + " | ".join(cells) + " |"


def _row(shape: str, name: str, values: Json) -> str:
    if values["not_run"]:
        return f"| {shape} | {name} | not run: {values['not_run']} | | | | |"
    times = [_number(values["milliseconds"].get(stage)) for stage in STAGES]
    memory = ", ".join(f"{100 * value:.0f} %" for value in values["extra_memory"].values())
    return f"| {shape} | {name} | {' | '.join(times)} | {values['steps']} | {memory or '-'} |"


def _number(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.3g}"
