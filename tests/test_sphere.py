"""Advection, diffusion and noise of the simulated climate, against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scisparse.datasets.atmosphere import SmoothNoise, zonal_wind
from scisparse.datasets.sphere import (
    apply_zonal,
    area_weights,
    band_latitudes,
    diffusion_matrices,
    transport_matrices,
)
from scisparse.grids import EARTH_RADIUS, LatLonGrid

Array = NDArray[np.float64]

# The smallest, an odd number of longitudes, of latitudes, and one wider than a block of cells.
SHAPES = [(4, 8), (6, 9), (7, 12), (160, 130)]
DAY = 86_400.0


def sphere_mean(field: Array) -> Array:
    mean: Array = (field.mean(axis=-1) * area_weights(field.shape[-2])).sum(axis=-1)
    return mean


def axes(shape: tuple[int, int]) -> tuple[Array, Array]:
    turn = np.linspace(0.0, 2 * np.pi, shape[1], endpoint=False)
    return band_latitudes(shape[0])[:, None], turn


# Advection and diffusion


@pytest.mark.parametrize("shape", SHAPES)
def test_area_weights_are_the_shares_of_the_grids_cells(shape: tuple[int, int]) -> None:
    grid = LatLonGrid.regular(*shape, poles=False)
    share = grid.areas.reshape(shape).sum(axis=1) / grid.areas.sum()
    south_first = share if grid.lat_axis[0] < 0 else share[::-1]
    np.testing.assert_allclose(area_weights(shape[0]), south_first, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_transport_keeps_the_mean(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    field = rng.normal(280.0, 20.0, size=(3, *shape))
    matrices = transport_matrices(shape, rng.normal(0, 30, shape[0]), 1e6, 3 * DAY)
    moved = apply_zonal(matrices, field)
    assert np.abs(moved - field).max() > 1.0
    np.testing.assert_allclose(sphere_mean(moved), sphere_mean(field), rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_transport_keeps_a_constant(shape: tuple[int, int]) -> None:
    matrices = transport_matrices(shape, zonal_wind(band_latitudes(shape[0])), 1e6, DAY)
    np.testing.assert_allclose(apply_zonal(matrices, np.full(shape, 3.5)), 3.5, rtol=1e-12)


HARMONICS = {
    (1, 0): lambda lat, lon: np.sin(lat) + 0 * lon,
    (1, 1): lambda lat, lon: np.cos(lat) * np.sin(lon),
    (2, 0): lambda lat, lon: 3 * np.sin(lat) ** 2 - 1 + 0 * lon,
    (3, 2): lambda lat, lon: np.sin(lat) * np.cos(lat) ** 2 * np.cos(2 * lon),
    (4, 4): lambda lat, lon: np.cos(lat) ** 4 * np.sin(4 * lon),
}


@pytest.mark.parametrize(("degree", "order"), HARMONICS)
def test_diffusion_decays_a_spherical_harmonic_at_its_eigenvalue(degree: int, order: int) -> None:
    spread = 0.3 * EARTH_RADIUS**2 / (degree * (degree + 1))
    errors = []
    for nlat in (24, 48, 96):
        shape = (nlat, 16)
        field = HARMONICS[degree, order](*axes(shape))
        decayed = apply_zonal(diffusion_matrices(shape, spread), field)
        ratio = sphere_mean(decayed * field) / sphere_mean(field**2)
        errors.append(abs(np.log(ratio) / -0.3 - 1))
    assert errors[-1] < 1e-3
    # The rings are second order: a quarter of the error on twice as many.
    assert errors[1] < errors[0] / 3.5
    assert errors[2] < errors[1] / 3.5


@pytest.mark.parametrize("shape", SHAPES)
def test_diffusion_for_ever_leaves_the_mean(shape: tuple[int, int]) -> None:
    field = np.random.default_rng(9).normal(280.0, 20.0, size=shape)
    rest = apply_zonal(diffusion_matrices(shape, 1e30), field)
    np.testing.assert_allclose(rest, sphere_mean(field), rtol=1e-12)


def test_no_diffusion_and_no_wind_change_nothing() -> None:
    field = np.random.default_rng(1).normal(size=(2, 7, 12))
    matrices = transport_matrices((7, 12), np.zeros(7), 0.0, DAY)
    np.testing.assert_allclose(apply_zonal(matrices, field), field, atol=1e-12)


@pytest.mark.parametrize("cells", [1, 4, -3, 30])
def test_solid_rotation_turns_the_field(cells: int) -> None:
    shape = (5, 9)  # odd: no wave without a phase
    field = np.random.default_rng(2).normal(size=shape)
    wind = 2 * np.pi * cells / 9 / DAY * EARTH_RADIUS * np.cos(band_latitudes(5))
    turned = apply_zonal(transport_matrices(shape, wind, 0.0, DAY), field)
    np.testing.assert_allclose(turned, np.roll(field, cells, axis=1), atol=1e-10)


def test_the_wind_is_westerly_in_middle_latitudes_and_easterly_in_the_tropics() -> None:
    wind = zonal_wind(np.deg2rad([-90.0, -55.0, -5.0, 0.0, 5.0, 55.0, 90.0]))
    assert np.array_equal(np.sign(wind[1:-1]), [1, -1, -1, -1, 1])
    np.testing.assert_allclose(wind[[0, -1]], 0.0, atol=1e-12)


@settings(max_examples=30)
@given(
    shape=st.sampled_from(SHAPES[:3]),
    speed=st.floats(-1e4, 1e4),
    diffusivity=st.floats(0.0, 1e12),
    seconds=st.floats(1.0, 1e9),
)
def test_no_step_is_too_long(
    shape: tuple[int, int], speed: float, diffusivity: float, seconds: float
) -> None:
    rng = np.random.default_rng(3)
    field = rng.normal(size=shape)
    wind = speed * rng.normal(size=shape[0])
    moved = apply_zonal(transport_matrices(shape, wind, diffusivity, seconds), field)
    assert sphere_mean(moved**2) <= sphere_mean(field**2) * (1 + 1e-9)


# Noise


# Not smooth at all, the shortest wave carries an eighth of the variance.
@pytest.mark.parametrize(
    ("shape", "length", "tolerance"),
    [((6, 16), 1_500e3, 0.07), ((7, 15), 1_500e3, 0.07), ((4, 8), 0.0, 0.035)],
)
def test_noise_has_unit_variance_at_every_latitude(
    shape: tuple[int, int], length: float, tolerance: float
) -> None:
    draws = SmoothNoise(shape, length).draw(np.random.default_rng(4), 3_000)
    assert draws.shape == (3_000, *shape)
    np.testing.assert_allclose((draws**2).mean(axis=(0, 2)), 1.0, atol=tolerance)
    np.testing.assert_allclose(draws.mean(axis=(0, 2)), 0.0, atol=0.05)


def test_noise_is_as_correlated_along_a_meridian_as_along_a_circle_of_latitude() -> None:
    shape, length = (48, 96), 1_200e3
    draws = SmoothNoise(shape, length).draw(np.random.default_rng(5), 600)
    lat = band_latitudes(48)

    def expected(distance: float) -> float:
        return float(np.exp(-((distance / length) ** 2) / 4))

    spacing = np.pi / 48 * EARTH_RADIUS
    for row in (8, 24, 37):
        north = (draws[:, row] * draws[:, row + 3]).mean()
        assert north == pytest.approx(expected(3 * spacing), abs=0.05)
        angle = 2 * np.arcsin(np.cos(lat[row]) * np.sin(3 * np.pi / 96))
        east = (draws[:, row] * np.roll(draws[:, row], 3, axis=-1)).mean()
        assert east == pytest.approx(expected(angle * EARTH_RADIUS), abs=0.05)
