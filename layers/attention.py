"""Attention over the edges of a pattern."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scisparse.errors import OptionError, PatternError
from scisparse.grids.integers import integer_from
from scisparse.kernels import graph_attention
from scisparse.kernels.graph_attention.checks import check_dropout
from scisparse.layers.buffers import write_beside_parameters
from scisparse.layers.edges import EdgeBias, PatternEdges, check_edge_attr
from scisparse.layers.heads import (
    check_heads,
    check_inputs,
    check_mask,
    draw_maps,
    split_heads,
)
from scisparse.layers.rewiring import (
    checked_on_points_of,
    pack_edges,
    unpack_edges,
    unpack_number,
)
from scisparse.pattern import Pattern

__all__ = ["Scores", "SparseAttention"]

_REACH = 8  # bytes of a reach in a state without edges


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How :class:`SparseAttention` scores an edge, beside the product of query and key.

    Parameters
    ----------
    norm
        Whether queries and keys are divided by their root mean square and scaled by learned
        numbers, head by head (query-key norm), which bounds the scores.
    areas
        Whether sources count by the area of their cell: the softmax is then an integral over the
        sphere, and cells crowded at the poles do not outvote others.
    knots
        Numbers of distances, from 0 to the longest of the pattern that the layer is built on,
        between which a learned bias by distance and bearing is linear; 0 for none. A loaded state
        brings the distances with it: on another pattern each metre counts as before.
    taps
        Whether each tap of the pattern, which is an offset on a regular grid, has a learned bias.

    References
    ----------
    Henry, A., Dachapally, P. R., Pawar, S., Chen, Y. (2020). Query-key normalization for
    transformers. https://doi.org/10.48550/arXiv.2010.04245

    Bonev, B., Rietmann, M., Paris, A., Carpentieri, A., Kurth, T. (2025). Attention on the sphere.
    https://doi.org/10.48550/arXiv.2505.11157
    """

    norm: bool = False
    areas: bool = False
    knots: int = 0
    taps: bool = False


