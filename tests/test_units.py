"""One unit written in many ways, and units that differ."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import xarray as xr
from postprocess_cases import ensemble, error_of, fit_error, fitted

from scisparse.errors import DataError
from scisparse.units import check_no_fill, check_units, spelled
from scisparse.verification import evaluate

SAME = [
    ["K", "kelvin", "Kelvin", "degK", " K ", "deg K", "\N{DEGREE SIGN}K", "degrees Kelvin"],
    [
        "degC",
        "degrees_Celsius",
        "Celsius",
        "degree_Celsius",
        "\N{DEGREE SIGN}C",
        "degree_C",
        "degrees_C",
        "deg C",
        "degreeC",
        "degreesC",
        "deg_c",
        "degrees Celsius",
        "C",
        "\N{DEGREE CELSIUS}",
        "\N{DEGREE SIGN} C",
        "\N{MASCULINE ORDINAL INDICATOR}C",
        "deg. C",
    ],
    ["mm/day", "mm day-1", "mm d-1", "mm / d", "d-1 mm", "millimeter/day", "mm.day-1"],
    [
        "m s-1",
        "m/s",
        "m s**-1",
        "m s^-1",
        "meter second-1",
        "m*s-1",
        "m\N{MIDDLE DOT}s-1",
        "m \N{MIDDLE DOT} s\N{SUPERSCRIPT MINUS}\N{SUPERSCRIPT ONE}",
        "m s\N{MINUS SIGN}1",
    ],
    ["m2 s-2", "m**2 s**-2", "m^2/s^2", "m+2 s-2", "m m s-2", "m2/s/s", "meter ** 2 / second ** 2"],
    ["kg m-2 s-1", "kg/m2/s", "kg m**-2 s**-1", "s-1 kg m-2"],
    ["1", "kg kg-1", "kg/kg", "", "dimensionless"],
    ["1/s", "s-1"],
    ["hPa", "mbar", "hectopascal", "mb"],
    ["degC day-1", "degrees_C/day", "deg C d-1"],
    ["%", "percent"],
]
OTHER = [
    "Pa", "mm", "m", "s", "S", "k", "mm s-1", "m/s2", "g kg-1", "kg/m2 s", "mm/24h", "0.001 m",
    "1.1 mm", "1.2 mm", "0.1 K", "1.1", "2.5 m.s-1",
    "days since 2000-01-01", "days since 2000-01-02", "m of water equivalent", "K*K", "(K)",
]  # fmt: skip


@pytest.mark.parametrize("group", SAME)
def test_one_unit_is_one_however_it_is_written(group: list[str]) -> None:
    for pair in itertools.product(group, repeat=2):
        check_units("the forecast", *pair)
    assert spelled(spelled(group[1])) == spelled(group[0])


@pytest.mark.parametrize("unit", [*OTHER, *(group[-1] for group in SAME)])
def test_units_that_differ_stay_apart(unit: str) -> None:
    """All but the unit's own group."""
    own = next((group for group in SAME if unit in group), [unit])
    for other in [*OTHER, *itertools.chain(*SAME)]:
        if other in own:
            continue
        with pytest.raises(DataError, match="convert it and set"):
            check_units("the forecast", unit, other)


def test_kelvin_and_degrees_celsius_differ_by_what() -> None:
    with pytest.raises(DataError, match=r"first, as 0 degC is 273.15 K$"):
        check_units("the forecast", "C", "K")
    with pytest.raises(DataError, match=r"first$"):
        check_units("the forecast", "C", "F")


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("unit", "other"), [("K", -273.15), ("C", 273.15)])
def test_arithmetic_does_not_hide_the_scale(unit: str, other: float, kept: bool) -> None:
    """Units are lost or kept: the mean was in degrees Celsius, with units of kelvin."""
    forecast, observed = (
        (each - 273.15 * (unit == "C")).assign_attrs(units=unit) for each in ensemble(12)
    )
    wrong = {"units": unit} if kept else {}
    there, here = ((each + other).drop_attrs().assign_attrs(wrong) for each in (forecast, observed))
    told = (
        f"has {f'units {unit!r}' if kept else 'no units'} and differs by {np.sign(other) * 27:.0f}"
    )
    rest = f"from what it must fit, which has units {unit!r}, as kelvin and degrees Celsius do, or "
    with pytest.warns(UserWarning, match=rf"^the observation 'analysis' {told}.*{rest}") as record:
        fitted("emos", forecast, here)
    assert "postprocess_cases" in record[0].filename
    model = fitted("emos", forecast, observed)
    with pytest.raises(DataError, match=rf"^variable 't2m' of the forecast {told}.*{rest}anomal"):
        model.predict(there)
    text = error_of(lambda: evaluate(forecast, here))
    assert f"the prediction has units {unit!r} and differs by {-np.sign(other) * 27:.0f}" in text
    same = model.predict(forecast.drop_attrs())["t2m_mean"]
    np.testing.assert_array_equal(same, model.predict(forecast)["t2m_mean"])


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_pascals_and_hectopascals_differ(factor: float) -> None:
    """Whose units arithmetic has kept: the mean was a hundred times too large or too small."""
    unit, usual = ("Pa", 101_000.0) if factor < 1 else ("hPa", 1010.0)
    forecast, observed = ((each / 280.0 * usual).assign_attrs(units=unit) for each in ensemble(12))
    there, here = ((each * factor).assign_attrs(units=unit) for each in (forecast, observed))
    told = rf"has units '{unit}' and differs by .*, as pascals and hectopascals do; convert one,"
    with pytest.warns(UserWarning, match=f"^the observation 'analysis' {told}"):
        fitted("emos", forecast, here)
    model = fitted("emos", forecast, observed)
    with pytest.raises(DataError, match=f"^variable 't2m' of the forecast {told}"):
        model.predict(there)
    with pytest.raises(DataError, match=f"^the prediction {told}"):
        evaluate(forecast, here)
    model.predict(forecast - 0.05 * usual)
    evaluate(forecast - 0.05 * usual, observed)


