"""Which Triton kernel runs, and with which tiles: pure functions of the shape.

A plan decides the order of sums, so it must not depend on timings taken when a program runs: the
same call would give other bits on another day. The choices are measured once, by
``python -m benchmarks gpu``, and kept here.
"""

from __future__ import annotations

from dataclasses import dataclass

from scisparse.kernels._triton import ceil_div, power_of_two

__all__ = [
    "GatherPlan",
    "OuterPlan",
    "Shape",
    "TiePlan",
    "plan_gather",
    "plan_outer",
    "plan_ties",
]

LINE = 128  # bytes of a cache line
THREADS = 128
FEW_EDGES = 32  # rows of more edges are split over threads


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a plan is made from.

    Parameters
    ----------
    batch, channels_in, channels_out, itemsize
        As in the call; `itemsize` in bytes.
    fan_in
        Mean number of edges of a site.
    transposed
        Weights are stored ``[T, O, C]``.
    """

    batch: int
    channels_in: int
    channels_out: int
    fan_in: float
    itemsize: int
    transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class GatherPlan:
    """Kernel and tiles of ``gather_matmul``.

    `kernel` is ``"tiles"``, ``"vectors"``, ``"singles"`` or ``"dots"``; `sites`, `rows`, `outputs`
    and `batches` are the sizes of a tile; `unroll` tiles are read before the first is used.
    """

    kernel: str
    sites: int = 1
    rows: int = 1
    outputs: int = 1
    batches: int = 1
    unroll: int = 1
    warps: int = 4


@dataclass(frozen=True, kw_only=True)
class OuterPlan:
    """Tiles of ``edge_outer`` without ties."""

    sites: int
    rows: int
    outputs: int
    warps: int = 4


@dataclass(frozen=True, kw_only=True)
class TiePlan:
    """Tiles of ``edge_outer`` with ties, whose edges are shared by `parts` programs."""

    edges: int
    inputs: int
    outputs: int
    parts: int
    warps: int = 4


def plan_gather(shape: Shape, threads: int = THREADS) -> GatherPlan:
    """Plan ``gather_matmul`` for programs of so many threads.

    >>> plan_gather(Shape(batch=1, channels_in=1, channels_out=1, fan_in=9, itemsize=4)).kernel
    'singles'
    >>> plan_gather(Shape(batch=8, channels_in=16, channels_out=16, fan_in=9, itemsize=2)).kernel
    'dots'
    """
    c, o = shape.channels_in, shape.channels_out
    if c == o == 1 and shape.fan_in <= FEW_EDGES:
        return GatherPlan(kernel="singles", sites=THREADS, batches=power_of_two(shape.batch, 1, 4))
    if o == 1:
        return _vectors(shape, threads)
    wide = c * shape.fan_in >= 32 and o >= 16 and shape.batch >= 8
    if wide and (shape.itemsize == 2 or (shape.itemsize == 4 and min(c, shape.batch) >= 32)):
        return GatherPlan(
            kernel="dots",
            rows=64 if c * shape.fan_in > 32 else 32,
            outputs=power_of_two(o, 16, 64 if shape.itemsize == 2 else 32),
            batches=power_of_two(shape.batch, 16, 32),
            warps=2 if shape.itemsize == 2 else 4,
        )
    return _tiles(shape, power_of_two(shape.batch, 1, 4), threads)


def _vectors(shape: Shape, threads: int) -> GatherPlan:
    """Each thread reads 16 bytes of weights and as many of inputs."""
    vector, line = 16 // shape.itemsize, LINE // shape.itemsize
    row = round(shape.channels_in * shape.fan_in)
    rows = power_of_two(row, vector, line if row <= 4 * line else 4 * line)
    return GatherPlan(
        kernel="vectors",
        sites=max(1, vector * threads // rows),
        rows=rows,
        batches=power_of_two(shape.batch, 1, 4),
        unroll=2 if rows < row else 1,
    )


def _tiles(shape: Shape, batches: int, threads: int) -> GatherPlan:
    """Tiles where each thread reads 16 bytes of weights, and those of a site fill cache lines."""
    vector, line = 16 // shape.itemsize, LINE // shape.itemsize
    if shape.transposed:  # neighbours in memory are inputs
        rows = power_of_two(shape.channels_in, 1, line)
        outputs = power_of_two(shape.channels_out, 1, max(2 * vector, line // rows))
    else:
        outputs = power_of_two(shape.channels_out, 1, 16)
        rows = power_of_two(round(shape.channels_in * shape.fan_in), 1, max(4, line // outputs))
    # More numbers of rows than threads would have to pass through shared memory.
    sites = max(1, min(vector * threads // (rows * outputs), threads // (2 * rows)))
    return GatherPlan(
        kernel="tiles",
        sites=_floor_power(sites),
        rows=rows,
        outputs=outputs,
        batches=batches,
        unroll=2 if rows < shape.channels_in * shape.fan_in else 1,
    )


def plan_outer(shape: Shape, threads: int = THREADS) -> OuterPlan:
    """Plan ``edge_outer`` without ties."""
    plan = _tiles(shape, 1, threads)
    return OuterPlan(sites=plan.sites, rows=plan.rows, outputs=plan.outputs)


def plan_ties(shape: Shape, edges: int, weights: int) -> TiePlan:
    """Plan ``edge_outer`` with ties: enough parts to fill a GPU, though not more than needed."""
    inputs, outputs = (
        power_of_two(shape.channels_in, 1, 16),
        power_of_two(shape.channels_out, 1, 16),
    )
    at_once = max(8, 1024 // (inputs * outputs))
    blocks = ceil_div(shape.channels_in, inputs) * ceil_div(shape.channels_out, outputs)
    each = edges / max(weights, 1) / at_once  # steps for the edges of a weight
    most = max(1, 4096 // (max(weights, 1) * blocks))
    return TiePlan(
        edges=at_once, inputs=inputs, outputs=outputs, parts=max(1, min(most, int(each / 4)))
    )


def _floor_power(count: int) -> int:
    return 1 << (count.bit_length() - 1)
