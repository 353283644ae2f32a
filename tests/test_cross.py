"""Cross-prediction: each fold by a model that has not seen it, in one process or several."""

from __future__ import annotations

import os

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from scisparse.postprocess import PostProcessor
from scisparse.postprocess.cross import CrossPrediction, leave_one_out


@pytest.fixture
def cross() -> CrossPrediction:
    rng = np.random.default_rng(1)
    coords = {"time": pd.date_range("2001-01-01", periods=8), "lat": [0.0, 1.0], "lon": [5.0, 6.0]}
    truth = rng.normal(size=(8, 2, 2))
    members = truth + rng.normal(size=(3, 8, 2, 2)) + 2
    return CrossPrediction(
        forecast=xr.Dataset({"t": (("member", "time", "lat", "lon"), members)}, coords),
        observed=xr.DataArray(truth, coords, ("time", "lat", "lon"), name="t"),
        target="t",
        folds=leave_one_out(8),
        jobs=1,
    )


def test_every_case_is_predicted_by_a_model_trained_without_it(cross: CrossPrediction) -> None:
    ((name, predicted, seconds),) = cross.predict(["emos"])
    assert seconds > 0
    assert name == "emos"
    np.testing.assert_array_equal(predicted["time"], cross.forecast["time"])
    assert not predicted["in_training"].any()
    for case in (0, 5):
        rest = np.delete(np.arange(8), case)
        model = PostProcessor("emos", target="t")
        model.fit(cross.forecast.isel(time=rest), cross.observed.isel(time=rest))
        alone = model.predict(cross.forecast.isel(time=[case]))
        np.testing.assert_array_equal(predicted["t_mean"].isel(time=[case]), alone["t_mean"])


def test_the_truth_of_a_case_does_not_reach_its_own_prediction(cross: CrossPrediction) -> None:
    changed = cross.observed.copy()
    changed[3] += 100
    before, after = (
        next(iter(CrossPrediction(**{**vars(cross), "observed": o}).predict(["emos"])))[1]
        for o in (cross.observed, changed)
    )
    same = (before["t_mean"] == after["t_mean"]).all(["lat", "lon"])
    assert bool(same[3])
    assert not bool(same[2])


def test_processes_give_the_same_bits_and_leave_the_environment_alone(
    cross: CrossPrediction,
) -> None:
    environment = dict(os.environ)
    methods = ["emos", "emos_local"]
    both = CrossPrediction(**{**vars(cross), "jobs": 2})
    alone, together = (
        {name: prediction for name, prediction, _ in each.predict(methods)}
        for each in (cross, both)
    )
    assert dict(os.environ) == environment
    for name, predicted in alone.items():
        for variable in predicted.data_vars:
            np.testing.assert_array_equal(predicted[variable], together[name][variable])
