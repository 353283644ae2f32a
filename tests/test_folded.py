"""Narrow blocks of weights: lanes over inputs and outputs at once, or along their only row."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import INSTRUCTION_SETS, TOLERANCE, Case, assert_close
from torch import Tensor

from scisparse.kernels.gather_matmul import Edges, cpu, reference

REALS = [torch.float32, torch.float64]
# Fewer than a tile, tiles of every size with and without a rest, and more than fill a vector.
BATCHES = [1, 2, 4, 5, 8, 11, 16, 17]
# The narrow side (2, 4 or 8 fold, according to the vector) and the other, which may leave a rest.
WIDTHS = [(2, 3), (2, 16), (4, 2), (4, 7), (8, 1), (8, 9), (8, 22)]

# Channels in and out: rows that end inside a quarter, a half or a whole vector, or behind it.
VECTORS = [(1, 2), (1, 3), (1, 8), (1, 35), (2, 1), (3, 1), (4, 1), (5, 1), (16, 1), (40, 1)]


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", REALS, ids=str)
@pytest.mark.parametrize("weights", [None, 5])
@pytest.mark.parametrize("fan_in", [3, 80])  # 80: longer than a piece of 64 edges
def test_every_width_and_batch(
    fan_in: int, weights: int | None, dtype: torch.dtype, isa: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_ISA_AUTO", isa)
    for narrow, wide in WIDTHS:
        for batch in BATCHES:
            sources = 150 if fan_in > 64 else 9
            case = Case(batch, 7, sources, wide, narrow, fan_in, weights)
            x, weight, grad, edges = case.tensors(dtype, seed=batch)
            check(x, weight, edges, False)
            check(grad, weight, case.transposed(edges), True)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("weights", [None, 5])
def test_vectors_of_every_type(
    weights: int | None, dtype: torch.dtype, isa: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One input or one output: rows that end inside a vector, at its end and behind it."""
    monkeypatch.setattr(cpu, "_ISA_AUTO", isa)
    for channels_in, channels_out in VECTORS:
        for batch in (1, 5, 9):
            case = Case(batch, 19, 12, channels_in, channels_out, 5, weights)
            x, weight, grad, edges = case.tensors(dtype, seed=batch)
            check(x, weight, edges, False)
            check(grad, weight, case.transposed(edges), True)


def check(x: Tensor, weight: Tensor, edges: Edges, transposed: bool) -> None:
    """The product, or the gradient of its input, against the reference in float64."""
    y = cpu.gather_matmul(x, weight, *edges, transposed)
    expected = reference.gather_matmul(x.double(), weight.double(), *edges, transposed)
    size = reference.gather_matmul(x.double().abs(), weight.double().abs(), *edges, transposed)
    assert_close(y, expected, size)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("narrow", [2, 4, 8])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_with_its_readers(
    bad: float, narrow: int, isa: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors reach beyond the last input of a source, where the next source begins."""
    monkeypatch.setattr(cpu, "_ISA_AUTO", isa)
    case = Case(8, 40, 30, 5, narrow, fan_in=3)
    x, weight, grad, edges = case.tensors(torch.float32)
    for values, pattern, transposed in ((x, edges, False), (grad, case.transposed(edges), True)):
        values[3, 7] = bad
        y = cpu.gather_matmul(values, weight, *pattern, transposed)
        site = torch.repeat_interleave(pattern.row_ptr.diff())
        reads = torch.zeros(y.shape[1], dtype=torch.bool)
        reads[site[pattern.col == 7]] = True
        expected = torch.zeros(y.shape, dtype=torch.bool)
        expected[3, reads] = True
        assert reads.any()
        assert not reads.all()
        assert torch.equal(~y.isfinite(), expected)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_outputs_larger_than_the_caches(isa: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are written past the caches, in vectors of several sites, which may begin anywhere."""
    monkeypatch.setattr(cpu, "_ISA_AUTO", isa)
    sites = 70_001  # 17.9 MB
    row_ptr, col = torch.arange(sites + 1), (torch.arange(sites) % 5).to(torch.int32)
    x, weight = torch.randn(8, 5, 3), torch.randn(sites, 3, 8)
    y = cpu.gather_matmul(x, weight, row_ptr, col, None, False)
    expected = torch.einsum("bmc,mco->bmo", x[:, col.long()].double(), weight.double())
    size = torch.einsum("bmc,mco->bmo", x[:, col.long()].double().abs(), weight.double().abs())
    assert_close(y, expected, size)
