"""Binding of the C++ kernels (``cpu.hpp``) through their plain C interface."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from scisparse.errors import BackendError
from scisparse.kernels._backends import why_not_dtype
from scisparse.kernels._native import load

__all__ = ["can_run", "edge_outer", "gather_matmul"]

_DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
_ISA_AUTO = 0
_STATUS = {1: "dtype", 2: "instruction set", 3: "memory for its workspace"}


def can_run(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return ``None`` when the C++ kernels can run, else the reason."""
    if device.type != "cpu":
        return "it runs on the CPU alone"
    if (reason := why_not_dtype(dtype)) is not None:
        return reason
    library = load()
    return library if isinstance(library, str) else None


def gather_matmul(
    x_BNC: Tensor,
    weight_TCO: Tensor,
    row_ptr_M1: Tensor,
    col_E: Tensor,
    tie_E: Tensor | None,
    transpose_weight: bool,
) -> Tensor:
    """Run the C++ kernel; contract in :mod:`scisparse.kernels.gather_matmul`."""
    x, weight = x_BNC.contiguous(), weight_TCO.contiguous()
    batch, sources, channels_in = x.shape
    channels_out = weight.shape[1 if transpose_weight else 2]
    row_ptr, col, tie = _indices(row_ptr_M1, col_E, tie_E)
    sites = row_ptr.numel() - 1
    y = x.new_empty(batch, sites, channels_out)
    status = _library().scisparse_gather_matmul(
        _DTYPES[x.dtype],
        _ISA_AUTO,
        *_sizes(batch, sites, sources, channels_in, channels_out),
        *_pointers(x, weight),
        *_edges(row_ptr, col, tie),
        ctypes.c_int(transpose_weight),
        *_pointers(y),
        torch.get_num_threads(),
    )
    _raise_for(status)
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
    x, grad = x_BNC.contiguous(), grad_BMO.contiguous()
    batch, sources, channels_in = x.shape
    sites, channels_out = grad.shape[1:]
    row_ptr, col, tie = _indices(row_ptr_M1, col_E, tie_E)
    out = x.new_empty(num_weights, channels_in, channels_out)
    status = _library().scisparse_edge_outer(
        _DTYPES[x.dtype],
        _ISA_AUTO,
        *_sizes(batch, sites, sources, channels_in, channels_out, num_weights),
        *_pointers(x, grad),
        *_edges(row_ptr, col, tie),
        *_pointers(out),
        torch.get_num_threads(),
    )
    _raise_for(status)
    return out


def _library() -> ctypes.CDLL:
    library = load()
    if isinstance(library, str):
        raise BackendError(f"backend 'cpu' cannot run: {library}")
    return library


def _indices(
    row_ptr: Tensor, col: Tensor, tie: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Contiguous index tensors."""
    return row_ptr.contiguous(), col.contiguous(), None if tie is None else tie.contiguous()


def _sizes(*sizes: int) -> list[ctypes.c_int64]:
    return [ctypes.c_int64(size) for size in sizes]


def _pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]


def _edges(row_ptr: Tensor, col: Tensor, tie: Tensor | None) -> list[Any]:
    return [*_pointers(row_ptr, col), _bits(col), *_pointers(tie), _bits(tie)]


def _bits(index: Tensor | None) -> int:
    return 0 if index is None else 8 * index.element_size()


def _raise_for(status: int) -> None:
    if status:
        raise BackendError(f"backend 'cpu' failed: it lacks the {_STATUS.get(status, status)}")
