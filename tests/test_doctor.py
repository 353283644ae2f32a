"""What the doctor says of a kernel is measured, not assumed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import TOLERANCE

from scisparse import doctor
from scisparse.doctor import largest_errors, report
from scisparse.kernels.gather_matmul import reference


@pytest.mark.parametrize("kernel", ["gather_matmul", "edge_outer", "graph_attention"])
def test_errors_are_within_the_tolerance_of_each_dtype(kernel: str) -> None:
    errors = largest_errors(kernel, "auto", torch.device("cpu"))
    for dtype, tolerance in TOLERANCE.items():
        assert 0 <= errors[str(dtype).removeprefix("torch.")] < tolerance
    assert errors["bfloat16"] > errors["float32"] > 0


def test_a_wrong_kernel_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = reference.gather_matmul

    def wrong(x: torch.Tensor, *rest: Any) -> torch.Tensor:
        y = right(x, *rest)
        return y * 1.01 if x.dtype == torch.float32 else y

    monkeypatch.setattr(reference, "gather_matmul", wrong)
    errors = largest_errors("gather_matmul", "reference", torch.device("cpu"))
    assert errors["float32"] > 0.005
    assert errors["float64"] < 1e-12


def test_report_names_what_is_off() -> None:
    lines = list(report())
    assert any(line.startswith("scisparse ") and "torch" in line for line in lines)
    assert any("extra verify" in line for line in lines)


def test_an_extra_is_off_where_its_package_or_the_parent_of_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modules = {"there": "json.decoder", "half": "json.nothing", "none": "nothing.core"}
    monkeypatch.setattr(doctor, "_EXTRAS", modules)
    monkeypatch.setattr(doctor, "_KERNELS", {})
    lines = [line for line in doctor.report() if line.startswith("extra ")]
    assert lines == [
        "extra there: installed",
        'extra half: off, pip install "scisparse[half]"',
        'extra none: off, pip install "scisparse[none]"',
    ]
