"""How far a pattern reaches when it is applied again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scisparse.errors import PatternError
from scisparse.grids.integers import integer_from

if TYPE_CHECKING:
    from scisparse.pattern.value import Pattern

__all__ = ["coverage"]

_NUMBERS_AT_ONCE = 1 << 24


def coverage(pattern: Pattern, hops: int, samples: int, seed: int) -> float:
    """Find the part of all pairs within some hops; see ``Pattern.coverage``."""
    hops = integer_from("hops", hops, 1, PatternError)
    samples = integer_from("samples", samples, 1, PatternError)
    sites, sources = pattern.shape
    if hops > 1 and sites != sources:
        raise PatternError(
            f"more than one hop (`hops`={hops}) needs sites that are sources too; the pattern has "
            f"{sites} and {sources}"
        )
    if not sites or not sources:
        return 0.0
    if hops == 1:
        pairs = pattern.num_edges - pattern.statistics()["duplicates"]
        return pairs / (sites * sources)
    row, col = pattern.rows().cpu(), pattern.col.long().cpu()
    chosen = torch.arange(sites, device="cpu")
    if samples < sites:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(sites, generator=generator, device="cpu")[:samples]
    count = 0
    for part in chosen.split(max(1, _NUMBERS_AT_ONCE // max(1, pattern.num_edges))):
        reached = row.new_zeros(len(part), sites, dtype=torch.bool)
        reached.scatter_(1, part[:, None], True)
        read = torch.zeros_like(reached)
        for _ in range(hops):
            follows = row.new_zeros(len(part), sites, dtype=torch.int32)
            follows.index_add_(1, col, reached[:, row].int())
            read |= follows.bool()
            reached = read
        count += int(read.sum())
    return count / (len(chosen) * sources)
