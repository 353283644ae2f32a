"""What this installation can do: devices, backends, and how exact each kernel is."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import NamedTuple

import torch
from torch import Tensor

from scisparse.kernels._backends import Implementation
from scisparse.kernels._segments import accumulator
from scisparse.kernels.gather_matmul import edge_outer, gather_matmul
from scisparse.kernels.gather_matmul.ops import GATHER_IMPLEMENTATIONS, OUTER_IMPLEMENTATIONS
from scisparse.kernels.graph_attention import graph_attention, sddmm, segment_softmax, spmm
from scisparse.kernels.graph_attention.ops import IMPLEMENTATIONS
from scisparse.kernels.laplacian import IMPLEMENTATIONS as LAPLACIANS
from scisparse.kernels.laplacian import dirichlet_energy, laplacian

__all__ = ["KERNELS", "largest_errors", "report"]

_EXTRAS = {
    "verify": ("scores", "scoringrules"),
    "plot": ("matplotlib",),
    "big": ("dask", "zarr"),
    "cuda": ("cuda.core",),
    "gpu": ("cuda.core", "triton"),
}
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class _Problem(NamedTuple):
    """Random numbers over a random pattern; channels are two heads."""

    x: Tensor  # sources [B, N, C]
    y: Tensor  # sites [B, M, C]
    weight: Tensor  # of edges [E, C, C]
    value: Tensor  # of edges [B, E, 2]
    row_ptr: Tensor
    col: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> _Problem:
        numbers = (tensor.to(device, dtype) for tensor in self[:4])
        return _Problem(*numbers, *(tensor.to(device) for tensor in self[4:]))


class _Kernel(NamedTuple):
    """How an operator can be run, best first, and a call of it, given a problem and a backend."""

    implementations: tuple[Implementation, ...]
    run: Callable[[_Problem, str], Tensor]


def _heads(channels: Tensor) -> Tensor:
    split: Tensor = channels.unflatten(2, (2, -1))
    return split


def _gather_matmul(p: _Problem, backend: str) -> Tensor:
    return gather_matmul(p.x, p.weight, p.row_ptr, p.col, backend=backend)


def _edge_outer(p: _Problem, backend: str) -> Tensor:
    return edge_outer(p.x, p.y, p.row_ptr, p.col, backend=backend)


def _graph_attention(p: _Problem, backend: str) -> Tensor:
    q, k = _heads(p.y), _heads(p.x)
    return graph_attention(q, k, k, p.row_ptr, p.col, backend=backend)


def _spmm(p: _Problem, backend: str, reduce: str = "sum") -> Tensor:
    value = p.value.to(accumulator(p.x.dtype))
    return spmm(value, _heads(p.x), p.row_ptr, p.col, reduce=reduce, backend=backend)


def _spmm_max(p: _Problem, backend: str) -> Tensor:
    return _spmm(p, backend, "max")


def _sddmm(p: _Problem, backend: str) -> Tensor:
    return sddmm(_heads(p.y), _heads(p.x), p.row_ptr, p.col, backend=backend)


def _segment_softmax(p: _Problem, backend: str) -> Tensor:
    return segment_softmax(p.value, p.row_ptr, backend=backend)


def _laplacian(p: _Problem, backend: str, of: Callable[..., Tensor] = laplacian) -> Tensor:
    return of(p.y[0], p.row_ptr, p.col, p.value[0, :, 0].square(), backend=backend)


def _dirichlet_energy(p: _Problem, backend: str) -> Tensor:
    return _laplacian(p, backend, dirichlet_energy)


def _slopes(call: Callable[..., Tensor], grad: Tensor, *inputs: Tensor) -> Tensor:
    """Derivatives of ``sum(grad * call(*inputs))``, side by side."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        y = call(*leaves)
    return torch.cat([slope.flatten() for slope in torch.autograd.grad(y, leaves, grad)])


def _attention_backward(p: _Problem, backend: str) -> Tensor:
    def attend(sites: Tensor, sources: Tensor) -> Tensor:
        return _graph_attention(p._replace(y=sites, x=sources), backend)

    return _slopes(attend, _heads(p.y), p.y, p.x)


def _softmax_backward(p: _Problem, backend: str) -> Tensor:
    return _slopes(
        lambda score: _segment_softmax(p._replace(value=score), backend), p.value, p.value
    )


