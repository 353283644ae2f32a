"""The truth in tests: plain torch, any device, rows a few at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from scisparse.kernels._segments import segment_sum, site_of_edge

__all__ = ["energy_of_rows", "laplacian"]

# Bytes of differences at once: as fast as all together, without their memory. A GPU needs more work
# at once than the caches of a CPU hold.
_CHUNK_BYTES, _GPU_CHUNK_BYTES = 2**22, 2**28


def laplacian(x_TC: Tensor, row_ptr: Tensor, col_E: Tensor, value_E: Tensor) -> Tensor:
    """``y[i] = sum over e in row i of value[e] * (x[i] - x[col[e]])``, ``[T, C]``."""
    parts = [
        segment_sum(value[:, None] * apart, offsets)
        for value, apart, offsets in _differences(x_TC, row_ptr, col_E, value_E)
    ]
    return torch.cat([x_TC.new_empty(0, x_TC.shape[1]), *parts])


def energy_of_rows(x_TC: Tensor, row_ptr: Tensor, col_E: Tensor, value_E: Tensor) -> Tensor:
    """``sum over e in row i of value[e] * |x[i] - x[col[e]]|^2``, ``[T]``."""
    parts = [
        segment_sum(value * apart.square().sum(1), offsets)
        for value, apart, offsets in _differences(x_TC, row_ptr, col_E, value_E)
    ]
    return torch.cat([x_TC.new_empty(0), *parts])


def _differences(
    x: Tensor, row_ptr: Tensor, col: Tensor, value: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Values and differences of the edges of some rows, and where each row begins among them."""
    fan_in = max(1.0, len(col) / max(1, len(x)))
    chunk = _CHUNK_BYTES if x.is_cpu else _GPU_CHUNK_BYTES
    rows = max(1, int(chunk / max(1, x.shape[1] * x.element_size()) / fan_in))
    # Read together: on a GPU it is a wait.
    inner = row_ptr[rows : len(x) : rows].tolist() if rows < len(x) else []
    bounds = itertools.pairwise([0, *inner, len(col)])
    for first, (start, end) in zip(range(0, len(x), rows), bounds, strict=False):
        offsets = row_ptr[first : first + rows + 1] - start
        site = first + site_of_edge(offsets, end - start)
        # index_select is several times faster than indexing where rows are short.
        apart = x.index_select(0, site).sub_(x.index_select(0, col[start:end]))
        yield value[start:end], apart, offsets
