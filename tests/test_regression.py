"""The regression that all methods of post-processing build on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scisparse.grids import LatLonGrid
from scisparse.models.regression import Calibration, EnsembleRegression

GRID = LatLonGrid.from_degrees([-10.0, 0.0, 10.0], [0.0, 10.0, 20.0, 30.0])
ROW_PTR = torch.tensor([0, 2, 3, 3, 6, 7, 8, 9, 12, 12, 13, 14, 15])  # points 2 and 8 read nothing
SIGMA = np.random.default_rng(7).uniform(0.5, 2.0, 12)
COL = torch.tensor([0, 4, 1, 2, 3, 11, 4, 5, 6, 0, 3, 7, 9, 10, 11])


def random_model(tie: str | None, features: int = 3) -> EnsembleRegression:
    rng = np.random.default_rng(0)
    model = EnsembleRegression(GRID, ROW_PTR, COL, features, tie=tie)
    model.set_(
        rng.normal(size=(1 if tie else len(COL), features, 1)), Calibration(-0.5, 2.0, SIGMA, 0.25)
    )
    return model


@pytest.mark.parametrize("tie", [None, "all"])
def test_location_and_scale_are_those_of_the_formula(tie: str | None) -> None:
    model = random_model(tie)
    rng = np.random.default_rng(1)
    anomalies, spread = rng.normal(size=(5, 12, 3)), rng.gamma(2.0, 1.0, (5, 12))
    dense = np.zeros((12, 12, 3))
    rows = np.repeat(np.arange(12), np.diff(ROW_PTR))
    weight = model.layer.weight.detach().numpy()[..., 0]
    dense[rows, COL] = weight
    with torch.no_grad():
        location, scale = model(torch.from_numpy(anomalies), torch.from_numpy(spread))
    expected = np.einsum("ijf,bjf->bi", dense, anomalies) - 0.5
    np.testing.assert_allclose(location, expected, atol=1e-12)
    np.testing.assert_allclose(scale, SIGMA * np.sqrt(0.75 + 0.25 * spread))
    assert location.dtype == scale.dtype == torch.float64


def test_a_constant_spread_is_given_to_every_case() -> None:
    model = random_model("all")
    model.set_(np.ones((1, 3, 1)), Calibration(0.0, 1.0, 2.0, 0.0))
    with torch.no_grad():
        location, scale = model(torch.zeros(4, 12, 3), torch.full((4, 12), 9.0))
    assert scale.shape == location.shape == (4, 12)
    assert (scale == 2.0).all()
    assert (location == 0.0).all()


def test_the_stencil_is_part_of_the_state() -> None:
    model = random_model(None)
    state = model.state_dict()
    assert {"row_ptr", "col", "shift", "sigma", "rho", "layer.weight"} <= {*state}
    again = EnsembleRegression(GRID, state["row_ptr"], state["col"], 3)
    again.load_state_dict(state)
    anomalies, spread = torch.randn(2, 12, 3).double(), torch.rand(2, 12).double()
    for first, second in zip(model(anomalies, spread), again(anomalies, spread), strict=True):
        assert torch.equal(first, second)


def test_single_precision_input_is_computed_in_double() -> None:
    model = random_model(None)
    anomalies, spread = torch.randn(2, 12, 3), torch.rand(2, 12)
    single = model(anomalies, spread)[0]
    assert torch.equal(single, model(anomalies.double(), spread.double())[0])


def test_a_row_without_edges_gives_the_shift() -> None:
    with torch.no_grad():
        location, _ = random_model(None)(torch.randn(3, 12, 3).double(), torch.ones(3, 12).double())
    assert (location[:, [2, 8]] == -0.5).all()
    assert (location[:, [0, 1, 3]] != -0.5).all()
