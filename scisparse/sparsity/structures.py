"""Which weights stand or fall together, and what each group of them may keep.

A structure reads a weight ``[O, C, K...]`` as *units* (a number, a block, a tap, a channel) in
*groups* with a quota each: everything else, dropping, growing, budgets, is the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.grids.integers import integer_from, is_finite
from scisparse.sparsity.n_of_m import NM, VNM
from scisparse.sparsity.structure import Shape, Structure, nearest

__all__ = [
    "NM",
    "VNM",
    "Block",
    "Channels",
    "ConstantFanIn",
    "Rows",
    "Sites",
    "Structure",
    "Taps",
    "Unstructured",
    "named",
]


@dataclass(frozen=True)
class Unstructured(Structure):
    """Every weight by itself."""


@dataclass(frozen=True)
class ConstantFanIn(Structure):
    """As many weights in every output, so that a gather kernel has rows of one length.

    Neurons with few salient weights can be ablated, their weights going to the others: with
    `ablation` gamma, a neuron stays when at least ``max(1, gamma * k)`` of its weights are salient,
    where `k` is its fan-in, and salient weights are those that a layer without structure would keep
    by magnitude or grow by gradient.

    Parameters
    ----------
    ablation
        gamma_sal; 0: no neuron is ablated.

    References
    ----------
    Lasby, M., et al. (2024). Dynamic sparse training with structured sparsity.
    https://doi.org/10.48550/arXiv.2305.02299

    Examples
    --------
    >>> import torch
    >>> ConstantFanIn().choose(torch.tensor([[1.0, 4.0], [3.0, 2.0]]), 2).tolist()
    [[False, True], [True, False]]
    """

    ablation: float = 0.0

    def __post_init__(self) -> None:
        if not is_finite(self.ablation) or not 0 <= self.ablation <= 1:
            raise OptionError(f"`ablation` (={self.ablation!r}) must lie in [0, 1]")

    def groups(self, shape: Shape) -> Tensor:
        """Output of each weight."""
        return torch.arange(shape[0]).repeat_interleave(math.prod(shape[1:]))

    def quota(self, shape: Shape, count: int) -> Tensor:
        """Fan-in, the same everywhere: rounded, at least 1, the sum at most half a row off."""
        rows = max(1, shape[0])
        fan_in = min(max(1, round(count / rows)), math.prod(shape[1:])) if count else 0
        return torch.full((shape[0],), fan_in)

    def ablated(self, salient: Tensor, quota: Tensor, count: int, inputs: int) -> Tensor:
        """Take the quota of neurons with too few salient weights and spread it over the others.

        Parameters
        ----------
        salient
            Salient weights of each output, int64 ``[O]``.
        quota
            Fan-in of each output before, int64 ``[O]``; outputs with 0 stay ablated.
        count
            Weights of the layer, whatever was lost before by rounding; never exceeded.
        inputs
            Weights that an output may have.

        Returns
        -------
        Tensor
            Fan-in of each output, int64 ``[O]``: 0, or one number for all that stay.

        Examples
        --------
        >>> import torch
        >>> rule, quota = ConstantFanIn(ablation=0.5), torch.tensor([3, 3, 3])
        >>> rule.ablated(torch.tensor([5, 4, 0]), quota, 9, 10).tolist()
        [4, 4, 0]
        """
        if not self.ablation or not quota.numel() or not count:
            return quota
        salient = salient.masked_fill(quota == 0, -1)
        stays = salient >= max(1, math.ceil(self.ablation * int(quota.max())))
        least, most = max(1, math.ceil(count / inputs)), count
        if not least <= int(stays.sum()) <= most:  # too few to hold all weights, or too many
            stays = torch.zeros_like(stays)
            stays[salient.argsort(descending=True, stable=True)[:least]] = True
        return torch.where(stays, min(inputs, count // int(stays.sum())), 0)


@dataclass(frozen=True)
class Block(Structure):
    """Blocks of `height` outputs and `width` inputs (a kernel's taps count as inputs).

    Examples
    --------
    >>> import torch
    >>> score = torch.tensor([[1.0, 1.0, 5.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    >>> Block(2, 2).choose(score, 4).tolist()
    [[False, False, True, True], [False, False, True, True]]
    """

    height: int = 4
    width: int = 4

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            integer_from(name, getattr(self, name), 1, OptionError)

    def pool(self, score: Tensor) -> Tensor:
        """Sum over each block."""
        rows, columns = self._grid(score.shape)
        return score.reshape(rows, self.height, columns, self.width).sum((1, 3)).reshape(-1)

    def expand(self, units: Tensor, shape: Shape) -> Tensor:
        """Repeat the value of a block over its weights."""
        rows, columns = self._grid(shape)
        wide = units.reshape(rows, 1, columns, 1).expand(rows, self.height, columns, self.width)
        return wide.reshape(tuple(shape))

    def quota(self, shape: Shape, count: int) -> Tensor:
        """Whole blocks."""
        return torch.tensor([max(min(1, count), nearest(count, self.height * self.width))])

    def _grid(self, shape: Shape) -> tuple[int, int]:
        inputs = math.prod(shape[1:])
        if shape[0] % self.height or inputs % self.width:
            raise OptionError(
                f"blocks of {self.height} x {self.width} do not divide a weight of {shape[0]} "
                f"outputs x {inputs} inputs"
            )
        return shape[0] // self.height, inputs // self.width


@dataclass(frozen=True)
class Rows(Structure):
    """All weights with one first index: output channels of dense layers, edges of pattern layers.

    Examples
    --------
    >>> import torch
    >>> Rows().choose(torch.tensor([[1.0, 1.0], [3.0, 0.0]]), 2).tolist()
    [[False, False], [True, True]]
    """

    def pool(self, score: Tensor) -> Tensor:
        """Sum over each row."""
        return score.reshape(score.shape[0], -1).sum(1)

    def expand(self, units: Tensor, shape: Shape) -> Tensor:
        """Repeat the value of a row."""
        return units.reshape(-1, *[1] * (len(shape) - 1)).expand(tuple(shape))

    def quota(self, shape: Shape, count: int) -> Tensor:
        """Whole rows."""
        return torch.tensor([max(min(1, count), nearest(count, max(1, math.prod(shape[1:]))))])


@dataclass(frozen=True)
class Channels(Rows):
    """Whole output channels, at all sites; the end of training makes layers in a row smaller."""


@dataclass(frozen=True)
class Sites(Structure):
    """All edges of a site of a pattern layer: what is left of the site is its bias."""

    def pool(self, score: Tensor) -> Tensor:
        """Raise: a dense weight does not know its sites."""
        raise OptionError(
            "structure 'sites' is for layers over patterns; choose 'channels' for dense layers, or "
            "name the pattern layers in `params`"
        )


@dataclass(frozen=True)
class Taps(Structure):
    """Whole taps, shared over all channels.

    Of a convolution's kernel ``[O, C, K...]`` or of a pattern layer's window, at all its sites.

    Examples
    --------
    >>> import torch
    >>> Taps().choose(torch.tensor([[[1.0, 3.0, 2.0]], [[1.0, 3.0, 2.0]]]), 4)[0].tolist()
    [[False, True, True]]
    """

    def pool(self, score: Tensor) -> Tensor:
        """Sum over channels."""
        if score.dim() < 3:
            raise OptionError(
                f"a weight of shape {list(score.shape)} has no taps; they are the dimensions of a "
                "convolution's kernel"
            )
        return score.sum((0, 1)).reshape(-1)

    def expand(self, units: Tensor, shape: Shape) -> Tensor:
        """Repeat over channels."""
        return units.reshape(tuple(shape[2:])).expand(tuple(shape))

    def quota(self, shape: Shape, count: int) -> Tensor:
        """Whole taps, at least one."""
        return torch.tensor([max(1, nearest(count, shape[0] * shape[1]))])


BY_NAME: dict[str, Callable[[], Structure]] = {
    "unstructured": Unstructured,
    "constant_fan_in": ConstantFanIn,
    "n:m": NM,
    "v:n:m": VNM,
    "block": Block,
    "taps": Taps,
    "channels": Channels,
    "sites": Sites,
}


def named(structure: str | Structure) -> Structure:
    """Return the structure of a name, or of ``"2:4"`` and the like.

    Examples
    --------
    >>> named("1:4")
    NM(n=1, m=4)
    """
    if isinstance(structure, Structure):
        return structure
    n, colon, m = str(structure).partition(":")
    if colon and n.isdigit() and m.isdigit():
        return NM(int(n), int(m))
    if structure not in BY_NAME:
        from scisparse.names import choice

        raise OptionError(choice("structure", structure, BY_NAME))
    return BY_NAME[structure]()
