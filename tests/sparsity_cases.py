"""Small models and training loops of the tests of sparsity."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from kernel_cases import generator
from torch import Tensor, nn

from scisparse.layers import LocallyConnected
from scisparse.patterns import window
from scisparse.sparsity import Sparsifier, schedules
from scisparse.sparsity.masked import MaskedTarget

SIZES = (12, 20, 6)
OFTEN = schedules.CosineDrop(end=1000, every=2, fraction=0.5)


def seed(number: int = 0) -> None:
    """Seed torch, as the environment may ask for other random numbers."""
    torch.manual_seed(generator(number).initial_seed())


def network(sizes: tuple[int, ...] = SIZES) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def batches(
    count: int, inputs: int = SIZES[0], outputs: int = SIZES[-1]
) -> list[tuple[Tensor, Tensor]]:
    gen = generator(7)
    mix = torch.randn(inputs, outputs, generator=gen)
    xs = [torch.randn(16, inputs, generator=gen) for _ in range(count)]
    return [(x, torch.sin(x @ mix)) for x in xs]


def train(
    model: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    sparsifier: Sparsifier | None,
    data: list[tuple[Tensor, Tensor]],
) -> list[float]:
    """Losses of the loop that users write."""
    losses = []
    for x, y in data:
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if sparsifier is not None:
            sparsifier.step()
        losses.append(loss.item())
    return losses


def masks(sparsifier: Sparsifier) -> list[Tensor]:
    return [t.mask for t in sparsifier.targets if isinstance(t, MaskedTarget)]


def adam(model: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def locally(seed_number: int = 0) -> LocallyConnected:
    seed(seed_number)
    return LocallyConnected(window((5, 8), 3, padding=1, padding_mode=("zeros", "circular")), 2, 3)


def fields(count: int) -> list[tuple[Tensor, Tensor]]:
    gen = torch.Generator().manual_seed(5)
    xs = [torch.randn(4, 40, 2, generator=gen) for _ in range(count)]
    return [(x, x.roll(1, 1).sum(2, keepdim=True).expand(-1, -1, 3).contiguous()) for x in xs]
