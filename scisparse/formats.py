"""Formats that are neither netCDF nor Zarr: how a file of one is known, and what to do with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import xarray as xr

from scisparse.errors import DataError

__all__ = ["check_groups", "check_suffix", "is_netcdf", "netcdf_of", "unlike_netcdf"]

_HEAD = 1024
# Groups named in an error.
_SHOWN = 5


class Format(NamedTuple):
    """A format of files.

    Attributes
    ----------
    name
        What a file is, in words.
    suffixes
        Ends of names, in small letters.
    starts
        First bytes, letters of which are small.
    remedy
        What to do with a file, where ``{path}`` and ``{made}`` are it and what is made of it.
    """

    name: str
    suffixes: tuple[str, ...]
    starts: tuple[bytes, ...]
    remedy: str

    def advice(self, path: Path) -> str:
        """Return the remedy for the file at `path`."""
        return self.remedy.format(path=path, made=netcdf_of(path))


def _table(read: str) -> str:
    return (
        "make netCDF of it first, as the README tells of stations in a table, which starts with "
        f"table = pandas.{read}"
    )


_CSV = Format(
    "a table of text (CSV)",
    (".csv", ".tsv", ".txt"),
    (),
    _table("read_csv('{path}', parse_dates=['time'])"),
)
_TEXT = Format("text", (".json", ".xml", ".log"), (), "give the file that holds the data")
_EXCEL = Format(
    "a table of Excel",
    (".xlsx", ".xls"),
    (b"\xd0\xcf\x11\xe0", b"pk\3\4"),
    _table("read_excel('{path}')"),
)
_PARQUET = Format("a table of Parquet", (".parquet",), (b"par1",), _table("read_parquet('{path}')"))
_GRIB = Format(
    "GRIB",
    (".grib", ".grib1", ".grib2", ".grb", ".grb1", ".grb2"),
    (b"grib",),
    "make netCDF of it first, with xarray.open_dataset('{path}', engine='cfgrib')"
    ".to_netcdf('{made}') after pip install cfgrib",
)
_TIFF = Format(
    "a TIFF image (GeoTIFF)",
    (".tif", ".tiff"),
    (b"ii*\0", b"mm\0*", b"ii+\0", b"mm\0+"),
    "make netCDF of it first, with rioxarray.open_rasterio('{path}').to_netcdf('{made}') after "
    "pip install rioxarray",
)
_HDF4 = Format(
    "HDF4", (".hdf4",), (b"\x0e\3\x13\1",), "make netCDF of it first: h4tonccf_nc4 {path} {made}"
)
_CDL = Format(
    "netCDF written as text (CDL)", (".cdl",), (b"netcdf ",), "run ncgen -4 -o {made} {path} first"
)
_PAGE = Format(
    "a web page",
    (".html", ".htm"),
    (b"<!doctype html", b"<html"),
    "servers send one where a download fails or needs a login: download the data again",
)
_PACKED = Format(
    "a compressed file",
    (".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".tgz", ".7z"),
    (b"pk\3\4", b"\x1f\x8b", b"bzh", b"\xfd7zxz", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf"),
    "unpack it first",
)
_ARRAY = Format(
    "an array without coordinates",
    (".npy", ".npz", ".mat", ".pkl", ".pickle"),
    (b"\x93numpy", b"matlab "),
    "make netCDF of it first, with xarray.Dataset and the dims and coordinates that it has",
)
_MODEL = Format(
    "a model",
    (".safetensors", ".pt", ".pth", ".ckpt"),
    (),
    "give forecasts or observations in its place",
)
_IMAGE = Format(
    "an image",
    (".png", ".pdf", ".jpg", ".jpeg", ".svg", ".gif"),
    (b"\x89png", b"%pdf", b"\xff\xd8\xff"),
    "give the data that it shows",
)
_TABLES = (_CSV, _EXCEL, _PARQUET)
_FORMATS = (*_TABLES, _TEXT, _GRIB, _TIFF, _HDF4, _CDL, _PAGE, _PACKED, _ARRAY, _MODEL, _IMAGE)
_WRITTEN = {
    "netCDF": (".nc", ".nc4", ".netcdf", ".cdf"),
    "Zarr": (".zarr",),
    "a model": (".safetensors",),
}
# Of netCDF-4, which is HDF5, and of the classic format.
_NETCDF_STARTS = (b"\x89hdf", b"cdf")


def netcdf_of(path: Path) -> Path:
    """Name for netCDF that is made of a file, and is not the name of that file."""
    bare = path.with_suffix("")
    made = bare if bare.suffix in _WRITTEN["netCDF"] else path.with_suffix(".nc")
    return path.with_stem(f"{path.stem}_netcdf") if made == path else made


def check_suffix(target: Path, *, stores: bool) -> None:
    """Raise where the name of a file tells of another format than it would be.

    Parameters
    ----------
    target
        Where to write.
    stores
        Whether data are written, which may be a Zarr store, or else a model.

    Raises
    ------
    DataError
        It does; what the name may end in is named.
    """
    kinds = ("netCDF", "Zarr") if stores else ("a model",)
    suffix, found = target.suffix.lower(), _format_of_name(target)
    possible = [each for kind in kinds for each in _WRITTEN[kind]]
    other = [kind for kind, suffixes in _WRITTEN.items() if suffix in suffixes]
    told = found.name if found is not None else next(iter(other), None)
    if told is None or suffix in possible:
        return
    instead = netcdf_of(target) if stores else target.with_suffix(possible[0])
    text = ""
    if stores and found in _TABLES:
        made = f"xarray.open_dataset('{instead}').to_dataframe()"
        text = f", and make a table of it with {made}.to_csv('{target.with_suffix('.csv')}')"
    raise DataError(
        f"{target}: the name is that of {told}, but {' or '.join(kinds)} is written; names end in "
        f"{', '.join(possible)} or have no suffix: write {instead}{text}"
    )


def check_groups(dataset: xr.Dataset, target: Path, engine: str) -> None:
    """Raise where all variables of a file lie in groups, or HDF5 names none of its dims.

    Raises
    ------
    DataError
        It is so; says how to make netCDF of it, or names the groups of a Zarr store.
    """
    if dataset.dims and all(str(dim).startswith("phony_dim_") for dim in dataset.dims):
        raise DataError(
            f"{target}: is HDF5 that names no dims, so that no variable has coordinates; make "
            f"netCDF of it first, with xarray.open_dataset('{target}').rename and .set_coords, and "
            f".to_netcdf('{netcdf_of(target)}')"
        )
    if dataset.variables:
        return
    options: dict[str, Any] = {"consolidated": False} if engine == "zarr" else {}
    held = xr.open_groups(target, engine=engine, decode_cf=False, **options)
    groups = [name.strip("/") for name, group in held.items() if group.data_vars]
    for group in held.values():
        group.close()
    if not groups:
        return
    opened = f"xarray.open_dataset('{target}', group='{groups[0]}')"
    advice = f"make a file of one first, with {opened}.to_netcdf('{netcdf_of(target)}')"
    if engine == "zarr":
        advice = f"give one of them, such as {target / groups[0]}"
    more = "" if len(groups) <= _SHOWN else f" and {len(groups) - _SHOWN} more"
    named = ", ".join(groups[:_SHOWN]) + more
    raise DataError(f"{target}: has variables in groups alone, {named}; {advice}")


def unlike_netcdf(path: Path) -> str | None:
    """Say what a file that cannot be read seems to be and how to read it, if it is not netCDF."""
    if not path.is_file():
        return None
    if not path.stat().st_size:
        return "cannot be read: it is empty; copy or download it again"
    found = _format_of_file(path)
    if found is None:
        return None
    advice = found.advice(path)
    return f"cannot be read: it seems to be {found.name}, not netCDF or Zarr; {advice}"


def is_netcdf(path: Path) -> bool:
    """Whether a file starts as netCDF does."""
    return _head(path).startswith(_NETCDF_STARTS)


def _head(path: Path) -> bytes:
    """First bytes with small letters; none where the file cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD).lower()
    except OSError:
        return b""


def _format_of_name(path: Path) -> Format | None:
    return next((each for each in _FORMATS if path.suffix.lower() in each.suffixes), None)


def _format_of_file(path: Path) -> Format | None:
    """Format that the first bytes of a file tell, or else its name."""
    head = _head(path)
    if not head or head.startswith(_NETCDF_STARTS):
        return None
    if head[8:10] == b'{"':  # the header of safetensors, after its length
        return _MODEL
    named = _format_of_name(path)
    found = [each for each in _FORMATS if head.startswith(each.starts)]
    if found:  # a table of Excel is a zip archive, too
        return named if named in found else found[-1]
    if any(byte < 9 or 13 < byte < 32 for byte in head):
        return named
    first = next(iter(head.splitlines()), b"")
    return named or (_CSV if any(mark in first for mark in (b",", b";", b"\t")) else _TEXT)
