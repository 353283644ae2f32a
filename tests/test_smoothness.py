"""`smoothness`: sums by hand, the Laplacian of the sphere, the date line and the poles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from layer_cases import (
    SHAPE,
    Operators,
    assert_equal,
    build,
    edges_of,
    every_tie,
    index_pattern,
    masked_pattern,
    no_taps,
    sphere_harmonic,
)
from torch import Tensor, nn

from scisparse.adjacency import neighbouring_sites
from scisparse.errors import PatternError
from scisparse.grids import LatLonGrid
from scisparse.layers import LocallyConnected, LocallyConnectedTranspose2d
from scisparse.patterns import window


def smoothness_by_hand(layer: LocallyConnected, pairs: list[tuple[int, int, float]]) -> Tensor:
    """Sum over pairs of sites and their common taps, in plain Python."""
    total = layer.weight.new_zeros(())
    place = {(site, tap): e for e, (site, _, tap) in enumerate(edges_of(layer.pattern))}
    untied = layer.untie()
    for first, second, strength in pairs:
        for (site, tap), edge in place.items():
            if site == first and (second, tap) in place:
                other = place[second, tap]
                for g in range(layer.groups):
                    ends = [
                        untied.weight[_row(layer, s, g, e)]
                        for s, e in ((first, edge), (second, other))
                    ]
                    total = total + strength * (ends[0] - ends[1]).square().sum()
    return total / layer.pattern.num_sites


def _row(layer: LocallyConnected, site: int, g: int, edge: int) -> int:
    start, end = layer.pattern.row_ptr.tolist()[site : site + 2]
    return int(start * layer.groups + g * (end - start) + edge - start)


def index_pairs() -> list[tuple[int, int, float]]:
    """Neighbours on a 4 x 6 index space with closed longitude."""
    down = [(i, i + 6, 1.0) for i in range(18)]
    return down + [(i, i // 6 * 6 + (i + 1) % 6, 1.0) for i in range(24)]


@every_tie
@pytest.mark.parametrize("groups", [1, 2])
def test_smoothness_is_the_sum_over_neighbours(tie: Any, groups: int) -> None:
    layer = build(index_pattern(), tie, groups=groups)
    assert_equal(layer.smoothness(), smoothness_by_hand(layer, index_pairs()))
    if isinstance(tie, str) and tie == "all":
        assert layer.smoothness() == 0


@every_tie
@pytest.mark.parametrize("groups", [1, 2])
def test_smoothness_of_masked_cells_on_the_sphere(tie: Any, groups: int) -> None:
    layer = build(masked_pattern(), tie, groups=groups)
    pairs = (array.tolist() for array in neighbouring_sites(layer.pattern))
    assert_equal(layer.smoothness(), smoothness_by_hand(layer, list(zip(*pairs, strict=True))))


@pytest.mark.parametrize("reload", [False, True])
def test_rewired_weights_have_the_neighbours_of_the_window_they_were_built_on(reload: bool) -> None:
    layer = build(index_pattern(), None)
    keep = torch.rand(layer.pattern.num_edges) < 0.6
    layer.rewire(layer.pattern.select(keep))
    assert_equal(layer.smoothness(), smoothness_by_hand(layer, index_pairs()))
    layer.rewire(index_pattern())  # those that come back are 0
    if reload:
        layer, old = build(index_pattern(), None), layer
        layer.load_state_dict(old.state_dict())
    assert 0 < (layer.weight.flatten(1) == 0).all(1).sum() == (~keep).sum()
    assert_equal(layer.smoothness(), smoothness_by_hand(layer, index_pairs()))
    assert f"in {SHAPE}" in repr(layer)


def test_rewired_transposed_weights_have_the_neighbours_they_had() -> None:
    layer = LocallyConnectedTranspose2d(2, 3, 3, stride=2, input_size=(3, 4), padding=1)
    before = layer.smoothness()
    assert before > 0
    layer.rewire(layer.pattern)
    assert layer.rewired
    assert torch.equal(layer.smoothness(), before)


class Penalty(nn.Module):
    """The penalty as a forward pass, so that its weight can be replaced."""

    def __init__(self, layer: LocallyConnected) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        return self.layer.smoothness()


@every_tie
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("pattern", [index_pattern, masked_pattern])
def test_first_and_second_derivatives(tie: Any, groups: int, pattern: Any) -> None:
    penalty = Penalty(build(pattern(), tie, groups=groups))

    def energy(weight: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(penalty, {"layer.weight": weight}, ())
        return out

    weight = penalty.layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(energy, (weight,), fast_mode=True)
    assert torch.autograd.gradgradcheck(energy, (weight,), fast_mode=True)


# -- the sphere ------------------------------------------------------------------------------------


def sampled(grid: LatLonGrid, values: np.ndarray, kernel: int = 1) -> LocallyConnected:
    """Layer whose weights, all taps alike, sample a field at their sites."""
    layer = LocallyConnected(window(grid, kernel), 1, 1, dtype=torch.float64)
    site = layer.pattern.rows()
    layer.weight.data = torch.from_numpy(values)[site][:, None, None]
    return layer


def energy(layer: LocallyConnected) -> float:
    return float(layer.smoothness().detach()) * layer.pattern.num_sites


def turned(grid: LatLonGrid, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """Latitude and longitude of the points about an axis that is tilted from that of the grid."""
    x, y, z = grid.positions().T
    x, z = np.cos(tilt) * x + np.sin(tilt) * z, np.cos(tilt) * z - np.sin(tilt) * x
    return np.arcsin(np.clip(z, -1, 1)), np.arctan2(y, x)


@pytest.mark.parametrize("poles", [True, False])
@pytest.mark.parametrize(("degree", "order"), [(1, 0), (1, 1), (2, -1), (3, 2), (4, 0), (4, -4)])
@pytest.mark.parametrize("tilt", [0.0, 0.7, np.pi / 2])
def test_converges_to_the_laplacian_of_the_sphere(
    poles: bool, degree: int, order: int, tilt: float
) -> None:
    """Integral of |grad Y|^2 is l (l + 1), wherever the pole of Y lies; the error falls as h^2."""
    errors = []
    for nlat in (24, 48):
        grid = LatLonGrid.regular(nlat + poles, 2 * nlat, poles=poles)
        values = sphere_harmonic(*turned(grid, tilt), degree, order)
        # Sampled harmonics have norm 1, by the cells' areas: a check of the recurrence.
        area = grid.areas / grid.areas.sum() * 4 * np.pi
        assert (values**2 * area).sum() == pytest.approx(1, abs=0.02)
        errors.append(abs(energy(sampled(grid, values)) / (degree * (degree + 1)) - 1))
    assert errors[1] < 0.02
    assert errors[1] < max(0.4 * errors[0], 2e-4)


def test_all_taps_count() -> None:
    grid = LatLonGrid.regular(16, 32, poles=False)
    values = sphere_harmonic(grid.lat, grid.lon, 2, 1)
    assert energy(sampled(grid, values, 3)) == pytest.approx(9 * energy(sampled(grid, values)))


def test_latitude_may_run_either_way_and_longitude_start_anywhere() -> None:
    lat, lon = np.linspace(80, -80, 9), np.arange(12) * 30.0
    grids = [
        LatLonGrid.from_degrees(lat, lon),
        LatLonGrid.from_degrees(lat[::-1], lon),
        LatLonGrid.from_degrees(lat, lon[::-1]),
        LatLonGrid.from_degrees(lat, (lon + 180) % 360 - 180),
        LatLonGrid.from_degrees(lat, lon - 180),
    ]
    energies = [energy(sampled(g, sphere_harmonic(g.lat, g.lon, 3, 1))) for g in grids]
    np.testing.assert_allclose(energies, energies[0], rtol=1e-12)


@pytest.mark.parametrize("kernel", [1, 3])
def test_rolled_weights_are_as_smooth(kernel: int) -> None:
    """A jump costs the same at the date line as anywhere else."""
    grid = LatLonGrid.regular(6, 12)
    values = np.random.default_rng(0).normal(size=(6, 12))
    energies = [
        energy(sampled(grid, np.roll(values, shift, 1).ravel(), kernel)) for shift in range(12)
    ]
    np.testing.assert_allclose(energies, energies[0], rtol=1e-12)
    step = np.zeros((6, 12))
    step[:, 0] = 1
    assert energy(sampled(grid, step.ravel())) == pytest.approx(
        energy(sampled(grid, np.roll(step, 5, 1).ravel()))
    )


def test_uneven_longitudes_are_measured_by_their_steps() -> None:
    """cos(lon) on a ring of uneven columns: face / distance, by hand."""
    lon = np.array([0.0, 10.0, 50.0, 130.0, 200.0, 300.0])
    grid = LatLonGrid.from_degrees([5.0, -5.0], lon)
    values = np.cos(grid.lon)
    step = np.deg2rad(np.diff(lon, append=360.0))
    change = np.diff(np.cos(np.deg2rad(lon)), append=1.0)
    low, high = 0.0, float(grid.lat_bounds.max())
    height, cosine = high - low, (np.sin(high) - np.sin(low)) / (high - low)
    expected = 2 * (height / cosine * change**2 / step).sum()
    assert energy(sampled(grid, values)) == pytest.approx(expected)


@pytest.mark.parametrize("pattern", [index_pattern, masked_pattern])
def test_uniform_weights_cost_nothing(pattern: Any) -> None:
    layer = build(pattern())
    layer.weight.data[:] = torch.pi * 1e8
    assert layer.smoothness() == 0
    layer.weight.data[0] += 1
    assert layer.smoothness() > 0


# -- use -------------------------------------------------------------------------------------------


def test_16_bit_weights_are_compared_in_float32() -> None:
    layer = build(index_pattern(), dtype=torch.bfloat16)
    exact = build(index_pattern())
    exact.weight.data = layer.weight.data.double()
    penalty = layer.smoothness()
    assert penalty.dtype == torch.float32
    assert float(penalty.detach()) == pytest.approx(float(exact.smoothness().detach()), rel=1e-6)
    penalty.backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.bfloat16


def test_no_buffer_for_all_pairs() -> None:
    """There are twice as many pairs as weights: all at once would take four times their memory."""
    layer = LocallyConnected(window((64, 64), 3), 16, 16)
    layer.smoothness()  # finds the pairs
    with Operators() as operators:
        layer.smoothness().backward()
    assert operators.largest <= layer.weight.nbytes


def test_pairs_move_along() -> None:
    layer = build(index_pattern(), dtype=torch.float32)
    expected = layer.smoothness().double()
    torch.testing.assert_close(layer.double().smoothness(), expected, rtol=1e-6, atol=0)
    assert layer.to("meta").smoothness().is_meta


def test_descent_on_the_penalty_smooths() -> None:
    layer = build(window(LatLonGrid.regular(*SHAPE), 3))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = float(layer.smoothness().detach())
    for _ in range(50):
        optimizer.zero_grad()
        layer.smoothness().backward()
        optimizer.step()
    assert float(layer.smoothness().detach()) < before / 2


def test_patterns_without_taps_or_places_are_refused() -> None:
    with pytest.raises(PatternError, match="smoothness needs the taps of the edges and Pattern"):
        build(no_taps()).smoothness()


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (2, 2), (3, 2), (4, 3)])
def test_a_transposed_layer_is_as_smooth_as_the_layer_that_it_transposes(
    kernel: int, stride: int
) -> None:
    """Its weights lie at the sources of its sites, where those of the other layer have theirs."""
    pattern = window((12, 15), kernel, stride=stride, padding="valid")
    layer = LocallyConnected(pattern, 2, 3)
    transposed, edge = pattern.transpose()
    other = LocallyConnected(transposed, 3, 2)
    with torch.no_grad():
        other.weight.copy_(layer.weight[edge].mT)
    expected = layer.smoothness() * pattern.num_sites
    assert expected > 0
    torch.testing.assert_close(other.smoothness() * transposed.num_sites, expected)


def test_smoothness_follows_the_layer_to_another_device() -> None:
    layer = build(index_pattern(), None)
    assert layer.smoothness() > 0
    assert layer.to("meta").smoothness().is_meta


def test_spare_rows_have_no_roughness() -> None:
    layer = build(index_pattern(), None)
    before = layer.pattern
    layer.rewire(before.select(torch.arange(before.num_edges) % 3 > 0), rows=before.num_edges)
    energy = layer.smoothness()
    energy.backward()
    assert_equal(energy, smoothness_by_hand(layer, index_pairs()))
    assert layer.weight.grad is not None
    assert layer.weight.grad.shape == layer.weight.shape
    assert not layer.weight.grad[layer.pattern.num_edges :].any()


def test_the_first_call_may_be_made_in_any_mode() -> None:
    """What it finds of neighbours is kept for calls in other modes."""
    first, second = build(index_pattern(), None), build(index_pattern(), None)
    with torch.inference_mode():
        first.smoothness()
    first.smoothness().backward()

    def energy(weight: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(second, {"weight": weight}, (), {})
        return found

    second.forward = second.smoothness  # type: ignore[method-assign, assignment]
    slope = torch.func.grad(energy)(second.weight.detach())
    second.smoothness().backward()
    assert second.weight.grad is not None
    assert_equal(second.weight.grad, slope)
