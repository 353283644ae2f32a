"""Binding of the C++ kernel (``cpu.hpp``) through its plain C interface."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from scisparse.kernels._kept import empty_output
from scisparse.kernels._native import DTYPES, can_run, library, raise_for

__all__ = ["can_run", "energy_of_rows", "laplacian"]

_SIZE, _POINTER = ctypes.c_int64, ctypes.c_void_p
_ISA_AUTO = 0


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, _SIZE) for name in ("dtype", "rows", "width", "count")),
        *((name, _POINTER) for name in ("row_ptr", "col")),
        ("col_bits", _SIZE),
        *((name, _POINTER) for name in ("value", "x", "y", "energy")),
    )


def laplacian(x: Tensor, row_ptr: Tensor, col: Tensor, value: Tensor) -> Tensor:
    """Run the C++ kernel; see the function of the same name in ``reference``."""
    y = empty_output((x.shape[0], x.shape[1]), x.dtype)
    if y.numel():  # what is empty has no address, as what is not wanted
        _run((x, row_ptr, col, value), y, None)
    return y


def energy_of_rows(x: Tensor, row_ptr: Tensor, col: Tensor, value: Tensor) -> Tensor:
    """Run the C++ kernel; see the function of the same name in ``reference``."""
    energy = x.new_empty(len(x))
    _run((x, row_ptr, col, value), None, energy)
    return energy


def _run(inputs: tuple[Tensor, ...], y: Tensor | None, energy: Tensor | None) -> None:
    x, row_ptr, col, value = (t.contiguous() for t in inputs)
    places = [None if t is None else t.data_ptr() for t in (value, x, y, energy)]
    problem = _Problem(
        *(DTYPES[x.dtype], *x.shape, len(col), row_ptr.data_ptr(), col.data_ptr()),
        *(8 * col.itemsize, *places),
    )
    status = _library().scisparse_laplacian(
        ctypes.byref(problem), _ISA_AUTO, torch.get_num_threads()
    )
    if status:
        raise_for(status, [(row_ptr, len(col))])


@functools.cache
def _library() -> ctypes.CDLL:
    found = library()
    found.scisparse_laplacian.argtypes = [_POINTER, ctypes.c_int, ctypes.c_int]
    return found
