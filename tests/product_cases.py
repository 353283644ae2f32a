"""Random products over edges, loops over the rows as their truth, and the backends to run them."""

from __future__ import annotations

import itertools

import pytest
import torch
from kernel_cases import BEST, COMPILED, TOLERANCE, Case, generator
from torch import Tensor

from scisparse.kernels import Edges
from scisparse.kernels.graph_attention import cpu

BACKENDS = ["reference", pytest.param("cpu", marks=COMPILED)]
# C++ once for each instruction set that the machine has
KERNELS = ["reference", *(f"isa {isa}" for isa in range(1, BEST + 1))]


def choose(kernel: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have C++ run with the instruction set that `kernel` may name; the backend to call."""
    if not kernel.startswith("isa "):
        return kernel
    monkeypatch.setattr(cpu, "_ISA_AUTO", int(kernel.removeprefix("isa ")))
    return "cpu"


def problem(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Edges]:
    """Value, sources and edges."""
    batch, sites, sources, heads, width, fan_in = shape
    gen = generator()
    edges = Case(1, sites, sources, 1, 1, fan_in=fan_in).edges(gen)
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    value = torch.randn(batch, edges.col.numel(), heads, generator=gen).to(wide)
    return value, torch.randn(batch, sources, heads, width, generator=gen).to(dtype), edges


def loop(value: Tensor | None, x: Tensor, edges: Edges, reduce: str) -> Tensor:
    """Row after row, differentiable; without ties gradients are those of any rule."""
    bounds = edges.row_ptr.tolist()
    rows = []
    for first, last in itertools.pairwise(bounds):
        terms = x[:, edges.col[first:last].long()]
        if value is not None:
            terms = terms * value[:, first:last, :, None]
        if first == last:
            rows.append(x.new_zeros(x.shape[0], *x.shape[2:]))
        elif reduce in ("max", "min"):
            rows.append(getattr(terms, reduce)(1).values)
        else:
            rows.append(getattr(terms, reduce)(1))
    return torch.stack(rows, 1) if rows else x.new_zeros(x.shape[0], 0, *x.shape[2:])


def near(actual: Tensor, expected: Tensor) -> None:
    size = max(1.0, expected.abs().max().item() if expected.numel() else 1)
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs()
    assert not error.numel() or error.max().item() <= 20 * TOLERANCE[actual.dtype] * size
