"""`graph_attention`: every backend against a dense matrix of scores, and its calculus."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_cases import CASES, Attention, dense
from kernel_cases import BACKENDS, TOLERANCE, device_of
from torch import Tensor

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.kernels import Edges, debug_mode, graph_attention, transpose_edges, use_backend
from scisparse.kernels._native import load

# Triton has none yet.
PLAIN = [b for b in BACKENDS if b == "reference" or getattr(b, "values", None) == ("cpu",)]
DTYPES = list(TOLERANCE)


def leaves(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: t.detach().clone().requires_grad_() for name, t in tensors.items()}


def assert_near(actual: Tensor, expected: Tensor, dtype: torch.dtype, name: str) -> None:
    """Within the tolerance of the dtype, relative to the largest number; sums have few terms."""
    size = max(expected.abs().max().item(), 1.0) if expected.numel() else 1.0
    assert actual.shape == expected.shape, name
    error = (actual.detach().cpu().double() - expected).abs()
    bound = 10 * TOLERANCE[dtype] * size
    worst = error.max().item() if error.numel() else 0.0
    assert worst <= bound, f"{name}: error {worst:.2e} above {bound:.2e}"


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_all_gradients_equal_dense(
    case: Attention, dtype: torch.dtype, backend: str
) -> None:
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
    truth = dense({n: t.double() for n, t in tensors.items()}, edges)
    assert_near(y, truth, torch.float32, "output")
    for gradient in torch.autograd.grad(y, list(ours.values()), grad):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("backend", PLAIN)
def test_edges_of_minus_infinity_are_as_if_absent(backend: str) -> None:
    case = Attention(2, 12, 9, 2, 5, fan_in=4, edge_width=2)
    tensors, edges, grad = case.tensors(backend=backend)
    hidden = torch.rand(len(edges.col), generator=torch.Generator().manual_seed(1)) < 0.5
    first = int(edges.row_ptr.diff().argmax())
    hidden[edges.row_ptr[first] : edges.row_ptr[first + 1]] = True  # all of one site
    bias = torch.zeros(len(hidden), dtype=torch.float64).masked_fill(hidden, -torch.inf)
    row = torch.arange(case.sites).repeat_interleave(edges.row_ptr.diff())
    counts = torch.bincount(row[~hidden], minlength=case.sites)
    fewer = Edges(
        torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]), edges.col[~hidden], None
    )
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
    site = torch.arange(case.sites).repeat_interleave(edges.row_ptr.diff())
    reads = torch.zeros(case.sites, dtype=torch.bool)
    reads[site[edges.col == 4]] = True
    assert reads.any()
    assert not reads.all()
    for name in "kv":
        broken = dict(tensors)
        broken[name] = tensors[name].clone()
        broken[name][:, 4] = torch.nan
        y = graph_attention(**broken, row_ptr=edges.row_ptr, col=edges.col, backend=backend)
        assert torch.equal(y.isnan().any(3).any(2)[0], reads), name


@pytest.mark.parametrize("backend", PLAIN)
def test_uniform_scores_with_areas_give_the_area_mean(backend: str) -> None:
    case = Attention(2, 9, 8, 2, 4, fan_in=5)
    tensors, edges, _ = case.tensors(backend=backend)
    area = torch.rand(case.sources, dtype=torch.float64) + 0.1
    bias = area.log()[edges.col.long()]
    tensors["q"] = torch.zeros_like(tensors["q"])
    y = graph_attention(**tensors, bias=bias, row_ptr=edges.row_ptr, col=edges.col)
    for i in range(case.sites):
        read = edges.col[edges.row_ptr[i] : edges.row_ptr[i + 1]].long()
        if len(read):
            weight = area[read] / area[read].sum()
            mean = torch.einsum("n,bnhd->bhd", weight, tensors["v"][:, read])
            torch.testing.assert_close(y[:, i], mean)


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize("kind", ["plain", "grouped with edges", "bias"])
def test_derivatives_of_first_and_second_order(kind: str, backend: str) -> None:
    cases = {
        "plain": Attention(2, 3, 4, 2, 2, fan_in=2, value_width=3),
        "grouped with edges": Attention(1, 3, 4, 2, 2, groups=1, edge_width=2, fan_in=2),
        "bias": Attention(2, 3, 3, 2, 2, bias="eh", fan_in=2),
    }
    tensors, edges, _ = cases[kind].tensors(backend=backend)
    inputs = leaves(tensors)

    def run(*values: Tensor) -> Tensor:
        named: dict[str, Any] = dict(zip(inputs, values, strict=True))
        return graph_attention(**named, row_ptr=edges.row_ptr, col=edges.col, backend=backend)

    assert torch.autograd.gradcheck(run, tuple(inputs.values()))
    assert torch.autograd.gradgradcheck(run, tuple(inputs.values()))


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


@pytest.mark.parametrize("given", [False, True], ids=["transpose made", "transpose given"])
@pytest.mark.parametrize("case", [CASES[0], CASES[8]], ids=str)
def test_operators_are_registered_properly(case: Attention, given: bool) -> None:
    tensors, edges, _ = case.tensors()
    t = leaves(tensors)
    edges_t = transpose_edges(edges.row_ptr, edges.col, case.sources)
    rest = edges_t if given else (None,) * 3
    edge_q = bias = attr = None
    if case.edge_width:
        edge_q = torch.randn(*t["q"].shape[:3], case.edge_width).double().requires_grad_()
        attr, bias = t["edge_attr"], t["bias"]
    inputs: tuple[Any, ...] = (t["q"], t["k"], t["v"], edge_q, attr, bias)
    ops = torch.ops.scisparse
    torch.library.opcheck(
        ops.graph_attention.default, (*inputs, *edges[:2], *rest, 0.3, "reference")
    )
    out, edge_out, lse = ops.graph_attention(*inputs, *edges[:2], *rest, 0.3, "reference")
    grad_edge = torch.randn_like(edge_out).requires_grad_() if case.edge_width else None
    grad = torch.randn_like(out).requires_grad_()
    torch.library.opcheck(
        ops.graph_attention_backward.default,
        (grad, grad_edge, lse.detach(), *inputs, *edges[:2], *edges_t, 0.3, "reference"),
    )


@pytest.mark.parametrize("backend", PLAIN)
def test_repeats_and_thread_counts_give_the_same_bits(backend: str) -> None:
    case = Attention(3, 600, 500, 4, 16, groups=2, edge_width=3, bias="eh", fan_in=6)
    tensors, edges, grad = case.tensors(torch.float32, backend)
    inputs = leaves(tensors)

    def run() -> tuple[Tensor, ...]:
        y = graph_attention(**inputs, row_ptr=edges.row_ptr, col=edges.col, backend=backend)
        return y, *torch.autograd.grad(y, list(inputs.values()), grad)

    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 2):
            torch.set_num_threads(n)
            results.append(run())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.skipif(isinstance(load(), str), reason="no compiled kernels")
def test_batches_that_do_not_fit_the_workspace_together() -> None:
    """More than 64 MB for the weights of edges: the batch goes through in parts."""
    case = Attention(5, 3000, 3000, 8, 1, bias="eh", fan_in=100)
    tensors, edges, grad = case.tensors(torch.float32)
    assert (
        2 * 2 * 4 * case.heads * len(edges.col) < 64 << 20 < 5 * 2 * 4 * case.heads * len(edges.col)
    )
    inputs = leaves(tensors)
    y = graph_attention(**inputs, row_ptr=edges.row_ptr, col=edges.col, backend="cpu")
    grads = torch.autograd.grad(y, list(inputs.values()), grad)
    for b in range(case.batch):
        alone = leaves({n: t if n == "bias" else t[b : b + 1] for n, t in tensors.items()})
        y_b = graph_attention(**alone, row_ptr=edges.row_ptr, col=edges.col, backend="cpu")
        assert torch.equal(y[b], y_b[0])
        of_b = torch.autograd.grad(y_b, [alone[n] for n in "qkv"], grad[b : b + 1])
        assert all(torch.equal(g[b], o[0]) for g, o in zip(grads[:3], of_b, strict=True))


@pytest.mark.parametrize("backend", PLAIN)
def test_strided_inputs_equal_contiguous_ones(backend: str) -> None:
    case = Attention(2, 9, 8, 2, 4)
    tensors, edges, _ = case.tensors(backend=backend)
    strided: dict[str, Any] = {
        n: t.transpose(1, 2).contiguous().transpose(1, 2) for n, t in tensors.items()
    }
    assert not any(t.is_contiguous() for t in strided.values())
    expected = graph_attention(**tensors, row_ptr=edges.row_ptr, col=edges.col, backend=backend)
    actual = graph_attention(**strided, row_ptr=edges.row_ptr, col=edges.col, backend=backend)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("backend", PLAIN)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_compiles_without_graph_breaks_forward_and_backward(dropout: float, backend: str) -> None:
    case = Attention(2, 9, 8, 2, 4, edge_width=3, bias="eh")
    tensors, edges, _ = case.tensors(backend=backend)
    inputs = leaves(tensors)

    def loss(*values: Tensor) -> Tensor:
        named: dict[str, Any] = dict(zip(inputs, values, strict=True))
        y = graph_attention(
            **named, dropout=dropout, row_ptr=edges.row_ptr, col=edges.col, backend=backend
        )
        return y.sin().sum()

    values = tuple(inputs.values())
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*values), values)
    actual = torch.autograd.grad(compiled(*values), values)
    if dropout == 0:
        torch.testing.assert_close(actual, expected)
    else:  # other random numbers
        assert all(g.isfinite().all() for g in actual)


def test_dropout_keeps_the_mean_and_drops_whole_edges() -> None:
    case = Attention(1, 1, 6, 1, 6, fan_in=3)
    tensors, _, _ = case.tensors()
    row_ptr, col = torch.tensor([0, 6]), torch.arange(6)
    tensors["q"], tensors["v"] = (
        torch.zeros(1, 1, 1, 6).double(),
        torch.eye(6).double()[None, :, None],
    )
    torch.manual_seed(0)
    many = torch.stack(
        [graph_attention(**tensors, row_ptr=row_ptr, col=col, dropout=0.25) for _ in range(2000)]
    )
    kept = torch.tensor([0.0, 1 / (6 * 0.75)]).double()
    assert torch.isin((many * 1e6).round(), (kept * 1e6).round()).all()
    assert abs((many > 0).double().mean().item() - 0.75) < 0.02


@pytest.mark.parametrize("backend", PLAIN)
def test_autocast_computes_in_bfloat16_and_leaves_float64_alone(backend: str) -> None:
    case = Attention(2, 9, 8, 2, 4, edge_width=2, bias="e")
    tensors, edges, _ = case.tensors(torch.float32, backend)
    q = tensors["q"].requires_grad_()
    with torch.autocast(device_of(backend), torch.bfloat16), use_backend(backend):
        y = graph_attention(**tensors, row_ptr=edges.row_ptr, col=edges.col)
        assert y.dtype == torch.bfloat16
        wide: dict[str, Any] = {n: t.double() for n, t in tensors.items()}
        assert graph_attention(**wide, row_ptr=edges.row_ptr, col=edges.col).dtype == torch.float64
    y.float().sum().backward()
    assert q.grad is not None
    assert q.grad.dtype == torch.float32


SHAPES: list[tuple[dict[str, Any], str]] = [
    ({"q": torch.zeros(2, 5, 4)}, r"`q` \(torch.float32 \[2, 5, 4\]\) must be floats of 4 dim"),
    ({"k": torch.zeros(2, 7, 2, 3)}, r"\[B, N, G, V\] with 5 sites"),
    ({"q": torch.zeros(2, 6, 4, 2)}, r"with 5 sites"),
    ({"q": torch.zeros(2, 5, 3, 2)}, r"`q` has 3 heads and `k` has 2; .* multiple"),
    ({"v": torch.zeros(2, 7, 2, 2).double()}, r"one dtype .* `v` torch.float64"),
    ({"bias": torch.zeros(3)}, r"`bias` \[3\] must be \[E\].* 4 heads and 2 batch"),
    ({"edge_attr": torch.zeros(4, 2)}, r"go together; give both or none"),
]


@pytest.mark.parametrize(("change", "message"), SHAPES)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    case = Attention(2, 5, 7, 4, 2, groups=2)
    tensors, edges, _ = case.tensors(torch.float32)
    with pytest.raises(ShapeError, match=message):
        graph_attention(**(tensors | change), row_ptr=edges.row_ptr, col=edges.col)


def test_edge_features_must_fit() -> None:
    case = Attention(2, 5, 7, 4, 2, edge_width=3)
    tensors, edges, _ = case.tensors(torch.float32)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"edge_attr": tensors["edge_attr"][1:]}, r"must be \[E, A\] with \d+ edges"),
        ({"edge_weight": torch.zeros(4, 3, 2)}, r"must be \[H, D, A\], \[4, 2, 3\]"),
        ({"v": torch.zeros(2, 7, 4, 5)}, r"values of width 5 and keys of width 2"),
        ({"edge_attr": tensors["edge_attr"].double()}, r"must be torch.float32, as `q`"),
    ]
    for change, message in changes:
        with pytest.raises(ShapeError, match=message):
            graph_attention(**(tensors | change), row_ptr=edges.row_ptr, col=edges.col)


@pytest.mark.parametrize("backend", PLAIN)
def test_rows_that_do_not_end_with_the_edges_are_refused(backend: str) -> None:
    tensors, edges, _ = CASES[0].tensors(torch.float32, backend)
    with pytest.raises(PatternError, match="must run from 0 to the number of edges"):
        graph_attention(**tensors, row_ptr=edges.row_ptr, col=edges.col[1:], backend=backend)


def test_debug_mode_names_a_source_out_of_range() -> None:
    tensors, edges, _ = CASES[0].tensors(torch.float32)
    col = edges.col.clone()
    col[-1] = 70
    with debug_mode(), pytest.raises(PatternError, match=r"`col` \(=70 at edge \d+\)"):
        graph_attention(**tensors, row_ptr=edges.row_ptr, col=col)


def test_an_unknown_backend_names_the_known_ones() -> None:
    tensors, edges, _ = CASES[0].tensors(torch.float32)
    with pytest.raises(OptionError, match="'gpu' is unknown; choose 'auto', 'cpu', 'reference'"):
        graph_attention(**tensors, row_ptr=edges.row_ptr, col=edges.col, backend="gpu")
