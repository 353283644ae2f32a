"""Triton kernels beyond what every backend is tested for: each plan, offsets, refusals."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from random import Random

import pytest
import torch
from kernel_cases import GPU, Case, assert_close

from scisparse.kernels import _triton
from scisparse.kernels._segments import site_of_edge
from scisparse.kernels.gather_matmul import plans, reference, triton
from scisparse.kernels.gather_matmul.ops import GATHER_IMPLEMENTATIONS

_CANNOT = triton.can_run(torch.device(GPU), torch.float32)
needs_triton = pytest.mark.skipif(bool(_CANNOT), reason=str(_CANNOT))

# The plan of the forward pass of each case, and of its backward pass.
PLANS = [
    (Case(2, 40, 40, 1, 1), torch.float32, "singles", "singles"),
    (Case(5, 6, 300, 1, 1, fan_in=60), torch.float32, "vectors", "singles"),
    (Case(5, 6, 300, 1, 1, fan_in=60, weights=7), torch.float32, "vectors", "singles"),
    (Case(3, 30, 20, 8, 1), torch.bfloat16, "vectors", "tiles"),
    (Case(3, 30, 20, 8, 1, weights=5), torch.float32, "vectors", "tiles"),
    (Case(5, 9, 7, 12, 20), torch.float32, "tiles", "tiles"),
    (Case(9, 7, 9, 16, 16, fan_in=9), torch.bfloat16, "dots", "dots"),
    (Case(9, 3, 4, 40, 70, fan_in=2), torch.float16, "dots", "dots"),  # outputs in two blocks
    (Case(40, 3, 4, 32, 32, fan_in=2), torch.float32, "dots", "dots"),  # batches in two groups
    (Case(17, 5, 9, 20, 24, fan_in=2, weights=3), torch.bfloat16, "dots", "dots"),
]


@needs_triton
@pytest.mark.parametrize(("case", "dtype", "forward", "backward"), PLANS, ids=str)
def test_every_plan_equals_the_reference(
    case: Case, dtype: torch.dtype, forward: str, backward: str
) -> None:
    x, weight, grad, edges = case.tensors(dtype, backend="triton")
    edges_t = case.transposed(edges)
    for source, target, side, name, transposed in (
        (x, grad, edges, forward, False),
        (grad, x, edges_t, backward, True),
    ):
        y = torch.empty_like(target)
        call = triton.gather_call(source, weight, *side, y, transposed)
        assert call.kernel == f"gather_{name}"
        actual = triton.gather_matmul(source, weight, *side, transposed)
        v, w = source.cpu().double(), weight.cpu().double()
        rest = (*side.to("cpu"), transposed)
        expected = reference.gather_matmul(v, w, *rest)
        assert_close(actual, expected, reference.gather_matmul(v.abs(), w.abs(), *rest))


@needs_triton
@pytest.mark.parametrize("name", ["gather", "outer", "ties"])
def test_offsets_of_64_bits_give_the_same_bits(name: str) -> None:
    case = Case(3, 20, 15, 3, 5, weights=4)
    x, weight, grad, (row_ptr, col, tie) = case.tensors(torch.float32, backend="triton")
    assert tie is not None

    def run(wide: bool) -> torch.Tensor:
        if name == "gather":
            out = torch.empty_like(grad)
            call = triton.gather_call(x, weight, row_ptr, col, tie, out, False)
        elif name == "outer":
            out = x.new_empty(len(col), 3, 5)
            call = triton.outer_call(x, grad, row_ptr, col, out)
        else:
            bounds = row_ptr[[0, 5, 9, 12, -1]]  # any four runs of edges
            site = site_of_edge(row_ptr, len(col)).to(col.dtype)
            call, out = triton.ties_call(x, grad, bounds, col, site, weight)
        assert call.constants["WIDE"] is False
        dataclasses.replace(call, constants=call.constants | {"WIDE": wide}).run(x.device)
        return out

    assert torch.equal(run(wide=False), run(wide=True))


@needs_triton
def test_a_tie_of_many_edges_is_summed_in_parts() -> None:
    case = Case(2, 900, 50, 2, 3, weights=1)
    x, _, grad, edges = case.tensors(torch.float32, backend="triton")
    shape = plans.Shape(batch=2, channels_in=2, channels_out=3, fan_in=4, itemsize=4)
    assert plans.plan_ties(shape, len(edges.col), 1).parts > 1
    actual = triton.edge_outer(x, grad, *edges, 1)
    v, g, rest = x.cpu().double(), grad.cpu().double(), (*edges.to("cpu"), 1)
    expected = reference.edge_outer(v, g, *rest)
    assert_close(actual, expected, reference.edge_outer(v.abs(), g.abs(), *rest))


def random_shapes(count: int) -> list[plans.Shape]:
    random = Random(0)
    return [
        plans.Shape(
            batch=random.randint(1, 200),
            channels_in=random.choice([1, 2, 8, random.randint(1, 300)]),
            channels_out=random.choice([1, 2, 8, random.randint(1, 300)]),
            fan_in=10 ** random.uniform(-2, 3),
            itemsize=random.choice([2, 4, 8]),
            transposed=random.random() < 0.5,
        )
        for _ in range(count)
    ]


def test_tiles_are_powers_of_two_within_what_the_kernels_can_do() -> None:
    for shape in random_shapes(300):
        check_plans(shape)


def check_plans(shape: plans.Shape) -> None:
    gather, outer = plans.plan_gather(shape), plans.plan_outer(shape)
    ties = plans.plan_ties(shape, 10_000, 9)
    for plan in (gather, outer, ties):
        for field in dataclasses.fields(plan):
            value = getattr(plan, field.name)
            if field.name not in ("kernel", "parts"):
                assert value & (value - 1) == 0, field.name
                assert 1 <= value <= 4096
    if gather.kernel == "tiles":  # more numbers of rows would go through shared memory
        assert gather.sites == 1 or gather.sites * gather.rows < 32 * gather.warps
    if gather.kernel == "dots":  # what tensor cores take
        assert min(gather.rows, gather.outputs, gather.batches) >= 16
    assert 1 <= ties.parts <= 4096


def test_refusals_name_the_reason() -> None:
    cpu = torch.device("cpu")
    assert triton.can_run(cpu, torch.int32) == (
        "torch.int32 is not one of float64, float32, bfloat16, float16"
    )
    assert "CUDA devices alone" in str(triton.can_run(torch.device("meta"), torch.float32))
    code = """
