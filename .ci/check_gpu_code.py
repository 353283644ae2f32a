"""Compile the GPU kernels ahead of time, without a GPU, and hold the machine code to budgets.

For every call below and every target: no spilled register, no atomic instruction, reads of 16 bytes
where the kernel promises them, and registers and shared memory within ``gpu_budgets.json``.

    python .ci/check_gpu_code.py            # check
    python .ci/check_gpu_code.py --renew    # write the budgets anew, to be read and committed
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from scisparse.kernels._edges import Edges
from scisparse.kernels._triton import Call
from scisparse.kernels.gather_matmul import cuda as cuda_binding
from scisparse.kernels.gather_matmul import triton as triton_binding
from scisparse.kernels.graph_attention import triton as attention_binding
from scisparse.kernels.graph_attention import triton_product_calls as product_binding
from scisparse.kernels.graph_attention.inputs import Inputs

BUDGETS = Path(__file__).with_name("gpu_budgets.json")
TARGETS = (80, 90, 100)
BINDINGS = {"triton": triton_binding, "cuda": cuda_binding}
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


def read_code(binary: bytes, kernel: str, shared: int | None = None) -> Code:
    """Read registers, memory and instructions of `kernel` from compiled code.

    `shared` is the memory that the launch asks for, where the code does not tell.
    """
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        run = [str(tools / "cuobjdump"), file.name]
        usage = _of_kernel(_run([*run, "--dump-resource-usage"]), kernel)
        listing = _of_kernel(_run([*run, "--dump-sass"]), kernel)
    numbers = {key: int(value) for key, value in re.findall(r"([A-Z]\w+):(\d+)", usage)}
    pattern = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)"
    found = collections.Counter(re.findall(pattern, listing, re.MULTILINE))
    if not found or "REG" not in numbers:
        raise RuntimeError(f"cuobjdump shows no machine code of {kernel}")

    def count(expression: str) -> int:
        return sum(n for name, n in found.items() if re.match(expression, name))

    return Code(
        registers=numbers["REG"],
        shared=numbers["SHARED"] if shared is None else shared,
        spills=numbers["STACK"] + numbers["LOCAL"] + count(r"(LDL|STL)\b"),
        atomics=count(r"(ATOM|ATOMG|ATOMS|RED|REDG|REDS)\b"),
        barriers=count(r"BAR\b"),
        wide_reads=count(r"(LDG|LDGSTS)\..*128"),
    )


def _of_kernel(text: str, kernel: str) -> str:
    """The part of a listing of several functions that is about one."""
    parts = re.split(r"^\s*Function ?:? ?(\w+):?$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True)).get(kernel, "")


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return done.stdout


def compile_triton(call: Call, target: int) -> Code:
    """Compile a call for compute capability `target`, from its meta tensors alone."""
    kernel = call.function()
    signature, attributes = {}, {}
    for place, (name, value) in enumerate(zip(kernel.arg_names, call.arguments, strict=False)):
        if isinstance(value, torch.Tensor):
            signature[name] = TYPES[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp64"
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
    signature |= dict.fromkeys(call.constants, "constexpr")
    source = ASTSource(kernel, signature, call.constants, attributes)
    built = triton.compile(source, GPUTarget("cuda", target, 32), call.options())
    return read_code(built.asm["cubin"], call.kernel, built.metadata.shared)


def compile_cuda(call: cuda_binding.Call, target: int) -> Code:
    """Compile the source of a call with nvcc, or with NVRTC where there is no nvcc."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return read_code(cuda_binding.compiled(call.macros, f"sm_{target}"), call.kernel)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cubin"
        defined = [f"-D{name}={value}" for name, value in call.macros]
        command = [nvcc, "-std=c++17", f"-arch=sm_{target}", "-cubin", *defined]
        _run([*command, str(cuda_binding.SOURCE), "-o", str(path)])
        return read_code(path.read_bytes(), call.kernel)