def test_predictors_in_another_scale_are_named() -> None:
    forecast, observed = ensemble(12)
    both = xr.Dataset({"t2m": forecast, "sst": forecast.mean("member").assign_attrs(units="K")})
    model = fitted("emos", both, observed)
    other = both.assign(sst=(both["sst"] - 273.15).assign_attrs(units="K"))
    with pytest.warns(UserWarning, match="^variable 'sst' of the forecast has units 'K'") as record:
        model.predict(other)
    assert record[0].filename == __file__


def test_a_day_of_a_predictor_may_be_far_from_its_mean() -> None:
    """The top of clouds has 0 K where there are none; a day without any was refused."""
    forecast, observed = ensemble(12)
    top = xr.zeros_like(forecast.mean("member")).assign_attrs(units="K")
    top[0] = 245.0
    model = fitted("emos", xr.Dataset({"t2m": forecast, "top": top}), observed)
    cloudy = xr.Dataset({"t2m": forecast, "top": top}).isel(time=[0])
    with pytest.warns(UserWarning, match="'top' of the forecast"):
        assert model.predict(cloudy)["t2m_mean"].notnull().all()


def test_a_group_of_members_without_values_has_no_scale() -> None:
    forecast, observed = ensemble(12)
    forecast = forecast.assign_coords(model=("member", list("aabb")))
    model = fitted("emos", forecast, observed, groups="model")
    assert model.predict(forecast.where(forecast["model"] == "a"))["t2m_mean"].isnull().all()


def test_anomalies_in_kelvin_predict_temperatures() -> None:
    forecast, observed = ensemble(12)
    with pytest.warns(UserWarning, match="or anomalies and temperatures; convert one"):
        model = fitted("emos", forecast - 283.0, observed)
    found = model.predict((forecast - 283.0).assign_attrs(units="K"))["t2m_mean"]
    expected = fitted("emos", forecast, observed).predict(forecast)["t2m_mean"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert "add the climatology to anomalies" in error_of(
        lambda: evaluate((forecast - 283.0).assign_attrs(units="K"), observed)
    )


RAIN = np.random.default_rng(0).gamma(0.2, 50.0, 200)
TEMPERATURE = np.random.default_rng(1).normal(283.0, 12.0, 200)
PRESSURE = np.random.default_rng(2).uniform(52_000.0, 105_000.0, 200)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("values", "fill"),
    [
        (RAIN, -9999.0), (TEMPERATURE, -9999.0), (TEMPERATURE - 273.15, -999.9), (0 * RAIN, -999.0),
        (TEMPERATURE, 9.969209968386869e36), (TEMPERATURE, 9.96921e36), (RAIN, 1e20), (RAIN, -1e34),
        (TEMPERATURE, -32767.0), (TEMPERATURE, 1e15), (PRESSURE, 9.999e20), (PRESSURE, -2147483648),
    ],
)  # fmt: skip
def test_numbers_that_mean_missing_are_known_without_attributes(
    values: np.ndarray, fill: float, dtype: type
) -> None:
    holes = np.r_[values, np.nan, fill, fill].astype(dtype)
    with pytest.raises(DataError, match=r"^x has 2 values of .* where all others lie from") as info:
        check_no_fill("x", holes, None)
    assert len(re.findall(r"\.where\(data [<>] \S+\)$", str(info.value))) == 1
    limit = float(str(info.value).split()[-1].rstrip(")"))
    kept = holes > limit if fill < 0 else holes < limit
    assert kept.sum() == len(values)


