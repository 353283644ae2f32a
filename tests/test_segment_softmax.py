"""The softmax over rows: against loops over the rows."""

from __future__ import annotations

import itertools

import pytest
import torch
from kernel_cases import TRITON, assert_same_bits_from_any_number_of_threads, device_of, generator
from product_cases import BACKENDS, KERNELS, choose, near, problem
from torch import Tensor

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.kernels import debug_mode, segment_softmax


@pytest.fixture(params=[*KERNELS, TRITON])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    return choose(request.param, monkeypatch)


# Heads that divide a vector, that do not, and more than one has lanes
@pytest.mark.parametrize("heads", [1, 2, 3, 4, 7, 16, 20, 35])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_softmax_of_rows_and_its_gradient_equal_loops(
    heads: int, dtype: torch.dtype, backend: str
) -> None:
    score, _, edges = problem((2, 30, 60, heads, 1, 20), dtype)
    score, row_ptr = ((3 * score).to(device_of(backend)), edges.row_ptr.to(device_of(backend)))
    weight = segment_softmax(score.requires_grad_(), row_ptr, backend=backend)
    wide = score.detach().cpu().double().requires_grad_()
    parts = wide.split(edges.row_ptr.diff().tolist(), 1)
    expected = torch.cat([part.softmax(1) for part in parts], 1)
    near(weight.detach().cpu(), expected.detach())
    grad = torch.randn(score.shape, generator=generator(1)).to(dtype)
    (actual,) = torch.autograd.grad(weight, score, grad.to(score.device))
    (exact,) = torch.autograd.grad(expected, wide, grad.double())
    near(actual.cpu(), exact)


# Triton's interpreter subtracts by numpy, which warns of infinities.
@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract:RuntimeWarning")
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_softmax_of_what_is_not_finite(dtype: torch.dtype, heads: int, backend: str) -> None:
    nan, inf = torch.nan, torch.inf
    rows: list[tuple[list[float], list[float]]] = [
        ([], []),
        ([-inf, -inf], [0, 0]),
        ([1e4, -1e4, 1e4], [0.5, 0, 0.5]),
        ([-inf, 3.0], [0, 1]),
        ([nan, 1.0], [nan, nan]),
        ([nan, -inf], [nan, nan]),
        ([-inf, nan], [nan, nan]),
        ([inf, 1.0], [nan, nan]),
        ([0.0] * 40, [1 / 40] * 40),
    ]
    row_ptr = torch.tensor([0, *(len(r) for r, _ in rows)]).cumsum(0)
    score = torch.tensor([s for r, _ in rows for s in r], dtype=dtype)[None, :, None]
    expected = torch.tensor([w for _, r in rows for w in r], dtype=dtype)
    # The other heads must see nothing of it.
    sound = torch.zeros(1, score.shape[1], heads, dtype=dtype)
    sound[..., -1:] = score
    device = device_of(backend)
    weight = segment_softmax(sound.to(device), row_ptr.to(device), backend=backend).cpu()
    torch.testing.assert_close(weight[0, :, -1], expected, equal_nan=True, rtol=1e-6, atol=0)
    assert weight[..., :-1].isfinite().all()


@pytest.mark.parametrize("backend", [*BACKENDS, TRITON])
def test_softmax_of_nothing(backend: str) -> None:
    for shape, ends in (
        ((0, 4, 2), [0, 4]),
        ((2, 0, 3), [0, 0]),
        ((2, 0, 3), [0]),
        ((2, 4, 0), [0, 4]),
    ):
        device = device_of(backend)
        score = torch.zeros(shape, requires_grad=True, device=device)
        weight = segment_softmax(score, torch.tensor(ends, device=device), backend=backend)
        assert weight.shape == shape
        (grad,) = torch.autograd.grad(weight.sum(), score)
        assert grad.shape == shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_of_every_order(backend: str) -> None:
    score, _, edges = problem((2, 3, 4, 3, 1, 3))

    def run(score: Tensor) -> Tensor:
        return segment_softmax(score, edges.row_ptr, backend=backend)

    def slope(weight: Tensor, grad: Tensor) -> Tensor:
        op = torch.ops.scisparse.segment_softmax_backward
        y: Tensor = op(weight, grad, edges.row_ptr, backend)
        return y

    inputs = (score.requires_grad_(), torch.randn_like(score).requires_grad_())
    for call, arguments in ((run, inputs[:1]), (slope, inputs)):
        assert torch.autograd.gradcheck(call, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, arguments, fast_mode=True)


def test_operators_are_registered_properly() -> None:
    score, _, edges = problem((2, 3, 4, 3, 1, 3))
    inputs = (score.requires_grad_(), torch.randn_like(score).requires_grad_())
    ops = torch.ops.scisparse
    torch.library.opcheck(ops.segment_softmax.default, (score, edges[0], "reference"))
    rest = (edges[0], "reference")
    torch.library.opcheck(ops.segment_softmax_backward.default, (*inputs, *rest))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_thread_counts_give_the_same_bits(backend: str) -> None:
    score, _, edges = problem((2, 2000, 700, 3, 1, 7), torch.float32)
    strided = score.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()
    given = itertools.cycle((score, strided))

    def run() -> tuple[Tensor, ...]:
        leaf = next(given).detach().requires_grad_()
        weight = segment_softmax(leaf, edges.row_ptr, backend=backend)
        return weight, *torch.autograd.grad(weight.sin().sum(), leaf)

    assert_same_bits_from_any_number_of_threads(run)


def test_what_does_not_fit_is_named() -> None:
    score, _, edges = problem((2, 7, 5, 2, 3, 4), torch.float32)
    with pytest.raises(OptionError, match="'gpu' is unknown; choose 'auto', 'cpu', 'triton', 'ref"):
        segment_softmax(score, edges.row_ptr, backend="gpu")
    with pytest.raises(PatternError, match=r"must run from 0 to the number of edges, \d+"):
        segment_softmax(score[:, 1:], edges.row_ptr)
    with pytest.raises(PatternError, match=r"must run from 0 to the number of edges, \d+"):
        segment_softmax(score[:, 1:], edges.row_ptr, backend="reference")
    with pytest.raises(ShapeError, match=r"must be alike"):
        torch.ops.scisparse.segment_softmax_backward(score, score[:1], *edges[:1], "reference")
    with pytest.raises(PatternError, match="never fall"), debug_mode():
        segment_softmax(torch.zeros(1, 3, 1), torch.tensor([0, 2, 1, 3]))
