"""Binding of the C++ kernels (``cpu.hpp``) through their plain C interface."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from scisparse.kernels import _kept
from scisparse.kernels._native import DTYPES, can_run, library, raise_for

__all__ = ["can_run", "edge_outer", "gather_matmul"]

_ISA_AUTO = 0


def gather_matmul(
    x_BNC: Tensor,
    weight_TCO: Tensor,
    row_ptr_M1: Tensor,
    col_E: Tensor,
    tie_E: Tensor | None,
    transpose_weight: bool,
) -> Tensor:
    """Run the C++ kernel; contract in :mod:`scisparse.kernels.gather_matmul`."""
    x, weight = _dense(x_BNC), _dense(weight_TCO)
    batch, sources, channels_in = x.shape
    channels_out = weight.shape[1 if transpose_weight else 2]
    edges = _dense(row_ptr_M1), _dense(col_E), None if tie_E is None else _dense(tie_E)
    sites = row_ptr_M1.shape[0] - 1
    y = _kept.empty_output((batch, sites, channels_out), x.dtype)
    status = _library().scisparse_gather_matmul(
        DTYPES[x.dtype],
        _ISA_AUTO,
        *(batch, sites, sources, channels_in, channels_out),
        *(x.data_ptr(), weight.data_ptr()),
        *_edges(*edges),
        *(transpose_weight, y.data_ptr()),
        torch.get_num_threads(),
    )
    if status:
        raise_for(status, [(row_ptr_M1, col_E.shape[0])])
    return y


def edge_outer(
    x_BNC: Tensor,
    grad_BMO: Tensor,
    row_ptr_M1: Tensor,
    col_E: Tensor,
    tie_E: Tensor | None,
    num_weights: int,
) -> Tensor:
    """Run the C++ kernel; contract in :mod:`scisparse.kernels.gather_matmul`."""
    x, grad = _dense(x_BNC), _dense(grad_BMO)
    batch, sources, channels_in = x.shape
    sites, channels_out = grad.shape[1:]
    edges = _dense(row_ptr_M1), _dense(col_E), None if tie_E is None else _dense(tie_E)
    out, fresh = _kept.empty(col_E, (num_weights, channels_in, channels_out), x.dtype)
    status = _library().scisparse_edge_outer(
        DTYPES[x.dtype],
        _ISA_AUTO,
        *(batch, sites, sources, channels_in, channels_out, num_weights),
        *(x.data_ptr(), grad.data_ptr()),
        *_edges(*edges),
        *(out.data_ptr(), fresh, torch.get_num_threads()),
    )
    if status:
        raise_for(status, [(row_ptr_M1, col_E.shape[0])])
    return out


@functools.cache
def _library() -> ctypes.CDLL:
    return declare(library())


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Name the types of the arguments, so that plain numbers can be passed."""
    kind, size, pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    edges: list[Any] = [pointer, pointer, size, kind, pointer, kind]
    tensors: list[Any] = [pointer, pointer]
    library.scisparse_gather_matmul.argtypes = (
        [kind, kind] + 5 * [size] + tensors + edges + [kind, pointer, kind]
    )
    library.scisparse_edge_outer.argtypes = (
        [kind, kind] + 6 * [size] + tensors + edges + [pointer, kind, kind]
    )
    return library


def _dense(tensor: Tensor) -> Tensor:
    """`tensor`, contiguous; asking first is cheaper than a copy that does nothing."""
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _edges(row_ptr: Tensor, col: Tensor, tie: Tensor | None) -> tuple[int | None, ...]:
    """Addresses, number and widths of contiguous index tensors."""
    ties = (None, 0) if tie is None else (tie.data_ptr(), 8 * tie.itemsize)
    return row_ptr.data_ptr(), col.data_ptr(), col.shape[0], 8 * col.itemsize, *ties
