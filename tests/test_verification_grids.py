"""Scores on every kind of grid: areas where they are known, and cells that meet their like."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from verification_cases import data

from scisparse.errors import GridError
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
