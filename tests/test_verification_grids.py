"""Scores on every kind of grid: areas where they are known, and cells that meet their like."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.spatial
import xarray as xr
from verification_cases import data

from scisparse.errors import DataError, GridError
from scisparse.grids import from_xarray
from scisparse.verification import evaluate


@pytest.mark.parametrize("zero", [0.0, 180.0])
def test_a_region_has_one_score_however_its_longitudes_are_sorted(zero: float) -> None:
    lon = zero + np.array([-20.0, -13.0, -4.0, 2.0, 8.0])
    ensemble, observed = (each.assign_coords(lon=lon) for each in data(31))
    expected = evaluate(ensemble, observed)
    for turn in (0.0, 180.0):
        cut = [
            each.assign_coords(lon=(lon + turn) % 360.0 - turn).sortby("lon")
            for each in (ensemble, observed)
        ]
        for pair in (cut, (cut[0], observed), (ensemble, cut[1])):
            xr.testing.assert_allclose(evaluate(*pair), expected)


@pytest.mark.parametrize("fault", ["units", "repeated", "unsorted", "no units"])
def test_areas_of_a_grid_at_fault_are_not_taken_for_equal(fault: str) -> None:
    pair = data(32)
    wrong = []
    for each in pair:
        north = each["lat"].assign_attrs(units="deg")
        around = each.isel(lon=[0]).assign_coords(lon=[360.0])
        wrong.append(
            {
                "units": each.assign_coords(lat=north),
                "repeated": xr.concat([each, around], "lon"),
                "unsorted": each.isel(lat=[1, 3, 0, 2]),
                "no units": each.rename(lat="y", lon="x").drop_attrs().assign_attrs(units="K"),
            }[fault]
        )
    rule = {
        "units": "`lat` has units 'deg', which must be degrees or radians",
        "repeated": "drop the column that repeats",
        "unsorted": r"sort it with \.sortby\('lat'\)",
        "no units": "`y` has units missing, which must be 'm' or 'km'",
    }[fault]
    with pytest.raises(GridError, match=f"^the prediction: .*{rule}.*; or give weights=None"):
        evaluate(*wrong)
    equal = evaluate(*wrong, weights=None)
    assert equal.attrs["weights"] == "equal"
    if fault != "repeated":
        assert float(equal["crps"]) == pytest.approx(float(evaluate(*pair, weights=None)["crps"]))


def test_cells_of_points_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(38)
    z, lon = np.linspace(0.99, -0.99, 60), (137.5 * np.arange(60)) % 360.0
    coords = {"lat": ("cell", np.rad2deg(np.arcsin(z))), "lon": ("cell", lon)}
    observed = xr.DataArray(rng.normal(size=(5, 60)), coords, ("time", "cell"))
    members = xr.DataArray(rng.normal(size=(7, 5, 60)), coords, ("member", "time", "cell"))
    areas = xr.DataArray(from_xarray(observed).areas, dims="cell")
    expected = evaluate(members, observed, weights=areas)
    made: list[int] = []

    hull = scipy.spatial.ConvexHull

    def counted(points: Any) -> Any:
        made.append(len(points))
        return hull(points)

    monkeypatch.setattr(scipy.spatial, "ConvexHull", counted)
    result = evaluate(members, observed)
    assert made == [60]
    assert result.attrs["weights"] != "equal"
    assert float(result["crps"]) == pytest.approx(float(expected["crps"]), rel=1e-12)


def curvilinear(array: xr.DataArray, *, radians: bool = False, index: bool = False) -> xr.DataArray:
    """The same values on a turned grid, with latitudes and longitudes of two dims."""
    j, i = np.meshgrid(np.arange(array.sizes["lat"]), np.arange(array.sizes["lon"]), indexing="ij")
    lat, lon, units = 50.0 + 0.7 * j + 0.1 * i, 359.0 + 0.9 * i - 0.2 * j, {"units": "degrees"}
    if radians:
        lat, lon, units = np.deg2rad(lat), np.deg2rad(lon), {"units": "radians"}
    bare = array.rename(lat="j", lon="i").drop_vars(["j", "i"])
    bare = bare.assign_coords(j=j[:, 0], i=i[0]) if index else bare
    return bare.assign_coords(lat=(("j", "i"), lat, units), lon=(("j", "i"), lon, units))


def test_cells_without_an_index_meet_their_like() -> None:
    ensemble, observed = (curvilinear(each) for each in data(33))
    expected = evaluate(ensemble, observed)
    assert expected.attrs["weights"] == "equal"
    assert float(expected["crps"]) == float(evaluate(*data(33), weights=None)["crps"])
    turn = observed["lon"] - 360.0 * (observed["lon"] > 180.0)
    alike = {
        "radians": curvilinear(data(33)[1], radians=True),
        "turned": observed.assign_coords(lon=turn),
        "rounded": observed.assign_coords(lat=observed["lat"].astype(np.float32)),
        "renamed": observed.rename(lat="nav_lat", lon="nav_lon"),
        "transposed": observed.transpose("i", "time", "j").drop_vars("lat"),
        "holes": observed.assign_coords(lat=observed["lat"].where(observed["j"] > 0)),
    }
    for name, other in alike.items():
        assert float(evaluate(ensemble, other)["crps"]) == pytest.approx(
            float(expected["crps"]), rel=1e-12
        ), name
    backward = slice(None, None, -1)
    other_cells = {
        "lat": [observed.isel(j=backward), observed.assign_coords(lat=observed["lat"] - 40.0)],
        "lon": [observed.isel(i=backward).drop_vars("lat"), turn_by(observed, 0.01)],
    }
    for name, others in other_cells.items():
        for other in others:
            for call in (
                lambda o=other: evaluate(ensemble, o),
                lambda o=other: evaluate(ensemble, observed, reference=o),
                lambda o=other: evaluate(ensemble, observed, weights=1.0 + abs(o[0].fillna(0.0))),
            ):
                with pytest.raises(DataError, match=f"not those of the prediction: '{name}' diff"):
                    call()
    # an index tells cells apart, in any order
    known = [curvilinear(each, index=True) for each in data(33)]
    flipped = known[1].isel(j=backward, i=backward)
    assert float(evaluate(known[0], flipped)["crps"]) == pytest.approx(float(expected["crps"]))


def turn_by(array: xr.DataArray, degrees: float) -> xr.DataArray:
    return array.assign_coords(lon=array["lon"] + degrees)


@pytest.mark.parametrize("radians", [False, True])
def test_cells_that_an_ocean_model_leaves_out_are_not_compared(radians: bool) -> None:
    ensemble, observed = (curvilinear(each, radians=radians) for each in data(37))
    left_out = np.random.default_rng(3).random(ensemble["lat"].shape) < 0.3
    names = {"lat": "nav_lat", "lon": "nav_lon"}

    def filled(array: xr.DataArray, names: tuple[str, ...]) -> xr.DataArray:
        return array.assign_coords({n: array[n].where(~left_out, 0.0) for n in names})

    expected = float(evaluate(ensemble, observed)["crps"])
    ocean = filled(observed, ("lat", "lon"))
    for given in (ocean, ocean.rename(names), ocean.transpose("i", "time", "j")):
        assert float(evaluate(ensemble, given)["crps"]) == pytest.approx(expected)
        assert (
            float(evaluate(given.transpose(*observed.dims).rename("t2m"), observed)["crps"]) == 0.0
        )
    for wrong in (filled(observed, ("lat",)), ocean.isel(j=slice(None, None, -1))):
        with pytest.raises(DataError, match="not those of the prediction: 'lat' differs"):
            evaluate(ensemble, wrong)
    # A latitude of 0 alone is the equator.
    equator = filled(observed, ("lat",)).drop_vars("lon")
    with pytest.raises(DataError, match="not those of the prediction: 'lat' differs"):
        evaluate(ensemble, equator)


def test_rows_of_a_mean_over_longitude_meet_their_like() -> None:
    ensemble, observed = (each.mean("lon") for each in data(34))
    bare = [
        each.rename(lat="row").drop_vars("row").assign_coords(lat=("row", each["lat"].values))
        for each in (ensemble, observed)
    ]
    assert int(evaluate(*bare)["count"]) == int(observed.notnull().sum())
    with pytest.raises(DataError, match=r"'lat' differs at 4 of 4, such as .* dims \['row'\]"):
        evaluate(bare[0], bare[1].isel(row=slice(None, None, -1)))


@pytest.mark.parametrize("poles", [True, False])
@pytest.mark.parametrize("sizes", [((5, 6), (9, 12)), ((4, 6), (8, 12)), ((5, 7), (9, 7))])
def test_a_coarse_grid_is_not_scored_where_a_fine_one_happens_to_meet_it(
    sizes: tuple[tuple[int, int], tuple[int, int]], poles: bool
) -> None:
    rng = np.random.default_rng(5)
    fields = []
    for rows, columns in sizes:
        edge = 90.0 if poles else 90.0 - 90.0 / rows
        axes = {"lat": np.linspace(-edge, edge, rows), "lon": np.arange(columns) * 360.0 / columns}
        values = rng.normal(size=(3, rows, columns))
        fields.append(xr.DataArray(values, {"time": [1, 2, 3], **axes}, name="t2m"))
    for pair in (fields, fields[::-1]):
        with pytest.raises(DataError, match=r"is on two grids: after|with no value in common"):
            evaluate(*pair)


def test_parts_of_a_grid_are_scored_on_what_they_share() -> None:
    """A part has the steps of the whole, also across Greenwich, with a gap, or of one value."""
    rng = np.random.default_rng(6)
    lat = np.array([-89.0, -60.0, -25.0, 0.0, 31.0, 62.0, 88.0])  # as irregular as Gaussian ones
    coords = {"time": [1, 2], "lat": lat, "lon": np.arange(12) * 30.0}
    whole = xr.DataArray(rng.normal(size=(2, 7, 12)), coords, name="t2m")
    parts: list[dict[str, Any]] = [
        {"lat": slice(1, 4)},
        {"lat": [3]},
        {"lat": [0, 1, 4, 5]},
        {"lon": [10, 11, 0, 1]},
        {"lon": [7]},
        {"lat": slice(None, None, -1), "lon": slice(3, 9)},
    ]
    for part in parts:
        piece = whole.isel(part)
        piece = piece.assign_coords(lon=(piece["lon"] + 180.0) % 360.0 - 180.0)
        for pair in ((piece, whole), (whole, piece)):
            scores = evaluate(*pair)
            assert int(scores["count"]) == piece.size
            assert float(scores["rmse"]) == 0.0


@pytest.mark.parametrize("seed", range(3))
def test_points_that_an_index_numbers_meet_their_like(seed: int) -> None:
    """Numbers of rows name no stations: their places do, as in training."""
    rng = np.random.default_rng(seed)
    ensemble, observed = (each.stack(cell=("lat", "lon")) for each in data(33 + seed))
    places = {name: ("cell", observed[name].values) for name in ("lat", "lon")}
    ensemble, observed = (
        each.drop_vars(["cell", "lat", "lon"]).assign_coords(places | {"cell": np.arange(20)})
        for each in (ensemble, observed)
    )
    expected = evaluate(ensemble, observed)
    order = rng.permutation(20)
    numbered = observed[..., order].assign_coords(cell=np.arange(20))
    xr.testing.assert_allclose(evaluate(ensemble, numbered), expected)
    part = observed[..., order[:12]]
    some = evaluate(ensemble, part, weights=None)
    same = evaluate(ensemble.isel(cell=order[:12]), part, weights=None)
    xr.testing.assert_allclose(some, same)
    moved = part.assign_coords(lat=part["lat"] + 0.01)  # coordinates with fewer digits
    xr.testing.assert_allclose(evaluate(ensemble, moved, weights=None), some)
    for wrong in (part, moved):
        with pytest.raises(DataError, match=r"where the observation has 'cell' \d+, the pred"):
            evaluate(ensemble, wrong.assign_coords(cell=np.arange(12)))


def test_truth_of_several_levels_is_not_that_of_one_prediction() -> None:
    ensemble, observed = data(15)
    levels = observed + xr.DataArray([0.0, 30.0], {"level": [1000, 500]}, "level")
    levels = levels.assign_attrs(units="K")
    told = r"a dim 'level' of 2 values that the prediction lacks.* with \.isel\(level=0\)"
    for reference in (None, ensemble, levels):
        with pytest.raises(DataError, match=told):
            evaluate(ensemble, levels, reference=reference)
    found = evaluate(ensemble, levels.isel(level=0), reference=ensemble)
    assert float(found["rmse"]) == float(evaluate(ensemble, observed)["rmse"])
    named = evaluate(ensemble, levels, dims=["time", "lat", "lon"])
    assert float(named["rmse"].sel(level=1000)) == pytest.approx(float(found["rmse"]))
    both = ensemble + xr.zeros_like(levels["level"]), levels  # a reference may be for all
    assert int(evaluate(*both, reference=ensemble)["count"]) == 2 * int(found["count"])
    climatology = ensemble.isel(time=0, drop=True)
    leads = observed.expand_dims(lead=[1, 2])
    assert int(evaluate(climatology, leads)["count"]) == 2 * int(found["count"])
