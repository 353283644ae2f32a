"""Tiles of the Triton kernels: pure functions of the shape.

As in :mod:`scisparse.kernels.gather_matmul.plans` nothing is timed when a program runs: a plan
decides the order of sums.
"""

from __future__ import annotations

from dataclasses import dataclass

from scisparse.kernels._triton import ceil_div, power_of_two

__all__ = ["EdgePlan", "RowPlan", "plan_edges", "plan_rows"]

LINE = 128  # bytes of a cache line
PIECE = 256  # bytes of a row of sources that a program reads, where there are more heads
WARP = 32
MOST_WARPS = 4
SITES = 8  # rows of a program, which share sources


@dataclass(frozen=True, kw_only=True)
class RowPlan:
    """Tiles of `heads` heads of `slots` edges of each of `sites` rows, `unroll` of them at once."""

    sites: int
    slots: int
    heads: int
    unroll: int
    warps: int


@dataclass(frozen=True, kw_only=True)
class EdgePlan:
    """Tiles of `heads` heads of `edges` edges."""

    edges: int
    heads: int
    warps: int = MOST_WARPS


def plan_rows(heads: int, width: int, itemsize: int, fan_in: float, unroll: int) -> RowPlan:
    """Plan a kernel whose threads each read 16 bytes of an edge.

    Parameters
    ----------
    heads, width, itemsize
        Heads, numbers of a head, bytes of a number.
    fan_in
        Mean number of edges of a row; long rows are split into slots.
    unroll
        The most tiles to read before one is used.

    Examples
    --------
    >>> plan_rows(16, 64, 2, fan_in=8, unroll=4)  # 16 threads read two heads of an edge
    RowPlan(sites=8, slots=1, heads=2, unroll=4, warps=4)
    >>> plan_rows(1, 16, 4, fan_in=100, unroll=4)  # four threads read an edge
    RowPlan(sites=4, slots=8, heads=1, unroll=4, warps=4)
    """
    vector, numbers = 16 // itemsize, power_of_two(width)
    block = _heads(heads, numbers, itemsize)
    threads = max(1, block * numbers // vector)  # of an edge
    at_once = max(1, WARP * MOST_WARPS // threads)
    slots = min(at_once, power_of_two(max(1, int(fan_in / 16))))
    sites = min(at_once // slots, max(SITES, WARP // (threads * slots)))
    warps = max(1, min(MOST_WARPS, sites * slots * threads // WARP))
    # Numbers of a tile that a thread holds.
    held = max(1, slots * sites * block * numbers // (WARP * warps * vector))
    unroll = max(1, min(unroll // held, power_of_two(max(1, int(fan_in / slots)))))
    return RowPlan(sites=sites, slots=slots, heads=block, unroll=unroll, warps=warps)


def plan_edges(heads: int, width: int) -> EdgePlan:
    """Plan a kernel that adds up the heads of every edge: 8 numbers for each thread."""
    numbers, whole = power_of_two(width), 8 * WARP * MOST_WARPS
    block = max(1, min(power_of_two(heads), whole // numbers))
    return EdgePlan(edges=max(1, whole // (block * numbers)), heads=block)


def _heads(heads: int, numbers: int, itemsize: int) -> int:
    """Heads of a tile: of sizes that fill cache lines and idle least, the least that is a piece."""
    most = max(1, WARP * MOST_WARPS * 16 // (numbers * itemsize))
    sizes = [1 << n for n in range(power_of_two(heads).bit_length()) if 1 << n <= most]
    full = [n for n in sizes if n * numbers * itemsize >= LINE] or sizes[-1:]
    least = min(ceil_div(heads, n) * n for n in full)
    busy = [n for n in full if ceil_div(heads, n) * n == least]
    return next((n for n in busy if n * numbers * itemsize >= PIECE), busy[-1])
