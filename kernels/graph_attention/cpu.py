"""Binding of the C++ kernels (``cpu.hpp``) through their plain C interface."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from scisparse.kernels._edges import Edges
from scisparse.kernels._kept import empty_room
from scisparse.kernels._native import DTYPES, can_run, library, raise_for
from scisparse.kernels._segments import accumulator
from scisparse.kernels.graph_attention.inputs import Inputs, steps_of

__all__ = [
    "attention",
    "attention_backward",
    "can_run",
    "choice_edges",
    "choice_sources",
    "sddmm",
    "segment_softmax",
    "segment_softmax_backward",
    "spmm",
    "spmm_extreme",
]

_SIZE, _POINTER = ctypes.c_int64, ctypes.c_void_p
_ISA_AUTO = 0
# Bytes of what a backward pass keeps of edges between its halves: for as many batch entries as fit
# the first; for one of them up to the second, and beyond for some of its heads at a time.
_ROOM, _MOST_ROOM = 64 << 20, 256 << 20
_FUNCTIONS = (
    *("graph_attention", "graph_attention_backward", "spmm", "sddmm"),
    *("choose", "choice_sources", "choice_edges", "segment_softmax"),
)


def _fields(sizes: str = "", pointers: str = "") -> list[tuple[str, type]]:
    return [(name, _SIZE) for name in sizes.split()] + [(n, _POINTER) for n in pointers.split()]


class _Edges(ctypes.Structure):
    _fields_ = (
        *_fields("sites sources count", "row_ptr col"),
        *_fields("col_bits", "tie"),
        *_fields("tie_bits"),
    )


class _Attention(ctypes.Structure):
    _fields_ = (
        *_fields("dtype batch heads source_heads width value_width edge_width edge_room"),
        ("scale", ctypes.c_double),
        ("edges", _Edges),
        *_fields("", "q k v edge_q edge_attr bias"),
        *_fields("bias_batch bias_edge bias_head", "out edge_out lse"),
    )


class _AttentionBackward(ctypes.Structure):
    _fields_ = (
        ("forward", _Attention),
        ("transposed", _Edges),
        *_fields("", "grad grad_edge grad_q grad_k grad_v grad_edge_q grad_edge_attr grad_bias"),
        *_fields("", "room"),
        *_fields("room_bytes"),
    )


class _Spmm(ctypes.Structure):
    _fields_ = (
        *_fields("dtype batch heads width value_batch value_edge value_head"),
        ("edges", _Edges),
        *_fields("", "value x y"),
    )


class _Sddmm(ctypes.Structure):
    _fields_ = (
        *_fields("dtype batch heads width"),
        ("edges", _Edges),
        *_fields("", "x z value"),
    )


class _Choice(ctypes.Structure):
    _fields_ = (
        *_fields("dtype batch heads width smallest value_batch value_edge value_head"),
        ("edges", _Edges),
        ("transposed", _Edges),
        *_fields("", "value sites sources choice"),
    )


class _Softmax(ctypes.Structure):
    _fields_ = (
        *_fields("dtype batch heads"),
        ("edges", _Edges),
        *_fields("", "start grad to"),
    )


def attention(inputs: Inputs, edges: Edges, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Run the C++ kernel; see :func:`scisparse.kernels.graph_attention.reference.attention`."""
    inputs, edges = inputs.dense(), edges.dense()
    q, v = inputs.q, inputs.v
    out = q.new_empty(*q.shape[:3], v.shape[3])
    edge_out = q.new_empty(0) if inputs.edge_q is None else torch.empty_like(inputs.edge_q)
    lse = q.new_empty(q.shape[:3], dtype=accumulator(q.dtype))
    problem = _problem(inputs, edges, scale, lse)
    problem.out, problem.edge_out = _address(out), _address(edge_out)
    _run("scisparse_graph_attention", problem, (edges,))
    return out, edge_out, lse


