"""`pad_axes` against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from layer_cases import randn

from scisparse.errors import OptionError, ShapeError
from scisparse.layers.padding import pad_axes
from scisparse.patterns.windows import PADDING_MODES

NUMPY: dict[str, Any] = {
    "zeros": "constant",
    "circular": "wrap",
    "reflect": "reflect",
    "replicate": "edge",
}


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_equals_numpy(axes: int, seed: int) -> None:
    """Random sizes, modes and widths up to the largest that each mode knows."""
    rng = np.random.default_rng((axes, seed))
    size = rng.integers(1, 6, axes)
    modes = [PADDING_MODES[n] for n in rng.integers(0, 4, axes)]
    limits = {"circular": 0, "reflect": -1}
    widths = [
        tuple(int(w) for w in rng.integers(0, (n + limits[m] if m in limits else 7) + 1, 2))
        for n, m in zip(size, modes, strict=True)
    ]
    x = randn(2, 3, *size)
    expected = x.numpy()
    for axis, (width, mode) in enumerate(zip(widths, modes, strict=True)):
        pad = [(0, 0)] * expected.ndim
        pad[axis + 2] = (width[0], width[1])
        expected = np.pad(expected, pad, mode=NUMPY[mode])
    padded = pad_axes(x, [(a, b) for a, b in widths], modes)
    assert np.array_equal(padded.numpy(), expected)


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_derivatives(mode: str) -> None:
    x = randn(1, 2, 4, 3).requires_grad_()

    def run(x: torch.Tensor) -> torch.Tensor:
        return pad_axes(x, [(2, 3), (1, 0)], [mode, "circular"]).square()

    assert torch.autograd.gradcheck(run, (x,))
    assert torch.autograd.gradgradcheck(run, (x,))


def test_without_width_nothing_is_copied() -> None:
    x = randn(2, 3, 4)
    assert pad_axes(x, [(0, 0)], ["reflect"]) is x


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_empty_batch(mode: str) -> None:
    assert pad_axes(torch.randn(0, 2, 4), [(1, 2)], [mode]).shape == (0, 2, 7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("mode", PADDING_MODES)
def test_dtypes(dtype: torch.dtype, mode: str) -> None:
    x = randn(2, 3, 4, 5)
    widths, modes = [(1, 2), (3, 0)], [mode, mode]
    assert torch.equal(pad_axes(x.to(dtype), widths, modes), pad_axes(x, widths, modes).to(dtype))


@pytest.mark.parametrize(
    ("widths", "modes", "error", "match"),
    [
        ([(1, 1)], ["zeros"], ShapeError, r"1 widths and 1 modes .* each of its 2 spatial axes"),
        ([(1, 1)] * 2, ["zeros"], ShapeError, "2 widths and 1 modes"),
        (
            [(0, 0)] * 2,
            ["zeros", "wrap"],
            OptionError,
            "padding mode 'wrap' is unknown; choose one",
        ),
        (
            [(5, 0), (0, 0)],
            ["circular"] * 2,
            ShapeError,
            r"padding of \(5, 0\) on axis 0 of 4 points",
        ),
        ([(0, 0), (0, 3)], ["reflect"] * 2, ShapeError, "at most 2 in mode 'reflect'; pad less"),
        ([(0, -1), (0, 0)], ["zeros"] * 2, ShapeError, r"padding of \(0, -1\) .* at least 0"),
    ],
)
def test_wrong_arguments(widths: Any, modes: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        pad_axes(torch.randn(1, 1, 4, 3), widths, modes)
