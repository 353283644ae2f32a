"""The harness: nothing wrong is timed, nothing left out is hidden, slower is seen."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from scisparse import grids, patterns
from scisparse.grids.base import unit_vectors

# Of torch itself, where it loads its compiler.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")
ROOT = Path(__file__).resolve().parents[1]


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


def _run_of(harness: Any, monkeypatch: pytest.MonkeyPatch, makers: dict[str, Any]) -> list[Any]:
    """Cases of a suite of their own, measured without the bandwidth of the machine."""
    monkeypatch.setattr(harness.__main__, "bandwidth", lambda _: 1e9)
    return [
        harness.registry.Case(name=name, op="any", suite="tiny", shape=name, make=make)
        for name, make in makers.items()
    ]


def test_what_is_wrong_slower_or_gone_fails_run_and_compare(
    harness: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = harness.cases.linear.linear_work(2, 30, 20, 5)
    ours = work.makers[0]()
    wrong = dataclasses.replace(ours, run=lambda x, w: ours.run(x, w) * 1.01)
    broken = dataclasses.replace(work, makers=[lambda: wrong, *work.makers[1:]])

    def unmade() -> Any:
        raise ImportError("no module of that name\nand more")

    def run(name: str, makers: dict[str, Any]) -> tuple[bool, Path]:
        path = tmp_path / f"{name}.json"
        cases = _run_of(harness, monkeypatch, makers)
        return harness.__main__.run_cases(cases, path, "it", 0.01, memory=False), path

    def compared(new: Path) -> tuple[int, str]:
        status = harness.__main__.main(["compare", str(good), str(new)])
        return status, capsys.readouterr().out

    failed, good = run("good", {"a": lambda: work, "b": lambda: work})
    assert not failed
    failed, bad = run("bad", {"a": unmade, "b": lambda: broken})
    assert failed
    assert "not run: ImportError: no module of that name |" in bad.with_suffix(".md").read_text()
    said = capsys.readouterr().out
    assert "failed: a: ImportError: no module of that name\n" in said
    assert "failed: b, scisparse: wrong: output" in said
    status, said = compared(bad)
    assert status == 1
    assert "a: ImportError: no module of that name  FAILED" in said
    for name in "ab":
        assert any(line.startswith(f"{name} full: was") for line in said.splitlines())
    results = json.loads(good.read_text())
    fewer, other = tmp_path / "fewer.json", tmp_path / "other.json"
    del results["cases"][0]
    fewer.write_text(json.dumps(results))
    status, said = compared(fewer)
    assert status == 1
    assert said.count("GONE") == 3
    other.write_text(json.dumps(results | {"suite": "other"}))
    assert harness.__main__.main(["compare", str(good), str(other)]) == 2
    assert "compare runs of one suite" in capsys.readouterr().err
    monkeypatch.setattr(harness.__main__, "FOLDER", tmp_path)
    good.rename(tmp_path / "tiny.json")
    assert harness.__main__.main(["compare", str(fewer)]) == 0


def test_what_fails_in_one_case_leaves_the_others(
    harness: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work = harness.cases.linear.linear_work(2, 30, 20, 5)

    def fails(*_: Any) -> Any:
        raise RuntimeError("out of shared memory\nand more")

    ours = dataclasses.replace(work.makers[0](), run=fails)
    broken = dataclasses.replace(work, makers=[lambda: ours, *work.makers[1:]])

    def memory(case: Any, work: Any, peers: bool) -> Any:
        return fails() if case.name == "c" else {}

    monkeypatch.setattr(harness.__main__, "extra_memory", memory)
    makers = {"a": lambda: work, "b": lambda: broken, "c": lambda: work, "d": lambda: work}
    path = tmp_path / "run.json"
    cases = _run_of(harness, monkeypatch, makers)
    assert harness.__main__.run_cases(cases, path, "it", 0.01)
    run = harness.report.read(path)
    assert [bool(case["summary"]) for case in run["cases"]] == [True, False, False, True]
    why = "RuntimeError: out of shared memory"
    assert harness.report.failures(run) == [f"b: {why}", f"c: {why}"]
    assert "tests_failed" not in run


def test_times_are_had_where_kernel_tests_fail(
    harness: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = harness.cases.linear.linear_work(2, 30, 20, 5)
    cases = _run_of(harness, monkeypatch, {"a": lambda: work})
    monkeypatch.setattr(harness.gpu, "require_gpu", lambda: None)
    monkeypatch.setattr(harness.gpu, "select", lambda *_: cases)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    path = tmp_path / "gpu.json"
    arguments = ["gpu", "--seconds", "0.01", "--out", str(path)]
    monkeypatch.setattr(harness.__main__, "extra_memory", lambda case, work, peers: {})
    for passed in (False, True):
        monkeypatch.setattr(harness.gpu, "_tests_pass", lambda passed=passed: passed)
        assert harness.__main__.main(arguments) == int(not passed)
        run = harness.report.read(path)
        assert run["cases"][0]["summary"]["forward"]["ours_ms"] > 0
        assert run.get("tests_failed", False) is not passed
        assert ("Kernel tests failed" in path.with_suffix(".md").read_text()) is not passed
        assert ("failed: kernel tests\n" in capsys.readouterr().out) is not passed


def test_a_case_on_a_gpu_is_made_once_and_draws_there(
    harness: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work = harness.cases.linear.linear_work(2, 30, 20, 5)
    made: list[Any] = []
    measured: list[Any] = []

    def make() -> Any:
        made.append(work)
        return work

    def measure_here(work: Any, peers: bool) -> dict[str, Any]:
        measured.append(work)
        return {}

    monkeypatch.setattr(harness.registry.Case, "device", "cuda")
    monkeypatch.setattr(harness.__main__, "describe_machine", lambda *_: {"bandwidth": "copy"})
    monkeypatch.setattr(harness.__main__, "write", lambda *_: None)
    monkeypatch.setattr(harness.memory, "measure_here", measure_here)
    cases = _run_of(harness, monkeypatch, {"a": make})
    assert not harness.__main__.run_cases(cases, tmp_path / "run.json", "it", 0.01)
    assert made == measured == [work]
    place = harness.cases.attention.Place("meta", torch.float16)
    devices: list[Any] = []
    real = torch.randn

    def randn(*shape: Any, **options: Any) -> torch.Tensor:
        devices.append(options.get("device"))
        return real(*shape, **options)

    monkeypatch.setattr(torch, "randn", randn)
    assert place.random(3, 5).dtype == torch.float16
    assert devices == ["meta"]


def test_figures_are_named_after_their_results_and_other_files_refused(
    harness: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib").use("agg")
    path, main = tmp_path / "here-avx2.json", harness.__main__.main
    work = harness.cases.linear.linear_work(2, 30, 20, 5)
    cases = _run_of(harness, monkeypatch, {"a": lambda: work, "b": lambda: 1 / 0})
    harness.__main__.run_cases(cases, path, "it", 0.01, memory=False)
    assert main(["plot", str(path)]) == 0
    names = {"here-avx2_bars.png", "here-avx2_roofline.png"}
    assert {found.name for found in tmp_path.glob("*.png")} == names
    training = str(ROOT / "benchmarks" / "results" / "training.json")
    for command in (["plot", training], ["compare", training], ["compare", str(path), training]):
        assert main(command) == 2
        assert "holds no suite of cases" in capsys.readouterr().err


def _bipartite(harness: Any, place: Any) -> list[Any]:
    """Attention from a small grid to a small mesh, and back."""
    gpu, globe = harness.cases.attention_gpu, harness.cases.globe
    sizes = harness.cases.attention.Sizes(6, 2)
    works = [
        gpu.operator_work(partial(build, 1, "O5"), sizes, place)
        for build in (globe.encoder, globe.decoder)
    ]
    return [dataclasses.replace(work, makers=work.makers[:3]) for work in works]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_attention_cases_for_a_gpu_pass_the_gate_when_small(
    harness: Any, dtype: torch.dtype
) -> None:
    cases, mesh = harness.cases.attention, partial(patterns.mesh, 1, multiscale=True)
    place = cases.Place("cpu", dtype)
    operator = harness.cases.attention_gpu.operator_work(mesh, cases.Sizes(8, 2), place)
    operator = dataclasses.replace(operator, makers=operator.makers[:3])  # compiling takes long
    layer = cases.layer_work(mesh, cases.Sizes(8, 2, 3), place)
    sphere = cases.sphere_work(0.2, 22, 40, 4, place)
    most = harness.cases.products.most_work(mesh, 5, cases.Place())
    for work in (operator, layer, sphere, most, *_bipartite(harness, place)):
        results = harness.measure.in_turns(work, 0.01)
        assert results["scisparse"].not_run is None
        assert results["scisparse"].median("backward") > 0
        assert all(result.not_run is None for result in results.values() if result.ours)
    for work in (operator, most):
        for name, result in harness.measure.in_turns(work, 0.01).items():
            assert result.not_run is None, name


@pytest.mark.parametrize("rows", [3, 8])
def test_patterns_made_without_scipy_are_those_of_the_builders(harness: Any, rows: int) -> None:
    globe, metres = harness.cases.globe, 2.1e6
    points, vertices = grids.reduced_gaussian(f"O{rows}"), grids.icosahedral(2)
    lattice = grids.LatLonGrid.regular(19, 36)
    pairs = [(points, vertices), (vertices, points), (lattice, lattice), (lattice, points)]
    for sources, sites in pairs:
        found = globe.within(sources, metres, sites=sites)
        wanted = patterns.radius(sources, metres, sites=sites)
        assert found.validate().shape == wanted.shape
        assert torch.equal(found.row_ptr, wanted.row_ptr)
        assert torch.equal(found.col, wanted.col)
    found, wanted = (
        globe.closest(vertices, 3, sites=points),
        patterns.nearest(vertices, 3, sites=points),
    )
    assert found.validate().shape == wanted.shape
    assert torch.equal(found.row_ptr, wanted.row_ptr)
    # Of sources at one distance the two may choose different ones.
    torch.testing.assert_close(_distances(found), _distances(wanted))
    cap = grids.UnstructuredGrid(torch.rand(50).numpy() * 0.2 + 1, torch.rand(50).numpy())
    with pytest.raises(ValueError, match="must be spread evenly"):
        globe.closest(cap, 3, sites=points)


def _distances(pattern: Any) -> torch.Tensor:
    """Cosines of the angles to the sources of each site, in order."""
    sources, sites = (
        torch.from_numpy(unit_vectors(grid.lat, grid.lon))
        for grid in (pattern.source_grid, pattern.site_grid)
    )
    cosine = (sources[pattern.col.long()] * sites[pattern.rows()]).sum(1)
    return cosine.view(pattern.num_sites, -1).sort(1).values


def test_the_encoder_reads_what_is_near_by_the_spacing_of_the_mesh(harness: Any) -> None:
    globe = harness.cases.globe
    assert globe.n320().size == 542080
    vertices, points = grids.icosahedral(3), grids.reduced_gaussian("O40")
    spacing = patterns.nearest(vertices, 1, include_self=False).distance
    assert spacing is not None
    wanted = patterns.radius(points, 0.6 * float(spacing.max()), sites=vertices)
    found = globe.encoder(3, "O40")
    assert found.shape == wanted.shape
    assert torch.equal(found.row_ptr, wanted.row_ptr)
    assert torch.equal(found.col, wanted.col)


def test_cases_for_a_gpu_are_made_without_scipy(
    harness: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("scipy", "scipy.spatial"):
        monkeypatch.setitem(sys.modules, name, None)
    place = harness.cases.attention.Place()
    assert harness.cases.attention.sphere_work(0.2, 22, 40, 4, place).makers
    harness.cases.globe.encoder.cache_clear()
    harness.cases.globe.decoder.cache_clear()
    assert all(work.makers for work in _bipartite(harness, place))


@pytest.mark.parametrize("command", [(), ("compare",), ("plot",)])
def test_help_is_plain_text_and_says_what_each_argument_is(
    harness: Any, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    main = sys.modules[f"{harness.__name__}.__main__"].main
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "``" not in out
    assert not [line for line in out.splitlines() if line.strip() in ("base", "new", "results")]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [["gpu"], ["run", "--suite", "gpu"]], ids=" ".join)
def test_without_a_gpu_the_commands_for_one_say_so(
    harness: Any, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert harness.__main__.main(command) == 2
    assert "torch finds no CUDA device" in capsys.readouterr().err


def test_stencils_come_first_on_a_gpu(harness: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def run_cases(cases: list[Any], *_: Any, **__: Any) -> bool:
        seen.extend(case.op for case in cases)
        return True

    monkeypatch.setattr(harness.gpu, "require_gpu", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(harness.__main__, "run_cases", run_cases)
    assert harness.__main__.main(["gpu", "--no-tests"]) == 1
    count = seen.count("gather_matmul")
    assert count
    assert set(seen[:count]) == {"gather_matmul"}


def test_cases_for_a_gpu_are_registered(harness: Any) -> None:
    cases = harness.registry.select("gpu", ["8to8", "16to16"])
    assert len(cases) == 6
    assert {case.device for case in cases} == {"cuda"}
    attention = harness.registry.select("gpu", ["graph_attention"])
    assert len(attention) == 9
    assert {case.device for case in attention} == {"cuda"}
    with pytest.raises(ValueError, match="no case of suite 'gpu' matches") as error:
        harness.registry.select("gpu", ["nothing"])
    assert all(case.name in str(error.value) for case in cases)
    assert "window-16k-512" not in str(error.value)
    with pytest.raises(ValueError, match="no suite is called 'gpus'; suites: attention, cpu, gpu"):
        harness.registry.select("gpus")
