# mypy: disable-error-code="assignment, no-untyped-call, no-untyped-def, untyped-decorator"
"""Triton kernels of ``spmm``, ``sddmm`` and softmax over rows; ``triton.py`` says which runs when.

Letters and tiles are those of ``triton_tiles.py``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scisparse.kernels.graph_attention.triton_tiles import (
    SIZES,
    merge,
    own_heads,
    own_rows,
    own_sites,
    read,
    write,
)

__all__ = ["sddmm_rows", "slope_rows", "softmax_rows", "spmm_rows"]


@triton.jit(do_not_specialize=SIZES)
def spmm_rows(
    value, x, row_ptr, col, tie, choice, first_edge, y, sites, sources, edges, rows, blocks,
    H: tl.constexpr, D: tl.constexpr, SHARED: tl.constexpr, TIED: tl.constexpr,
    CHOSEN: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
    SITES: tl.constexpr, SLOTS: tl.constexpr, BH: tl.constexpr, UNROLL: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """``y[b,i,h] = sum over e in row i of value[b,tie[e],h] x[b,col[e],h]``.

    `SHARED` values are those of all batch entries. With `CHOSEN` only edges count that ``choice``
    names, an edge for each number of what is read, which there begins with ``first_edge``.
    """
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    h, tile = own_heads(blocks, BH)
    _, b, first, length, slot = own_rows(tile, row_ptr, sites, rows, INDEX, SITES, SLOTS)
    is_head = h < H
    total = tl.zeros([SITES * SLOTS, BH, BD], ACC)
    for start in range(0, tl.max(length), SLOTS * UNROLL):
        factors = ()
        terms = ()
        chosen = ()
        for u in tl.static_range(UNROLL):
            j = start + u * SLOTS + slot
            inside = j < length
            wanted = is_head & inside[:, None]
            e = first + j
            source = tl.load(col + e, inside, 0).to(INDEX)
            at = (b * sources + source)[:, None] * H + h
            if TIED:
                e = tl.load(tie + e, inside, 0).to(INDEX)
            if CHOSEN:
                own = (e - tl.load(first_edge + source, inside, 0).to(INDEX)).to(tl.int32)
                by = read(choice, at, wanted, D, BD, tl.int32)
                chosen = chosen + ((by == own[:, None, None]) & inside[:, None, None],)
            if not SHARED:
                e += b * edges
            factors = factors + (tl.load(value + e[:, None] * H + h, wanted, 0),)
            terms = terms + (read(x, at, wanted, D, BD, ACC),)
        for u in tl.static_range(UNROLL):
            product: tl.tensor = factors[u][:, :, None] * terms[u]
            if CHOSEN:
                product = tl.where(chosen[u], product, 0)
            total += product
    site = own_sites(tile, INDEX, SITES)
    own = is_head & (site < rows)
    total = merge(total, SITES, SLOTS, BH, BD)
    write(y, site * H + h, total, own, D, BD)


@triton.jit(do_not_specialize=SIZES)
def sddmm_rows(
    x, z, row_ptr, col, tie, choice, value, sites, sources, edges, rows, blocks,
    H: tl.constexpr, D: tl.constexpr, TIED: tl.constexpr, CHOSEN: tl.constexpr,
    ACC: tl.constexpr, WIDE: tl.constexpr,
    SITES: tl.constexpr, SLOTS: tl.constexpr, BH: tl.constexpr, UNROLL: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """``value[b,tie[e],h] = x[b,row(e),h] . z[b,col[e],h]``; with `CHOSEN` over chosen numbers."""
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    h, tile = own_heads(blocks, BH)
    row, b, first, length, slot = own_rows(tile, row_ptr, sites, rows, INDEX, SITES, SLOTS)
    is_head = h < H
    own = is_head & (row < rows)[:, None]
    at_row = row[:, None] * H + h
    left = read(x, at_row, own, D, BD, ACC)
    if CHOSEN:
        chosen = read(choice, at_row, own, D, BD, tl.int32)
    for start in range(0, tl.max(length), SLOTS * UNROLL):
        right = ()
        for u in tl.static_range(UNROLL):
            j = start + u * SLOTS + slot
            inside = j < length
            at = (b * sources + tl.load(col + first + j, inside, 0).to(INDEX))[:, None] * H
            right = right + (read(z, at + h, is_head & inside[:, None], D, BD, ACC),)
        for u in tl.static_range(UNROLL):
            j = start + u * SLOTS + slot
            inside = j < length
            e = tl.load(tie + first + j, inside, 0).to(INDEX) if TIED else first + j
            at = (b * edges + e)[:, None] * H + h
            terms = left * right[u]
            if CHOSEN:
                terms = tl.where(chosen == j[:, None, None], terms, 0)
            tl.store(value + at, tl.sum(terms, 2), is_head & inside[:, None])


@triton.jit(do_not_specialize=("sites", "edges", "blocks"))
def softmax_rows(
    score, row_ptr, weight, sites, edges, blocks,
    H: tl.constexpr, WIDE: tl.constexpr, EDGES: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """Softmax over a row for `BH` heads; 0 where all scores are -infinity."""
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    at, length = _row(row_ptr, sites, edges, blocks, H, INDEX, BH)
    is_head = (tl.program_id(0) % blocks * BH + tl.arange(0, BH) < H)[None, :]
    e = tl.arange(0, EDGES)[:, None].to(INDEX)
    most = tl.full([BH], float("-inf"), score.dtype.element_ty)
    for start in range(0, length, EDGES):
        inside = is_head & (start + e < length)
        most = tl.maximum(
            most, tl.max(tl.load(score + at + (start + e) * H, inside, -float("inf")), 0)
        )
    most = tl.where(most == -float("inf"), 0, most)[None, :]
    total = tl.zeros([BH], score.dtype.element_ty)
    for start in range(0, length, EDGES):
        inside = is_head & (start + e < length)
        terms = tl.load(score + at + (start + e) * H, inside, -float("inf"))
        total += tl.sum(tl.exp(terms - most), 0)
    total = tl.where(total == 0, 1, total)[None, :]
    for start in range(0, length, EDGES):
        inside = is_head & (start + e < length)
        terms = tl.load(score + at + (start + e) * H, inside, -float("inf"))
        tl.store(weight + at + (start + e) * H, tl.exp(terms - most) / total, inside)


@triton.jit(do_not_specialize=("sites", "edges", "blocks"))
def slope_rows(
    weight, grad, row_ptr, slope, sites, edges, blocks,
    H: tl.constexpr, WIDE: tl.constexpr, EDGES: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """``slope = weight (grad - sum over the row of weight grad)``."""
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    at, length = _row(row_ptr, sites, edges, blocks, H, INDEX, BH)
    is_head = (tl.program_id(0) % blocks * BH + tl.arange(0, BH) < H)[None, :]
    e = tl.arange(0, EDGES)[:, None].to(INDEX)
    mean = tl.zeros([BH], weight.dtype.element_ty)
    for start in range(0, length, EDGES):
        inside = is_head & (start + e < length)
        terms = tl.load(weight + at + (start + e) * H, inside, 0)
        mean += tl.sum(terms * tl.load(grad + at + (start + e) * H, inside, 0), 0)
    for start in range(0, length, EDGES):
        inside = is_head & (start + e < length)
        terms = tl.load(weight + at + (start + e) * H, inside, 0)
        above = tl.load(grad + at + (start + e) * H, inside, 0) - mean[None, :]
        tl.store(slope + at + (start + e) * H, terms * above, inside)


@triton.jit
def _row(row_ptr, sites, edges, blocks, H: tl.constexpr, INDEX: tl.constexpr, BH: tl.constexpr):
    """Place of the first edge of a program's row, ``[1, BH]`` heads, and the edges of the row."""
    row = (tl.program_id(0) // blocks).to(INDEX)
    h = tl.program_id(0) % blocks * BH + tl.arange(0, BH)
    site = row % sites
    first = tl.load(row_ptr + site).to(INDEX)
    length = (tl.load(row_ptr + site + 1) - first).to(tl.int32)
    return (row // sites * edges + first) * H + h[None, :], length