class SparseAttention(nn.Module):
    """Multi-head attention in which every site attends to the sources that it reads.

    ``y[b,i] = Z sum_{e in row i} p[b,e,h] V x[b,col[e]]``, with ``p`` the softmax over the row of
    ``(Q x[b,i]) . (K x[b,col[e]]) / sqrt(D) + bias[e,h]``, head by head. Self-attention, or
    cross-attention from sites to sources on another grid. With edge features ``a``, ``W a[e]`` is
    added to the keys and values of the edge, and never formed.

    :meth:`rewire` gives it other edges, and a ``scisparse.Sparsifier`` does so while it trains.

    Parameters
    ----------
    pattern
        Who reads whom, M sites and N sources.
    embed_dim
        Channels of sites, in and out; H heads share them, D each.
    num_heads
        H.
    source_dim
        Channels of sources, `embed_dim` where not given.
    kv_heads
        Heads of keys and values, which divide H (grouped queries); H where not given.
    edge_dim
        A, features of an edge; 0 for none.
    scores
        Query-key norm, cell areas, bias by distance and bearing.
    dropout
        Part of the weights ``p`` that training sets to 0, which are then in memory: several times
        ``B E H`` numbers.

    Shapes
    ------
    `x` ``[..., M, embed_dim]``, `source` ``[..., N, source_dim]``, output as `x`.

    Raises
    ------
    OptionError
        Sizes that are no positive integers, heads that do not divide the channels, or one another;
        `scores` that are no ``Scores``.
    PatternError
        `pattern` is not a Pattern, or `scores` asks for areas or distances that it has not.

    References
    ----------
    Vaswani, A. et al. (2017). Attention is all you need. https://doi.org/10.48550/arXiv.1706.03762

    Ainslie, J. et al. (2023). GQA: training generalized multi-query transformer models from
    multi-head checkpoints. https://doi.org/10.48550/arXiv.2305.13245

    Examples
    --------
    >>> import torch
    >>> from scisparse.grids import LatLonGrid
    >>> from scisparse.patterns import window
    >>> pattern = window(LatLonGrid.regular(6, 12), 3)
    >>> attend = SparseAttention(pattern, embed_dim=8, num_heads=2)
    >>> attend(torch.randn(4, 72, 8)).shape
    torch.Size([4, 72, 8])
    """

    reads_weights = ("edge_proj",)  #: maps that are not called, so that none may take their place

    def __init__(
        self,
        pattern: Pattern,
        embed_dim: int,
        num_heads: int,
        *,
        source_dim: int | None = None,
        kv_heads: int | None = None,
        edge_dim: int = 0,
        scores: Scores | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        kv_heads = num_heads if kv_heads is None else kv_heads
        check_heads(embed_dim, num_heads, kv_heads)
        edge_dim = integer_from("edge_dim", edge_dim, 0, OptionError)
        check_dropout(dropout)
        if scores is not None and not isinstance(scores, Scores):
            raise OptionError(
                f"`scores` is a {type(scores).__name__}; give scisparse.layers.Scores(...)"
            )
        source_dim = embed_dim if source_dim is None else source_dim
        integer_from("source_dim", source_dim, 1, OptionError)
        self.embed_dim, self.source_dim, self.edge_dim = embed_dim, source_dim, edge_dim
        self.num_heads, self.kv_heads = num_heads, kv_heads
        self.head_dim, self.dropout = embed_dim // num_heads, dropout
        self.scores = Scores() if scores is None else scores
        self.edges = PatternEdges(pattern)
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.k_proj = nn.Linear(source_dim, kv_heads * self.head_dim)
        self.v_proj = nn.Linear(source_dim, kv_heads * self.head_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.edge_proj = nn.Linear(edge_dim, embed_dim, bias=False) if edge_dim else None
        normed = self.scores.norm
        self.q_norm = nn.RMSNorm(self.head_dim) if normed else None
        self.k_norm = nn.RMSNorm(self.head_dim) if normed else None
        self.bias = EdgeBias(
            self.pattern,
            num_heads,
            areas=self.scores.areas,
            knots=self.scores.knots,
            taps=self.scores.taps,
        )
        self._built = self.pattern, self.bias.reach
        self.register_load_state_dict_post_hook(write_beside_parameters)
        self.reset_parameters()

    @property
    def pattern(self) -> Pattern:
        """Who reads whom."""
        return self.edges.pattern

    def rewire(self, pattern: Pattern) -> None:
        """Attend over another pattern between the same sites and sources.

        Parameters keep their places. With as many edges as before all index buffers do too, so that
        compiled graphs and distributed training go on. From then on ``state_dict`` holds the edges.

        Parameters
        ----------
        pattern
            M sites and N sources as before; distances, bearings and taps where `scores` needs them.

        Raises
        ------
        PatternError
            Another number of sites or sources, edges without what `scores` needs, or a layer with
            `edge_dim`.

        Examples
        --------
        >>> import torch
        >>> from scisparse.patterns import sliding_window
        >>> attend = SparseAttention(sliding_window(6, 3), embed_dim=4, num_heads=2)
        >>> attend.rewire(sliding_window(6, 5))
        >>> attend.pattern
        Pattern(6 sites x 6 sources, 24 edges, fan-in 3 to 5)
        """
        self.check_rewirable()
        pattern = self.bias.fit(checked_on_points_of(pattern, self.pattern))
        self.edges.move_to(pattern)
        self.bias.move_to(pattern)

    def check_rewirable(self) -> None:
        """Raise where edges have features, which are given in the order of the edges."""
        if self.edge_dim:
            raise PatternError(
                f"a layer with edge_dim={self.edge_dim} cannot be rewired: its callers give "
                "features for the edges that it was built with; describe edges by `scores` instead"
            )

    def get_extra_state(self) -> Tensor:
        """Edges, once they have moved, and the reach of a bias by distance, as bytes."""
        if self.edges.rewired:
            return pack_edges(self.pattern, {"reach": self.bias.reach})
        reach = struct.pack("<d", self.bias.reach) if self.bias.knots else b""
        return torch.tensor(list(reach), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """Take over saved edges, without any those that the layer was built on, and the reach."""
        pattern, reach = self._built
        if state.numel() > _REACH:
            pattern, reach = unpack_edges(state, pattern), unpack_number(state, "reach")
        elif state.numel():
            (reach,) = struct.unpack("<d", bytes(state.tolist()))
        if state.numel() > _REACH or self.edges.rewired:
            self.check_rewirable()
            pattern = self.bias.fit(pattern)
            self.edges.move_to(pattern)
        elif reach == self.bias.reach:
            return
        self.bias.reach = reach
        self.bias.move_to(pattern)

    def reset_parameters(self) -> None:
        """Draw the maps as ``nn.MultiheadAttention`` does (Xavier); biases are 0, norms 1."""
        draw_maps(self.q_proj, self.k_proj, self.v_proj, self.out_proj, self.edge_proj)
        for part in (self.q_norm, self.k_norm, self.bias):
            if part is not None:
                part.reset_parameters()

    def forward(
        self,
        x: Tensor,
        source: Tensor | None = None,
        *,
        edge_attr: Tensor | None = None,
        source_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Parameters
        ----------
        x
            Sites, ``[..., M, embed_dim]``.
        source
            Sources, ``[..., N, source_dim]``; the sites themselves where not given.
        edge_attr
            Features of the edges, ``[E, A]``.
        source_mask
            Booleans ``[N]`` or ``[..., N]``, true at sources that count. Others may hold anything,
            NaN as well; a site that has no other reads 0. Without `source` they are missing as
            sites too, and ask as zeros would: ``layer(x, x, source_mask=...)`` lets them ask as
            what they hold, such as a learned token.
        """
        itself = source is None
        source = x if source is None else source
        self._check(x, source, edge_attr, source_mask)
        bias = self.bias()
        if source_mask is not None:
            source = source.masked_fill(~source_mask[..., None], 0)
            bias = self._masked(bias, source_mask.expand(*x.shape[:-2], -1))
            x = source if itself else x
        q = self._heads(self.q_proj(x), self.num_heads, self.q_norm)
        k = self._heads(self.k_proj(source), self.kv_heads, self.k_norm)
        v = self._heads(self.v_proj(source), self.kv_heads, None)
        y = graph_attention(
            *(q, k, v, self.edges.row_ptr, self.edges.col),
            edge_attr=None if edge_attr is None else edge_attr.to(q.dtype),
            edge_weight=self._edge_weight(q),
            bias=bias,
            dropout=self.dropout if self.training else 0.0,
            transpose=self.edges.transposed,
        )
        out: Tensor = self.out_proj(y.reshape(*x.shape[:-1], self.embed_dim))
        return out

    def _heads(self, x: Tensor, heads: int, norm: nn.RMSNorm | None) -> Tensor:
        """``[B, N, heads, D]``; norms are taken in the precision of their parameters."""
        split = split_heads(x, heads)
        return split if norm is None else norm(split.to(norm.weight.dtype)).to(split.dtype)

    def _edge_weight(self, like: Tensor) -> Tensor | None:
        if self.edge_proj is None:
            return None
        weight: Tensor = self.edge_proj.weight.to(like.dtype)
        return weight.view(self.num_heads, self.head_dim, self.edge_dim)

    def _masked(self, bias: Tensor | None, mask: Tensor) -> Tensor:
        """`bias` with -infinity at edges whose source does not count, ``[B, E, H or 1]``."""
        counts = mask.reshape(-1, mask.shape[-1])
        if bias is None:
            bias = torch.zeros(1, 1, device=mask.device)
        return bias.masked_fill(~counts[:, self.edges.col.long(), None], -torch.inf)

    def _check(
        self, x: Tensor, source: Tensor, edge_attr: Tensor | None, mask: Tensor | None
    ) -> None:
        check_inputs(x, source, self.pattern.shape, (self.embed_dim, self.source_dim))
        if mask is not None:
            check_mask(mask, (self.pattern.num_sources,), x.shape[:-2], "sources")
        check_edge_attr(edge_attr, self.pattern.num_edges, self.edge_dim or None)

    def extra_repr(self) -> str:
        """Sizes, for ``print(layer)``."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, kv_heads={self.kv_heads}, "
            f"edge_dim={self.edge_dim}, dropout={self.dropout}"
        )
