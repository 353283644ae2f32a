"""`spmm` with every reduction: against loops over the rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from kernel_cases import COMPILED, TOLERANCE, assert_same_bits_from_any_number_of_threads, generator
from product_cases import BACKENDS, KERNELS, choose, loop, near, problem
from torch import Tensor

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.kernels import segment_softmax, spmm, transpose_edges, use_backend
from scisparse.kernels.graph_attention import cpu

SHAPES = [
    (2, 7, 5, 2, 3, 4),  # odd widths
    (1, 20, 40, 1, 149, 9),  # four vectors, two, one and a tail
    (3, 9, 8, 2, 8, 0),  # no edge
    (0, 9, 8, 2, 8, 3),  # empty batch
    (2, 0, 8, 2, 8, 3),  # no site
    (2, 5, 0, 2, 8, 3),  # no source
    (2, 5, 7, 2, 0, 3),  # no width
]


@pytest.fixture(params=KERNELS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return choose(request.param, monkeypatch)


@pytest.mark.parametrize("kind", ["given", "shared", "none"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reductions_and_their_gradients_equal_loops(
    shape: tuple[int, ...], dtype: torch.dtype, kind: str, backend: str
) -> None:
    given, x, edges = problem(shape, dtype)
    value = {"given": given, "shared": given[:1].clone(), "none": None}[kind]
    if kind == "shared" and shape[0] == 0:
        value = torch.randn(1, *given.shape[1:])
        value = value.to(given.dtype)
    for reduce in ("sum", "mean", "max", "min"):
        inputs = [t.clone().requires_grad_() for t in (x, value) if t is not None]
        wide = [t.detach().double().requires_grad_() for t in inputs]
        y = spmm(*_order(inputs), *edges[:2], reduce=reduce, backend=backend)
        expected = loop(*_order(wide), edges, reduce)
        expected = expected + sum(0 * t.sum() for t in wide)  # where there is no edge too
        assert y.dtype == dtype
        near(y.detach(), expected.detach())
        if dtype.itemsize == 2 and kind == "none":
            continue  # numbers of 16 bits tie
        grad = torch.randn(y.shape, generator=generator(1)).to(dtype)
        actual = torch.autograd.grad(y, inputs, grad)
        exact = torch.autograd.grad(expected, wide, grad.double())
        for a, e in zip(actual, exact, strict=True):
            near(a, e)


def _order(inputs: list[Tensor]) -> tuple[Tensor | None, Tensor]:
    return (None if len(inputs) == 1 else inputs[1]), inputs[0]


@pytest.mark.parametrize("given", [False, True], ids=["transpose made", "transpose given"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_of_every_order(backend: str, given: bool) -> None:
    value, x, edges = problem((2, 3, 4, 2, 3, 2))
    edges_t = transpose_edges(edges.row_ptr, edges.col, 4) if given else None
    x.requires_grad_()
    values = (value.requires_grad_(), value[:1].detach().requires_grad_(), None)

    def call(reduce: str, value: Tensor | None, x: Tensor) -> Tensor:
        return spmm(value, x, *edges[:2], reduce=reduce, transpose=edges_t, backend=backend)

    for reduce in ("mean", "max", "min"):
        for each in values:
            run = partial(call, reduce, each) if each is None else partial(call, reduce)
            arguments = (x,) if each is None else (each, x)
            assert torch.autograd.gradcheck(run, arguments, fast_mode=True)
            assert torch.autograd.gradgradcheck(run, arguments, fast_mode=True)


def choices() -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Tensors by name, and the last arguments of the operators of a choice that stands."""
    value, x, edges = problem((2, 3, 4, 2, 3, 2))
    edges_t = transpose_edges(edges.row_ptr, edges.col, 4)
    _, choice = torch.ops.scisparse.spmm_extreme(
        value, x, *edges[:2], None, None, None, True, "reference"
    )
    y = torch.randn(choice.shape, generator=generator(2)).double()
    tensors = {"value": value, "x": x, "y": y}
    return {n: t.requires_grad_() for n, t in tensors.items()}, (choice, *edges[:2], *edges_t)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_choice_that_stands_is_linear_in_all_three(backend: str) -> None:
    t, rest = choices()
    for op, names in (
        ("choice_sites", ("value", "x")),
        ("choice_sources", ("value", "y")),
        ("choice_edges", ("y", "x")),
    ):

        def run(a: Tensor, b: Tensor, op: str = op) -> Tensor:
            y: Tensor = getattr(torch.ops.scisparse, op)(a, b, *rest, backend)
            return y

        arguments = tuple(t[n] for n in names)
        assert torch.autograd.gradcheck(run, arguments)
        assert torch.autograd.gradgradcheck(run, arguments, fast_mode=True)


