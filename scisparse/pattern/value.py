"""The pattern: a frozen value in compressed sparse rows."""

from __future__ import annotations

import hashlib
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor

from scisparse.errors import PatternError
from scisparse.grids import Grid
from scisparse.pattern.checks import check_edge_arrays, check_edge_index, check_pattern
from scisparse.pattern.combine import restrict, select, union
from scisparse.pattern.edges import (
    check_tensor,
    col_dtype,
    edge_order,
    move,
    row_ptr_of,
    stable_argsort,
)
from scisparse.pattern.reach import coverage
from scisparse.pattern.window_spec import WindowSpec

__all__ = ["Pattern"]


@dataclass(frozen=True, eq=False, repr=False)
class Pattern:
    """Edges from sources to sites, by site (compressed sparse rows), with arrays that ride along.

    Edges are sorted by (site, source, tap). A pair of site and source occurs once, or several times
    with different taps (where padding repeats a source). Two patterns are equal when their content
    is, wherever their tensors lie.

    Parameters
    ----------
    row_ptr
        int64 ``[M + 1]``: the edges of site ``i`` are ``row_ptr[i]`` to ``row_ptr[i + 1] - 1``.
    col
        Source of each edge ``[E]``, int32 (int64 from 2**31 sources on).
    num_sources
        N.
    tap
        int32 ``[E]``, place of each edge in its stencil.
    distance
        float32 ``[E]``, metres between site and source.
    bearing
        float32 ``[E]``, direction from site to source in radians clockwise from north, 0 to 2 pi.
    site_grid, source_grid
        Grids whose points the sites and the sources are.
    window
        Set when the pattern is a regular window, which torch can run as a convolution.
    tap_count
        Taps of the stencil, where more than ``tap`` shows (masks may leave one unused).

    Raises
    ------
    PatternError
        If a tensor has the wrong dtype, length or device. :meth:`validate` looks at the values.

    Examples
    --------
    >>> import torch
    >>> from scisparse.pattern import Pattern
    >>> pattern = Pattern.from_edge_index(torch.tensor([[2, 0, 1], [0, 0, 1]]), 2, 3)
    >>> pattern
    Pattern(2 sites x 3 sources, 3 edges, fan-in 1 to 2)
    >>> pattern.col.tolist(), pattern.rows().tolist()
    ([0, 2, 1], [0, 0, 1])
    """

    row_ptr: Tensor
    col: Tensor
    num_sources: int
    tap: Tensor | None = None
    distance: Tensor | None = None
    bearing: Tensor | None = None
    site_grid: Grid | None = None
    source_grid: Grid | None = None
    window: WindowSpec | None = None
    tap_count: int | None = None

    def __post_init__(self) -> None:
        check_tensor("row_ptr", self.row_ptr, torch.int64, None, self.row_ptr.device)
        if self.row_ptr.numel() == 0:
            raise PatternError(
                "`row_ptr` (empty) must hold M + 1 values, the first 0; give [0] for no sites"
            )
        if self.num_sources < 0:
            raise PatternError(f"`num_sources` (={self.num_sources}) must not be negative")
        check_tensor("col", self.col, col_dtype(self.num_sources), None, self.device)
        edges = self.col.numel()
        check_tensor("tap", self.tap, torch.int32, edges, self.device)
        check_tensor("distance", self.distance, torch.float32, edges, self.device)
        check_tensor("bearing", self.bearing, torch.float32, edges, self.device)
        for name, grid, size in (
            ("site_grid", self.site_grid, self.num_sites),
            ("source_grid", self.source_grid, self.num_sources),
        ):
            if grid is not None and grid.size != size:
                raise PatternError(
                    f"`{name}` ({grid.size} points) must have the pattern's {size} points"
                )

    # -- sizes ---------------------------------------------------------------------------------

    @property
    def num_sites(self) -> int:
        """M."""
        return self.row_ptr.numel() - 1

    @property
    def num_edges(self) -> int:
        """E."""
        return self.col.numel()

    @property
    def num_taps(self) -> int:
        """K: taps of the stencil; 0 when edges have none."""
        if self.tap_count is not None:
            return self.tap_count
        if self.tap is None or self.num_edges == 0:
            return 0
        return int(self.tap.max()) + 1

    @property
    def shape(self) -> tuple[int, int]:
        """(M, N)."""
        return (self.num_sites, self.num_sources)

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.row_ptr.device

    @property
    def fan_in(self) -> Tensor:
        """Edges of each site, int64 ``[M]``."""
        return self.row_ptr.diff()

    def rows(self) -> Tensor:
        """Site of each edge, int64 ``[E]``."""
        sites = torch.arange(self.num_sites, device=self.device)
        return torch.repeat_interleave(sites, self.fan_in, output_size=self.num_edges)

    def statistics(self) -> dict[str, float]:
        """Count edges, density, fan-in, empty rows, and pairs that occur more than once."""
        fan_in, sites = self.fan_in, self.num_sites
        same = self.col[1:] == self.col[:-1]
        rows = self.rows()
        return {
            "edges": self.num_edges,
            "density": self.num_edges / max(1, sites * self.num_sources),
            "fan_in_min": int(fan_in.min()) if sites else 0,
            "fan_in_mean": self.num_edges / max(1, sites),
            "fan_in_max": int(fan_in.max()) if sites else 0,
            "empty_rows": int((fan_in == 0).sum()),
            "duplicates": int((same & (rows[1:] == rows[:-1])).sum()),
        }

    def coverage(self, hops: int = 1, *, samples: int = 256, seed: int = 0) -> float:
        """Find the part of all (site, source) pairs that are joined by at most `hops` edges.

        What a stack of as many layers can bring together; a pattern that stands for dense attention
        wants 1 within few.

        Parameters
        ----------
        hops
            Layers; more than one needs sites that are sources too.
        samples, seed
            With more than one hop, how many random sites stand for all.

        Examples
        --------
        >>> import torch
        >>> from scisparse.pattern import Pattern
        >>> ring = Pattern.from_dense(torch.eye(8).roll(1, 1).bool())
        >>> ring.coverage(1), ring.coverage(4)
        (0.125, 0.5)
        """
        return coverage(self, hops, samples, seed)

    # -- content -------------------------------------------------------------------------------

    def validate(self) -> Pattern:
        """Check every value and give the pattern back.

        Raises
        ------
        PatternError
            At the first row or edge that breaks a rule.
        """
        check_pattern(self)
        return self

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the content, as hexadecimal digits."""
        cached = self.__dict__.get("_fingerprint")
        if cached is not None:
            return str(cached)
        window = None if self.window is None else astuple(self.window)
        grids = [None if g is None else g.fingerprint for g in (self.site_grid, self.source_grid)]
        digest = hashlib.sha256(repr((self.shape, self.num_taps, window, grids)).encode())
        for values in (self.row_ptr, self.col, self.tap, self.distance, self.bearing):
            digest.update(b"none" if values is None else values.cpu().numpy().tobytes())
        object.__setattr__(self, "_fingerprint", digest.hexdigest())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pattern):
            return NotImplemented
        if self is other:
            return True
        same_size = self.shape == other.shape and self.num_edges == other.num_edges
        return same_size and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        if self.device.type == "meta":
            fan_in = "unknown"
        else:
            low, high = map(int, self.fan_in.aminmax()) if self.num_sites else (0, 0)
            fan_in = f"{low}" if low == high else f"{low} to {high}"
        points = f"{self.num_sites} sites x {self.num_sources} sources"
        return f"Pattern({points}, {self.num_edges} edges, fan-in {fan_in})"

    def to(self, device: torch.device | str) -> Pattern:
        """Give the pattern with its tensors on another device."""
        target = torch.device(device)
        if target == self.device:
            return self
        return replace(
            self,
            row_ptr=self.row_ptr.to(target),
            col=self.col.to(target),
            tap=move(self.tap, target),
            distance=move(self.distance, target),
            bearing=move(self.bearing, target),
        )

    # -- from and to other forms ---------------------------------------------------------------

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Tensor,
        num_sites: int,
        num_sources: int,
        *,
        tap: Tensor | None = None,
        distance: Tensor | None = None,
        bearing: Tensor | None = None,
    ) -> Pattern:
        """Build from pairs in the order of torch-geometric: row 0 sources, row 1 sites.

        Parameters
        ----------
        edge_index
            Integers ``[2, E]`` in any order.
        num_sites, num_sources
            M and N.
        tap, distance, bearing
            Edge arrays ``[E]`` in the order of ``edge_index``.

        Raises
        ------
        PatternError
            If a shape is wrong, indices or taps are no integers, an index is out of range, or a
            pair repeats without a tap of its own.
        """
        check_edge_index(edge_index, num_sites, num_sources)
        source, site = edge_index.long()
        arrays = {"tap": tap, "distance": distance, "bearing": bearing}
        check_edge_arrays(arrays, len(site))
        order = edge_order(site, source, tap)
        return cls(
            row_ptr=row_ptr_of(site, num_sites),
            col=source[order].to(col_dtype(num_sources)),
            num_sources=num_sources,
            tap=None if tap is None else tap[order].to(torch.int32),
            distance=None if distance is None else distance[order].to(torch.float32),
            bearing=None if bearing is None else bearing[order].to(torch.float32),
        ).validate()

    def to_edge_index(self) -> Tensor:
        """Give pairs as torch-geometric does, int64 ``[2, E]``: row 0 sources, row 1 sites."""
        return torch.stack([self.col.long(), self.rows()])

    @classmethod
    def from_dense(cls, dense: Tensor) -> Pattern:
        """Build from booleans ``[M, N]``, true where site i reads source j."""
        if dense.ndim != 2 or dense.dtype != torch.bool:
            raise PatternError(
                f"`dense` (shape {tuple(dense.shape)}, {dense.dtype}) must be booleans [M, N]"
            )
        site, source = dense.nonzero(as_tuple=True)
        return cls(
            row_ptr=row_ptr_of(site, dense.shape[0]),
            col=source.to(col_dtype(dense.shape[1])),
            num_sources=dense.shape[1],
        )

    def to_dense(self) -> Tensor:
        """Give booleans ``[M, N]``, true where site i reads source j."""
        dense = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        dense[self.rows(), self.col.long()] = True
        return dense

    # -- other patterns ------------------------------------------------------------------------

    def transpose(self) -> tuple[Pattern, Tensor]:
        """Swap sites and sources.

        Taps and distances go with their edges; bearings are dropped (the way back has another one).

        Returns
        -------
        Pattern
            N sites, M sources. Computed once for each pattern.
        torch.Tensor
            int64 ``[E]``: edge ``e`` of the transposed pattern is edge ``permutation[e]`` of this
            one.
        """
        cached = self.__dict__.get("_transposed")
        if cached is None:
            cached = self._transposed_now()
            object.__setattr__(self, "_transposed", cached)
        return cached

    def _transposed_now(self) -> tuple[Pattern, Tensor]:
        order = stable_argsort(self.col)
        site = self.rows()[order]
        pattern = Pattern(
            row_ptr=row_ptr_of(self.col, self.num_sources),
            col=site.to(col_dtype(self.num_sites)),
            num_sources=self.num_sites,
            tap=None if self.tap is None else self.tap[order],
            distance=None if self.distance is None else self.distance[order],
            site_grid=self.source_grid,
            source_grid=self.site_grid,
            window=self.window.swapped() if self.window is not None else None,
            tap_count=self.num_taps if self.tap is not None else None,
        )
        return pattern, order

    def union(self, other: Pattern) -> Pattern:
        """Join the edges of two patterns over the same sites and sources.

        An edge in both is kept once, with the arrays of this pattern. Distances and bearings stay
        where both patterns have them.

        Raises
        ------
        PatternError
            If sizes differ, grids differ, or only one of the two has taps.
        """
        return union(self, other)

    def select(self, edges: Tensor) -> Pattern:
        """Keep chosen edges, given as booleans ``[E]`` or as rising int64 numbers of edges.

        Examples
        --------
        >>> import torch
        >>> pattern = Pattern.from_dense(torch.tensor([[True, True], [False, True]]))
        >>> pattern.select(torch.tensor([False, True, True])).col.tolist()
        [1, 1]
        """
        return select(self, edges)

    def restrict(
        self,
        site_mask: Tensor | None = None,
        source_mask: Tensor | None = None,
        *,
        relabel: bool = False,
    ) -> Pattern:
        """Keep the edges between chosen sites and chosen sources.

        Parameters
        ----------
        site_mask, source_mask
            Booleans ``[M]`` and ``[N]``, true at those to keep; ``None`` keeps all.
        relabel
            Renumber the sites and sources that are kept from 0 (the pattern then has no grid on
            a side that has a mask). Else M and N stay, and rows of other sites are empty.
        """
        return restrict(self, site_mask, source_mask, relabel)
