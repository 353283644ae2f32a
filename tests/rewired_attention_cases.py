"""Attention layers whose edges move, and small problems for them."""

from __future__ import annotations

from typing import Any

import torch
from kernel_cases import generator
from sparsity_cases import OFTEN, adam, seed
from torch import Tensor, nn

from scisparse.grids import LatLonGrid
from scisparse.layers import SparseAttention
from scisparse.pattern import Pattern
from scisparse.patterns import window
from scisparse.sparsity import Sparsifier

GRID = LatLonGrid.regular(4, 12)  # across the poles no source is read twice


def some_edges(wide: Pattern, part: float, number: int = 0) -> Pattern:
    """A part of the edges; site 0 reads nothing, site 1 one source."""
    gen = generator(number)
    keep = torch.rand(wide.num_edges, generator=gen) < part
    row = wide.rows()
    keep &= row != 0
    keep[row == 1] = False
    keep[int(wide.row_ptr[1])] = True
    return wide.select(keep)


def randomize(layer: nn.Module, size: float = 0.5) -> None:
    gen = generator(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=gen))


class Model(nn.Module):
    def __init__(self, pattern: Pattern, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.attend = SparseAttention(pattern, 8, 2, **options)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.tanh(self.attend(self.embed(x))))
        return y


WIDE = window(GRID, (3, 5))


def data(count: int) -> list[tuple[Tensor, Tensor]]:
    gen = generator(5)
    xs = [torch.randn(4, GRID.size, 3, generator=gen) for _ in range(count)]
    return [(x, x.roll(2, 1)[..., :2]) for x in xs]


def joined() -> Pattern:
    """The edges of the 3 x 3 window, without taps, and those of the wider one."""
    return Pattern.from_dense(window(GRID, 3).to_dense() | WIDE.to_dense())


def plain() -> Model:
    seed()
    return Model(Pattern.from_dense(window(GRID, 3).to_dense()))


def started(method: str = "rigl", **options: Any) -> tuple[Model, Any, Sparsifier]:
    model = plain()
    optimizer = adam(model)
    given: dict[str, Any] = {"candidates": joined(), "params": ["*.edges"], "schedule": OFTEN}
    return model, optimizer, Sparsifier(model, optimizer, method, **given | options)
