"""`LocallyConnected1d/2d/3d` and their transposes against torch's own convolutions."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from layer_cases import (
    Operators,
    Window,
    assert_equal,
    pad_fields,
    randn,
    random_windows,
    randomize,
    weight_from_torch,
)
from torch import Tensor, nn

from scisparse.errors import OptionError, ShapeError
from scisparse.layers import (
    LocallyConnected1d,
    LocallyConnected2d,
    LocallyConnected3d,
    LocallyConnectedTranspose1d,
    LocallyConnectedTranspose2d,
    LocallyConnectedTranspose3d,
)

FORWARD: dict[int, tuple[Any, Any]] = {
    1: (LocallyConnected1d, nn.Conv1d),
    2: (LocallyConnected2d, nn.Conv2d),
    3: (LocallyConnected3d, nn.Conv3d),
}
TRANSPOSED: dict[int, tuple[Any, Any]] = {
    1: (LocallyConnectedTranspose1d, nn.ConvTranspose1d),
    2: (LocallyConnectedTranspose2d, nn.ConvTranspose2d),
    3: (LocallyConnectedTranspose3d, nn.ConvTranspose3d),
}
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
COUNT = {1: 24, 2: 24, 3: 8}
ONE_MODE = [
    pytest.param(axes, window, id=f"{axes}d-{n}")
    for axes, count in COUNT.items()
    for n, window in enumerate(random_windows(axes, count, seed=1, one_mode=True))
]
MODE_AN_AXIS = [
    pytest.param(axes, window, id=f"{axes}d-{n}")
    for axes, count in {2: 16, 3: 8}.items()
    for n, window in enumerate(random_windows(axes, count, seed=2, one_mode=False))
]


def build(axes: int, window: Window, **options: Any) -> Any:
    mode = window.modes[0] if len(set(window.modes)) == 1 else window.modes
    return FORWARD[axes][0](
        4,
        6,
        window.kernel_size,
        window.stride,
        window.padding,
        window.dilation,
        window.groups,
        padding_mode=mode,
        input_size=window.input_size,
        dtype=torch.float64,
        **options,
    )


def check_against(layer: Any, peer: Any, x: Tensor, *, transposed: bool) -> None:
    """Output and gradients of a fully tied layer, and of its untied copy, equal those of `peer`."""
    layer.weight.data = weight_from_torch(peer.weight.data, peer.groups, transposed=transposed)
    layer.bias.data = peer.bias.data[None].clone()
    x = x.requires_grad_()
    expected = peer(x)
    pull = randn(*expected.shape, seed=7)
    want_x, want_weight, want_bias = torch.autograd.grad(
        expected, (x, peer.weight, peer.bias), pull
    )
    want_weight = weight_from_torch(want_weight, peer.groups, transposed=transposed)
    for mine in (layer, layer.untie()):
        y = mine(x)
        assert_equal(y, expected)
        grad_x, grad_weight, grad_bias = torch.autograd.grad(y, (x, mine.weight, mine.bias), pull)
        assert_equal(grad_x, want_x)
        # Weights of the untied layer are copies of the tied ones: their gradients sum to theirs.
        tap_of_weight = torch.zeros(len(grad_weight), dtype=torch.int64)
        tap_of_weight[mine.weight_of_edges()] = layer.weight_of_edges()
        if mine is not layer:
            total = torch.zeros_like(want_weight).index_add(0, tap_of_weight, grad_weight)
            grad_weight, grad_bias = total, grad_bias.sum(0, keepdim=True)
        assert_equal(grad_weight, want_weight)
        assert_equal(grad_bias[0], want_bias)


# torch copies the input where an even kernel pads more at the end.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize(("axes", "window"), ONE_MODE)
def test_equals_torch(axes: int, window: Window) -> None:
    peer = FORWARD[axes][1](
        4,
        6,
        window.kernel_size,
        window.stride,
        window.padding,
        window.dilation,
        window.groups,
        padding_mode=window.modes[0],
        dtype=torch.float64,
    )
    randomize(peer)
    layer = build(axes, window, tie="all")
    assert layer.runs_as_convolution
    check_against(layer, peer, randn(3, 4, *window.input_size), transposed=False)


@pytest.mark.parametrize(("axes", "window"), MODE_AN_AXIS)
def test_equals_torch_on_an_input_padded_by_numpy(axes: int, window: Window) -> None:
    layer = build(axes, window, tie="all")
    randomize(layer)
    kernel = randn(6, 4 // window.groups, *window.kernel_size)
    layer.weight.data = weight_from_torch(kernel, window.groups)
    x = randn(2, 4, *window.input_size)
    expected = CONV[axes](
        pad_fields(x, window),
        kernel,
        layer.bias.data[0],
        window.stride,
        0,
        window.dilation,
        window.groups,
    )
    assert_equal(layer(x), expected)
    assert_equal(layer.untie()(x), expected)


def transposed_cases() -> list[Any]:
    cases = []
    for axes, count in {1: 16, 2: 12, 3: 5}.items():
        for n, window in enumerate(random_windows(axes, count, seed=3, one_mode=True)):
            padding = window.padding if isinstance(window.padding, tuple) else (0,) * axes
            room = zip(window.stride, window.dilation, strict=True)
            extra = tuple(max(s, d) - 1 if n % 2 else 0 for s, d in room)
            shape = (window.input_size, window.stride, padding, window.dilation, window.kernel_size)
            sizes = [
                (i - 1) * s - 2 * p + d * (k - 1) + e + 1
                for (i, s, p, d, k), e in zip(zip(*shape, strict=True), extra, strict=True)
            ]
            if min(sizes) < 1:
                padding = (0,) * axes
            cases.append(pytest.param(axes, window, padding, extra, id=f"{axes}d-{n}"))
    # Output padding past the stride, and sources further apart than the kernel is wide.
    one = Window((3,), (2,), (1,), (3,), 0, ("zeros",), 2)
    cases.append(pytest.param(1, one, (0,), (2,), id="output padding past the stride"))
    one = Window((3, 2), (1, 2), (3, 4), (1, 1), 0, ("zeros",) * 2, 1)
    cases.append(pytest.param(2, one, (0, 1), (2, 0), id="sites that no source reaches"))
    return cases


@pytest.mark.parametrize(("axes", "window", "padding", "extra"), transposed_cases())
def test_transposed_equals_torch(
    axes: int, window: Window, padding: tuple[int, ...], extra: tuple[int, ...]
) -> None:
    mine, peer_class = TRANSPOSED[axes]
    arguments = (6, 4, window.kernel_size, window.stride, padding, extra, window.groups)
    peer = peer_class(*arguments, dilation=window.dilation, dtype=torch.float64)
    randomize(peer)
    layer = mine(
        *arguments,
        dilation=window.dilation,
        dtype=torch.float64,
        input_size=window.input_size,
        tie="all",
    )
    assert layer.runs_as_convolution
    x = randn(3, 6, *window.input_size)
    check_against(layer, peer, x, transposed=True)
    assert layer.output_size == tuple(peer(x).shape[2:])


@pytest.mark.parametrize("tie", [None, "longitude", "all"])
@pytest.mark.parametrize(
    ("mode", "stride", "extra"),
    [
        (("reflect", "circular"), 1, 0),
        (("replicate", "zeros"), 2, 1),
        (("zeros", "circular"), (2, 1), (1, 0)),
    ],
)
def test_transposed_is_the_adjoint(tie: Any, mode: Any, stride: Any, extra: Any) -> None:
    """In every mode ``<y, A x> = <A' y, x>``; torch's own transposes pad with zeros alone."""
    options = {"padding_mode": mode, "bias": False, "dtype": torch.float64, "tie": None}
    back = LocallyConnectedTranspose2d(
        2, 3, 3, stride, 1, extra, input_size=(3, 4), **{**options, "tie": tie}
    )
    forth = LocallyConnected2d(3, 2, 3, stride, 1, input_size=back.output_size, **options)
    randomize(back)
    assert forth.output_size == (3, 4)
    # Edge e of the transposed pattern is edge perm[e] of the forward one.
    _, perm = forth.pattern.transpose()
    forth.weight.data[perm] = back.weight.data[back.weight_of_edges()].mT
    x, y = randn(2, 3, *back.output_size), randn(2, 2, 3, 4, seed=2)
    assert_equal((y * forth(x)).sum(), (back(y) * x).sum())


@pytest.mark.parametrize("tie", [None, "all", "longitude"])
@pytest.mark.parametrize("groups", [1, 2])
def test_memory_format_and_batch_do_not_matter(tie: Any, groups: int) -> None:
    layer = LocallyConnected2d(
        4, 6, 3, padding=1, groups=groups, input_size=(5, 7), tie=tie, dtype=torch.float64
    )
    x = randn(3, 4, 5, 7)
    y = layer(x)
    assert_equal(layer(x.to(memory_format=torch.channels_last)), y)
    assert_equal(layer(x[1]), y[1])
    assert layer(x[1]).shape == (6, 5, 7)
    assert layer(x[:0]).shape == (0, 6, 5, 7)
    assert_equal(layer(x.transpose(2, 3).contiguous().transpose(2, 3)), y)


@pytest.mark.parametrize("tie", [None, "all"])
def test_channels_last_is_kept_and_not_copied(tie: Any) -> None:
    layer = LocallyConnected2d(4, 8, 3, input_size=(5, 7), tie=tie)
    x = torch.randn(3, 4, 5, 7).to(memory_format=torch.channels_last)
    with torch.no_grad(), Operators() as operators:
        y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert not any(operators.ran(name) for name in ("clone", "_to_copy", "contiguous"))


def test_convolution_does_not_copy_channels_first() -> None:
    layer = LocallyConnected2d(4, 8, 3, input_size=(5, 7), tie="all", bias=False)
    weight_bytes = layer.weight.numel() * 4
    with torch.no_grad(), Operators() as operators:
        y = layer(torch.randn(3, 4, 5, 7))
    assert y.is_contiguous()
    assert operators.ran("aten.convolution")
    clones = sum("clone" in name for name in operators.names)
    assert clones <= 1, "only the kernel may be put in torch's order"
    assert weight_bytes < 3 * 4 * 5 * 7 * 4  # else the largest tensor would tell nothing


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("classes", [FORWARD, TRANSPOSED], ids=["forward", "transposed"])
def test_signature_is_that_of_torch(axes: int, classes: dict[int, tuple[Any, Any]]) -> None:
    mine, peer = (inspect.signature(cls).parameters for cls in classes[axes])
    assert list(mine)[: len(peer)] == list(peer)
    assert list(mine)[len(peer) :] == ["input_size", "tie"]
    for name, parameter in peer.items():
        assert mine[name].default == parameter.default


def test_one_integer_stands_for_all_axes() -> None:
    layer = LocallyConnected3d(1, 1, 2, 1, 1, input_size=4)
    assert (layer.input_size, layer.output_size) == ((4, 4, 4), (5, 5, 5))
    back = LocallyConnectedTranspose3d(1, 1, 2, 2, input_size=4)
    assert (back.input_size, back.output_size) == ((4, 4, 4), (8, 8, 8))


@pytest.mark.parametrize("layer", [LocallyConnected2d, LocallyConnectedTranspose2d])
def test_numpy_integers_are_integers(layer: Any) -> None:
    numbers = layer(1, 1, np.int64(3), np.int64(2), np.uint8(1), input_size=np.array([4, 6]))
    assert numbers.pattern == layer(1, 1, 3, 2, 1, input_size=(4, 6)).pattern
    assert layer(1, 1, np.array([3, 3]), input_size=(4, 6)).output_size


def test_same_padding_takes_stride_1() -> None:
    layer = LocallyConnected2d(1, 1, 3, (1, 1), "same", input_size=(4, 6))
    assert layer.output_size == (4, 6)


def test_untied_copy_is_a_layer_of_the_same_class() -> None:
    layer = LocallyConnected2d(2, 2, 3, padding=1, input_size=(4, 6), tie="all").eval()
    for tie in ("longitude", None):
        untied = layer.untie(tie)
        assert type(untied) is LocallyConnected2d
        assert (untied.input_size, untied.output_size) == ((4, 6), (4, 6))
        assert not untied.training
    assert copy.deepcopy(untied)(torch.randn(1, 2, 4, 6)).shape == (1, 2, 4, 6)


@pytest.mark.parametrize("shape", [(2, 4, 6), (1, 2, 6, 4), (1, 3, 4, 6), (1, 1, 2, 4, 6), (6,)])
def test_wrong_input_is_refused(shape: tuple[int, ...]) -> None:
    layer = LocallyConnected2d(2, 2, 3, input_size=(4, 6))
    if shape == (2, 4, 6):
        assert layer(torch.randn(shape)).shape == (2, 2, 4)
        return
    with pytest.raises(ShapeError, match=r"it must be \[B, 2, 4, 6\], as built with input_size"):
        layer(torch.randn(shape))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"input_size": (4,)}, ShapeError, r"`input_size` \(=\(4,\)\) must be one integer, or 2"),
        ({"input_size": "ab"}, ShapeError, r"`input_size` \(='ab'\) must be one integer, or 2"),
        ({"input_size": 2.5}, ShapeError, r"`input_size` \(=2.5\) must be one integer"),
        (
            {"output_padding": 2},
            ShapeError,
            r"`output_padding` \(=2 on axis 0\) must be at least 0",
        ),
        ({"output_padding": -1}, ShapeError, r"`output_padding` \(=-1 on axis 0\)"),
        ({"padding": (0, 9)}, ShapeError, r"`padding` \(=9 on axis 1\) leaves no output of the"),
        ({"padding_mode": "mirror"}, OptionError, "padding_mode"),
    ],
)
def test_wrong_options_of_a_transposed_layer(
    options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        LocallyConnectedTranspose2d(1, 1, 3, stride=2, **{"input_size": (4, 6), **options})


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kernel_size": 7}, r"`kernel_size` \(=7"),
        ({"stride": 0}, r"`stride` \(=0\)"),
        ({"kernel_size": 2.0}, r"`kernel_size` \(=2.0\) must be one integer"),
        (
            {"padding": "same", "stride": 2},
            r"`padding` \(='same'\) must come with stride 1, not `stride` \(=2\)",
        ),
        ({"padding": "same", "stride": (1, 2)}, r"not `stride` \(=\(1, 2\)\)"),
        ({"padding": "same", "stride": 1.5}, r"`stride` \(=1.5\) must be one integer"),
        ({"padding": "full"}, r"`padding` \(='full'\)"),
        ({"padding": 5, "padding_mode": "circular"}, r"`padding` \(=5 on axis 0\)"),
        ({"padding_mode": ("zeros",)}, r"`padding_mode` \(="),
    ],
)
def test_wrong_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        LocallyConnected2d(1, 1, **{"kernel_size": 3, "input_size": (4, 6), **options})
