"""What the bindings of all Triton kernels share: whether they can run, and how one is launched.

``TRITON_INTERPRET=1``, set before Triton is imported, runs them on the CPU, slowly: how they are
tested without a GPU.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scisparse.kernels._backends import why_not_capability, why_not_dtype

__all__ = [
    "Call",
    "accumulator_type",
    "can_run",
    "ceil_div",
    "is_interpreted",
    "is_wide",
    "larger_tiles",
    "power_of_two",
]

_INT32 = 2**31 - 1


def can_run(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return ``None`` when the Triton kernels can run, else the reason."""
    if (reason := why_not_dtype(dtype)) is not None:
        return reason
    if device.type != "cuda" and not (device.type == "cpu" and is_interpreted()):
        return "it runs on CUDA devices alone (on the CPU only with TRITON_INTERPRET=1)"
    if not _is_installed():
        return 'Triton is not installed; install it with: pip install "scisparse[gpu]"'
    return why_not_capability(device) if device.type == "cuda" else None


@functools.cache
def _is_installed() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def is_interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on the CPU."""
    if not _is_installed():
        return False
    from triton import knobs

    return bool(knobs.runtime.interpret)


def larger_tiles(times: int) -> int:
    """How many times larger tiles may be: the interpreter takes as long for a large one."""
    return times if is_interpreted() else 1


@dataclass(frozen=True)
class Call:
    """A kernel with all that it is launched with; tensors on the meta device serve to compile it.

    Parameters
    ----------
    module, kernel
        Where it is defined, and its name there.
    programs
        Size of the grid.
    arguments, constants
        Values of its parameters in their order, then its compile-time constants by name.
    warps
        Warps of 32 threads in each program.
    """

    module: str
    kernel: str
    programs: int
    arguments: tuple[Tensor | int | float, ...]
    constants: dict[str, Any]
    warps: int

    def function(self) -> Any:
        """The kernel itself; its module needs Triton."""
        return getattr(importlib.import_module(self.module), self.kernel)

    def options(self) -> dict[str, Any]:
        """Options of the compiler."""
        return {"num_warps": self.warps, "enable_fp_fusion": True}

    def run(self, device: torch.device) -> None:
        """Launch it on the current stream of `device`."""
        kernel = self.function()
        with torch.cuda.device(device if device.type == "cuda" else -1):
            kernel[(self.programs,)](*self.arguments, **self.constants, **self.options())


def accumulator_type(dtype: torch.dtype) -> Any:
    """Triton's type in which numbers of `dtype` are added up."""
    import triton.language as tl

    return tl.float64 if dtype == torch.float64 else tl.float32


def is_wide(*tensors: Tensor) -> bool:
    """Whether offsets may pass 32 bits; those of masked numbers may wrap, as they are not read."""
    return max(t.numel() for t in tensors) > _INT32 - 2**24


def ceil_div(a: int, b: int) -> int:
    """How many parts of size `b` hold `a`."""
    return -(-a // b)


def power_of_two(count: int, least: int = 1, most: int = 2**62) -> int:
    """The power of two that holds `count`, within bounds that are powers of two."""
    return max(least, min(most, 1 << max(count - 1, 0).bit_length()))
