"""Edges of a pattern as buffers beside the parameters of a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.kernels import Edges
from scisparse.pattern import Pattern

__all__ = ["EdgeBias", "PatternEdges", "check_edge_attr"]

_INT32 = 2**31


class PatternEdges(nn.Module):
    """Both directions of a pattern, where the layer that holds it lies.

    Nothing is saved: all follows from the pattern, which stays on the CPU, and is written again
    whenever the module moves, so that ``to_empty`` cannot leave it unwritten.

    Parameters
    ----------
    pattern
        Who reads whom.

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
        self.pattern = pattern.to("cpu").validate()  # the kernels trust its indices
        self._write(torch.empty(0).device)

    def _write(self, device: torch.device) -> None:
        for name, index in self._buffers_of(self.pattern).items():
            self.register_buffer(name, index.to(device), persistent=False)

    def _buffers_of(self, pattern: Pattern) -> dict[str, Tensor]:
        transposed, order = pattern.transpose()
        return {
            "row_ptr": pattern.row_ptr,
            "col": pattern.col,
            "row_ptr_t": transposed.row_ptr,
            "col_t": transposed.col,
            "order_t": order.to(torch.int32) if pattern.num_edges < _INT32 else order,
        }

    @property
    def forward_edges(self) -> Edges:
        """Sources that each site reads."""
        return Edges(self.row_ptr, self.col, None)

    @property
    def transposed(self) -> Edges:
        """Sites that read each source."""
        return Edges(self.row_ptr_t, self.col_t, self.order_t)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.row_ptr
        super()._apply(fn, recurse)
        if self.row_ptr is not before:
            self._write(self.row_ptr.device)
        return self

    def extra_repr(self) -> str:
        """Sizes, for ``print(layer)``."""
        return repr(self.pattern)


class EdgeBias(nn.Module):
    """Number of each edge and head that geometry and learning add to scores.

    ``bias[e,h] = log(area[col[e]] / mean area) + sum_f features[e,f] * weight[f,h] +
    tap_weight[tap[e],h]``

    The first term, where `areas` is true, makes a softmax over edges an integral over the sphere.
    The features of the second are piecewise linear in distance ``d``,
    ``max(0, 1 - |(K - 1) d / reach - n|)`` for ``n < K``, by themselves and times the cosine and
    sine of the bearing, where the pattern has one. Its weights start at 0.

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
        if knots < 0:
            raise OptionError(f"`knots` (={knots}) must not be negative; 0 for no such bias")
        if areas and pattern.source_grid is None:
            raise PatternError(
                "`pattern` has no grid of sources, so that they have no areas; build it on a grid"
            )
        if knots and pattern.distance is None:
            raise PatternError(
                "`pattern` has no distances for a relative bias; build it with patterns.radius or "
                "patterns.nearest"
            )
        if taps and pattern.tap is None:
            raise PatternError(
                "`pattern` has no taps for a bias by tap; build it with patterns.window, "
                "patterns.neighborhood or patterns.sliding_window"
            )
        self.pattern, self.areas, self.knots, self.taps = pattern.to("cpu"), areas, knots, taps
        self._write(torch.empty(0))
        size = None if self.features is None else self.features.shape[1]
        self.weight = None if size is None else nn.Parameter(torch.zeros(size, num_heads))
        self.tap_weight = nn.Parameter(torch.zeros(pattern.num_taps, num_heads)) if taps else None

    def _write(self, like: Tensor) -> None:
        """Write the buffers beside `like`: in float64 if it is, else in float32."""
        wide = torch.float64 if like.dtype == torch.float64 else torch.float32
        area = _log_area(self.pattern) if self.areas else None
        features = _features(self.pattern, self.knots) if self.knots else None
        tap = self.pattern.tap.long() if self.taps and self.pattern.tap is not None else None
        for name, values in (("log_area", area), ("features", features), ("tap", tap)):
            if values is not None:
                dtype = wide if values.is_floating_point() else values.dtype
                values = values.to(like.device, dtype)
            self.register_buffer(name, values, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = (self.log_area, self.features, self.tap)
        super()._apply(fn, recurse)
        for old, new in zip(before, (self.log_area, self.features, self.tap), strict=True):
            if new is not None and new is not old:
                floating = [t for t in (self.log_area, self.features) if t is not None]
                self._write(floating[0] if floating else new)
                break
        return self

    def reset_parameters(self) -> None:
        """Set what is learned to 0."""
        for weight in (self.weight, self.tap_weight):
            if weight is not None:
                nn.init.zeros_(weight)

    def forward(self) -> Tensor | None:
        """Return ``[E, H]``, ``[E, 1]`` or nothing."""
        parts = [] if self.log_area is None else [self.log_area[:, None]]
        if self.features is not None and self.weight is not None:
            parts.append(self.features.to(self.weight.dtype) @ self.weight)
        if self.tap is not None and self.tap_weight is not None:
            parts.append(self.tap_weight[self.tap])
        return sum(parts[1:], parts[0]) if parts else None

    def extra_repr(self) -> str:
        """What it is made of."""
        return f"areas={self.areas}, knots={self.knots}, taps={self.taps}"


def _log_area(pattern: Pattern) -> Tensor:
    """Logarithm of the area of the source of each edge, in units of the mean, float64 ``[E]``."""
    assert pattern.source_grid is not None  # checked when the layer is built
    areas = torch.as_tensor(pattern.source_grid.areas, device="cpu").reshape(-1)
    return (areas / areas.mean()).log()[pattern.col.long()]


def _features(pattern: Pattern, knots: int) -> Tensor:
    """Features of the edges, float64 ``[E, K]`` or ``[E, 3 K]``."""
    assert pattern.distance is not None  # checked when the layer is built
    distance = pattern.distance.double()
    reach = float(distance.max()) if distance.numel() else 0.0
    place = distance / max(reach, 1e-12) * max(knots - 1, 1)
    knot = torch.arange(knots, device=distance.device)
    hats = (1 - (place[:, None] - knot).abs()).clamp(min=0)
    if pattern.bearing is None:
        return hats
    bearing = pattern.bearing.double().nan_to_num()[:, None]
    # A site has no bearing to itself.
    elsewhere = (distance > 0)[:, None]
    turns = [torch.where(elsewhere, f(bearing), 0.0) for f in (torch.cos, torch.sin)]
    return torch.cat([hats, *(hats * turn for turn in turns)], dim=1)


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
