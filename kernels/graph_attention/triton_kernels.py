# mypy: disable-error-code="assignment, no-untyped-call, no-untyped-def, untyped-decorator"
"""Triton kernels of attention over edges; ``triton.py`` says which runs when.

Letters and tiles are those of ``triton_tiles.py``. `GROUP` heads of a site read one of a source.
"""

from __future__ import annotations

import triton
import triton.language as tl

from scisparse.kernels.graph_attention.triton_tiles import (
    SIZES,
    exp_below,
    merge,
    merge_heads,
    own_heads,
    own_rows,
    own_sites,
    read,
    read_attr,
    score_of,
    write,
)

__all__ = ["attention_edges", "attention_rows", "attention_sites", "attention_sources"]


@triton.jit(do_not_specialize=SIZES)
def attention_rows(
    q, k, v, edge_q, attr, bias, row_ptr, col, out, edge_out, lse,
    scale: tl.float64, sites, sources, rows, blocks, bias_batch, bias_edge, bias_head,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, V: tl.constexpr, A: tl.constexpr,
    BIASED: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
    SITES: tl.constexpr, SLOTS: tl.constexpr, BH: tl.constexpr, UNROLL: tl.constexpr,
    BD: tl.constexpr, BV: tl.constexpr, BA: tl.constexpr,
):  # fmt: skip
    """Softmax of the scores of a row times its values, in one pass; log of the denominators.

    A program does SITES rows and BH heads. Every slot has a running maximum of its own.
    """
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    R: tl.constexpr = SITES * SLOTS
    h, tile = own_heads(blocks, BH)
    row, b, first, length, slot = own_rows(tile, row_ptr, sites, rows, INDEX, SITES, SLOTS)
    own = (h < H) & (row < rows)[:, None]
    query = read(q, row[:, None] * H + h, own, D, BD, ACC)
    edge_query = read(edge_q, row[:, None] * H + h, own, A, BA, ACC) if A > 0 else query
    factor = tl.full([], scale, ACC)
    most = tl.full([R, BH], float("-inf"), ACC)
    total = tl.zeros([R, BH], ACC)
    sums = tl.zeros([R, BH, BV], ACC)
    edge_sums = tl.zeros([R, BH, BA], ACC)
    for start in range(0, tl.max(length), SLOTS * UNROLL):
        keys = ()
        values = ()
        carried = ()
        for u in tl.static_range(UNROLL):
            j = start + u * SLOTS + slot
            source = b * sources + tl.load(col + first + j, j < length, 0).to(INDEX)
            at = source[:, None] * (H // GROUP) + h // GROUP
            wanted = (h < H) & (j < length)[:, None]
            keys = keys + (read(k, at, wanted, D, BD, ACC),)
            values = values + (read(v, at, wanted, V, BV, ACC),)
            if A > 0:
                carried = carried + (read_attr(attr, first + j, j < length, A, BA, ACC),)
            else:
                carried = carried + (0,)
        scores = ()
        largest = most
        for u in tl.static_range(UNROLL):
            j = start + u * SLOTS + slot
            wanted = (h < H) & (j < length)[:, None]
            at = (b * bias_batch + (first + j) * bias_edge)[:, None] + h * bias_head
            score = score_of(
                query, keys[u], factor, edge_query, carried[u], bias, at, wanted, A, BIASED
            )  # fmt: skip
            scores = scores + (score,)
            largest = tl.maximum(largest, score)
        shrink = exp_below(most, largest)
        most = largest
        total *= shrink
        sums *= shrink[:, :, None]
        edge_sums *= shrink[:, :, None]
        for u in tl.static_range(UNROLL):
            weight = exp_below(scores[u], most)
            total += weight
            sums += weight[:, :, None] * values[u]
            if A > 0:
                edge_sums += weight[:, :, None] * carried[u]
    if SLOTS > 1:
        slots = tl.reshape(most, [SITES, SLOTS, BH])
        most = tl.max(slots, 1)
        share = tl.reshape(exp_below(slots, most[:, None, :]), [R, BH])
        total = tl.sum(tl.reshape(total * share, [SITES, SLOTS, BH]), 1)
        sums = merge(sums * share[:, :, None], SITES, SLOTS, BH, BV)
        edge_sums = merge(edge_sums * share[:, :, None], SITES, SLOTS, BH, BA)
    site = own_sites(tile, INDEX, SITES)
    own = (h < H) & (site < rows)
    divisor = tl.where(total == 0, 1.0, total)
    write(out, site * H + h, sums / divisor[:, :, None], own, V, BV)
    if A > 0:
        write(edge_out, site * H + h, edge_sums / divisor[:, :, None], own, A, BA)
    log = tl.where(most == float("-inf"), 0.0, most) + tl.log(divisor)
    tl.store(lse + site * H + h, tl.where(total == 0, float("-inf"), log), own)


@triton.jit
def _pair(b, h, e, edges, H: tl.constexpr):
    """Where the pair of numbers of an edge and a head is, ``[R, BH]``: in ``pairs_shape``.

    Up to 4 heads of an edge lie in one sector, and all edges of these before the next heads.
    """
    P: tl.constexpr = 4 if H % 4 == 0 else (2 if H % 2 == 0 else 1)
    return 2 * (b * edges * H + e * P) + 2 * (h // P * edges * P + h % P)


@triton.jit
def _both(b, h, e, edges, H: tl.constexpr):
    """Where both numbers of the pairs of R edges are, ``[R, BH, 2]``."""
    at = _pair(b[:, None], h, e[:, None], edges, H)
    return at[:, :, None] + tl.arange(0, 2)[None, None, :]


@triton.jit
def _normalise(
    space, b, h, first, edges, length, slot, inverse, mean,
    H: tl.constexpr, SLOTS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Make weights and slopes of the ``p`` and ``dp`` that threads have left in `space`."""
    tl.debug_barrier()  # they may be other threads
    for start in range(0, tl.max(length), SLOTS * UNROLL):
        made = ()
        for u in tl.static_range(UNROLL):
            j = start + u * SLOTS + slot
            wanted = (h < H) & (j < length)[:, None]
            at = _both(b, h, first + j, edges, H)
            weight, slope = tl.split(tl.load(space + at, wanted[:, :, None], 0))
            weight *= inverse
            made = made + (tl.join(weight, weight * (slope - mean)),)
        tl.debug_barrier()  # all have read
        for u in tl.static_range(UNROLL):
            j = start + u * SLOTS + slot
            wanted = (h < H) & (j < length)[:, None]
            at = _both(b, h, first + j, edges, H)
            tl.store(space + at, made[u], wanted[:, :, None])


@triton.jit(do_not_specialize=SIZES)
def attention_sites(
    grad, grad_edge, lse, q, k, v, edge_q, attr, bias, row_ptr, col,
    grad_q, grad_edge_q, space,
    scale: tl.float64, sites, sources, edges, rows, blocks, bias_batch, bias_edge, bias_head,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, V: tl.constexpr, A: tl.constexpr,
    BIASED: tl.constexpr, CARRIED: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
    SITES: tl.constexpr, SLOTS: tl.constexpr, BH: tl.constexpr, UNROLL: tl.constexpr,
    BD: tl.constexpr, BV: tl.constexpr, BA: tl.constexpr,
):  # fmt: skip
    """Gradients of the queries; weight ``p`` and slope ``p (dp - mean)`` of all edges, in `space`.

    ``sum p (dp - mean) k`` is kept as sums of ``p dp k`` and of ``p k``: keys are read once. The
    edges hold ``p`` and ``dp`` until ``mean = sum p dp`` is known. `CARRIED`: with `grad_edge`.
    """
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    R: tl.constexpr = SITES * SLOTS
    h, tile = own_heads(blocks, BH)
    row, b, first, length, slot = own_rows(tile, row_ptr, sites, rows, INDEX, SITES, SLOTS)
    own = (h < H) & (row < rows)[:, None]
    at = row[:, None] * H + h
    query = read(q, at, own, D, BD, ACC)
    slope_out = read(grad, at, own, V, BV, ACC)
    edge_query = read(edge_q, at, own, A, BA, ACC) if A > 0 else query
    slope_edge = read(grad_edge, at, own, A, BA, ACC) if CARRIED else query
    level = tl.load(lse + at, own, 0)
    level = tl.where(level == float("-inf"), 0.0, level)
    factor = tl.full([], scale, ACC)
    total = tl.zeros([R, BH], ACC)
    mean = tl.zeros([R, BH], ACC)
    sums = tl.zeros([R, BH, BD], ACC)
    sloped = tl.zeros([R, BH, BD], ACC)
    edge_sums = tl.zeros([R, BH, BA], ACC)
    edge_sloped = tl.zeros([R, BH, BA], ACC)
    for start in range(0, tl.max(length), SLOTS * UNROLL):
        keys = ()
        values = ()
        for u in tl.static_range(UNROLL):
            j = start + u * SLOTS + slot
            source = b * sources + tl.load(col + first + j, j < length, 0).to(INDEX)
            at = source[:, None] * (H // GROUP) + h // GROUP
            wanted = (h < H) & (j < length)[:, None]
            keys = keys + (read(k, at, wanted, D, BD, ACC),)
            values = values + (read(v, at, wanted, V, BV, ACC),)
        for u in tl.static_range(UNROLL):
            j = start + u * SLOTS + slot
            wanted = (h < H) & (j < length)[:, None]
            carried = read_attr(attr, first + j, j < length, A, BA, ACC) if A > 0 else query
            at = (b * bias_batch + (first + j) * bias_edge)[:, None] + h * bias_head
            score = score_of(
                query, keys[u], factor, edge_query, carried, bias, at, wanted, A, BIASED
            )  # fmt: skip
            slope = tl.sum(slope_out * values[u], 2)
            if CARRIED:
                slope += tl.sum(slope_edge * carried, 2)
            # Another order of sums than in the forward pass may put a score above its logarithm.
            above = score - level
            weight = tl.where(wanted, tl.exp(tl.where(above > 60, 60.0, above)), 0.0)
            pair = tl.join(weight, slope)
            tl.store(space + _both(b, h, first + j, edges, H), pair, wanted[:, :, None])
            total += weight
            mean += weight * slope
            sums += weight[:, :, None] * keys[u]
            sloped += (weight * slope)[:, :, None] * keys[u]
            if A > 0:
                edge_sums += weight[:, :, None] * carried
                edge_sloped += (weight * slope)[:, :, None] * carried
    total = merge_heads(total, SITES, SLOTS, BH)
    inverse = 1 / tl.where(total == 0, 1.0, total)
    mean = merge_heads(mean, SITES, SLOTS, BH) * inverse
    site = own_sites(tile, INDEX, SITES)
    own = (h < H) & (site < rows)
    sums = (sloped - mean[:, :, None] * sums) * (factor * inverse)[:, :, None]
    write(grad_q, site * H + h, merge(sums, SITES, SLOTS, BH, BD), own, D, BD)
    if A > 0:
        sums = (edge_sloped - mean[:, :, None] * edge_sums) * inverse[:, :, None]
        write(grad_edge_q, site * H + h, merge(sums, SITES, SLOTS, BH, BA), own, A, BA)
    _normalise(space, b, h, first, edges, length, slot, inverse, mean, H, SLOTS, UNROLL)


@triton.jit(do_not_specialize=SIZES)
def attention_sources(
    space, q, grad, row_ptr, col, tie, grad_k, grad_v,
    scale: tl.float64, sites, sources, edges, rows, blocks,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
    ACC: tl.constexpr, WIDE: tl.constexpr,
    SITES: tl.constexpr, SLOTS: tl.constexpr, BH: tl.constexpr, UNROLL: tl.constexpr,
    BD: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values: sums over the sites that read a source, and over its heads.

    Here rows are sources, as many as `sites`, and read what there are `sources` of; BH of their
    heads each are the sum of GROUP heads.
    """
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    R: tl.constexpr = SITES * SLOTS
    G: tl.constexpr = H // GROUP
    g, tile = own_heads(blocks, BH)
    _, b, first, length, slot = own_rows(tile, row_ptr, sites, rows, INDEX, SITES, SLOTS)
    is_head = g < G
    key = tl.zeros([R, BH, BD], ACC)
    value = tl.zeros([R, BH, BV], ACC)
    for r in range(0, GROUP):
        h = g * GROUP + r
        for start in range(0, tl.max(length), SLOTS * UNROLL):
            terms = ()
            for u in tl.static_range(UNROLL):
                j = start + u * SLOTS + slot
                inside = j < length
                wanted = is_head & inside[:, None]
                place = tl.load(tie + first + j, inside, 0).to(INDEX)
                at = (b * sources + tl.load(col + first + j, inside, 0).to(INDEX))[:, None] * H + h
                pair = _pair(b[:, None], h, place[:, None], edges, H)
                slope = tl.load(space + pair + 1, wanted, 0)[:, :, None]
                weight = tl.load(space + pair, wanted, 0)[:, :, None]
                terms = terms + ((slope, read(q, at, wanted, D, BD, ACC)),)
                terms = terms + ((weight, read(grad, at, wanted, V, BV, ACC)),)
            for u in tl.static_range(UNROLL):
                key += terms[2 * u][0] * terms[2 * u][1]
                value += terms[2 * u + 1][0] * terms[2 * u + 1][1]
    site = own_sites(tile, INDEX, SITES)
    at = site * G + g
    own = is_head & (site < rows)
    factor = tl.full([], scale, ACC)
    write(grad_k, at, merge(key, SITES, SLOTS, BH, BD) * factor, own, D, BD)
    write(grad_v, at, merge(value, SITES, SLOTS, BH, BV), own, V, BV)


@triton.jit(do_not_specialize=SIZES)
def attention_edges(
    space, edge_q, grad_edge, site, out, batch, sites, edges,
    H: tl.constexpr, A: tl.constexpr, CARRIED: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
    K: tl.constexpr, BH: tl.constexpr, BA: tl.constexpr,
):  # fmt: skip
    """Gradient of what edges carry: ``sum over b and h of slope edge_q + weight grad_edge``.

    A program does K edges.
    """
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    edge = tl.program_id(0).to(INDEX) * K + tl.arange(0, K)
    inside = edge < edges
    row = tl.load(site + edge, inside, 0).to(INDEX)
    total = tl.zeros([K, BH, BA], ACC)
    for b in range(0, batch):
        for block in range(0, H, BH):
            h = block + tl.arange(0, BH)[None, :]
            wanted = inside[:, None] & (h < H)
            at = (tl.cast(b, INDEX) * sites + row)[:, None] * H + h
            pair = _pair(tl.cast(b, INDEX), h, edge[:, None], edges, H)
            slope = tl.load(space + pair + 1, wanted, 0)
            total += slope[:, :, None] * read(edge_q, at, wanted, A, BA, ACC)
            if CARRIED:
                weight = tl.load(space + pair, wanted, 0)
                total += weight[:, :, None] * read(grad_edge, at, wanted, A, BA, ACC)
    a = tl.arange(0, BA)[None, :]
    tl.store(out + edge[:, None] * A + a, tl.sum(total, 1), inside[:, None] & (a < A))
