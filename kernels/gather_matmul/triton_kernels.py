# mypy: disable-error-code="assignment, no-untyped-call, no-untyped-def, untyped-decorator"
"""Triton kernels of the gather operators; ``triton.py`` says which runs when.

Letters: B batch, M sites, N sources, E edges, T weights, C channels in, O channels out. A row, all
that a site reads, is one dimension of ``fan_in * C`` numbers: number ``r`` is channel ``r % C`` of
edge ``r // C``. So every C fills its tiles, and in the plain order a row of weights is one
contiguous block ``[fan_in * C, O]``.

A tile is ``[R, O, S]``: some numbers of the rows of S sites, and outputs. Dimensions are in this
order because neighbouring threads then read neighbouring weights in both orders of storage. Each
thread multiplies its own weights and adds over ``R`` only at the end. No sum depends on the order
in which programs run. `WIDE` has offsets in 64 bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "gather_dots",
    "gather_singles",
    "gather_tiles",
    "gather_vectors",
    "outer_ties",
    "outer_tiles",
]

# Sizes that take part in no offset of neighbours: a value of 1 or a multiple of 16 needs no code of
# its own, and the machine code that is checked ahead of time is the code that runs.
SIZES = [
    "batch",
    "blocks",
    "blocks_c",
    "blocks_o",
    "groups",
    "parts",
    "sites",
    "sources",
    "weights",
]


@triton.jit
def _weights_at(t, c, C: tl.constexpr, O: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Offset of the weight of output 0; that of output o is o or, transposed, o * C further."""
    return t * (C * O) + c if TRANSPOSED else (t * C + c) * O


