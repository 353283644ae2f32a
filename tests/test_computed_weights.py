"""Weights that torch computes from other tensors, and subclasses that users write."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from scisparse.errors import PatternError
from scisparse.layers import LocallyConnected, LocallyConnected2d, SparseLinear
from scisparse.patterns import window

COMPUTED: dict[str, Any] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
}
REMOVED: dict[str, Any] = {
    "weight_norm": lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    "spectral_norm": lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    "prune": lambda layer: prune.remove(layer, "weight"),
}


@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.parametrize("linear", [False, True])
def test_computed_weights_are_not_rewired(kind: str, linear: bool) -> None:
    layer: Any = SparseLinear(24, 7, 5) if linear else LocallyConnected(window((4, 6), 3), 2, 3)
    x = torch.randn(2, 24) if linear else torch.randn(2, 24, 2)
    COMPUTED[kind](layer.eval())
    pattern, y = layer.pattern, layer(x)
    fewer = pattern.select(torch.rand(pattern.num_edges) < 0.6)
    with pytest.raises(PatternError, match=r"`weight` of .* is not a parameter.* make it one"):
        layer.rewire(fewer)
    assert layer.pattern is pattern
    assert not layer.rewired
    assert torch.equal(layer(x), y)
    REMOVED[kind](layer)
    layer.rewire(fewer)
    assert len(layer.weight) == fewer.num_edges


@pytest.mark.parametrize("kind", COMPUTED)
def test_computed_weights_are_not_untied(kind: str) -> None:
    layer = LocallyConnected(window((4, 6), 3), 2, 3, tie="longitude")
    COMPUTED[kind](layer.eval())
    x = torch.randn(2, 24, 2)
    y = layer(x)
    with pytest.raises(PatternError, match=r"`weight` of .* is not a parameter"):
        layer.untie()
    REMOVED[kind](layer)
    torch.testing.assert_close(layer.untie()(x), y)
    prune.random_unstructured(layer, "bias", 0.5)
    with pytest.raises(PatternError, match=r"`bias` of LocallyConnected is not a parameter"):
        layer.untie()


class Scaled(LocallyConnected):
    """Layer of a user, with arguments, parameters, buffers and parts of its own."""

    shift: Tensor

    def __init__(self, channels: int, power: float) -> None:
        self.power = power
        super().__init__(window((4, 6), 3, padding=1), channels, channels, tie="all")
        self.scale = nn.Parameter(torch.rand(channels))
        self.register_buffer("shift", torch.rand(channels), persistent=False)
        self.after = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "after"):
            nn.init.uniform_(self.weight, 0, self.power * self.after.in_features)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.after(super().forward(x) * self.scale**self.power + self.shift)
        return out


class Ours(LocallyConnected2d):
    """Layer of a user that takes no arguments."""

    def __init__(self) -> None:
        super().__init__(4, 4, 3, input_size=(4, 6), padding=1, tie="all")


@pytest.mark.parametrize(
    ("make", "shape"), [(lambda: Scaled(4, 1.7), (3, 24, 4)), (Ours, (3, 4, 4, 6))]
)
def test_layers_of_users_are_untied(make: Any, shape: tuple[int, ...]) -> None:
    layer, x = make().eval(), torch.randn(*shape)
    y = layer(x)
    names = {name for name, _ in layer.named_parameters()}
    for tie in ("longitude", None):
        untied = layer.untie(tie)
        assert type(untied) is type(layer)
        assert not untied.training
        torch.testing.assert_close(untied(x), y)
        assert {name for name, _ in untied.named_parameters()} == names
        assert sorted(untied.state_dict()) == sorted(layer.state_dict())
        with torch.no_grad():
            for parameter in untied.parameters():
                parameter.fill_(torch.nan)
        assert torch.equal(layer(x), y)
