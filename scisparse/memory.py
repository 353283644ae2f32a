"""Says before allocating that a pattern or a layer would not fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import torch

from scisparse.errors import MemoryLimitError

__all__ = ["available_bytes", "check_fits", "readable"]


_GROUP_OF_SELF = "/proc/self/cgroup"
_GROUPS = Path("/sys/fs/cgroup")
# Of control groups, versions 2 and 1: limit, use, and prefix of the lines of memory.stat.
_UNIFIED = ("memory.max", "memory.current", "")
_FIRST = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def available_bytes(device: torch.device) -> int | None:
    """Memory still to be had on `device`, in bytes; ``None`` when the system does not tell.

    On Linux no more than the control groups of the process allow, as of a container or a batch job.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    known = [*_of_system(), *_of_groups()]
    return max(min(known), 0) if known else None


def _of_system() -> Iterator[int]:
    try:
        yield _table("/proc/meminfo")["MemAvailable:"] * 1024
    except (OSError, KeyError):  # not Linux: total memory is the best bound that is known
        if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
            yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_groups() -> Iterator[int]:
    """What each control group that holds this process still allows.

    Layout: https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html
    """
    try:
        with open(_GROUP_OF_SELF, encoding="utf-8") as lines:
            groups = [line.rstrip("\n").split(":", 2)[1:] for line in lines]
    except OSError:  # not Linux
        return
    for controllers, path in groups:
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (_GROUPS / "memory", _FIRST) if controllers else (_GROUPS, _UNIFIED)
        # A container may see its own group as the root, whatever its path is called outside.
        for folder in {root, *(root / parts for parts in _nested(path))}:
            yield from _left_in(folder, *names)


def _nested(path: str) -> Iterator[PurePosixPath]:
    inside = PurePosixPath(path.lstrip("/"))
    yield from (inside, *inside.parents)


def _left_in(folder: Path, limit: str, used: str, prefix: str) -> Iterator[int]:
    """Limit less use, where there is a limit; pages of files count as free: they can be dropped."""
    try:
        with open(folder / limit, encoding="ascii") as most, open(folder / used, "rb") as now:
            free = int(most.read()) - int(now.read())
        pages = _table(folder / "memory.stat")
    except (OSError, ValueError):  # no such group here, or its limit is "max"
        return
    yield free + sum(pages.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))


def _table(path: str | Path) -> dict[str, int]:
    """Numbers of a file by the first word of their line."""
    with open(path, encoding="ascii") as lines:
        return {name: int(value) for name, value, *_ in map(str.split, lines)}


def check_fits(
    needed: int,
    device: torch.device,
    remedies: Callable[[], Mapping[str, int]],
    *,
    what: str = "the weights",
    otherwise: str = "use fewer channels or a coarser grid",
) -> None:
    """Raise unless `needed` bytes can be had on `device`.

    Parameters
    ----------
    needed
        Bytes.
    device
        Where they would lie.
    remedies
        Gives the bytes that other ties need, by what the user would write; those that fit are
        named. Called only when `needed` does not fit.
    what, otherwise
        What needs the bytes, and what to do where no remedy fits.

    Raises
    ------
    MemoryLimitError
        They would not fit.
    """
    available = available_bytes(device)
    if available is None or needed <= available:
        return
    fits = [f"{tie} ({readable(size)})" for tie, size in remedies().items() if size <= available]
    remedy = f"these would fit: {', '.join(fits)}" if fits else otherwise
    raise MemoryLimitError(
        f"{what} need {needed:,} bytes ({readable(needed)}) and {readable(available)} are "
        f"free on {device}; {remedy}"
    )


def readable(size: float) -> str:
    """Write a number of bytes for people.

    Examples
    --------
    >>> readable(1_650_000_000)
    '1.5 GiB'
    """
    if size < 1024:
        return f"{size:.0f} bytes"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"
