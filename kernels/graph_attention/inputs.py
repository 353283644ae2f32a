"""What attention reads: for its implementations, and for those who watch its backward passes."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

__all__ = ["Inputs", "spread_heads"]


class Inputs(NamedTuple):
    """What attention reads: shapes in :mod:`scisparse.kernels.graph_attention`."""

    q: Tensor
    k: Tensor
    v: Tensor
    edge_q: Tensor | None
    edge_attr: Tensor | None
    bias: Tensor | None

    def narrow(self) -> Inputs:
        """The same with A numbers in `edge_q`, after which there may be room."""
        if self.edge_q is None or self.edge_attr is None:
            return self
        return self._replace(edge_q=self.edge_q[..., : self.edge_attr.shape[1]])

    def with_room(self, x: Tensor) -> Tensor:
        """``[..., A]`` with zeros after them, as many as `edge_q` has room for."""
        return x if self.edge_q is None else F.pad(x, (0, self.edge_q.shape[3] - x.shape[-1]))


def spread_heads(x: Tensor, heads: int) -> Tensor:
    """Heads of sources, each for its group of heads: ``[B, N, H, D]`` of ``[B, N, G, D]``."""
    group = heads // x.shape[2]
    return x if group == 1 else x.repeat_interleave(group, dim=2)
