"""The pattern: a frozen value in compressed sparse rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from scisparse.grids import Grid
from scisparse.pattern.build import EdgeArrays, dense_edges, sorted_edges, with_geometry
from scisparse.pattern.checks import check_fields, check_pattern
from scisparse.pattern.combine import moved, restrict, select, transposed, union
from scisparse.pattern.content import Value, describe, digest, statistics
from scisparse.pattern.reach import coverage
from scisparse.pattern.renumber import reorder
from scisparse.pattern.tiles import TileOccupancy, block_mask, tile_occupancy
from scisparse.pattern.window_spec import WindowSpec

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["Pattern"]


@dataclass(frozen=True, eq=False, repr=False)
class Pattern(Value):
    """Edges from sources to sites, by site (compressed sparse rows), with arrays that ride along.

    Edges are sorted by (site, source, tap). A pair of site and source occurs once, or with several
    taps (where padding repeats a source). Patterns with equal content are equal, on any device.

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
        A tensor has the wrong dtype, length or device. :meth:`validate` looks at the values.

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
        check_fields(self)

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
        return statistics(self)

    def coverage(self, hops: int = 1, *, samples: int = 256, seed: int = 0) -> float:
        """Find the part of all pairs that at most `hops` edges join, as a stack of layers does.

        A stand-in for dense attention should reach 1 within a few hops.

        Parameters
        ----------
        hops
            Layers; more than one needs sites that are sources too.
        samples, seed
            With more than one hop, how many random sites stand for all.

        Raises
        ------
        PatternError
            `hops` or `samples` is no positive integer, or sites are other points than sources.

        Examples
        --------
        >>> import torch
        >>> from scisparse.pattern import Pattern
        >>> ring = Pattern.from_dense(torch.eye(8).roll(1, 1).bool())
        >>> ring.coverage(1), ring.coverage(4)
        (0.125, 0.5)
        """
        return coverage(self, hops, samples, seed)

    def tile_occupancy(self, tile: int | tuple[int, int] = 128) -> TileOccupancy:
        """Count what a kernel that works in tiles of sites and sources has to do.

        Fewer and fuller are better; an order of :mod:`scisparse.orders` may make them so.

        Parameters
        ----------
        tile
            Sites and sources of a tile, where they differ as two numbers.

        Returns
        -------
        TileOccupancy
            Which part of the tiles hold an edge, how full these are, how many a row of tiles has.

        Raises
        ------
        PatternError
            `tile` is not one or two positive integers.

        Examples
        --------
        >>> from scisparse.patterns import sliding_window
        >>> sliding_window(64, 3).tile_occupancy(16)
        TileOccupancy(tiles=0.625, filled=0.0742..., per_row=2.5)
        """
        return tile_occupancy(self, tile)

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
        if cached is None:
            cached = digest(self)
            object.__setattr__(self, "_fingerprint", cached)
        return str(cached)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pattern):
            return NotImplemented
        if self is other:
            return True
        same_size = (self.shape, self.num_edges) == (other.shape, other.num_edges)
        return same_size and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return describe(self)

    def to(self, device: torch.device | str) -> Pattern:
        """Give the pattern with its tensors on another device."""
        return moved(self, torch.device(device))

    @classmethod
    def from_edge_index(
        cls,
        edge_index: Tensor | ArrayLike,
        num_sites: int,
        num_sources: int,
        *,
        tap: Tensor | ArrayLike | None = None,
        distance: Tensor | ArrayLike | None = None,
        bearing: Tensor | ArrayLike | None = None,
        site_grid: Grid | None = None,
        source_grid: Grid | None = None,
    ) -> Pattern:
        """Build from pairs in the order of torch-geometric: row 0 sources, row 1 sites.

        Parameters
        ----------
        edge_index
            Integers ``[2, E]`` in any order: a tensor, an array or nested lists.
        num_sites, num_sources
            M and N.
        tap, distance, bearing
            Edge arrays ``[E]`` in the order of ``edge_index``.
        site_grid, source_grid
            Their grids. With both, distances and bearings that are not given are filled in.

        Raises
        ------
        PatternError
            A size is wrong, indices or taps are no integers, an index is out of range, or a pair
            repeats without its own tap.
        GridError
            If one grid is projected, without latitude and longitude, and the other is not.

        Examples
        --------
        >>> from scisparse.grids import LatLonGrid
        >>> grid = LatLonGrid.from_degrees([0], [0, 90, 180])
        >>> pair = Pattern.from_edge_index([[1], [0]], 3, 3, site_grid=grid, source_grid=grid)
        >>> pair.distance, pair.bearing  # a quarter of the equator, to the east
        (tensor([10007543.]), tensor([1.5708]))
        """
        arrays = EdgeArrays(tap, distance, bearing)
        fields = sorted_edges(edge_index, num_sites, num_sources, arrays)
        pattern = cls(*fields, site_grid=site_grid, source_grid=source_grid)
        return with_geometry(pattern).validate()

    def to_edge_index(self) -> Tensor:
        """Give pairs as torch-geometric does, int64 ``[2, E]``: row 0 sources, row 1 sites."""
        return torch.stack([self.col.long(), self.rows()])

    @classmethod
    def from_dense(cls, dense: Tensor | ArrayLike) -> Pattern:
        """Build from booleans ``[M, N]``, true where site i reads source j."""
        return cls(*dense_edges(dense))

    def to_dense(self) -> Tensor:
        """Give booleans ``[M, N]``, true where site i reads source j."""
        dense = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        dense[self.rows(), self.col.long()] = True
        return dense

    def transpose(self) -> tuple[Pattern, Tensor]:
        """Swap sites and sources.

        Taps and distances go with their edges; bearings are dropped (the way back has others).

        Returns
        -------
        Pattern
            N sites, M sources. Computed once for each pattern.
        torch.Tensor
            int64 ``[E]``: edge ``e`` of the transposed pattern is edge ``permutation[e]`` here.
        """
        cached = self.__dict__.get("_transposed")
        if cached is None:
            object.__setattr__(self, "_transposed", cached := transposed(self))
        return cached

    def union(self, other: Pattern) -> Pattern:
        """Join the edges of two patterns over the same sites and sources.

        An edge in both is kept once, with the arrays of this pattern. Distances and bearings stay
        where both have them. Taps are one where they read the same, as the middles of windows do.

        Raises
        ------
        PatternError
            Sizes or grids differ, or only one of the two has taps.
        """
        return union(self, other)

    def select(self, edges: Tensor | ArrayLike) -> Pattern:
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
        site_mask: Tensor | ArrayLike | None = None,
        source_mask: Tensor | ArrayLike | None = None,
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

    def reorder(
        self, site_order: Tensor | ArrayLike, source_order: Tensor | ArrayLike | None = None
    ) -> Pattern:
        """Number sites and sources anew: new site ``i`` is the old site ``site_order[i]``.

        Taps, distances and bearings go with their edges, and the points of a grid on the sphere
        become an ``UnstructuredGrid``; a grid in the plane and a window are dropped. What a layer
        reads goes along as ``x[:, order]``. ``order.argsort()`` leads back, but not to rows and
        columns.

        Parameters
        ----------
        site_order, source_order
            int64 ``[M]`` and ``[N]``; where sources have none, they have that of the sites.

        Raises
        ------
        PatternError
            An order is no permutation, or the sources need one of their own.

        Examples
        --------
        >>> import torch
        >>> ring = Pattern.from_dense(torch.eye(4).roll(1, 1).bool())
        >>> ring.reorder(torch.tensor([0, 2, 1, 3])).col.tolist()
        [2, 3, 1, 0]
        """
        return reorder(self, site_order, source_order)

    def to_block_mask(self, block_size: int | tuple[int, int] = 128) -> BlockMask:
        """Hand the pattern to torch's ``flex_attention``, which computes tiles with an edge whole.

        The mask lies on the device of the pattern, and takes a bit for each pair of a tile that is
        not full, beside four numbers a tile. Sites without edges get 0, as in ``graph_attention``.

        Parameters
        ----------
        block_size
            Sites and sources of a tile, where they differ as two numbers, for any M and N. Compiled
            kernels want multiples of their own blocks: 128 suits them.

        Raises
        ------
        PatternError
            There are no sites or sources, or a site reads a source by several taps.
        MemoryLimitError
            The bits take more than 2 GiB.

        Examples
        --------
        >>> from scisparse.patterns import sliding_window
        >>> mask = sliding_window(300, 33).to_block_mask(128)
        >>> mask.shape, mask.kv_num_blocks.tolist()
        ((1, 1, 300, 300), [[[2, 3, 2]]])
        """
        return block_mask(self, block_size)
