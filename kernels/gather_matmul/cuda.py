"""Binding of the CUDA kernels (``cuda.cu``): compiled at run time with NVRTC, kept on disk.

``backend="auto"`` does not take them: no benchmark has shown yet where they are faster than the
Triton kernels.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scisparse.kernels._backends import why_not_capability, why_not_dtype
from scisparse.kernels._edges import sort_by_tie
from scisparse.kernels._segments import accumulator

__all__ = [
    "SOURCE",
    "Call",
    "can_run",
    "edge_outer",
    "gather_call",
    "gather_matmul",
    "is_installed",
    "outer_call",
    "ties_call",
]

logger = logging.getLogger("scisparse.kernels")

SOURCE = Path(__file__).with_name("cuda.cu")
THREADS = 128  # of a block
MOST_BATCHES = 4  # of a thread; each costs as many registers as it has outputs
_NUMBERS = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


def can_run(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return ``None`` when the CUDA kernels can run, else the reason."""
    if (reason := why_not_dtype(dtype)) is not None:
        return reason
    if device.type != "cuda":
        return "it runs on CUDA devices alone"
    if not is_installed():
        return 'cuda-core is not installed; install it with: pip install "scisparse[cuda]"'
    return why_not_capability(device)


@functools.cache
def is_installed() -> bool:
    """Whether there is cuda-core, which compiles and launches."""
    try:
        from cuda.core import Device, LaunchConfig, ObjectCode, Program, Stream, launch  # noqa: F401
    except ImportError:  # also of versions before 1.0
        return False
    return True