import os, sys
os.environ.pop("TRITON_INTERPRET", None)
if sys.argv[1] == "missing":
    sys.modules["triton"] = None
import torch
from scisparse.kernels import gather_matmul
one = torch.ones(1, 1, 1)
try:
    gather_matmul(one, one, torch.tensor([0, 1]), torch.tensor([0]), backend="triton")
except Exception as error:
    print(type(error).__name__, error)
"""
    for state in ("missing", "there"):
        done = subprocess.run(
            [sys.executable, "-c", code, state], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("BackendError gather_matmul: backend 'triton' cannot run")
        assert "CUDA devices alone" in done.stdout


def test_an_old_gpu_and_a_missing_triton_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(_triton, "_is_installed", lambda: False)
    assert "pip install" in str(triton.can_run(cuda, torch.float32))
    monkeypatch.setattr(_triton, "_is_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 7.5; 8.0 or newer" in str(triton.can_run(cuda, torch.float32))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert triton.can_run(cuda, torch.float32) is None


def test_auto_takes_triton_for_a_gpu_and_never_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_triton, "_is_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    gpu = torch.device("cuda", 0)
    able = [i.name for i in GATHER_IMPLEMENTATIONS if i.can_run(gpu, torch.float32) is None]
    assert able[:2] == ["triton", "reference"]
    names = [i.name for i in GATHER_IMPLEMENTATIONS]
    assert names.index("cpu") < names.index("triton") < names.index("reference")
