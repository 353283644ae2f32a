# mypy: disable-error-code="assignment, no-untyped-call, no-untyped-def, untyped-decorator"
"""What the Triton kernels of attention have in common: which rows are theirs, reads, writes, sums.

Letters: B batch, M sites, N sources, E edges, H heads, D width of queries and keys, V width of
values, A numbers that an edge carries.

A tile is ``[R, BH, BW]``: edges, heads and numbers. Threads lie along the numbers first, then along
the heads: what is read of a source is one contiguous piece of memory. The R edges belong to SITES
rows, SLOTS edges of each, and every slot keeps sums of its own until its row ends: in the loop
numbers change threads only along W. `UNROLL` tiles are read before the first is used. No sum
depends on the order in which programs run. `WIDE` has offsets in 64 bits.

All rows of a block of BH heads come before the next block: what they read of the sources, a part of
each, stays in the second-level cache, which all heads of them would not fit in. Rows that follow
each other share sources, and those of one program find them in the first.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "SIZES",
    "exp_below",
    "merge",
    "merge_heads",
    "own_heads",
    "own_rows",
    "own_sites",
    "read",
    "read_attr",
    "score_of",
    "write",
]

# Sizes that take part in no offset of neighbours: a value of 1 or a multiple of 16 needs no code of
# its own, and the machine code that is checked ahead of time is the code that runs.
SIZES = [
    "batch",
    "bias_batch",
    "bias_edge",
    "bias_head",
    "blocks",
    "edges",
    "rows",
    "scale",
    "sites",
    "sources",
]


@triton.jit
def own_heads(blocks, BH: tl.constexpr):
    """Heads of a program, ``[1, BH]``, and which of the tiles of rows is its own."""
    tiles = tl.num_programs(0) // blocks
    program = tl.program_id(0)
    return (program // tiles * BH + tl.arange(0, BH))[None, :], program % tiles


@triton.jit
def own_rows(
    tile, row_ptr, sites, rows,
    INDEX: tl.constexpr, SITES: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Of each of the R places: row of ``[B * M]``, batch entry, first edge, edges, and slot."""
    place = tl.arange(0, SITES * SLOTS)
    row = tile.to(INDEX) * SITES + place // SLOTS
    is_row = row < rows
    b = row // sites
    site = row - b * sites
    first = tl.load(row_ptr + site, is_row, 0)
    length = (tl.load(row_ptr + site + 1, is_row, 0) - first).to(tl.int32)
    return row, b, first.to(INDEX), length, place % SLOTS


@triton.jit
def own_sites(tile, INDEX: tl.constexpr, SITES: tl.constexpr):
    """Each row once, for what is written of it."""
    return (tile.to(INDEX) * SITES + tl.arange(0, SITES))[:, None]


@triton.jit
def read(x, at, wanted, W: tl.constexpr, BW: tl.constexpr, ACC: tl.constexpr):
    """Numbers of heads ``at [R, BH]``, each W numbers, widened: ``[R, BH, BW]``."""
    w = tl.arange(0, BW)[None, None, :]
    return tl.load(x + at[:, :, None] * W + w, wanted[:, :, None] & (w < W), 0).to(ACC)


@triton.jit
def write(x, at, values, wanted, W: tl.constexpr, BW: tl.constexpr):
    """The opposite of `read`."""
    w = tl.arange(0, BW)[None, None, :]
    values = values.to(x.dtype.element_ty)
    tl.store(x + at[:, :, None] * W + w, values, wanted[:, :, None] & (w < W))


@triton.jit
def read_attr(attr, edge, inside, A: tl.constexpr, BA: tl.constexpr, ACC: tl.constexpr):
    """What edges carry, ``[R, 1, BA]``."""
    return read(attr, edge[:, None], inside[:, None], A, BA, ACC)


@triton.jit
def score_of(
    query, key, factor, edge_query, carried, bias, at_bias, wanted,
    A: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Scores ``[R, BH]``; -infinity of what is not wanted."""
    score = factor * tl.sum(query * key, 2)
    if A > 0:
        score += tl.sum(edge_query * carried, 2)
    if BIASED:
        score += tl.load(bias + at_bias, wanted, 0)
    return tl.where(wanted, score, float("-inf"))


@triton.jit
def exp_below(score, most):
    """``exp(score - most)``; 0 where both are -infinity."""
    return tl.exp(score - tl.where(most == float("-inf"), 0.0, most))


@triton.jit
def merge(x, SITES: tl.constexpr, SLOTS: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr):
    """Sum over the slots of each row, ``[SITES, BH, BW]``."""
    return x if SLOTS == 1 else tl.sum(tl.reshape(x, [SITES, SLOTS, BH, BW]), 1)


@triton.jit
def merge_heads(x, SITES: tl.constexpr, SLOTS: tl.constexpr, BH: tl.constexpr):
    """Sum over the slots of each row, for all of them: ``[R, BH]``."""
    if SLOTS == 1:
        return x
    else:
        total = tl.sum(tl.reshape(x, [SITES, SLOTS, BH]), 1)
        spread = tl.broadcast_to(total[:, None, :], [SITES, SLOTS, BH])
        return tl.reshape(spread, [SITES * SLOTS, BH])
