"""Layers over graphs that are given with each call, with the interface of torch-geometric."""

from __future__ import annotations

import weakref
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.kernels import Edges, attention_weights, graph_attention, transpose_edges
from scisparse.kernels._modes import values_of
from scisparse.kernels.graph_attention.checks import check_dropout
from scisparse.layers.edges import PatternEdges, check_edge_attr

__all__ = ["GraphTransformer"]

Nodes = Tensor | tuple[Tensor, Tensor]


class _Graph(NamedTuple):
    """Edges sorted by (site, source), and the place of each in the order they were given in."""

    edges: Edges
    transposed: Edges
    order: Tensor | None


class GraphTransformer(nn.Module):
    """Attention of the nodes of a graph to their neighbours (graph transformer operator).

    ``y[i] = S x[i] + sum_{j -> i} p[j,i] (V x[j] + W a[j,i])``, with ``p`` the softmax over the
    neighbours of ``(Q x[i]) . (K x[j] + W a[j,i]) / sqrt(D)``, head by head. Constructor, call and
    ``state_dict`` are those of torch-geometric's ``TransformerConv``; results equal it.

    Parameters
    ----------
    in_channels
        Channels of the nodes; those of sources and of sites, as a pair, where they differ.
    out_channels
        D, channels of a head.
    heads
        H.
    concat
        Whether heads are put side by side, H * D channels, or averaged, D channels.
    beta
        Whether a learned gate weighs the skip connection against the attention.
    dropout
        Part of the weights ``p`` that training sets to 0.
    edge_dim
        A, features of an edge; ``None`` for none.
    bias, root_weight
        Whether the maps have biases, and whether there is a skip connection ``S x``.

    References
    ----------
    Shi, Y. et al. (2021). Masked label prediction: unified message passing model for
    semi-supervised classification. https://doi.org/10.24963/ijcai.2021/214

    Examples
    --------
    >>> import torch
    >>> layer = GraphTransformer(8, 4, heads=2, edge_dim=3)
    >>> edge_index = torch.tensor([[0, 1, 2], [1, 1, 0]])  # from sources, to sites
    >>> layer(torch.randn(3, 8), edge_index, torch.randn(3, 3)).shape
    torch.Size([3, 8])
    """

    reads_weights = ("lin_edge",)  #: maps that are not called, so that none may take their place

    def __init__(
        self,
        in_channels: int | tuple[int, int],
        out_channels: int,
        heads: int = 1,
        concat: bool = True,
        beta: bool = False,
        dropout: float = 0.0,
        edge_dim: int | None = None,
        bias: bool = True,
        root_weight: bool = True,
    ) -> None:
        super().__init__()
        pair = (in_channels, in_channels) if isinstance(in_channels, int) else in_channels
        if heads < 1 or out_channels < 1 or min(pair) < 1:
            raise OptionError(
                f"`in_channels` (={in_channels}), `out_channels` (={out_channels}) and `heads` "
                f"(={heads}) must be positive"
            )
        check_dropout(dropout)
        self.in_channels, self.out_channels, self.heads = in_channels, out_channels, heads
        self.concat, self.beta, self.root_weight = concat, beta and root_weight, root_weight
        self.dropout, self.edge_dim = dropout, edge_dim
        all_heads, out = heads * out_channels, (heads if concat else 1) * out_channels
        self.lin_key = nn.Linear(pair[0], all_heads, bias=bias)
        self.lin_query = nn.Linear(pair[1], all_heads, bias=bias)
        self.lin_value = nn.Linear(pair[0], all_heads, bias=bias)
        self.lin_edge = nn.Linear(edge_dim, all_heads, bias=False) if edge_dim is not None else None
        self.lin_skip = nn.Linear(pair[1], out, bias=bias)
        self.lin_beta = nn.Linear(3 * out, 1, bias=False) if self.beta else None
        self._last: tuple[weakref.ref[Tensor], tuple[Any, ...], _Graph] | None = None

    @overload
    def forward(
        self, x: Nodes, edge_index: Tensor | PatternEdges, edge_attr: Tensor | None = ...
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        x: Nodes,
        edge_index: Tensor | PatternEdges,
        edge_attr: Tensor | None,
        return_attention_weights: Literal[True],
    ) -> tuple[Tensor, tuple[Tensor | PatternEdges, Tensor]]: ...

    def forward(
        self,
        x: Nodes,
        edge_index: Tensor | PatternEdges,
        edge_attr: Tensor | None = None,
        return_attention_weights: bool | None = None,
    ) -> Tensor | tuple[Tensor, tuple[Tensor | PatternEdges, Tensor]]:
        """Attend.

        Parameters
        ----------
        x
            Nodes, ``[N, channels]``; sources ``[N, ...]`` and sites ``[M, ...]``, as a pair, where
            they differ.
        edge_index
            From which source to which site, int64 ``[2, E]``, in any order; sorted once for as long
            as the same tensor is given (writes through ``.data`` or numpy are not seen). Or the
            edges of a pattern, sorted already.
        edge_attr
            Features of the edges, ``[E, A]``.
        return_attention_weights
            True or False, as in torch-geometric: the weights ``p``, ``[E, H]`` in the order of
            `edge_index`, are returned too.
        """
        sources, sites = (x, x) if isinstance(x, Tensor) else x
        for nodes in (sources, sites):
            _check_nodes(nodes)
        graph = self._graph(edge_index, (len(sites), len(sources)))
        check_edge_attr(edge_attr, graph.edges.col.shape[0], self.edge_dim)
        if edge_attr is not None and graph.order is not None:
            edge_attr = edge_attr[graph.order]
        q = self._heads(self.lin_query(sites))
        k = self._heads(self.lin_key(sources))
        options: dict[str, Any] = {
            "edge_attr": None if edge_attr is None else edge_attr.to(q.dtype),
            "edge_weight": self._edge_weight(q),
            "transpose": graph.transposed,
        }
        row_ptr, col, _ = graph.edges
        y = graph_attention(
            *(q, k, self._heads(self.lin_value(sources)), row_ptr, col),
            dropout=self.dropout if self.training else 0.0,
            **options,
        )[0]
        out = self._skip(y.flatten(1) if self.concat else y.mean(1), sites)
        if not isinstance(return_attention_weights, bool):
            return out
        weights = attention_weights(q, k, row_ptr, col, **options)[0]
        if graph.order is not None:
            weights = torch.empty_like(weights).index_copy(0, graph.order, weights)
        return out, (edge_index, weights)

    def _skip(self, y: Tensor, sites: Tensor) -> Tensor:
        """`y` and the skip connection, together."""
        if not self.root_weight:
            return y
        skip: Tensor = self.lin_skip(sites)
        if self.lin_beta is None:
            return y + skip
        part: Tensor = self.lin_beta(torch.cat([y, skip, y - skip], dim=-1)).sigmoid()
        return part * skip + (1 - part) * y

    def _heads(self, x: Tensor) -> Tensor:
        """``[1, N, H, D]``."""
        return x.view(1, len(x), self.heads, self.out_channels)

    def _edge_weight(self, like: Tensor) -> Tensor | None:
        if self.lin_edge is None:
            return None
        weight: Tensor = self.lin_edge.weight.to(like.dtype)
        return weight.view(self.heads, self.out_channels, -1)

    def _graph(self, edge_index: Tensor | PatternEdges, shape: tuple[int, int]) -> _Graph:
        if isinstance(edge_index, PatternEdges):
            if edge_index.pattern.shape != shape:
                raise PatternError(
                    f"`edge_index` is a pattern of {edge_index.pattern.shape} sites x sources; `x` "
                    f"has {shape}"
                )
            return _Graph(edge_index.forward_edges, edge_index.transposed, None)
        _check_edge_index(edge_index)
        edge_index = values_of(edge_index)
        if torch.compiler.is_compiling() or edge_index.is_inference():
            return _sort(edge_index, *shape)
        key = (edge_index._version, edge_index.data_ptr(), edge_index.shape, shape)
        last = self._last  # once: other threads may write it meanwhile
        if last is None or last[0]() is not edge_index or last[1] != key:
            last = self._last = (weakref.ref(edge_index), key, _sort(edge_index, *shape))
        return last[2]

    def reset_parameters(self) -> None:
        """Draw all maps anew, as ``nn.Linear`` does."""
        for map_ in self.children():
            if isinstance(map_, nn.Linear):
                map_.reset_parameters()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_last": None}

    def extra_repr(self) -> str:
        """Sizes, for ``print(layer)``."""
        return (
            f"{self.in_channels}, {self.out_channels}, heads={self.heads}, concat={self.concat}, "
            f"beta={self.beta}, edge_dim={self.edge_dim}"
        )


