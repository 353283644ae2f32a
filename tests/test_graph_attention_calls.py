"""`graph_attention` as it is called: by compilers, threads, autocast; with what does not fit."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from attention_cases import CASES, Attention, leaves, places
from kernel_cases import PLAIN, assert_same_bits_from_any_number_of_threads, device_of, pairs
from torch import Tensor

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.kernels import Edges, debug_mode, graph_attention, transpose_edges, use_backend
from scisparse.kernels._backends import choose
from scisparse.kernels._kept import empty_room
from scisparse.kernels._native import load
from scisparse.kernels.graph_attention import cpu


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_runs_under_activation_checkpointing(dropout: float) -> None:
    case = Attention(2, 9, 8, 2, 4)
    tensors, edges, _ = case.tensors()
    inputs = leaves(tensors)

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return graph_attention(q, k, v, edges.row_ptr, edges.col, dropout=dropout)

    torch.manual_seed(0)
    expected = torch.autograd.grad(run(**inputs).sum(), list(inputs.values()))
    torch.manual_seed(0)
    again = torch.utils.checkpoint.checkpoint(run, *inputs.values(), use_reentrant=False)
    actual = torch.autograd.grad(again.sum(), list(inputs.values()))
    torch.testing.assert_close(actual, expected)


def test_a_named_backend_runs_every_part() -> None:
    """Dropout and second derivatives too: a check of the reference must not run C++."""
    case = Attention(1, 5, 6, 2, 3, edge_width=2)
    tensors, edges, _ = case.tensors()
    inputs = leaves(tensors)
    seen = []

    def recorded(op: str, implementations: Any, backend: str, *rest: Any) -> Any:
        seen.append(backend)
        return choose(op, implementations, backend, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scisparse.kernels._backends.choose", recorded)
        y = graph_attention(
            **inputs, row_ptr=edges.row_ptr, col=edges.col, dropout=0.2, backend="reference"
        )
        grads = torch.autograd.grad(y.sin().sum(), list(inputs.values()), create_graph=True)
        torch.autograd.grad([g.square().sum() for g in grads], list(inputs.values()))
        y = graph_attention(**inputs, row_ptr=edges.row_ptr, col=edges.col, backend="reference")
        grads = torch.autograd.grad(y.sin().sum(), list(inputs.values()), create_graph=True)
        torch.autograd.grad([g.square().sum() for g in grads], list(inputs.values()))
    assert len(seen) > 20
    assert set(seen) == {"reference"}


def test_a_transpose_of_other_edges_is_refused() -> None:
    tensors, edges, _ = Attention(2, 9, 8, 2, 4).tensors()
    where = places(edges)
    with pytest.raises(PatternError, match=r"`transpose` has 9 sources and .* there are 8 and"):
        graph_attention(**tensors, **where, transpose=transpose_edges(edges.row_ptr, edges.col, 9))
    sound = transpose_edges(edges.row_ptr, edges.col, 8)
    swapped = Edges(sound.row_ptr, sound.col.flip(0), sound.tie)
    inputs = leaves(tensors)
    with debug_mode(), pytest.raises(PatternError, match="is not the transpose of the edges"):
        graph_attention(**inputs, **where, transpose=swapped).sum().backward()


MAPPED = ("v", "q k v", "q bias", "edge_weight", "edge_attr", "k edge_attr bias", "k v row_ptr col")


@pytest.mark.parametrize("mapped", MAPPED)
def test_vmap_equals_a_loop(mapped: str, capfd: pytest.CaptureFixture[str]) -> None:
    tensors, edges, _ = Attention(2, 9, 8, 2, 4, edge_width=3, bias="eh").tensors()
    given = tensors | {"row_ptr": edges.row_ptr, "col": edges.col}
    names = mapped.split()
    gen = torch.Generator().manual_seed(0)
    stacked = [
        torch.stack([t * 1.0 * torch.rand((), generator=gen).double() for _ in range(3)], 1)
        if t.is_floating_point()
        else torch.stack([t] * 3, 1)
        for t in (given[name] for name in names)
    ]
    leaf = stacked[0].requires_grad_()

    def run(*values: Tensor) -> Tensor:
        return graph_attention(**given | dict(zip(names, values, strict=True)))

    y = torch.func.vmap(run, in_dims=1)(*stacked)
    expected = torch.stack([run(*(t.select(1, n) for t in stacked)) for n in range(3)])
    torch.testing.assert_close(y, expected)
    grads = [torch.autograd.grad(t.square().sum(), leaf)[0] for t in (y, expected)]
    torch.testing.assert_close(*grads)
    assert "batching rule" not in capfd.readouterr().err


GIVEN = list(itertools.product((CASES[0], CASES[8]), (False, True)))  # is the transpose?


@pytest.mark.parametrize(
    ("run", "backend"), [*((run, "reference") for run in GIVEN), *pairs(GIVEN[1:2])[1:]], ids=str
)
def test_operators_are_registered_properly(run: tuple[Attention, bool], backend: str) -> None:
    case, given = run
    tensors, edges, _ = case.tensors(backend=backend)
    t = leaves(tensors)
    edges_t = transpose_edges(edges.row_ptr, edges.col, case.sources)
    rest = edges_t if given else (None,) * 3
    edge_q = bias = attr = None
    if case.edge_width:
        edge_q = t["q"].new_empty(*t["q"].shape[:3], case.edge_width).normal_().requires_grad_()
        attr, bias = t["edge_attr"], t["bias"]
    inputs: tuple[Any, ...] = (t["q"], t["k"], t["v"], edge_q, attr, bias)
    ops = torch.ops.scisparse
    torch.library.opcheck(ops.graph_attention.default, (*inputs, *edges[:2], *rest, 0.3, backend))
    out, edge_out, lse = ops.graph_attention(*inputs, *edges[:2], *rest, 0.3, backend)
    grad_edge = torch.randn_like(edge_out).requires_grad_() if case.edge_width else None
    grad = torch.randn_like(out).requires_grad_()
    torch.library.opcheck(
        ops.graph_attention_backward.default,
        (
            grad,
            grad_edge,
            lse.detach(),
            *inputs,
            *edges[:2],
            *edges_t,
            True,
            True,
            0.3,
            backend,
        ),
    )


@pytest.mark.parametrize("backend", PLAIN)
def test_repeats_and_thread_counts_give_the_same_bits(backend: str) -> None:
    case = Attention(3, 600, 500, 4, 16, groups=2, edge_width=3, bias="eh", fan_in=6)
    if device_of(backend) == "cpu" and backend == "triton":  # in the interpreter
        case = dataclasses.replace(case, sites=60, sources=50)
    tensors, edges, grad = case.tensors(torch.float32, backend)
    inputs = leaves(tensors)

    def run() -> tuple[Tensor, ...]:
        y = graph_attention(**inputs, row_ptr=edges.row_ptr, col=edges.col, backend=backend)
        return y, *torch.autograd.grad(y, list(inputs.values()), grad)

    assert_same_bits_from_any_number_of_threads(run)


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


@pytest.mark.skipif(isinstance(load(), str), reason="no compiled kernels")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups_at_once", [0, 1, 2, 7])
def test_heads_that_do_not_fit_the_workspace_together(
    groups_at_once: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads go through in turns then, those of one head of the sources together at least."""
    case = Attention(3, 90, 80, 6, 5, groups=3, edge_width=3, bias="ebh", fan_in=9)
    tensors, edges, grad = case.tensors(dtype)
    inputs = leaves(tensors)

    def gradients() -> list[Tensor]:
        y = graph_attention(**inputs, row_ptr=edges.row_ptr, col=edges.col, backend="cpu")
        return list(torch.autograd.grad(y, list(inputs.values()), grad))

    expected = gradients()
    real = 8 if dtype == torch.float64 else 4
    one_group = 2 * 2 * len(edges.col) * real
    for name in ("_ROOM", "_MOST_ROOM"):
        monkeypatch.setattr(cpu, name, groups_at_once * one_group)
    sizes = []

    def recorded(count: int, dtype: torch.dtype) -> Tensor:
        sizes.append(count * dtype.itemsize)
        return empty_room(count, dtype)

    monkeypatch.setattr(cpu, "empty_room", recorded)
    actual = gradients()
    assert sizes == [max(1, groups_at_once) * one_group]
    for name, got, want in zip(inputs, actual, expected, strict=True):
        if name == "edge_attr":  # summed over heads in another order
            torch.testing.assert_close(got, want)
        else:
            assert torch.equal(got, want), name


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
    ({"bias": torch.ones(3).bool()}, r"`bias` is torch.bool; .*masked_fill\(~mask, -torch.inf\)"),
    ({"q": torch.zeros(2, 5, 0, 2)}, r"`q` has 0 heads and `k` has 2; .* positive multiple"),
]


