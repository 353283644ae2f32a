"""`convolve` on its own: which windows it takes, and a dense sum."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from layer_cases import Operators, assert_equal, edges_of, randn

from scisparse.layers.convolution import convolve, is_convolution
from scisparse.pattern import Pattern, WindowSpec
from scisparse.patterns import window


def spec(pattern: Pattern) -> WindowSpec:
    assert pattern.window is not None
    return pattern.window


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((5,), {}, True),
        ((4, 5), {"padding_mode": ("reflect", "circular")}, True),
        ((3, 4, 5), {"padding_mode": "replicate"}, True),
        ((2, 2, 2, 2), {}, False),  # torch has no convolution in four dimensions
    ],
)
def test_windows_that_torch_knows(shape: Any, options: Any, expected: bool) -> None:
    one = spec(window(shape, 2, **options))
    assert is_convolution(one) == expected
    zeros = set(one.padding_modes) == {"zeros"}
    assert is_convolution(replace(one, transposed=True)) == (expected and zeros)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((7,), 3, {"stride": 2, "padding": 4}),  # sites that read padding alone
        ((4, 5), (2, 3), {"dilation": (2, 1)}),
        ((5, 4), 2, {"stride": 3, "padding": (2, 0)}),
        ((3, 2, 4), (2, 1, 3), {}),
    ],
)
def test_equals_a_sum_over_edges(
    shape: Any, kernel: Any, options: Any, groups: int, transposed: bool
) -> None:
    pattern = window(shape, kernel, **options)
    if transposed:
        pattern = pattern.transpose()[0]
    x = randn(2, pattern.num_sources, 2 * groups)
    weight = randn(pattern.num_taps * groups, 2, 3, seed=2)
    expected = x.new_zeros(2, pattern.num_sites, 3 * groups)
    for site, source, tap in edges_of(pattern):
        for g in range(groups):
            part = x[:, source, 2 * g : 2 * g + 2] @ weight[tap * groups + g]
            expected[:, site, 3 * g : 3 * g + 3] += part
    assert_equal(convolve(x, weight, spec(pattern), groups), expected)
    # Weights that are not contiguous, and channels that are not.
    strided = weight.mT.contiguous().mT
    assert_equal(convolve(x.mT.contiguous().mT, strided, spec(pattern), groups), expected)
    assert convolve(x[:0], weight, spec(pattern), groups).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("channels", "out_channels"), [(3, 1), (1, 3), (1, 1)])
def test_layers_of_one_channel_have_gradients(
    channels: int, out_channels: int, transposed: bool
) -> None:
    pattern = window((3, 4), 3, padding=1)
    pattern = pattern.transpose()[0] if transposed else pattern
    x, weight = randn(1, 12, channels), randn(9, channels, out_channels, seed=2)
    inputs = x.requires_grad_(), weight.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: convolve(x, w, spec(pattern), 1), inputs)


def test_padding_is_not_copied_where_there_is_none() -> None:
    pattern = window((6, 6), 3, padding=0)
    x, weight = torch.randn(2, 36, 4), torch.randn(9, 4, 4)
    with Operators() as operators:
        convolve(x, weight, spec(pattern), 1)
    assert operators.names.count("aten.convolution.default") == 1
    assert not operators.ran("pad")
