"""What the doctor says of a kernel is measured, not assumed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from kernel_cases import TOLERANCE

from scisparse import doctor
from scisparse.doctor import largest_errors, report
from scisparse.kernels import __all__ as exported
from scisparse.kernels.gather_matmul.ops import GATHER_IMPLEMENTATIONS, OUTER_IMPLEMENTATIONS
from scisparse.kernels.graph_attention.ops import IMPLEMENTATIONS


@pytest.mark.parametrize("kernel", doctor.KERNELS)
def test_errors_are_within_the_tolerance_of_each_dtype(kernel: str) -> None:
    errors = largest_errors(kernel, "auto", torch.device("cpu"))
    for dtype, tolerance in TOLERANCE.items():
        assert 0 <= errors[str(dtype).removeprefix("torch.")] < tolerance
    assert errors["float32"] > errors["float64"]


def test_every_public_operator_is_checked() -> None:
    public = {
        n for n in exported if n.islower() and not n.endswith(("_mode", "_backend", "_cache"))
    }
    checked = {name.partition(" ")[0] for name in doctor.KERNELS}
    # Weights of attention are those of its primitives.
    assert checked == public - {"attention_weights", "transpose_edges"}


def test_every_implementation_of_an_operator_is_checked() -> None:
    """Backward passes are kernels of their own: what is right forward may be wrong backward."""
    checked = [kernel.implementations for kernel in doctor.KERNELS.values()]
    registered = [GATHER_IMPLEMENTATIONS, OUTER_IMPLEMENTATIONS, *IMPLEMENTATIONS.values()]
    assert all(any(one is other for other in checked) for one in registered)


@pytest.mark.parametrize("op", IMPLEMENTATIONS)
def test_an_entry_runs_the_operator_that_it_names(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = (k for k, v in doctor.KERNELS.items() if v.implementations is IMPLEMENTATIONS[op])
    *others, right = IMPLEMENTATIONS[op]
    ran: list[str] = []

    def run(*args: Any) -> Any:
        ran.append(op)
        return right.run(*args)

    monkeypatch.setitem(IMPLEMENTATIONS, op, (*others, dataclasses.replace(right, run=run)))
    largest_errors(name, right.name, torch.device("cpu"))
    assert len(ran) >= len(TOLERANCE)


@pytest.mark.parametrize("kernel", doctor.KERNELS)
def test_a_wrong_kernel_is_seen(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = doctor.KERNELS[kernel]

    def wrong(problem: Any, backend: str) -> torch.Tensor:
        y = right.run(problem, backend)
        return y * 1.01 if problem.x.dtype == torch.float32 else y

    monkeypatch.setitem(doctor.KERNELS, kernel, right._replace(run=wrong))
    errors = largest_errors(kernel, "reference", torch.device("cpu"))
    assert errors["float32"] > 0.005
    assert errors["float64"] < 1e-12


def test_report_names_what_is_off() -> None:
    lines = list(report())
    assert any(line.startswith("scisparse ") and "torch" in line for line in lines)
    assert any("extra verify" in line for line in lines)
    for kernel in doctor.KERNELS:
        assert any(
            line.startswith(f"{kernel} on cpu, backend reference: largest") for line in lines
        )


def test_an_extra_is_off_where_its_package_or_the_parent_of_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modules = {
        "there": ("json.decoder",),
        "half": ("json", "json.nothing"),
        "none": ("nothing.core", "void"),
    }
    monkeypatch.setattr(doctor, "_EXTRAS", modules)
    monkeypatch.setattr(doctor, "KERNELS", {})
    lines = [line for line in doctor.report() if line.startswith("extra ")]
    assert lines == [
        "extra there: installed",
        'extra half: off, no json.nothing: pip install "scisparse[half]"',
        'extra none: off, no nothing.core, void: pip install "scisparse[none]"',
    ]
