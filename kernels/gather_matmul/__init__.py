"""Gather sources, multiply each by the matrix of its edge, sum over the edges of a site.

Contract
--------
Letters: B batch, M sites, N sources, E edges, T weights, C channels in, O channels out.

- ``x [B, N, C]`` and outputs ``[B, M, O]`` are dense and contiguous in channels; an NCHW tensor in
  ``channels_last`` memory format is this layout without a copy. Layout is part of the contract and
  is never inferred from strides.
- ``row_ptr [M + 1]`` int64 runs from 0 to E; the edges of site ``i`` are ``row_ptr[i]`` to
  ``row_ptr[i + 1]``. Rows may be empty.
- ``col [E]`` int32 or int64 is the source that each edge reads; edges are sorted by (row, col).
- ``tie [E]`` is the weight of each edge; ``None`` means one weight an edge (T = E), stored in the
  order of the edges.
- float64, float32, bfloat16 and float16; 16-bit types accumulate in float32.
- Deterministic, forward and backward: every sum runs in the order of its row.
- Indices are trusted; :meth:`scisparse.Pattern.validate` checks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from scisparse.errors import ShapeError
from scisparse.kernels._edges import Edges, check_transpose, transpose_edges
from scisparse.kernels._modes import autocast_dtype
from scisparse.kernels.gather_matmul import ops as ops
from scisparse.kernels.gather_matmul.calculus import run_edge_outer, run_gather_matmul

__all__ = ["Edges", "edge_outer", "gather_matmul", "transpose_edges"]


def gather_matmul(
    x: Tensor,
    weight: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    tie: Tensor | None = None,
    *,
    transpose: Edges | None = None,
    backend: str = "auto",
) -> Tensor:
    """Multiply each gathered source by its edge's weight matrix and sum over the edges of a site.

    ``y[b,i,o] = sum_{e in row i} sum_c x[b,col[e],c] * weight[tie[e],c,o]``

    Differentiable any number of times in `x` and `weight`.

    Parameters
    ----------
    x
        Source values, ``[B, N, C]``.
    weight
        One matrix a weight, ``[T, C, O]``.
    row_ptr, col
        Edges in compressed-row form, ``[M + 1]`` int64 and ``[E]`` int32 or int64.
    tie
        Weight of each edge, ``[E]`` int32 or int64; ``None``: edge ``e`` has weight ``e``.
    transpose
        :func:`transpose_edges` of the same edges; computed in each backward pass when not given.
    backend
        ``"auto"``, ``"cpu"``, ``"triton"``, ``"cuda"`` or ``"reference"``.

    Returns
    -------
    Tensor
        ``[B, M, O]``, contiguous, of the dtype of `x`.

    Raises
    ------
    ShapeError
        Shapes, dtypes or devices do not fit together.
    PatternError
        `transpose` is not of these edges.
    BackendError
        The named backend cannot run on this device or dtype.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[[1.0], [2.0], [3.0]]])
    >>> row_ptr, col = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 2])
    >>> gather_matmul(x, torch.tensor([[[1.0]], [[10.0]], [[5.0]]]), row_ptr, col).flatten()
    tensor([31., 15.])
    """
    x, weight = _autocast(x, weight)
    _check(x, weight, ("x", "weight"), row_ptr, col, tie)
    if weight.shape[1] != x.shape[2]:
        raise ShapeError(
            f"`weight` {_shape(weight)} takes {weight.shape[1]} channels but `x` {_shape(x)} has "
            f"{x.shape[2]}; the shapes are x [B, N, C] and weight [T, C, O]"
        )
    _check_weights(weight.shape[0], col, tie)
    edges = Edges(row_ptr, col, tie)
    if transpose is not None and torch.is_grad_enabled():  # it is for derivatives alone
        check_transpose(transpose, edges, x.shape[1])
    return run_gather_matmul(x, weight, edges, transpose, False, backend)


def edge_outer(
    x: Tensor,
    grad: Tensor,
    row_ptr: Tensor,
    col: Tensor,
    tie: Tensor | None = None,
    num_weights: int | None = None,
    *,
    transpose: Edges | None = None,
    backend: str = "auto",
) -> Tensor:
    """Outer product of source and site values on every edge, summed over batch and tied edges.

    ``d[t,c,o] = sum_{e: tie[e] = t} sum_b x[b,col[e],c] * grad[b,row(e),o]``

    This is the derivative of :func:`gather_matmul` with respect to its weights. Weights that no
    edge uses get 0.

    Parameters
    ----------
    x
        Source values, ``[B, N, C]``.
    grad
        Site values, ``[B, M, O]``.
    row_ptr, col, tie, transpose, backend
        As in :func:`gather_matmul`.
    num_weights
        T; needed with `tie`, the number of edges without.

    Returns
    -------
    Tensor
        ``[T, C, O]``, contiguous, of the dtype of `x`.

    Raises
    ------
    ShapeError
        Shapes, dtypes or devices do not fit together, or `num_weights` is missing.
    PatternError
        `transpose` is not of these edges.
    BackendError
        The named backend cannot run on this device or dtype.

    Examples
    --------
    >>> import torch
    >>> x = torch.tensor([[[1.0], [2.0], [3.0]]])
    >>> row_ptr, col = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 2])
    >>> edge_outer(x, torch.tensor([[[1.0], [10.0]]]), row_ptr, col).flatten()
    tensor([ 1.,  3., 30.])
    """
    x, grad = _autocast(x, grad)
    _check(x, grad, ("x", "grad"), row_ptr, col, tie)
    if grad.shape[:2] != (x.shape[0], row_ptr.shape[0] - 1):
        raise ShapeError(
            f"`grad` {_shape(grad)} does not fit `x` {_shape(x)} and {row_ptr.shape[0] - 1} sites; "
            "the shapes are x [B, N, C] and grad [B, M, O]"
        )
    if num_weights is None:
        if tie is not None:
            raise ShapeError("`num_weights` is None but `tie` is given; pass the number of weights")
        num_weights = col.shape[0]
    _check_weights(num_weights, col, tie)
    edges = Edges(row_ptr, col, tie)
    if transpose is not None and torch.is_grad_enabled():
        check_transpose(transpose, edges, x.shape[1])
    return run_edge_outer(x, grad, edges, transpose, num_weights, backend)


def _autocast(x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Cast both to the autocast dtype."""
    dtype = autocast_dtype(x, other)
    return (x, other) if dtype is None else (x.to(dtype), other.to(dtype))


