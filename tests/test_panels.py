"""Single numbers on edges whose sources are scattered: panels of the batch in the C++ kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from kernel_cases import COMPILED, INSTRUCTION_SETS, TOLERANCE, assert_close, generator
from torch import Tensor

from scisparse.kernels.gather_matmul import Edges, cpu, transpose_edges

pytestmark = COMPILED
DTYPES = list(TOLERANCE)

# Sites, sources, edges of the longest row. Rows are random in length, the second is empty.
SHAPES = {
    "whole tiles": (64, 64, 20),
    "odd numbers": (37, 71, 13),
    "less than a vector of either": (3, 5, 4),
    "one source": (19, 1, 1),
    "one site": (1, 90, 90),
    "short rows": (133, 40, 3),
    "rows longer than a block": (6, 3000, 2900),
}
BATCHES = (1, 2, 3, 4, 7, 8, 9, 16, 33, 70)


def random_edges(sites: int, sources: int, longest: int, index: torch.dtype) -> Edges:
    """Rows of random sources; the last is as long as it may be."""
    gen = generator()
    count = torch.randint(0, longest + 1, (sites,), generator=gen)
    count[1:2], count[-1] = 0, longest
    rows = [torch.randperm(sources, generator=gen)[:n].sort().values for n in count.tolist()]
    row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), count.cumsum(0)])
    return Edges(row_ptr, torch.cat(rows).to(index), None)


def random(*shape: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Numbers of either sign that are not so small that float16 rounds their products coarsely."""
    gen = generator(seed)
    sign = torch.randint(0, 2, shape, generator=gen) * 2 - 1
    return (sign * (0.5 + torch.rand(*shape, generator=gen))).to(dtype)


def matrix(weight: Tensor, edges: Edges, sources: int) -> Tensor:
    """Dense float64 ``[M, N]`` of all edges."""
    site = torch.arange(edges.row_ptr.numel() - 1).repeat_interleave(edges.row_ptr.diff())
    values = weight.flatten().double()
    if edges.tie is not None:
        values = values[edges.tie.long()]
    dense = torch.zeros(edges.row_ptr.numel() - 1, sources, dtype=torch.float64)
    return dense.index_put_((site, edges.col.long()), values, accumulate=True)


