"""Compile the GPU kernels ahead of time, without a GPU, and hold the machine code to budgets.

For every call below and every target: no spilled register, no atomic instruction, reads of 16 bytes
where the kernel promises them, and registers and shared memory within ``gpu_budgets.json``.

    python .ci/check_gpu_code.py            # check
    python .ci/check_gpu_code.py --renew    # write the budgets anew, to be read and committed
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from scisparse.kernels.gather_matmul import triton as binding
from scisparse.kernels.gather_matmul import triton_kernels

BUDGETS = Path(__file__).with_name("gpu_budgets.json")
TARGETS = (80, 90, 100)
TYPES = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
}


@dataclass(frozen=True)
class Code:
    """What counts in the machine code of a kernel."""

    registers: int
    shared: int  # bytes
    spills: int  # bytes of the stack, and instructions that use it
    atomics: int
    barriers: int  # numbers that change threads
    wide_reads: int  # of 16 bytes


def read_code(built: Any) -> Code:
    """Read registers, memory and instructions of a compiled kernel."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        run = [str(tools / "cuobjdump"), file.name]
        usage = _run([*run, "--dump-resource-usage"])
        listing = _run([*run, "--dump-sass"])
    numbers = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", usage)}
    pattern = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)"
    found = collections.Counter(re.findall(pattern, listing, re.MULTILINE))
    if not found or "REG" not in numbers:
        raise RuntimeError("cuobjdump shows no machine code; is it of the Triton that compiled it?")

    def count(expression: str) -> int:
        return sum(n for name, n in found.items() if re.match(expression, name))

    return Code(
        registers=numbers["REG"],
        shared=built.metadata.shared,
        spills=numbers["STACK"] + numbers["LOCAL"] + count(r"(LDL|STL)\b"),
        atomics=count(r"(ATOM|ATOMG|ATOMS|RED|REDG|REDS)\b"),
        barriers=count(r"BAR\b"),
        wide_reads=count(r"(LDG|LDGSTS)\..*128"),
    )


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


def compile_call(call: binding.Call, target: int, kernel: Any = None) -> Any:
    """Compile a call for compute capability `target`, from its meta tensors alone."""
    kernel = kernel or getattr(triton_kernels, call.kernel)
    signature, attributes = {}, {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, call.arguments, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
    signature |= dict.fromkeys(call.constants, "constexpr")
    source = ASTSource(kernel, signature, call.constants, attributes)
    return triton.compile(source, GPUTarget("cuda", target, 32), call.options())


def calls() -> Iterator[tuple[str, binding.Call, bool]]:
    """Name, call, and whether it must read 16 bytes at once: one of every kind of plan."""
    sites = 721 * 1440
    for batch, c, o, dtype, tied in (
        (1, 8, 8, torch.float32, False),
        (4, 8, 8, torch.float32, False),
        (4, 8, 8, torch.bfloat16, False),
        (8, 16, 16, torch.float32, False),
        (8, 16, 16, torch.bfloat16, False),
        (8, 16, 16, torch.float16, True),
        (8, 22, 8, torch.float32, False),
        (8, 8, 1, torch.float32, False),
        (16, 1, 1, torch.float32, False),
        (32, 64, 64, torch.float32, False),
        (4, 3, 5, torch.float64, True),
    ):
        edges, weights = 9 * sites, 12 if tied else 9 * sites

        def tensor(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        row_ptr = tensor(sites + 1, dtype=torch.int64)
        col = tensor(edges, dtype=torch.int32)
        tie = col if tied else None
        x, y = tensor(batch, sites, c), tensor(batch, sites, o)
        weight = tensor(weights, c, o)
        name = f"{c}->{o} B{batch} {str(dtype).removeprefix('torch.')}{' tied' if tied else ''}"
        wide = c % 8 == 0 and o % (2 * 16 // dtype.itemsize) == 0
        yield f"forward {name}", binding.gather_call(x, weight, row_ptr, col, tie, y, False), wide
        # Transposed edges read the weights in another order, by a tie.
        back = binding.gather_call(y, weight, row_ptr, col, col, x, True)
        yield f"backward {name}", back, wide
        if tied:
            tie_ptr = tensor(weights + 1, dtype=torch.int64)
            yield f"outer {name}", binding.ties_call(x, y, tie_ptr, col, col, weight)[0], False
        else:
            yield f"outer {name}", binding.outer_call(x, y, row_ptr, col, weight), False


def faults(code: Code, budget: dict[str, int] | None, wide: bool) -> list[str]:
    """Say what breaks the rules."""
    found = []
    if code.spills:
        found.append(f"{code.spills} bytes or instructions of spilled registers; none is allowed")
    if code.atomics:
        found.append(f"{code.atomics} atomic instructions; sums would depend on their order")
    if wide and not code.wide_reads:
        found.append("no read of 16 bytes; weights must be read in whole vectors")
    if budget is None:
        found.append("no budget; run with --renew, read the difference and commit it")
        return found
    for what in ("registers", "shared", "barriers"):
        if getattr(code, what) > budget[what]:
            found.append(f"{getattr(code, what)} {what}, {budget[what]} are budgeted")
    return found


def main() -> int:
    """Check every call on every target; 1 if one breaks a rule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--renew", action="store_true", help="write the budgets anew")
    parser.add_argument("--target", type=int, nargs="*", default=list(TARGETS))
    options = parser.parse_args()
    budgets = json.loads(BUDGETS.read_text()) if BUDGETS.exists() else {}
    wrong = 0
    for name, call, wide in calls():
        for target in options.target:
            code = read_code(compile_call(call, target))
            key = f"{name} sm_{target}"
            if options.renew:
                budgets[key] = {"kernel": call.kernel, **asdict(code)}
            for fault in faults(code, budgets.get(key), wide):
                print(f"{key} ({call.kernel}): {fault}")
                wrong += 1
    if options.renew:
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in budgets.items())
        BUDGETS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"Triton {triton.__version__}: {len(budgets)} kernels, {wrong} faults")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
