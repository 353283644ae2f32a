"""`torch.func` on the two operators, against loops; derivatives are in `test_gather_matmul.py`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from kernel_cases import BACKENDS, Case, pairs
from torch import Tensor

from scisparse.errors import ShapeError
from scisparse.kernels import edge_outer, gather_matmul
from scisparse.kernels._edges import side_by_side
from scisparse.kernels.gather_matmul import Edges
from scisparse.kernels.gather_matmul.calculus import run_edge_outer, run_gather_matmul

COPIES = 3


class Mapping(NamedTuple):
    """What is mapped over: dimensions of both tensors, tied weights or not, transpose or not."""

    dims: tuple[int | None, int | None]
    weights: int | None
    transpose_given: bool


DIMS = [(0, None), (None, 0), (0, 0), (2, 1), (1, 3)]
MAPPINGS = [Mapping(*each) for each in itertools.product(DIMS, [None, 4], [False, True])]
# Left out of Triton's interpreter, as copies are prepared by code that all backends share.
SLOW = [m for m in MAPPINGS if m.dims in DIMS[2:4] or m.transpose_given != (m.weights is None)]


def looped(call: Callable[[Tensor, Tensor], Tensor], dims: tuple[int | None, int | None]):  # type: ignore[no-untyped-def]
    """What ``torch.func.vmap`` must equal."""

    def run(*tensors: Tensor) -> Tensor:
        parts = []
        for k in range(COPIES):
            each = [t if d is None else t.select(d, k) for t, d in zip(tensors, dims, strict=True)]
            parts.append(call(*each))
        return torch.stack(parts)

    return run


def mapped(tensor: Tensor, dim: int | None) -> Tensor:
    """Copies that differ, along `dim`."""
    if dim is None:
        return tensor
    return torch.stack([(k + 1) * tensor + k for k in range(COPIES)], dim)


@pytest.mark.parametrize(("mapping", "backend"), pairs(MAPPINGS, SLOW, BACKENDS), ids=str)
def test_vmap_equals_a_loop_with_gradients(mapping: Mapping, backend: str) -> None:
    dims, weights, given = mapping
    case = Case(2, 5, 7, 3, 4, weights=weights)
    x, weight, grad, edges = case.tensors(backend=backend)
    edges_t = case.transposed(edges)
    other = edges_t if given else None
    number = weight.shape[0]
    calls = [
        (lambda a, b: run_gather_matmul(a, b, edges, other, False, backend), x, weight),
        (
            lambda a, b: run_gather_matmul(a, b, edges_t, edges if given else None, True, backend),
            grad,
            weight,
        ),
        (lambda a, b: run_edge_outer(a, b, edges, other, number, backend), x, grad),
    ]
    for call, first, second in calls:
        tensors = [
            mapped(t, d).requires_grad_() for t, d in zip((first, second), dims, strict=True)
        ]
        actual = torch.func.vmap(call, in_dims=dims)(*tensors)
        expected = looped(call, dims)(*tensors)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            torch.autograd.grad(actual.square().sum(), tensors),
            torch.autograd.grad(expected.square().sum(), tensors),
        )


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # of torch, in forward mode
@pytest.mark.parametrize("weights", [None, 4])
def test_jacobians_and_hessians_agree_between_modes(weights: int | None) -> None:
    x, weight, grad, edges = Case(2, 4, 5, 2, 3, weights=weights).tensors()

    def apply(x: Tensor, weight: Tensor) -> Tensor:
        return gather_matmul(x.tanh(), weight, *edges)

    def outer(x: Tensor, grad: Tensor) -> Tensor:
        return edge_outer(x.tanh(), grad, *edges, num_weights=weight.shape[0])

    for function, second in ((apply, weight), (outer, grad)):
        for argument in (0, 1):
            torch.testing.assert_close(
                torch.func.jacrev(function, argument)(x, second),
                torch.func.jacfwd(function, argument)(x, second),
            )

    def energy(x: Tensor) -> Tensor:
        return apply(x, weight).square().sum()

    hessian = torch.func.hessian(energy)(x).flatten(3).flatten(0, 2)
    expected = torch.autograd.functional.hessian(energy, x).flatten(3).flatten(0, 2)
    torch.testing.assert_close(hessian, expected)


def test_gradients_of_each_sample() -> None:
    x, weight, _, edges = Case(3, 5, 7, 3, 4).tensors()

    def loss(weight: Tensor, sample: Tensor) -> Tensor:
        return gather_matmul(sample[None], weight, *edges).square().sum()

    actual = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x)
    expected = torch.stack([torch.func.grad(loss)(weight, sample) for sample in x])
    torch.testing.assert_close(actual, expected)


def test_mapping_over_edges_takes_those_that_are_all_the_same() -> None:
    x, weight, _, edges = Case(2, 5, 7, 3, 4).tensors()
    columns = torch.stack([edges.col, edges.col])
    y = torch.func.vmap(lambda col: gather_matmul(x, weight, edges.row_ptr, col))(columns)
    assert torch.equal(y, gather_matmul(x, weight, edges.row_ptr, edges.col).expand_as(y))
    columns[1, 0] = (columns[1, 0] + 1) % 7
    with pytest.raises(ShapeError, match="map over values alone"):
        torch.func.vmap(lambda col: gather_matmul(x, weight, edges.row_ptr, col))(columns)


def test_copies_of_wide_patterns_have_wide_indices() -> None:
    edges = Edges(torch.tensor([0, 1]), torch.tensor([2**30], dtype=torch.int32), None)
    copied = side_by_side(edges, 3, sources=2**30 + 1, weights=1)
    assert copied.col.dtype == torch.int64
    assert copied.col.tolist() == [2**30 + k * (2**30 + 1) for k in range(3)]
