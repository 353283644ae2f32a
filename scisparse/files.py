"""Reading and writing of netCDF and Zarr: whole or not at all; an error names the file."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xarray as xr

from scisparse.errors import DataError, MissingDependencyError
from scisparse.formats import check_groups, check_suffix, unlike_netcdf

__all__ = ["check_target", "final_path", "open_data", "replace_file", "write_data"]

_ZARR = ".zarr"
# One of them lies in the folder of every Zarr group.
_ZARR_MARKS = ("zarr.json", ".zgroup", ".zmetadata")
# Classic netCDF: bytes of a count and of an offset by version, bytes of a number by type.
_CLASSIC = {b"CDF\x01": (4, 4), b"CDF\x02": (4, 8), b"CDF\x05": (8, 8)}
_CLASSIC_TYPES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 4, 6: 8, 7: 1, 8: 2, 9: 4, 10: 8, 11: 8}
_COMPRESSED = {"zlib": True, "complevel": 4}
# Encoding that tells what values mean; other encoding is of the file that they came from.
_MEANING = ("calendar", "grid_mapping", "units")
# How a Zarr store of another version, or of other sizes, kept them: a new one may not hold it.
_STORAGE = (
    "chunks", "compressor", "compressors", "filters", "preferred_chunks", "serializer", "shards",
)  # fmt: skip


def open_data(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a netCDF file or a Zarr store into memory.

    A store that lost files of chunks is read as if they held the fill value: Zarr writes no file
    for a chunk of fill values alone, so that the two cannot be told apart.

    Raises
    ------
    DataError
        There is no such file, it is cut short or something else, it has groups alone, or times
        cannot be decoded.

    Examples
    --------
    >>> open_data("no_such_file.nc")
    Traceback (most recent call last):
        ...
    scisparse.errors.DataError: no_such_file.nc: no such file; check the path
    """
    target = Path(path)
    if not target.exists():
        raise DataError(f"{target}: no such file; check the path")
    engine = "zarr" if _is_store(target) or target.is_dir() else "netcdf4"
    if engine == "zarr":
        _require_zarr(target)
    # Consolidated metadata is not part of Zarr 3, and reading without it works for all.
    options = {"consolidated": False} if engine == "zarr" else None
    try:
        if engine != "zarr":
            _check_whole(target)
        with xr.open_dataset(target, engine=engine, backend_kwargs=options) as dataset:
            dataset.load()
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        reason = _reason(error)
        if "decode time" in reason:
            raise DataError(
                f"{target}: its times are not in the CF form ({reason.split('. ')[0]}); set their "
                "attributes units and calendar, such as '360_day', after "
                f"xarray.open_dataset('{target}', decode_times=False), and write it again"
            ) from error
        told = unlike_netcdf(target)
        if told is None:
            told = f"cannot be read by {engine} ({reason}); it may be cut short or damaged"
        raise DataError(f"{target}: {told}") from error
    check_groups(dataset, target, engine)
    return dataset


def _is_store(target: Path) -> bool:
    return target.suffix.lower() == _ZARR


