# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""Kernels with faults that the check of GPU code must find; prints what it says of each.

Run by ``test_gpu_code.py`` in a process of its own: Triton compiles nothing where it interprets.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import torch
import triton
import triton.language as tl

from scisparse.kernels._triton import Call

CHECK = Path(__file__).parent.parent / ".ci" / "check_gpu_code.py"
spec = importlib.util.spec_from_file_location("check_gpu_code", CHECK)
assert spec is not None
assert spec.loader is not None
check = importlib.util.module_from_spec(spec)
sys.modules["check_gpu_code"] = check
spec.loader.exec_module(check)


@triton.jit
def sound(x, y, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y + at, tl.load(x + at))


@triton.jit
def spilling(x, y, N: tl.constexpr):
    total = tl.zeros([N, N], tl.float32)
    at = tl.arange(0, N)
    for k in range(64):  # 512 numbers for each of 32 threads, where 255 registers are to be had
        total = total * total + tl.load(x + k * N + at)[:, None] * tl.load(y + k * N + at)[None, :]
    tl.store(y + at[:, None] * N + at[None, :], total)


@triton.jit
def adding(x, y, N: tl.constexpr):
    tl.atomic_add(y + tl.arange(0, N) % 4, tl.load(x + tl.arange(0, N)))


@triton.jit
def narrow(x, y, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(y + at, tl.load(x + at * 3))


GENEROUS = {"registers": 255, "shared": 10**6, "barriers": 10**6}


def say(kernel: triton.JITFunction, budget: dict[str, int] | None, wide: bool) -> list[str]:
    x = torch.empty(128 * 128, device="meta")
    call = Call(__name__, kernel.__name__, 1, (x, x), {"N": 128}, warps=1)
    found: list[str] = check.faults(check.compile_triton(call, 90), budget, wide)
    return found


if __name__ == "__main__":
    said = {
        "sound": say(sound, GENEROUS, wide=True),
        "spilling": say(spilling, GENEROUS, wide=False),
        "adding": say(adding, GENEROUS, wide=False),
        "narrow": say(narrow, GENEROUS, wide=True),
        "tight": say(sound, GENEROUS | {"registers": 3}, wide=False),
        "unknown": say(sound, None, wide=False),
    }
    print(json.dumps(said))
