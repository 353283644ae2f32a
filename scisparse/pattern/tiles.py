"""How the edges of a pattern lie in tiles of sites and sources, and what hands them on as such."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from scisparse.errors import MemoryLimitError, PatternError
from scisparse.pattern.content import repeats
from scisparse.pattern.edges import first_true

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    from scisparse.pattern.value import Pattern

__all__ = ["TileOccupancy", "block_mask", "tile_occupancy"]

# Kernels index the bits of a mask with 32-bit numbers.
_LARGEST_BITS = 2**31 - 1

_EMPTY, _FULL, _FIRST_PARTIAL = 0, 1, 2


class TileOccupancy(NamedTuple):
    """How the edges lie in tiles; what a kernel that works in tiles has to do."""

    tiles: float  #: tiles with an edge, as a part of all
    filled: float  #: (site, source) pairs that are edges, as a part of all in these tiles
    per_row: float  #: tiles with an edge, in the mean over the rows of tiles


class _Tiles(NamedTuple):
    """Tiles with an edge, numbered row by row; those at the ends may stick out."""

    down: int
    across: int
    number: Tensor  # [T], rising
    edges: Tensor  # [T]
    of_edge: Tensor  # [E], place in `number`


def tile_occupancy(pattern: Pattern, tile: int | tuple[int, int]) -> TileOccupancy:
    """Count tiles and what they hold; see ``Pattern.tile_occupancy``."""
    height, width = _tile_size("tile", tile)
    tiles = _tiles(pattern, height, width, repeats(pattern).logical_not())
    if not len(tiles.number):
        return TileOccupancy(0.0, 0.0, 0.0)
    sites, sources = pattern.shape
    down = (sites - tiles.number // tiles.across * height).clamp(max=height)
    across = (sources - tiles.number % tiles.across * width).clamp(max=width)
    return TileOccupancy(
        len(tiles.number) / (tiles.down * tiles.across),
        int(tiles.edges.sum()) / int((down * across).sum()),
        len(tiles.number) / tiles.down,
    )


def block_mask(pattern: Pattern, block_size: int | tuple[int, int]) -> BlockMask:
    """Hand the pattern to torch's ``flex_attention``; see ``Pattern.to_block_mask``."""
    from torch.nn.attention.flex_attention import BlockMask

    height, width = _tile_size("block_size", block_size)
    if 0 in pattern.shape:
        raise PatternError(f"{pattern!r} must have sites and sources to become a block mask")
    if (edge := first_true(repeats(pattern))) is not None:
        raise PatternError(
            f"a block mask holds each pair once, but site {int(pattern.rows()[edge])} reads source "
            f"{int(pattern.col[edge])} by several taps; build the pattern with padding of zeros"
        )
    tiles = _tiles(pattern, height, width)
    # As torch has it, tiles that stick out are never full: their mask is asked.
    full = tiles.edges == height * width
    slot = torch.full((len(full),), _FULL, dtype=torch.int32, device=pattern.device)
    slot[~full] = _FIRST_PARTIAL + torch.arange(
        int((~full).sum()), dtype=torch.int32, device=pattern.device
    )
    slots = slot.new_full((tiles.down * tiles.across,), _EMPTY)
    slots[tiles.number] = slot
    slots = slots.view(tiles.down, tiles.across)
    bits = _bits(pattern, slot[tiles.of_edge], (height, width), int((~full).sum()))

    def mask_mod(batch: Tensor, head: Tensor, site: Tensor, source: Tensor) -> Tensor:
        place = source % width
        byte = bits[slots[site // height, source // width], site % height, place // 8]
        return ((byte.to(torch.int32) >> (place % 8)) & 1) == 1

    return BlockMask.from_kv_blocks(
        *_listed(slots >= _FIRST_PARTIAL),
        *_listed(slots == _FULL),
        BLOCK_SIZE=(height, width),
        mask_mod=mask_mod,
        seq_lengths=pattern.shape,
    )


def _tile_size(name: str, size: int | tuple[int, int]) -> tuple[int, int]:
    sizes: Any = (size, size) if isinstance(size, int) else size
    sound = isinstance(sizes, tuple) and len(sizes) == 2
    if not sound or not all(type(n) is int and n > 0 for n in sizes):
        raise PatternError(
            f"`{name}` (={size!r}) must be a positive integer, or two: of sites and of sources"
        )
    return sizes[0], sizes[1]


def _tiles(pattern: Pattern, height: int, width: int, chosen: Tensor | None = None) -> _Tiles:
    down, across = -(-pattern.num_sites // height), -(-pattern.num_sources // width)
    number = pattern.rows() // height * across + pattern.col // width
    number = number if chosen is None else number[chosen]
    number, of_edge, edges = number.unique(return_inverse=True, return_counts=True)
    return _Tiles(down, across, number, edges, of_edge)


def _bits(pattern: Pattern, slot: Tensor, tile: tuple[int, int], partial: int) -> Tensor:
    """One bit a pair of each partial tile, uint8 ``[2 + partial, height, width / 8]``."""
    height, width = tile
    shape = (_FIRST_PARTIAL + partial, height, -(-width // 8))
    size = shape[0] * shape[1] * shape[2]
    if size > _LARGEST_BITS:
        raise MemoryLimitError(
            f"`block_size` {tile} makes {partial} partial tiles, whose bits take {size / 2**30:.3g}"
            f" of at most {(_LARGEST_BITS + 1) / 2**30:.3g} GiB; reorder the pattern so that it has"
            " fewer (tile_occupancy counts them), or take smaller blocks"
        )
    bits = torch.zeros(shape, dtype=torch.uint8, device=pattern.device)
    bits[_FULL] = 255
    some = slot != _FULL
    row, place = (pattern.rows() % height)[some], (pattern.col.long() % width)[some]
    byte = (slot[some].long() * height + row) * shape[2] + place // 8
    # Pairs are different, so that bits add up without a carry.
    bits.view(-1).index_add_(0, byte, (1 << (place % 8)).to(torch.uint8))
    return bits


def _listed(flags: Tensor) -> tuple[Tensor, Tensor]:
    """Count the true tiles of each row and list them first, as a ``BlockMask`` wants them."""
    order = torch.argsort(flags.to(torch.uint8), dim=1, descending=True, stable=True)
    return flags.sum(1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]