def _check_nodes(nodes: object) -> None:
    if not isinstance(nodes, Tensor) or nodes.dim() != 2:
        given = list(nodes.shape) if isinstance(nodes, Tensor) else type(nodes).__name__
        raise ShapeError(
            f"`x` ({given}) must be nodes [N, channels], or a pair of sources and sites; put a "
            "batch of graphs side by side"
        )


def _check_edge_index(edge_index: object) -> None:
    if not isinstance(edge_index, Tensor):
        raise ShapeError(
            f"`edge_index` is a {type(edge_index).__name__}; give int64 [2, E], or "
            "PatternEdges(pattern) for the edges of a pattern"
        )
    if edge_index.layout != torch.strided:
        raise ShapeError(f"`edge_index` is {edge_index.layout}; give its int64 [2, E] coordinates")
    if edge_index.dim() != 2 or len(edge_index) != 2 or edge_index.dtype != torch.int64:
        raise ShapeError(
            f"`edge_index` ({edge_index.dtype} {list(edge_index.shape)}) must be int64 [2, E]"
        )


def _sort(edge_index: Tensor, sites: int, sources: int) -> _Graph:
    """Sort the edges of a graph by (site, source); their values are checked where it is no wait."""
    source, site = edge_index
    if edge_index.is_cpu and torch.compiler.is_compiling():
        limits = torch.tensor([[sources], [sites]])
        inside = ((edge_index >= 0) & (edge_index < limits)).all()
        torch._assert_async(inside, "`edge_index` names a source or a site that `x` has not")
    elif edge_index.is_cpu and edge_index.numel():
        low, high = int(edge_index.min()), (int(source.max()), int(site.max()))
        if low < 0 or high[0] >= sources or high[1] >= sites:
            raise PatternError(
                f"`edge_index` runs from {low} to {high[0]} (sources) and {high[1]} (sites); there "
                f"are {sources} sources and {sites} sites"
            )
    order = torch.argsort(site * sources + source, stable=True)
    bounds = torch.arange(sites + 1, device=site.device)
    row_ptr = torch.searchsorted(site[order], bounds)
    col = source[order]
    return _Graph(Edges(row_ptr, col, None), transpose_edges(row_ptr, col, sources), order)
