"""Budgets by regions and by areas of sites: what is given, and which layers and methods keep it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from kernel_cases import generator
from sparsity_cases import adam, train
from torch import Tensor, nn

from scisparse.errors import GridError, OptionError
from scisparse.grids import LatLonGrid
from scisparse.layers import LocallyConnected
from scisparse.patterns import window
from scisparse.sparsity import Sparsifier, budgets

GRID = LatLonGrid.regular(6, 12, poles=False)


def region_labels(seed: int) -> np.ndarray[Any, Any]:
    """Three regions, of which one is missing."""
    drawn = torch.randint(3, (6, 12), generator=generator(seed)).double()
    return drawn.masked_fill(drawn == 2, math.nan).numpy()


def edges_by_region(kept: Tensor, labels: np.ndarray[Any, Any]) -> dict[str, int]:
    flat = labels.reshape(-1)
    counts = kept.numpy()
    found = {str(int(k)): int(counts[flat == k].sum()) for k in (0.0, 1.0)}
    return found | {"nan": int(counts[np.isnan(flat)].sum())}


class Mixed(nn.Module):
    """A pattern layer before a dense one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.local = LocallyConnected(window(GRID, 3), 2, 3)
        self.dense = nn.Linear(3, 20)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dense(torch.tanh(self.local(x)))
        return y


def trained(method: str, budget: budgets.Budget) -> tuple[Mixed, Sparsifier, Tensor]:
    model = Mixed()
    optimizer = adam(model)
    fan_in = model.local.pattern.fan_in.clone()
    options: dict[str, Any] = {"sparsity": 0.5, "total_steps": 12, "budget": budget}
    sparsifier = Sparsifier(model, optimizer, method, **options)
    gen = generator(3)
    data = [torch.randn(4, 72, 2, generator=gen) for _ in range(12)]
    train(model, optimizer, sparsifier, [(x, torch.zeros(4, 72, 20)) for x in data])
    assert sparsifier.report().layers[1].sparsity == pytest.approx(0.5, abs=0.02)
    sparsifier.finalize("dense")
    return model, sparsifier, fan_in


@pytest.mark.parametrize("method", ["rigl", "gmp", "magnitude", "l0", "top_kast", "set"])
def test_regions_under_every_method_beside_a_dense_layer(method: str) -> None:
    labels = region_labels(1)
    wanted = {0.0: 0.25, math.nan: 0.75}
    model, _, before = trained(method, budgets.Regions(labels, wanted))
    full = edges_by_region(before, labels)
    left = edges_by_region(model.local.pattern.fan_in, labels)
    for name, sparsity in (("0", 0.25), ("nan", 0.75), ("1", 0.5)):
        # Gates may close more than they are asked to.
        assert left[name] == pytest.approx((1 - sparsity) * full[name], abs=1), name


@pytest.mark.parametrize("method", ["rigl", "gmp", "magnitude"])
def test_areas_under_every_method(method: str) -> None:
    model, _, before = trained(method, budgets.AreaWeighted())
    _, quota = budgets.AreaWeighted(GRID.areas).groups(before, 0.5)
    assert (model.local.pattern.fan_in - quota).abs().max() <= 1
    assert model.local.pattern.num_edges == pytest.approx(int(quota.sum()), abs=1)


def test_a_region_is_pruned_as_gradually_as_its_layer() -> None:
    model = Mixed()
    budget = budgets.Regions(region_labels(2), {0.0: 0.9})
    sparsifier = Sparsifier(model, None, "gmp", sparsity=0.5, total_steps=40, budget=budget)
    seen = []
    for _ in range(40):
        sparsifier.step()
        by_region = sparsifier.report().layers[0].regions
        seen.append(next(r.sparsity for r in by_region if r.label == 0))
    assert seen == sorted(seen)
    assert len(set(seen)) > 5
    assert seen[0] < 0.3
    assert seen[-1] == pytest.approx(0.9, abs=0.02)


def test_labels_in_another_order_are_refused() -> None:
    labels = xr.DataArray(np.zeros((12, 6)), dims=("lon", "lat"))
    for method in ("rigl", "magnitude"):
        for budget in (
            budgets.Regions(labels, {0.0: 0.5}),
            budgets.AreaWeighted(np.ones((12, 6))),
        ):
            with pytest.raises(OptionError, match=r"has shape \[12, 6\] and the sites of"):
                Sparsifier(Mixed(), None, method, sparsity=0.5, total_steps=9, budget=budget)


