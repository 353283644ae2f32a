"""How many values inference moves between a slow and a fast memory, counted without running it."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.grids.integers import integer
from scisparse.names import choice
from scisparse.pattern import Pattern

__all__ = ["IO", "POLICIES", "check_memory", "lru_reads", "simulated_io"]

#: Which line leaves a full fast memory: the one not used for longest, or the one whose next use is
#: farthest away (Belady's rule, which needs to know the future and is the best there is).
POLICIES = ("lru", "min")


@dataclass(frozen=True)
class IO:
    """Lines moved between slow and fast memory.

    Parameters
    ----------
    reads
        Of lines of source values.
    writes
        Of lines of site values.
    bound
        Least ``reads + writes`` with this numbering and any order: each line of sources that is
        used is read once, each line of sites written once.

    Examples
    --------
    >>> print(IO(reads=12, writes=4, bound=10))
    12 reads + 4 writes, 1.6 times the lower bound
    """

    reads: int
    writes: int
    bound: int

    @property
    def total(self) -> int:
        """Reads and writes."""
        return self.reads + self.writes

    def __str__(self) -> str:
        ratio = self.total / max(1, self.bound)
        return f"{self.reads} reads + {self.writes} writes, {ratio:.3g} times the lower bound"


def simulated_io(
    pattern: Pattern,
    cache: int,
    *,
    line: int = 1,
    policy: str = "lru",
    order: Tensor | None = None,
) -> IO:
    """Count the lines that a layer moves when it takes its edges one after another.

    Each edge needs the line of its source in the fast memory. The sum of a site stays in a register
    until its row ends and is then written, so the sites lie in the order of the rows. Weights are
    left out: each is read once, whatever the order. In the model of the paper sums may also leave
    and come back; here they do not, as rows stay together. Takes about a second for 1e6 edges.

    Parameters
    ----------
    pattern
        M sites, N sources, E edges.
    cache
        Lines that the fast memory holds.
    line
        Values in a line: source ``j`` is in line ``j // line``.
    policy
        One of :data:`POLICIES`.
    order
        Permutation of the edges, int64 ``[E]``, with the edges of a row side by side; their own
        order where not given.

    Returns
    -------
    IO
        Reads, ``ceil(M / line)`` writes, and the least there can be.

    Raises
    ------
    OptionError
        `cache` or `line` is less than 1, `policy` is unknown, or `order` is no such permutation.

    References
    ----------
    Gleinig, N., Ben-Nun, T., Hoefler, T. (2023). A theory of I/O-efficient sparse neural network
    inference. https://doi.org/10.48550/arXiv.2301.01048

    Belady, L. A. (1966). A study of replacement algorithms for a virtual-storage computer.
    https://doi.org/10.1147/sj.52.0078

    Examples
    --------
    >>> from scisparse.patterns import window
    >>> pattern = window((20, 20), 3, padding=1)
    >>> print(simulated_io(pattern, 8))
    1160 reads + 400 writes, 1.95 times the lower bound
    >>> print(simulated_io(pattern, 64))
    400 reads + 400 writes, 1 times the lower bound
    """
    cache, line = check_memory(cache, line)
    if policy not in POLICIES:
        raise OptionError(choice("policy", policy, POLICIES))
    pattern = pattern.to("cpu")
    col = pattern.col if order is None else pattern.col[_checked_order(order, pattern)]
    lines = col.numpy() // line
    writes = -(-pattern.num_sites // line)
    least = np.unique(lines).size
    # A line that was used just now is there: repeats cost nothing.
    runs = lines[np.flatnonzero(np.diff(lines, prepend=-1))]
    if least <= cache:
        reads = least
    else:
        reads = lru_reads(runs.tolist(), cache) if policy == "lru" else _min_reads(runs, cache)
    return IO(reads, writes, least + writes)


def check_memory(cache: int, line: int) -> tuple[int, int]:
    """Give lines and values in a line as integers, or raise unless both are at least 1."""
    cache, line = integer("cache", cache, OptionError), integer("line", line, OptionError)
    for name, value in (("cache", cache), ("line", line)):
        if value < 1:
            raise OptionError(f"`{name}` (={value}) must be at least 1")
    return cache, line


def lru_reads(lines: Iterable[int], cache: int) -> int:
    """Reads of an empty memory of `cache` lines that drops the one not used for longest.

    Examples
    --------
    >>> lru_reads([0, 1, 0, 2, 1], 2)
    4
    """
    held: OrderedDict[int, None] = OrderedDict()
    reads = 0
    for line in lines:
        if line in held:
            held.move_to_end(line)
        else:
            held[line] = None
            reads += 1
            if len(held) > cache:
                held.popitem(last=False)
    return reads


def _min_reads(lines: NDArray[np.integer], cache: int) -> int:
    """Reads of a memory that drops the line whose next use is farthest away."""
    count = lines.size
    by_line = np.argsort(lines, kind="stable")
    again = np.diff(lines[by_line]) == 0
    next_use = np.full(count, count)
    next_use[by_line[:-1][again]] = by_line[1:][again]
    sequence = lines.tolist()
    held: set[int] = set()
    # Next uses of held lines, farthest first. Uses that have passed sink: they are the smallest.
    uses: list[int] = []
    reads = 0
    for line, use in zip(sequence, next_use.tolist(), strict=True):
        if line not in held:
            reads += 1
            if len(held) == cache:
                held.remove(sequence[-heapq.heappop(uses)])
            held.add(line)
        if use < count:
            heapq.heappush(uses, -use)
        else:
            held.remove(line)  # it is never used again
    return reads


def _checked_order(order: Tensor, pattern: Pattern) -> Tensor:
    """Give a permutation of the edges that keeps rows together, or raise."""
    edges = pattern.num_edges
    if order.dtype != torch.int64 or order.shape != (edges,):
        raise OptionError(
            f"`order` ({order.dtype} {list(order.shape)}) must be int64 [{edges}], a place for "
            "each edge"
        )
    order = order.cpu()
    if not torch.equal(order.sort().values, torch.arange(edges)):
        raise OptionError("`order` must be a permutation: name every edge once")
    rows = pattern.rows()[order]
    starts = int((rows.diff() != 0).sum()) + 1 if edges else 0
    if starts != int((pattern.fan_in > 0).sum()):
        raise OptionError("`order` must keep the edges of a row side by side; it splits some rows")
    return order
