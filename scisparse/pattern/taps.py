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
        self._by_tap = stable_argsort(self.tap)
        sizes = torch.bincount(self.tap, minlength=self.count)
        self._ends = [0, *sizes.cumsum(0).tolist()]
        self._map = self.site.new_full((pattern.num_sites,), -1)  # sources of one tap, for a while
        #: taps that have edges
        self.used = set(sizes.nonzero().flatten().tolist())
        #: whether no tap has two sources at a site
        self.are_maps = not any(
            bool((self.site[edges].diff() == 0).any()) for edges in map(self.edges, self.used)
        )

    def edges(self, tap: int) -> Tensor:
        """Edges of a tap, by site."""
        return self._by_tap[self._ends[tap] : self._ends[tap + 1]]

    def compare(self, tap: int, other: _Taps, other_tap: int) -> tuple[bool, bool]:
        """Whether a tap of each read the same source at some site, and different ones at some."""
        own, edges = self.edges(tap), other.edges(other_tap)
        self._map[self.site[own]] = self.source[own]
        here, there = self._map[other.site[edges]], other.source[edges]
        self._map[self.site[own]] = -1
        return bool((here == there).any()), bool(((here >= 0) & (here != there)).any())


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
    both = {tap: known.compare(tap, own, tap) for tap in own.used & known.used}
    stays = {tap for tap, (agree, clash) in both.items() if agree and not clash}
    clashing = {tap for tap, (_, clash) in both.items() if clash}
    if stays and not clashing:  # numbered alike: where sources repeat, taps would find others
        return pattern.tap
    found = _same_taps(own, known, own.used - stays, stays)
    if not found:  # other labels than places of a stencil, or another stencil
        return pattern.tap
    number, new = torch.arange(own.count, device=pattern.device), max(known.count, own.count)
    for tap in sorted({*clashing, *found}):
        number[tap] = found.get(tap, new)
        new += tap not in found
    return number[own.tap].to(torch.int32)


def _same_taps(own: _Taps, known: _Taps, taps: set[int], taken: set[int]) -> dict[int, int]:
    """Numbers in `known`, but for those taken, of some taps of `own`, where it has them."""
    sources = 1 + max(int(t.source.max()) if t.source.numel() else 0 for t in (own, known))
    pairs = known.site * sources + known.source  # rising, as edges are sorted
    found: dict[int, int] = {}
    for tap in sorted(taps):
        edges = own.edges(tap)
        wanted = own.site[edges] * sources + own.source[edges]
        place = torch.searchsorted(pairs, wanted)
        others: set[int] = set()
        while place.numel():  # through all edges between these points
            place, wanted = place[place < pairs.numel()], wanted[place < pairs.numel()]
            same = pairs[place] == wanted
            place, wanted = place[same], wanted[same]
            others |= set(torch.bincount(known.tap[place]).nonzero().flatten().tolist())
            place = place + 1
        for other in sorted(others - taken):
            if not known.compare(other, own, tap)[1]:
                found[tap] = other
                taken = taken | {other}
                break
    return found
