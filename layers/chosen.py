"""Attention over edges that are chosen from the data, for each batch entry and head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scisparse.errors import BackendError, OptionError
from scisparse.grids.integers import integer_from
from scisparse.kernels import graph_attention
from scisparse.kernels._modes import is_mapped, outside_transforms, values_of
from scisparse.kernels.graph_attention.checks import check_dropout
from scisparse.layers.heads import check_heads, check_input, draw_maps, split_heads
from scisparse.pattern import Pattern
from scisparse.patterns import block_topk, lsh

__all__ = ["BlockTopKAttention", "LSHAttention"]


class _ChosenAttention(nn.Module):
    """Self-attention over edges that each call chooses anew; see the subclasses."""

    def __init__(
        self, embed_dim: int, num_heads: int, kv_heads: int, causal: bool, dropout: float
    ) -> None:
        super().__init__()
        check_heads(embed_dim, num_heads, kv_heads)
        check_dropout(dropout)
        self.embed_dim, self.num_heads, self.kv_heads = embed_dim, num_heads, kv_heads
        self.head_dim = embed_dim // num_heads
        self.causal, self.dropout = causal, dropout
        self.v_proj = nn.Linear(embed_dim, kv_heads * self.head_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend: ``[..., N, embed_dim]``, in and out."""
        check_input("x", x, None, self.embed_dim)
        q, k = self._queries_and_keys(x)
        v = split_heads(self.v_proj(x), self.kv_heads)
        row_ptr, col = self._edges(q, k)
        (batch, tokens, groups, width), heads = k.shape, self.num_heads
        # Batch entries and heads of the sources are sites and sources side by side.
        sites, share = batch * groups * tokens, heads // groups
        q = q.unflatten(2, (groups, share)).transpose(1, 2).reshape(1, sites, share, width)
        k, v = (t.transpose(1, 2).reshape(1, sites, 1, width) for t in (k, v))
        y = graph_attention(
            *(q, k, v, row_ptr, col),
            dropout=self.dropout if self.training else 0.0,
        )
        y = y.view(batch, groups, tokens, share * width).transpose(1, 2)
        out: Tensor = self.out_proj(y.reshape(x.shape))
        return out

    def pattern_of(self, x: Tensor) -> Pattern:
        """Edges that a call with `x` chooses, all batch entries and heads side by side.

        Token ``i`` of head ``g`` (of keys) of batch entry ``b`` is site and source
        ``(b * G + g) * N + i``; ``pattern.restrict(mask, mask, relabel=True)`` takes one of them.
        """
        check_input("x", x, None, self.embed_dim)
        with torch.no_grad():
            row_ptr, col = self._edges(*self._queries_and_keys(x))
        return Pattern(row_ptr, col, row_ptr.numel() - 1)

    def _edges(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        # What is chosen must not depend on the precision of products under autocast.
        q, k = values_of(q), values_of(k)
        if is_mapped(q) or is_mapped(k):
            raise BackendError(
                f"torch.vmap cannot map {type(self).__name__}, as the edges that it chooses differ "
                "from sample to sample; give samples as a batch, or loop over them for gradients "
                "of each"
            )
        if torch.compiler.is_exporting():
            raise BackendError(
                f"torch.export cannot take {type(self).__name__}, as the number of edges that it "
                "chooses depends on the data; use torch.compile, or SparseAttention over a pattern"
            )
        if not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None:
            raise BackendError(
                f"torch.jit.trace cannot take {type(self).__name__}, as it would keep the edges "
                "that one call has chosen; use torch.compile"
            )
        with outside_transforms(), torch.autocast(q.device.type, enabled=False):
            pattern = self._choose(q.detach(), k.detach())
        return pattern.row_ptr, pattern.col

    def _queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, N, H, D]`` and ``[B, N, G, D]``."""
        raise NotImplementedError

    def _choose(self, q: Tensor, k: Tensor) -> Pattern:
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Sizes, for ``print(layer)``."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, causal={self.causal}, "
            f"dropout={self.dropout}"
        )


class LSHAttention(_ChosenAttention):
    """Attention to the tokens whose queries point in about the same direction (Reformer).

    ``y[b,i] = Z sum_{j in S(b,h,i)} p[b,h,i,j] V x[b,j]``, with ``p`` the softmax over ``S`` of
    ``q[i] . q[j] / |q[j]|`` and ``q = Q x``, head by head: queries are keys too. ``S`` are tokens
    that share a bucket of random hashes with ``i``, found by :func:`scisparse.patterns.lsh` in each
    call, for each batch entry and head; the token itself only where there is no other. The choice
    has no gradient; the attention over it has.

    The rotations behind the hashes are a buffer, drawn with the parameters from torch's random
    numbers, and stay: the same input meets the same edges in training, in evaluation, when a
    checkpoint is loaded and when activations are computed again. Training that wants new ones in
    each step, as the authors do, calls :meth:`redraw`.

    Parameters
    ----------
    embed_dim
        Channels, in and out; H heads share them, D each.
    num_heads
        H.
    buckets
        Buckets of a round, an even number.
    chunk
        Tokens of a chunk: a bucket is read as far as the chunk of the token and the one before.
        Buckets are unequal; twice the mean, ``2 N / buckets``, loses little.
    rounds
        Hashes of each token; a token reads what any of them finds.
    causal
        Whether nothing after the token is read.
    dropout
        Part of the weights ``p`` that training sets to 0.

    Shapes
    ------
    `x` ``[..., N, embed_dim]``, for any N; output as `x`.

    Raises
    ------
    OptionError
        Heads that do not divide the channels, an odd number of buckets, sizes that are not
        positive.

    See Also
    --------
    scisparse.patterns.lsh : How chunks and rounds differ from those of the authors.

    Notes
    -----
    ``torch.compile`` leaves its graph where edges are chosen, as their number depends on the data;
    ``torch.export``, ``torch.jit.trace`` and ``torch.vmap`` cannot take the layer.

    References
    ----------
    Kitaev, N., Kaiser, L., Levskaya, A. (2020). Reformer: the efficient transformer.
    https://doi.org/10.48550/arXiv.2001.04451

    Examples
    --------
    >>> attend = LSHAttention(8, 2, buckets=8, chunk=16, causal=True)
    >>> x = torch.randn(3, 50, 8)
    >>> attend(x).shape
    torch.Size([3, 50, 8])
    >>> attend.pattern_of(x).shape
    (300, 300)
    """

    rotations: Tensor

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        buckets: int,
        chunk: int,
        *,
        rounds: int = 4,
        causal: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(embed_dim, num_heads, num_heads, causal, dropout)
        self.buckets = integer_from("buckets", buckets, 2, OptionError)
        if self.buckets % 2:
            raise OptionError(
                f"`buckets` (={buckets}) must be even: each direction of a rotation has two"
            )
        self.chunk = integer_from("chunk", chunk, 1, OptionError)
        self.rounds = integer_from("rounds", rounds, 1, OptionError)
        self.qk_proj = nn.Linear(embed_dim, embed_dim)
        size = (num_heads, self.rounds, self.head_dim, self.buckets // 2)
        self.register_buffer("rotations", torch.empty(size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the maps as ``nn.MultiheadAttention`` does (Xavier), and new rotations."""
        draw_maps(self.qk_proj, self.v_proj, self.out_proj)
        self.redraw()

    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw new rotations, for other hashes.

        Parameters
        ----------
        generator
            Of random numbers, on the device of the layer; torch's own where not given.
        """
        nn.init.normal_(self.rotations, generator=generator)

    def _queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q = split_heads(self.qk_proj(x), self.num_heads)
        # Divided by the root mean square, here, and by the root of D, as all scores are: by length.
        return q, F.rms_norm(q, (self.head_dim,))

    def _choose(self, q: Tensor, k: Tensor) -> Pattern:
        return lsh(q, self.rotations, self.chunk, causal=self.causal)

    def extra_repr(self) -> str:
        """Sizes, for ``print(layer)``."""
        return (
            f"{super().extra_repr()}, buckets={self.buckets}, chunk={self.chunk}, "
            f"rounds={self.rounds}"
        )


class BlockTopKAttention(_ChosenAttention):
    """Attention to the token's own block and to the blocks that its query likes best.

    ``y[b,i] = Z sum_{j in S(b,g,i)} p[b,h,i,j] V x[b,j]``, with ``p`` the softmax over ``S`` of
    ``(Q x[b,i]) . (K x[b,j]) / sqrt(D)``, head by head. ``S`` are the blocks that
    :func:`scisparse.patterns.block_topk` chooses in each call by the means of their keys, for each
    token, batch entry and head of keys. The choice has no gradient; the attention over it has.

    This is the selected branch of native sparse attention, without its compressed branch and
    sliding window. The means say something about a block whose tokens are alike: on a grid, order
    the cells so that those of a block are neighbours.

    Parameters
    ----------
    embed_dim
        Channels, in and out; H heads share them, D each.
    num_heads
        H.
    block
        Tokens of a block: so many in a row.
    top
        Blocks beside its own that a token reads, as far as there are any.
    kv_heads
        G, heads of keys and values, which divide H (grouped queries); H where not given. Heads that
        share keys choose together.
    causal
        Whether nothing after the token is read, and no choice depends on it.
    dropout
        Part of the weights ``p`` that training sets to 0.

    Shapes
    ------
    `x` ``[..., N, embed_dim]``, for any N; output as `x`.

    Raises
    ------
    OptionError
        Heads that do not divide the channels, or one another; sizes that are not positive.

    Notes
    -----
    Scoring the blocks takes time ``N^2 / block``. ``torch.compile`` leaves its graph where edges
    are chosen, as their number depends on the data; ``torch.export``, ``torch.jit.trace`` and
    ``torch.vmap`` cannot take the layer.

    References
    ----------
    Yuan, J. et al. (2025). Native sparse attention: hardware-aligned and natively trainable sparse
    attention. https://doi.org/10.48550/arXiv.2502.11089

    Examples
    --------
    >>> attend = BlockTopKAttention(8, 4, block=10, top=2, kv_heads=2)
    >>> x = torch.randn(3, 50, 8)
    >>> attend(x).shape
    torch.Size([3, 50, 8])
    >>> attend.pattern_of(x)
    Pattern(300 sites x 300 sources, 9000 edges, fan-in 30)
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        block: int,
        top: int,
        *,
        kv_heads: int | None = None,
        causal: bool = False,
        dropout: float = 0.0,
    ) -> None:
        kv_heads = num_heads if kv_heads is None else kv_heads
        super().__init__(embed_dim, num_heads, kv_heads, causal, dropout)
        self.block = integer_from("block", block, 1, OptionError)
        self.top = integer_from("top", top, 0, OptionError)
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(embed_dim, kv_heads * self.head_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the maps as ``nn.MultiheadAttention`` does (Xavier)."""
        draw_maps(self.q_proj, self.k_proj, self.v_proj, self.out_proj)

    def _queries_and_keys(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q = split_heads(self.q_proj(x), self.num_heads)
        return q, split_heads(self.k_proj(x), self.kv_heads)

    def _choose(self, q: Tensor, k: Tensor) -> Pattern:
        return block_topk(q, k, self.block, self.top, causal=self.causal)

    def extra_repr(self) -> str:
        """Sizes, for ``print(layer)``."""
        return (
            f"{super().extra_repr()}, kv_heads={self.kv_heads}, block={self.block}, top={self.top}"
        )
