"""Triton's largest and smallest products of rows and their choices, against the reference."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from kernel_cases import TRITON, device_of, generator
from product_cases import loop, near, problem
from torch import Tensor

from scisparse.kernels import Edges, spmm, transpose_edges
from scisparse.kernels._triton import Call
from scisparse.kernels.graph_attention import reference, triton, triton_product_calls

needs_triton = pytest.mark.parametrize("backend", [TRITON])

SHAPES = [
    (2, 7, 5, 2, 3, 4),  # odd widths
    (1, 6, 40, 1, 8, 30),  # several slots for each site
    (3, 9, 8, 3, 17, 5),  # heads that fill no tile
    (3, 9, 8, 2, 8, 0),  # no edge
    (2, 0, 8, 2, 8, 3),  # no site
    (2, 5, 0, 2, 8, 3),  # no source
    (2, 5, 7, 2, 0, 3),  # no width
]


@needs_triton
@pytest.mark.parametrize("shared", [False, True], ids=["given", "shared"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_extremes_and_their_gradients_equal_loops(
    shape: tuple[int, ...], dtype: torch.dtype, shared: bool, backend: str
) -> None:
    value, x, edges = problem(shape, dtype)
    value = value[:1].clone() if shared else value
    device = device_of(backend)
    places = (edges.row_ptr.to(device), edges.col.to(device))
    for reduce in ("max", "min"):
        inputs = [t.to(device).requires_grad_() for t in (value.clone(), x.clone())]
        wide = [t.detach().cpu().double().requires_grad_() for t in inputs]
        y = spmm(inputs[0], inputs[1], *places, reduce=reduce, backend=backend)
        expected = loop(wide[0], wide[1], edges, reduce) + sum(0 * t.sum() for t in wide)
        near(y.detach().cpu(), expected.detach())
        grad = torch.randn(y.shape, generator=generator(1)).to(dtype)
        actual = torch.autograd.grad(y, inputs, grad.to(device))
        exact = torch.autograd.grad(expected, wide, grad.double())
        for a, e in zip(actual, exact, strict=True):
            near(a.cpu(), e)


@needs_triton
@pytest.mark.parametrize("fan_in", [3, 70])
@pytest.mark.parametrize("smallest", [False, True], ids=["max", "min"])
def test_of_equal_and_not_finite_numbers_the_same_is_chosen(
    smallest: bool, fan_in: int, backend: str
) -> None:
    """Ties, NaN, infinities and rows of nothing but -infinity, in one slot and in many."""
    _, _, edges = problem((1, 40, 30, 1, 1, fan_in))
    gen, count = generator(4), edges.col.numel()
    some = torch.tensor([0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan])
    for kinds in (3, 5, 6, 1):
        x = some[torch.randint(kinds, (2, 30, 2, 5), generator=gen)]
        if kinds == 1:
            x = torch.full_like(x, -torch.inf)
        value = torch.ones(1, count, 2)
        expected = reference.spmm_extreme(value.expand(2, -1, -1), x, edges, smallest)
        device = device_of(backend)
        on = Edges(edges.row_ptr.to(device), edges.col.to(device), None)
        found = triton.spmm_extreme(value.to(device), x.to(device), on, smallest)
        torch.testing.assert_close(found[0].cpu(), expected[0], equal_nan=True, rtol=0, atol=0)
        assert torch.equal(found[1].cpu(), expected[1])


@needs_triton
def test_factors_of_edges_that_are_not_chosen_do_not_matter(backend: str) -> None:
    device = device_of(backend)
    row_ptr, col = torch.tensor([0, 3], device=device), torch.tensor([0, 1, 2], device=device)
    x = torch.tensor([3.0, 1.0, 2.0], device=device).view(1, 3, 1, 1).requires_grad_()
    value = torch.tensor([1.0, -torch.inf, 1.0], device=device).view(1, 3, 1)
    y = spmm(value, x, row_ptr, col, reduce="max", backend=backend)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert grad.flatten().tolist() == [1, 0, 0]


@needs_triton
def test_offsets_of_64_bits_give_the_same_bits(backend: str) -> None:
    value, x, edges = problem((2, 9, 8, 3, 17, 5), torch.float32)
    device = device_of(backend)
    value, x = value.to(device), x.to(device)
    edges = Edges(edges.row_ptr.to(device), edges.col.to(device), None)
    edges_t = transpose_edges(edges.row_ptr, edges.col, 8)
    y, choice = triton.spmm_extreme(value, x, edges, False)
    calls = triton_product_calls

    def made(out: list[Tensor]) -> list[Call]:
        def new(like: Tensor) -> Tensor:
            out.append(torch.zeros_like(like))
            return out[-1]

        return [
            calls.extreme_call(value, x, edges, False, (new(y), new(choice))),
            calls.spmm_call(value, y, edges_t, new(x), choice, edges.row_ptr),
            calls.sddmm_call(y, x, edges, new(value), choice),
        ]

    results: list[list[Tensor]] = []
    for wide in (False, True):
        results.append([])
        for call in made(results[-1]):
            assert call.constants["WIDE"] is False
            constants = call.constants | {"WIDE": wide}
            dataclasses.replace(call, constants=constants).run(x.device)
    for narrow, wide_ in zip(*results, strict=True):
        assert narrow.any()
        assert torch.equal(narrow, wide_)