@dataclass(frozen=True)
class Work:
    """Meta tensors of a layer on a stencil of 9 taps."""

    batch: int
    channels_in: int
    channels_out: int
    dtype: torch.dtype
    tied: bool = False
    cuda: bool = False  # compiled from CUDA C++ too

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        tied = " tied" if self.tied else ""
        return f"{self.channels_in}->{self.channels_out} B{self.batch} {kind}{tied}"

    @property
    def is_wide(self) -> bool:
        """Whether weights must be read in vectors of 16 bytes by the Triton kernels."""
        return (
            self.channels_in % 8 == 0 and self.channels_out % (2 * 16 // self.dtype.itemsize) == 0
        )

    def calls(self, binding: ModuleType) -> Iterator[tuple[str, Any]]:
        """Forward pass, and both gradients."""
        sites = 721 * 1440
        edges, weights = 9 * sites, 12 if self.tied else 9 * sites

        def tensor(*shape: int, dtype: torch.dtype = self.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        row_ptr, tie_ptr = (tensor(n + 1, dtype=torch.int64) for n in (sites, weights))
        col = tensor(edges, dtype=torch.int32)
        tie = col if self.tied else None
        x, y = (tensor(self.batch, sites, c) for c in (self.channels_in, self.channels_out))
        weight = tensor(weights, self.channels_in, self.channels_out)
        yield "forward", binding.gather_call(x, weight, row_ptr, col, tie, y, False)
        # Transposed edges read the weights in another order, by a tie.
        yield "backward", binding.gather_call(y, weight, row_ptr, col, col, x, True)
        if self.tied:
            yield "outer", binding.ties_call(x, y, tie_ptr, col, col, weight)[0]
        else:
            yield "outer", binding.outer_call(x, y, row_ptr, col, weight)


WORK = (  # one of every kind of plan
    Work(1, 8, 8, torch.float32, cuda=True),
    Work(4, 8, 8, torch.float32, cuda=True),
    Work(4, 8, 8, torch.bfloat16, cuda=True),
    Work(8, 16, 16, torch.float32, cuda=True),
    Work(8, 16, 16, torch.bfloat16),
    Work(8, 16, 16, torch.float16, tied=True),
    Work(8, 22, 8, torch.float32),
    Work(8, 8, 1, torch.float32),
    Work(16, 1, 1, torch.float32),
    Work(32, 64, 64, torch.float32),
    Work(4, 3, 5, torch.float64, tied=True, cuda=True),
)


@dataclass(frozen=True)
class AttentionWork:
    """Meta tensors of attention between `sites` points, with `fan_in` edges each."""

    sites: int
    fan_in: int
    heads: int
    width: int
    dtype: torch.dtype
    groups: int | None = None
    edge_width: int = 0

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        groups = f" of {self.groups}" if self.groups else ""
        carried = f" A{self.edge_width}" if self.edge_width else ""
        return f"attention {self.heads}{groups} x {self.width}{carried} {kind}"

    def calls(self) -> Iterator[tuple[str, Call]]:
        """Forward pass, both backward passes, and the products of two tensors."""
        batch, edges, groups = 1, self.sites * self.fan_in, self.groups or self.heads
        real = torch.float64 if self.dtype == torch.float64 else torch.float32

        def tensor(*shape: int, dtype: torch.dtype = self.dtype) -> torch.Tensor:
            return torch.empty(shape, dtype=dtype, device="meta")

        row_ptr = tensor(self.sites + 1, dtype=torch.int64)
        col = tensor(edges, dtype=torch.int32)
        plain, tied = Edges(row_ptr, col, None), Edges(row_ptr, col, col)
        q = tensor(batch, self.sites, self.heads, self.width)
        k = tensor(batch, self.sites, groups, self.width)
        edge_q = tensor(*q.shape[:3], self.edge_width) if self.edge_width else None
        attr = tensor(edges, self.edge_width) if self.edge_width else None
        bias = tensor(1, edges, 1, dtype=real) if self.heads == 1 else None  # areas of cells
        lse = tensor(*q.shape[:3], dtype=real)
        weight = tensor(batch, edges, self.heads, dtype=real)
        inputs = Inputs(q, k, k, edge_q, attr, bias)
        space = tensor(batch, *attention_binding.pairs_shape(self.heads, edges), dtype=real)
        results = q, tensor(0) if edge_q is None else edge_q, lse
        b = attention_binding
        yield "forward", b.attention_call(inputs, plain, 0.5, results)
        yield "sites", b.sites_call((q, edge_q), lse, inputs, plain, 0.5, (q, edge_q), space)
        yield "sources", b.sources_call(q, q, tied, 0.5, space, (k, k))
        if attr is not None:
            grad = tensor(*attr.shape, dtype=real)
            yield "edges", b.edges_call(space, edge_q, edge_q, col, grad)
        elif self.groups is None:
            p = product_binding
            yield "spmm", p.spmm_call(weight, q, tied, q)
            yield "sddmm", p.sddmm_call(q, q, plain, weight)
            yield "softmax", p.softmax_call(weight, row_ptr, weight)
            yield "slope", p.slope_call(weight, weight, row_ptr, weight)
            choice = torch.empty_like(q, dtype=torch.int32)
            yield "extreme", p.extreme_call(weight, q, plain, False, (q, choice))
            yield "chosen sources", p.spmm_call(weight, q, tied, q, choice, row_ptr)
            yield "chosen edges", p.sddmm_call(q, q, plain, weight, choice)


ATTENTION = (
    AttentionWork(40962, 8, 16, 64, torch.float16),  # multi-mesh of level 6
    AttentionWork(40962, 8, 16, 32, torch.float16, edge_width=11),
    AttentionWork(10242, 8, 4, 32, torch.float32, edge_width=11),  # of level 5
    AttentionWork(65160, 30, 1, 64, torch.float32),  # sphere of one degree
    AttentionWork(40962, 8, 8, 64, torch.bfloat16, groups=2),
)


class Built(NamedTuple):
    """Machine code of a call, and whether it must read 16 bytes at once."""

    key: str
    kernel: str
    wide: bool
    code: Code


def build(work: Work | AttentionWork, backend: str, targets: list[int]) -> list[Built]:
    """Compile all calls of a problem for all targets."""
    found = []
    compile_call: Callable[[Any, int], Code] = compile_cuda if backend == "cuda" else compile_triton
    calls: Iterator[tuple[str, Any]] = (
        work.calls() if isinstance(work, AttentionWork) else work.calls(BINDINGS[backend])
    )
    for stage, call in calls:
        for target in targets:
            if isinstance(work, AttentionWork):
                wide = stage not in ("edges", "softmax", "slope")
            elif backend == "cuda":
                wide = work.is_wide or (work.channels_in, work.channels_out) == (8, 8)
            else:
                wide = work.is_wide and stage != "outer"
            key = f"{stage} {work} {backend} sm_{target}"
            found.append(Built(key, call.kernel, wide, compile_call(call, target)))
    return found


def compiled(targets: list[int]) -> Iterator[Built]:
    """Compile every call for every target, in a process for each core."""
    jobs = [(work, "triton") for work in (*WORK, *ATTENTION)]
    if shutil.which("nvcc") is None and not cuda_binding.is_installed():
        print("CUDA C++ was not compiled: there is neither nvcc nor cuda-core")
    else:
        jobs += [(work, "cuda") for work in WORK if work.cuda]
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context) as pool:
        for found in pool.map(build, *zip(*jobs, strict=True), itertools.repeat(targets)):
            yield from found


def faults(code: Code, budget: dict[str, int] | None, wide: bool) -> list[str]:
    """Say what breaks the rules."""
    found = []
    if code.spills:
        found.append(f"{code.spills} bytes or instructions of spilled registers; none is allowed")
    if code.atomics:
        found.append(f"{code.atomics} atomic instructions; sums would depend on their order")
    if wide and not code.wide_reads:
        found.append("no read of 16 bytes; weights and heads must be read in whole vectors")
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
    wrong = count = 0
    for key, kernel, wide, code in compiled(options.target):
        count += 1
        if options.renew:
            budgets[key] = {"kernel": kernel, **asdict(code)}
        for fault in faults(code, budgets.get(key), wide):
            print(f"{key} ({kernel}): {fault}")
            wrong += 1
    if options.renew:
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in budgets.items())
        BUDGETS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"Triton {triton.__version__}: {count} kernels, {wrong} faults")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
