"""Taps, sites and channels of layers over patterns are pruned as wholes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sparsity_cases import adam, fields, locally, masks, seed, train
from torch import nn

from scisparse.errors import OptionError
from scisparse.layers import LocallyConnected, SparseLinear
from scisparse.patterns import window
from scisparse.sparsity import Sparsifier, schedules

SHAPE = (5, 8)


def windowed(**options: Any) -> LocallyConnected:
    seed()
    pattern = window(SHAPE, 3, padding=1, padding_mode=("zeros", "circular"))
    return LocallyConnected(pattern, 2, 3, **options)


@pytest.mark.parametrize("structure", ["taps", "sites"])
def test_whole_groups_of_edges_stay_or_go(structure: str) -> None:
    layer = windowed()
    pattern, weight = layer.pattern, layer.weight.detach().clone()
    label = pattern.tap if structure == "taps" else pattern.rows()
    assert label is not None
    sparsifier = Sparsifier(layer, None, "magnitude", sparsity=0.5, structure=structure)
    (mask,) = masks(sparsifier)
    kept, mean = [], []
    for number in label.unique().tolist():
        group = mask[label == number]
        assert bool(group.all()) or not bool(group.any())
        kept.append(bool(group.all()))
        mean.append(weight[label == number].abs().mean().item())
    best = torch.tensor(mean).argsort(descending=True)[: sum(kept)]
    assert set(best.tolist()) == {i for i, stays in enumerate(kept) if stays}
    largest = max(int((label == number).sum()) for number in label.unique())
    assert abs(int(mask.sum()) - mask.numel() / 2) <= largest * 6 / 2  # 6 numbers an edge
    final: Any = sparsifier.finalize()
    assert final.pattern.num_edges == int(mask[:, 0, 0].sum())


def test_output_channels_go_at_all_sites() -> None:
    layer = windowed()
    with torch.no_grad():
        layer.weight[:, :, 1] *= 0.1
    (mask,) = masks(Sparsifier(layer, None, "magnitude", sparsity=0.34, structure="channels"))
    assert mask.all(0).all(0).tolist() == [True, False, True]
    assert not bool(mask[:, :, 1].any())


@pytest.mark.parametrize("tie", [None, "all", "longitude"])
def test_channels_of_groups_go_by_themselves(tie: Any) -> None:
    seed()
    pattern = window(SHAPE, 3, padding=1, padding_mode=("zeros", "circular"))
    layer = LocallyConnected(pattern, 4, 6, groups=2, tie=tie, bias=False)
    x = torch.rand(3, pattern.num_sources, 4)
    layer(x)[..., :3].sum().backward()
    assert layer.weight.grad is not None
    first = (layer.weight.grad != 0).any(2).any(1)  # rows of the first group
    with torch.no_grad():
        layer.weight.abs_()  # so that an output is 0 only where its channel is pruned
        layer.weight[first] *= torch.tensor([1, 0.1, 0.9])
        layer.weight[~first] *= torch.tensor([0.01, 1, 0.02])
    Sparsifier(layer, None, "magnitude", sparsity=0.5, structure="channels")
    kept = layer(x).abs().sum((0, 1)) > 0
    assert kept.tolist() == [True, False, True, False, True, False]


@pytest.mark.parametrize("tie", ["all", "longitude"])
def test_taps_of_tied_weights(tie: Any) -> None:
    layer = windowed(tie=tie)
    (mask,) = masks(Sparsifier(layer, None, "magnitude", sparsity=0.5, structure="taps"))
    tap = layer.pattern.tap
    assert tap is not None
    of_edge = mask[layer.weight_of_edges()]
    for number in range(9):
        group = of_edge[tap == number]
        assert bool(group.all()) or not bool(group.any())
    assert 0 < int(mask.sum()) < mask.numel()


def test_gradual_pruning_of_sites_ends_on_target() -> None:
    layer = locally()
    optimizer = adam(layer)
    sparsifier = Sparsifier(
        layer, optimizer, "gmp", sparsity=0.75, total_steps=20, structure="sites"
    )
    train(layer, optimizer, sparsifier, fields(20))
    (mask,) = masks(sparsifier)
    sites = layer.pattern.rows()[mask[:, 0, 0]].unique()
    assert int(sites.numel()) in (9, 10, 11)  # of 40; those at the rim have fewer edges
    assert sparsifier.report().sparsity == pytest.approx(0.75, abs=0.5 * 9 / 312)


def test_taps_of_a_layer_that_had_spare_rows() -> None:
    layer = locally()
    optimizer, data = adam(layer), fields(20)
    first = Sparsifier(layer, optimizer, "srigl", sparsity=0.74, total_steps=20)
    train(layer, optimizer, first, data)
    first.release()
    assert layer.weight.shape[0] > layer.pattern.num_edges
    (mask,) = masks(Sparsifier(layer, optimizer, "magnitude", sparsity=0.5, structure="taps"))
    assert len(mask) == layer.pattern.num_edges
    tap = layer.pattern.tap
    assert tap is not None
    assert all(len(mask[tap == number, 0, 0].unique()) <= 1 for number in range(9))
    assert 0 < int(mask.sum()) < mask.numel()


BAD: list[tuple[nn.Module, str, str]] = [
    (nn.Linear(8, 8), "sites", "for layers over patterns"),
    (nn.Linear(8, 8), "taps", "has no taps"),
    (SparseLinear(8, 8, fan_in=4), "taps", "has no taps"),
    (windowed(tie="all"), "sites", "shared between several"),
    (LocallyConnected(window(SHAPE, 3, padding=1), 2, 4, groups=2), "taps", "groups of channels"),
]


@pytest.mark.parametrize(("model", "structure", "message"), BAD)
def test_what_does_not_fit_is_said_before_training(
    model: nn.Module, structure: str, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        Sparsifier(model, adam(model), "gmp", sparsity=0.5, total_steps=10, structure=structure)


def test_channels_of_a_sparse_linear_layer_are_its_outputs() -> None:
    seed()
    layer = SparseLinear(12, 9, 5)
    site = layer.pattern.rows()
    mean = torch.stack([layer.weight.detach()[site == i].abs().mean() for i in range(9)])
    (mask,) = masks(Sparsifier(layer, None, "magnitude", sparsity=0.6, structure="channels"))
    wanted = set(mean.argsort(descending=True)[: round(0.4 * 9)].tolist())
    assert set(site[mask].tolist()) == wanted
    assert all(bool(mask[site == i].all()) == (i in wanted) for i in range(9))


@pytest.mark.parametrize("structure", ["block", "v:n:m", "2:4", "srigl"])
def test_structures_that_would_mean_something_else_are_refused(structure: str) -> None:
    seed()
    linear = SparseLinear(16, 8, 8)
    layer = windowed(tie="all") if structure == "srigl" else windowed()
    model = nn.Sequential(layer if structure in ("block", "srigl") else linear)
    if structure == "srigl":
        for name in ("srigl", "magnitude"):
            options: dict[str, Any] = {"structure": "constant_fan_in", "total_steps": 9}
            with pytest.raises(OptionError, match=r"0.weight shares weights or splits channels"):
                Sparsifier(model, adam(model), name, sparsity=0.5, **options)
        return
    with pytest.raises(OptionError, match=r"edges of different sites in 0.weight"):
        Sparsifier(model, None, "magnitude", sparsity=0.5, structure=structure)


def test_blocks_grow_where_gradients_are_zero_too() -> None:
    """Scores of blocks are sums, and minus infinity would never be chosen again."""
    seed()
    model = nn.Linear(16, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = schedules.CosineDrop(end=100, every=2, fraction=0.5)
    options: dict[str, Any] = {"structure": "block", "growth": "never_active_first"}
    sparsifier = Sparsifier(model, optimizer, "rigl", sparsity=0.5, schedule=schedule, **options)
    for _ in range(40):
        optimizer.zero_grad()
        (model(torch.ones(4, 16)) * 0.0).sum().backward()
        optimizer.step()
        sparsifier.step()
        assert sparsifier.report().sparsity == 0.5
