"""The compiled C++ kernels: loaded once, after torch; what their bindings share.

The library is linked without OpenMP: its OpenMP symbols resolve in the runtime that ``import
torch`` has loaded, so that there is one thread pool and ``torch.set_num_threads`` holds. Loading it
before torch would fail.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from scisparse.errors import BackendError
from scisparse.kernels._backends import why_not_dtype
from scisparse.kernels._debug import check_ends

__all__ = ["DTYPES", "can_run", "library", "load", "raise_for"]

#: Numbers of the types in the C interface.
DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
_LACKS = {1: "dtype", 2: "instruction set", 3: "memory for its workspace"}
_BAD_ROWS = 4

logger = logging.getLogger("scisparse.kernels")


@functools.cache
def load() -> ctypes.CDLL | str:
    """Return the library of C++ kernels, or the reason why there is none (logged once)."""
    folder = Path(__file__).parent
    found = sorted([*folder.glob("_cpu*.so"), *folder.glob("_cpu*.pyd")])
    if not found:
        reason = (
            "the C++ kernels were not compiled (no C++ compiler when scisparse was installed?); "
            "install a compiler and reinstall scisparse to use them"
        )
        logger.warning("slower reference kernels are used: %s", reason)
        return reason
    try:
        return ctypes.CDLL(str(found[0]))
    except OSError as error:
        reason = f"{found[0].name} cannot be loaded ({error})"
        logger.warning("slower reference kernels are used: %s", reason)
        return reason


def library() -> ctypes.CDLL:
    """Return the library, or raise for a backend that was chosen and cannot run."""
    loaded = load()
    if isinstance(loaded, str):
        raise BackendError(f"backend 'cpu' cannot run: {loaded}")
    return loaded


def can_run(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return ``None`` when the C++ kernels can run, else the reason."""
    if device.type != "cpu":
        return "it runs on the CPU alone"
    if (reason := why_not_dtype(dtype)) is not None:
        return reason
    loaded = load()
    return loaded if isinstance(loaded, str) else None


def raise_for(status: int, rows: Iterable[tuple[Tensor, int]]) -> None:
    """Raise what a kernel has reported; `rows` are each ``row_ptr`` and its number of edges."""
    if status == _BAD_ROWS:
        for row_ptr, count in rows:
            check_ends(row_ptr, count)
    raise BackendError(f"backend 'cpu' failed: it lacks the {_LACKS.get(status, status)}")
