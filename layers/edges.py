"""Edges of a pattern as buffers beside the parameters of a layer."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.grids.integers import integer_from
from scisparse.kernels import Edges
from scisparse.layers.buffers import OwnBuffers
from scisparse.layers.rewiring import checked_pattern
from scisparse.pattern import Pattern
from scisparse.pattern.edges import index_dtype

__all__ = ["BiasWeights", "EdgeBias", "PatternEdges", "check_edge_attr", "edge_buffers", "longest"]


def edge_buffers(pattern: Pattern) -> dict[str, Tensor]:
    """Both directions of a pattern as a layer stores them, by the names of its buffers."""
    transposed, order = pattern.transpose()
    return {
        "row_ptr": pattern.row_ptr,
        "col": pattern.col,
        "row_ptr_t": transposed.row_ptr,
        "col_t": transposed.col,
        "order_t": order.to(index_dtype(pattern.num_edges)),
    }


class PatternEdges(OwnBuffers):
    """Both directions of a pattern, where the layer that holds it lies.

    Nothing is saved: all follows from the pattern, which stays on the CPU.

    Parameters
    ----------
    pattern
        Who reads whom.

    Raises
    ------
    PatternError
        `pattern` is no pattern, or its indices do not fit.

    Examples
    --------
    >>> import torch
    >>> from scisparse.pattern import Pattern
    >>> edges = PatternEdges(Pattern.from_dense(torch.tensor([[1, 0, 1]]).bool()))
    >>> edges.forward_edges.col.tolist(), edges.transposed.row_ptr.tolist()
    ([0, 2], [0, 1, 1, 2])
    """

    row_ptr: Tensor
    col: Tensor
    row_ptr_t: Tensor
    col_t: Tensor
    order_t: Tensor

    def __init__(self, pattern: Pattern) -> None:
        super().__init__()
        self.pattern = checked_pattern(pattern)
        self._write_buffers(torch.empty(0).device)

    def _write_buffers(self, device: torch.device) -> None:
        for name, index in edge_buffers(self.pattern).items():
            self._put_buffer(name, index, device)

    def move_to(self, pattern: Pattern) -> None:
        """Take the edges of another pattern over the same sites and sources, checked already."""
        self.pattern, self.rewired = pattern, True
        self._write_buffers(self.row_ptr.device)

    @property
    def forward_edges(self) -> Edges:
        """Sources that each site reads."""
        return Edges(self.row_ptr, self.col, None)

    @property
    def transposed(self) -> Edges:
        """Sites that read each source."""
        return Edges(self.row_ptr_t, self.col_t, self.order_t)

    def extra_repr(self) -> str:
        """Sizes, for ``print(layer)``."""
        return repr(self.pattern)


class BiasWeights(NamedTuple):
    """What an :class:`EdgeBias` has learned: of its features ``[F, H]``, of its taps ``[K, H]``."""

    features: Tensor | None
    taps: Tensor | None


class EdgeBias(OwnBuffers):
    """Number of each edge and head that geometry and learning add to scores.

    ``bias[e,h] = log(area[col[e]] / mean area) + sum_f features[e,f] * weight[f,h] +
    tap_weight[tap[e],h]``

    The first term, where `areas` is true, makes a softmax over edges an integral over the sphere.
    The features of the second are piecewise linear in distance ``d``,
    ``max(0, 1 - |max(K - 1, 1) d / reach - n|)`` for ``n < K``, by themselves and times the cosine
    and sine of the bearing, where the pattern has one. Its weights start at 0. The reach is the
    longest distance of the pattern that the layer is built on, or that of a state that it loads;
    edges that it gets later, and are longer, count as that long.

    Parameters
    ----------
    pattern
        On a grid of sources for `areas`, with distances for `knots`.
    num_heads
        H.
    areas
        Whether sources count by the area of their cell.
    knots
        K, the numbers of distances between which the learned bias is linear; 0 for none.
    taps
        Whether each tap of the pattern has a learned bias, which starts at 0.

    Raises
    ------
    PatternError
        The pattern lacks what is asked of it.
    """

    log_area: Tensor | None
    features: Tensor | None
    tap: Tensor | None
    weight: nn.Parameter | None
    tap_weight: nn.Parameter | None

    def __init__(
        self,
        pattern: Pattern,
        num_heads: int,
        *,
        areas: bool = False,
        knots: int = 0,
        taps: bool = False,
    ) -> None:
        super().__init__()
        integer_from("knots", knots, 0, OptionError)
        if areas and pattern.source_grid is None:
            raise PatternError(
                "`pattern` has no grid of sources, so that they have no areas; build it on a grid, "
                "or give Pattern.from_edge_index its source_grid="
            )
        if knots and pattern.distance is None:
            raise PatternError(
                "`pattern` has no distances for a relative bias; build it with patterns.radius or "
                "patterns.nearest, or give Pattern.from_edge_index both grids or distance="
            )
        if taps and pattern.tap is None:
            raise PatternError(
                "`pattern` has no taps for a bias by tap; build it with patterns.window, "
                "patterns.neighborhood or patterns.sliding_window, or give Pattern.from_edge_index "
                "its tap="
            )
        self.areas, self.knots, self.taps, self.num_taps = areas, knots, taps, pattern.num_taps
        self.turns = bool(knots) and pattern.bearing is not None
        self.reach = longest(pattern) if knots else 0.0  #: metres
        self._pattern = pattern.to("cpu")  # not a layer over a pattern: none of its weights is
        self._write_buffers(torch.empty(0).device)
        size = None if self.features is None else self.features.shape[1]
        self.weight = None if size is None else nn.Parameter(torch.zeros(size, num_heads))
        self.tap_weight = nn.Parameter(torch.zeros(pattern.num_taps, num_heads)) if taps else None

    def _write_buffers(self, device: torch.device) -> None:
        """Write the buffers: in float64 where that is the type of the layer, else in float32."""
        before = [self._buffers.get(name) for name in ("log_area", "features")]
        dtype = next((t.dtype for t in before if t is not None), torch.get_default_dtype())
        arrays = self._arrays(self._pattern, torch.empty(0, dtype=dtype, device=device))
        for name, values in arrays._asdict().items():
            self._put_buffer(name, values, device)

    def _arrays(self, pattern: Pattern, like: Tensor) -> _Arrays:
        """What the bias reads of a pattern, beside `like`."""
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        device = like.device
        area = _log_area(pattern).to(device, wide) if self.areas else None
        features = None
        if self.knots:
            features = _features(pattern, self.knots, self.reach, self.turns).to(device, wide)
        tap = pattern.tap if self.taps else None
        return _Arrays(area, features, None if tap is None else tap.to(device, torch.int64))

    def fit(self, pattern: Pattern) -> Pattern:
        """Return another pattern as this bias reads it, or raise: it looks at the same sources.

        Raises
        ------
        PatternError
            The pattern lacks the distances, bearings or taps that the bias was built with.
        """
        lacks = [
            name
            for name, needed in (("distance", self.knots), ("bearing", self.turns))
            if needed and getattr(pattern, name) is None
        ]
        if lacks:
            raise PatternError(
                f"`pattern` has no `{lacks[0]}`, which the bias of this layer (knots={self.knots}) "
                "reads on every edge; build it with patterns.radius or patterns.nearest"
            )
        if self.taps and (pattern.tap is None or pattern.num_taps != self.num_taps):
            given = "no taps" if pattern.tap is None else f"{pattern.num_taps} taps"
            raise PatternError(
                f"`pattern` has {given} and this layer a learned bias for each of {self.num_taps}; "
                "give edges with one of its taps, or build the layer with scores that have no taps"
            )
        return replace(pattern, source_grid=self._pattern.source_grid) if self.areas else pattern

    def move_to(self, pattern: Pattern) -> None:
        """Belong to the edges of another pattern, which :meth:`fit` has returned."""
        self._pattern, self.rewired = pattern, True
        if (buffer := next(self.buffers(), None)) is not None:
            self._write_buffers(buffer.device)

    @property
    def learned(self) -> BiasWeights:
        """What is learned."""
        return BiasWeights(self.weight, self.tap_weight)

    def of(self, pattern: Pattern, weights: BiasWeights | None = None) -> Tensor | None:
        """Bias of the edges of another pattern: ``[E', H]``, ``[E', 1]`` or nothing.

        Parameters
        ----------
        pattern
            Over the same sources, and with the arrays that :meth:`fit` asks for.
        weights
            In place of those learned by now.
        """
        learned = self.learned if weights is None else weights
        like = next(
            (t for t in (self.log_area, self.features, learned.taps) if t is not None), None
        )
        if like is None:
            return None
        return _bias(self._arrays(self.fit(pattern), like), learned)

    def reset_parameters(self) -> None:
        """Set what is learned to 0."""
        for weight in (self.weight, self.tap_weight):
            if weight is not None:
                nn.init.zeros_(weight)

    def forward(self) -> Tensor | None:
        """Return ``[E, H]``, ``[E, 1]`` or nothing."""
        return _bias(_Arrays(self.log_area, self.features, self.tap), self.learned)

    def extra_repr(self) -> str:
        """What it is made of."""
        return f"areas={self.areas}, knots={self.knots}, taps={self.taps}"


class _Arrays(NamedTuple):
    """What a bias reads of a pattern: ``[E]``, ``[E, F]``, ``[E]``."""

    log_area: Tensor | None
    features: Tensor | None
    tap: Tensor | None


def _bias(arrays: _Arrays, learned: BiasWeights) -> Tensor | None:
    parts = [] if arrays.log_area is None else [arrays.log_area[:, None]]
    if arrays.features is not None and learned.features is not None:
        parts.append(arrays.features.to(learned.features.dtype) @ learned.features)
    if arrays.tap is not None and learned.taps is not None:
        parts.append(learned.taps[arrays.tap])
    return sum(parts[1:], parts[0]) if parts else None


def longest(pattern: Pattern) -> float:
    """Longest distance of an edge, metres; 0 where there is none."""
    distance = pattern.distance
    return 0.0 if distance is None or not distance.numel() else float(distance.double().max())


def _log_area(pattern: Pattern) -> Tensor:
    """Logarithm of the area of the source of each edge, in units of the mean, float64 ``[E]``."""
    assert pattern.source_grid is not None  # checked when the layer is built
    areas = torch.tensor(pattern.source_grid.areas, device="cpu").reshape(-1)  # may be read-only
    return (areas / areas.mean()).log()[pattern.col.long()]


def _features(pattern: Pattern, knots: int, reach: float, turns: bool) -> Tensor:
    """Features of the edges, float64 ``[E, K]``, or ``[E, 3 K]`` with those of the bearing."""
    assert pattern.distance is not None  # checked when the layer is built
    distance = pattern.distance.double()
    place = distance.clamp(max=reach) / max(reach, 1e-12) * max(knots - 1, 1)
    knot = torch.arange(knots, device=distance.device)
    hats = (1 - (place[:, None] - knot).abs()).clamp(min=0)
    if not turns:
        return hats
    assert pattern.bearing is not None
    bearing = pattern.bearing.double().nan_to_num()[:, None]
    # A site has no bearing to itself.
    elsewhere = (distance > 0)[:, None]
    parts = [torch.where(elsewhere, f(bearing), 0.0) for f in (torch.cos, torch.sin)]
    return torch.cat([hats, *(hats * part for part in parts)], dim=1)


def check_edge_attr(edge_attr: Tensor | None, edges: int, edge_dim: int | None) -> None:
    """Raise unless features of edges are there if they are due, ``[E, A]``."""
    if edge_dim is None and edge_attr is not None:
        raise ShapeError(
            f"`edge_attr` {list(edge_attr.shape)} is given, but the layer has no `edge_dim`; build "
            f"it with edge_dim={edge_attr.shape[-1]}"
        )
    if edge_dim is not None and (edge_attr is None or edge_attr.shape != (edges, edge_dim)):
        given = "not given" if edge_attr is None else list(edge_attr.shape)
        raise ShapeError(
            f"`edge_attr` ({given}) must be [{edges} edges, {edge_dim} features], as the layer was "
            f"built with edge_dim={edge_dim}"
        )
