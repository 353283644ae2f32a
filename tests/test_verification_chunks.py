"""Data in chunks, which dask holds, are scored as data in memory are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from verification_cases import data, parametric, quantile_prediction

from scisparse.verification import evaluate

pytest.importorskip("dask")
_CHUNKS = {"time": 4, "lat": 3, "lon": 2, "member": 2, "quantile": 1, "threshold": 1}


def chunked(obj: Any) -> Any:
    return obj.chunk({dim: size for dim, size in _CHUNKS.items() if dim in obj.dims})


def predictions() -> dict[str, Any]:
    limits = xr.DataArray([1.0, 2.5], {"threshold": [1.0, 2.5]}, "threshold")
    ensemble = data(6)[0]
    bounded = parametric(5).assign_attrs(distribution="censored_normal")
    return {
        "ensemble": ensemble,
        "one value": ensemble.isel(member=0, drop=True),
        "distribution": parametric(5),
        "bounded distribution": bounded,
        "quantiles": quantile_prediction(np.array([0.1, 0.5, 0.8]))[0],
        "probabilities": (ensemble > limits).mean("member").to_dataset(name="t2m_probability"),
    }


@pytest.mark.parametrize("form", list(predictions()))
@pytest.mark.parametrize("what", ["prediction", "observed", "reference", "weights", "all"])
def test_chunks_do_not_matter(form: str, what: str) -> None:
    prediction, observed = predictions()[form], data(6)[1]
    weights = xr.DataArray(np.random.default_rng(9).random(4), {"lat": observed["lat"]}, "lat")
    given = {
        "prediction": prediction,
        "observed": observed,
        "reference": prediction if form == "probabilities" else data(7)[0],
        "weights": weights,
        "dims": ["time", "lat"],
    }
    expected = evaluate(**given)
    names = [*given][:4] if what == "all" else [what]
    result = evaluate(**given | {name: chunked(given[name]) for name in names})
    xr.testing.assert_identical(result, expected)
    assert all(isinstance(score.data, np.ndarray) for score in result.values())