@triton.jit(do_not_specialize=SIZES)
def gather_tiles(
    x, weight, row_ptr, col, tie, y, sites, sources, batch, groups, blocks,
    C: tl.constexpr, O: tl.constexpr, TIED: tl.constexpr, TRANSPOSED: tl.constexpr,
    ACC: tl.constexpr, WIDE: tl.constexpr,
    S: tl.constexpr, R: tl.constexpr, BO: tl.constexpr, NB: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """``y[b,i,o] = sum over r of x[b,col[e],c] * weight[tie[e],c,o]``.

    A program does S sites, BO outputs and NB batches; `groups` programs of neighbouring batches
    and `blocks` of neighbouring outputs read the same weights one after the other.
    """
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    STEP: tl.constexpr = C if TRANSPOSED else 1
    program = tl.program_id(0)
    b0 = (program % groups) * NB
    o = (program // groups) % blocks * BO + tl.arange(0, BO)
    site = (program // (groups * blocks)).to(INDEX) * S + tl.arange(0, S)
    is_site = site < sites
    is_output = o < O
    first = tl.load(row_ptr + site, is_site, 0)
    length = ((tl.load(row_ptr + site + 1, is_site, 0) - first) * C).to(tl.int32)
    first = first.to(INDEX)
    sums = (tl.zeros([R, BO, S], ACC),)
    for _ in tl.static_range(NB - 1):
        sums = sums + (tl.zeros([R, BO, S], ACC),)
    for start in range(0, tl.max(length), R * UNROLL):
        for u in tl.static_range(UNROLL):
            r = (start + u * R + tl.arange(0, R))[:, None]
            inside = r < length
            e = first + r // C
            c = r % C
            source = tl.load(col + e, inside, 0).to(INDEX)
            if TIED:
                at = _weights_at(tl.load(tie + e, inside, 0).to(INDEX), c, C, O, TRANSPOSED)
            elif TRANSPOSED:
                at = _weights_at(e, c, C, O, TRANSPOSED)
            else:  # one contiguous block
                at = _weights_at(first, r, C, O, TRANSPOSED)
            at = at[:, None, :] + (o * STEP)[None, :, None]
            wanted = inside[:, None, :] & is_output[None, :, None]
            w = tl.load(weight + at, wanted, 0).to(ACC)
            added = ()
            for b in tl.static_range(NB):
                at_x = (tl.minimum(b0 + b, batch - 1).to(INDEX) * sources + source) * C + c
                v = tl.load(x + at_x, inside, 0).to(ACC)
                added = added + (sums[b] + v[:, None, :] * w,)
            sums = added
    for b in tl.static_range(NB):
        at_y = ((b0 + b).to(INDEX) * sites + site)[None, :] * O + o[:, None]
        is_result = is_output[:, None] & (site < tl.where(b0 + b < batch, sites, 0))[None, :]
        tl.store(y + at_y, tl.sum(sums[b], 0).to(y.dtype.element_ty), is_result)


@triton.jit(do_not_specialize=SIZES)
def gather_dots(
    x, weight, row_ptr, col, tie, y, sites, sources, batch, groups, blocks,
    C: tl.constexpr, O: tl.constexpr, TIED: tl.constexpr, TRANSPOSED: tl.constexpr,
    OPERAND: tl.constexpr, WIDE: tl.constexpr,
    R: tl.constexpr, BO: tl.constexpr, BB: tl.constexpr,
):  # fmt: skip
    """The same by matrix products ``[BB, R] @ [R, BO]``, on tensor cores for 16-bit types.

    A program does one site, BO outputs and BB batches.
    """
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    STEP: tl.constexpr = C if TRANSPOSED else 1
    program = tl.program_id(0)
    b = (program % groups) * BB + tl.arange(0, BB)
    o = (program // groups) % blocks * BO + tl.arange(0, BO)
    site = (program // (groups * blocks)).to(INDEX)
    first = tl.load(row_ptr + site)
    length = ((tl.load(row_ptr + site + 1) - first) * C).to(tl.int32)
    first = first.to(INDEX)
    is_batch = b < batch
    is_output = o < O
    total = tl.zeros([BB, BO], tl.float32)
    for start in range(0, length, R):
        r = start + tl.arange(0, R)
        inside = r < length
        e = first + r // C
        c = r % C
        source = tl.load(col + e, inside, 0).to(INDEX)
        at_x = (b.to(INDEX)[:, None] * sources + source[None, :]) * C + c[None, :]
        v = tl.load(x + at_x, is_batch[:, None] & inside[None, :], 0).to(OPERAND)
        t = tl.load(tie + e, inside, 0).to(INDEX) if TIED else e
        at = _weights_at(t, c, C, O, TRANSPOSED)[:, None] + (o * STEP)[None, :]
        w = tl.load(weight + at, inside[:, None] & is_output[None, :], 0).to(OPERAND)
        total = tl.dot(v, w, total, input_precision="ieee")
    at_y = (b.to(INDEX)[:, None] * sites + site) * O + o[None, :]
    tl.store(y + at_y, total.to(y.dtype.element_ty), is_batch[:, None] & is_output[None, :])


@triton.jit(do_not_specialize=SIZES)
def gather_vectors(
    x, weight, row_ptr, col, tie, y, sites, sources, batch, groups,
    C: tl.constexpr, TIED: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
    S: tl.constexpr, R: tl.constexpr, NB: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The same for one output (O = 1): threads read neighbouring weights and neighbouring inputs.

    Tiles are ``[S, R]``.
    """
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    program = tl.program_id(0)
    b0 = (program % groups) * NB
    site = (program // groups).to(INDEX) * S + tl.arange(0, S)
    is_site = site < sites
    first = tl.load(row_ptr + site, is_site, 0)
    length = ((tl.load(row_ptr + site + 1, is_site, 0) - first) * C).to(tl.int32)[:, None]
    first = first.to(INDEX)[:, None]
    sums = (tl.zeros([S, R], ACC),)
    for _ in tl.static_range(NB - 1):
        sums = sums + (tl.zeros([S, R], ACC),)
    for start in range(0, tl.max(length), R * UNROLL):
        for u in tl.static_range(UNROLL):
            r = (start + u * R + tl.arange(0, R))[None, :]
            inside = r < length
            e = first + r // C
            c = r % C
            source = tl.load(col + e, inside, 0).to(INDEX)
            at = tl.load(tie + e, inside, 0).to(INDEX) * C + c if TIED else first * C + r
            w = tl.load(weight + at, inside, 0).to(ACC)
            added = ()
            for b in tl.static_range(NB):
                at_x = (tl.minimum(b0 + b, batch - 1).to(INDEX) * sources + source) * C + c
                added = added + (sums[b] + tl.load(x + at_x, inside, 0).to(ACC) * w,)
            sums = added
    for b in tl.static_range(NB):
        at_y = (b0 + b).to(INDEX) * sites + site
        is_result = site < tl.where(b0 + b < batch, sites, 0)
        tl.store(y + at_y, tl.sum(sums[b], 1).to(y.dtype.element_ty), is_result)


@triton.jit(do_not_specialize=SIZES)
def gather_singles(
    x, weight, row_ptr, col, tie, y, sites, sources, batch, groups,
    TIED: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
    S: tl.constexpr, NB: tl.constexpr,
):  # fmt: skip
    """``y[b,i] = sum_e x[b,col[e]] * weight[tie[e]]`` (C = O = 1), for rows of few edges.

    Threads are sites, so that on a grid neighbouring threads read neighbouring sources.
    """
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    program = tl.program_id(0)
    b0 = (program % groups) * NB
    site = (program // groups).to(INDEX) * S + tl.arange(0, S)
    is_site = site < sites
    first = tl.load(row_ptr + site, is_site, 0)
    length = (tl.load(row_ptr + site + 1, is_site, 0) - first).to(tl.int32)
    sums = (tl.zeros([S], ACC),)
    for _ in tl.static_range(NB - 1):
        sums = sums + (tl.zeros([S], ACC),)
    for k in range(0, tl.max(length)):
        inside = k < length
        e = first.to(INDEX) + k
        source = tl.load(col + e, inside, 0).to(INDEX)
        t = tl.load(tie + e, inside, 0).to(INDEX) if TIED else e
        w = tl.load(weight + t, inside, 0).to(ACC)
        added = ()
        for b in tl.static_range(NB):
            at_x = tl.minimum(b0 + b, batch - 1).to(INDEX) * sources + source
            added = added + (sums[b] + tl.load(x + at_x, inside, 0).to(ACC) * w,)
        sums = added
    for b in tl.static_range(NB):
        at_y = (b0 + b).to(INDEX) * sites + site
        is_result = site < tl.where(b0 + b < batch, sites, 0)
        tl.store(y + at_y, sums[b].to(y.dtype.element_ty), is_result)


@triton.jit(do_not_specialize=SIZES)
def outer_tiles(
    x, grad, row_ptr, col, out, sites, sources, batch, blocks,
    C: tl.constexpr, O: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
    S: tl.constexpr, R: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """``out[e,c,o] = sum_b x[b,col[e],c] * grad[b,row(e),o]``: every edge has its own weight.

    A program does the edges of S sites and BO outputs.
    """
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    program = tl.program_id(0)
    o = program % blocks * BO + tl.arange(0, BO)
    site = (program // blocks).to(INDEX) * S + tl.arange(0, S)
    is_site = site < sites
    is_output = o < O
    first = tl.load(row_ptr + site, is_site, 0)
    length = ((tl.load(row_ptr + site + 1, is_site, 0) - first) * C).to(tl.int32)
    first = first.to(INDEX)
    wanted = is_output[:, None] & is_site[None, :]
    at_grad = site[None, :] * O + o[:, None]
    for start in range(0, tl.max(length), R):
        r = (start + tl.arange(0, R))[:, None]
        inside = r < length
        at_x = tl.load(col + first + r // C, inside, 0).to(INDEX) * C + r % C
        total = tl.zeros([R, BO, S], ACC)
        for b in range(0, batch):
            v = tl.load(x + tl.cast(b, INDEX) * sources * C + at_x, inside, 0).to(ACC)
            g = tl.load(grad + tl.cast(b, INDEX) * sites * O + at_grad, wanted, 0).to(ACC)
            total += v[:, None, :] * g[None, :, :]
        at = ((first * C + r) * O)[:, None, :] + o[None, :, None]
        is_result = inside[:, None, :] & is_output[None, :, None]
        tl.store(out + at, total.to(out.dtype.element_ty), is_result)


@triton.jit(do_not_specialize=SIZES)
def outer_ties(
    x, grad, tie_ptr, col, site, out, sites, sources, batch,
    weights, parts, blocks_c, blocks_o,
    C: tl.constexpr, O: tl.constexpr, ACC: tl.constexpr, WIDE: tl.constexpr,
    K: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
):  # fmt: skip
    """Sums ``[parts, T, C, O]`` of ``x[b,col[e],c] * grad[b,site[e],o]`` over b and tied edges.

    Edges are sorted by tie: those of weight t are ``tie_ptr[t]`` to ``tie_ptr[t + 1]``. A program
    does every `parts`-th K of them, BC inputs and BO outputs.
    """
    INDEX: tl.constexpr = tl.int64 if WIDE else tl.int32
    program = tl.program_id(0)
    o = program % blocks_o * BO + tl.arange(0, BO)
    c = (program // blocks_o) % blocks_c * BC + tl.arange(0, BC)
    group = program // (blocks_o * blocks_c)
    part = group % parts
    t = (group // parts).to(INDEX)
    is_output = o < O
    is_input = c < C
    end = tl.load(tie_ptr + t + 1)
    total = tl.zeros([K, BC, BO], ACC)
    for start in range(tl.load(tie_ptr + t) + part * K, end, parts * K):
        e = start + tl.arange(0, K)
        inside = e < end
        source = tl.load(col + e, inside, 0).to(INDEX)
        row = tl.load(site + e, inside, 0).to(INDEX)
        at_x = source[:, None] * C + c[None, :]
        at_grad = row[:, None] * O + o[None, :]
        for b in range(0, batch):
            is_x = inside[:, None] & is_input[None, :]
            is_grad = inside[:, None] & is_output[None, :]
            v = tl.load(x + tl.cast(b, INDEX) * sources * C + at_x, is_x, 0).to(ACC)
            g = tl.load(grad + tl.cast(b, INDEX) * sites * O + at_grad, is_grad, 0).to(ACC)
            total += v[:, :, None] * g[:, None, :]
    at = ((tl.cast(part, INDEX) * weights + t) * C + c[:, None]) * O + o[None, :]
    tl.store(out + at, tl.sum(total, 0), is_input[:, None] & is_output[None, :])
