"""Reading and writing of netCDF and Zarr: whole or not at all; an error names the file."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import xarray as xr

from scisparse.errors import DataError, MissingDependencyError

__all__ = ["open_data", "write_data"]

_ZARR = ".zarr"


def open_data(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a netCDF file or a Zarr store into memory.

    Raises
    ------
    DataError
        There is no such file, or it is cut short or something else.

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
    engine = "zarr" if target.suffix == _ZARR or target.is_dir() else "netcdf4"
    if engine == "zarr":
        _require_zarr(target)
    # Consolidated metadata is not part of Zarr 3, and reading without it works for all.
    options = {"consolidated": False} if engine == "zarr" else None
    try:
        with xr.open_dataset(target, engine=engine, backend_kwargs=options) as dataset:
            return dataset.load()
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{target}: cannot be read by {engine} ({reason}); it may be cut "
            "short or of another format"
        ) from error


def write_data(dataset: xr.Dataset, path: str | os.PathLike[str]) -> None:
    """Write a netCDF file, or a Zarr store where the name ends in ``.zarr``, whole or not at all.

    Raises
    ------
    DataError
        The folder does not exist or cannot be written.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise DataError(f"{target}: folder {target.parent} does not exist; create it first")
    if target.suffix == _ZARR:
        _require_zarr(target)
    if target.exists() and target.is_dir() != (target.suffix == _ZARR):
        kind, other = ("folder", "file") if target.is_dir() else ("file", "Zarr store")
        raise DataError(f"{target}: is a {kind}, not a {other}; choose another name")
    try:
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written ({error.strerror}); choose a writable folder"
        ) from error
    try:
        draft = folder / target.name
        if target.suffix == _ZARR:
            dataset.to_zarr(draft, mode="w", consolidated=False)
            if target.is_dir():
                shutil.rmtree(target)
        else:
            compressed = {name: {"zlib": True, "complevel": 4} for name in dataset.data_vars}
            dataset.to_netcdf(draft, engine="netcdf4", encoding=compressed)
        draft.replace(target)
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written ({error.strerror or error}); free space or choose "
            "another folder"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _require_zarr(target: Path) -> None:
    try:
        import zarr  # noqa: F401 (only to know that it is there)
    except ImportError as error:
        raise MissingDependencyError(
            f'{target}: Zarr stores need the extra "big"; pip install "scisparse[big]"'
        ) from error
