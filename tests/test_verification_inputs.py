"""Scores do not depend on the form of coordinates; data that do not fit are named."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from verification_cases import LAT, LON, FloatArray, data, quantile_prediction

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


@pytest.mark.parametrize("bare", [["y", "x"], ["y"], ["x"]])
def test_dims_of_other_names_are_not_crossed(bare: list[str]) -> None:
    """Every cell would be compared with every other."""
    ensemble, observed = data(14)
    other = ensemble.rename(lat="y", lon="x").drop_vars(bare).rename(member="number")
    for call in (
        lambda: evaluate(other, observed),
        lambda: evaluate(observed, other.mean("number")),
        lambda: evaluate(observed, observed, reference=other),
    ):
        with pytest.raises(DataError, match=r"has dims .* lacks, which has .*; rename"):
            call()
    # dims of one side alone are further cases, or one truth for all
    leads = ensemble.expand_dims(step=[1, 2])
    assert int(evaluate(leads, observed)["count"]) == 2 * int(evaluate(ensemble, observed)["count"])


def test_dims_of_unknown_meaning_are_no_cases_unless_named() -> None:
    """They may number members."""
    ensemble, observed = data(14)
    other = ensemble.rename(member="run")
    for call in (
        lambda: evaluate(other, observed),
        lambda: evaluate(observed, observed, reference=other),
    ):
        with pytest.raises(DataError, match=r"a dim 'run' that .* with \.rename\(run='member'\)"):
            call()
    renamed = evaluate(other.rename(run="member"), observed)
    xr.testing.assert_identical(renamed, evaluate(ensemble, observed))
    alone = evaluate(other, observed, dims=("time", "lat", "lon"))["rmse"]
    assert alone.sizes == {"run": ensemble.sizes["member"]}
    assert evaluate(other, observed, dims=[*other.dims])["count"] == 5 * renamed["count"]
    assert evaluate(other.isel(run=[0]), observed)["count"] == renamed["count"]


@pytest.mark.parametrize("wrong", [np.zeros(3), None, "t2m", [1.0]])
def test_only_xarray_objects_are_taken(wrong: object) -> None:
    ensemble, observed = data(14)
    message = r"is of type \w+; it must be an xarray DataArray or Dataset"
    with pytest.raises(DataError, match=f"the observation {message}"):
        evaluate(ensemble, wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"the prediction {message}"):
        evaluate(wrong, observed)  # type: ignore[arg-type]
    if wrong is not None:
        with pytest.raises(DataError, match=f"the reference {message}"):
            evaluate(ensemble, observed, reference=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("bins", [2.5, None, 0, -1, True, "10"])
def test_bins_are_a_whole_number(bins: object) -> None:
    ensemble, observed = data(14)
    with pytest.raises(OptionError, match=r"`bins` \(=.*\) must be a whole number of at least 1"):
        evaluate(ensemble, observed, bins=bins)  # type: ignore[arg-type]
    assert evaluate(ensemble, observed, bins=4)["count"] > 0


def test_a_stack_of_points_is_named() -> None:
    stacked = [each.stack(point=("lat", "lon")) for each in data(14)]
    with pytest.raises(
        DataError, match=r"'point' of the prediction is a stack of \['lat', 'lon'\]"
    ):
        evaluate(*stacked)
    for unstacked in ([each.unstack("point") for each in stacked], data(14)):
        assert evaluate(*unstacked)["count"] == evaluate(*data(14))["count"]


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


def test_points_without_known_areas_count_the_same() -> None:
    """The post-processor works on them too."""
    ensemble, observed = data(25)
    stations = {"lat": ("station", LAT[:3]), "lon": ("station", LON[:3])}
    flat, truth = (each[:, 0, :3].drop_vars(("lat", "lon")) for each in (ensemble, observed))
    flat, truth = (each.rename(lon="station").assign_coords(stations) for each in (flat, truth))
    expected = evaluate(flat, truth, weights=None)
    result = evaluate(flat, truth)
    assert result.attrs["weights"] == "equal"
    xr.testing.assert_equal(result, expected)
    labels = {"station": ["a", "b", "c"]}
    named, turned = flat.assign_coords(labels), truth.assign_coords(labels)[:, ::-1]
    xr.testing.assert_allclose(evaluate(named, turned), expected)
    xr.testing.assert_allclose(evaluate(flat, truth[:, [2, 0, 1]]), expected)
    for point in ({"lat": [2], "lon": [1]}, {"lat": [2], "lon": slice(1, 2)}):
        one = evaluate(ensemble.isel(point), observed.isel(point))
        assert one.attrs["weights"] == "equal"
        assert int(one["count"]) == int(observed[:, 2, 1].notnull().sum())


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


def plane(scale: float, units: str) -> xr.DataArray:
    """A field on axes of metres, written in other units."""
    axes = {
        name: (name, np.arange(size) * 2e3 / scale, {"units": units})
        for name, size in (("y", 4), ("x", 5))
    }
    values = np.random.default_rng(26).normal(size=(3, 4, 5))
    return xr.DataArray(values, {"time": range(3), **axes}, ("time", "y", "x"), "t")


def test_projected_axes_are_compared_in_metres() -> None:
    metres, kilometres = plane(1.0, "m"), plane(1e3, "km")
    for first, second in ((metres, kilometres), (kilometres, metres)):
        result = evaluate(first, second, dims="time")
        assert int(result["count"].sum()) == 60
        assert float(result["rmse"].max()) == 0.0
        xr.testing.assert_identical(result["x"], first["x"])
        part = evaluate(first[:, 1:], second[:, :, :3])
        assert int(part["count"]) == 3 * 3 * 3
    weights = xr.ones_like(kilometres[0]).assign_coords(time=0).drop_vars("time")
    assert int(evaluate(metres, metres, weights=weights)["count"]) == 60
    shifted = kilometres.assign_coords(x=("x", kilometres["x"].values + 100.0, {"units": "km"}))
    message = r"'x' is 0.0 to 8000.0 .* and 100000.0 to 108000.0 .* in the observation, with no"
    with pytest.raises(DataError, match=message):
        evaluate(metres, shifted)


def test_angles_are_compared_in_degrees() -> None:
    ensemble, observed = data(27)
    radians = {
        name: (name, np.deg2rad(values), {"units": "radians", "standard_name": long})
        for name, values, long in (("lat", LAT, "latitude"), ("lon", LON, "longitude"))
    }
    result = evaluate(ensemble, observed.assign_coords(radians))
    xr.testing.assert_allclose(result, evaluate(ensemble, observed))


def fine(values: FloatArray) -> xr.DataArray:
    """A field with steps of 0.01 degrees in longitude."""
    axes = {"time": range(2), "lat": [1.0, 1.01], "lon": values}
    noise = np.random.default_rng(28).normal(size=(2, 2, values.size))
    return xr.DataArray(noise, axes, ("time", "lat", "lon"), "t")


def test_single_precision_loses_no_points_of_fine_grids() -> None:
    double = fine(np.linspace(300.0, 303.59, 360))
    single = double.assign_coords(lon=double["lon"].astype(np.float32))
    for first, second in ((double, single), (single, double)):
        assert int(evaluate(first, second)["count"]) == 2 * 2 * 360


@pytest.mark.parametrize("share", [0.9, 1.1])
@pytest.mark.parametrize("form", ["degrees", "metres"])
def test_what_can_be_fitted_can_be_scored(form: str, share: float) -> None:
    """One tolerance: that of the grids of the post-processor."""
    from scisparse.arrays import same_points
    from scisparse.grids import from_xarray

    first = fine(np.array([0.0, 0.01, 0.02])) if form == "degrees" else plane(1.0, "m")
    dim, tolerance = ("lon", 1.5e-4) if form == "degrees" else ("x", 1.0 + 1e-6 * 8000.0)
    moved = first[dim].values.copy()
    moved[-1] += share * tolerance
    second = first.assign_coords({dim: (dim, moved, first[dim].attrs)})
    same = same_points(from_xarray(first), from_xarray(second))
    assert same == (share < 1.0)
    if same:
        assert int(evaluate(first, second)["count"]) == first.size
        return
    unit = "degrees" if form == "degrees" else "m"
    message = (
        f"'{dim}' has the same extent in the prediction and the observation, but 1 of .* values "
        f"differ, such as .* and .*; they must agree within .* {unit}: bring both to one grid"
    )
    with pytest.raises(DataError, match=message):
        evaluate(first, second)


# --- coordinates of one value ---


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"time": 0}, {"time": 1}, r"'time' is 2001-01-01 .* and 2001-01-02 .* in the observation"),
        ({}, {"time": 1}, r"'time' is .*\(6 values\) in the prediction and 2001-01-02 .* in the"),
        (
            {"lat": 0, "lon": 0},
            {"lat": 3, "lon": 0},
            "'lat' is -30.0 in the .* and 35.0 in the obs",
        ),
        ({"lon": 1}, {"lon": 2}, "'lon' is 72.0 in the prediction and 144.0 in the observation"),
        ({"lon": 1}, {}, r"'lon' is 72.0 in the prediction and 0.0 to 288.0 \(5 values\) in the"),
    ],
)
def test_coordinates_of_one_value_must_agree(
    ours: dict[str, int], theirs: dict[str, int], message: str
) -> None:
    ensemble, observed = data(29)
    ensemble, observed = ensemble.fillna(0.0), observed.fillna(0.0)
    first, second = ensemble.isel(ours), observed.isel(theirs)
    with pytest.raises(DataError, match=message):
        evaluate(first, second)
    named = second.rename(lat="latitude", lon="longitude", time="valid_time")
    with pytest.raises(DataError, match=message):
        evaluate(first, named)
    with pytest.raises(DataError, match=message.split(" in the obs")[0]):
        evaluate(first, first.isel(member=0), reference=second)
    assert int(evaluate(first, observed.isel(ours))["count"]) == observed.isel(ours).size


def test_other_forms_of_one_value_agree() -> None:
    ensemble, observed = data(30)
    point = {"lat": 1, "lon": 4}
    first, second = ensemble.isel(point), observed.isel(point)
    expected = evaluate(first, second)
    for forms in ({"lon": -72.0}, {"lon": np.float32(288.00002)}):
        xr.testing.assert_equal(evaluate(first, second.assign_coords(forms)), expected)
    # Levels, starts and members: of the forecast alone, or not where and when.
    start = xr.DataArray(0, attrs={"standard_name": "forecast_reference_time"})
    valid = xr.DataArray(1, attrs={"standard_name": "time"})
    for ours, theirs in (
        ({"height": 2.0}, {}),
        ({"start": start}, {"start": valid}),
        ({"height": 0.1}, {"height": np.float32(0.1)}),
        ({"crs": xr.DataArray(0, attrs={"grid_mapping_name": "x"})}, {"crs": 1}),
        ({"quantile": 0.5}, {"quantile": 0.1}),
    ):
        result = evaluate(first.assign_coords(ours), second.assign_coords(theirs))
        assert float(result["crps"]) == float(expected["crps"])
    member = ensemble.isel(member=0)
    assert float(evaluate(ensemble[..., 1:], member)["count"]) == member.size
    with pytest.raises(DataError, match=r"'height' is 2.0 .* 10.0 .*\.drop_vars\('height'\)"):
        evaluate(first.assign_coords(height=2.0), second.assign_coords(height=10.0))


def test_a_point_is_not_matched_with_points() -> None:
    lat, lon = ("cell", [1.0, 2.0]), ("cell", [3.0, 4.0])
    cells = xr.DataArray([[1.0, 2.0]], {"lat": lat, "lon": lon}, ("time", "cell"), "t")
    with pytest.raises(DataError, match=r"the observation is on .* but the prediction on"):
        evaluate(cells.isel(cell=0), cells)


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
    with pytest.raises(OptionError, match=r"\(=\['lat', 'lat'\]\) names a dim more than once"):
        evaluate(ensemble, observed, dims=["lat", "lat"])
    with pytest.raises(OptionError, match="`weights` is 'cos'; give 'area', a DataArray or None"):
        evaluate(ensemble, observed, weights="cos")
    with pytest.raises(
        OptionError, match="`estimator` is 'best'; choose one of fair, standard, or"
    ):
        evaluate(ensemble, observed, estimator="best")
    with pytest.raises(OptionError, match=r"`bins` \(=0\) must be a whole number of at least 1"):
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
