"""`gather_matmul` and `edge_outer`: every backend against dense float64, and their calculus."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from derivative_cases import assert_derivatives_of_the_reference
from kernel_cases import (
    BACKENDS,
    CASES,
    GPU,
    TOLERANCE,
    Case,
    assert_close,
    assert_same_bits_from_any_number_of_threads,
    device_of,
)
from torch import Tensor

from scisparse.errors import BackendError, OptionError, PatternError, ShapeError
from scisparse.kernels import (
    current_backend,
    debug_mode,
    edge_outer,
    gather_matmul,
    use_backend,
)
from scisparse.kernels._backends import choose
from scisparse.kernels.gather_matmul import Edges
from scisparse.kernels.gather_matmul.calculus import run_edge_outer, run_gather_matmul
from scisparse.kernels.gather_matmul.ops import GATHER_IMPLEMENTATIONS

DTYPES = list(TOLERANCE)


def dense(x: Tensor, weight: Tensor, edges: Edges, transpose_weight: bool = False) -> Tensor:
    """Independent truth: one dense float64 matrix from all sources to all sites."""
    x, weight, edges = x.cpu(), weight.cpu(), edges.to("cpu")
    (_, sources, channels_in), sites = x.shape, edges.row_ptr.numel() - 1
    channels_out = weight.shape[1 if transpose_weight else 2]
    matrix = torch.zeros(sites, sources, channels_in, channels_out, dtype=torch.float64)
    for site in range(sites):
        for edge in range(int(edges.row_ptr[site]), int(edges.row_ptr[site + 1])):
            block = weight[edge if edges.tie is None else int(edges.tie[edge])].double()
            matrix[site, int(edges.col[edge])] += block.T if transpose_weight else block
    return torch.einsum("bnc,mnco->bmo", x.double(), matrix)


def dense_outer(x: Tensor, grad: Tensor, edges: Edges, num_weights: int) -> Tensor:
    x, grad, edges = x.cpu(), grad.cpu(), edges.to("cpu")
    out = torch.zeros(num_weights, x.shape[2], grad.shape[2], dtype=torch.float64)
    for site in range(edges.row_ptr.numel() - 1):
        for edge in range(int(edges.row_ptr[site]), int(edges.row_ptr[site + 1])):
            weight = edge if edges.tie is None else int(edges.tie[edge])
            source = int(edges.col[edge])
            out[weight] += x[:, source].double().T @ grad[:, site].double()
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_all_gradients_equal_dense(case: Case, dtype: torch.dtype, backend: str) -> None:
    x, weight, grad, edges = case.tensors(dtype, backend=backend)
    x.requires_grad_()
    weight.requires_grad_()
    y = gather_matmul(x, weight, *edges, backend=backend)
    grad_x, grad_weight = torch.autograd.grad(y, (x, weight), grad)
    x, weight = x.detach(), weight.detach()
    edges_t = case.transposed(edges)
    truth: list[tuple[Tensor, Callable[..., Tensor], tuple[Any, ...]]] = [
        (y, dense, (x, weight, edges)),
        (grad_x, dense, (grad, weight, edges_t, True)),
        (grad_weight, dense_outer, (x, grad, edges, case.num_weights(edges))),
    ]
    for actual, function, arguments in truth:
        size = function(*(a.abs() if torch.is_tensor(a) else a for a in arguments))
        assert_close(actual.detach(), function(*arguments), size)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("weights", [None, 3])
def test_index_width_does_not_matter(index: torch.dtype, weights: int | None, backend: str) -> None:
    case = Case(2, 9, 8, 3, 4, weights=weights)
    x, weight, grad, edges = case.tensors(index=index, backend=backend)
    with use_backend(backend):
        y = gather_matmul(x, weight, *edges)
        d = edge_outer(x, grad, *edges, num_weights=weight.shape[0])
    assert_close(y, dense(x, weight, edges), torch.tensor(10.0))
    assert_close(d, dense_outer(x, grad, edges, weight.shape[0]), torch.tensor(10.0))


# Of torch itself, in forward mode.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights", [None, 3])
def test_derivatives_of_every_order(weights: int | None, backend: str) -> None:
    case = Case(2, 3, 4, 2, 3, fan_in=2, weights=weights)
    x, weight, grad, edges = case.tensors(backend=backend)
    num_weights = weight.shape[0]
    for tensor in (x, weight, grad):
        tensor.requires_grad_()
    edges_t = case.transposed(edges)
    calls: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (lambda x, w, backend: gather_matmul(x, w, *edges, backend=backend), (x, weight)),
        (
            lambda g, w, backend: run_gather_matmul(g, w, edges_t, edges, True, backend),
            (grad, weight),
        ),
        (
            lambda x, g, backend: edge_outer(
                x, g, *edges, num_weights=num_weights, backend=backend
            ),
            (x, grad),
        ),
        (
            lambda x, g, backend: run_edge_outer(x, g, edges, edges_t, num_weights, backend),
            (x, grad),
        ),
    ]
    for call, arguments in calls:
        if backend == "triton":
            assert_derivatives_of_the_reference(call, arguments, backend)
            continue
        run = functools.partial(call, backend=backend)
        assert torch.autograd.gradcheck(run, arguments, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(run, arguments)


@pytest.mark.parametrize("weights", [None, 3])
@pytest.mark.parametrize("given", [False, True], ids=["transpose made", "transpose given"])
def test_operators_are_registered_properly(weights: int | None, given: bool) -> None:
    case = Case(2, 5, 6, 2, 3, weights=weights)
    x, weight, grad, edges = case.tensors()
    edges_t = case.transposed(edges) if given else (None,) * 3
    x.requires_grad_()
    weight.requires_grad_()
    grad.requires_grad_()
    ops = torch.ops.scisparse
    torch.library.opcheck(
        ops.gather_matmul.default, (x, weight, *edges, *edges_t, False, "reference")
    )
    torch.library.opcheck(
        ops.edge_outer.default, (x, grad, *edges, *edges_t, weight.shape[0], "reference")
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weights", [None, 2])
def test_repeats_and_thread_counts_give_the_same_bits(weights: int | None, backend: str) -> None:
    # Enough for several threads; Triton's interpreter has one, and takes a minute for as much.
    sites = 60 if backend == "triton" and GPU == "cpu" else 600
    case = Case(3, sites, 500, 8, 8, weights=weights)
    x, weight, grad, edges = case.tensors(torch.float32, backend=backend)
    x.requires_grad_()
    weight.requires_grad_()

    def run() -> tuple[Tensor, ...]:
        y = gather_matmul(x, weight, *edges, backend=backend)
        return y, *torch.autograd.grad(y, (x, weight), grad)

    assert_same_bits_from_any_number_of_threads(run)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_reaches_the_sites_that_read_it_and_no_other(backend: str) -> None:
    case = Case(1, 12, 10, 3, 2)
    x, weight, _, edges = case.tensors(backend=backend)
    x[:, 4] = torch.nan
    y = gather_matmul(x, weight, *edges, backend=backend)
    reads = torch.tensor(
        [
            4 in edges.col[edges.row_ptr[i] : edges.row_ptr[i + 1]].tolist()
            for i in range(case.sites)
        ]
    )
    assert reads.any()
    assert not reads.all()
    assert torch.equal(y.isnan().any(2)[0].cpu(), reads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_equal_contiguous_ones(backend: str) -> None:
    case = Case(3, 9, 8, 4, 5)
    x, weight, _, edges = case.tensors(backend=backend)
    x_strided = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    weight_strided = weight.mT.contiguous().mT
    assert not x_strided.is_contiguous()
    expected = gather_matmul(x, weight, *edges, backend=backend)
    assert torch.equal(gather_matmul(x_strided, weight_strided, *edges, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_without_graph_breaks_forward_and_backward(backend: str) -> None:
    case = Case(2, 9, 8, 3, 4)
    x, weight, _, edges = case.tensors(backend=backend)

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return gather_matmul(x.sin(), weight, *edges, backend=backend).square().sum()

    expected = torch.autograd.grad(loss(x.requires_grad_(), weight.requires_grad_()), (x, weight))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(x, weight), (x, weight))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_computes_in_bfloat16_and_leaves_float64_alone(backend: str) -> None:
    case = Case(2, 9, 8, 3, 4)
    x, weight, grad, edges = case.tensors(torch.float32, backend=backend)
    with torch.autocast(device_of(backend), torch.bfloat16), use_backend(backend):
        y = gather_matmul(x.requires_grad_(), weight, *edges)
        assert y.dtype == torch.bfloat16
        assert gather_matmul(x.double(), weight.double(), *edges).dtype == torch.float64
        assert edge_outer(x, grad, *edges).dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_use_backend_holds_inside_the_block_only() -> None:
    def fail() -> None:
        with use_backend("reference"):
            assert current_backend() == "reference"
            raise KeyError

    assert current_backend() == "auto"
    with pytest.raises(KeyError):
        fail()
    assert current_backend() == "auto"


def test_unknown_backend_names_the_known_ones() -> None:
    x, weight, _, edges = CASES[0].tensors()
    with pytest.raises(
        OptionError, match="'gpu' is unknown; choose 'auto', 'cpu', 'triton', 'reference', 'cuda'"
    ):
        gather_matmul(x, weight, *edges, backend="gpu")


def test_explicit_backend_that_cannot_run_says_why() -> None:
    request = ("gather_matmul", GATHER_IMPLEMENTATIONS, "cpu")
    with pytest.raises(
        BackendError, match=r"'cpu' cannot run on meta .*: it runs on the CPU alone"
    ):
        choose(*request, torch.device("meta"), torch.float32)
    with pytest.raises(
        BackendError, match=r"cannot run on cpu with torch\.int32: .* is not one of"
    ):
        choose(*request, torch.device("cpu"), torch.int32)


def test_shapes_are_known_without_data() -> None:
    x, weight, grad, edges = Case(2, 5, 7, 3, 4).tensors()
    x, weight, grad, row_ptr, col = (t.to("meta") for t in (x, weight, grad, *edges[:2]))
    assert gather_matmul(x, weight, row_ptr, col).shape == (2, 5, 4)
    assert edge_outer(x, grad, row_ptr, col).shape == weight.shape


def test_wrong_shapes_and_dtypes_are_named() -> None:
    x, weight, grad, (row_ptr, col, _) = Case(2, 5, 7, 3, 4).tensors()
    cases: list[tuple[Callable[[], Tensor], str]] = [
        (lambda: gather_matmul(x[0], weight, row_ptr, col), r"`x` has shape \[7, 3\]"),
        (lambda: gather_matmul(x, weight[:, :2], row_ptr, col), "takes 2 channels but `x`"),
        (
            lambda: gather_matmul(x, weight[1:], row_ptr, col),
            "without `tie` every edge has its own",
        ),
        (
            lambda: gather_matmul(x.float(), weight, row_ptr, col),
            "float32 and `weight` is torch.fl",
        ),
        (lambda: gather_matmul(x, weight, row_ptr.int(), col), "must be int64 of shape"),
        (lambda: gather_matmul(x, weight, row_ptr, col.double()), "must be int32 or int64"),
        (lambda: gather_matmul(x, weight, row_ptr, col, col[1:]), "both have one an edge"),
        (lambda: gather_matmul(x, weight, row_ptr, col.to("meta")), "move all to one device"),
        (lambda: edge_outer(x, grad[:, 1:], row_ptr, col), "does not fit `x`"),
        (lambda: edge_outer(x, grad, row_ptr, col, col), "pass the number of weights"),
    ]
    for call, message in cases:
        with pytest.raises(ShapeError, match=message):
            call()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_are_not_all_edges_are_refused_by_every_backend(backend: str) -> None:
    x, weight, grad, (row_ptr, col, _) = Case(2, 5, 7, 3, 4).tensors(backend=backend)
    short = row_ptr.clamp(max=int(row_ptr[-1]) - 1)
    on_gpu = x.is_cuda  # where the check would be a wait, it is left to debug mode
    for rows in (row_ptr + 1, short):
        with (
            debug_mode(on_gpu),
            pytest.raises(PatternError, match="must run from 0 to the number of edges"),
        ):
            gather_matmul(x, weight, rows, col, backend=backend)
        with (
            debug_mode(on_gpu),
            pytest.raises(PatternError, match="must run from 0 to the number of edges"),
        ):
            edge_outer(x, grad, rows, col, backend=backend)


def test_works_without_compiled_kernels_and_says_so_once() -> None:
    """Kernels that find no compiled library stand for an install without a compiler."""
    code = """
import logging, pathlib, sys
logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
pathlib.Path.glob = lambda self, pattern: []
import torch
from scisparse.kernels import gather_matmul
for _ in range(2):
    one = torch.ones(1, 1, 1)
    print(gather_matmul(one, one, torch.tensor([0, 1]), torch.tensor([0])))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("were not compiled") == 1
    assert done.stdout.count("tensor([[[1.]]])") == 2
