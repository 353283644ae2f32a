"""The figures that README and benchmarks/README.md quote are those of the measured results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def text(path: str) -> str:
    """A page with its line breaks as spaces."""
    return re.sub(r"\s+", " ", (ROOT / path).read_text())


def run(name: str) -> dict[str, dict[str, Any]]:
    return {c["name"]: c for c in json.loads((RESULTS / f"{name}.json").read_text())["cases"]}


def both(suite: str) -> list[dict[str, Any]]:
    """Cases with AVX-512 and with AVX2."""
    return [case for name in (suite, f"{suite}-avx2") for case in run(name).values()]


def rounded(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 9.95 else f"{ratio:.1f}"


def between(ratios: Iterable[float], form: str = "{:.1f}") -> str:
    """``"1.2 to 40.2"``."""
    ordered = sorted(ratios)
    return f"{form.format(ordered[0])} to {form.format(ordered[-1])}"


def speedups(cases: Iterable[dict[str, Any]], stage: str, named: str) -> list[float]:
    return [c["summary"][stage]["speedup"] for c in cases if re.search(named, c["name"])]


def over(
    peer: str, cases: Iterable[dict[str, Any]], named: str, stage: str = "full"
) -> list[float]:
    """Times of one peer over ours."""
    chosen = [c["implementations"] for c in cases if re.search(named, c["name"])]
    return [
        values["milliseconds"][stage] / implementations["scisparse"]["milliseconds"][stage]
        for implementations in chosen
        for name, values in implementations.items()
        if name == peer
    ]


def test_ranges_of_stencils_and_linear_layers() -> None:
    page, stencils = text("README.md"), both("cpu")
    linear = [case for name in ("linear", "linear-xeon") for case in run(name).values()]
    forward, backward = (between(speedups(stencils, s, "stencil")) for s in ("forward", "backward"))
    assert f"forward {forward} times, backward {backward} (" in page
    forward, step = (between(speedups(linear, s, "-90-")) for s in ("forward", "full"))
    assert f"forward {forward} times, a step {step} with AVX-512" in page


def test_ranges_of_attention() -> None:
    page, cases = text("README.md"), both("attention")
    eager = over("torch-geometric", cases, "graph-transformer")
    compiled = over("torch-geometric, compiled", cases, "graph-transformer")
    assert len(eager) == len(compiled) == 6
    assert f"torch-geometric: {between(eager)} times, compiled {between(compiled)}; " in page
    low, high = map(rounded, (f(speedups(cases, "full", "sphere")) for f in (min, max)))
    assert f"torch-harmonics: {low} to {high} (" in page


def test_ranges_of_training() -> None:
    runs = [
        json.loads((RESULTS / f"{name}.json").read_text())["cases"]
        for name in ("training", "training-xeon")
    ]

    def ratios(quantity: str, large: bool, first: int = 0) -> list[float]:
        cases = [c for run in runs[first:] for c in run if (c["sizes"][2] == 2048) is large]
        return [c[quantity]["masked dense"] / c[quantity]["scisparse"] for c in cases]

    small, page = ratios("milliseconds", False), text("benchmarks/README.md")
    times = f"{min(small):.1f} to {rounded(max(small))} times"
    assert times in text("README.md")
    less = ratios("bytes", False)
    assert f"it is {times} faster in {min(less):.1f} to {rounded(max(less))} times less" in page
    faster, smaller = (between(ratios(q, True)) for q in ("milliseconds", "bytes"))
    assert f"{faster} times faster in {smaller} times less" in page
    small, large = (ratios("milliseconds", at_2048, first=1) for at_2048 in (False, True))
    xeon = f"{min(small):.1f} to {rounded(max(small))} and {between(large)} times"
    assert f"where it was {xeon})" in page


def test_ranges_of_linear_layers_on_the_xeon() -> None:
    cases, page = run("linear-xeon").values(), text("benchmarks/README.md")
    dense, *others = (between(speedups(cases, "forward", f"-{p}-")) for p in (80, 90, 95, 99))
    assert f"forward {dense} times as fast as the best at 80 %, " in page
    assert "{} at 90 %, {} at 95 % and {} at 99 %".format(*others) in page
    ninety, single, larger = (
        between(over("dense linear", cases, named, "forward"))
        for named in ("-90-b1$", "-95-b1$", "-95-b(32|256|2048)$")
    )
    assert f"{ninety} times at 90 % and batch 1 (2 was the goal), and at 95 % {single} at" in page
    assert f"and {larger} at larger ones" in page


@pytest.mark.parametrize("name", run("cpu"))
def test_table_of_stencils(name: str) -> None:
    wanted = [
        f"{run(suite)[name]['summary'][stage]['speedup']:.1f} times"
        for suite in ("cpu", "cpu-avx2")
        for stage in ("forward", "backward")
    ]
    rows = {cells[0]: cells[1:] for cells in rows_of("benchmarks/README.md") if len(cells) == 5}
    title = run("cpu")[name]["shape"].removeprefix("3x3 untied, ").replace("->", "to")
    assert [cell.removesuffix(" *") for cell in rows[title]] == wanted


def test_table_of_linear_layers() -> None:
    cases, found = run("linear"), 0
    for title, *cells in rows_of("benchmarks/README.md"):
        if (match := re.fullmatch(r"(\d+) to (\d+), (\d+) %", title)) is None:
            continue
        for batch, cell in zip((1, 32, 256, 2048), cells, strict=True):
            summary = cases["linear-{}to{}-{}-b{}".format(*match.groups(), batch)]["summary"]
            ratios = [f"{summary[stage]['speedup']:.1f}" for stage in ("forward", "full")]
            assert cell.removesuffix(" times") == ", ".join(ratios), title
            found += 1
    assert found == 32


def rows_of(path: str) -> list[list[str]]:
    """Cells of each row of each table of a page."""
    lines = (ROOT / path).read_text().splitlines()
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
