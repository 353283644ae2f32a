"""Neighbourhood attention: its boxes by definition, and a bias for each offset."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.layers import (
    NeighborhoodAttention1d,
    NeighborhoodAttention2d,
    NeighborhoodAttention3d,
    Scores,
    SparseAttention,
)
from scisparse.pattern import Pattern
from scisparse.patterns import neighborhood


def along(size: int, kernel: int, step: int, causal: bool, periodic: bool, i: int) -> set[int]:
    """Cells that cell i of an axis reads, by the definition."""
    mine = [j for j in range(size) if (j - i) % step == 0]
    if periodic:
        return {(i + (n - kernel // 2) * step) % size for n in range(kernel)}
    if causal:
        return {j for j in mine if 0 <= i - j < kernel * step}
    place = mine.index(i)
    first = min(max(place - kernel // 2, 0), len(mine) - kernel)
    return set(mine[first : first + kernel])


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("kind", ["plain", "causal", "periodic"])
def test_boxes_along_one_axis(kernel: int, step: int, kind: str) -> None:
    flags = {"causal": kind == "causal", "periodic": kind == "periodic"}
    pattern = neighborhood((13,), kernel, dilation=step, **flags).validate()
    dense = pattern.to_dense().bool()
    for i in range(13):
        reads = set(dense[i].nonzero().flatten().tolist())
        assert reads == along(13, kernel, step, flags["causal"], flags["periodic"], i)
    assert pattern.tap is not None
    offset = pattern.tap.long() - kernel + 1
    assert torch.equal((pattern.rows() + offset * step) % 13, pattern.col.long())


def test_a_box_is_the_product_of_its_axes() -> None:
    pattern = neighborhood(
        (3, 6, 7),
        (2, 3, 3),
        dilation=(1, 2, 1),
        causal=(True, False, False),
        periodic=(False, False, True),
    ).validate()
    dense = pattern.to_dense().bool().view(3, 6, 7, 3, 6, 7)
    for i, j, k in [(0, 0, 0), (1, 3, 6), (2, 5, 2)]:
        sets = (
            along(3, 2, 1, True, False, i),
            along(6, 3, 2, False, False, j),
            along(7, 3, 1, False, True, k),
        )
        expected = torch.zeros(3, 6, 7, dtype=torch.bool)
        for a in sets[0]:
            for b in sets[1]:
                expected[a, b, list(sets[2])] = True
        assert torch.equal(dense[i, j, k], expected)


CLASSES: list[tuple[type[SparseAttention], tuple[int, ...]]] = [
    (NeighborhoodAttention1d, (9,)),
    (NeighborhoodAttention2d, (5, 7)),
    (NeighborhoodAttention3d, (3, 4, 5)),
]


def test_masked_cells_ask_as_zeros_or_given_as_sources_as_what_they_hold() -> None:
    torch.manual_seed(0)
    layer = NeighborhoodAttention2d(4, 2, 3, input_size=(5, 6)).double()
    mask = torch.rand(5, 6) < 0.7
    x = torch.randn(1, 5, 6, 4).double()
    zeros = x.masked_fill(~mask[..., None], 0)
    y = layer(x, source_mask=mask)
    torch.testing.assert_close(y, layer(zeros, zeros, source_mask=mask))
    token = layer(x, x, source_mask=mask)
    torch.testing.assert_close(token, layer(x, zeros, source_mask=mask))
    torch.testing.assert_close(token[:, mask], y[:, mask])
    assert not torch.allclose(token[:, ~mask], y[:, ~mask])


@pytest.mark.parametrize(("layer_class", "size"), CLASSES)
def test_layers_equal_attention_over_the_pattern(layer_class: Any, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = layer_class(6, 2, 3, input_size=size, periodic=True)
    with torch.no_grad():
        layer.bias.tap_weight.normal_()
    plain = SparseAttention(layer.pattern, 6, 2, scores=Scores(taps=True))
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, *size, 6)
    mask = torch.rand(2, *size) < 0.8
    expected = plain(x.view(2, -1, 6), source_mask=mask.view(2, -1)).view(x.shape)
    torch.testing.assert_close(layer(x, source_mask=mask), expected)
    # All axes are periodic: a turn along any of them turns the output.
    for axis in range(1, len(size) + 1):
        torch.testing.assert_close(layer(x.roll(2, axis)), layer(x).roll(2, axis))


@pytest.mark.parametrize(("layer_class", "size"), CLASSES)
def test_keys_may_be_grouped_and_weights_dropped(layer_class: Any, size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = layer_class(8, 4, 3, input_size=size, kv_heads=2, dropout=0.5)
    assert layer.k_proj.weight.shape == layer.v_proj.weight.shape == (4, 8)
    x = torch.randn(2, *size, 8)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    plain = SparseAttention(layer.pattern, 8, 4, kv_heads=2, scores=Scores(taps=True))
    plain.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(x), plain(x.flatten(1, -2)).view(x.shape))


@pytest.mark.parametrize(("layer_class", "size"), CLASSES)
def test_transposed_and_flat_sources_are_refused(layer_class: Any, size: tuple[int, ...]) -> None:
    layer = layer_class(4, 2, 3, input_size=size)
    x, wrong = torch.zeros(2, *size, 4), (*size[:-1], size[-1] + 1)
    shapes = [size[::-1], wrong] if len(size) > 1 else [wrong]
    for shape in [*shapes, (torch.Size(size).numel() + 1,)]:
        with pytest.raises(ShapeError, match=r"`source` \[.*\] must be \[..., .* 4 channels\]"):
            layer(x, torch.zeros(2, *shape, 4))
        for batch in ((), (2,)):
            mask = torch.ones(*batch, *shape, dtype=torch.bool)
            with pytest.raises(ShapeError, match=r"true at cells that count, \[.*\] or \[2, "):
                layer(x, source_mask=mask)
    for mask in (torch.ones(size), torch.ones(3, *size).bool(), torch.ones(1, 2, *size).bool()):
        with pytest.raises(ShapeError, match=r"`source_mask` \(torch.* must be booleans, true at"):
            layer(x, source_mask=mask)


@pytest.mark.parametrize(
    "size", [np.int64(9), [9], np.array([9]), torch.Size([9])], ids=["one", "list", "array", "Size"]
)
def test_sizes_may_be_numpys(size: Any) -> None:
    layer = NeighborhoodAttention1d(4, 2, 3, input_size=size)
    assert layer.input_size == (9,)
    assert layer(torch.zeros(1, 9, 4)).shape == (1, 9, 4)


def test_each_offset_has_its_bias() -> None:
    """Queries and keys of 0: the bias alone decides, and here it points to the west."""
    layer = NeighborhoodAttention2d(1, 1, 3, input_size=(4, 6), periodic=(False, True))
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
        for map_ in (layer.v_proj, layer.out_proj):
            map_.weight.fill_(1)
        assert layer.bias.tap_weight is not None
        layer.bias.tap_weight.view(5, 5)[2, 1] = 1e4  # same latitude, one cell to the west
    x = torch.randn(1, 4, 6, 1)
    torch.testing.assert_close(layer(x), x.roll(1, 2))


def test_what_does_not_fit_is_named() -> None:
    for shape in (5, (4, 2.5)):
        with pytest.raises(OptionError, match=r"`shape` \(=.*5\)* must be integers, one for each"):
            neighborhood(shape, 3)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"a box of 4 cells .*, 2 apart .* an axis of 7"):
        neighborhood((7,), 4, dilation=2)
    with pytest.raises(OptionError, match="both `causal` and `periodic`"):
        neighborhood((7,), 3, causal=True, periodic=True)
    with pytest.raises(
        OptionError, match=r"`kernel_size` \(=\[3, 3\]\) must be a positive integer"
    ):
        neighborhood((7,), [3, 3])
    with pytest.raises(
        OptionError, match=r"`periodic` \(=\[True\]\) must be a bool, or one for each"
    ):
        neighborhood((7, 7), 3, periodic=[True])
    with pytest.raises(
        OptionError, match=r"`input_size` \(=7\) must name 2 sizes for Neighborhood"
    ):
        NeighborhoodAttention2d(4, 2, 3, input_size=7)
    with pytest.raises(
        OptionError, match=r"`input_size` \(=9.5\) must name 1 sizes for Neighborhood"
    ):
        NeighborhoodAttention1d(4, 2, 3, input_size=9.5)  # type: ignore[arg-type]
    layer = NeighborhoodAttention2d(4, 2, 3, input_size=(4, 6))
    with pytest.raises(ShapeError, match=r"`x` \[1, 6, 4, 4\] must be \[..., 4, 6, 4 channels\]"):
        layer(torch.zeros(1, 6, 4, 4))
    with pytest.raises(PatternError, match="no taps for a bias by tap"):
        SparseAttention(Pattern.from_dense(torch.eye(3).bool()), 4, 2, scores=Scores(taps=True))