def test_operators_are_registered_properly() -> None:
    t, rest = choices()
    value, x, y = (t[n] for n in ("value", "x", "y"))
    edges, ops = rest[1:3], torch.ops.scisparse
    check = torch.library.opcheck
    none = (None,) * 3
    check(ops.spmm_extreme.default, (value, x, *edges, *none, False, "reference"))
    one = torch.ones((), dtype=torch.float64).expand(1, *value.shape[1:])
    check(ops.spmm_extreme.default, (one, x, *edges, *rest[3:], False, "reference"))
    check(ops.choice_sites.default, (value, x, *rest, "reference"))
    check(ops.choice_sources.default, (value, y, *rest, "reference"))
    check(ops.choice_edges.default, (y, x, *rest, "reference"))


def test_of_several_the_first_edge_gets_the_gradient(backend: str) -> None:
    row_ptr, col = torch.tensor([0, 3, 3, 5]), torch.tensor([0, 1, 3, 1, 2])
    x = torch.tensor([1.0, 5.0, 5.0, 5.0]).view(1, 4, 1, 1).requires_grad_()
    value = torch.tensor([[5.0, 1.0, 1.0, 1.0, 1.0]])[..., None].requires_grad_()
    y = spmm(value, x, row_ptr, col, reduce="max", backend=backend)
    assert y.flatten().tolist() == [5, 0, 5]
    grad_value, grad_x = torch.autograd.grad(y.sum(), (value, x))
    assert grad_x.flatten().tolist() == [5, 1, 0, 0]
    assert grad_value.flatten().tolist() == [1, 0, 0, 5, 0]
    # What the documentation says of others
    shared = torch.segment_reduce(x[0, :, 0, 0][col], "max", offsets=row_ptr, unsafe=True)
    (grad,) = torch.autograd.grad(shared[2], x)
    assert grad.flatten().tolist() == [0, 0.5, 0.5, 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_nan_and_infinity(dtype: torch.dtype, backend: str) -> None:
    nan, inf = torch.nan, torch.inf
    numbers = torch.tensor([nan, inf, -inf, 1.0, nan]).to(dtype)
    rows = [[3, 0, 4], [3, 1], [2, 2], [1, 2, 3], [0], [3]]
    row_ptr = torch.tensor([0, *map(len, rows)]).cumsum(0)
    col = torch.tensor([j for row in rows for j in row])
    x = numbers.view(1, 5, 1, 1).expand(-1, -1, -1, 33).clone().requires_grad_()
    wide = torch.float32 if dtype.itemsize == 2 else dtype
    value = torch.ones(1, len(col), 1, dtype=wide).requires_grad_()
    for reduce, expected, where in (
        ("max", [nan, inf, -inf, inf, nan, 1], [1, 1, 0, 0, 0, 0]),
        ("min", [nan, 1, -inf, -inf, nan, 1], [1, 0, 0, 1, 0, 0]),
    ):
        y = spmm(value, x, row_ptr, col, reduce=reduce, backend=backend)
        for d in range(33):
            torch.testing.assert_close(
                y[0, :, 0, d].detach().double(), torch.tensor(expected).double(), equal_nan=True
            )
        grad_value, grad_x = torch.autograd.grad(y, (value, x), torch.ones_like(y))
        # Numbers that were not chosen are left out, also where they are not finite.
        chosen = torch.zeros(len(col)).index_fill(0, row_ptr[:-1] + torch.tensor(where), 1)
        of_value = chosen * 33 * numbers[col].float()
        of_value = torch.where(chosen == 0, 0, of_value)
        torch.testing.assert_close(grad_value.flatten().float(), of_value, equal_nan=True)
        of_x = torch.zeros(5).index_add(0, col, chosen)
        assert grad_x[0, :, 0, 32].tolist() == of_x.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_mean_of_large_16_bit_numbers_is_finite(backend: str) -> None:
    x = torch.full((1, 1, 1, 3), 6e4).half()
    row_ptr, col = torch.tensor([0, 5]), torch.zeros(5, dtype=torch.int64)
    y = spmm(None, x, row_ptr, col, reduce="mean", backend=backend)
    assert y.flatten().tolist() == x.flatten().tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_tensors_equal_contiguous_ones(backend: str) -> None:
    value, x, edges = problem((2, 9, 8, 3, 5, 4))
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (value, x)]
    strided = [t.requires_grad_() for t in strided]
    dense = [t.clone().contiguous().requires_grad_() for t in (value, x)]
    assert not any(t.is_contiguous() for t in strided)
    assert all(t.is_contiguous() for t in dense)
    for reduce in ("sum", "mean", "max"):
        results = []
        for v, x in (strided, dense):
            y = spmm(v, x, *edges[:2], reduce=reduce, backend=backend)
            grad = torch.arange(y.numel()).double().view(y.mT.shape).mT
            results.append((y, *torch.autograd.grad(y, (v, x), grad)))
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_thread_counts_give_the_same_bits(backend: str) -> None:
    value, x, edges = problem((2, 300, 200, 3, 17, 7), torch.float32)
    value.requires_grad_()
    x.requires_grad_()

    def run() -> tuple[Tensor, ...]:
        results: list[Tensor] = []
        for reduce in ("mean", "max"):
            y = spmm(value, x, *edges[:2], reduce=reduce, backend=backend)
            results += (y, *torch.autograd.grad(y.sin().sum(), (value, x)))
        return tuple(results)

    assert_same_bits_from_any_number_of_threads(run)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_graph_breaks_forward_and_backward(backend: str) -> None:
    value, x, edges = problem((2, 9, 8, 3, 5, 4))

    def loss(value: Tensor, x: Tensor) -> Tensor:
        weight = segment_softmax(value, edges.row_ptr, backend=backend)
        rest: dict[str, Any] = {"reduce": "max", "backend": backend}
        ys = spmm(weight, x, *edges[:2], **rest), spmm(None, x, *edges[:2], **rest)
        mean = spmm(None, x, *edges[:2], reduce="mean", backend=backend)
        return sum(y.sin().sum() for y in (*ys, mean))  # type: ignore[return-value]

    inputs = (value.requires_grad_(), x.requires_grad_())
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*inputs), inputs)
    torch.testing.assert_close(torch.autograd.grad(compiled(*inputs), inputs), expected)


