"""A fixed number of weights in each run of inputs, as sparse tensor cores read them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.grids.integers import integer_from
from scisparse.sparsity.structure import Shape, Structure

__all__ = ["NM", "VNM"]

_SHARED = 4  # inputs of a group that a block of outputs shares in V:N:M


@dataclass(frozen=True)
class NM(Structure):
    """`n` of every `m` consecutive inputs, as sparse tensor cores read them (2:4).

    Parameters
    ----------
    n, m
        Weights kept, and inputs in a group; the number of inputs must be divisible by `m`.

    References
    ----------
    Zhou, A., et al. (2021). Learning N:M fine-grained structured sparse neural networks from
    scratch. https://doi.org/10.48550/arXiv.2102.04010

    Examples
    --------
    >>> import torch
    >>> NM(2, 4).choose(torch.tensor([[4.0, 1.0, 2.0, 3.0]]), 2).tolist()
    [[True, False, False, True]]
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        n, m = (integer_from(name, getattr(self, name), 1, OptionError) for name in "nm")
        if n > m:
            raise OptionError(f"`n` (={n}) must be at most `m` (={m}), of which it is a part")

    def pool(self, score: Tensor) -> Tensor:
        """Scores with the inputs last."""
        return score.movedim(1, -1).reshape(-1)

    def expand(self, units: Tensor, shape: Shape) -> Tensor:
        """Move the inputs back."""
        return units.reshape(shape[0], *shape[2:], shape[1]).movedim(-1, 1)

    def groups(self, shape: Shape) -> Tensor:
        """Run of `m` inputs of each weight."""
        if len(shape) < 2 or shape[1] % self.m:
            raise OptionError(
                f"a weight of shape {list(shape)} cannot be {self.n}:{self.m} sparse: its inputs, "
                f"the second dimension, must be divisible by {self.m}"
            )
        return torch.arange(math.prod(shape)) // self.m

    def quota(self, shape: Shape, count: int) -> Tensor:
        """`n` in each group; `count` must agree with it, or be all."""
        self.groups(shape)
        size = math.prod(shape)
        if count == size:
            return torch.full((size // self.m,), self.m)
        if abs(count - size * self.n / self.m) > 1:
            raise OptionError(
                f"{self.n}:{self.m} sparsity prunes {1 - self.n / self.m:.4g} of each weight, and "
                f"`sparsity` or `budget` prunes {1 - count / size:.3g} of one of shape "
                f"{list(shape)}; give sparsity={1 - self.n / self.m:.4g} and no `budget`"
            )
        return torch.full((size // self.m,), self.n)


@dataclass(frozen=True)
class VNM(NM):
    """V:N:M: blocks of `v` outputs share 4 of every `m` inputs, of which each output keeps `n`.

    Reaches any sparsity ``1 - n / m`` on tensor cores that know 2:4.

    Parameters
    ----------
    n, m
        Weights kept of each output, and inputs in a group.
        `n` is at most 4, `m` at least 4.
    v
        Outputs that share their choice of inputs; the outputs of a layer must be divisible by it.

    References
    ----------
    Castro, R. L., et al. (2023). VENOM: a vectorized N:M format for unleashing the power of sparse
    tensor cores. https://doi.org/10.1145/3581784.3607087
    """

    n: int = 2
    m: int = 8
    v: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        integer_from("v", self.v, 1, OptionError)
        integer_from("m", self.m, _SHARED, OptionError)
        if self.n > _SHARED:
            raise OptionError(
                f"`n` (={self.n}) must be at most {_SHARED}, the inputs in a group that a block of "
                "outputs shares"
            )

    def choose(self, score: Tensor, count: int) -> Tensor:
        """Choose 4 inputs for each block of outputs, then `n` of them for each output."""
        matrix = score.movedim(1, -1)
        rows, inputs = math.prod(matrix.shape[:-1]), matrix.shape[-1]
        self.groups(score.shape)
        if rows % self.v:
            raise OptionError(
                f"`v` (={self.v}) must divide the outputs of a layer, and one has {rows}; choose "
                f"v={math.gcd(rows, self.v)}, or name layers that fit in `params`"
            )
        blocks = matrix.reshape(rows // self.v, self.v, inputs // self.m, self.m)
        # What is pruned scores minus infinity and must not decide for the others of its block.
        top = blocks.clamp(min=0).sum(1).topk(_SHARED, dim=-1).indices
        shared = torch.zeros_like(blocks[:, 0], dtype=torch.bool).scatter_(-1, top, True)
        allowed = shared[:, None].expand_as(blocks).reshape(matrix.shape).movedim(-1, 1)
        return super().choose(torch.where(allowed, score, -torch.inf), count)