@dataclass(frozen=True)
class Call:
    """A kernel with all that it is launched with.

    Parameters
    ----------
    kernel
        Its name in ``cuda.cu``.
    macros
        What the source is compiled with, in order.
    threads
        How many threads have work.
    arguments
        Values of its parameters; :class:`Small` are those of 32 bits.
    """

    kernel: str
    macros: tuple[tuple[str, str], ...]
    threads: int
    arguments: tuple[Tensor | int, ...]

    def run(self, device: torch.device) -> None:
        """Compile it unless that was done before, and launch it on the current stream."""
        import numpy as np
        from cuda.core import Device, LaunchConfig, Stream, launch

        with torch.cuda.device(device):
            Device(torch.cuda.current_device()).set_current()
            major, minor = torch.cuda.get_device_capability(device)
            kernel = _load(self.macros, f"sm_{major}{minor}", device.index or 0).get_kernel(
                self.kernel
            )
            values = [
                v.data_ptr()
                if isinstance(v, Tensor)
                else np.int32(v)
                if isinstance(v, Small)
                else np.int64(v)
                for v in self.arguments
            ]
            stream = Stream.from_handle(torch.cuda.current_stream(device).cuda_stream)
            blocks = -(-self.threads // THREADS)
            launch(stream, LaunchConfig(grid=blocks, block=THREADS), kernel, *values)


class Small(int):
    """A number that the kernel takes in 32 bits."""


@functools.cache
def _load(macros: tuple[tuple[str, str], ...], arch: str, device: int) -> Any:
    """Machine code on a device, from the disk if it was compiled before."""
    from cuda.core import ObjectCode

    return ObjectCode.from_cubin(compiled(macros, arch))


def compiled(macros: tuple[tuple[str, str], ...], arch: str) -> bytes:
    """Compile for compute capability `arch`, or read what was compiled before.

    Kept in ``SCISPARSE_CACHE_DIR``, else in ``scisparse`` under the user's folder for caches.
    """
    from cuda.bindings import nvrtc
    from cuda.core import Program, ProgramOptions

    source = SOURCE.read_text()
    parts = (source, repr(macros), arch, repr(nvrtc.nvrtcVersion()))
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    path = _cache_folder() / f"gather_matmul-{digest[:32]}.cubin"
    if path.exists():
        return path.read_bytes()
    options = ProgramOptions(std="c++17", arch=arch, define_macro=list(macros))
    code = bytes(Program(source, "c++", options).compile("cubin").code)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as part:
            part.write(code)
        Path(part.name).replace(path)  # whole or not at all
    except OSError as error:
        logger.info("compiled code is not kept: %s", error)
    return code


def _cache_folder() -> Path:
    named = os.environ.get("SCISPARSE_CACHE_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scisparse"


def gather_matmul(
    x_BNC: Tensor,
    weight_TCO: Tensor,
    row_ptr_M1: Tensor,
    col_E: Tensor,
    tie_E: Tensor | None,
    transpose_weight: bool,
) -> Tensor:
    """Run a CUDA kernel; contract in :mod:`scisparse.kernels.gather_matmul`."""
    channels_out = weight_TCO.shape[1 if transpose_weight else 2]
    y = x_BNC.new_empty(x_BNC.shape[0], row_ptr_M1.numel() - 1, channels_out)
    if y.numel() == 0 or col_E.numel() == 0 or x_BNC.shape[2] == 0:
        return y.zero_()
    call = gather_call(x_BNC, weight_TCO, row_ptr_M1, col_E, tie_E, y, transpose_weight)
    call.run(y.device)
    return y


def gather_call(
    x: Tensor,
    weight: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    tie: Tensor | None,
    y: Tensor,
    transpose_weight: bool,
) -> Call:
    """Return the call that fills `y`; nothing is empty."""
    (batch, sources, _), (sites, channels_out) = x.shape, y.shape[1:]
    batches = min(1 << (batch - 1).bit_length(), MOST_BATCHES)
    groups = -(-batch // batches)
    macros = _macros(x, y, col, tie, batches)
    outputs = 1 if transpose_weight else int(dict(macros)["OUTPUTS"])
    col, tie = _alike(col, tie)
    tensors = (*map(_aligned, (x, weight)), row_ptr.contiguous(), col, col if tie is None else tie)
    return Call(
        "gather_transposed" if transpose_weight else "gather_plain",
        macros,
        sites * groups * (channels_out // outputs),
        (*tensors, y, sites, sources, Small(batch), Small(groups)),
    )


def edge_outer(
    x_BNC: Tensor,
    grad_BMO: Tensor,
    row_ptr_M1: Tensor,
    col_E: Tensor,
    tie_E: Tensor | None,
    num_weights: int,
) -> Tensor:
    """Run a CUDA kernel; contract in :mod:`scisparse.kernels.gather_matmul`."""
    out = x_BNC.new_empty(num_weights, x_BNC.shape[2], grad_BMO.shape[2])
    if out.numel() == 0 or col_E.numel() == 0 or x_BNC.shape[0] == 0:
        return out.zero_()
    if tie_E is None:
        outer_call(x_BNC, grad_BMO, row_ptr_M1, col_E, out).run(out.device)
        return out
    call, parts = ties_call(
        x_BNC, grad_BMO, *sort_by_tie(row_ptr_M1, col_E, tie_E, num_weights), out
    )
    call.run(out.device)
    return out.copy_(parts.sum(0))


def outer_call(x: Tensor, grad: Tensor, row_ptr: Tensor, col: Tensor, out: Tensor) -> Call:
    """Return the call that fills `out` where every edge has its own weight; nothing is empty."""
    (batch, sources, _), (sites, channels_out) = x.shape, grad.shape[1:]
    macros = _macros(x, grad, col, None, 1)
    tensors = (*map(_aligned, (x, grad)), row_ptr.contiguous(), col.contiguous(), out)
    threads = sites * (channels_out // int(dict(macros)["OUTPUTS"]))
    return Call("outer_edges", macros, threads, (*tensors, sites, sources, Small(batch)))


def ties_call(
    x: Tensor, grad: Tensor, tie_ptr: Tensor, col: Tensor, site: Tensor, out: Tensor
) -> tuple[Call, Tensor]:
    """Return a call, and the tensor ``[parts, T, C, O]`` that it fills; nothing is empty.

    `col` and `site` are those of the edges sorted by tie; `tie_ptr` is where each tie begins.
    """
    (batch, sources, _), sites = x.shape, grad.shape[1]
    wanted = (1 << 18) // out.numel()  # threads that fill a GPU
    parts = max(1, min(wanted, col.numel() // (16 * out.shape[0])))
    sums = x.new_empty(parts, *out.shape, dtype=accumulator(x.dtype))
    tensors = (*map(_aligned, (x, grad)), tie_ptr, col, site, sums)
    sizes = (sites, sources, Small(batch), out.shape[0], Small(parts))
    return Call(
        "outer_ties", _macros(x, grad, col, None, 1), sums.numel(), (*tensors, *sizes)
    ), sums


def _macros(
    x: Tensor, y: Tensor, col: Tensor, tie: Tensor | None, batches: int
) -> tuple[tuple[str, str], ...]:
    """What ``cuda.cu`` is compiled with: threads read 16 bytes at once where widths allow it."""
    most = 16 // x.element_size()
    channels_in, channels_out = x.shape[2], y.shape[2]
    wide = torch.int64 in (col.dtype, col.dtype if tie is None else tie.dtype)
    values = {
        "NUMBER": _NUMBERS[x.dtype],
        "CHANNELS_IN": channels_in,
        "CHANNELS_OUT": channels_out,
        "TIED": int(tie is not None),
        "INDEX": "long long" if wide else "int",
        "OUTPUTS": _divisor(channels_out, most),
        "INPUTS": _divisor(channels_in, most),
        "BATCHES": batches,
    }
    return tuple((name, str(value)) for name, value in values.items())


def _divisor(count: int, most: int) -> int:
    """The largest power of two that divides `count`, at most `most`."""
    return min(count & -count, most)


def _aligned(tensor: Tensor) -> Tensor:
    """Contiguous, and on 16 bytes as wide reads need it: views and foreign memory may not be."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _alike(col: Tensor, tie: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Contiguous indices of one type."""
    if tie is None or tie.dtype == col.dtype:
        return col.contiguous(), None if tie is None else tie.contiguous()
    return col.long().contiguous(), tie.long().contiguous()
