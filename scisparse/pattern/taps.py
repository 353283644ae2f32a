"""Taps of two patterns that are the same place of a stencil under different numbers.

A tap is a map from sites to sources: the middle of a window of 3 x 3 and that of one of 5 x 5 read
the same source everywhere, though one is tap 4 and the other tap 12. Two taps are the same if they
read a common source at some site, and never different ones. So no window needs to be known: masks,
poles and edges that have been pruned or moved do not matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scisparse.pattern.edges import stable_argsort

if TYPE_CHECKING:
    from scisparse.pattern.value import Pattern

__all__ = ["taps_as_in"]


class _Taps:
    """Taps of a pattern as maps from sites to sources."""

    def __init__(self, pattern: Pattern, tap: Tensor) -> None:
        self.site, self.source, self.tap = pattern.rows(), pattern.col.long(), tap.long()
        self.count = pattern.num_taps
        key = self.site * self.count + self.tap
        self._order = stable_argsort(key)
        self._key = key[self._order]
        #: whether no tap has two sources at a site
        self.are_maps = not bool((self._key.diff() == 0).any())

    def source_of(self, site: Tensor, tap: Tensor) -> Tensor:
        """Source of taps at sites, int64 ``[n]``; -1 where there is none."""
        if not self._key.numel():
            return torch.full_like(site, -1)
        key = torch.where(tap < self.count, site * self.count + tap, -1)
        place = torch.searchsorted(self._key, key).clamp(max=self._key.numel() - 1)
        source = self.source[self._order[place]]
        return torch.where(self._key[place] == key, source, -1)

    def differs(self, other: _Taps, edges: Tensor, tap: int) -> bool:
        """Whether a tap reads another source than `other` does on some of these edges."""
        here = self.source_of(other.site[edges], torch.full_like(edges, tap))
        return bool(((here >= 0) & (here != other.source[edges])).any())


def taps_as_in(pattern: Pattern, like: Pattern) -> Tensor | None:
    """Number the taps of a pattern as another over the same points numbers them.

    Parameters
    ----------
    pattern, like
        With taps, or without.

    Returns
    -------
    Tensor | None
        Tap of each edge of `pattern`, int32 ``[E]``: as they are, unless some tap is found under
        another number in `like`; then what `like` does not have is numbered after its taps.

    Examples
    --------
    >>> from scisparse.patterns import window
    >>> taps = taps_as_in(window((9,), 3), window((9,), 5))
    >>> taps[2:5].tolist()
    [1, 2, 3]
    """
    if pattern.tap is None or like.tap is None:
        return pattern.tap
    own, known = _Taps(pattern, pattern.tap), _Taps(like, like.tap.to(pattern.device))
    if not own.are_maps or not known.are_maps:
        return pattern.tap
    here = known.source_of(own.site, own.tap)
    agrees, clash = here == own.source, here >= 0
    clash &= ~agrees
    used, agree, clashing = (_among(own.tap[t], own.count) for t in (slice(None), agrees, clash))
    stays = agree - clashing
    found = _same_taps(own, known, used - stays, stays)
    if not found:  # other labels than places of a stencil, or another stencil
        return pattern.tap
    number, new = torch.arange(own.count, device=pattern.device), max(known.count, own.count)
    for tap in sorted({*clashing, *found}):
        number[tap] = found.get(tap, new)
        new += tap not in found
    return number[own.tap].to(torch.int32)


def _among(taps: Tensor, count: int) -> set[int]:
    """Which of `count` taps there are."""
    return set(torch.bincount(taps, minlength=count).nonzero().squeeze(1).tolist())


def _same_taps(own: _Taps, known: _Taps, taps: set[int], taken: set[int]) -> dict[int, int]:
    """Numbers in `known`, but for those taken, of some taps of `own`, where it has them."""
    sources = 1 + max(int(t.source.max()) if t.source.numel() else 0 for t in (own, known))
    pairs = known.site * sources + known.source  # rising, as edges are sorted
    found: dict[int, int] = {}
    for tap in sorted(taps):
        edges = (own.tap == tap).nonzero().squeeze(1)
        wanted = own.site[edges] * sources + own.source[edges]
        place = torch.searchsorted(pairs, wanted)
        others: set[int] = set()
        while place.numel():  # through all edges between these points
            place, wanted = place[place < pairs.numel()], wanted[place < pairs.numel()]
            same = pairs[place] == wanted
            place, wanted = place[same], wanted[same]
            others |= _among(known.tap[place], known.count)
            place = place + 1
        for other in sorted(others - taken):
            if not known.differs(own, edges, other):
                found[tap] = other
                taken = taken | {other}
                break
    return found
