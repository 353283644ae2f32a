# mypy: disable-error-code="assignment, no-untyped-call, no-untyped-def, untyped-decorator"
"""Triton kernels of the largest and smallest products of rows, and of what they have chosen.

Letters and tiles are those of ``triton_tiles.py``; choices count from the start of a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scisparse.kernels.graph_attention.triton_tiles import (
    SIZES,
    merge,
    own_rows,
    own_sites,
    read,
    write,
)

__all__ = ["chosen_edges", "chosen_sources", "extreme_rows"]


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
    program = tl.program_id(0)
    h = program % blocks * BH + tl.arange(0, BH)
    tile = program // blocks
    _, b, first, length, slot = own_rows(tile, row_ptr, sites, rows, INDEX, SITES, SLOTS)
    is_head = (h < H)[None, :]
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
            at = (b * sources + tl.load(col + e, inside, 0).to(INDEX))[:, None] * H + h[None, :]
            if not SHARED:
                e += b * edges
            factors = factors + (tl.load(value + e[:, None] * H + h[None, :], wanted, 0),)
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
    at = at * H + h[None, :]
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


@triton.jit(do_not_specialize=SIZES)
def chosen_sources(
    value, y, choice, row_ptr_t, col_t, tie_t, row_ptr, x, sites, sources, edges, rows, blocks,
    H: tl.constexpr, D: tl.constexpr, SHARED: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
    SITES: tl.constexpr, SLOTS: tl.constexpr, BH: tl.constexpr, UNROLL: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """``x[b,j,h] = sum over e that read j of value[b,e,h] y[b,row(e),h]`` where `e` is chosen.

    Rows here are sources, and what they gather over are the sites that read them.
    """
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    program = tl.program_id(0)
    h = program % blocks * BH + tl.arange(0, BH)
    tile = program // blocks
    _, b, first, length, slot = own_rows(tile, row_ptr_t, sources, rows, INDEX, SITES, SLOTS)
    is_head = (h < H)[None, :]
    total = tl.zeros([SITES * SLOTS, BH, BD], ACC)
    for start in range(0, tl.max(length), SLOTS * UNROLL):
        factors = ()
        terms = ()
        chosen = ()
        for u in tl.static_range(UNROLL):
            j = start + u * SLOTS + slot
            inside = j < length
            wanted = is_head & inside[:, None]
            site = tl.load(col_t + first + j, inside, 0).to(INDEX)
            e = tl.load(tie_t + first + j, inside, 0).to(INDEX)
            own = (e - tl.load(row_ptr + site, inside, 0).to(INDEX)).to(tl.int32)
            at = (b * sites + site)[:, None] * H + h[None, :]
            by = read(choice, at, wanted, D, BD, tl.int32)
            chosen = chosen + ((by == own[:, None, None]) & inside[:, None, None],)
            if not SHARED:
                e += b * edges
            factors = factors + (tl.load(value + e[:, None] * H + h[None, :], wanted, 0),)
            terms = terms + (read(y, at, wanted, D, BD, ACC),)
        for u in tl.static_range(UNROLL):
            total += tl.where(chosen[u], factors[u][:, :, None] * terms[u], 0)
    site = own_sites(tile, INDEX, SITES)
    own_row = is_head & (site < rows)
    total = merge(total, SITES, SLOTS, BH, BD)
    write(x, site * H + h[None, :], total, own_row, D, BD)


@triton.jit(do_not_specialize=SIZES)
def chosen_edges(
    y, x, choice, row_ptr, col, value, sites, sources, edges, rows, blocks,
    H: tl.constexpr, D: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
    SITES: tl.constexpr, SLOTS: tl.constexpr, BH: tl.constexpr, UNROLL: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """``value[b,e,h] = sum over d of y[b,row(e),h,d] x[b,col[e],h,d]`` where `e` is chosen."""
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    program = tl.program_id(0)
    h = program % blocks * BH + tl.arange(0, BH)
    tile = program // blocks
    row, b, first, length, slot = own_rows(tile, row_ptr, sites, rows, INDEX, SITES, SLOTS)
    is_head = (h < H)[None, :]
    own = is_head & (row < rows)[:, None]
    at_row = row[:, None] * H + h[None, :]
    left = read(y, at_row, own, D, BD, ACC)
    chosen = read(choice, at_row, own, D, BD, tl.int32)
    for start in range(0, tl.max(length), SLOTS * UNROLL):
        right = ()
        for u in tl.static_range(UNROLL):
            j = start + u * SLOTS + slot
            inside = j < length
            at = (b * sources + tl.load(col + first + j, inside, 0).to(INDEX))[:, None] * H
            right = right + (read(x, at + h[None, :], is_head & inside[:, None], D, BD, ACC),)
        for u in tl.static_range(UNROLL):
            j = start + u * SLOTS + slot
            terms = tl.where(chosen == j[:, None, None], left * right[u], 0)
            at = (b * edges + first + j)[:, None] * H + h[None, :]
            tl.store(value + at, tl.sum(terms, 2), is_head & (j < length)[:, None])
