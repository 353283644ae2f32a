"""Loads the compiled C++ kernels, once, and after torch.

The library is linked without OpenMP: its OpenMP symbols resolve in the runtime that ``import
torch`` has loaded, so that there is one thread pool and ``torch.set_num_threads`` holds. Loading it
before torch would fail.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path

import torch  # noqa: F401 (loads the OpenMP runtime that the library needs)

__all__ = ["load"]

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
