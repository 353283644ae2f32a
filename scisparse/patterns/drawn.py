"""Patterns drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor

from scisparse.errors import PatternError
from scisparse.grids.integers import integer
from scisparse.pattern import Pattern

__all__ = ["constant_fan_in", "draw_without_repetition"]

_NUMBERS_AT_ONCE = 1 << 24


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
    rows = max(1, _NUMBERS_AT_ONCE // max(1, num_sources))
    nothing = torch.empty(0, dtype=torch.int32, device="cpu")
    drawn = [
        draw_without_repetition(min(rows, num_sites - first), num_sources, fan_in, generator)
        for first in range(0, num_sites, rows)
    ]
    col = torch.cat([nothing, *[part.flatten() for part in drawn]])
    row_ptr = torch.arange(num_sites + 1, device="cpu") * fan_in
    return Pattern(row_ptr, col.to(torch.int32), num_sources).validate()


def draw_without_repetition(
    rows: int, size: int, count: int, generator: torch.Generator | None
) -> Tensor:
    """Sets of `count` rising numbers below `size`, int32 ``[rows, count]``."""
    # Places of the smallest of random numbers are such a set; single precision would tie too often.
    # On the CPU, where patterns lie, whatever the default device is.
    keys = torch.rand(rows, size, dtype=torch.float64, generator=generator, device="cpu")
    return keys.topk(count, dim=1, largest=False).indices.sort(dim=1).values.to(torch.int32)
