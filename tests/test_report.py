"""Reports of a sparsifier: numbers by region against counts by hand, Dataset and table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from kernel_cases import generator
from sparsity_cases import OFTEN, adam, fields, locally, network, train
from torch import Tensor, nn

from scisparse.errors import OptionError
from scisparse.grids import LatLonGrid
from scisparse.layers import LocallyConnected, LocallyConnected2d, SparseLinear
from scisparse.patterns import nearest, window
from scisparse.sparsity import Sparsifier, budgets
from scisparse.sparsity.masked import MaskedTarget
from scisparse.sparsity.measure import measure
from scisparse.sparsity.progress import Progress
from scisparse.sparsity.report import DISTANCE_BINS, LayerReport, Report

NAMES = ("ice", "land", "sea")


def site_labels(sites: int = 40) -> np.ndarray[Any, np.dtype[np.str_]]:
    drawn = torch.randint(3, (sites,), generator=generator(3))
    return np.array([NAMES[k] for k in drawn.tolist()])


def by_label(layer: LayerReport) -> dict[object, tuple[int, int]]:
    return {region.label: (region.size, region.active) for region in layer.regions}


def counted(full: Tensor, left: Tensor, labels: Any) -> dict[object, tuple[int, int]]:
    """Sizes and active weights from counts at each site, one site after the other."""
    found = {name: (0, 0) for name in sorted(set(labels.tolist()))}
    for name, size, active in zip(labels.tolist(), full.tolist(), left.tolist(), strict=True):
        found[name] = (found[name][0] + size, found[name][1] + active)
    return found


def pruned() -> tuple[LocallyConnected, Sparsifier]:
    """Layer of 40 sites whose edges are under a mask."""
    layer = locally()
    return layer, Sparsifier(layer, None, "magnitude", sparsity=0.6)


def hide(sparsifier: Sparsifier) -> MaskedTarget:
    """Prune single weights at random, with no regard to edges."""
    (target,) = sparsifier.targets
    assert isinstance(target, MaskedTarget)
    target.mask = torch.rand(target.mask.shape, generator=generator(5)) < 0.3
    with torch.no_grad():
        target.parameter.fill_(1.0)
    target.enforce()
    return target


# -- regions -----------------------------------------------------------------------------------


def test_regions_of_a_random_mask() -> None:
    layer, sparsifier = pruned()
    hide(sparsifier)
    labels = site_labels()
    full, left = torch.zeros(40), torch.zeros(40)
    for edge, site in enumerate(layer.pattern.rows().tolist()):
        full[site] += 2 * 3
        left[site] += int((layer.weight[edge] != 0).sum())
    (report,) = sparsifier.report(labels).layers
    assert by_label(report) == counted(full, left, labels)
    assert sum(r.size for r in report.regions) == report.size == layer.weight.numel()
    assert sum(r.active for r in report.regions) == report.active == int((layer.weight != 0).sum())
    assert {r.sparsity for r in report.regions} != {report.sparsity}


def test_regions_while_pruning_gradually_and_after() -> None:
    layer, labels = locally(), site_labels()
    optimizer = adam(layer)
    sparsifier = Sparsifier(layer, optimizer, "gmp", sparsity=0.7, total_steps=12)
    full = layer.pattern.fan_in * 6
    train(layer, optimizer, sparsifier, fields(12))
    before = sparsifier.report(labels).layers[0]
    nonzero = layer.weight.detach().flatten(1).any(1).long()
    left = torch.zeros(40, dtype=torch.int64).index_add_(0, layer.pattern.rows(), nonzero) * 6
    assert by_label(before) == counted(full, left, labels)
    sparsifier.finalize()  # the layer is now over another pattern
    assert torch.equal(layer.pattern.fan_in * 6, left)
    assert sparsifier.report(labels).layers[0].regions == before.regions


@pytest.mark.parametrize("wider", [False, True])
def test_regions_of_moving_edges(wider: bool) -> None:
    layer, labels = locally(), site_labels()
    full = layer.pattern.fan_in * 6
    options: dict[str, Any] = {"total_steps": 100, "schedule": OFTEN}
    if wider:  # sparsity stays a fraction of the edges that the layer had
        options["candidates"] = layer.pattern.union(
            window((5, 8), 5, padding=2, padding_mode=("zeros", "circular"))
        )
    optimizer = adam(layer)
    sparsifier = Sparsifier(layer, optimizer, "rigl", sparsity=0.6, **options)
    train(layer, optimizer, sparsifier, fields(7))
    (report,) = sparsifier.report(labels).layers
    assert by_label(report) == counted(full, layer.pattern.fan_in * 6, labels)
    assert sum(r.size for r in report.regions) == report.size
    assert sum(r.active for r in report.regions) == report.active


def test_regions_of_far_slots_and_of_all_pairs() -> None:
    grid = LatLonGrid.regular(6, 12, poles=False)
    layer, labels = LocallyConnected(nearest(grid, 5), 2, 3), site_labels(72)
    sparsifier = Sparsifier(layer, adam(layer), "rigl", teleconnections=2, total_steps=100)
    (report,) = sparsifier.report(labels).layers
    assert by_label(report) == counted(torch.full((72,), 42), layer.pattern.fan_in * 6, labels)

    linear = SparseLinear(10, 40, 4)
    sparsifier = Sparsifier(linear, adam(linear), "set", sparsity=0.9, total_steps=100)
    (report,) = sparsifier.report(site_labels()).layers
    expected = counted(torch.full((40,), 10), linear.pattern.fan_in, site_labels())
    assert by_label(report) == expected


def test_a_budget_by_regions_reports_its_regions() -> None:
    layer, labels = locally(), site_labels()
    full = layer.pattern.fan_in
    budget = budgets.Regions(labels, {"sea": 0.9, "land": 0.25})
    sparsifier = Sparsifier(layer, adam(layer), "rigl", sparsity=0.5, total_steps=9, budget=budget)
    found = {r.label: r for r in sparsifier.report().layers[0].regions}
    for name, sparsity in {"sea": 0.9, "land": 0.25, "ice": 0.5}.items():
        edges = int(full[torch.from_numpy(labels == name)].sum())
        assert found[name].size == 6 * edges
        assert found[name].active == 6 * round((1 - sparsity) * edges)
    other = sparsifier.report(np.arange(40) < 7).layers[0]
    assert [r.label for r in other.regions] == [False, True]
    assert sum(r.size for r in other.regions) == other.size


def test_arrays_of_every_kind_give_the_same() -> None:
    grid = LatLonGrid.regular(5, 8, poles=False)
    layer = LocallyConnected(window(grid, 3), 2, 3)
    sparsifier = Sparsifier(layer, None, "magnitude", sparsity=0.5)
    numbers = torch.randint(4, (5, 8), generator=generator(2))
    expected = sparsifier.report(numbers.flatten().tolist()).layers[0].regions
    assert [r.label for r in expected] == [0, 1, 2, 3]
    field = xr.DataArray(numbers.numpy(), dims=("lat", "lon"))
    for given in (numbers, numbers.numpy(), numbers.numpy().ravel(), field):
        assert sparsifier.report(given).layers[0].regions == expected
    with pytest.raises(OptionError, match=r"shape \[8, 5\] and the sites of weight have \[5, 8\]"):
        sparsifier.report(field.T)


def test_sites_without_a_label_are_one_region() -> None:
    layer, sparsifier = pruned()
    labels = np.where(np.arange(40) < 25, 1.0, np.nan)
    first, last = sparsifier.report(labels).layers[0].regions
    assert first.label == 1.0
    assert math.isnan(float(str(last.label)))
    assert last.size == 6 * int(layer.pattern.fan_in[25:].sum())


@pytest.mark.parametrize("groups", [1, 2])
def test_shared_weights_belong_to_the_region_of_their_sites(groups: int) -> None:
    labels = site_labels()
    pattern = window((5, 8), 3, padding=1, padding_mode=("zeros", "circular"))
    layer = LocallyConnected(pattern, 4, 6, tie=labels, groups=groups)
    sparsifier = Sparsifier(layer, None, "magnitude", sparsity=0.5)
    hide(sparsifier)
    (report,) = sparsifier.report(labels).layers
    rows = [labels[site] for site in pattern.rows().tolist() for _ in range(groups)]
    for region in report.regions:
        mine = layer.weight_of_edges()[torch.tensor([row == region.label for row in rows])].unique()
        assert region.size == mine.numel() * layer.weight[0].numel()
        assert region.active == int((layer.weight[mine] != 0).sum())
    assert sum(r.size for r in report.regions) == report.size
    with pytest.raises(OptionError, match="sites of different regions share the weights of weight"):
        sparsifier.report(np.arange(40))


def test_own_weights_of_channel_groups() -> None:
    pattern, labels = window((5, 8), 3, padding=1), site_labels()
    layer = LocallyConnected(pattern, 4, 6, tie=None, groups=2)
    sparsifier = Sparsifier(layer, None, "magnitude", sparsity=0.5)
    hide(sparsifier)
    left = torch.zeros(40)
    rows = (layer.weight != 0).flatten(1).sum(1).split((pattern.fan_in * 2).tolist())
    for site, counts in enumerate(rows):
        left[site] = int(counts.sum())
    assert by_label(sparsifier.report(labels).layers[0]) == counted(
        pattern.fan_in * 2 * 6, left, labels
    )


def test_wrong_labels() -> None:
    sparsifier = pruned()[1]
    with pytest.raises(OptionError, match="39 labels and weight has 40 sites; give one label"):
        sparsifier.report(site_labels(39))
    dense = Sparsifier(network(), None, "magnitude", sparsity=0.5)
    with pytest.raises(OptionError, match="no layer is over a pattern"):
        dense.report(site_labels())


class Mixed(nn.Module):
    """A layer with regions, one on other sites, and a dense one."""

    def __init__(self) -> None:
        super().__init__()
        grid = LatLonGrid.regular(5, 8, poles=False)
        self.fine = LocallyConnected(window(grid, 3), 2, 3)
        self.coarse = LocallyConnected(window((3, 4), 3, padding=1), 2, 3)
        self.dense = nn.Linear(6, 4)


def mixed() -> Report:
    return Sparsifier(Mixed(), None, "magnitude", sparsity=0.5).report(site_labels())


def test_other_layers_have_no_regions() -> None:
    report = mixed()
    assert [r.name for r in report.layers] == ["fine.weight", "coarse.weight", "dense.weight"]
    assert [len(r.regions) for r in report.layers] == [3, 0, 0]


# -- table and Dataset -------------------------------------------------------------------------


def test_dataset_of_regions() -> None:
    report = mixed()
    data = report.to_dataset()
    bins = len(DISTANCE_BINS) - 1
    assert dict(data.sizes) == {"layer": 3, "region": 3, "distance": bins, "tap": 9}
    assert data["region"].values.tolist() == list(NAMES)
    fine = report.layers[0]
    for region in fine.regions:
        part = data.sel(layer="fine.weight", region=region.label)
        assert float(part["region_size"]) == region.size
        assert float(part["region_active"]) == region.active
        assert float(part["region_sparsity"]) == pytest.approx(1 - region.active / region.size)
    others = data.sel(layer=["coarse.weight", "dense.weight"])
    for name in ("region_size", "region_active", "region_sparsity", "edges"):
        assert bool(others[name].isnull().all()), name
    plain = Sparsifier(network(), None, "magnitude", sparsity=0.5).report().to_dataset()
    assert set(plain.sizes) == {"layer"}


def test_dataset_survives_netcdf(tmp_path: Any) -> None:
    data = mixed().to_dataset()
    data.to_netcdf(tmp_path / "report.nc")
    with xr.open_dataset(tmp_path / "report.nc") as back:
        xr.testing.assert_equal(back.load(), data)


def test_table_and_dataset_tell_accuracy_for_each_weight(tmp_path: Any) -> None:
    sparsifier = Sparsifier(Mixed(), None, "magnitude", sparsity=0.5)
    accuracy = torch.rand((), generator=generator(8))
    report = sparsifier.report(accuracy=accuracy.item())
    active = sum(layer.active for layer in report.layers)
    assert report.efficiency == pytest.approx(accuracy.item() / active)
    data = report.to_dataset()
    assert float(data["accuracy"]) == accuracy.item()
    assert float(data["efficiency"]) == report.efficiency
    data.to_netcdf(tmp_path / "report.nc")
    with xr.open_dataset(tmp_path / "report.nc") as back:
        xr.testing.assert_equal(back.load(), data)
    first = str(report).splitlines()[0]
    assert first.endswith(f"accuracy {accuracy:.6g}, {report.efficiency:.3g} per weight")
    plain = sparsifier.report()
    assert plain.efficiency is None
    assert "accuracy" not in plain.to_dataset()
    assert "accuracy" not in str(plain)


@pytest.mark.parametrize("accuracy", [float("nan"), float("inf"), "high", np.ones(2)], ids=str)
def test_accuracy_is_a_number(accuracy: Any) -> None:
    with pytest.raises(OptionError, match=r"`accuracy` is .* one finite number"):
        Sparsifier(network(), None, "magnitude", sparsity=0.5).report(accuracy=accuracy)


def test_table_lists_regions_below_their_layer() -> None:
    report = mixed()
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines[2:]] == [
        "fine.weight",
        *NAMES,
        "coarse.weight",
        "dense.weight",
    ]
    ice = report.layers[0].regions[0]
    assert lines[3].split() == ["ice", str(ice.size), str(ice.active), f"{ice.sparsity:.4f}"]
    assert lines[2].split()[6] == str(2 * report.layers[0].active)


def test_pruned_edges_have_no_distance() -> None:
    grid = LatLonGrid.regular(6, 12, poles=False)
    layer = LocallyConnected(nearest(grid, 9), 1, 1)
    sparsifier = Sparsifier(layer, None, "magnitude", sparsity=0.75)
    distance = layer.pattern.distance
    assert distance is not None
    left = distance[(layer.weight != 0).flatten()].numpy()
    counts = sparsifier.report().layers[0].distances
    assert sum(counts) == len(left) == round(0.25 * 9 * 72)
    assert counts == tuple(np.histogram(left, DISTANCE_BINS)[0].tolist())


def test_distances_of_shared_weights_with_channel_groups() -> None:
    grid = LatLonGrid.regular(6, 12, poles=False)
    layer = LocallyConnected(window(grid, 3), 4, 4, tie="longitude", groups=2)
    target = hide(Sparsifier(layer, None, "magnitude", sparsity=0.5))
    target.mask[torch.rand(len(target.mask), generator=generator(4)) < 0.6] = False
    alive = target.mask.flatten(1).any(1)[layer.weight_of_edges()].tolist()
    ends = layer.pattern.row_ptr.tolist()
    positions = grid.positions()
    lengths, k = [], 0
    for site in range(grid.size):
        sources = layer.pattern.col[ends[site] : ends[site + 1]].tolist()
        first, second = alive[k : k + len(sources)], alive[k + len(sources) : k + 2 * len(sources)]
        k += 2 * len(sources)
        for source, one, other in zip(sources, first, second, strict=True):
            if one or other:
                angle = math.acos(min(1.0, float(positions[site] @ positions[source])))
                lengths.append(6371e3 * angle)
    counts = measure([target], Progress(), "uniform").layers[0].distances
    assert 0 < sum(counts) < layer.pattern.num_edges
    assert counts == tuple(np.histogram(lengths, DISTANCE_BINS)[0].tolist())


@pytest.mark.parametrize("kind", ["convolution", "tied", "longitude", "own", "moving", "window"])
def test_weights_are_counted_by_tap(kind: str) -> None:
    torch.manual_seed(0)
    shape: Any = {"padding": 1, "padding_mode": ("zeros", "circular")}
    pattern = window((5, 8), 3, **shape)
    layer: Any = {
        "convolution": lambda: nn.Conv2d(2, 3, 3),
        "tied": lambda: LocallyConnected(pattern, 2, 3, tie="all"),
        "longitude": lambda: LocallyConnected(pattern, 2, 3, tie="longitude"),
        "own": lambda: LocallyConnected(pattern, 2, 3),
        "moving": lambda: LocallyConnected(pattern, 2, 3),
        "window": lambda: LocallyConnected2d(2, 3, 3, input_size=(5, 8), **shape),
    }[kind]()
    method = "set" if kind == "moving" else "magnitude"
    sparsifier = Sparsifier(layer, None, method, sparsity=0.6, total_steps=9)
    report = sparsifier.report()
    taps = report.layers[0].taps
    assert sum(taps) == report.layers[0].active
    kept = layer.weight.detach() != 0
    if kind == "convolution":
        expected = kept.sum((0, 1)).flatten().tolist()
    else:
        weight = layer.weight_of_edges()
        rows = torch.arange(len(kept))[: layer.pattern.num_edges] if weight is None else weight
        of_tap = [rows[layer.pattern.tap == k].unique() for k in range(9)]
        expected = [int(kept[index].sum()) for index in of_tap]
    assert list(taps) == expected
    data = report.to_dataset()["tap_active"]
    assert data.dims == ("layer", "tap")
    assert data.values.tolist() == [expected]
