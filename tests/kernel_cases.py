"""Random edges and the one tolerance table of the kernel tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from scisparse.kernels._native import load
from scisparse.kernels.gather_matmul import Edges, cuda, transpose_edges, triton

# Triton's kernels run on the GPU if there is one, else in its interpreter; CUDA's need one.
GPU = "cuda" if torch.cuda.is_available() else "cpu"
_NO_TRITON = triton.can_run(torch.device(GPU), torch.float32)
_NO_CUDA = cuda.can_run(torch.device(GPU), torch.float32)
_LIBRARY = load()
COMPILED = pytest.mark.skipif(isinstance(_LIBRARY, str), reason="no compiled kernels")
TRITON = pytest.param("triton", marks=pytest.mark.skipif(bool(_NO_TRITON), reason=str(_NO_TRITON)))
BACKENDS = [
    "reference",
    pytest.param("cpu", marks=COMPILED),
    TRITON,
    *([] if _NO_CUDA else ["cuda"]),  # test_cuda.py has what can be tested without a GPU
]

# What the C++ kernels are compiled for: baseline, AVX2, AVX-512.
BEST = 0 if isinstance(_LIBRARY, str) else _LIBRARY.scisparse_isa()
INSTRUCTION_SETS = [
    pytest.param(n, marks=pytest.mark.skipif(n > BEST, reason="not of this machine"))
    for n in (1, 2, 3)
]


PLAIN = [b for b in BACKENDS if b != "cuda"]  # of attention and its products: CUDA C++ has none


def pairs(
    values: Iterable[Any], slow: Container[Any] = (), backends: Sequence[Any] = PLAIN
) -> list[Any]:
    """Each of `values` with each backend; but for `slow` ones in Triton's interpreter."""
    return [
        pytest.param(value, *getattr(b, "values", (b,)), marks=getattr(b, "marks", ()))
        for value in values
        for b in backends
        if GPU == "cuda" or value not in slow or b is not TRITON
    ]


def device_of(backend: str) -> str:
    return GPU if backend in ("cuda", "triton") else "cpu"


# Relative to the largest term of a sum; never loosened in one test. SCISPARSE_TEST_SEED tells noise
# from a fault.
TOLERANCE = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.bfloat16: 8e-3,
    torch.float16: 1e-3,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed + int(os.environ.get("SCISPARSE_TEST_SEED", "0")))


@dataclass(frozen=True)
class Case:
    """One shape; the comment beside each entry of `CASES` names the branch it is there for."""

    batch: int
    sites: int
    sources: int
    channels_in: int
    channels_out: int
    fan_in: int = 4
    weights: int | None = None  # None: one weight an edge

    def edges(self, gen: torch.Generator, index: torch.dtype = torch.int32) -> Edges:
        """Rows of random length from 0 to twice `fan_in`, no source twice in a row."""
        fan_in = torch.randint(0, 2 * self.fan_in + 1, (self.sites,), generator=gen)
        fan_in.clamp_(max=self.sources)
        rows = [
            torch.randperm(self.sources, generator=gen)[:n].sort().values for n in fan_in.tolist()
        ]
        col = torch.cat([torch.empty(0, dtype=torch.int64), *rows]).to(index)
        row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), fan_in.cumsum(0)])
        tie = None
        if self.weights is not None:
            tie = torch.randint(0, max(self.weights, 1), (col.numel(),), generator=gen).to(index)
        return Edges(row_ptr, col, tie)

    def num_weights(self, edges: Edges) -> int:
        return edges.col.numel() if self.weights is None else self.weights

    def transposed(self, edges: Edges) -> Edges:
        return transpose_edges(edges.row_ptr, edges.col, self.sources, edges.tie)

    def tensors(
        self,
        dtype: torch.dtype = torch.float64,
        index: torch.dtype = torch.int32,
        seed: int = 0,
        backend: str = "reference",
    ) -> tuple[Tensor, Tensor, Tensor, Edges]:
        """Random `x`, `weight`, `grad` and edges, on the device of `backend`."""
        gen, device = generator(seed), device_of(backend)
        edges = self.edges(gen, index)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=gen).to(device, dtype)

        return (
            random(self.batch, self.sources, self.channels_in),
            random(self.num_weights(edges), self.channels_in, self.channels_out),
            random(self.batch, self.sites, self.channels_out),
            edges.to(device),
        )


CASES = [
    Case(2, 5, 7, 3, 4),  # odd widths
    Case(1, 1, 1, 1, 1, fan_in=1),  # one of everything
    Case(3, 50, 40, 1, 1),  # scalar edges, ragged rows
    Case(1, 20, 300, 1, 1, fan_in=70),  # long scalar rows: condensed linear
    Case(16, 40, 40, 1, 1),  # scalar edges, many batches
    Case(2, 30, 30, 8, 1),  # one channel out
    Case(9, 20, 12, 5, 1, fan_in=6),  # one channel out, sources that follow each other
    Case(2, 30, 30, 1, 8),  # one channel in
    Case(8, 33, 29, 4, 4),  # a block is one 512-bit vector
    Case(5, 9, 8, 16, 16),  # one vector of channels out
    Case(9, 5, 6, 17, 33),  # past a vector, with a tail
    Case(3, 11, 13, 22, 8),  # half a vector of channels out
    Case(2, 12, 9, 5, 2),  # two channels out, odd channels in
    Case(40, 3, 4, 7, 20, fan_in=2),  # more batches than registers
    Case(4, 30, 30, 3, 5, weights=6),  # tied
    Case(4, 30, 30, 1, 1, weights=3),  # tied scalars
    Case(2, 200, 200, 16, 16, weights=2),  # few ties, many edges
    Case(2, 9, 9, 4, 4, weights=200),  # most weights have no edge
    Case(2, 6, 7, 3, 4, fan_in=0),  # no edge at all
    Case(0, 6, 7, 3, 4),  # empty batch
    Case(2, 0, 7, 3, 4),  # no site
    Case(2, 6, 7, 0, 4),  # no channel in
    Case(2, 6, 7, 3, 0),  # no channel out
]


def assert_close(actual: Tensor, expected: Tensor, magnitude: Tensor) -> None:
    """Compare with a float64 truth; the bound scales with the sum of absolute terms."""
    bound = TOLERANCE[actual.dtype] * magnitude.abs() + 1e-30
    error = (actual.detach().cpu().double() - expected).abs()
    assert actual.shape == expected.shape
    worst = (error / bound).max().item() if error.numel() else 0.0
    assert worst <= 1, f"error is {worst:.2f} times the tolerance for {actual.dtype}"


def assert_same_bits_from_any_number_of_threads(run: Callable[[], Iterable[Tensor]]) -> None:
    """And from runs with the same number."""
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 2, 3):
            torch.set_num_threads(n)
            results.append(run())
    finally:
        torch.set_num_threads(threads)
    first, *others = results
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
