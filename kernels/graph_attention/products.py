"""The graph primitives: products over the edges of a pattern, and the softmax over its rows.

Letters, layouts and types are those of :mod:`scisparse.kernels.graph_attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scisparse.errors import ShapeError
from scisparse.kernels._debug import check_ends
from scisparse.kernels._edges import (
    Edges,
    check_edges,
    check_places,
    check_rows,
    check_transpose,
)
from scisparse.kernels._segments import accumulator
from scisparse.kernels.graph_attention.checks import (
    check_heads,
    check_reduce,
    check_value,
)
from scisparse.kernels.graph_attention.choices import run_extreme
from scisparse.kernels.graph_attention.primitives import run_sddmm, run_segment_softmax, run_spmm

__all__ = ["sddmm", "segment_softmax", "spmm"]


def spmm(
    value: Tensor | None,
    x: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    *,
    reduce: str = "sum",
    transpose: Edges | None = None,
    backend: str = "auto",
) -> Tensor:
    """Reduce sources over the edges of each site, each times the value of its edge.

    ``y[b,i,h,d] = reduce over e in row i of value[b,e,h] * x[b,col[e],h,d]``: with ``"sum"``, a
    sparse matrix times a dense one. A site that reads nothing gets 0.

    Parameters
    ----------
    value
        Numbers of the edges, ``[B, E, H]`` or ``[1, E, H]``; float32 for 16-bit `x`. ``None`` for 1
        on each edge, which takes no memory on the CPU.
    x
        Sources, ``[B, N, H, D]``.
    row_ptr, col, transpose, backend
        As in :func:`graph_attention`.
    reduce
        ``"sum"``; ``"mean"``, the sum divided by the fan-in; ``"max"`` or ``"min"``, for each
        number of a site by itself.

    Returns
    -------
    Tensor
        ``[B, M, H, D]``, of the dtype of `x`.

    Raises
    ------
    ShapeError
        Shapes or dtypes do not fit together.
    OptionError
        Rows cannot be reduced as `reduce` says.

    Notes
    -----
    NaN in a row makes its result NaN. The gradient of a maximum goes to one edge: the first that
    attains it, or the first that is NaN. (``torch.segment_reduce`` and ``Tensor.scatter_reduce``
    share it out evenly among all that attain it.) The choice takes an int32 for each number of the
    result, and is constant in derivatives of higher order.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1)
    >>> row_ptr, col = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1])
    >>> spmm(torch.tensor([[[1.0], [10.0], [0.5]]]), x, row_ptr, col).flatten()
    tensor([41.,  1.])
    >>> spmm(None, x, row_ptr, col, reduce="mean").flatten()
    tensor([2.5000, 2.0000])
    >>> spmm(None, x, row_ptr, col, reduce="max").flatten()
    tensor([4., 2.])
    """
    check_reduce(reduce)
    check_edges(row_ptr, col)
    check_heads(x=x)
    check_places(row_ptr=row_ptr, col=col, x=x, value=value)
    edges = Edges(row_ptr, col, None)
    if value is not None:
        check_value(value, x, col.shape[0])
    check_transpose(transpose, edges, x.shape[1])
    if reduce == "mean":
        value = _shares(value, x, edges)
    elif value is None:
        value = _spread(x.new_ones((), dtype=accumulator(x.dtype)), x, edges)
    if reduce in ("sum", "mean"):
        return run_spmm(value, x, edges, transpose, backend)
    return run_extreme(value, x, edges, transpose, reduce == "min", backend)


def _spread(numbers: Tensor, x: Tensor, edges: Edges) -> Tensor:
    """``[1, E, H]`` of one number, or of one an edge, in the memory that they have."""
    return numbers.view(1, -1, 1).expand(1, edges.col.shape[0], x.shape[2])


def _shares(value: Tensor | None, x: Tensor, edges: Edges) -> Tensor:
    """`value` divided by the fan-in: sums of 16-bit numbers might overflow before they are."""
    row_ptr, count = edges.row_ptr, edges.col.shape[0]
    if row_ptr.is_cpu and not torch.compiler.is_compiling():
        check_ends(row_ptr, count)
    fan_in = row_ptr.diff()
    share = fan_in.to(accumulator(x.dtype)).reciprocal()
    shares = torch.repeat_interleave(share, fan_in, output_size=count)
    return _spread(shares, x, edges) if value is None else value * shares[:, None]


def sddmm(
    x: Tensor,
    z: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    *,
    transpose: Edges | None = None,
    backend: str = "auto",
) -> Tensor:
    """Scalar product of site and source on every edge: a dense product, sampled.

    ``value[b,e,h] = x[b,row(e),h] . z[b,col[e],h]``

    Parameters
    ----------
    x, z
        Sites ``[B, M, H, D]`` and sources ``[B, N, H, D]``.
    row_ptr, col, transpose, backend
        As in :func:`graph_attention`.

    Returns
    -------
    Tensor
        ``[B, E, H]``; float32 for 16-bit types.

    Raises
    ------
    ShapeError
        Shapes or dtypes do not fit together.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 2, 1, 2)
    >>> sddmm(x, x, torch.tensor([0, 1, 2]), torch.tensor([1, 1])).flatten()
    tensor([11., 25.])
    """
    check_edges(row_ptr, col)
    check_heads(x=x, z=z)
    check_places(row_ptr=row_ptr, col=col, x=x)
    sites = row_ptr.shape[0] - 1
    if x.shape[1] != sites or (x.shape[0], *x.shape[2:]) != (z.shape[0], *z.shape[2:]):
        raise ShapeError(
            f"`x` {list(x.shape)} and `z` {list(z.shape)} must be [B, M, H, D] and [B, N, H, D] "
            f"with {sites} sites"
        )
    check_transpose(transpose, Edges(row_ptr, col, None), z.shape[1])
    return run_sddmm(x, z, Edges(row_ptr, col, None), transpose, backend)


def segment_softmax(score: Tensor, row_ptr: Tensor, *, backend: str = "auto") -> Tensor:
    """Softmax over the edges of each site.

    ``p[b,e,h] = exp(score[b,e,h] - m) / sum_{e' in the row} exp(score[b,e',h] - m)`` with ``m`` the
    largest score of the row; 0 in a row of -infinity alone.

    Parameters
    ----------
    score
        ``[B, E, H]``.
    row_ptr
        ``[M + 1]`` int64, from 0 to E.
    backend
        ``"auto"``, ``"cpu"``, ``"triton"`` or ``"reference"``.

    Returns
    -------
    Tensor
        ``[B, E, H]``, of the dtype of `score`; NaN on all edges of a row and head with a NaN.

    Raises
    ------
    ShapeError
        Shapes or dtypes do not fit together.
    PatternError
        `row_ptr` does not run from 0 to the number of edges.

    Examples
    --------
    >>> import torch
    >>> segment_softmax(torch.zeros(1, 3, 1), torch.tensor([0, 2, 3])).flatten()
    tensor([0.5000, 0.5000, 1.0000])
    """
    if score.dim() != 3 or not score.is_floating_point():
        raise ShapeError(f"`score` ({score.dtype} {list(score.shape)}) must be floats [B, E, H]")
    check_rows(row_ptr)
    check_places(score=score, row_ptr=row_ptr)
    wide = score.to(accumulator(score.dtype))
    return run_segment_softmax(wide, row_ptr, backend).to(score.dtype)
