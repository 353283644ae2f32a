# mypy: disable-error-code="assignment, no-untyped-call, no-untyped-def, untyped-decorator"
"""Triton kernel of the largest and smallest products of rows.

Letters and tiles are those of ``triton_tiles.py``; choices count from the start of a row. What is
made of a choice is a sum over the edges that were chosen, in ``triton_products.py``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scisparse.kernels.graph_attention.triton_tiles import (
    SIZES,
    own_heads,
    own_rows,
    own_sites,
    read,
    write,
)

__all__ = ["extreme_rows"]


@triton.jit(do_not_specialize=SIZES)
def extreme_rows(
    value, x, row_ptr, col, y, choice, sites, sources, edges, rows, blocks,
    H: tl.constexpr, D: tl.constexpr, SHARED: tl.constexpr, SMALLEST: tl.constexpr,
    ACC: tl.constexpr, WIDE: tl.constexpr,
    SITES: tl.constexpr, SLOTS: tl.constexpr, BH: tl.constexpr, UNROLL: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """``y[b,i,h] = best over e in row i of value[b,e,h] x[b,col[e],h]``, and which edge has it.

    Every slot keeps its first best; the best of the slots is the first of those, or the first NaN.
    """
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    NONE: tl.constexpr = 2147483647
    h, tile = own_heads(blocks, BH)
    _, b, first, length, slot = own_rows(tile, row_ptr, sites, rows, INDEX, SITES, SLOTS)
    is_head = h < H
    best = tl.full([SITES * SLOTS, BH, BD], float("-inf"), ACC)
    place = tl.full([SITES * SLOTS, BH, BD], NONE, tl.int32)
    for start in range(0, tl.max(length), SLOTS * UNROLL):
        factors = ()
        terms = ()
        for u in tl.static_range(UNROLL):
            j = start + u * SLOTS + slot
            inside = j < length
            wanted = is_head & inside[:, None]
            e = first + j
            at = (b * sources + tl.load(col + e, inside, 0).to(INDEX))[:, None] * H + h
            if not SHARED:
                e += b * edges
            factors = factors + (tl.load(value + e[:, None] * H + h, wanted, 0),)
            terms = terms + (read(x, at, wanted, D, BD, ACC),)
        for u in tl.static_range(UNROLL):
            j = (start + u * SLOTS + slot)[:, None, None]
            term: tl.tensor = factors[u][:, :, None] * terms[u]
            if SMALLEST:
                term = -term
            better = (term > best) | (place == NONE) | ((term != term) & (best == best))
            better = better & (j < length[:, None, None])
            best = tl.where(better, term, best)
            place = tl.where(better, j, place)
    best, place = _first_best(best, place, SITES, SLOTS, BH, BD)
    nothing = place == NONE
    if SMALLEST:
        best = -best
    at = own_sites(tile, INDEX, SITES)
    own = is_head & (at < rows)
    at = at * H + h
    write(y, at, tl.where(nothing, 0, best), own, D, BD)
    write(choice, at, tl.where(nothing, -1, place), own, D, BD)


@triton.jit
def _first_best(
    best, place, SITES: tl.constexpr, SLOTS: tl.constexpr, BH: tl.constexpr, BD: tl.constexpr
):
    """Of the slots of each row, the largest number and the first place that has it."""
    if SLOTS == 1:
        return best, place
    else:
        best = tl.reshape(best, [SITES, SLOTS, BH, BD])
        place = tl.reshape(place, [SITES, SLOTS, BH, BD])
        nan = best != best
        most = tl.max(tl.where(nan, float("-inf"), best), 1)
        any_nan = tl.max(nan.to(tl.int32), 1) > 0
        equal = best == tl.broadcast_to(most[:, None], [SITES, SLOTS, BH, BD])
        among = tl.where(tl.broadcast_to(any_nan[:, None], [SITES, SLOTS, BH, BD]), nan, equal)
        place = tl.min(tl.where(among, place, 2147483647), 1)
        return tl.where(any_nan, float("nan"), most), place
