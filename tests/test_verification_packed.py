"""Members that are numbered alike, and values that are still packed."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from verification_cases import data

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
