"""Units of two variables: the same ones, however they are written."""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scisparse.errors import DataError

__all__ = [
    "check_no_fill",
    "check_scale",
    "check_units",
    "check_unpacked",
    "spelled",
    "warn_scale",
]

# Between means of one temperature in kelvin and in degrees Celsius, if one is up to 70 K off.
_LEAST_OFFSET, _LARGEST_OFFSET = 203.15, 343.15
# Means of pressure at the surface or at sea level, in hectopascals.
_PRESSURES = 400.0, 1100.0
_Means = tuple[float, float]
# What files have for no value where no attribute says so, of either sign: of netCDF, MERRA, GRIB,
# GrADS, CMIP, Ferret, GDAL; and numbers below 0 of tables and packed integers.
_LARGE_FILLS = (
    9.969209968386869e36, 1e15, 9.999e20, 1e20, 1e30, 1e34, 9.99e33, 1e35, 1e36, 3.4028235e38,
)  # fmt: skip
_NEGATIVE_FILLS = (
    -999.0, -999.9, -999.99, -9999.0, -9999.9, -9999.99, -99999.0, -999999.0, -32767.0, -32768.0,
    -2147483647.0, -2147483648.0,
)  # fmt: skip
# So many times the size of all others: values of one variable have extremes, and far ones.
_LARGE_RATIO, _NEGATIVE_RATIO = 1e6, 10.0
_FEWEST_OTHERS = 10
# Absolute temperatures, pressures, shares, radiation: none is below 0, if no other is, as those
# of anomalies.
_FROM_ZERO = ("K", "Pa", "hPa", "kPa", "%", "W m-2")
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


def check_scale(what: str, units: object, expected: object, means: Callable[[], _Means]) -> None:
    """Raise where one is in another scale than it must fit, though units do not tell.

    Arithmetic drops units or keeps those that no longer hold, as the version of xarray is.

    Parameters
    ----------
    what
        Name of what has the units, for errors.
    units, expected
        As of :func:`check_units`.
    means
        Gives the mean of what has the units and of what it must fit; asked for temperatures and
        pressures.

    Raises
    ------
    DataError
        They differ as kelvin and degrees Celsius do, or pascals and hectopascals.
    """
    if told := _apart(what, units, expected, means):
        raise DataError(told)


def warn_scale(
    what: str, units: object, expected: object, means: Callable[[], _Means], stacklevel: int
) -> None:
    """Warn where :func:`check_scale` raises: anomalies, of units K too, may be meant.

    Warns
    -----
    UserWarning
        Values differ as two scales of one quantity do.
    """
    if told := _apart(what, units, expected, means):
        warnings.warn(told, UserWarning, stacklevel=stacklevel + 1)


def _apart(what: str, units: object, expected: object, means: Callable[[], _Means]) -> str | None:
    """How temperatures or pressures differ, if they do as both scales do."""
    known = {spelled(str(each)) for each in (units, expected) if each is not None}
    if known not in ({"K"}, {"degC"}, {"Pa"}, {"hPa"}):
        return None
    mean, other = means()
    offset, (low, high) = mean - other, sorted((mean, other))
    remedy = "convert one, and set attrs['units'] of both"
    if known in ({"K"}, {"degC"}):
        scales = "kelvin and degrees Celsius do, or anomalies and temperatures"
        remedy += ", or add the climatology to anomalies"
        differ = _LEAST_OFFSET < abs(offset) < _LARGEST_OFFSET
    else:
        scales = "pascals and hectopascals do"
        least, largest = _PRESSURES
        differ = least < low < largest and 100 * least < high < 100 * largest
    if not differ:
        return None
    told = [f"units {each!r}" if each is not None else "no units" for each in (units, expected)]
    return (
        f"{what} has {told[0]} and differs by {offset:.0f} on average from what it must fit, "
        f"which has {told[1]}, as {scales}; {remedy}"
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


def check_no_fill(what: str, values: NDArray[Any], units: object) -> None:
    """Raise where the least or the largest number cannot be a value and is a known fill value.

    Nothing turns it off, so it is sure rather than complete: a large number such as netCDF's
    9.96921e36 or 1e20 must be a million times as large as all others, one below 0 such as -999 or
    -32768 ten times as large, or the only one below 0 in kelvin, pascals, percent or W m-2. Several
    fill values do not hide each other. Numbers above 0 such as 9999 and small ones such as -99
    pass, as they may be values (a visibility of "10 km or more", an anomaly), and -999 m of
    geopotential height too.

    Parameters
    ----------
    what
        Name of what has them, for errors.
    values
        Numbers, some of them NaN.
    units
        Value of CF attribute ``units``, or ``None``.

    Raises
    ------
    DataError
        There is such a number; it and the range of the others are named.
    """
    with np.errstate(invalid="ignore"):
        ends = float(np.fmin.reduce(values, None)), float(np.fmax.reduce(values, None))
    for end, sign in zip(ends, (-1.0, 1.0), strict=True):
        ratio = _ratio_of_fill(end)
        if ratio is None or end * sign <= 0:
            continue
        known = _fills_in(values, sign)
        rest = values[np.isfinite(values) & ~np.isin(values, known)]
        if rest.size < _FEWEST_OTHERS:
            continue
        low, high = float(rest.min()), float(rest.max())
        if sign < 0 <= low and spelled(str(units)) in _FROM_ZERO:
            ratio = 0.0
        fills = [each for each in known if abs(each) > ratio * max(-low, high)]
        if fills:
            others = values[np.isfinite(values) & ~np.isin(values, fills)]
            told = " and ".join(f"{each:.9g}" for each in fills)
            raise DataError(
                f"{what} has {int(np.isin(values, fills).sum())} values of {told}, where all "
                f"others lie from {others.min():.6g} to {others.max():.6g}; mark missing values as "
                f"NaN, for example with .where(data {'>' if sign < 0 else '<'} "
                f"{0.5 * min(fills, key=abs):.6g})"
            )


def _fills_in(values: NDArray[Any], sign: float) -> list[float]:
    """Known fill values of one sign that are there."""
    sizes = [abs(each) for each in (_LARGE_FILLS + (_NEGATIVE_FILLS if sign < 0 else ()))]
    near = (values[np.isclose(values, sign * size, rtol=1e-5, atol=0.0)] for size in sizes)
    found = np.unique(np.concatenate([np.unique(each) for each in near]))
    return [float(each) for each in found if _ratio_of_fill(float(each)) is not None]


def _ratio_of_fill(value: float) -> float | None:
    """How many times the size of all others a known fill value must have; None for others."""
    if np.isclose(abs(value), _LARGE_FILLS, rtol=1e-5, atol=0.0).any():
        return _LARGE_RATIO
    if np.isclose(value, _NEGATIVE_FILLS, rtol=1e-6, atol=0.0).any():
        return _NEGATIVE_RATIO
    return None
