"""Attention to a few learned mixtures of all sources."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scisparse.errors import OptionError
from scisparse.grids.integers import integer_from
from scisparse.kernels.graph_attention.checks import check_dropout
from scisparse.layers.heads import (
    attend_to_all,
    check_heads,
    check_inputs,
    draw_maps,
    split_heads,
)

__all__ = ["LinformerAttention"]


class LinformerAttention(nn.Module):
    """Multi-head attention to R mixtures of the N sources, in place of the sources (Linformer).

    ``y[b,i] = Z sum_r p[b,h,i,r] V (F x[b])[r]``, with ``p`` the softmax over ``r`` of
    ``(Q x[b,i]) . (K (E x[b])[r]) / sqrt(D)``, head by head. ``E`` and ``F``, ``[R, N]``, are
    learned and shared by the heads. Every site hears of every source, in time ``R N``: the low-rank
    relative of attention over a pattern. As sources are known by their places, N is fixed, and
    there is no causal form.

    Sources are mixed before the maps ``K`` and ``V``, whose biases therefore count once a mixture,
    as they do once a source in attention to all.

    Parameters
    ----------
    embed_dim
        Channels of sites, in and out; H heads share them, D each.
    num_heads
        H.
    num_sources
        N.
    rank
        R, at most N.
    source_dim
        Channels of sources, `embed_dim` where not given.
    share
        Whether keys and values are mixed alike, ``F = E``: half the numbers and half the time.
    dropout
        Part of the weights ``p`` that training sets to 0.

    Shapes
    ------
    `x` ``[..., M, embed_dim]``, `source` ``[..., N, source_dim]``, output as `x`.

    Raises
    ------
    OptionError
        Heads that do not divide the channels, or a rank that is not between 1 and N.

    Notes
    -----
    The attention is ``scaled_dot_product_attention``: for second derivatives by autograd call the
    layer within ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``, as torch's faster forms have
    none.

    References
    ----------
    Wang, S., Li, B. Z., Khabsa, M., Fang, H., Ma, H. (2020). Linformer: self-attention with linear
    complexity. https://doi.org/10.48550/arXiv.2006.04768

    Examples
    --------
    >>> attend = LinformerAttention(8, 2, num_sources=500, rank=20)
    >>> attend(torch.randn(3, 500, 8)).shape
    torch.Size([3, 500, 8])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        num_sources: int,
        rank: int,
        *,
        source_dim: int | None = None,
        share: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads(embed_dim, num_heads, num_heads)
        check_dropout(dropout)
        self.num_sources = integer_from("num_sources", num_sources, 1, OptionError)
        self.rank = integer_from("rank", rank, 1, OptionError)
        if rank > num_sources:
            raise OptionError(
                f"`rank` (={rank}) must not be above `num_sources` (={num_sources}); attend to the "
                "sources themselves"
            )
        source_dim = embed_dim if source_dim is None else source_dim
        integer_from("source_dim", source_dim, 1, OptionError)
        self.embed_dim, self.source_dim, self.num_heads = embed_dim, source_dim, num_heads
        self.share, self.dropout = share, dropout
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(source_dim, embed_dim)
        self.v_proj = nn.Linear(source_dim, embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.k_mix = nn.Parameter(torch.empty(rank, num_sources))
        self.v_mix = None if share else nn.Parameter(torch.empty(rank, num_sources))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw maps by Xavier's rule, mixtures with variance 1 / N: as large as sources are."""
        draw_maps(self.q_proj, self.k_proj, self.v_proj, self.out_proj)
        for mix in (self.k_mix, self.v_mix):
            if mix is not None:
                nn.init.normal_(mix, std=self.num_sources**-0.5)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """Attend.

        Parameters
        ----------
        x
            Sites, ``[..., M, embed_dim]``.
        source
            Sources, ``[..., N, source_dim]``; the sites themselves where not given.
        """
        source = x if source is None else source
        check_inputs(x, source, (None, self.num_sources), (self.embed_dim, self.source_dim))
        for_keys = self.k_mix @ source
        for_values = for_keys if self.v_mix is None else self.v_mix @ source
        maps = ((self.q_proj, x), (self.k_proj, for_keys), (self.v_proj, for_values))
        q, k, v = (split_heads(map_(t), self.num_heads).transpose(1, 2) for map_, t in maps)
        rate = self.dropout if self.training else 0.0
        y = attend_to_all(q, k, v, dropout=rate).transpose(1, 2)
        out: Tensor = self.out_proj(y.reshape(x.shape))
        return out

    def extra_repr(self) -> str:
        """Sizes, for ``print(layer)``."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, "
            f"num_sources={self.num_sources}, rank={self.rank}, share={self.share}, "
            f"dropout={self.dropout}"
        )
