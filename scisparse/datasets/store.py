"""Where the files of a data set are on this machine: the user's folder first, then a download."""

from __future__ import annotations

import hashlib
import importlib
import os
from pathlib import Path
from types import ModuleType

from scisparse.datasets.registry import DataFile, DataSource
from scisparse.errors import DataError, MissingDependencyError

__all__ = ["DATA_VARIABLE", "locate"]

DATA_VARIABLE = "SCISPARSE_DATA_DIR"
"""Environment variable that names the folder searched first; read at every call."""


def locate(file: DataFile, source: DataSource) -> Path:
    """Return a file whose checksum is right, from the user's folder or by download.

    Raises
    ------
    DataError
        If the file is damaged, or is neither here nor to be had.
    MissingDependencyError
        If a download is needed and pooch is not installed.
    """
    folder = os.environ.get(DATA_VARIABLE)
    if not folder:
        return _download(file, source, f"{DATA_VARIABLE} is not set")
    if not Path(folder).is_dir():
        raise DataError(
            f"{DATA_VARIABLE} (={folder!r}) is not a folder; correct the variable or unset it"
        )
    path = Path(folder) / file.path
    if not path.is_file():
        return _download(file, source, f"{DATA_VARIABLE} (={folder!r}) does not hold it")
    _verify(path, file, source)
    return path


def _verify(path: Path, file: DataFile, source: DataSource) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != file.sha256:
        raise DataError(
            f"{path} has SHA-256 {found}, not {file.sha256}: it is cut short or changed; "
            f"replace it by the file from {file.url or source.origin}"
        )


def _download(file: DataFile, source: DataSource, why: str) -> Path:
    remedy = f"set {DATA_VARIABLE} to a folder that holds it"
    if file.url is None:
        raise DataError(
            f"{file.path} is missing: {why}, and it has no download address, because it was "
            f"converted from the files of {source.origin}; {remedy}"
        )
    pooch = _pooch()
    target = Path(pooch.os_cache("scisparse")) / file.path
    try:
        found = pooch.retrieve(
            file.url, known_hash=f"sha256:{file.sha256}", fname=target.name, path=target.parent
        )
    except (OSError, ValueError) as error:
        # The errors of requests are OSErrors; pooch raises ValueError for unexpected bytes.
        raise DataError(
            f"{file.path} is missing: {why}, and its download from {file.url} failed "
            f"({type(error).__name__}); {remedy}, or connect to the internet"
        ) from error
    return Path(found)


def _pooch() -> ModuleType:
    try:
        return importlib.import_module("pooch")
    except ImportError as error:
        raise MissingDependencyError(
            f"pooch is not installed, and downloads need it: pip install pooch, "
            f"or set {DATA_VARIABLE} to a folder that holds the data"
        ) from error
