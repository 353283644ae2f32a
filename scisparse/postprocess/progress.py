"""A progress bar."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

__all__ = ["track"]

T = TypeVar("T")


def track(steps: Sequence[T], what: str, *, show: bool) -> Iterable[T]:
    """Give `steps` one by one, with a progress bar on standard error when `show`."""
    if not show:
        return steps
    from rich.console import Console
    from rich.progress import track as rich_track

    return rich_track(steps, what, console=Console(stderr=True), transient=True)
