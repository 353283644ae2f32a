"""Layers over graphs that are given with each call, with the interface of torch-geometric."""

from __future__ import annotations

import weakref
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.grids.integers import integer, integer_from
from scisparse.kernels import attention_weights, graph_attention
from scisparse.kernels.graph_attention.checks import check_dropout
from scisparse.layers.edge_index import (
    Graph,
    check_edge_index,
    index_tensors,
    is_traced,
    sort_edges,
)
from scisparse.layers.edges import PatternEdges, check_edge_attr

__all__ = ["GraphTransformer"]

Nodes = Tensor | tuple[Tensor, Tensor]

_FLOWS = ("source_to_target", "target_to_source")


class GraphTransformer(nn.Module):
    """Attention of the nodes of a graph to their neighbours (graph transformer operator).

    ``y[i] = S x[i] + sum_{j -> i} p[j,i] (V x[j] + W a[j,i])``, with ``p`` the softmax over the
    neighbours of ``(Q x[i]) . (K x[j] + W a[j,i]) / sqrt(D)``, head by head. Constructor, call and
    ``state_dict`` are those of torch-geometric's ``TransformerConv``, but for what is under Notes;
    results equal it.

    Parameters
    ----------
    in_channels
        Channels of the nodes; those of sources and of sites, as a pair, where they differ. -1 for
        those of the first call, before which maps have no weights.
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
    flow
        ``"source_to_target"``; ``"target_to_source"`` where `edge_index` names sites before
        sources.

    Raises
    ------
    OptionError
        Channels or heads that are not positive, a negative `edge_dim`, a `dropout` that is not
        below 1, another `flow`.

    Notes
    -----
    Of ``TransformerConv`` it has not: another `aggr` than the sum, a `dropout` of 1, edge features
    from the values of a sparse `edge_index`, torch-sparse's ``SparseTensor``, hooks and explainers
    of ``MessagePassing``, and TorchScript (use ``torch.compile`` or ``torch.export``).

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
        *,
        flow: str = "source_to_target",
    ) -> None:
        super().__init__()
        given = in_channels if isinstance(in_channels, tuple | list) else (in_channels, in_channels)
        pair = [integer("in_channels", n, OptionError) for n in given]
        if len(pair) != 2 or any(n < 1 and n != -1 for n in pair):
            raise OptionError(
                f"`in_channels` (={in_channels}) must be positive, or -1 for those of the first "
                "call, or a pair of such"
            )
        integer_from("out_channels", out_channels, 1, OptionError)
        integer_from("heads", heads, 1, OptionError)
        if edge_dim is not None:
            edge_dim = integer_from("edge_dim", edge_dim, 0, OptionError)
        if flow not in _FLOWS:
            raise OptionError(f"`flow` (={flow!r}) must be one of {', '.join(map(repr, _FLOWS))}")
        check_dropout(dropout)
        self.in_channels, self.out_channels, self.heads = in_channels, out_channels, heads
        self.concat, self.beta, self.root_weight = concat, beta and root_weight, root_weight
        self.dropout, self.edge_dim = dropout, edge_dim
        all_heads, out = heads * out_channels, (heads if concat else 1) * out_channels
        self.flow, self._reverse = flow, flow == "target_to_source"
        self.lin_key = _map(pair[0], all_heads, bias)
        self.lin_query = _map(pair[1], all_heads, bias)
        self.lin_value = _map(pair[0], all_heads, bias)
        self.lin_edge = nn.Linear(edge_dim, all_heads, bias=False) if edge_dim is not None else None
        self.lin_skip = _map(pair[1], out, bias)
        self.lin_beta = nn.Linear(3 * out, 1, bias=False) if self.beta else None
        self._last: tuple[weakref.ref[Tensor], tuple[Any, ...], Graph] | None = None

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
            From which source to which site, integers ``[2, E]``, in any order; or a sparse tensor
            ``[M, N]`` (COO or CSR; torch-geometric's ``adj_t``), whose values are not read.
            Sorted once for as long as the same tensor is given (writes through ``.data`` or numpy
            are not seen). Or the edges of a pattern, sorted already.
        edge_attr
            Features of the edges, ``[E, A]``.
        return_attention_weights
            True or False, as in torch-geometric: the weights ``p``, ``[E, H]`` in the order of
            `edge_index`, are returned too.
        """
        sources, sites = (x, x) if isinstance(x, Tensor) else x
        for nodes in (sources, sites):
            _check_nodes(nodes)
        graph = self._graph(edge_index, (sites.shape[0], sources.shape[0]))
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
        ).squeeze(0)
        out = self._skip(y.flatten(1) if self.concat else y.mean(1), sites)
        if not isinstance(return_attention_weights, bool):
            return out
        weights = attention_weights(q, k, row_ptr, col, **options).squeeze(0)
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
        return x.view(1, x.shape[0], self.heads, self.out_channels)

    def _edge_weight(self, like: Tensor) -> Tensor | None:
        if self.lin_edge is None:
            return None
        weight: Tensor = self.lin_edge.weight.to(like.dtype)
        return weight.view(self.heads, self.out_channels, -1)

    def _graph(self, edge_index: Tensor | PatternEdges, shape: tuple[int, int]) -> Graph:
        if isinstance(edge_index, PatternEdges):
            if edge_index.pattern.shape != shape:
                raise PatternError(
                    f"`edge_index` is a pattern of {edge_index.pattern.shape} sites x sources; `x` "
                    f"has {shape}"
                )
            return Graph(edge_index.forward_edges, edge_index.transposed, None)
        edge_index = check_edge_index(edge_index, shape, self._reverse)
        if is_traced(edge_index) or edge_index.is_inference():
            return sort_edges(edge_index, shape, self._reverse)
        places = [(t._version, t.data_ptr(), t.shape) for t in index_tensors(edge_index)]
        last, key = self._last, (places, shape)  # once: other threads may write it meanwhile
        if last is None or last[0]() is not edge_index or last[1] != key:
            graph = sort_edges(edge_index, shape, self._reverse)
            last = self._last = (weakref.ref(edge_index), key, graph)
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


def _map(channels: int, out: int, bias: bool) -> nn.Linear:
    return nn.LazyLinear(out, bias) if channels == -1 else nn.Linear(channels, out, bias)


def _check_nodes(nodes: object) -> None:
    if not isinstance(nodes, Tensor) or nodes.dim() != 2:
        given = list(nodes.shape) if isinstance(nodes, Tensor) else type(nodes).__name__
        raise ShapeError(
            f"`x` ({given}) must be nodes [N, channels], or a pair of sources and sites; put a "
            "batch of graphs side by side"
        )
