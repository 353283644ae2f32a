"""A U-Net and an untied head on top of a regression."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from postprocess_cases import ensemble, fitted
from torch import Tensor

from scisparse.errors import GridError
from scisparse.grids import Grid, LatLonGrid, ProjectedGrid, UnstructuredGrid, healpix
from scisparse.models.regression import Calibration, EnsembleRegression
from scisparse.models.unet_local import UNetLocal, check_plane
from scisparse.postprocess import Options

GLOBE = LatLonGrid.regular(5, 8)
REGION = LatLonGrid.from_degrees([1.0, 2.0, 3.0], [-1.0, 0.0, 1.0, 2.0, 3.0])
PLANE = ProjectedGrid(np.arange(4) * 1e3, np.arange(3) * 1e3)
LINE = LatLonGrid.from_degrees([5.0], [1.0, 2.0, 3.0])


def regression(grid: Grid, features: int) -> EnsembleRegression:
    points = torch.arange(grid.size + 1)
    model = EnsembleRegression(grid, points, points[:-1], features)
    weight = np.random.default_rng(0).normal(size=(grid.size, features, 1))
    model.set_(weight, Calibration(0.0, 1.0, 0.8, 0.5))
    return model


def network(grid: Grid, features: int = 2, *, trained: bool = False) -> UNetLocal:
    torch.manual_seed(0)
    model = UNetLocal(regression(grid, features), grid, features, width=3, depth=2)
    if trained:
        with torch.no_grad():
            for parameter in (*model.unet.parameters(), *model.head.parameters()):
                parameter.normal_(std=0.3)
    return model.eval()


def inputs(grid: Grid, features: int = 2, batch: int = 3) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    anomalies = torch.randn(batch, grid.size, features, dtype=torch.float64)
    return anomalies, torch.rand(batch, grid.size, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("grid", [GLOBE, REGION, PLANE, LINE])
@pytest.mark.parametrize("features", [1, 4])
def test_untrained_it_is_its_regression(grid: Grid, features: int) -> None:
    model, given = network(grid, features), inputs(grid, features)
    for found, expected in zip(model(*given), model.regression(*given), strict=True):
        assert torch.equal(found, expected)
    shift, factor = model.learned(*given)
    assert (shift == 0).all()
    assert (factor == 1).all()


@pytest.mark.parametrize("grid", [GLOBE, REGION, PLANE, LINE])
def test_what_is_learned_shifts_the_location_and_multiplies_the_scale(grid: Grid) -> None:
    model, given = network(grid, trained=True), inputs(grid)
    with torch.no_grad():
        location, scale = model(*given)
        start = model.regression(*given)
        shift, factor = model.learned(*given)
    torch.testing.assert_close(location, start[0] + shift)
    torch.testing.assert_close(scale, start[1] * factor)
    assert shift.shape == factor.shape == (3, grid.size)
    assert (scale > 0).all()
    assert shift.abs().min() > 0


def test_the_head_has_a_matrix_of_its_own_at_every_point() -> None:
    model, given = network(REGION, trained=True), inputs(REGION)
    before = model(*given)
    with torch.no_grad():
        model.head.weight[7] += 1.0
    after = model(*given)
    others = np.delete(np.arange(REGION.size), 7)
    for first, second in zip(before, after, strict=True):
        assert torch.equal(first[:, others], second[:, others])
        assert (first[:, 7] != second[:, 7]).all()


def test_the_network_closes_around_the_globe_and_not_around_a_region() -> None:
    """A change in the first column reaches the last one only where longitude is periodic."""
    for grid, closes in ((LatLonGrid.regular(5, 16), True), (wide_region(), False)):
        model = UNetLocal(regression(grid, 1), grid, 1, width=2, depth=0).eval()
        torch.nn.init.normal_(model.unet.head.weight)
        model.unet.down[0].norms = torch.nn.ModuleList([torch.nn.Identity()] * 2)
        anomalies, spread = inputs(grid, 1, batch=1)
        changed = anomalies.clone()
        changed.view(1, 5, 16, 1)[:, :, 0] += 1.0
        with torch.no_grad():
            first, second = (model.learned(a, spread)[0] for a in (anomalies, changed))
        reached = (first != second).view(5, 16).any(0)
        assert reached[:3].all()
        assert not reached[3:-2].any()
        assert bool(reached[-1]) == closes


def wide_region() -> LatLonGrid:
    return LatLonGrid.from_degrees(np.linspace(-80, 80, 5), np.arange(16) * 10.0)


def test_smoothness_of_the_head_closes_around_the_globe() -> None:
    grid = LatLonGrid.regular(5, 16, poles=False)
    model = network(grid)
    assert float(model.head.smoothness().detach()) == 0.0  # the identity everywhere

    def roughness(column: int) -> float:
        with torch.no_grad():
            weight = torch.eye(2).repeat(5, 16, 1, 1)
            weight[:, column] += 1.0
            model.head.weight.copy_(weight.view(-1, 2, 2))
        return float(model.head.smoothness().detach())

    assert roughness(0) == pytest.approx(roughness(7))


def test_only_network_and_head_are_trained() -> None:
    model = network(REGION)
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"unet", "head"}
    location, scale = model(*inputs(REGION))
    (location.sum() + scale.sum()).backward()
    assert all(p.grad is None for p in model.regression.parameters())
    assert model.unet.head.weight.grad is not None
    assert (model.unet.head.weight.grad != 0).any()


def test_cases_do_not_mix() -> None:
    model = network(GLOBE, trained=True)
    anomalies, spread = inputs(GLOBE)
    with torch.no_grad():
        together = model(anomalies, spread)
        for case in range(3):
            alone = model(anomalies[case : case + 1], spread[case : case + 1])
            for first, second in zip(together, alone, strict=True):
                torch.testing.assert_close(first[case : case + 1], second)


@pytest.mark.parametrize(
    "grid", [healpix(1), UnstructuredGrid([0.0, 0.1, 0.2], [0.0, 0.1, 0.2], areas=[1.0, 1.0, 1.0])]
)
def test_points_have_no_rows_and_columns(grid: Grid) -> None:
    match = r"needs a grid with rows and columns, not UnstructuredGrid\(.*use method='local'"
    with pytest.raises(GridError, match=match):
        check_plane(grid)
    with pytest.raises(GridError, match=match):
        UNetLocal(regression(grid, 1), grid, 1, width=2, depth=1)


def test_one_point_is_no_plane() -> None:
    field, observed = (each.isel(lat=[0], lon=[0]) for each in ensemble(12))
    with pytest.raises(GridError, match=r"needs a grid of several points, .* use 'emos_local'"):
        fitted("unet_local", field, observed)


@pytest.mark.parametrize("factor", [2.0**-30, 2.0**20])
def test_what_is_learned_does_not_know_the_units(factor: float) -> None:
    field, observed = ensemble(60)
    field, observed = field - 283.0, observed - 280.0
    signal = field.mean("member")
    observed = observed + 1.5 * np.abs(signal) + 0.7 * signal.roll(lon=1, roll_coords=False)
    options = Options(width=4, depth=1, epochs=6, learning_rate=0.01)
    fit = partial(fitted, method="unet_local", options=options)
    plain = fit(forecast=field, observed=observed).predict(field)
    scaled = fit(forecast=factor * field, observed=factor * observed).predict(factor * field)
    regression = fitted("emos_local", field, observed).predict(field)
    assert float(np.abs(plain - regression)["t2m_mean"].max()) > 0.05
    for name, values in plain.items():
        np.testing.assert_allclose(scaled[name] / factor, values, rtol=1e-3, atol=1e-3)