def _choice_sources(p: _Problem, backend: str) -> Tensor:
    return _slopes(lambda x: _spmm_max(p._replace(x=x), backend), _heads(p.y), p.x)


def _choice_edges(p: _Problem, backend: str) -> Tensor:
    return _slopes(lambda value: _spmm_max(p._replace(value=value), backend), _heads(p.y), p.value)


#: What is checked, by name: every operator, the backward passes that are operators too.
KERNELS = {
    "gather_matmul": _Kernel(GATHER_IMPLEMENTATIONS, _gather_matmul),
    "edge_outer": _Kernel(OUTER_IMPLEMENTATIONS, _edge_outer),
    "graph_attention": _Kernel(IMPLEMENTATIONS["attention"], _graph_attention),
    "spmm": _Kernel(IMPLEMENTATIONS["spmm"], _spmm),
    "spmm (max)": _Kernel(IMPLEMENTATIONS["spmm_extreme"], _spmm_max),
    "sddmm": _Kernel(IMPLEMENTATIONS["sddmm"], _sddmm),
    "segment_softmax": _Kernel(IMPLEMENTATIONS["segment_softmax"], _segment_softmax),
    "laplacian": _Kernel(LAPLACIANS["laplacian"], _laplacian),
    "dirichlet_energy": _Kernel(LAPLACIANS["energy_of_rows"], _dirichlet_energy),
    "graph_attention (backward)": _Kernel(
        IMPLEMENTATIONS["attention_backward"], _attention_backward
    ),
    "segment_softmax (backward)": _Kernel(
        IMPLEMENTATIONS["segment_softmax_backward"], _softmax_backward
    ),
    "spmm (max, backward to sources)": _Kernel(IMPLEMENTATIONS["choice_sources"], _choice_sources),
    "spmm (max, backward to values)": _Kernel(IMPLEMENTATIONS["choice_edges"], _choice_edges),
}


def report() -> Iterator[str]:
    """Lines that say what runs here and why what does not run does not."""
    python = platform.python_version()
    yield f"scisparse {version('scisparse')}, torch {torch.__version__}, Python {python}"
    yield f"cpu: {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield f"cuda:{index}: {torch.cuda.get_device_name(index)}"
    else:
        yield "cuda: none found"
    for extra, modules in _EXTRAS.items():
        missing = ", ".join(module for module in modules if not _is_installed(module))
        remedy = f'off, no {missing}: pip install "scisparse[{extra}]"'
        yield f"extra {extra}: " + (remedy if missing else "installed")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in map(torch.device, devices):
        for kernel, (implementations, _) in KERNELS.items():
            for implementation in implementations:
                reason = implementation.can_run(device, torch.float32)
                name = f"{kernel} on {device}, backend {implementation.name}"
                if reason is not None:
                    yield f"{name}: off, {reason}"
                    continue
                errors = largest_errors(kernel, implementation.name, device)
                shown = ", ".join(f"{d} {e:.1e}" for d, e in errors.items())
                yield f"{name}: largest relative error against float64: {shown}"


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


def largest_errors(kernel: str, backend: str, device: torch.device) -> dict[str, float]:
    """Largest error of one of `KERNELS` by dtype, relative to the largest value of the result."""
    run = KERNELS[kernel].run
    problem, cpu = _problem(), torch.device("cpu")
    errors = {}
    for dtype in _DTYPES:
        # Rounded first, so that the error is that of the kernel alone.
        rounded = problem.to(cpu, dtype)
        exact = run(rounded.to(cpu, torch.float64), "reference")
        found = run(rounded.to(device, dtype), backend).to(exact)
        name = str(dtype).removeprefix("torch.")
        errors[name] = float((found - exact).abs().max() / exact.abs().max())
    return errors


def _problem() -> _Problem:
    """Small, as Triton's interpreter is slow, and of sizes that fill no tile exactly."""
    generator = torch.Generator().manual_seed(0)
    batch, sites, sources, fan_in, channels = 2, 23, 19, 7, 16
    sizes = (
        (batch, sources, channels),
        (batch, sites, channels),
        (sites * fan_in, channels, channels),
        (batch, sites * fan_in, 2),
    )
    x, y, weight, value = (
        torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes
    )
    chosen = torch.rand(sites, sources, generator=generator).topk(fan_in).indices
    row_ptr, col = torch.arange(sites + 1) * fan_in, chosen.sort().values.flatten()
    return _Problem(x, y, weight, value, row_ptr, col)
