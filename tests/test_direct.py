"""Calls that only autograd watches pass torch's dispatcher by; all others are still known to it."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor

from scisparse.kernels import _modes, gather_matmul

ROW_PTR, COL = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 2])
X = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1)
WEIGHT = torch.tensor([1.0, 10.0, 5.0]).view(3, 1, 1)
EXPECTED = torch.tensor([31.0, 15.0]).view(1, 2, 1)


def call(x: Tensor) -> Tensor:
    return gather_matmul(x, WEIGHT, ROW_PTR, COL)


def is_plain(x: Tensor) -> bool:
    return _modes.is_plain(x, WEIGHT, ROW_PTR, COL, None)


def test_gradients_are_the_same_with_and_without_the_dispatcher() -> None:
    class Nothing(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            return func(*args, **(kwargs or {}))

    found = []
    for mode in (contextlib.nullcontext(), Nothing()):
        with mode:
            x, weight = X.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
            assert is_plain(x) == isinstance(mode, contextlib.nullcontext)
            y = gather_matmul(x, weight, ROW_PTR, COL)
            assert torch.equal(y, EXPECTED)
            first = torch.autograd.grad((y**2).sum(), (x, weight), create_graph=True)
            squares = torch.stack([(g**2).sum() for g in first])
            second = torch.autograd.grad(squares.sum(), (x, weight))
            found.append((*first, *second))
    torch.testing.assert_close(*found)
    with torch.no_grad():
        assert not call(X.clone().requires_grad_()).requires_grad


def test_a_tensor_that_is_negated_when_read_is_read_so() -> None:
    x = torch.complex(X, -X).conj().imag
    assert x.is_neg()
    assert not is_plain(x)
    assert torch.equal(call(x), EXPECTED)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")  # of torch itself
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # checks of shapes are fixed
def test_a_trace_holds_the_operator_and_not_its_result() -> None:
    traced = torch.jit.trace(call, (X,))
    assert torch.equal(traced(2 * X), 2 * EXPECTED)


def test_an_exported_model_holds_the_operator() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return call(x)

    graph = torch.export.export(Model(), (X,)).graph
    assert torch.ops.scisparse.gather_matmul.default in [node.target for node in graph.nodes]


def test_compiles_without_graph_breaks_where_no_gradient_is_wanted() -> None:
    compiled = torch.compile(lambda x: call(x.abs()), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(-X), EXPECTED)


def test_a_profile_names_the_operator() -> None:
    with torch.autograd.profiler.profile() as profile:
        call(X)
    assert "scisparse::gather_matmul" in [event.key for event in profile.key_averages()]


def test_modes_see_the_operator() -> None:
    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        calls: list[object]

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.calls.append(func)
            return func(*args, **(kwargs or {}))

    seen = Seen()
    seen.calls = []
    with seen:
        call(X)
    assert torch.ops.scisparse.gather_matmul.default in seen.calls


@pytest.mark.parametrize("create_graph", [False, True])
def test_whole_jacobians_take_all_rows_at_once(create_graph: bool) -> None:
    weight = WEIGHT.clone().requires_grad_()

    def rows(x: Tensor) -> Tensor:
        return gather_matmul(x, weight, ROW_PTR, COL).square().flatten()

    found = [
        torch.autograd.functional.jacobian(
            rows, X, vectorize=at_once, create_graph=create_graph, strategy="reverse-mode"
        )
        for at_once in (False, True)
    ]
    torch.testing.assert_close(*found)