@pytest.mark.parametrize("kind", ["tensor", "numpy", "array", "list", "flat"])
def test_areas_of_any_kind(kind: str) -> None:
    areas = torch.rand(6, 12, generator=generator(4), dtype=torch.float64)
    given: object = {
        "tensor": areas,
        "numpy": areas.numpy(),
        "array": xr.DataArray(areas.numpy(), dims=("lat", "lon")),
        "list": areas.tolist(),
        "flat": areas.float().reshape(-1),
    }[kind]
    fan_in = torch.randint(1, 9, (72,), generator=generator(5))
    group, kept = budgets.AreaWeighted(given).groups(fan_in, 0.4)
    reference = budgets.AreaWeighted().groups(fan_in, 0.4, areas.reshape(-1))[1]
    assert torch.equal(group, torch.arange(72))
    assert (kept - reference).abs().sum() <= 2  # float32 may round another way
    assert int(kept.sum()) == round(0.6 * int(fan_in.sum()))


@pytest.mark.parametrize(
    ("areas", "message"),
    [([1.0, math.nan], "has nan"), ([2.0, -1.0], "has -1.0"), (["a"], "give numbers")],
)
def test_areas_that_are_none(areas: list[Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        budgets.AreaWeighted(areas)


def test_missing_labels_are_one_region() -> None:
    labels = [math.nan, 1.0, float("nan"), 1.0, np.float64("nan")]
    budget = budgets.Regions(labels, {float("nan"): 0.5})
    group, kept = budget.groups(torch.full((5,), 4), 0.0)
    assert group.tolist() == [1, 0, 1, 0, 1]
    assert kept.tolist() == [8, 6]
    with pytest.raises(OptionError, match=r"sparsity\[1.0\].*must lie in"):
        budgets.Regions(labels, {1.0: "much"})  # type: ignore[dict-item]


def on_grid(values: np.ndarray[Any, Any], lat: float = 0.0) -> xr.DataArray:
    """Values of the grid, with its coordinates moved north by some degrees."""
    axes = np.degrees(GRID.lat_axis) + lat, np.degrees(GRID.lon_axis)
    return xr.DataArray(values.reshape(6, 12), dict(zip(("lat", "lon"), axes, strict=True)))


FORMS = {
    "flipped": lambda x: x.isel(lat=slice(None, None, -1)),
    "transposed": lambda x: x.transpose("lon", "lat"),
    "rolled": lambda x: x.roll(lon=5, roll_coords=True).assign_coords(
        lon=lambda y: (y.lon + 180) % 360 - 180
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["rigl", "magnitude"])
def test_labels_and_areas_go_by_their_coordinates(form: str, method: str) -> None:
    labels = region_labels(6)
    areas = torch.rand(6, 12, generator=generator(7), dtype=torch.float64).numpy()
    pairs: list[tuple[budgets.Budget, budgets.Budget]] = [
        (
            budgets.Regions(labels, {0.0: 0.2, 1.0: 0.8}),
            budgets.Regions(FORMS[form](on_grid(labels)), {0.0: 0.2, 1.0: 0.8}),
        ),
        (budgets.AreaWeighted(areas), budgets.AreaWeighted(FORMS[form](on_grid(areas)))),
    ]
    for by_position, by_coordinates in pairs:
        kept = []
        for budget in (by_position, by_coordinates):
            model = Mixed()
            options: dict[str, Any] = {"sparsity": 0.5, "total_steps": 9, "budget": budget}
            sparsifier = Sparsifier(model, None, method, **options)
            given = (labels, on_grid(labels), FORMS[form](on_grid(labels)))
            # As text: the label of sites in no region is NaN, which equals nothing.
            regions = {str(sparsifier.report(r).layers[0].regions) for r in given}
            assert len(regions) == 1
            sparsifier.finalize("dense")
            kept.append(model.local.pattern.fan_in)
        assert torch.equal(*kept)


def test_labels_and_areas_of_another_grid() -> None:
    values = region_labels(8)
    elsewhere = on_grid(values, lat=3.0)
    unknown = xr.DataArray(values.reshape(-1), {"site": np.arange(72)})
    for given, message in ((elsewhere, "which lacks"), (unknown, "whose points are not known")):
        options: dict[str, Any] = {"sparsity": 0.5, "total_steps": 9}
        with pytest.raises(GridError, match=f"`labels`.* {message}"):
            Sparsifier(Mixed(), None, "rigl", budget=budgets.Regions(given, {0.0: 0.1}), **options)
        areas = budgets.AreaWeighted(given.fillna(2))
        with pytest.raises(GridError, match=f"`areas`.* {message}"):
            Sparsifier(Mixed(), None, "gmp", budget=areas, **options)
        with pytest.raises(GridError, match=f"`regions`.* {message}"):
            Sparsifier(Mixed(), None, "rigl", **options).report(given)
