"""Zeros between layers: counted over calls, and made by ReLU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import generator
from torch import nn

from scisparse.sparsity.activation import measure_zeros, relufy


def model() -> nn.Sequential:
    shared = nn.GELU()
    return nn.Sequential(
        nn.Linear(8, 16), shared, nn.Sequential(nn.Linear(16, 16), nn.SiLU()), shared, nn.Tanh()
    )


def test_relufy_replaces_shared_and_nested_modules() -> None:
    net = model().eval()
    assert relufy(net) == ["1", "2.1", "3"]
    assert [type(m).__name__ for m in net.modules()].count("ReLU") == 3
    assert not net[1].training
    assert isinstance(net[4], nn.Tanh)
    assert relufy(net) == []


def test_zeros_are_counted_over_all_calls() -> None:
    net = model()
    relufy(net)
    inputs = [torch.randn(5, 8, generator=generator(k)) for k in range(2)]
    with measure_zeros(net) as zeros:
        for x in inputs:
            net(x)
    assert list(zeros) == ["0", "1", "2.0", "2.1", "3", "4"]
    hidden = torch.cat([net[1](net[0](x)) for x in inputs])
    assert zeros["1"] == pytest.approx(float((hidden == 0).float().mean()))
    assert 0.2 < zeros["1"] < 0.8
    assert zeros["0"] == 0.0
    assert not any(module._forward_hooks for module in net.modules())


def test_hooks_are_removed_after_an_error() -> None:
    net = model()

    def run() -> None:
        with measure_zeros(net):
            net(torch.zeros(1, 3))

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run()
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
@pytest.mark.parametrize("activation", ["gelu", nn.GELU(), nn.functional.silu, "relu"])
def test_transformer_layers_of_torch(kind: Any, activation: Any) -> None:
    """Evaluation has a path of its own, which does not call the activation."""
    torch.manual_seed(0)
    layer = kind(8, 2, 16, 0.0, activation=activation, batch_first=True)
    relu = kind(8, 2, 16, 0.0, activation="relu", batch_first=True)
    relu.load_state_dict(layer.state_dict())
    net = nn.ModuleDict({"first": layer})
    assert relufy(net) == ([] if activation == "relu" else ["first.activation"])
    assert relufy(net) == []
    x = torch.randn(2, 5, 8, generator=generator(3))
    inputs = (x, x) if kind is nn.TransformerDecoderLayer else (x,)
    for training in (True, False):
        with torch.set_grad_enabled(training):
            got = layer.train(training)(*inputs)
            torch.testing.assert_close(got, relu.train(training)(*inputs))
