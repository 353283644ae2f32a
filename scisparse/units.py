"""Units of two variables: the same ones, however they are written."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from scisparse.errors import DataError

__all__ = ["check_units", "check_unpacked", "spelled"]

# Other names of one unit, in small letters; never a conversion.
_NAMES = {
    "kelvin": "K", "kelvins": "K", "degk": "K", "deg_k": "K", "degree_kelvin": "K",
    "degrees_kelvin": "K", "celsius": "degC",
    "\N{DEGREE SIGN}c": "degC", "metre": "m", "metres": "m", "meter": "m", "meters": "m",
    "millimetre": "mm",
    "millimetres": "mm", "millimeter": "mm", "millimeters": "mm", "kilogram": "kg",
    "kilograms": "kg", "second": "s", "seconds": "s", "sec": "s", "hour": "h", "hours": "h",
    "hr": "h", "day": "d", "days": "d", "pascal": "Pa", "pascals": "Pa", "hectopascal": "hPa",
    "hectopascals": "hPa", "mb": "hPa", "millibar": "hPa", "millibars": "hPa", "mbar": "hPa",
    "joule": "J", "joules": "J", "watt": "W", "watts": "W", "percent": "%",
}  # fmt: skip
_CELSIUS = re.compile(r"\bdeg(rees?)?[ _]?c(elsius)?\b", re.IGNORECASE)
_FACTOR = re.compile(r"([^\W\d]+|%|\N{DEGREE SIGN}[cC])([+-]?\d+)?")


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
    text = unicodedata.normalize("NFKC", units.strip()).replace("\N{MINUS SIGN}", "-")
    text = re.sub(r"\s*/\s*", " /", re.sub(r"\s*(\*\*|\^)\s*", "", text))
    text = _CELSIUS.sub("degC", text)
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
    raise DataError(
        f"{what} has units {units!r} but {expected!r} is needed; convert it and set attrs['units'] "
        "first"
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
