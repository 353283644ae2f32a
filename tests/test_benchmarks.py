"""The harness: nothing wrong is timed, nothing left out is hidden, slower is seen."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from scisparse import patterns

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def harness() -> Any:
    """The folder `benchmarks`, which is not installed, without its parent on the path."""
    folder = ROOT / "benchmarks"
    spec = importlib.util.spec_from_file_location(
        "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmarks"] = module
    spec.loader.exec_module(module)
    for name in ("__main__", "compare", "measure", "memory", "registry", "report"):
        importlib.import_module(f"benchmarks.{name}")
    importlib.import_module("benchmarks.cases.gather_matmul")
    importlib.import_module("benchmarks.cases.linear")
    importlib.import_module("benchmarks.cases.attention_gpu")
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_formulations_of_a_stencil_pass_the_gate(harness: Any, dtype: torch.dtype) -> None:
    work = harness.cases.gather_matmul.stencil_work(
        2, (3, 4), harness.cases.stencils.Stencil(5, 6), dtype
    )
    results = harness.measure.in_turns(work, 0.01)
    assert len(results) == 5
    for name, result in results.items():
        assert result.not_run is None, name
        assert result.median("backward") > 0


def test_what_is_wrong_or_too_late_is_listed_and_not_timed(harness: Any) -> None:
    work = harness.cases.linear.linear_work(2, 30, 20, 5)

    def broken() -> Any:
        sound = work.makers[1]()
        return dataclasses.replace(sound, name="broken", run=lambda x, w: sound.run(x, w) * 1.01)

    work = dataclasses.replace(work, makers=[*work.makers, broken])
    results = harness.measure.in_turns(work, 0.01)
    assert results["broken"].not_run.startswith("wrong: output differs from float64 by 1.0e-02")
    assert results["broken"].median("forward") is None
    late = harness.measure.in_turns(work, 0.01, deadline=time.monotonic() - 1)
    assert {r.not_run for r in late.values() if not r.ours} == {"the time for all cases was up"}
    assert all(r.median("forward") for r in late.values() if r.ours)


def test_a_run_writes_results_that_compare_reads(
    harness: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, main = tmp_path / "run.json", harness.__main__.main
    arguments = [
        "run",
        "--filter",
        "linear",
        "--seconds",
        "0.01",
        "--no-memory",
        "--out",
        str(path),
    ]
    assert main(arguments) == 0
    table = path.with_suffix(".md").read_text()
    for name in ("scisparse", "dense linear", "CSR (MKL)", "gather + sum", "read bandwidth"):
        assert name in table
    assert main(["compare", str(path), str(path)]) == 0
    slower = json.loads(path.read_text())
    slower["cases"][0]["summary"]["forward"]["speedup"] *= 0.9
    other = tmp_path / "slower.json"
    other.write_text(json.dumps(slower))
    assert main(["compare", str(path), str(other)]) == 1
    assert "forward: speedup" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "none.json"), str(path)]) == 2
    assert "no results at" in capsys.readouterr().err


# Of torch itself, where it loads its compiler.
@pytest.mark.filterwarnings("ignore:`torch.jit.script")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_attention_cases_for_a_gpu_pass_the_gate_when_small(
    harness: Any, dtype: torch.dtype
) -> None:
    cases, mesh = harness.cases.attention, partial(patterns.mesh, 1, multiscale=True)
    place = cases.Place("cpu", dtype)
    operator = harness.cases.attention_gpu.operator_work(mesh, cases.Sizes(8, 2), place)
    operator = dataclasses.replace(operator, makers=operator.makers[:2])  # compiling takes long
    layer = cases.layer_work(mesh, cases.Sizes(8, 2, 3), place)
    sphere = cases.sphere_work(0.2, 22, 40, 4, place)
    for work in (operator, layer, sphere):
        results = harness.measure.in_turns(work, 0.01)
        assert results["scisparse"].not_run is None
        assert results["scisparse"].median("backward") > 0
    assert harness.measure.in_turns(operator, 0.01)["gather + scatter"].not_run is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_for_one_says_so(
    harness: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert harness.__main__.main(["gpu"]) == 2
    assert "torch finds no CUDA device" in capsys.readouterr().err


def test_cases_for_a_gpu_are_registered(harness: Any) -> None:
    cases = harness.registry.select("gpu", ["8to8", "16to16"])
    assert len(cases) == 6
    assert {case.device for case in cases} == {"cuda"}
    attention = harness.registry.select("gpu", ["graph_attention"])
    assert len(attention) == 9
    assert {case.device for case in attention} == {"cuda"}
    with pytest.raises(ValueError, match="no case of suite 'gpu' matches"):
        harness.registry.select("gpu", ["nothing"])
