"""Peak memory of a step, in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from contextlib import nullcontext, suppress
from pathlib import Path

import torch

from benchmarks.registry import Case, Implementation, Work

__all__ = ["STAGES", "Process", "extra_memory", "measure_here"]

STAGES = ("forward", "backward")


def extra_memory(case: Case, work: Work | None, peers: bool) -> dict[str, dict[str, float]]:
    """Peak memory beyond inputs, outputs and gradients, as a fraction of these.

    Resident memory at its highest (``VmHWM`` of Linux, reset before each step), in a new process,
    less what was resident before and what the step returns. Empty on other systems. On a GPU what
    torch has allocated at its highest, in this process, from `work` where it is still there.
    """
    if case.device == "cuda":
        return measure_here(work or case.make(), peers)
    if not Path("/proc/self/clear_refs").exists():
        return {}
    command = [sys.executable, "-m", "benchmarks", "memory", case.name, *(["--peers"] * peers)]
    command += ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"measuring the memory of {case.name!r} failed: {last[0]}")
    result: dict[str, dict[str, float]] = json.loads(done.stdout)
    return result


def measure_here(work: Work, peers: bool) -> dict[str, dict[str, float]]:
    """Measure in this process; it should have done nothing else.

    What fails but is not the first, which users get, is left out: it is listed as not run.
    """
    measured = {}
    for place, make in enumerate(work.makers):  # ours come first
        with nullcontext() if place == 0 else suppress(Exception):
            implementation = make()
            if not (implementation.ours or peers):
                break
            if implementation.trains:
                measured[implementation.name] = _measure(implementation)
    return measured


def _measure(implementation: Implementation) -> dict[str, float]:
    x = implementation.x.detach().requires_grad_()
    weight = implementation.weight.detach().requires_grad_()
    gradient = implementation.grad
    meter = _Gpu() if x.is_cuda else Process()
    _warm_up(implementation)
    before = meter.start()
    with torch.no_grad():
        output = implementation.run(x, weight)
    kept = _bytes(output)
    used = _bytes(x) + _bytes(weight) + kept
    forward = max(0, meter.peak() - before - kept) / used
    del output
    before = meter.start()
    gradients = torch.autograd.grad(implementation.run(x, weight), (x, weight), gradient)
    kept = _bytes(gradient) + sum(map(_bytes, gradients))  # the output is as large as its gradient
    used = _bytes(x) + _bytes(weight) + _bytes(gradient) + kept
    backward = max(0, meter.peak() - before - kept) / used
    return {"forward": forward, "backward": backward}


def _warm_up(implementation: Implementation) -> None:
    """Start threads and load libraries, which is not memory of the step."""
    device = implementation.x.device
    a = torch.randn(256, 256, device=device)
    torch.bmm(a.expand(8, -1, -1), a.expand(8, -1, -1)).sum()
    x = torch.zeros(1, 2, 1, device=device, requires_grad=True)
    if implementation.ours:
        from scisparse.kernels.gather_matmul import gather_matmul

        row_ptr = torch.tensor([0, 1, 2], device=device)
        col = torch.tensor([0, 1], dtype=torch.int32, device=device)
        weight = torch.ones(2, 1, 1, device=device, requires_grad=True)
        y = gather_matmul(x, weight, row_ptr, col)
    else:
        weight = torch.ones(2, 1, device=device, requires_grad=True)
        y = torch.einsum("bnc,nc->bn", x, weight)
    torch.autograd.grad(y, (x, weight), torch.ones_like(y))


class _Gpu:
    """What torch has allocated on the current GPU."""

    def start(self) -> int:
        """Forget the high-water mark; return what is allocated."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """Return the high-water mark."""
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


class Process:
    """What is resident of this process."""

    def start(self) -> int:
        """Give free memory back, set the high-water mark to what is resident; return that."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")

    def peak(self) -> int:
        """Return the high-water mark."""
        return _status("VmHWM")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
