"""Times that differ by rounding, and how to bring them to the same stamps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scisparse.errors import DataError

__all__ = ["check_near"]

# Share of the smallest step: nearer times are one time, written in two ways.
_NEAR = 0.1
# Single times have no step: of an hour in seconds, and of the value where they are numbers.
_HOUR, _SHARE = 3600.0, 1e-6
_Rounding = tuple[str, Callable[[Any], Any]]


def check_near(first: Any, second: Any, dims: Sequence[str | None], names: tuple[str, str]) -> None:
    """Raise when times nearly match.

    Parameters
    ----------
    first, second
        Indexes of one kind.
    dims, names
        Names of their dims, and of what has them, for errors.

    Raises
    ------
    DataError
        Times are less than a tenth of the smallest step apart and not equal; of two single times,
        of an hour.
    """
    equal = first.isin(second)
    if equal.all() or first.hasnans or second.hasnans or second.empty:
        return
    dates = hasattr(first, "calendar") or first.dtype.kind == "M"
    if not dates and first.dtype.kind not in "iuf":
        return
    start = second[0]
    ours, theirs = _since(first, start), np.sort(_since(second, start))
    steps = np.concatenate([np.diff(np.unique(times)) for times in (ours, theirs)])
    alone = _NEAR * _HOUR if dates else _SHARE * abs(start)
    after = np.searchsorted(theirs, ours).clip(1, max(len(theirs) - 1, 1))
    nearest = np.stack([theirs[after - 1], theirs[after.clip(max=len(theirs) - 1)]])
    distance = np.abs(nearest - ours).min(0)
    near = ~equal & (distance < (_NEAR * steps.min() if steps.size else alone))
    if not near.any():
        return
    one = first[int(np.argmax(near))]
    other = second[int(np.abs(_since(second, start) - _since(first[near][:1], start)).argmin())]
    remedy = _remedy(first, second, near, dims, names)
    raise DataError(
        f"{near.sum()} of {len(first)} times of {names[0]} nearly match a time of {names[1]}, such "
        f"as {one} and {other}, and {equal.sum()} match; {remedy}"
    )


def _remedy(
    first: Any,
    second: Any,
    near: NDArray[np.bool_],
    dims: Sequence[str | None],
    names: tuple[str, str],
) -> str:
    """Write how both get the same stamps: by the finest rounding that makes near times equal."""
    ours, theirs = (name.removeprefix("the ") for name in names)
    for text, rounded in _roundings(first):
        both = rounded(first), rounded(second)
        merged = any(b.nunique() < i.nunique() for b, i in zip(both, (first, second), strict=True))
        if both[0][near].isin(both[1]).all() and not merged:
            calls = [
                f"{data}.assign_coords({dim}={text.format(data=data, dim=dim)})"
                for data, dim in zip((ours, theirs), dims, strict=True)
            ]
            return f"round both to the same stamps: {' and '.join(calls)}"
    if len(first) == len(second) and near.all():
        return (
            f"give both the same stamps: {theirs}.sortby({dims[1]!r}).assign_coords({dims[1]}="
            f"{ours}[{dims[0]!r}].sortby({dims[0]!r}).values)"
        )
    return f"give both the same stamps, with {theirs}.assign_coords({dims[1]}=...)"


def _roundings(index: Any) -> Iterator[_Rounding]:
    """Ways to round times, the finest first: as an expression, and as a function of an index."""
    if not hasattr(index, "calendar") and index.dtype.kind != "M":
        for digits in range(9, -1, -1):
            yield f"{{data}}[{{dim!r}}].round({digits})", partial(_round_numbers, digits=digits)
        return
    for method, unit in (*(("round", u) for u in ("s", "min", "h", "D")), ("floor", "D")):
        text = f"{{data}}[{{dim!r}}].dt.{method}({unit!r})"
        yield text, partial(_call, method=method, unit=unit)
    if index.dtype.kind == "M":
        text = "{data}.indexes[{dim!r}].to_period('M').to_timestamp()"
        yield text, lambda index: index.to_period("M").to_timestamp()


def _round_numbers(index: Any, digits: int) -> Any:
    return type(index)(np.round(index.to_numpy(), digits))


def _call(index: Any, method: str, unit: str) -> Any:
    return getattr(index, method)(unit)


def _since(index: Any, start: Any) -> NDArray[np.float64]:
    """Times since `start`, in seconds where they are dates."""
    elapsed = np.asarray(index - start)
    if elapsed.dtype.kind == "m":
        elapsed = elapsed / np.timedelta64(1, "s")
    return elapsed.astype(np.float64)
