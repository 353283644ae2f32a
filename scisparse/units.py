"""Units of two variables: the same ones, however they are written."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from scisparse.errors import DataError

__all__ = ["check_celsius", "check_units", "check_unpacked", "spelled"]

# Between means of one temperature in kelvin and in degrees Celsius, if one is up to 70 K off.
_LEAST_OFFSET, _LARGEST_OFFSET = 203.15, 343.15
# Other names of one unit, in small letters; never a conversion.
_NAMES = {
    "kelvin": "K", "kelvins": "K", "celsius": "degC", "c": "degC", "metre": "m", "metres": "m",
    "meter": "m", "meters": "m", "millimetre": "mm",
    "millimetres": "mm", "millimeter": "mm", "millimeters": "mm", "kilogram": "kg",
    "kilograms": "kg", "second": "s", "seconds": "s", "sec": "s", "hour": "h", "hours": "h",
    "hr": "h", "day": "d", "days": "d", "pascal": "Pa", "pascals": "Pa", "hectopascal": "hPa",
    "hectopascals": "hPa", "mb": "hPa", "millibar": "hPa", "millibars": "hPa", "mbar": "hPa",
    "joule": "J", "joules": "J", "watt": "W", "watts": "W", "percent": "%",
}  # fmt: skip
# With a word or a sign of degrees, of which there are three that look alike.
_DEGREES = r"(\bdeg(rees?)?\.?|[\N{DEGREE SIGN}\N{MASCULINE ORDINAL INDICATOR}\N{RING ABOVE}])[ _]?"
_CELSIUS = re.compile(_DEGREES + r"c(elsius)?\b", re.IGNORECASE)
_KELVIN = re.compile(_DEGREES + r"k(elvins?)?\b", re.IGNORECASE)
_FACTOR = re.compile(r"([^\W\d]+|%)([+-]?\d+)?")


def spelled(units: str) -> str:
    """Write units in one way: ``m/s``, ``m s**-1`` and ``metre second-1`` are one unit.

    What is no product of powers of named units, such as ``days since 2000-01-01``, stays as it is.
    Nothing is converted: ``K`` and ``degC`` differ, as do ``kg m-2 s-1`` and ``mm s-1``.

    Examples
    --------
    >>> spelled("m s**-1"), spelled("m/s"), spelled("degrees_Celsius"), spelled("kg kg-1")
    ('m s-1', 'm s-1', 'degC', '1')
    """
    powers: dict[str, int] = {}
    # Powers above the line become digits, with the minus of typesetters.
    text = _KELVIN.sub("K", _CELSIUS.sub("degC", units.strip()))
    text = unicodedata.normalize("NFKC", text).replace("\N{MINUS SIGN}", "-")
    text = re.sub(r"\s*/\s*", " /", re.sub(r"\s*(\*\*|\^)\s*", "", text))
    text = _CELSIUS.sub("degC", text)  # signs of one letter have become two
    # A dot between digits is that of a number.
    for part in re.split(r"(?:[\s*\N{MIDDLE DOT}]|(?<!\d)\.|\.(?!\d))+", text):
        divides = part.startswith("/")
        if part.removeprefix("/") in ("", "1", "dimensionless"):
            continue
        factor = _FACTOR.fullmatch(part.removeprefix("/"))
        if factor is None:
            return units.strip()
        name = _NAMES.get(factor[1].lower(), factor[1])
        powers[name] = powers.get(name, 0) + int(factor[2] or 1) * (-1 if divides else 1)
    factors = [f"{name}{'' if n == 1 else n}" for name, n in sorted(powers.items()) if n]
    return " ".join(factors) or "1"


def check_units(what: str, units: object, expected: object) -> None:
    """Raise unless units agree, as far as both are known; how they are written does not count.

    Parameters
    ----------
    what
        Name of what has the units, for errors.
    units, expected
        Values of CF attribute ``units``, or ``None``.

    Raises
    ------
    DataError
        They differ; both are named.
    """
    if units is None or expected is None or spelled(str(units)) == spelled(str(expected)):
        return
    pair = {spelled(str(units)), spelled(str(expected))}
    told = ", as 0 degC is 273.15 K" if pair == {"K", "degC"} else ""
    raise DataError(
        f"{what} has units {units!r} but {expected!r} is needed; convert it and set attrs['units'] "
        f"first{told}"
    )


def check_celsius(
    what: str, units: object, expected: object, difference: Callable[[], float]
) -> None:
    """Raise where one is in kelvin and one in degrees Celsius, though units do not tell.

    Arithmetic drops units or keeps those that no longer hold, as the version of xarray is.

    Parameters
    ----------
    what
        Name of what has the units, for errors.
    units, expected
        As of :func:`check_units`.
    difference
        Gives the mean of what has the units, less that of what it must fit; asked for temperatures.

    Raises
    ------
    DataError
        They differ as both units do.
    """
    known = {spelled(str(each)) for each in (units, expected) if each is not None}
    if known not in ({"K"}, {"degC"}):
        return
    offset = difference()
    if not _LEAST_OFFSET < abs(offset) < _LARGEST_OFFSET:
        return
    told = [f"units {each!r}" if each is not None else "no units" for each in (units, expected)]
    raise DataError(
        f"{what} has {told[0]} and differs by {offset:.0f} on average from what it must fit, "
        f"which has {told[1]}, as kelvin and degrees Celsius do; convert one, and set "
        "attrs['units'] of both"
    )


def check_unpacked(what: str, attrs: Mapping[Any, Any], values: Callable[[], Any]) -> None:
    """Raise if attributes say that values are still packed: xarray drops these when it unpacks.

    Parameters
    ----------
    what
        Name of what has them, for errors.
    attrs
        Attributes.
    values
        Gives the values, which are read only where attributes tell of one that means missing.

    Raises
    ------
    DataError
        There is a ``scale_factor`` or ``add_offset``, or a value that means missing by
        ``_FillValue`` or ``missing_value``.
    """
    remedy = "unpack it with xr.decode_cf(data), or open the file without mask_and_scale=False"
    for name in ("scale_factor", "add_offset"):
        if name in attrs:
            raise DataError(f"{what} is packed, with attribute {name} {attrs[name]}: {remedy}")
    for name in ("_FillValue", "missing_value"):
        fill = np.asarray(attrs.get(name, []))
        if fill.dtype.kind not in "fiu" or not fill.size:
            continue
        held = np.asarray(values())
        if held.dtype.kind == "f":  # as files round it; what overflows there is no value either
            with np.errstate(over="ignore"):
                fill = fill.astype(held.dtype)
        if count := int(np.isin(held, fill[np.isfinite(fill)]).sum()):
            raise DataError(
                f"{what} has {count} values of attribute {name}, {attrs[name]}, which mean "
                f"missing: {remedy}"
            )
