"""Says before allocating that a pattern or a layer would not fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch

from scisparse.errors import MemoryLimitError

__all__ = ["available_bytes", "check_fits", "readable"]


def available_bytes(device: torch.device) -> int | None:
    """Memory still to be had on `device`, in bytes; ``None`` when the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # not Linux: total memory is the best bound that is known
        names = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" not in names:
            return None
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


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
