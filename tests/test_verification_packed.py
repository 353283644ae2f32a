"""Members that are numbered alike or missing, values still packed, attributes that are lost."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from verification_cases import LAT, data, parametric

from scisparse.errors import DataError
from scisparse.verification import evaluate


def test_members_of_two_models_may_be_numbered_alike() -> None:
    forecast, observed = data()
    alike = forecast.assign_coords(member=np.arange(forecast.sizes["member"]) % 2)
    xr.testing.assert_identical(evaluate(alike, observed), evaluate(forecast, observed))


def test_packed_values_are_named() -> None:
    forecast, observed = data()
    for packed in (forecast.assign_attrs(add_offset=270.0), forecast.assign_attrs(scale_factor=2)):
        with pytest.raises(DataError, match=r"is packed, with attribute .* xr.decode_cf"):
            evaluate(packed, observed)
    with pytest.raises(DataError, match=r"of the observation is packed"):
        evaluate(forecast, observed.assign_attrs(scale_factor=0.1))


@pytest.mark.parametrize("name", ["_FillValue", "missing_value"])
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_values_that_mean_missing_are_no_data(name: str, dtype: type[np.generic]) -> None:
    """Attributes alone do no harm, as many files have them after their values are NaN."""
    fill = 1e20 if dtype is np.float32 else -32767
    forecast, observed = data()
    edge = observed["lat"] == observed["lat"].min()
    holes = observed.fillna(0.0).where(~edge, fill).astype(dtype)
    holes.attrs = observed.attrs | {name: fill}
    count = observed.isel(lat=0).size
    for pair in ((forecast, holes), (holes, observed)):
        with pytest.raises(
            DataError, match=rf"has {count} values of attribute {name}, .*decode_cf"
        ):
            evaluate(*pair)
    told = observed.assign_attrs({name: fill})
    xr.testing.assert_identical(evaluate(forecast, told), evaluate(forecast, observed))
    # an array, as netCDF holds it, and a word are no reason to stop
    for other in (np.array([np.nan, fill]), "none", 1e300):
        told = observed.assign_attrs({name: other})
        xr.testing.assert_identical(evaluate(forecast, told), evaluate(forecast, observed))


def test_a_member_that_is_missing_throughout_is_named() -> None:
    forecast, observed = data()
    number = xr.DataArray(np.arange(forecast.sizes["member"]), dims="member")
    broken = forecast.where(number != 3)
    text = r"1 of \d+ members of the prediction, such as index 3 along 'member', are NaN throughout"
    with pytest.raises(DataError, match=text):
        evaluate(broken, observed)
    rest = evaluate(broken.dropna("member", how="all"), observed)
    assert float(rest["crps"]) == float(
        evaluate(forecast.isel(member=number != 3), observed)["crps"]
    )


def test_cases_of_fewer_members_are_not_left_out_without_a_word() -> None:
    """As hindcasts have beside forecasts: half of the cases were gone, told by `count` alone."""
    forecast, observed = data()
    some = (forecast["time"] < forecast["time"][3]) | (forecast["member"] < 2)
    left = int(observed[3:].notnull().sum())
    told = rf"^{left} of {int(observed.notnull().sum())} cases of the reference have some members"
    with pytest.warns(UserWarning, match=told) as all_:
        scores = evaluate(forecast, observed, reference=forecast.where(some))
    assert all_[0].filename == __file__
    assert int(scores["count"]) == int(observed.notnull().sum()) - left
    # cells without any member, as on land, and a few lost members are no reason
    land = forecast["lat"] == LAT[0]
    one = xr.zeros_like(forecast, dtype=bool)
    one[1, 2, 3, 0] = True
    assert int(evaluate(forecast.where(~land & ~one), observed)["count"]) > 0


def test_a_distribution_that_lost_its_name_is_no_normal_one() -> None:
    """Its location is where the normal part is, and was scored as the mean."""
    observed = data()[1]
    told = parametric().assign_attrs(distribution="censored_normal")
    names = {"t2m_mean": "t2m_location", "t2m_std": "t2m_scale"}
    both = told.assign(told.rename(names) - 0.25)
    assert float(evaluate(both, observed, target="t2m")["crps"]) > 0
    with pytest.raises(DataError, match=r"no attribute 'distribution', which operations drop; set"):
        evaluate(both.drop_attrs(), observed, target="t2m")
    same = told.assign(told.rename(names)).drop_attrs()
    expected = evaluate(told.drop_attrs(), observed)
    assert float(evaluate(same, observed, target="t2m")["crps"]) == float(expected["crps"])
