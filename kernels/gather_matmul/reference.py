"""The truth in tests: plain torch, any device, any floating dtype, no tricks.

Letters: B batch, M sites, N sources, E edges, T weights, C channels in, O channels out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scisparse.kernels._segments import accumulator, segment_sum, site_of_edge

__all__ = ["edge_outer", "gather_matmul"]


def gather_matmul(
    x_BNC: Tensor,
    weight_TCO: Tensor,
    row_ptr_M1: Tensor,
    col_E: Tensor,
    tie_E: Tensor | None,
    transpose_weight: bool,
) -> Tensor:
    """``y[b,i,o] = sum over edges e of site i, and c, of x[b,col[e],c] * weight[tie[e],c,o]``."""
    dtype = accumulator(x_BNC.dtype)
    weight_ECO = weight_TCO if tie_E is None else weight_TCO[tie_E.long()]
    if transpose_weight:
        weight_ECO = weight_ECO.mT
    x_BEC = x_BNC[:, col_E.long()]
    y_EBO = torch.einsum("bec,eco->ebo", x_BEC.to(dtype), weight_ECO.to(dtype))
    y_MBO = segment_sum(y_EBO, row_ptr_M1)
    return y_MBO.transpose(0, 1).to(x_BNC.dtype).contiguous()


def edge_outer(
    x_BNC: Tensor,
    grad_BMO: Tensor,
    row_ptr_M1: Tensor,
    col_E: Tensor,
    tie_E: Tensor | None,
    num_weights: int,
) -> Tensor:
    """``d[t,c,o]``: sum of x[b,col[e],c] * grad[b,row(e),o] over b and edges e with tie t."""
    dtype = accumulator(x_BNC.dtype)
    x_BEC = x_BNC[:, col_E.long()]
    grad_BEO = grad_BMO[:, site_of_edge(row_ptr_M1, col_E.numel())]
    outer_ECO = torch.einsum("bec,beo->eco", x_BEC.to(dtype), grad_BEO.to(dtype))
    if tie_E is not None:
        tie_sorted, order = torch.sort(tie_E.long(), stable=True)
        bounds = torch.arange(num_weights + 1, device=tie_E.device)
        outer_ECO = segment_sum(outer_ECO[order], torch.searchsorted(tie_sorted, bounds))
    return outer_ECO.to(x_BNC.dtype).contiguous()
