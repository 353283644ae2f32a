"""`graph_attention`: every backend against a dense matrix of scores, and its calculus."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from attention_cases import CASES, Attention, assert_near, dense, leaves, places
from derivative_cases import assert_derivatives_of_the_reference
from kernel_cases import PLAIN, TOLERANCE, device_of, pairs
from torch import Tensor

from scisparse.kernels import Edges, graph_attention

RUNS = list(itertools.product(CASES, TOLERANCE))
# In the interpreter: many sites show nothing that few do not, nor do all shapes in 16 bits.
SLOW = [
    (case, dtype)
    for case, dtype in RUNS
    if case.sites >= 200 or (dtype.itemsize == 2 and case not in (CASES[2], CASES[8]))
]
KINDS = ("plain", "grouped with edges", "bias")


@pytest.mark.parametrize(("run", "backend"), pairs(RUNS, slow=SLOW), ids=str)
def test_output_and_all_gradients_equal_dense(
    run: tuple[Attention, torch.dtype], backend: str
) -> None:
    case, dtype = run
    tensors, edges, grad = case.tensors(dtype, backend)
    ours, truth = leaves(tensors), leaves({n: t.double() for n, t in tensors.items()})
    y = graph_attention(**ours, row_ptr=edges.row_ptr, col=edges.col, backend=backend)
    expected = dense(truth, edges)
    assert y.dtype == dtype
    assert_near(y, expected.detach(), dtype, "output")
    grads = torch.autograd.grad(y, list(ours.values()), grad)
    wanted: Any = torch.autograd.grad(
        expected, list(truth.values()), grad.cpu().double(), allow_unused=True
    )
    for name, actual, want in zip(ours, grads, wanted, strict=True):
        assert actual.dtype == dtype
        assert_near(
            actual,
            torch.zeros_like(truth[name]) if want is None else want,
            dtype,
            f"gradient of {name}",
        )


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize("size", [1e4, -1e4, 1e30])
def test_scores_far_from_zero_are_a_choice_of_the_largest(size: float, backend: str) -> None:
    case = Attention(1, 8, 9, 2, 4, fan_in=5, bias="e")
    tensors, edges, grad = case.tensors(torch.float32, backend)
    tensors["bias"] = tensors["bias"] * size
    ours = leaves(tensors)
    y = graph_attention(**ours, row_ptr=edges.row_ptr, col=edges.col, backend=backend)
    truth = leaves({n: t.double() for n, t in tensors.items()})
    expected = dense(truth, edges)
    assert_near(y, expected.detach(), torch.float32, "output")
    grads = torch.autograd.grad(y, list(ours.values()), grad)
    wanted = torch.autograd.grad(expected, list(truth.values()), grad.cpu().double())
    for name, actual, want in zip(ours, grads, wanted, strict=True):
        assert_near(actual, want, torch.float32, f"gradient of {name}")


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize("level", [-1e9, 1e7, 1e6, -3e38])
def test_a_level_common_to_all_scores_changes_nothing(level: float, backend: str) -> None:
    """The logarithm of the denominator is rounded coarsely there; the weights must not be."""
    device = device_of(backend)
    row_ptr, col = torch.tensor([0, 4], device=device), torch.arange(4, device=device)
    q, k, v = (torch.randn(1, n, 1, 3, device=device).requires_grad_() for n in (1, 4, 4))
    with torch.no_grad():
        k.zero_()  # all weights are 1 / 4, exactly
    bias = torch.full((4,), level, device=device)
    y = graph_attention(q, k, v, row_ptr, col, bias=bias, backend=backend)
    torch.testing.assert_close(y[0, 0], v.mean(1)[0])
    (grad,) = torch.autograd.grad(y.sum(), v)
    torch.testing.assert_close(grad, torch.full_like(grad, 0.25))


def test_16_bit_edge_features_overflow_no_earlier_than_scores() -> None:
    row_ptr, col = torch.tensor([0, 2]), torch.arange(2)
    q = torch.full((1, 1, 1, 64), 40.0)
    k = v = torch.zeros(1, 2, 1, 64)
    features: dict[str, Any] = {
        "edge_attr": torch.tensor([[1e-3], [0.0]]),
        "edge_weight": torch.full((1, 64, 1), 40.0),
    }
    half: dict[str, Any] = {n: t.half() for n, t in features.items()}
    y = graph_attention(q.half(), k.half(), v.half(), row_ptr, col, **half)
    expected = graph_attention(q, k, v, row_ptr, col, **features)
    torch.testing.assert_close(y.float(), expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("backend", PLAIN)
def test_edge_features_without_any_feature_change_nothing(backend: str) -> None:
    tensors, edges, grad = Attention(2, 9, 8, 2, 4).tensors(backend=backend)
    inputs = leaves(tensors)
    where = places(edges) | {"backend": backend}
    none = {"edge_attr": torch.zeros(len(edges.col), 0), "edge_weight": torch.zeros(2, 4, 0)}
    empty: dict[str, Any] = {
        n: t.to(device_of(backend), torch.float64).requires_grad_() for n, t in none.items()
    }
    y = graph_attention(**inputs, **empty, **where)
    torch.testing.assert_close(y, graph_attention(**tensors, **where))
    grads = torch.autograd.grad(y, [*inputs.values(), *empty.values()], grad)
    assert [g.shape for g in grads[3:]] == [t.shape for t in empty.values()]


@pytest.mark.parametrize("frozen", ["edge_attr", "bias", "q", "v"])
def test_what_is_frozen_changes_no_other_gradient(frozen: str) -> None:
    case = Attention(2, 9, 8, 4, 8, groups=2, edge_width=3, bias="eh")
    tensors, edges, grad = case.tensors()
    where = places(edges)
    inputs = leaves(tensors)
    expected = torch.autograd.grad(graph_attention(**inputs, **where), list(inputs.values()), grad)
    inputs[frozen].requires_grad_(False)
    free = [t for n, t in inputs.items() if n != frozen]
    actual = torch.autograd.grad(graph_attention(**inputs, **where), free, grad)
    kept = [g for n, g in zip(inputs, expected, strict=True) if n != frozen]
    assert all(torch.equal(a, b) for a, b in zip(actual, kept, strict=True))


@pytest.mark.parametrize("backend", PLAIN)
def test_edges_of_minus_infinity_are_as_if_absent(backend: str) -> None:
    case = Attention(2, 12, 9, 2, 5, fan_in=4, edge_width=2)
    tensors, edges, grad = case.tensors(backend=backend)
    device = edges.col.device
    hidden = torch.rand(len(edges.col), generator=torch.Generator().manual_seed(1)) < 0.5
    hidden = hidden.to(device)
    first = int(edges.row_ptr.diff().argmax())
    hidden[edges.row_ptr[first] : edges.row_ptr[first + 1]] = True  # all of one site
    bias = torch.zeros(len(hidden), dtype=torch.float64, device=device)
    bias = bias.masked_fill(hidden, -torch.inf)
    row = torch.arange(case.sites, device=device).repeat_interleave(edges.row_ptr.diff())
    counts = torch.bincount(row[~hidden], minlength=case.sites)
    row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64, device=device), counts.cumsum(0)])
    fewer = Edges(row_ptr, edges.col[~hidden], None)
    shown = dict(tensors, edge_attr=tensors["edge_attr"][~hidden])
    ours, other = leaves(tensors), leaves(shown)
    y = graph_attention(**ours, bias=bias, row_ptr=edges.row_ptr, col=edges.col, backend=backend)
    expected = graph_attention(**other, row_ptr=fewer.row_ptr, col=fewer.col, backend=backend)
    torch.testing.assert_close(y, expected)
    assert (y[:, first] == 0).all()
    grads = torch.autograd.grad(y, [ours[n] for n in "qkv"], grad)
    wanted = torch.autograd.grad(expected, [other[n] for n in "qkv"], grad)
    torch.testing.assert_close(grads, wanted)


@pytest.mark.parametrize("backend", PLAIN)
def test_a_nan_reaches_the_sites_that_read_it_and_no_other(backend: str) -> None:
    case = Attention(1, 30, 20, 2, 8, fan_in=6)
    tensors, edges, _ = case.tensors(torch.float32, backend)
    site = torch.arange(case.sites).repeat_interleave(edges.row_ptr.cpu().diff())
    reads = torch.zeros(case.sites, dtype=torch.bool)
    reads[site[edges.col.cpu() == 4]] = True
    assert reads.any()
    assert not reads.all()
    for name in "kv":
        broken = dict(tensors)
        broken[name] = tensors[name].clone()
        broken[name][:, 4] = torch.nan
        y = graph_attention(**broken, row_ptr=edges.row_ptr, col=edges.col, backend=backend)
        assert torch.equal(y.isnan().any(3).any(2)[0].cpu(), reads), name


@pytest.mark.parametrize("backend", PLAIN)
def test_uniform_scores_with_areas_give_the_area_mean(backend: str) -> None:
    case = Attention(2, 9, 8, 2, 4, fan_in=5)
    tensors, edges, _ = case.tensors(backend=backend)
    area = torch.rand(case.sources, dtype=torch.float64, device=edges.col.device) + 0.1
    bias = area.log()[edges.col.long()]
    tensors["q"] = torch.zeros_like(tensors["q"])
    y = graph_attention(**tensors, bias=bias, **places(edges), backend=backend)
    for i in range(case.sites):
        read = edges.col[edges.row_ptr[i] : edges.row_ptr[i + 1]].long()
        if len(read):
            weight = area[read] / area[read].sum()
            mean = torch.einsum("n,bnhd->bhd", weight, tensors["v"][:, read])
            torch.testing.assert_close(y[:, i], mean)


# Of torch itself, in forward mode.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize(("kind", "backend"), pairs(KINDS))
def test_derivatives_of_first_and_second_order(kind: str, backend: str) -> None:
    cases = {
        "plain": Attention(2, 3, 4, 2, 2, fan_in=2, value_width=3),
        "grouped with edges": Attention(1, 3, 4, 2, 2, groups=1, edge_width=2, fan_in=2),
        "bias": Attention(2, 3, 3, 2, 2, bias="eh", fan_in=2),
    }
    tensors, edges, _ = cases[kind].tensors(backend=backend)
    inputs = leaves(tensors)

    def run(*values: Tensor, backend: str = backend) -> Tensor:
        named: dict[str, Any] = dict(zip(inputs, values, strict=True))
        return graph_attention(**named, row_ptr=edges.row_ptr, col=edges.col, backend=backend)

    if backend == "triton":
        assert_derivatives_of_the_reference(run, tuple(inputs.values()), backend)
    else:
        assert torch.autograd.gradcheck(run, tuple(inputs.values()))
        assert torch.autograd.gradgradcheck(run, tuple(inputs.values()), fast_mode=True)


def test_derivative_of_third_order() -> None:
    case = Attention(1, 2, 3, 1, 2, fan_in=2)
    tensors, edges, _ = case.tensors()
    k, v = tensors["k"], tensors["v"]

    def second(q: Tensor) -> Tensor:
        y = graph_attention(q, k, v, edges.row_ptr, edges.col).square().sum()
        (first,) = torch.autograd.grad(y, q, create_graph=True)
        (again,) = torch.autograd.grad(first.square().sum(), q, create_graph=True)
        return again

    assert torch.autograd.gradcheck(second, (tensors["q"].requires_grad_(),))


def test_a_key_made_of_the_query_is_not_counted_twice() -> None:
    """Both are inputs, and one depends on the other: the second derivative must keep them apart."""
    case = Attention(1, 4, 4, 1, 2, fan_in=2)
    tensors, edges, _ = case.tensors()
    v = tensors["v"]

    def run(x: Tensor) -> Tensor:
        return graph_attention(x.sin(), x.sin() * 2, v, edges.row_ptr, edges.col)

    assert torch.autograd.gradgradcheck(run, (tensors["q"].requires_grad_(),))