@pytest.mark.parametrize(
    ("values", "fills"),
    [
        (TEMPERATURE - 273.15, [-9999.0, -999.0]),
        (TEMPERATURE, [-32768.0, -9999.0]),
        (RAIN, [1e20, 9.969209968386869e36]),
    ],
)
def test_two_numbers_that_mean_missing_do_not_hide_each_other(
    values: np.ndarray, fills: list[float]
) -> None:
    holes = np.r_[values, fills]
    with pytest.raises(DataError, match=r"^x has 2 values of \S+ and \S+, where all") as info:
        check_no_fill("x", holes, None)
    limit = float(str(info.value).split()[-1].rstrip(")"))
    kept = holes > limit if fills[0] < 0 else holes < limit
    assert kept.sum() == len(values)


FOG = np.r_[np.full(180, 9999.0), np.linspace(100.0, 2300.0, 20)]  # visibility, as METAR has it
DISCHARGE = np.r_[np.arange(33, 233), 999]
# Fluxes, columns and totals in units that make them large, with noise below 0 or a far extreme.
COLUMNS = np.r_[np.linspace(1e15, 6e15, 200), -1.2e15]
TRANSPORT = np.r_[np.linspace(0.1, 5.2e15, 200), -1.1e15]
TOTALS = np.r_[np.random.default_rng(3).lognormal(41.5, 1.0, 200), 2.6e20]
HEIGHTS = np.r_[np.linspace(0.0, 2500.0, 200), -99.0]


@pytest.mark.parametrize(
    "values",
    [
        FOG, DISCHARGE, COLUMNS, TRANSPORT, TOTALS, HEIGHTS, np.r_[FOG, -999.0], RAIN, TEMPERATURE,
        np.r_[RAIN, 9999.0], np.r_[np.linspace(1e13, 1e16, 20), 1e20], 1e22 * RAIN, np.arange(9),
        np.r_[TEMPERATURE - 273.15, -99.0], np.r_[PRESSURE / 100.0, 999.0], np.full(20, np.nan),
        np.r_[PRESSURE, 99999.0], np.full(20, 9999.0), np.array([True, False]),
        np.r_[np.linspace(8000.0, 9800.0, 20), 9999.0], np.r_[np.full(20, 1005.0), 999.0],
        np.r_[np.linspace(-80.0, -79.0, 20), -99.0],
    ],
)  # fmt: skip
def test_numbers_that_may_be_values_are(values: np.ndarray) -> None:
    check_no_fill("x", values, "m")


@pytest.mark.parametrize(
    ("values", "fill", "units"),
    [
        (TEMPERATURE, -999.0, "kelvin"), (PRESSURE, -9999.0, "Pa"), (PRESSURE, -99999.0, "Pa"),
        (PRESSURE / 100.0, -999.0, "mbar"), (np.linspace(0.0, 100.0, 20), -999.0, "percent"),
        (np.linspace(0.0, 980.0, 20), -999.0, "W/m2"),
    ],
)  # fmt: skip
def test_what_is_never_below_zero_tells_more(values: np.ndarray, fill: float, units: str) -> None:
    holes = np.r_[values, fill]
    with pytest.raises(DataError, match=r"^x has 1 values of -9+, where all others lie from"):
        check_no_fill("x", holes, units)
    for other in ("m", "m2 s-2", None):
        check_no_fill("x", holes, other)
    check_no_fill("x", np.r_[values, 0.003 * fill, fill], units)  # anomalies are below 0, too
    with pytest.raises(DataError, match=r"^x has 2 values of -\S+ and -\S+, where all others"):
        check_no_fill("x", np.r_[values, -999.9, fill], units)


def test_training_and_scores_refuse_numbers_that_mean_missing() -> None:
    forecast, observed = ensemble(12)
    holes = observed.where(observed > 279.5, -9999.0)
    count = int((observed <= 279.5).sum())
    text = fit_error(forecast, holes)
    assert text.startswith(f"variable 'analysis' of the observation has {count} values of -9999")
    model = fitted("emos", forecast, observed)
    assert "of the forecast has 1 values of 1e+20" in error_of(
        lambda: model.predict(forecast.where(forecast < forecast.max(), 1e20))
    )
    assert f"has {count} values of -9999" in error_of(lambda: evaluate(forecast, holes))
    few = observed.where(observed > 279.5, -999.0)
    assert f"has {count} values of -999" in fit_error(forecast, few)
    assert f"has {count} values of -999" in error_of(lambda: evaluate(forecast, few))
