"""Debug mode sees every index that breaks the contract, on every backend, and changes no result."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from kernel_cases import BACKENDS, Case
from torch import Tensor

from scisparse.errors import PatternError
from scisparse.kernels import debug_mode, edge_outer, gather_matmul, use_backend
from scisparse.kernels._debug import is_debugging
from scisparse.kernels.gather_matmul import Edges

CASE = Case(2, 6, 7, 3, 4, weights=5)
ROW_PTR = torch.tensor([0, 2, 2, 5, 6, 8, 9])
COL = torch.tensor([1, 4, 0, 2, 6, 3, 1, 5, 2], dtype=torch.int32)
TIE = torch.tensor([4, 0, 1, 1, 2, 3, 3, 0, 2], dtype=torch.int32)


def changed(values: Tensor, place: int, value: int) -> Tensor:
    values = values.clone()
    values[place] = value
    return values


FAULTS = [
    (Edges(ROW_PTR, changed(COL, 4, 7), TIE), r"`col` \(=7 at edge 4\) .* below 7 sources$"),
    (Edges(ROW_PTR, changed(COL, 4, -2), TIE), r"`col` \(=-2 at edge 4\) .* passed 32 bits\?"),
    (Edges(ROW_PTR, COL, changed(TIE, 8, 5)), r"`tie` \(=5 at edge 8\) .* below 5 weights$"),
    (Edges(changed(ROW_PTR, 2, 6), COL, TIE), r"`row_ptr` must never fall: row 2 goes from 6 to 5"),
    (Edges(ROW_PTR, changed(COL, 3, 0), TIE), None),  # one source twice is allowed
    (Edges(ROW_PTR, changed(COL, 2, 3), TIE), r"`col` falls from 3 to 2 inside the row of edge 2"),
    (Edges(changed(ROW_PTR, 6, 8), COL, TIE), r"runs from 0 to 8; .* number of edges, 9"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("edges", "message"), FAULTS)
def test_faults_are_named(edges: Edges, message: str | None, backend: str) -> None:
    x, weight, grad, _ = CASE.tensors(backend=backend)
    edges = edges.to(x.device)
    with debug_mode(), use_backend(backend):
        if message is None:
            gather_matmul(x, weight, *edges)
            return
        with pytest.raises(PatternError, match=message):
            gather_matmul(x, weight, *edges)
        with pytest.raises(PatternError, match=message):
            edge_outer(x, grad, *edges, num_weights=5)


@pytest.mark.parametrize("weights", [None, 5])
@pytest.mark.parametrize("given", [False, True])
def test_sound_edges_pass_forward_and_backward_with_the_same_bits(
    weights: int | None, given: bool
) -> None:
    case = Case(2, 6, 7, 3, 4, weights=weights)
    x, weight, grad, edges = case.tensors()
    transpose = case.transposed(edges) if given else None
    results = []
    for enabled in (False, True):
        with debug_mode(enabled):
            assert is_debugging() is enabled
            a, b = x.clone().requires_grad_(), weight.clone().requires_grad_()
            y = gather_matmul(a, b, *edges, transpose=transpose)
            first = torch.autograd.grad(y, (a, b), grad, create_graph=True)
            second = torch.autograd.grad(first[0].square().sum() + first[1].sum(), (a, b))
            results.append([y, *first, *second])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert not is_debugging()


def test_a_transpose_of_other_edges_is_seen() -> None:
    case = Case(2, 6, 7, 3, 4, weights=5)
    x, weight, _, edges = case.tensors()
    other = case.transposed(edges)
    other = other._replace(col=other.col.flip(0))  # as many, of other sites
    gather_matmul(x, weight, *edges, transpose=other)  # trusted outside
    with debug_mode(), pytest.raises(PatternError, match="not the transpose of the edges"):
        gather_matmul(x, weight, *edges, transpose=other)


@pytest.mark.parametrize(("value", "on"), [("1", True), ("0", False), ("", False)])
def test_the_environment_turns_it_on(value: str, on: bool) -> None:
    script = "from scisparse.kernels._debug import is_debugging; print(is_debugging())"
    environment = os.environ | {"SCISPARSE_DEBUG": value}
    run = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == str(on)