def attention_backward(
    grad: Tensor,
    grad_edge: Tensor | None,
    inputs: Inputs,
    lse: Tensor,
    edges: Edges,
    edges_t: Edges,
    wanted: tuple[bool, bool],
    scale: float,
) -> Inputs:
    """Run the C++ kernel; see the function of the same name in ``reference``."""
    inputs, edges, edges_t = inputs.dense(), edges.dense(), edges_t.dense()
    grad, lse = grad.contiguous(), lse.contiguous()
    grad_edge = None if grad_edge is None else grad_edge.contiguous()
    q, k = inputs.q, inputs.k
    out = inputs.empty_gradients(wanted)
    room = _room(q, k, edges, accumulator(q.dtype))
    problem = _AttentionBackward(
        _problem(inputs, edges, scale, lse),
        _edges(edges_t, q.shape[1]),
        *map(_address, (grad, grad_edge, *out, room)),
        room.nbytes,
    )
    _run("scisparse_graph_attention_backward", problem, (edges, edges_t))
    return out


def _room(q: Tensor, k: Tensor, edges: Edges, real: torch.dtype) -> Tensor:
    """Memory for two numbers of each edge and head; for the heads of one source head at least."""
    batch, _, heads, _ = q.shape
    one_head = 2 * edges.col.shape[0]
    entry, least = one_head * heads, one_head * (heads // k.shape[2])
    most = max(_ROOM // real.itemsize, min(entry, _MOST_ROOM // real.itemsize), least)
    return empty_room(min(batch * entry, most), real)


def spmm(value: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """Run the C++ kernel; see the function of the same name in ``reference``."""
    x, edges = x.contiguous(), edges.dense()
    batch, sources, heads, width = x.shape
    y = x.new_empty(batch, edges.row_ptr.shape[0] - 1, heads, width)
    problem = _Spmm(
        *(DTYPES[x.dtype], batch, heads, width, *steps_of(value), _edges(edges, sources)),
        *map(_address, (value, x, y)),
    )
    _run("scisparse_spmm", problem, (edges,))
    return y


def sddmm(x: Tensor, z: Tensor, edges: Edges) -> Tensor:
    """Run the C++ kernel; see the function of the same name in ``reference``."""
    x, z, edges = x.contiguous(), z.contiguous(), edges.dense()
    batch, sources, heads, width = z.shape
    value = x.new_empty(batch, edges.col.shape[0], heads, dtype=accumulator(x.dtype))
    problem = _Sddmm(
        *(DTYPES[x.dtype], batch, heads, width, _edges(edges, sources)),
        *map(_address, (x, z, value)),
    )
    _run("scisparse_sddmm", problem, (edges,))
    return value


def spmm_extreme(value: Tensor, x: Tensor, edges: Edges, smallest: bool) -> tuple[Tensor, Tensor]:
    """Run the C++ kernel; see the function of the same name in ``reference``."""
    x, edges = x.contiguous(), edges.dense()
    y = x.new_empty(x.shape[0], edges.row_ptr.shape[0] - 1, *x.shape[2:])
    choice = torch.empty_like(y, dtype=torch.int32)
    tensors = (value, y, x, choice)
    _run("scisparse_choose", _choice(tensors, edges, smallest=smallest), (edges,))
    return y, choice


def choice_sources(
    value: Tensor, y: Tensor, choice: Tensor, edges: Edges, edges_t: Edges
) -> Tensor:
    """Run the C++ kernel; see the function of the same name in ``reference``."""
    y, choice = y.contiguous(), choice.contiguous()
    edges, edges_t = edges.dense(), edges_t.dense()
    x = y.new_empty(y.shape[0], edges_t.row_ptr.shape[0] - 1, *y.shape[2:])
    problem = _choice((value, y, x, choice), edges, edges_t)
    _run("scisparse_choice_sources", problem, (edges, edges_t))
    return x


def choice_edges(y: Tensor, x: Tensor, choice: Tensor, edges: Edges) -> Tensor:
    """Run the C++ kernel; see the function of the same name in ``reference``."""
    y, x, choice, edges = y.contiguous(), x.contiguous(), choice.contiguous(), edges.dense()
    value = x.new_empty(x.shape[0], edges.col.shape[0], x.shape[2], dtype=accumulator(x.dtype))
    _run("scisparse_choice_edges", _choice((value, y, x, choice), edges), (edges,))
    return value


def segment_softmax(score: Tensor, row_ptr: Tensor) -> Tensor:
    """Run the C++ kernel; see the function of the same name in ``reference``."""
    return _softmax(score, None, row_ptr)


def segment_softmax_backward(weight: Tensor, grad: Tensor, row_ptr: Tensor) -> Tensor:
    """Run the C++ kernel; see the function of the same name in ``reference``."""
    return _softmax(weight, grad, row_ptr)


def _softmax(start: Tensor, grad: Tensor | None, row_ptr: Tensor) -> Tensor:
    start, row_ptr = start.contiguous(), row_ptr.contiguous()
    grad = None if grad is None else grad.contiguous()
    batch, count, heads = start.shape
    to = torch.empty_like(start)
    rows = _Edges(row_ptr.shape[0] - 1, 0, count, row_ptr.data_ptr())
    problem = _Softmax(
        *(DTYPES[start.dtype], batch, heads, rows), *map(_address, (start, grad, to))
    )
    _run_rows("scisparse_segment_softmax", problem, [(row_ptr, count)])
    return to


def _choice(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    edges: Edges,
    edges_t: Edges | None = None,
    smallest: bool = False,
) -> _Choice:
    """Problem of value, sites, sources and choice, all but the first contiguous."""
    value, y, x, _ = tensors
    batch, sources, heads, width = x.shape
    return _Choice(
        *(DTYPES[x.dtype], batch, heads, width, smallest, *steps_of(value)),
        _edges(edges, sources),
        _Edges() if edges_t is None else _edges(edges_t, y.shape[1]),
        *map(_address, tensors),
    )


def _problem(inputs: Inputs, edges: Edges, scale: float, lse: Tensor) -> _Attention:
    q, k, v, edge_q, attr, bias = inputs
    batch, _, heads, width = q.shape
    carried = (0, 0) if attr is None or edge_q is None else (attr.shape[1], edge_q.shape[3])
    sizes = (heads, k.shape[2], width, v.shape[3], *carried)
    return _Attention(
        *(DTYPES[q.dtype], batch, *sizes, scale, _edges(edges, k.shape[1])),
        *map(_address, (q, k, v, edge_q, attr, bias)),
        *(*steps_of(bias), None, None, _address(lse)),
    )


def _edges(edges: Edges, sources: int) -> _Edges:
    row_ptr, col, tie = edges
    return _Edges(
        *(row_ptr.shape[0] - 1, sources, col.shape[0], row_ptr.data_ptr(), col.data_ptr()),
        *(8 * col.itemsize, _address(tie), 0 if tie is None else 8 * tie.itemsize),
    )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _run(name: str, problem: ctypes.Structure, edges: Sequence[Edges]) -> None:
    _run_rows(name, problem, [(row_ptr, col.shape[0]) for row_ptr, col, _ in edges])


def _run_rows(name: str, problem: ctypes.Structure, rows: Sequence[tuple[Tensor, int]]) -> None:
    """Call a kernel; `rows` and the numbers of edges that they must end with explain a failure."""
    status = getattr(_library(), name)(ctypes.byref(problem), _ISA_AUTO, torch.get_num_threads())
    if status:
        raise_for(status, rows)


@functools.cache
def _library() -> ctypes.CDLL:
    found = library()
    for name in _FUNCTIONS:
        getattr(found, f"scisparse_{name}").argtypes = [_POINTER, ctypes.c_int, ctypes.c_int]
    return found
