"""`torch.func` and forward mode on attention and what it is made of, against reverse mode."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_cases import CASES, Attention, places
from derivative_cases import assert_derivatives_of_the_reference
from kernel_cases import PLAIN, device_of, generator
from torch import Tensor

from scisparse.errors import BackendError, ShapeError
from scisparse.grids import LatLonGrid
from scisparse.kernels import (
    attention_weights,
    gather_matmul,
    graph_attention,
    sddmm,
    segment_softmax,
    spmm,
    transpose_edges,
)
from scisparse.layers import (
    BlockTopKAttention,
    GraphTransformer,
    LSHAttention,
    Scores,
    SparseAttention,
)
from scisparse.patterns import window

# Of torch itself, in forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")

SHAPES = [CASES[0], Attention(2, 5, 4, 4, 3, groups=2, edge_width=3, bias="eh")]


def call_of(
    case: Attention, backend: str, given: bool
) -> tuple[Callable[..., Tensor], list[Tensor], Tensor]:
    """Attention as a function of its tensors; these, and a gradient of its result."""
    tensors, edges, grad = case.tensors(backend=backend)
    options = places(edges) | {"backend": backend}
    if given:
        options["transpose"] = transpose_edges(*edges[:2], case.sources)
    return (
        lambda *values: graph_attention(**dict(zip(tensors, values, strict=True)), **options),
        list(tensors.values()),
        grad,
    )


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_gradients_and_tangents_equal_reverse_mode(case: Attention, backend: str) -> None:
    run, tensors, grad = call_of(case, backend, given=case is SHAPES[1])
    ours = [t.clone().requires_grad_() for t in tensors]
    y = run(*ours)
    expected = torch.autograd.grad(y, ours, grad)
    value, pull = torch.func.vjp(run, *tensors)[:2]
    torch.testing.assert_close(value, y.detach())
    torch.testing.assert_close(pull(grad), expected)
    gen = generator(2)
    steps = [torch.randn(t.shape, generator=gen).to(t) for t in tensors]
    value, tangent = torch.func.jvp(run, tuple(tensors), tuple(steps))[:2]
    torch.testing.assert_close(value, y.detach())
    along = sum((g * s).sum() for g, s in zip(expected, steps, strict=True))
    torch.testing.assert_close((tangent * grad).sum(), along)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(tensors[0], steps[0])
        (_, of_query) = torch.autograd.forward_ad.unpack_dual(run(dual, *tensors[1:]))
    torch.testing.assert_close((of_query * grad).sum(), (expected[0] * steps[0]).sum())


@pytest.mark.parametrize("argument", range(6))
def test_jacobians_agree_between_modes(argument: int) -> None:
    run, tensors, _ = call_of(SHAPES[1], "reference", given=False)
    torch.testing.assert_close(
        torch.func.jacrev(run, argument)(*tensors), torch.func.jacfwd(run, argument)(*tensors)
    )


@pytest.mark.parametrize("argument", range(3))
def test_hessians_equal_those_of_reverse_mode_twice(argument: int) -> None:
    run, tensors, grad = call_of(Attention(2, 3, 4, 2, 2), "auto", given=False)

    def energy(x: Tensor) -> Tensor:
        others = [x if k == argument else t for k, t in enumerate(tensors)]
        return (run(*others).sin() * grad).sum()

    x = tensors[argument]
    expected = torch.autograd.functional.hessian(energy, x)
    torch.testing.assert_close(torch.func.hessian(energy)(x), expected)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(energy))(x), expected)


def test_gradients_of_each_sample() -> None:
    run, (q, k, v), grad = call_of(Attention(3, 5, 6, 2, 3), "auto", given=True)

    def loss(q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> Tensor:
        return (run(q[None], k[None], v[None])[0] * grad).sum()

    each = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(q, k, v, grad)
    ours = [t.clone().requires_grad_() for t in (q, k, v)]
    expected = torch.autograd.grad(run(*ours), ours, grad)
    torch.testing.assert_close(each, expected)


@pytest.mark.parametrize("backend", PLAIN)
def test_primitives_have_every_derivative(backend: str) -> None:
    tensors, edges, _ = Attention(2, 5, 4, 2, 3).tensors(backend=backend)
    q, k, device = tensors["q"], tensors["k"], device_of(backend)
    count = edges.col.numel()
    shared, value = (
        torch.randn(b, count, 2, generator=generator(3)).to(device, torch.float64) for b in (1, 2)
    )
    where = places(edges)
    some = functools.partial(spmm, **where)
    softmax = functools.partial(segment_softmax, row_ptr=edges.row_ptr)
    calls: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (some, (value, k)),
        (some, (shared, k)),
        (functools.partial(some, None, reduce="mean"), (k,)),
        (functools.partial(sddmm, **where), (q, k)),
        (softmax, (value,)),
        (functools.partial(attention_weights, **where), (q, k)),
        (functools.partial(some, reduce="max"), (value, k)),
        (functools.partial(some, reduce="min"), (shared, k)),
    ]
    for call, arguments in calls:
        if backend == "triton":
            assert_derivatives_of_the_reference(call, arguments, backend)
            continue
        run = functools.partial(call, backend=backend)
        inputs = [t.clone().requires_grad_() for t in arguments]
        checks = {"fast_mode": True, "check_forward_ad": True, "check_batched_grad": False}
        assert torch.autograd.gradcheck(run, inputs, **checks)
        assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True, check_fwd_over_rev=True)


DIMS = [(0, None), (None, 0), (0, 0), (2, 1), (1, 3)]


@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_vmap_of_products_equals_a_loop(dims: tuple[int | None, int | None]) -> None:
    tensors, edges, _ = Attention(2, 5, 4, 2, 3).tensors()
    q, k = tensors["q"], tensors["k"]
    gen = generator(3)
    shared, value = (
        torch.randn(b, edges.col.numel(), 2, generator=gen, dtype=torch.float64) for b in (1, 2)
    )
    calls = [
        (lambda a, b: spmm(a, b, *edges[:2]), value, k),
        (lambda a, b: spmm(a, b, *edges[:2]), shared, k),
        (lambda a, b: sddmm(a, b, *edges[:2]), q, k),
        (lambda a, b: spmm(a, b, *edges[:2], reduce="max"), value, k),
        (lambda a, b: spmm(a, b, *edges[:2], reduce="min"), shared, k),
    ]
    for call, *arguments in calls:
        many = [
            t if d is None else torch.stack([(n + 1) * t + n for n in range(3)], d)
            for t, d in zip(arguments, dims, strict=True)
        ]

        def one(n: int, many: list[Tensor] = many) -> list[Tensor]:
            return [t if d is None else t.select(d, n) for t, d in zip(many, dims, strict=True)]

        actual = torch.func.vmap(call, in_dims=dims)(*many)
        torch.testing.assert_close(actual, torch.stack([call(*one(n)) for n in range(3)]))


def test_vmap_of_the_softmax_and_its_derivative_equals_a_loop() -> None:
    row_ptr = torch.tensor([0, 3, 3, 5])
    score, grad = torch.randn(2, 4, 2, 5, 3, generator=generator(1), dtype=torch.float64)

    def pull(score: Tensor, grad: Tensor) -> Tensor:
        found: Tensor = torch.func.vjp(lambda s: segment_softmax(s, row_ptr), score)[1](grad)[0]
        return found

    for dims in ((0, 0), (0, None), (None, 0)):
        given = [t if d is not None else t[0] for t, d in zip((score, grad), dims, strict=True)]
        actual = torch.func.vmap(pull, in_dims=dims)(*given)
        expected = [
            pull(*(t if d is None else t[n] for t, d in zip(given, dims, strict=True)))
            for n in range(4)
        ]
        torch.testing.assert_close(actual, torch.stack(expected))


def test_a_layer_tells_how_its_output_changes() -> None:
    """The change of a field along a perturbation, without a backward pass, by finite difference."""
    pattern = window(LatLonGrid.regular(4, 8), 3)
    layer = SparseAttention(pattern, 6, 2, scores=Scores(norm=True, areas=True, taps=True))
    layer = layer.double()
    gen = generator(5)
    x, step = torch.randn(2, 3, 32, 6, generator=gen, dtype=torch.float64)
    y, tangent = torch.func.jvp(layer, (x,), (step,))[:2]
    torch.testing.assert_close(y, layer(x))
    small = 1e-6
    expected = (layer(x + small * step) - layer(x - small * step)) / (2 * small)
    torch.testing.assert_close(tangent, expected.detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LSHAttention(8, 2, buckets=4, chunk=6),
        lambda: BlockTopKAttention(8, 2, block=5, top=1),
    ],
    ids=["lsh", "block top-k"],
)
def test_layers_that_choose_edges_choose_the_same_under_transforms(make: Any) -> None:
    torch.manual_seed(0)
    layer = make().double()
    x, step = torch.randn(2, 2, 20, 8, generator=generator(4), dtype=torch.float64)
    ours = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(layer(ours).sin().sum(), ours)
    torch.testing.assert_close(torch.func.grad(lambda x: layer(x).sin().sum())(x), expected)
    _, tangent = torch.func.jvp(lambda x: layer(x).sin().sum(), (x,), (step,))[:2]
    torch.testing.assert_close(tangent, (expected * step).sum())


def test_a_graph_may_be_an_argument_of_a_transformed_function() -> None:
    torch.manual_seed(0)
    layer, edge_index = GraphTransformer(4, 2), torch.tensor([[0, 1, 2, 2], [1, 1, 0, 2]])
    x = torch.randn(3, 4)
    ours = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(layer(ours, edge_index).sum(), ours)
    actual = torch.func.grad(lambda x, e: layer(x, e).sum())(x, edge_index)
    torch.testing.assert_close(actual, expected)


def test_vmap_of_an_empty_batch() -> None:
    tensors, edges, _ = Attention(2, 5, 4, 2, 3).tensors()
    value = torch.ones(1, edges.col.numel(), 2, dtype=torch.float64)
    many = tensors["k"][:0].expand(3, -1, -1, -1, -1)
    y = torch.func.vmap(lambda k: spmm(value, k, *edges[:2]))(many)
    assert y.shape == (3, 0, 5, 2, 3)


def test_forward_mode_in_forward_mode_is_an_error() -> None:
    """Torch would give 0 for functions with a tangent of their own."""
    run, (q, *others), _ = call_of(Attention(1, 3, 4, 1, 2), "auto", given=False)
    edges = Attention(1, 3, 4, 1, 2).tensors()[1]

    def local(x: Tensor) -> Tensor:
        return gather_matmul(x[:, :, 0], x.new_ones(edges.col.numel(), 2, 3), *edges)

    for function in (lambda q: run(q, *others), local):
        with pytest.raises(BackendError, match=r"wrong numbers .* torch\.func\.jacfwd\("):
            torch.func.jacfwd(torch.func.jacfwd(function))(
                q if function is not local else others[0]
            )


@pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace")
def test_compiled_code_leaves_its_graph_and_keeps_tangents() -> None:
    run, (q, *others), _ = call_of(Attention(1, 3, 4, 1, 2), "auto", given=False)

    def tangent(q: Tensor) -> Tensor:
        found: Tensor = torch.func.jvp(lambda q: run(q, *others), (q,), (q,))[1]
        return found

    expected = tangent(q)
    torch.testing.assert_close(torch.compile(tangent, backend="eager")(q), expected)


def test_what_cannot_be_mapped_or_differentiated_so_is_an_error() -> None:
    tensors, edges, _ = Attention(2, 5, 4, 2, 3).tensors()
    k = tensors["k"]
    value = torch.ones(1, edges.col.numel(), 2, dtype=torch.float64)
    columns, starts = torch.stack([edges.col, edges.col]), torch.stack([edges.row_ptr] * 2)
    y = torch.func.vmap(lambda col: spmm(value, k, edges.row_ptr, col))(columns)
    assert torch.equal(y, spmm(value, k, *edges[:2]).expand_as(y))
    for function in (segment_softmax, torch.func.jacrev(segment_softmax)):
        y = torch.func.vmap(function, (None, 0))(value.sin(), starts)
        torch.testing.assert_close(y, function(value.sin(), edges.row_ptr).expand_as(y))
    columns[1, 0] = (columns[1, 0] + 1) % 4
    with pytest.raises(ShapeError, match="map over values alone"):
        torch.func.vmap(lambda col: spmm(value, k, edges.row_ptr, col))(columns)


@pytest.mark.parametrize("how", ["max", "min"])
def test_hessians_and_gradients_of_each_sample_of_a_maximum(how: str) -> None:
    case = Attention(3, 5, 6, 2, 3)
    tensors, edges, _ = case.tensors()
    k = tensors["k"]
    value = torch.randn(1, edges.col.numel(), 2, generator=generator(6), dtype=torch.float64)

    def energy(value: Tensor, k: Tensor) -> Tensor:
        return spmm(value, k, *edges[:2], reduce=how).sin().sum()

    expected = torch.autograd.functional.hessian(energy, (value, k))
    torch.testing.assert_close(torch.func.hessian(energy, argnums=(0, 1))(value, k), expected)
    each = torch.func.vmap(torch.func.grad(lambda k: energy(value, k[None])))(k)
    ours = k.clone().requires_grad_()
    torch.testing.assert_close(each, torch.autograd.grad(energy(value, ours), ours)[0])
