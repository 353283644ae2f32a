"""Rows that share most of their sources go through the C++ kernels of attention in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from attention_cases import Attention, assert_near, dense, leaves
from kernel_cases import COMPILED, INSTRUCTION_SETS, TOLERANCE, generator
from torch import Tensor

from scisparse.kernels import Edges, graph_attention
from scisparse.kernels.graph_attention import cpu


@dataclass(frozen=True)
class Shared(Attention):
    """Nearly all pairs are edges, so that blocks share sources, in both directions."""

    present: float = 0.97

    def tensors(
        self, dtype: torch.dtype = torch.float64, backend: str = "reference", seed: int = 0
    ) -> tuple[dict[str, Any], Edges, Tensor]:
        """As those of `Attention`, with other edges."""
        reads = torch.rand(self.sites, self.sources, generator=generator(7)) < self.present
        reads[5] = False  # a site without edges in the middle of a block
        row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), reads.sum(1).cumsum(0)])
        edges = Edges(row_ptr, reads.nonzero()[:, 1].to(torch.int32), None)
        tensors, _, grad = super().tensors(dtype, backend, seed)
        gen, count = generator(8), edges.col.numel()
        if self.edge_width:
            tensors["edge_attr"] = torch.randn(count, self.edge_width, generator=gen).to(dtype)
        if self.bias:
            full = {"b": self.batch, "e": count, "h": self.heads}
            sizes = [n if d in self.bias else 1 for d, n in full.items()]
            tensors["bias"] = torch.randn(*sizes, generator=gen).to(dtype)
        return tensors, edges, grad


CASES = [
    Shared(1, 87, 90, 1, 64),  # whole vectors; a last block of three rows
    Shared(2, 88, 91, 2, 19, value_width=37),  # widths with a tail, odd counts
    Shared(1, 85, 86, 4, 3, groups=2, edge_width=5, bias="beh"),  # less than a vector, all at once
    Shared(1, 85, 86, 6, 3, edge_width=19),  # more heads than go through a stage together
    Shared(1, 96, 80, 2, 8, present=0.8),  # few sources are shared by a block
]


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_all_gradients_equal_dense(
    case: Shared, dtype: torch.dtype, isa: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "_ISA_AUTO", isa)
    tensors, edges, grad = case.tensors(dtype)
    ours, truth = leaves(tensors), leaves({n: t.double() for n, t in tensors.items()})
    y = graph_attention(**ours, row_ptr=edges.row_ptr, col=edges.col, backend="cpu")
    expected = dense(truth, edges)
    assert_near(y, expected.detach(), dtype, "output")
    assert (y[:, 5] == 0).all()
    grads = torch.autograd.grad(y, list(ours.values()), grad)
    wanted = torch.autograd.grad(expected, list(truth.values()), grad.double())
    for name, actual, want in zip(ours, grads, wanted, strict=True):
        assert_near(actual, want, dtype, f"gradient of {name}")


@COMPILED
@pytest.mark.parametrize("name", ["k", "v"])
def test_a_nan_reaches_the_sites_that_read_it_and_no_other(name: str) -> None:
    tensors, edges, _ = CASES[0].tensors(torch.float32)
    site = torch.arange(CASES[0].sites).repeat_interleave(edges.row_ptr.diff())
    reads = torch.zeros(CASES[0].sites, dtype=torch.bool)
    reads[site[edges.col == 40]] = True
    assert 1 < int((~reads).sum()) < CASES[0].sites
    tensors[name][:, 40] = torch.nan
    y = graph_attention(**tensors, row_ptr=edges.row_ptr, col=edges.col, backend="cpu")
    assert torch.equal(y.isnan().any(3).any(2)[0], reads)


@COMPILED
def test_any_number_of_threads_gives_the_same_bits() -> None:
    tensors, edges, grad = CASES[1].tensors(torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            ours = leaves(tensors)
            y = graph_attention(**ours, row_ptr=edges.row_ptr, col=edges.col, backend="cpu")
            results.append([y.detach(), *torch.autograd.grad(y, list(ours.values()), grad)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