def check_target(target: Path, *, stores: bool) -> None:
    """Raise unless a file, or where the name says so a Zarr store, can be written there.

    Parameters
    ----------
    target
        Where to write.
    stores
        Whether a name that ends in ``.zarr`` means a store.

    Raises
    ------
    DataError
        The folder does not exist or cannot be written, or another kind of file or folder has the
        name, also of what a link leads to.
    """
    store = stores and _is_store(target)
    try:
        folder = final_path(target).parent
    except FileExistsError as error:
        raise DataError(f"{target}: {error.strerror}; choose another name") from error
    if not folder.is_dir():
        raise DataError(f"{target}: folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DataError(f"{target}: folder {folder} cannot be written; choose a writable folder")
    if store:
        _require_zarr(target)
    if target.exists() and target.is_dir() != store:
        kind, other = ("folder", "file") if target.is_dir() else ("file", "Zarr store")
        raise DataError(f"{target}: is a {kind}, not a {other}; choose another name")
    if target.is_dir() and not any((target / mark).exists() for mark in _ZARR_MARKS):
        raise DataError(
            f"{target}: is a folder without any of {', '.join(_ZARR_MARKS)}, no Zarr store, and "
            "would be lost; choose another name"
        )


def final_path(target: Path) -> Path:
    """Where `target` leads: a link stays, and the file that it names is replaced.

    Raises
    ------
    FileExistsError
        It is a device or a pipe, which a file must not replace, or a link that leads to itself.
    """
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise FileExistsError(errno.EEXIST, "is a device or pipe, not a file")
    try:
        return target.resolve() if target.is_symlink() else target
    except (OSError, RuntimeError) as error:  # by the version of Python
        raise FileExistsError(errno.EEXIST, "is a link that leads to itself") from error


def replace_file(draft: Path, target: Path) -> None:
    """Give a finished file its name, and the permissions of the one that had it."""
    if target.exists():
        draft.chmod(stat.S_IMODE(target.stat().st_mode))
    draft.replace(target)


def write_data(dataset: xr.Dataset, path: str | os.PathLike[str]) -> None:
    """Write a netCDF file, or a Zarr store where the name ends in ``.zarr``, whole or not at all.

    Raises
    ------
    DataError
        The folder does not exist or cannot be written, another kind of file or folder has the
        name, the name is that of another format, or the format cannot hold the data.
    """
    target = Path(path)
    check_target(target, stores=True)
    check_suffix(target, stores=True)
    _check_indexes(dataset, target)
    store = _is_store(target)
    plain = _plain(dataset, {} if store else _COMPRESSED)
    dataset = _for_zarr(plain) if store else _for_netcdf(plain, target)
    final = final_path(target)
    try:
        folder = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written ({error.strerror}); choose a writable folder"
        ) from error
    try:
        draft = folder / target.name
        if store:
            dataset.to_zarr(draft, mode="w", consolidated=False)
        else:
            dataset.to_netcdf(draft, engine="netcdf4")
        _replace(draft, final)
    except (TypeError, ValueError, NotImplementedError) as error:
        kind = "Zarr" if store else "netCDF"
        raise DataError(
            f"{target}: cannot be written ({_reason(error)}); convert or drop what {kind} cannot "
            "hold"
        ) from error
    except (OSError, RuntimeError) as error:  # netCDF raises a RuntimeError when a disk is full
        raise DataError(
            f"{target}: cannot be written ({_reason(error)}); free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _reason(error: Exception) -> str:
    told = getattr(error, "strerror", None) or str(error)
    return next(iter(told.splitlines()), type(error).__name__)


def _replace(draft: Path, target: Path) -> None:
    """Move `draft` to `target`; a store that is there stays until the new one has its name."""
    if not target.is_dir():
        replace_file(draft, target)
        return
    aside = draft.with_name(f"old.{target.name}")
    target.rename(aside)
    try:
        draft.rename(target)
    except BaseException:
        aside.rename(target)
        raise


def _check_indexes(dataset: xr.Dataset, target: Path) -> None:
    """Raise when a dim is a stack of several coordinates, which no format holds."""
    for dim, index in dataset.indexes.items():
        if index.nlevels > 1:
            raise DataError(
                f"{target}: {dim!r} is a stack of {list(index.names)}, which no file holds; "
                f"unstack it first, with .unstack({dim!r}), or make plain coordinates of it, with "
                f".reset_index({dim!r})"
            )


def _plain(dataset: xr.Dataset, options: dict[str, Any]) -> xr.Dataset:
    """Without the encoding of the file that values came from; data get `options` for theirs.

    Coordinates and bounds that miss nothing have no fill value: CF allows them none.
    """
    copy = dataset.copy(deep=False)
    bounds = {{**c.attrs, **c.encoding}.get("bounds") for c in copy.coords.values()}
    for name, variable in copy.variables.items():
        encoding = {k: v for k, v in variable.encoding.items() if k not in _STORAGE}
        if (name in copy.coords or name in bounds) and not variable.isnull().any():
            encoding = {k: v for k, v in encoding.items() if k != "missing_value"}
            encoding["_FillValue"] = None
        elif name in copy.data_vars and encoding.get("_FillValue", np.nan) is not None:
            encoding = {k: encoding[k] for k in _MEANING if k in encoding} | options
        variable.encoding = encoding
    return copy


def _for_zarr(dataset: xr.Dataset) -> xr.Dataset:
    """With words of any length: Zarr has no standard for those of one length."""
    fixed = {name: v for name, v in dataset.variables.items() if v.dtype.kind == "U"}
    return dataset.assign({name: words.astype(object) for name, words in fixed.items()})


def _for_netcdf(dataset: xr.Dataset, target: Path) -> xr.Dataset:
    """With attributes that netCDF has no type for, such as true, as JSON text.

    Raises
    ------
    DataError
        A name holds a slash.
    """
    slashed = [str(name) for name in dataset.variables if "/" in str(name)]
    if slashed:
        raise DataError(
            f"{target}: netCDF allows no '/' in the name of variable {slashed[0]!r}; rename it, or "
            "write a .zarr store"
        )
    copy = dataset.copy(deep=False)
    for attrs in (copy.attrs, *(variable.attrs for variable in copy.variables.values())):
        attrs.update({name: _attribute(value) for name, value in attrs.items()})
    return copy


def _attribute(value: Any) -> Any:
    plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    parts = plain if isinstance(plain, list | tuple) else [plain]
    kinds = {type(part) for part in parts}
    numbers = kinds <= {int, float} and all(
        isinstance(part, float) or abs(part) < 2**63 for part in parts
    )
    if parts and (numbers or kinds == {str} or type(plain) is bytes):
        return value
    return json.dumps(plain, default=str)


def _check_whole(target: Path) -> None:
    """Raise when a classic netCDF file is shorter than its header says: netCDF reads zeros there.

    Layout of the header: https://docs.unidata.ucar.edu/netcdf-c/current/file_format_specifications.html
    """
    with target.open("rb") as file:
        widths = _CLASSIC.get(file.read(4))
        if widths is None:
            return
        try:
            expected = _classic_length(file, *widths)
        except (EOFError, KeyError, IndexError, OverflowError) as error:
            raise DataError(
                f"{target}: the header of this classic netCDF file is cut short or damaged; copy "
                "it again"
            ) from error
    size = target.stat().st_size
    if size < expected:
        raise DataError(
            f"{target}: is cut short: it has {size} bytes but its header tells of {expected}; copy "
            "it again"
        )


def _classic_length(file: BinaryIO, count_width: int, offset_width: int) -> int:
    """Bytes up to the end of the last number, as the header after the magic bytes tells.

    A file written as a stream tells of 2**32 - 1 records and is refused: netCDF cannot read it.
    """

    def number(width: int) -> int:
        data = file.read(width)
        if len(data) < width:
            raise EOFError
        return int.from_bytes(data, "big")

    def count() -> int:
        return number(count_width)

    def skip(size: int) -> None:
        file.seek(_padded(size), os.SEEK_CUR)

    def items() -> range:
        number(4)  # the tag says what kind they are, which their place says too
        return range(count())

    def skip_attributes() -> None:
        for _ in items():
            skip(count())
            width = _CLASSIC_TYPES[number(4)]
            skip(count() * width)

    records = count()
    lengths = []
    for _ in items():
        skip(count())
        lengths.append(count())
    skip_attributes()
    end, recorded = 0, []
    for _ in items():
        skip(count())
        shape = [lengths[count()] for _ in range(count())]
        skip_attributes()
        width = _CLASSIC_TYPES[number(4)]
        count()  # the size is not to be trusted where it passes 2**32
        begin = number(offset_width)
        if shape and shape[0] == 0:
            recorded.append((begin, math.prod(shape[1:]) * width))
        else:
            end = max(end, begin + math.prod(shape) * width)
    # Parts of a record are padded, unless there is but one.
    step = recorded[0][1] if len(recorded) == 1 else sum(_padded(size) for _, size in recorded)
    if records:
        end = max([end, *(begin + (records - 1) * step + size for begin, size in recorded)])
    return end


def _padded(size: int) -> int:
    return size + -size % 4


def _require_zarr(target: Path) -> None:
    try:
        import zarr  # noqa: F401 (only to know that it is there)
    except ImportError as error:
        raise MissingDependencyError(
            f'{target}: Zarr stores need the extra "big"; pip install "scisparse[big]"'
        ) from error