def _check(
    x: Tensor,
    other: Tensor,
    names: tuple[str, str],
    row_ptr: Tensor,
    col: Tensor,
    tie: Tensor | None,
) -> None:
    """Check what costs nothing: dims, dtypes and devices, not the values of indices.

    One expression for all that fits: a call of a small layer takes little longer than its checks.
    """
    device = x.device
    fits = (
        x.dim() == other.dim() == 3
        and x.dtype == other.dtype
        and x.is_floating_point()
        and row_ptr.dim() == 1
        and row_ptr.dtype == torch.int64
        and row_ptr.shape[0] > 0
        and _is_index(col)
        and device == other.device == row_ptr.device == col.device
        and (tie is None or (_is_index(tie) and tie.device == device))
    )
    if not fits:
        _explain(x, other, names, row_ptr, col, tie)


def _is_index(index: Tensor) -> bool:
    return index.dim() == 1 and index.dtype in (torch.int32, torch.int64)


def _explain(
    x: Tensor,
    other: Tensor,
    names: tuple[str, str],
    row_ptr: Tensor,
    col: Tensor,
    tie: Tensor | None,
) -> NoReturn:
    """Raise what does not fit."""
    for name, tensor in zip(names, (x, other), strict=True):
        if tensor.dim() != 3:
            raise ShapeError(f"`{name}` has shape {_shape(tensor)}; it must have 3 dimensions")
    if x.dtype != other.dtype or not x.is_floating_point():
        raise ShapeError(
            f"`{names[0]}` is {x.dtype} and `{names[1]}` is {other.dtype}; they must be of one "
            "floating dtype: convert one with .to(dtype)"
        )
    if row_ptr.dim() != 1 or row_ptr.dtype != torch.int64 or row_ptr.shape[0] < 1:
        raise ShapeError(
            f"`row_ptr` is {row_ptr.dtype} {_shape(row_ptr)}; it must be int64 of shape [M + 1]"
        )
    for name, index in (("col", col), ("tie", tie)):
        if index is not None and not _is_index(index):
            raise ShapeError(
                f"`{name}` is {index.dtype} {_shape(index)}; it must be int32 or int64 of shape [E]"
            )
    devices = {t.device for t in (x, other, row_ptr, col, tie) if t is not None}
    raise ShapeError(
        f"tensors are on {', '.join(sorted(map(str, devices)))}; move all to one device"
    )


def _check_weights(num_weights: int, col: Tensor, tie: Tensor | None) -> None:
    if tie is None and num_weights != col.shape[0]:
        raise ShapeError(
            f"there are {num_weights} weights but {col.shape[0]} edges; without `tie` every edge "
            "has its own weight"
        )
    if tie is not None and tie.shape != col.shape:
        raise ShapeError(
            f"`tie` has {tie.shape[0]} entries but `col` has {col.shape[0]}; both have one an edge"
        )


def _shape(tensor: Tensor | Sequence[int]) -> str:
    return str(list(tensor.shape if isinstance(tensor, Tensor) else tensor))
