"""The registered operators: schemas, implementations, shape rules, derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scisparse.kernels import _backends, _debug, _watch
from scisparse.kernels._bilinear import save
from scisparse.kernels._edges import Edges, check_is_transpose, check_transpose
from scisparse.kernels._operators import register
from scisparse.kernels._segments import accumulator
from scisparse.kernels.graph_attention import calculus, cpu, primitives, reference, triton
from scisparse.kernels.graph_attention.checks import check_value
from scisparse.kernels.graph_attention.inputs import Inputs

__all__ = ["IMPLEMENTATIONS", "choose"]


def _implementations(op: str) -> tuple[_backends.Implementation, ...]:
    """Best first."""
    found = (
        ("cpu", cpu.can_run, cpu),
        ("triton", triton.can_run, triton),
        ("reference", lambda *_: None, reference),
    )
    return tuple(
        _backends.Implementation(name, can_run, getattr(module, op))
        for name, can_run, module in found
        if hasattr(module, op)
    )


#: How each operator can be run. The later ones are registered in `choices` and `softmax`.
IMPLEMENTATIONS = {
    op: _implementations(op)
    for op in (
        *("attention", "attention_backward", "spmm", "sddmm"),
        *("spmm_extreme", "choice_sources", "choice_edges"),
        *("segment_softmax", "segment_softmax_backward"),
    )
}


def choose(
    op: str,
    backend: str,
    like: Tensor,
    edges: Edges,
    num_sources: int,
    edges_t: Edges | None = None,
) -> Any:
    """Return the function that runs `op` on `backend`; edges are checked in debug mode."""
    if _debug.is_debugging():
        _debug.check_edges(*edges, num_sources, edges.col.numel())
        if edges_t is not None:
            check_is_transpose(edges_t, edges, num_sources)
    chosen = _backends.choose(op, IMPLEMENTATIONS[op], backend, like.device, like.dtype)
    _debug.check_ends_for(chosen.name, edges.row_ptr, edges.col.shape[0])
    return chosen.run


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge_q: Tensor | None,
    edge_attr: Tensor | None,
    bias: Tensor | None,
    row_ptr: Tensor,
    col: Tensor,
    row_ptr_t: Tensor | None,
    col_t: Tensor | None,
    tie_t: Tensor | None,
    scale: float,
    backend: str,
) -> Any:
    edges = Edges(row_ptr, col, None)
    run = choose("attention", backend, q, edges, k.shape[1])
    return run(Inputs(q, k, v, edge_q, edge_attr, bias), edges, scale)


def _attention_backward(
    grad: Tensor,
    grad_edge: Tensor | None,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    edge_q: Tensor | None,
    edge_attr: Tensor | None,
    bias: Tensor | None,
    row_ptr: Tensor,
    col: Tensor,
    row_ptr_t: Tensor,
    col_t: Tensor,
    tie_t: Tensor,
    wants_attr: bool,
    wants_bias: bool,
    scale: float,
    backend: str,
) -> Any:
    inputs = Inputs(q, k, v, edge_q, edge_attr, bias)
    edges, edges_t = Edges(row_ptr, col, None), Edges(row_ptr_t, col_t, tie_t)
    check_transpose(edges_t, edges, k.shape[1])
    run = choose("attention_backward", backend, q, edges, k.shape[1], edges_t)
    _watch.tell(col, inputs, grad, lse, scale)
    grads = run(grad, grad_edge, inputs, lse, edges, edges_t, (wants_attr, wants_bias), scale)
    return tuple(
        q.new_empty(0) if g is None or t is None else g.to(t.dtype)
        for g, t in zip(grads, inputs, strict=True)
    )


def _spmm(
    value: Tensor,
    x: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    tie: Tensor | None,
    row_ptr_t: Tensor | None,
    col_t: Tensor | None,
    tie_t: Tensor | None,
    backend: str,
) -> Any:
    edges = Edges(row_ptr, col, tie)
    check_value(value, x, col.shape[0])
    return choose("spmm", backend, x, edges, x.shape[1])(value, x, edges)


def _sddmm(
    x: Tensor,
    z: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    tie: Tensor | None,
    row_ptr_t: Tensor | None,
    col_t: Tensor | None,
    tie_t: Tensor | None,
    backend: str,
) -> Any:
    edges = Edges(row_ptr, col, tie)
    return choose("sddmm", backend, x, edges, z.shape[1])(x, z, edges)


def _attention_fake(
    q: Tensor, k: Tensor, v: Tensor, edge_q: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    edge_out = q.new_empty(0) if edge_q is None else q.new_empty(edge_q.shape)
    lse = q.new_empty(q.shape[:3], dtype=accumulator(q.dtype))
    return q.new_empty(*q.shape[:3], v.shape[3]), edge_out, lse


def _attention_backward_fake(
    grad: Tensor, grad_edge: Tensor | None, lse: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    wanted = (True, True, True, True, *rest[11:13])
    like = rest[0]
    return tuple(
        t.new_empty(t.shape) if t is not None and w else like.new_empty(0)
        for t, w in zip(rest[:6], wanted, strict=True)
    )


def _spmm_fake(value: Tensor, x: Tensor, row_ptr: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape[0], row_ptr.shape[0] - 1, *x.shape[2:])


def _sddmm_fake(x: Tensor, z: Tensor, row_ptr: Tensor, col: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape[0], col.shape[0], x.shape[2], dtype=accumulator(x.dtype))


_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? edge_q, Tensor? edge_attr, Tensor? bias"
_EDGES = "Tensor row_ptr, Tensor col"
_EDGES_T = "Tensor? row_ptr_t, Tensor? col_t, Tensor? tie_t"
_SIX = ", ".join(["Tensor"] * 6)


register(
    "graph_attention",
    f"({_INPUTS}, {_EDGES}, {_EDGES_T}, float scale, str backend) -> (Tensor, Tensor, Tensor)",
    _attention,
    _attention_fake,
    calculus.attention_backward,
    calculus.save_attention,
)
torch.library.register_vmap("scisparse::graph_attention", calculus.attention_vmap)
register(
    "graph_attention_backward",
    f"(Tensor grad, Tensor? grad_edge, Tensor lse, {_INPUTS}, {_EDGES}, "
    "Tensor row_ptr_t, Tensor col_t, Tensor tie_t, bool wants_attr, bool wants_bias, "
    f"float scale, str backend) -> ({_SIX})",
    _attention_backward,
    _attention_backward_fake,
    calculus.attention_backward_backward,
    calculus.save_attention_backward,
)
register(
    "spmm",
    f"(Tensor value, Tensor x, {_EDGES}, Tensor? tie, {_EDGES_T}, str backend) -> Tensor",
    _spmm,
    _spmm_fake,
    primitives.spmm_backward,
    save,
)
register(
    "sddmm",
    f"(Tensor x, Tensor z, {_EDGES}, Tensor? tie, {_EDGES_T}, str backend) -> Tensor",
    _sddmm,
    _sddmm_fake,
    primitives.sddmm_backward,
    save,
)
