"""Patterns over tokens in a row, or over cells that are related by a label."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.grids.integers import integer_from, integers
from scisparse.pattern import Pattern
from scisparse.pattern.edges import row_ptr_of_fan_in, sort_rows
from scisparse.patterns.drawn import constant_fan_in

__all__ = [
    "axial",
    "bigbird",
    "blocks",
    "fixed",
    "longformer",
    "sliding_window",
    "sorted_rows",
    "strided",
]


def sliding_window(
    length: int, window: int, *, dilation: int = 1, causal: bool = False, periodic: bool = False
) -> Pattern:
    """Read the tokens around, or just before, each token.

    Parameters
    ----------
    length
        Tokens; sites and sources are the same.
    window
        Tokens that are read: ``window // 2`` on either side and the token itself, or, where
        `causal`, the token and the ``window - 1`` before it.
    dilation
        Step between the tokens that are read.
    causal
        Whether nothing after the token is read.
    periodic
        Whether the last token is followed by the first, as longitudes are.

    Returns
    -------
    Pattern
        With a tap for each offset, from the first token read to the last.

    Raises
    ------
    OptionError
        If a size is not positive, or a periodic window reads a token twice.

    References
    ----------
    Beltagy, I., Peters, M. E., Cohan, A. (2020). Longformer: the long-document transformer.
    https://doi.org/10.48550/arXiv.2004.05150

    Examples
    --------
    >>> sliding_window(6, 3).to_dense().int()[2].tolist()
    [0, 1, 1, 1, 0, 0]
    >>> sliding_window(6, 3, causal=True, dilation=2).to_dense().int()[4].tolist()
    [1, 0, 1, 0, 1, 0]
    """
    length = _positive("length", length, least=0)
    window, dilation = _positive("window", window), _positive("dilation", dilation)
    side = window // 2
    first, last = (1 - window, 0) if causal else (-side, side)
    offsets = _numbers(first, last + 1) * dilation
    if periodic and int(offsets[-1] - offsets[0]) >= max(length, 1):
        raise OptionError(
            f"a periodic window of {len(offsets)} tokens, {dilation} apart, meets itself on "
            f"{length} tokens; make `window` (={window}) smaller"
        )
    source = _numbers(length)[:, None] + offsets
    tap = _numbers(len(offsets)).expand_as(source)
    if periodic:
        source, order = (source % max(length, 1)).sort(1)
        tap = tap.gather(1, order)
    inside = (source >= 0) & (source < length)
    return Pattern(
        row_ptr=row_ptr_of_fan_in(inside.sum(1)),
        col=source[inside].to(torch.int32),
        num_sources=length,
        tap=tap[inside].to(torch.int32),
        tap_count=len(offsets),
    )


def strided(length: int, stride: int, *, causal: bool = True) -> Pattern:
    """Read the last tokens, and every `stride`-th one (Sparse Transformer, strided).

    A token reads those less than `stride` away, and those a multiple of it away: any two tokens
    are two steps apart.

    Parameters
    ----------
    length
        Tokens.
    stride
        About the square root of `length`.
    causal
        Whether nothing after the token is read.

    Raises
    ------
    OptionError
        If a size is not positive.

    References
    ----------
    Child, R., Gray, S., Radford, A., Sutskever, I. (2019). Generating long sequences with sparse
    transformers. https://doi.org/10.48550/arXiv.1904.10509

    Examples
    --------
    >>> strided(9, 3).to_dense().int()[7].tolist()
    [0, 1, 0, 0, 1, 1, 1, 1, 0]
    """
    length, stride = _positive("length", length, least=0), _positive("stride", stride)
    far = _numbers(-(length // stride), length // stride + 1) * stride
    near = _numbers(1 - stride, stride)
    offsets = torch.cat([near, far]).unique()
    return _from_rows(_numbers(length)[:, None] + offsets, length, causal)


def fixed(length: int, stride: int, summary: int = 1, *, causal: bool = True) -> Pattern:
    """Read the block of the token, and the last tokens of all blocks (Sparse Transformer, fixed).

    Parameters
    ----------
    length
        Tokens.
    stride
        Tokens of a block.
    summary
        Tokens at the end of each block that all others read.
    causal
        Whether nothing after the token is read.

    Raises
    ------
    OptionError
        If a size is not positive, or `summary` is longer than a block.

    References
    ----------
    Child, R., Gray, S., Radford, A., Sutskever, I. (2019). Generating long sequences with sparse
    transformers. https://doi.org/10.48550/arXiv.1904.10509

    Examples
    --------
    >>> fixed(9, 3).to_dense().int()[7].tolist()
    [0, 0, 1, 0, 0, 1, 1, 1, 0]
    """
    length, stride = _positive("length", length, least=0), _positive("stride", stride)
    if not 1 <= summary <= stride:
        raise OptionError(f"`summary` (={summary}) must lie between 1 and `stride` (={stride})")
    token = _numbers(length)
    block = token[:, None] // stride * stride + _numbers(stride)
    ends = token[token % stride >= stride - summary]
    return _from_rows(torch.cat([block, ends.expand(length, -1)], 1), length, causal)


def longformer(
    length: int, window: int, global_tokens: Sequence[int] = (0,), *, dilation: int = 1
) -> Pattern:
    """Read a sliding window; some tokens read all and are read by all.

    Parameters
    ----------
    length
        Tokens.
    window, dilation
        As in :func:`sliding_window`.
    global_tokens
        Places of the tokens that read all and are read by all.

    Raises
    ------
    OptionError
        If a size is not positive, or a token does not exist or is named twice.

    References
    ----------
    Beltagy, I., Peters, M. E., Cohan, A. (2020). Longformer: the long-document transformer.
    https://doi.org/10.48550/arXiv.2004.05150

    Examples
    --------
    >>> longformer(100, 8)
    Pattern(100 sites x 100 sources, 1070 edges, fan-in 6 to 100)
    """
    local = _without_taps(sliding_window(length, window, dilation=dilation))
    return local.union(_global(length, global_tokens))


def bigbird(
    length: int,
    window: int,
    num_random: int,
    global_tokens: Sequence[int] = (0,),
    *,
    generator: torch.Generator | None = None,
) -> Pattern:
    """Read a sliding window, some random tokens, and tokens that all read.

    Parameters
    ----------
    length
        Tokens.
    window
        As in :func:`sliding_window`.
    num_random
        Random tokens that each token reads, in the window or not; at most `length`.
    global_tokens
        Places of the tokens that read all and are read by all.
    generator
        Of random numbers, on the CPU; torch's own where not given.

    Raises
    ------
    OptionError
        If a size is not positive, or a token does not exist or is named twice.

    References
    ----------
    Zaheer, M. et al. (2020). Big Bird: transformers for longer sequences.
    https://doi.org/10.48550/arXiv.2007.14062

    Examples
    --------
    >>> generator = torch.Generator().manual_seed(0)
    >>> bigbird(100, 8, 3, generator=generator).fan_in[0].item()
    100
    """
    length = _positive("length", length)
    num_random = _positive("num_random", num_random, 0)
    if num_random > length:
        raise OptionError(
            f"`num_random` (={num_random}) must lie between 0 and `length` (={length})"
        )
    drawn = constant_fan_in(length, length, num_random, generator=generator)
    return longformer(length, window, global_tokens).union(drawn)


def axial(shape: Sequence[int]) -> Pattern:
    """Read all cells that differ from the site along one axis at most.

    Parameters
    ----------
    shape
        Cells along each axis; sites are numbered with the last axis fastest.

    Raises
    ------
    OptionError
        If `shape` is no sequence of integers, or a size is not positive.

    References
    ----------
    Ho, J., Kalchbrenner, N., Weissenborn, D., Salimans, T. (2019). Axial attention in
    multidimensional transformers. https://doi.org/10.48550/arXiv.1912.12180

    Examples
    --------
    >>> axial((4, 6))
    Pattern(24 sites x 24 sources, 216 edges, fan-in 9)
    """
    given = integers(shape)
    if given is None:
        raise OptionError(
            f"`shape` (={shape!r}) must be integers, one for each axis, such as (4, 6)"
        )
    sizes = [_positive("shape", size) for size in given]
    cells = _numbers(torch.Size(sizes).numel()).view(sizes)
    rows = []
    for axis, size in enumerate(sizes):
        along = cells.movedim(axis, -1)
        read = along[..., None, :].expand(*along.shape, size)
        rows.append(read.movedim(-2, axis).reshape(cells.numel(), size))
    if not rows:
        raise OptionError("`shape` (=()) must have one axis at least")
    return _from_rows(torch.cat(rows, 1), cells.numel(), causal=False)


def blocks(labels: Tensor, source_labels: Tensor | None = None) -> Pattern:
    """Read all sources with the label of the site: basins, clusters, windows, documents.

    Parameters
    ----------
    labels
        Label of each site, integers ``[M]``.
    source_labels
        Label of each source, integers ``[N]``; those of the sites where not given.

    Raises
    ------
    OptionError
        If labels are no tensor of integers in one dimension, or are on the meta device.

    Examples
    --------
    >>> blocks(torch.tensor([0, 0, 1, 0])).to_dense().int()[1].tolist()
    [1, 1, 0, 1]
    >>> blocks(torch.arange(512) // 64)
    Pattern(512 sites x 512 sources, 32768 edges, fan-in 64)
    """
    source_labels = labels if source_labels is None else source_labels
    for name, each in (("labels", labels), ("source_labels", source_labels)):
        if not isinstance(each, Tensor):
            raise OptionError(
                f"`{name}` is a {type(each).__name__}; give a tensor of integers [M]: "
                f"torch.as_tensor({name})"
            )
        if each.is_meta:
            raise OptionError(f"`{name}` is on the meta device, without values; give device='cpu'")
        if each.dim() != 1 or each.is_floating_point() or each.is_complex():
            raise OptionError(f"`{name}` ({each.dtype} {list(each.shape)}) must be integers [M]")
    kinds, label = torch.cat([labels, source_labels]).unique(return_inverse=True)
    site, source = label[: len(labels)], label[len(labels) :]
    order = torch.argsort(source, stable=True)
    count = torch.bincount(source, minlength=len(kinds))
    first = row_ptr_of_fan_in(count)
    row_ptr = row_ptr_of_fan_in(count[site])
    edge = torch.arange(int(row_ptr[-1]), device=row_ptr.device)
    edge -= row_ptr[:-1].repeat_interleave(count[site])
    col = order[first[site].repeat_interleave(count[site]) + edge]
    return Pattern(row_ptr, col.to(torch.int32), len(source))


def _positive(name: str, value: int, least: int = 1) -> int:
    return integer_from(name, value, least, OptionError)


def _numbers(*bounds: int) -> Tensor:
    # On the CPU, where patterns lie, whatever the default device is.
    return torch.arange(*bounds, device="cpu")


def _from_rows(source: Tensor, length: int, causal: bool) -> Pattern:
    """Pattern of candidate sources ``[length, n]``, in any order, repeated or out of range."""
    source, keep = sorted_rows(source, length)
    if causal:
        keep &= source <= _numbers(length)[:, None]
    return Pattern(row_ptr_of_fan_in(keep.sum(1)), source[keep].to(torch.int32), length)


def sorted_rows(source: Tensor, num_sources: int) -> tuple[Tensor, Tensor]:
    """Sort candidate sources ``[M, n]`` row by row; true where one exists and is not a repeat."""
    source = sort_rows(source)
    keep = (source >= 0) & (source < num_sources)
    keep[:, 1:] &= source.diff(dim=1) > 0
    return source, keep


def _without_taps(pattern: Pattern) -> Pattern:
    return Pattern(pattern.row_ptr, pattern.col, pattern.num_sources)


def _global(length: int, tokens: Sequence[int]) -> Pattern:
    """Tokens that read all and are read by all."""
    numbers = integers(tokens)
    if numbers is None or len(set(numbers)) < len(numbers):
        raise OptionError(
            f"`global_tokens` (={tokens!r}) must be places of tokens, integers, each once; those "
            "of a mask are mask.nonzero().flatten()"
        )
    places = torch.tensor(sorted(numbers), dtype=torch.int64, device="cpu")
    if len(places) and not 0 <= int(places[0]) <= int(places[-1]) < length:
        raise OptionError(f"`global_tokens` {places.tolist()} must lie between 0 and {length - 1}")
    reads = torch.zeros(length, dtype=torch.bool, device="cpu")
    reads[places] = True
    fan_in = torch.where(reads, length, len(places))
    everything = _numbers(length)
    rows = [everything if r else places for r in reads.tolist()]
    col = torch.cat([everything.new_empty(0), *rows])
    return Pattern(row_ptr_of_fan_in(fan_in), col.to(torch.int32), length)
