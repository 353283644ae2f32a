"""One unit written in many ways, and units that differ."""

from __future__ import annotations

import itertools

import pytest

from scisparse.errors import DataError
from scisparse.units import check_units, spelled

SAME = [
    ["K", "kelvin", "Kelvin", "degK", " K "],
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
