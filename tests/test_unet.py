"""`UNet`: any size, no seam, starts at zero, learns."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from layer_cases import randn, randomize

from scisparse.errors import OptionError, ShapeError
from scisparse.models.unet import UNet, _enlarge
from scisparse.testing import (
    assert_batch_independent,
    assert_deterministic,
    assert_longitude_roll,
)


def build(depth: int = 2, **options: Any) -> UNet:
    """Make a small network whose head does something."""
    torch.manual_seed(0)
    net = UNet(3, 2, width=4, depth=depth, **options).double()
    randomize(net.head)
    return net


SIZES = [(1, 1), (1, 2), (2, 1), (3, 5), (7, 12), (16, 8), (13, 1), (1, 13), (9, 9)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("depth", [0, 1, 2, 4])
@pytest.mark.parametrize("mode", ["replicate", ("reflect", "circular"), "zeros", "reflect"])
def test_takes_any_size(size: tuple[int, int], depth: int, mode: Any) -> None:
    net = build(depth, padding_mode=mode)
    x = randn(2, 3, *size).requires_grad_()
    y = net(x)
    assert y.shape == (2, 2, *size)
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("mode", ["replicate", "reflect", "zeros"])
def test_no_seam_at_the_date_line(depth: int, mode: str) -> None:
    """Rolls by the coarsest stride: halving, padding and enlarging all go around."""
    net = build(depth, padding_mode=(mode, "circular"))
    assert_longitude_roll(net, randn(2, 3, 11, 24), step=2**depth)


def test_latitude_has_ends() -> None:
    """The other axis is not circular: a test that can fail."""
    net = build(2, padding_mode=("replicate", "circular"))
    with pytest.raises(AssertionError, match="field rolled by 4 columns"):
        assert_longitude_roll(net, randn(2, 3, 24, 8), step=4, dim=-2)


@pytest.mark.parametrize("size", [(2, 2), (4, 6), (7, 12), (5, 1), (1, 4), (9, 3)])
def test_enlarging_is_bilinear(size: tuple[int, int]) -> None:
    """As torch's interpolation of a field that was halved, where no end is reached."""
    half = [max(1, (n + 1) // 2) for n in size]
    x = randn(2, 3, *half)
    whole = F.interpolate(
        x, [min(2, n) * h for n, h in zip(size, half, strict=True)], mode="bilinear"
    )
    expected = whole[..., : size[0], : size[1]]
    torch.testing.assert_close(_enlarge(x, size, ("replicate", "zeros")), expected)


def test_enlarging_goes_around() -> None:
    x = torch.tensor([0.0, 4.0, 8.0]).view(1, 1, 1, 3)
    around = _enlarge(x, (1, 6), ("replicate", "circular")).flatten()
    assert around.tolist() == [2.0, 1.0, 3.0, 5.0, 7.0, 6.0]


def test_starts_at_zero_and_learns() -> None:
    net = UNet(3, 2, width=4)
    x, target = torch.randn(4, 3, 7, 12), torch.randn(4, 2, 7, 12)
    assert not net(x).any()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (net(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_batch_repeat_copy_and_state() -> None:
    net = build(2, padding_mode=("replicate", "circular"))
    x = randn(3, 3, 7, 12)
    assert_batch_independent(net, x)
    assert_deterministic(net, x)
    other = copy.deepcopy(net)
    randomize(other)
    assert not torch.equal(other(x), net(x))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))


def test_derivatives() -> None:
    net = build(1, padding_mode=("reflect", "circular"))
    x = randn(1, 3, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(net, (x,), fast_mode=True)
    assert torch.autograd.gradgradcheck(net, (x,), fast_mode=True)


def test_compiles_as_one_graph() -> None:
    net = build(2, padding_mode=("replicate", "circular"))
    x = randn(2, 3, 7, 12)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x), net(x))


def test_one_mode_stands_for_both_axes() -> None:
    x = randn(1, 3, 6, 6)
    assert torch.equal(build(padding_mode="reflect")(x), build(padding_mode=("reflect",) * 2)(x))
    assert build().modes == ("replicate", "replicate")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"width": 0}, r"`width` \(=0\) must be whole numbers, at least 1"),
        ({"depth": -1}, r"`depth` \(=-1\) at least 0"),
        ({"depth": 1.5}, r"`depth` \(=1.5\) at least 0"),
        ({"in_channels": 0}, r"`in_channels` \(=0\)"),
        ({"padding_mode": "wrap"}, r"`padding_mode` \(='wrap'\) must be one of"),
        ({"padding_mode": ("zeros",)}, r"`padding_mode` \(=\('zeros',\)\)"),
    ],
)
def test_wrong_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        UNet(**{"in_channels": 1, "out_channels": 1, **options})


@pytest.mark.parametrize("shape", [(3, 4, 4), (1, 2, 4, 4), (1, 3, 4, 4, 4)])
def test_wrong_input(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"UNet got an input of shape .* must be \[B, 3, H, W\]"):
        UNet(3, 1)(torch.randn(shape))
