"""Saved models: one safetensors file whose header holds JSON; loading executes nothing in it."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from scisparse.errors import CheckpointError
from scisparse.files import final_path, replace_file
from scisparse.formats import is_netcdf

__all__ = ["check_spec", "read_checkpoint", "write_checkpoint"]

_FORMAT = "scisparse.PostProcessor/1"


def check_spec(spec: Any) -> None:
    """Raise unless what a forecast is checked against has the types that are written.

    Raises
    ------
    TypeError
        Something in the header is of another type.
    """
    if not isinstance(spec, dict):
        raise TypeError(f"the header holds a {type(spec).__name__}, not a dict")
    names, units, numbers = spec["names"], spec["units"], spec["numbers"]
    rules = {
        "target": isinstance(spec["target"], str),
        "groups": isinstance(spec["groups"], str | None),
        "calendar": isinstance(spec["calendar"], str | None),
        "cases": type(spec["cases"]) is int and spec["cases"] > 0,
        "names": isinstance(names, list) and all(isinstance(name, str) for name in names),
        "members": spec["members"] is None or type(spec["members"]) is int,
        "labels": _are_labels(spec["labels"]),
        "numbers": isinstance(numbers, dict) and all(map(_is_numbers, numbers.values())),
        "units": isinstance(units, dict) and all(isinstance(unit, str) for unit in units.values()),
    }
    for key, holds in rules.items():
        if not holds or (key == "names" and not 0 < len(set(names)) == len(names)):
            raise TypeError(f"header entry {key!r} (={spec[key]!r}) is of another type")


def _are_labels(labels: Any) -> bool:
    """Whether these are lists of words by name, no two of a list alike."""
    lists = isinstance(labels, dict) and all(isinstance(each, list) for each in labels.values())
    return lists and all(
        all(isinstance(word, str) for word in each) and len({*each}) == len(each)
        for each in labels.values()
    )


def _is_numbers(pair: Any) -> bool:
    """Whether these are some values and their unit."""
    pairs = isinstance(pair, list) and tuple(map(type, pair)) == (list, str)
    return pairs and bool(pair[0]) and all(type(value) is float for value in pair[0])


def write_checkpoint(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], spec: Mapping[str, Any]
) -> None:
    """Write tensors and a JSON-able `spec` to one file, whole or not at all.

    Raises
    ------
    CheckpointError
        It cannot be written; a file that was there before is unchanged.
    """
    from safetensors.torch import save

    target = Path(path)
    header = {"format": _FORMAT, "spec": json.dumps(spec)}
    data = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, header)
    name = f".{target.name}.{uuid.uuid4().hex}"
    try:
        final = final_path(target)
        _write_whole(data, final, final.with_name(name))
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot be written ({error.strerror or error}); choose a file in a folder "
            "that exists and is writable, with room for it"
        ) from error


def _write_whole(data: bytes, target: Path, draft: Path) -> None:
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        replace_file(draft, target)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_checkpoint` wrote.

    Raises
    ------
    CheckpointError
        The file does not exist, is cut short, or is something else.
    """
    from safetensors import SafetensorError, safe_open

    target = Path(path)
    if not target.is_file():
        raise CheckpointError(f"{target}: no such file; save a model there first")
    try:
        with safe_open(target, framework="pt") as file:
            header = file.metadata() or {}
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        if is_netcdf(target):
            raise CheckpointError(
                f"{target}: not a whole safetensors file, but netCDF; give the model that "
                "`scisparse train` or PostProcessor.save wrote"
            ) from error
        raise CheckpointError(
            f"{target}: not a whole safetensors file ({error}); it may be cut short: copy or save "
            "it again"
        ) from error
    if header.get("format") != _FORMAT:
        raise CheckpointError(
            f"{target}: format is {header.get('format')!r} but {_FORMAT!r} is needed; save it "
            "again with PostProcessor.save of this version"
        )
    try:
        spec = json.loads(header["spec"])
    except (KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{target}: its header is damaged ({error}); save it again"
        ) from error
    return tensors, spec