def test_what_does_not_fit_is_named() -> None:
    value, x, edges = problem((2, 7, 5, 2, 3, 4), torch.float32)
    with pytest.raises(OptionError, match=r"`reduce` \(='prod'\) must be one of 'sum', 'mean'"):
        spmm(value, x, *edges[:2], reduce="prod")
    with pytest.raises(ShapeError, match=r"`value` \[2, \d+, 1\] must be \[B or 1, E, H\]"):
        spmm(value[..., :1], x, *edges[:2], reduce="max")
    for reduce in ("mean", "max"):
        with pytest.raises(PatternError, match=r"must run from 0 to the number of edges, \d+"):
            spmm(None, x, edges.row_ptr, edges.col[1:], reduce=reduce)
    wrong = transpose_edges(edges.row_ptr, edges.col, 6)
    with pytest.raises(PatternError, match="`transpose` has 6 sources"):
        spmm(None, x, *edges[:2], reduce="max", transpose=wrong)
    t, (choice, *rest) = choices()
    with pytest.raises(ShapeError, match=r"`choice` is torch.int64 .*; it must be int32 "):
        torch.ops.scisparse.choice_edges(t["y"], t["x"], choice.long(), *rest, "reference")


@COMPILED
def test_use_backend_reaches_every_part() -> None:
    value, x, edges = problem((2, 7, 5, 2, 3, 4))
    value.requires_grad_()
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch, use_backend("reference"):
        patch.setattr(cpu, "_run_rows", lambda name, *_: seen.append(name))
        weight = segment_softmax(value, edges.row_ptr)
        y = spmm(weight, x, *edges[:2], reduce="max")
        (grad,) = torch.autograd.grad(y.sin().sum(), value, create_graph=True)
        torch.autograd.grad(grad.square().sum(), value)
    assert not seen