@pytest.mark.parametrize(("change", "message"), SHAPES)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    case = Attention(2, 5, 7, 4, 2, groups=2)
    tensors, edges, _ = case.tensors(torch.float32)
    with pytest.raises(ShapeError, match=message):
        graph_attention(**(tensors | change), row_ptr=edges.row_ptr, col=edges.col)


def test_what_is_no_number_is_refused() -> None:
    tensors, edges, _ = CASES[0].tensors(torch.float32)
    where = places(edges)
    with pytest.raises(OptionError, match=r"`scale` is a Tensor; .* multiply the queries"):
        graph_attention(**tensors, **where, scale=torch.tensor(0.5))  # type: ignore[arg-type]
    for rate in (-0.1, 1.0, float("nan")):
        with pytest.raises(OptionError, match=r"`dropout` \(=.*\) must be at least 0 and below 1"):
            graph_attention(**tensors, **where, dropout=rate)


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


@pytest.mark.parametrize("backend", PLAIN)
def test_debug_mode_names_a_source_out_of_range(backend: str) -> None:
    tensors, edges, _ = CASES[0].tensors(torch.float32, backend)
    col = edges.col.clone()
    col[-1] = 70
    with debug_mode(), pytest.raises(PatternError, match=r"`col` \(=70 at edge \d+\)"):
        graph_attention(**tensors, row_ptr=edges.row_ptr, col=col, backend=backend)


def test_an_unknown_backend_names_the_known_ones() -> None:
    tensors, edges, _ = CASES[0].tensors(torch.float32)
    with pytest.raises(
        OptionError, match="'gpu' is unknown; choose 'auto', 'cpu', 'triton', 'reference'"
    ):
        graph_attention(**tensors, row_ptr=edges.row_ptr, col=edges.col, backend="gpu")
