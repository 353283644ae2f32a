"""Gather kernels: raw tensors in, raw tensors out.

Kernels never see a :class:`~scisparse.Pattern`, a grid or a module. Each operator is registered
with torch, has a readable reference, and is differentiable to any order.

A process that only loads what ``torch.export.save`` has written imports this module first, as
operators are registered here, and ``import scisparse`` alone loads nothing.
"""

from __future__ import annotations

from scisparse.kernels._backends import current_backend as current_backend
from scisparse.kernels._backends import use_backend as use_backend
from scisparse.kernels._debug import debug_mode as debug_mode
from scisparse.kernels._edges import Edges as Edges
from scisparse.kernels._edges import transpose_edges as transpose_edges
from scisparse.kernels._flops import register_when_imported
from scisparse.kernels._kept import empty_cache as empty_cache
from scisparse.kernels.gather_matmul import edge_outer as edge_outer
from scisparse.kernels.gather_matmul import gather_matmul as gather_matmul
from scisparse.kernels.graph_attention import attention_weights as attention_weights
from scisparse.kernels.graph_attention import graph_attention as graph_attention
from scisparse.kernels.graph_attention import sddmm as sddmm
from scisparse.kernels.graph_attention import segment_softmax as segment_softmax
from scisparse.kernels.graph_attention import spmm as spmm
from scisparse.kernels.laplacian import dirichlet_energy as dirichlet_energy
from scisparse.kernels.laplacian import laplacian as laplacian

__all__ = [
    "Edges",
    "attention_weights",
    "current_backend",
    "debug_mode",
    "dirichlet_energy",
    "edge_outer",
    "empty_cache",
    "gather_matmul",
    "graph_attention",
    "laplacian",
    "sddmm",
    "segment_softmax",
    "spmm",
    "transpose_edges",
    "use_backend",
]

register_when_imported()
