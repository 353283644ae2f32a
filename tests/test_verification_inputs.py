"""Scores do not depend on the form of coordinates; data that do not fit are named."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from verification_cases import LAT, LON, data, quantile_prediction

from scisparse.errors import DataError, MissingDependencyError, OptionError
from scisparse.verification import evaluate

# --- forms of coordinates ---


@pytest.mark.parametrize(
    "form", ["flipped", "rolled", "transposed", "renamed", "rounded", "shuffled"]
)
def test_the_form_of_coordinates_does_not_matter(form: str) -> None:
    ensemble, observed = data(14)
    expected = evaluate(ensemble, observed)
    other = {
        "flipped": observed.isel(lat=slice(None, None, -1)),
        "rolled": observed.assign_coords(lon=(LON + 180.0) % 360.0 - 180.0).sortby("lon"),
        "transposed": observed.transpose("lon", "time", "lat"),
        "renamed": observed.rename(lat="latitude", lon="x", time="valid_time"),
        "rounded": observed.assign_coords(lat=(LAT + 1e-5).astype(np.float32), lon=LON - 1e-5),
        "shuffled": observed.isel(time=[3, 0, 5, 1, 2, 4]),
    }[form]
    for result in (evaluate(ensemble, other), evaluate(other, other, reference=ensemble)):
        name = "crps" if "crps_reference" not in result else "crps_reference"
        tolerance = 1e-6 if form == "rounded" else 1e-12
        assert float(result[name]) == pytest.approx(float(expected["crps"]), rel=tolerance)
        assert int(result["count"]) == int(expected["count"])


def test_only_common_coordinates_are_scored() -> None:
    ensemble, observed = data(15)
    expected = evaluate(ensemble[2:, :, 1:], observed[2:, :, 1:], dims=("time", "lat"))
    result = evaluate(ensemble[:, :, 1:], observed[2:], dims=("time", "lat"))
    xr.testing.assert_allclose(result, expected)


def test_projected_and_unstructured_grids_weigh_by_cells() -> None:
    generator = np.random.default_rng(16)
    axis = {"units": "m", "standard_name": "projection_x_coordinate"}
    projected = xr.DataArray(
        generator.normal(size=(3, 4, 5)),
        {
            "y": ("y", np.arange(4) * 1e3, axis | {"standard_name": "projection_y_coordinate"}),
            "x": ("x", np.array([0.0, 1.0, 2.0, 4.0, 8.0]) * 1e3, axis),
        },
        ("time", "y", "x"),
        "t",
    )
    widths = np.array([1.0, 1.0, 1.5, 3.0, 4.0])
    expected = np.average(projected.values, weights=np.broadcast_to(widths, (3, 4, 5)))
    assert float(evaluate(projected, 0.0 * projected)["bias"]) == pytest.approx(expected)
    octahedron = xr.Dataset(coords={"lat": ("cell", [90.0, -90, 0, 0, 0, 0])})
    octahedron = octahedron.assign_coords(lon=("cell", [0.0, 0, 0, 90, 180, 270]))
    cells = octahedron.assign(t=("cell", np.arange(6.0)))["t"]
    assert float(evaluate(cells, 0.0 * cells)["bias"]) == pytest.approx(2.5)
    with pytest.raises(DataError, match=r"the observation is on .* but the prediction on"):
        evaluate(cells, cells.assign_coords(lon=cells["lon"] + 45.0))


def test_without_a_grid_all_count_the_same() -> None:
    series = xr.DataArray([1.0, 2.0, 6.0], {"time": range(3)}, "time")
    result = evaluate(series, 0.0 * series)
    assert float(result["bias"]) == 3.0
    assert result.attrs["weights"] == "equal"


@settings(max_examples=10)
@given(st.integers(0, 10_000), st.floats(0.1, 10.0), st.floats(-100.0, 100.0))
def test_scores_follow_units(seed: int, factor: float, offset: float) -> None:
    ensemble, observed = data(seed, times=2, members=3)
    first = evaluate(ensemble, observed)
    second = evaluate(factor * ensemble + offset, factor * observed + offset)
    for score in ("crps", "bias", "rmse", "spread"):
        ratio = factor * float(first[score])
        assert float(second[score]) == pytest.approx(ratio, rel=1e-7, abs=1e-9), score
    np.testing.assert_allclose(second["rank_histogram"], first["rank_histogram"], atol=1e-9)


# --- bad input ---


def test_no_overlap_names_both_ranges() -> None:
    ensemble, observed = data(20)
    later = observed.assign_coords(time=observed["time"] + np.timedelta64(100, "D"))
    message = r"'time' is 2001-01-01 .* in the prediction and 2001-04-11 .* in the observation"
    with pytest.raises(DataError, match=message):
        evaluate(ensemble, later)
    with pytest.raises(DataError, match=r"'lat' .* in the prediction and .* in the reference"):
        evaluate(ensemble, observed, reference=ensemble.assign_coords(lat=LAT + 1.0))
    message = "overlap in pairs, but have no coordinates all in common"
    with pytest.raises(DataError, match=message):
        evaluate(ensemble, observed[:3], reference=ensemble[3:])


def test_bad_data_is_named() -> None:
    ensemble, observed = data(21)
    with pytest.raises(DataError, match=r"'K'.*'degC'|'degC'.*'K'"):
        evaluate(ensemble, observed.assign_attrs(units="degC"))
    with pytest.raises(DataError, match=r"'K'.*'mm'|'mm'.*'K'"):
        evaluate(ensemble, observed, reference=ensemble.assign_attrs(units="mm"))
    with pytest.raises(DataError, match="of 120 cases none has the prediction and the observation"):
        evaluate(ensemble, observed * np.nan)
    with pytest.raises(DataError, match="'t2m' of the prediction has 300 infinite values"):
        evaluate(ensemble.where(ensemble.lat > 0, np.inf), observed)
    with pytest.raises(DataError, match=r"'time' of the observation holds 2001-01-01 .* more than"):
        evaluate(ensemble, observed.isel(time=[0, 0, 1]))
    with pytest.raises(DataError, match="'t2m' of the prediction is empty"):
        evaluate(ensemble[:0], observed)
    with pytest.raises(DataError, match="has 1 member along 'member', and the fair CRPS needs 2"):
        evaluate(ensemble[..., :1], observed)
    with pytest.raises(DataError, match="the observation has members along 'member'"):
        evaluate(ensemble, ensemble)
    with pytest.raises(DataError, match="the reference has no variable 't2m', but"):
        evaluate(ensemble, observed, reference=xr.Dataset({"a": observed, "b": observed}))
    with pytest.raises(DataError, match="has dtype <U1; it must hold numbers"):
        evaluate(xr.full_like(observed, "x", dtype=str), observed)
    unlabelled = ensemble.drop_vars("time")
    with pytest.raises(DataError, match="'time' has 5 points in the prediction and 6 in the obs"):
        evaluate(unlabelled[:5], observed)


def test_bad_quantiles_are_named() -> None:
    quantiles, _ = quantile_prediction(np.array([0.6, 0.9]))
    _, observed = data(22)
    with pytest.raises(DataError, match=r"quantile levels \[0.6, 0.9\] .* 0.5 among or between"):
        evaluate(quantiles, observed)
    with pytest.raises(DataError, match="has a dim 'quantile' without levels"):
        evaluate(quantiles.drop_vars("quantile"), observed)


def test_bad_options_are_named() -> None:
    ensemble, observed = data(23)
    with pytest.raises(OptionError, match=r"`dims` names \['level'\], but the data have"):
        evaluate(ensemble, observed, dims=["time", "level"])
    with pytest.raises(OptionError, match="`weights` is 'cos'; give 'area', a DataArray or None"):
        evaluate(ensemble, observed, weights="cos")
    with pytest.raises(
        OptionError, match="`estimator` is 'best'; choose one of fair, standard, or"
    ):
        evaluate(ensemble, observed, estimator="best")
    with pytest.raises(OptionError, match=r"`bins` \(=0\) must be at least 1"):
        evaluate(ensemble, observed, bins=0)
    with pytest.raises(OptionError, match=r"`weights` has dims \['level'\]"):
        evaluate(ensemble, observed, weights=xr.DataArray([1.0], dims="level"))
    short = xr.DataArray([1.0, 1.0], {"lat": LAT[:2]}, "lat")
    with pytest.raises(DataError, match="`weights` is negative or missing at 2 of 4 points"):
        evaluate(ensemble, observed, weights=short)


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble, observed = data(24)
    monkeypatch.setitem(sys.modules, "scores", None)
    with pytest.raises(MissingDependencyError, match=r'scores.*pip install "scisparse\[verify\]"'):
        evaluate(ensemble, observed)
