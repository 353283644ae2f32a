"""What this installation can do: devices, backends, and how exact each kernel is."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterator
from importlib.metadata import version

import torch
from torch import Tensor

from scisparse.kernels.gather_matmul import edge_outer, gather_matmul, ops, reference
from scisparse.kernels.graph_attention import graph_attention
from scisparse.kernels.graph_attention import ops as attention_ops

__all__ = ["largest_errors", "report"]

_EXTRAS = {
    "verify": "scoringrules",
    "plot": "matplotlib",
    "big": "zarr",
    "bias": "xsdba",
    "cuda": "cuda.core",
    "gpu": "triton",
}
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_KERNELS = {
    "gather_matmul": ops.GATHER_IMPLEMENTATIONS,
    "edge_outer": ops.OUTER_IMPLEMENTATIONS,
    "graph_attention": attention_ops.IMPLEMENTATIONS["attention"],
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
    for extra, module in _EXTRAS.items():
        remedy = f'off, pip install "scisparse[{extra}]"'
        yield f"extra {extra}: " + ("installed" if _is_installed(module) else remedy)
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in map(torch.device, devices):
        for kernel, implementations in _KERNELS.items():
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
    """Largest error of a kernel by dtype, relative to the largest value, on a random pattern."""
    generator = torch.Generator().manual_seed(0)
    sites, sources, fan_in, channels = 500, 400, 9, 16
    row_ptr = torch.arange(sites + 1) * fan_in
    col = (
        torch.rand(sites, sources, generator=generator).topk(fan_in).indices.sort().values.flatten()
    )
    x = torch.randn(4, sources, channels, generator=generator, dtype=torch.float64)
    weight = torch.randn(len(col), channels, channels, generator=generator, dtype=torch.float64)
    grad = torch.randn(4, sites, channels, generator=generator, dtype=torch.float64)
    errors = {}
    for dtype in _DTYPES:
        inputs = [t.to(dtype) for t in (x, weight, grad)]
        exact = _run(
            kernel, "reference", [t.double() for t in inputs], row_ptr, col, torch.device("cpu")
        )
        found = _run(kernel, backend, inputs, row_ptr, col, device).double()
        name = str(dtype).removeprefix("torch.")
        errors[name] = float((found - exact).abs().max() / exact.abs().max())
    return errors


def _run(
    kernel: str,
    backend: str,
    inputs: list[Tensor],
    row_ptr: Tensor,
    col: Tensor,
    device: torch.device,
) -> Tensor:
    x, weight, grad, row_ptr, col = (t.to(device) for t in (*inputs, row_ptr, col))
    if kernel == "graph_attention":  # channels are two heads
        q, k = grad.unflatten(2, (2, -1)), x.unflatten(2, (2, -1))
        return graph_attention(q, k, k, row_ptr, col, backend=backend).cpu()
    if backend == "reference" and device.type == "cpu":
        if kernel == "gather_matmul":
            return reference.gather_matmul(x, weight, row_ptr, col, None, False)
        return reference.edge_outer(x, grad, row_ptr, col, None, len(col))
    if kernel == "gather_matmul":
        return gather_matmul(x, weight, row_ptr, col, backend=backend).cpu()
    return edge_outer(x, grad, row_ptr, col, backend=backend).cpu()