def check_all(
    edges: Edges, sources: int, batch: int, dtype: torch.dtype, edges_t: Edges | None = None
) -> None:
    """Output and both gradients, each as the kernel that makes it, against dense float64."""
    sites, count = edges.row_ptr.numel() - 1, edges.col.numel()
    edges_t = edges_t or transpose_edges(edges.row_ptr, edges.col, sources)
    x = random(batch, sources, 1, dtype=dtype, seed=1)
    weight = random(count, 1, 1, dtype=dtype, seed=2)
    grad = random(batch, sites, 1, dtype=dtype, seed=3)
    dense = matrix(weight, edges, sources)
    xs, grads = x[..., 0].double(), grad[..., 0].double()
    y = cpu.gather_matmul(x, weight, *edges, False)
    assert_close(y[..., 0], xs @ dense.T, xs.abs() @ dense.abs().T)
    grad_x = cpu.gather_matmul(grad, weight, *edges_t, True)
    assert_close(grad_x[..., 0], grads @ dense, grads.abs() @ dense.abs())
    grad_weight = cpu.edge_outer(x, grad, *edges, count)
    site = torch.arange(sites).repeat_interleave(edges.row_ptr.diff())
    read, written = xs[:, edges.col.long()], grads[:, site]
    size = (read * written).abs().sum(0)
    assert_close(grad_weight.flatten(), (read * written).sum(0), size)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_batch_equals_dense(
    shape: str, dtype: torch.dtype, isa: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_ISA_AUTO", isa)
    sites, sources, longest = SHAPES[shape]
    edges = random_edges(sites, sources, longest, torch.int32)
    for batch in BATCHES:
        check_all(edges, sources, batch, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_indices_equal_dense(dtype: torch.dtype) -> None:
    edges = random_edges(40, 50, 9, torch.int64)
    edges_t = transpose_edges(edges.row_ptr, edges.col, 50)
    assert edges_t.tie is not None
    check_all(edges, 50, 33, dtype, edges_t._replace(tie=edges_t.tie.long()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [9, 70])  # weights are read once, and brought into order before
def test_few_weights_shared_by_many_edges(batch: int, dtype: torch.dtype) -> None:
    row_ptr, col, _ = random_edges(50, 60, 15, torch.int32)
    tie = torch.randint(0, 3, (col.numel(),), generator=generator(), dtype=torch.int32)
    x = random(batch, 60, 1, dtype=dtype, seed=1)
    weight = random(3, 1, 1, dtype=dtype, seed=2)
    dense, sizes = (matrix(w, Edges(row_ptr, col, tie), 60) for w in (weight, weight.abs()))
    y = cpu.gather_matmul(x, weight, row_ptr, col, tie, False)
    xs = x[..., 0].double()
    assert_close(y[..., 0], xs @ dense.T, xs.abs() @ sizes.T)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mixed", [0, 10, 40, 160])  # sites of 200 that read scattered sources
def test_runs_of_sources_beside_scattered_ones(
    mixed: int, dtype: torch.dtype, isa: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neighbouring sites that read neighbouring sources have a way of their own."""
    monkeypatch.setattr(cpu, "_ISA_AUTO", isa)
    sites, sources, fan_in = 200, 210, 5
    rows = torch.arange(sites)[:, None] + torch.tensor([0, 1, 4, 5, 9])
    gen = generator()
    for site in range(60, 60 + min(mixed, sites - 60)):
        rows[site] = torch.randperm(sources, generator=gen)[:fan_in].sort().values
    edges = Edges(torch.arange(sites + 1) * fan_in, rows.flatten().to(torch.int32), None)
    for batch in (1, 2, 5, 16, 19):
        check_all(edges, sources, batch, dtype)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_long_runs_of_sources(
    tied: bool, dtype: torch.dtype, isa: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than a block of them holds; their fan-in changes, and a few sites interrupt them."""
    monkeypatch.setattr(cpu, "_ISA_AUTO", isa)
    taps = torch.tensor([0, 1, 5, 8, 9, 11, 12, 13, 17])
    rows = [site + taps[: 9 if site < 4000 else 4] for site in range(5000)]
    rows[700], rows[701], rows[4321] = taps[:0], taps[:2], taps + 1000
    count = torch.tensor([len(row) for row in rows])
    row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), count.cumsum(0)])
    col, edges = torch.cat(rows), int(row_ptr[-1])
    tie = torch.randint(0, 50, (edges,), generator=generator()) if tied else torch.arange(edges)
    weight = random(50 if tied else edges, 1, 1, dtype=dtype, seed=2)
    site = torch.arange(5000).repeat_interleave(count)
    for batch in (1, 4, 11):
        x = random(batch, 5020, 1, dtype=dtype, seed=1)
        terms = x[:, col, 0].double() * weight[tie, 0, 0].double()
        truth, size = (
            torch.zeros(batch, 5000, dtype=torch.float64).index_add_(1, site, part)
            for part in (terms, terms.abs())
        )
        index = tie.to(torch.int32) if tied else None
        y = cpu.gather_matmul(x, weight, row_ptr, col.to(torch.int32), index, False)
        assert_close(y[..., 0], truth, size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("batch", [1, 9, 33, 150])  # shared panels, and whole ones beside shared
def test_thread_counts_give_the_same_bits(batch: int, dtype: torch.dtype) -> None:
    sites, sources = 700, 300  # work for more than one thread in every batch
    edges = random_edges(sites, sources, 150, torch.int32)
    edges_t = transpose_edges(edges.row_ptr, edges.col, sources)
    x = random(batch, sources, 1, dtype=dtype, seed=1)
    weight = random(edges.col.numel(), 1, 1, dtype=dtype, seed=2)
    grad = random(batch, sites, 1, dtype=dtype, seed=3)

    def run(count: int) -> list[Tensor]:
        with threads(count):
            return [
                cpu.gather_matmul(x, weight, *edges, False),
                cpu.gather_matmul(grad, weight, *edges_t, True),
                cpu.edge_outer(x, grad, *edges, edges.col.numel()),
            ]

    first = run(1)
    for count in (2, 3, 8):
        assert all(torch.equal(a, b) for a, b in zip(first, run(count), strict=True))


def test_an_entry_of_the_batch_has_the_same_bits_in_every_batch() -> None:
    edges = random_edges(50, 60, 25, torch.int32)
    x = random(70, 60, 1, dtype=torch.float32, seed=1)
    weight = random(edges.col.numel(), 1, 1, dtype=torch.float32, seed=2)
    whole = cpu.gather_matmul(x, weight, *edges, False)
    for batch in (2, 9, 33):
        assert torch.equal(cpu.gather_matmul(x[:batch], weight, *edges, False), whole[:batch])


def test_infinite_and_missing_values_stay_where_they_belong() -> None:
    """Lanes beyond the batch are 0 and multiplied by every weight."""
    row_ptr, col = torch.tensor([0, 2, 3, 3, 4]), torch.tensor([0, 2, 1, 0], dtype=torch.int32)
    x = torch.ones(9, 3, 1)
    x[4, 2] = torch.nan
    weight = torch.tensor([1.0, 2.0, torch.inf, 4.0]).view(-1, 1, 1)
    y = cpu.gather_matmul(x, weight, row_ptr, col, None, False)[..., 0]
    expected = torch.tensor([3.0, torch.inf, 0.0, 4.0]).repeat(9, 1)
    expected[4, 0] = torch.nan
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())
    d = cpu.edge_outer(x, torch.ones(9, 4, 1), row_ptr, col, None, 4).flatten()
    assert d.isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("sources", [600_000, 1_200_000])  # panels one at a time, and none
def test_very_many_sources(sources: int) -> None:
    """Few of them are read, so that the truth needs no matrix of all."""
    sites, fan_in, batch = 40, sources // 40, 20
    gen = generator()
    col = torch.randperm(sources, generator=gen)[: sites * fan_in].view(sites, fan_in)
    col = col.sort(1).values.flatten().to(torch.int32)
    row_ptr = torch.arange(sites + 1) * fan_in
    x = random(batch, sources, 1, dtype=torch.float32, seed=1)
    weight = random(col.numel(), 1, 1, dtype=torch.float32, seed=2)
    grad = random(batch, sites, 1, dtype=torch.float32, seed=3)
    terms = x[..., 0][:, col.long()].double() * weight.flatten().double()
    y = cpu.gather_matmul(x, weight, row_ptr, col, None, False)
    assert_close(
        y[..., 0],
        terms.view(batch, sites, fan_in).sum(2),
        terms.abs().view(batch, sites, fan_in).sum(2),
    )
    d = cpu.edge_outer(x, grad, row_ptr, col, None, col.numel())
    products = x[..., 0][:, col.long()].double() * grad[..., 0].double().repeat_interleave(
        fan_in, 1
    )
    assert_close(d.flatten(), products.sum(0), products.abs().sum(0))
