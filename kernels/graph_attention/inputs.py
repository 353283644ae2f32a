"""What attention reads: for its implementations, and for those who watch its backward passes."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scisparse.kernels._segments import accumulator

__all__ = ["Inputs", "spread_heads", "steps_of"]


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

    def dense(self) -> Inputs:
        """The same, each tensor in one piece of memory."""
        return Inputs(*(None if t is None else t.contiguous() for t in self))  # type: ignore[arg-type]

    def empty_gradients(self, wanted: tuple[bool, bool]) -> Inputs:
        """Room for gradients; for those of `edge_attr` and `bias`, to be added up, if `wanted`."""
        q, k, v, edge_q, attr, bias = self
        real = accumulator(q.dtype)
        return Inputs(
            torch.empty_like(q),
            torch.empty_like(k),
            torch.empty_like(v),
            None if edge_q is None else torch.empty_like(edge_q),
            torch.zeros_like(attr, dtype=real) if attr is not None and wanted[0] else None,
            torch.zeros_like(bias) if bias is not None and wanted[1] else None,
        )


def spread_heads(x: Tensor, heads: int) -> Tensor:
    """Heads of sources, each for its group of heads: ``[B, N, H, D]`` of ``[B, N, G, D]``."""
    group = heads // x.shape[2]
    return x if group == 1 else x.repeat_interleave(group, dim=2)


def steps_of(tensor: Tensor | None) -> tuple[int, ...]:
    """Numbers from one batch entry, edge and head to the next; 0 where there is but one."""
    if tensor is None:
        return (0, 0, 0)
    return tuple(s if n > 1 else 0 for s, n in zip(tensor.stride(), tensor.shape, strict=True))
