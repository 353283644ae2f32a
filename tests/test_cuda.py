"""The CUDA kernels without a GPU: their source, compiled for the CPU, against float64.

A GPU adds the launch; `python -m benchmarks gpu` runs what `test_gather_matmul.py` asks there.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from kernel_cases import CASES, TOLERANCE, Case, assert_close

from scisparse.kernels.gather_matmul import cuda, reference
from scisparse.kernels.gather_matmul.ops import GATHER_IMPLEMENTATIONS

COMPILER = shutil.which("g++") or shutil.which("clang++")
EMULATOR = Path(__file__).with_name("cuda_on_cpu.cpp")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

# Each compiles its own source, so not all types for all.
NARROW = [c for c in CASES if (c.channels_in, c.channels_out) in ((3, 4), (17, 33), (22, 8))]
RUNS = [(c, torch.float64) for c in CASES] + [
    (c, d) for c in NARROW[-2:] for d in TOLERANCE if d != torch.float64
]


@functools.cache
def library(macros: tuple[tuple[str, str], ...]) -> ctypes.CDLL:
    path = Path(tempfile.mkdtemp()) / "kernels.so"
    defined = [f"-D{name}={value}" for name, value in macros]
    command = [str(COMPILER), "-std=c++17", "-O1", "-shared", "-fPIC", "-Wno-unknown-pragmas"]
    source = f'-DCUDA_SOURCE="{cuda.SOURCE}"'
    subprocess.run([*command, source, *defined, str(EMULATOR), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


def run_on_cpu(call: cuda.Call, device: torch.device) -> None:
    """Stand in for `Call.run`: the same grid and arguments, thread after thread."""
    values: list[ctypes.c_void_p | ctypes.c_int | ctypes.c_longlong] = []
    for value in call.arguments:
        if isinstance(value, torch.Tensor):
            assert value.is_contiguous()
            values.append(ctypes.c_void_p(value.data_ptr()))
        elif isinstance(value, cuda.Small):
            values.append(ctypes.c_int(value))
        else:
            values.append(ctypes.c_longlong(value))
    pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
    blocks = -(-call.threads // cuda.THREADS)
    getattr(library(call.macros), f"run_{call.kernel}")(blocks, cuda.THREADS, pointers)


@pytest.fixture
def _emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.Call, "run", run_on_cpu)


@needs_compiler
@pytest.mark.usefixtures("_emulated")
@pytest.mark.parametrize(("case", "dtype"), RUNS, ids=str)
def test_results_equal_the_reference(case: Case, dtype: torch.dtype) -> None:
    x, weight, grad, edges = case.tensors(dtype)
    edges_t, count = case.transposed(edges), weight.shape[0]
    wide = [t.double() for t in (x, weight, grad)]
    a, w, g = wide
    for actual, function, arguments in (
        (cuda.gather_matmul(x, weight, *edges, False), "gather_matmul", (a, w, *edges, False)),
        (cuda.gather_matmul(grad, weight, *edges_t, True), "gather_matmul", (g, w, *edges_t, True)),
        (cuda.edge_outer(x, grad, *edges, count), "edge_outer", (a, g, *edges, count)),
    ):
        exact = getattr(reference, function)
        size = exact(*(v.abs() for v in arguments[:2]), *arguments[2:])
        assert_close(actual, exact(*arguments), size)


@needs_compiler
@pytest.mark.usefixtures("_emulated")
def test_indices_of_other_types_and_views_that_begin_anywhere() -> None:
    case = Case(3, 9, 8, 4, 8, weights=5)
    x, weight, _, edges = case.tensors(torch.float32)
    expected = cuda.gather_matmul(x, weight, *edges, False)
    assert edges.tie is not None
    for col, tie in ((edges.col.long(), edges.tie), (edges.col, edges.tie.long())):
        assert torch.equal(cuda.gather_matmul(x, weight, edges.row_ptr, col, tie, False), expected)
    shifted = torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)
    assert shifted.is_contiguous()
    assert shifted.data_ptr() % 16 == 4
    assert torch.equal(cuda.gather_matmul(shifted, weight, *edges, False), expected)


def test_threads_read_16_bytes_where_the_widths_allow_it() -> None:
    for channels, dtype, vector in (
        (8, torch.float32, 4),
        (8, torch.bfloat16, 8),
        (22, torch.float32, 2),
        (3, torch.float64, 1),
    ):
        x, weight, grad, edges = Case(2, 5, 6, channels, 16).tensors(dtype)
        macros = dict(cuda.gather_call(x, weight, *edges, grad, False).macros)
        assert int(macros["INPUTS"]) == vector
        assert int(macros["OUTPUTS"]) == 16 // x.element_size()


def test_refusals_name_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    assert "CUDA devices alone" in str(cuda.can_run(torch.device("cpu"), torch.float32))
    assert "torch.int32 is not one of" in str(cuda.can_run(gpu, torch.int32))
    monkeypatch.setattr(cuda, "is_installed", lambda: False)
    assert 'pip install "scisparse[cuda]"' in str(cuda.can_run(gpu, torch.float32))
    monkeypatch.setattr(cuda, "is_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert "compute capability 7.0; 8.0 or newer" in str(cuda.can_run(gpu, torch.float32))


def test_auto_never_reaches_it() -> None:
    names = [i.name for i in GATHER_IMPLEMENTATIONS]
    assert names.index("reference") < names.index("cuda")


def test_code_is_compiled_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    monkeypatch.setenv("SCISPARSE_CACHE_DIR", str(tmp_path / "kept"))
    x, weight, grad, edges = Case(2, 5, 6, 8, 8).tensors(torch.float32)
    macros = cuda.gather_call(x, weight, *edges, grad, False).macros
    code = cuda.compiled(macros, "sm_90")
    (kept,) = (tmp_path / "kept").iterdir()
    assert kept.read_bytes() == code
    kept.write_bytes(b"found again")
    assert cuda.compiled(macros, "sm_90") == b"found again"
    assert cuda.compiled(macros, "sm_80") not in (code, b"found again")


def test_nothing_of_cuda_is_imported_unless_used() -> None:
    code = """
import sys, torch
before = set(sys.modules)
import scisparse.kernels
print([m for m in set(sys.modules) - before if m.partition(".")[0] in ("cuda", "triton")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
