"""Patterns of tokens that are chosen from their queries and keys, for each batch entry and head.

The edges of all batch entries and heads lie side by side in one pattern: token ``i`` of head ``g``
of batch entry ``b`` is site and source ``(b * G + g) * N + i``, with N tokens and G heads, and
reads tokens of the same batch entry and head alone.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scisparse.errors import OptionError, ShapeError
from scisparse.grids.integers import integer_from
from scisparse.pattern import Pattern
from scisparse.pattern.edges import index_dtype, row_ptr_of_fan_in
from scisparse.patterns.sequences import sorted_rows

__all__ = ["block_topk", "lsh"]

_NUMBERS_AT_ONCE = 1 << 20


@torch.no_grad()
def lsh(vectors: Tensor, rotations: Tensor, chunk: int, *, causal: bool = False) -> Pattern:
    """Read tokens whose vectors point in about the same direction, found by hashing.

    In each round a token falls into bucket ``argmax([z, -z])`` of ``z = vector @ rotation``: 2 K
    buckets. The tokens of a bucket, in their order, are cut into chunks; a token reads its own
    chunk and the one before. It reads itself only where it reads nothing else, in any round.

    The rounds are united: an edge that several rounds find is there once. (Reformer keeps such an
    edge in each round and divides its weight by their number, which comes to the same.) Chunks
    start anew with each bucket, where Reformer cuts all tokens, sorted by bucket, into equal ones:
    so small buckets are never cut, and what a token reads depends on no later one if `causal`.

    Parameters
    ----------
    vectors
        ``[B, N, H, D]``: queries, which are keys too. Their length plays no part.
    rotations
        Random normal numbers, ``[H, R, D, K]``: one matrix for each head and round.
    chunk
        Tokens of a chunk. As buckets are unequal, twice their mean, ``N / K``, loses little.
    causal
        Whether nothing after the token is read.

    Returns
    -------
    Pattern
        ``B H N`` sites and sources: batch entries and heads side by side, token ``i`` of head ``h``
        of batch entry ``b`` being ``(b * H + h) * N + i``. No row is empty.

    Raises
    ------
    ShapeError
        Shapes or dtypes do not fit together.
    OptionError
        `chunk` is not positive.

    References
    ----------
    Kitaev, N., Kaiser, L., Levskaya, A. (2020). Reformer: the efficient transformer.
    https://doi.org/10.48550/arXiv.2001.04451

    Andoni, A., Indyk, P., Laarhoven, T., Razenshteyn, I., Schmidt, L. (2015). Practical and optimal
    LSH for angular distance. https://doi.org/10.48550/arXiv.1509.02897

    Examples
    --------
    >>> vectors = torch.tensor([[1.0, 0], [0, 1], [2, 0], [0, 3]]).view(1, 4, 1, 2)
    >>> lsh(vectors, torch.eye(2).view(1, 1, 2, 2), chunk=2).to_dense().int().tolist()
    [[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]
    """
    chunk = integer_from("chunk", chunk, 1, OptionError)
    _check_rotations(vectors, rotations)
    batch, tokens, heads, _ = vectors.shape
    order, first, last, rank = _chunks(vectors, rotations, chunk, causal)
    fan_in, col = [], []
    width = max(1, int((last - first).max())) if order.numel() else 1
    near = torch.arange(width, device=order.device)
    rounds = torch.arange(rank.shape[1], device=order.device)
    lists = order.flatten().to(index_dtype(tokens))
    at_once = max(1, _NUMBERS_AT_ONCE // (rank.shape[1] * width))
    for sites in torch.arange(len(rank), device=order.device).split(at_once):
        copy = sites // max(tokens, 1)
        place = first[sites, :, None] + near
        reads = (place < last[sites, :, None]) & (place != rank[sites, :, None])
        place = place.clamp(max=tokens - 1)
        place = place + ((copy[:, None] * rank.shape[1] + rounds) * tokens)[:, :, None]
        table = lists.index_select(0, place.flatten()).where(reads.flatten(), tokens)
        source, keep = sorted_rows(table.view(reads.flatten(1).shape), tokens)
        alone = ~keep.any(1)
        source[:, 0] = torch.where(alone, (sites - copy * tokens).to(source.dtype), source[:, 0])
        keep[:, 0] |= alone
        fan_in.append(keep.sum(1))
        begins = (copy * tokens).to(index_dtype(batch * heads * tokens))
        col.append(source.masked_select(keep) + begins.repeat_interleave(fan_in[-1]))
    return _joined(fan_in, col, batch * heads * tokens)


@torch.no_grad()
def block_topk(q: Tensor, k: Tensor, block: int, top: int, *, causal: bool = False) -> Pattern:
    """Read the block of the token, and the blocks of tokens whose mean keys its query likes best.

    Every so many tokens in a row are a block. Token ``i`` scores the other blocks ``J``, for the
    heads ``h`` that share keys, by ``sum_h softmax_J(q[i,h] . mean_{j in J} k[j] / sqrt(D))``, and
    reads its own block and the `top` best others. This is the selected branch of native sparse
    attention, with means in place of learned compression.

    Parameters
    ----------
    q
        Queries ``[B, N, H, D]``.
    k
        Keys ``[B, N, G, D]`` of the same tokens; H is a multiple of G, and the ``H / G`` heads that
        share keys choose together.
    block
        Tokens of a block; the last block may be shorter.
    top
        Blocks beside its own that a token reads, as far as there are any.
    causal
        Whether nothing after the token is read: of blocks other than its own, a token chooses among
        those before.

    Returns
    -------
    Pattern
        ``B G N`` sites and sources: batch entries and heads of keys side by side, token ``i`` of
        head ``g`` of batch entry ``b`` being ``(b * G + g) * N + i``. No row is empty.

    Raises
    ------
    ShapeError
        Shapes do not fit together.
    OptionError
        `block` is not positive or `top` is negative.

    References
    ----------
    Yuan, J. et al. (2025). Native sparse attention: hardware-aligned and natively trainable sparse
    attention. https://doi.org/10.48550/arXiv.2502.11089

    Examples
    --------
    >>> k = torch.tensor([0.0, 0, 1, 1, 5, 5]).view(1, 6, 1, 1)
    >>> block_topk(torch.ones_like(k), k, block=2, top=1).to_dense().int()[0].tolist()
    [1, 1, 0, 0, 1, 1]
    """
    block = integer_from("block", block, 1, OptionError)
    top = integer_from("top", top, 0, OptionError)
    _check_tokens(q, k)
    (batch, tokens, heads, width), groups = q.shape, k.shape[2]
    device = q.device
    begin = torch.arange(0, tokens, block, device=device)
    end = (begin + block).clamp(max=tokens)
    wide = torch.promote_types(q.dtype, torch.float32)
    # [B G, H / G, N, D] and [B G, 1, D, blocks]
    q = q.unflatten(2, (groups, -1)).permute(0, 2, 3, 1, 4).flatten(0, 1)
    mean = _block_means(k.to(wide), block, len(begin)).permute(0, 2, 3, 1).flatten(0, 1)[:, None]
    fan_in, col = [], []
    at_once = max(1, _NUMBERS_AT_ONCE // max(1, heads // groups * len(begin)))
    # Bands of tokens of one copy, or several whole copies.
    several = max(1, at_once // max(1, tokens))
    for copies in torch.arange(batch * groups, device=device).split(several):
        for sites in torch.arange(tokens, device=device).split(at_once):
            site = sites[:, None]
            own = (site >= begin) & (site < end)
            others = end <= site if causal else ~own
            score = q[copies[:, None], :, sites].to(wide).transpose(1, 2) @ mean[copies]
            reads = _best(score / math.sqrt(max(width, 1)), others, top) | own
            last = end.minimum(site + 1) if causal else end
            count = (last - begin).expand_as(reads).where(reads, 0)
            fan_in.append(count.sum(-1).flatten())
            copy, _, chosen = reads.nonzero(as_tuple=True)
            count = count[reads]
            start = begin[chosen] + copies[copy] * tokens
            edge = torch.arange(int(count.sum()), device=device)
            col.append(edge + (start - row_ptr_of_fan_in(count)[:-1]).repeat_interleave(count))
    return _joined(fan_in, col, batch * groups * tokens)


def _best(score: Tensor, others: Tensor, top: int) -> Tensor:
    """True at the best of the `others` by score ``[B G, H / G, N, blocks]``, by all heads of it."""
    score = score.masked_fill(~others, -torch.inf)
    # The logarithm of the sum of softmaxes: the softmaxes themselves are often 0.
    score = score.log_softmax(-1).logsumexp(1).masked_fill(~others, -torch.inf)
    best = score.topk(min(top, score.shape[-1]), sorted=False).indices
    return torch.zeros_like(score, dtype=torch.bool).scatter(2, best, True) & others


def _chunks(
    vectors: Tensor, rotations: Tensor, chunk: int, causal: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens sorted by (bucket, place) ``[B H, R, N]``, and what each token reads of them.

    The latter by token, ``[B H N, R]``: the first, the end, and the rank of the token itself.
    """
    turned = torch.einsum("bnhd,hrdk->bhrnk", vectors.to(rotations.dtype), rotations)
    bucket = torch.cat([turned, -turned], -1).argmax(-1).flatten(0, 1)
    bucket, order = bucket.sort(stable=True)
    begin = torch.searchsorted(bucket, bucket)
    end = torch.searchsorted(bucket, bucket, right=True)
    rank = torch.arange(order.shape[2], device=order.device).expand_as(order)
    chunk_begin = rank - (rank - begin) % chunk
    first = begin.maximum(chunk_begin - chunk)
    last = rank if causal else end.minimum(chunk_begin + chunk)
    by_token = (torch.empty_like(order).scatter(2, order, t) for t in (first, last, rank))
    first, last, rank = (t.transpose(1, 2).flatten(0, 1) for t in by_token)
    return order, first, last, rank


def _block_means(k: Tensor, block: int, blocks: int) -> Tensor:
    """Means of the tokens of each block, ``[B, blocks, G, D]``; the last block may be shorter."""
    whole = k.shape[1] // block
    means: Tensor = k[:, : whole * block].unflatten(1, (whole, block)).mean(2)
    if whole == blocks:
        return means
    return torch.cat([means, k[:, whole * block :].mean(1, keepdim=True)], 1)


def _joined(fan_in: list[Tensor], col: list[Tensor], tokens: int) -> Pattern:
    """Pattern of the parts that were computed one after the other."""
    row_ptr = row_ptr_of_fan_in(torch.cat(fan_in))
    return Pattern(row_ptr, torch.cat(col).to(index_dtype(tokens)), tokens)


def _check_rotations(vectors: Tensor, rotations: Tensor) -> None:
    floats = vectors.is_floating_point() and rotations.is_floating_point()
    fits = vectors.dim() == rotations.dim() == 4 and vectors.shape[2:] == (
        rotations.shape[0],
        rotations.shape[2],
    )
    if not floats or not fits or 0 in rotations.shape[1:]:
        raise ShapeError(
            f"`vectors` ({vectors.dtype} {list(vectors.shape)}) and `rotations` "
            f"({rotations.dtype} {list(rotations.shape)}) must be floats [B, N, H, D] and "
            "[H, R, D, K] with at least one round (R) and one pair of buckets (K)"
        )


def _check_tokens(q: Tensor, k: Tensor) -> None:
    fits = q.dim() == k.dim() == 4 and (q.shape[:2], q.shape[3]) == (k.shape[:2], k.shape[3])
    floats = q.is_floating_point() and k.is_floating_point()
    if not floats or not fits or 0 in (q.shape[2], k.shape[2]) or q.shape[2] % k.shape[2]:
        raise ShapeError(
            f"`q` ({q.dtype} {list(q.shape)}) and `k` ({k.dtype} {list(k.shape)}) must be floats "
            "[B, N, H, D] and [B, N, G, D] of the same tokens, with H a multiple of G"
        )
