"""Patterns drawn at random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scisparse.errors import PatternError
from scisparse.grids.integers import integer
from scisparse.pattern import Pattern

__all__ = ["constant_fan_in"]

_NUMBERS_AT_ONCE = 1 << 24
_FEW = 8  # times as many sources as are drawn, at least


def constant_fan_in(
    num_sites: int, num_sources: int, fan_in: int, *, generator: torch.Generator | None = None
) -> Pattern:
    """Let every site read the same number of random sources, none twice.

    Parameters
    ----------
    num_sites, num_sources
        M and N.
    fan_in
        Sources of each site, at most N.
    generator
        Of random numbers, on the CPU; torch's own where not given.

    Raises
    ------
    PatternError
        A number is no integer or negative, or `fan_in` is larger than `num_sources`.

    References
    ----------
    Lasby, M., Golubeva, A., Evci, U., Nica, M., Ioannou, Y. (2024). Dynamic sparse training with
    structured sparsity. https://doi.org/10.48550/arXiv.2305.02299

    Examples
    --------
    >>> constant_fan_in(5, 8, 3)
    Pattern(5 sites x 8 sources, 15 edges, fan-in 3)
    """
    num_sites = integer("num_sites", num_sites, PatternError)
    num_sources = integer("num_sources", num_sources, PatternError)
    fan_in = integer("fan_in", fan_in, PatternError)
    if not 0 <= fan_in <= num_sources or num_sites < 0:
        raise PatternError(
            f"`fan_in` (={fan_in}) must lie between 0 and `num_sources` (={num_sources}), and "
            f"`num_sites` (={num_sites}) must not be negative"
        )
    dense = _FEW * fan_in >= num_sources
    draw, numbers = (_first_of_all, num_sources) if dense else (_until_distinct, fan_in)
    rows = max(1, _NUMBERS_AT_ONCE // max(1, numbers))
    nothing = torch.empty(0, dtype=torch.int32, device="cpu")
    drawn = [
        draw(min(rows, num_sites - first), num_sources, fan_in, generator)
        for first in range(0, num_sites, rows)
    ]
    col = torch.cat([nothing, *[part.flatten() for part in drawn]])
    row_ptr = torch.arange(num_sites + 1, device="cpu") * fan_in
    return Pattern(row_ptr, col, num_sources).validate()


# Sets of `count` rising numbers below `size`, each equally likely, int32 [rows, count]; on the CPU,
# where patterns lie, whatever the default device is.


def _first_of_all(rows: int, size: int, count: int, generator: torch.Generator | None) -> Tensor:
    """Places of the smallest of `size` random numbers; single precision would tie too often."""
    keys = torch.rand(rows, size, dtype=torch.float64, generator=generator, device="cpu")
    return keys.topk(count, dim=1, largest=False).indices.sort(dim=1).values.to(torch.int32)


def _until_distinct(rows: int, size: int, count: int, generator: torch.Generator | None) -> Tensor:
    """Numbers that a row has already are drawn again: few are, where `count` is small."""
    options: Any = {"generator": generator, "dtype": torch.int32, "device": "cpu"}
    drawn = torch.randint(size, (rows, count), **options).sort(dim=1).values
    left = torch.arange(rows, device="cpu")
    while True:
        part = drawn[left]
        again = part[:, 1:] == part[:, :-1]
        repeats = again.any(dim=1)
        if not bool(repeats.any()):
            return drawn
        left, part, again = left[repeats], part[repeats], again[repeats]
        part[:, 1:][again] = torch.randint(size, (int(again.sum()),), **options)
        drawn[left] = part.sort(dim=1).values
