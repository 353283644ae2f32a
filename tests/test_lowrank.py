"""`LowRankLocallyConnected`: its formula, its limits, masks and the way to the untied layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from layer_cases import (
    MASK,
    Operators,
    assert_equal,
    edges_of,
    index_pattern,
    masked_pattern,
    no_taps,
    randn,
    randomize,
    repeated_pattern,
)
from torch import Tensor

from scisparse import memory
from scisparse.errors import MemoryLimitError, OptionError, PatternError, ShapeError
from scisparse.layers import LocallyConnected, LowRankLocallyConnected
from scisparse.patterns import window
from scisparse.testing import assert_batch_independent, assert_deterministic

PATTERNS = [index_pattern, masked_pattern, repeated_pattern]
every_pattern = pytest.mark.parametrize("pattern", PATTERNS)


def build(pattern: Any, rank: int = 3, **options: Any) -> LowRankLocallyConnected:
    layer = LowRankLocallyConnected(pattern, 2, 4, rank, **{"dtype": torch.float64, **options})
    randomize(layer)
    return layer


def by_formula(layer: LowRankLocallyConnected, x: Tensor) -> Tensor:
    """Every edge, every stencil, in plain Python."""
    pattern = layer.pattern
    basis = layer.basis.weight.reshape(-1, 2, layer.rank, 4)
    rows = [x.new_zeros(len(x), 4) for _ in range(pattern.num_sites)]
    for site, source, tap in edges_of(pattern):
        for r in range(layer.rank):
            rows[site] = rows[site] + layer.mixing[site, r] * (x[:, source] @ basis[tap, :, r])
    if layer.bias is not None:
        for site in {site for site, _, _ in edges_of(pattern)}:
            rows[site] = rows[site] + layer.bias[site if len(layer.bias) > 1 else 0]
    return torch.stack(rows, 1)


@every_pattern
@pytest.mark.parametrize("bias", [True, "site", "shared", False])
@pytest.mark.parametrize("rank", [1, 3])
def test_equals_its_formula(pattern: Any, bias: Any, rank: int) -> None:
    """Output and gradients of input and all parameters; untied too."""
    layer = build(pattern(), rank, bias=bias)
    x = randn(2, 24, 2).requires_grad_()
    expected, y = by_formula(layer, x), layer(x)
    assert_equal(y, expected)
    assert_equal(layer.untie()(x), expected)
    inputs, pull = (x, *layer.parameters()), randn(*y.shape, seed=5)
    wanted = torch.autograd.grad(expected, inputs, pull)
    for mine, want in zip(torch.autograd.grad(y, inputs, pull), wanted, strict=True):
        assert_equal(mine, want)


@every_pattern
def test_rank_one_alike_everywhere_is_a_convolution(pattern: Any) -> None:
    layer = build(pattern(), 1, bias="shared")
    layer.mixing.data[:] = 2.5
    conv = LocallyConnected(pattern(), 2, 4, tie="all", bias="shared", dtype=torch.float64)
    conv.weight.data = 2.5 * layer.basis.weight.data
    assert conv.bias is not None
    assert layer.bias is not None
    conv.bias.data = layer.bias.data
    x = randn(2, 24, 2)
    assert_equal(layer(x), conv(x))


def test_full_rank_is_any_untied_layer() -> None:
    """With one stencil for each entry, the mixing holds the weights of an untied layer."""
    pattern = window((5,), 3, padding_mode="circular")
    untied = LocallyConnected(pattern, 2, 2, dtype=torch.float64)
    randomize(untied)
    layer = LowRankLocallyConnected(pattern, 2, 2, 12, dtype=torch.float64)
    basis = torch.eye(12, dtype=torch.float64).reshape(12, 3, 2, 2)
    layer.basis.weight.data = basis.permute(1, 2, 0, 3).reshape(3, 2, 24).clone()
    entries = torch.zeros(5, 3, 2, 2, dtype=torch.float64)
    entries[pattern.rows(), pattern.tap] = untied.weight.data
    layer.mixing.data = entries.reshape(5, 12)
    assert layer.bias is not None
    assert untied.bias is not None
    layer.bias.data = untied.bias.data
    x = randn(3, 5, 2)
    assert_equal(layer(x), untied(x))


def test_masked_cells() -> None:
    masked = torch.from_numpy(~MASK).flatten()
    layer = build(masked_pattern())
    x = randn(2, 24, 2)
    x[:, masked] = torch.nan
    x.requires_grad_()
    y = layer(x)
    assert not y[:, masked].any()
    assert y.isfinite().all()
    y.sum().backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    assert layer.mixing.grad is not None
    assert not layer.mixing.grad[masked].any()


@pytest.mark.parametrize("rank", [1, 2, 8])
def test_starts_near_a_convolution_of_true_scale(rank: int) -> None:
    """Whatever the rank: interior outputs have variance 1/3, and sites are alike but for noise."""
    torch.manual_seed(0)
    layer = LowRankLocallyConnected(window((9, 9), 3, padding_mode="circular"), 16, 64, rank)
    y = layer(torch.randn(64, 81, 16))
    assert float(y.var().detach()) == pytest.approx(1 / 3, rel=0.3)
    spread = (layer.mixing.std(0) / layer.mixing.mean(0)).detach()
    assert ((spread > 0.05) & (spread < 0.15)).all()
    assert layer.bias is not None
    assert not layer.bias.any()


def test_leading_dims_and_invariances() -> None:
    layer = build(masked_pattern())
    x = randn(2, 3, 24, 2)
    assert_equal(layer(x)[1, 2], layer(x[1, 2]))
    assert layer(x[:0]).shape == (0, 3, 24, 4)
    assert_batch_independent(layer, x[0])
    assert_deterministic(layer, x[0])


def test_memory_is_that_of_the_rank() -> None:
    """The basis runs at `rank` times the output, without a k*k-fold input."""
    layer = LowRankLocallyConnected(window((16, 24), 5, padding_mode="circular"), 8, 4, 2)
    x = torch.randn(16, 384, 8)
    with torch.no_grad(), Operators() as operators:
        layer(x)
    assert operators.largest <= 2 * x.nbytes < 25 * x.nbytes


def test_untied_copy_keeps_kind() -> None:
    layer = build(masked_pattern(), dtype=torch.float32, bias="shared").eval()
    untied = layer.untie()
    assert (untied.weight.dtype, untied.bias_mode, untied.training) == (
        torch.float32,
        "shared",
        False,
    )
    assert untied.tie is None


@pytest.mark.parametrize(
    ("rank", "options", "error", "match"),
    [
        (0, {}, OptionError, r"`rank` \(=0\) must be at least 1"),
        (2.0, {}, OptionError, r"`rank` \(=2.0\) must be an integer"),
        (10**12, {}, MemoryLimitError, r"need .* bytes .*these would fit: rank=1 \(.*rank=64 \("),
        (1, {"bias": "all"}, OptionError, "`bias` is 'all'; choose True, 'site'"),
    ],
)
def test_wrong_options(rank: Any, options: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build(index_pattern(), rank, **options)


def test_mixing_counts_in_the_check_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tap, one channel: the basis alone would fit a hundred times."""
    pattern = window((1000,), 1)
    monkeypatch.setattr(memory, "available_bytes", lambda device: 40_000)
    assert LowRankLocallyConnected(pattern, 1, 1, np.int64(9), bias=False).rank == 9  # type: ignore[arg-type]
    with pytest.raises(MemoryLimitError, match=r"need 400,400 bytes .*: rank=1 .*, rank=8 "):
        LowRankLocallyConnected(pattern, 1, 1, 100, bias=False)


def test_wrong_use() -> None:
    layer = build(index_pattern())
    with pytest.raises(OptionError, match="`to` is 'all'; it must be None: the stencils"):
        layer.untie("all")
    with pytest.raises(ShapeError, match=r"it must be \[..., 24 sources, 2 channels\]"):
        layer(randn(2, 24, 3))
    with pytest.raises(PatternError, match="needs the taps of the edges"):
        build(no_taps())


def test_low_rank_maps_train_to_regions() -> None:
    """Two climates: rank 2 finds both stencils, rank 1 cannot."""
    pattern = window((4, 6), 1)
    sign = torch.from_numpy(np.where(np.arange(24) % 6 < 3, 1.0, -1.0))[:, None]
    x = randn(64, 24, 2)
    target = torch.where(sign > 0, x[..., :1], x[..., 1:])
    losses = {}
    for rank in (1, 2):
        torch.manual_seed(0)
        layer = LowRankLocallyConnected(pattern, 2, 1, rank, dtype=torch.float64)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
        for _ in range(200):
            optimizer.zero_grad()
            loss = (layer(x) - target).square().mean()
            loss.backward()
            optimizer.step()
        losses[rank] = float(loss.detach())
    assert losses[2] < 0.02 < losses[1]
