"""Idle neurons, sites and channels leave models of every build, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_cases import generator
from sparsity_cases import seed
from torch import Tensor, nn

from scisparse.layers import SparseLinear
from scisparse.sparsity import Sparsifier, restore
from scisparse.sparsity.ablation import remove_neurons


class Net(nn.Module):
    """The usual class: layers as attributes, functions between."""

    def __init__(self, function: Callable[[Tensor], Tensor] = torch.relu, **options: Any) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(5, 9), nn.Linear(9, 4, **options)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(self.function(self.fc1(x)), 0.5, self.training)
        y: Tensor = self.fc2(x.flatten(1))
        return y


class Linears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(SparseLinear(6, 10, 3), nn.ReLU(), SparseLinear(10, 8, 4))
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.block(x).tanh())
        return y


def convolutions(**options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 7, 3, **options),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(7 * 9, 4),
    )


def randomize(model: nn.Module) -> None:
    """All numbers random, statistics of norms as well."""
    gen = generator(8)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.track_running_stats:
                for values in (module.running_mean, module.running_var):
                    assert values is not None
                    values.copy_(torch.rand(values.shape, generator=gen) + 0.5)
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=gen))


def drop(model: nn.Module, name: str, outputs: list[int], inputs: list[int]) -> None:
    with torch.no_grad():
        weight = model.get_parameter(name)
        weight[outputs] = 0
        if inputs:
            weight[:, inputs] = 0


@pytest.mark.parametrize("function", [torch.relu, torch.sigmoid, nn.functional.gelu, nn.SiLU()])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_that_are_attributes(function: Callable[[Tensor], Tensor], bias: bool) -> None:
    model = Net(function, bias=bias).double().eval()
    randomize(model)
    drop(model, "fc1.weight", [1, 4], [])
    drop(model, "fc2.weight", [], [0, 4])
    x = torch.randn(7, 5, dtype=torch.float64, generator=generator(1))
    expected = model(x)
    assert remove_neurons(model) == 3
    torch.testing.assert_close(model(x), expected)
    assert model.fc1.weight.shape == (6, 5)
    assert model.fc2.weight.shape == (4, 6)


def test_sites_of_sparse_linear_layers() -> None:
    seed()
    model = Linears().double()
    randomize(model)
    first = model.block[0]
    assert isinstance(first, SparseLinear)
    with torch.no_grad():
        first.weight[torch.isin(first.pattern.rows(), torch.tensor([2, 7]))] = 0
    drop(model, "last.weight", [], [5])
    x = torch.randn(7, 6, dtype=torch.float64, generator=generator(2))
    expected, frozen = model(x), first.weight.requires_grad_(False)
    removed = remove_neurons(model)
    assert removed >= 3
    torch.testing.assert_close(model(x), expected)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | SparseLinear)]
    sizes = [(m.in_features, m.out_features) for m in layers]
    assert sizes[0][0] == 6
    assert sizes[-1][1] == 3
    assert sum(rows for _, rows in sizes[:-1]) == 18 - removed
    assert [inputs for inputs, _ in sizes[1:]] == [outputs for _, outputs in sizes[:-1]]
    assert not model.block[0].weight.requires_grad
    assert frozen is not model.block[0].weight
    state, fresh = model.state_dict(), Linears().double()
    torch.testing.assert_close(restore(fresh, state)(x), expected)


@pytest.mark.parametrize(
    ("options", "removed"),
    [
        ({"padding": 0}, 4),
        ({"padding": 1, "padding_mode": "circular"}, 4),
        ({"padding": 1}, 3),  # the constant would be another at the rim
        ({"padding": "same"}, 3),
        ({"padding": 1, "stride": 2, "dilation": 2, "padding_mode": "replicate"}, 4),
    ],
)
def test_channels_of_convolutions(options: dict[str, Any], removed: int) -> None:
    seed()
    model = convolutions(**options).double().eval()
    randomize(model)
    drop(model, "0.weight", [2], [])
    drop(model, "4.weight", [3, 6], [5])
    x = torch.randn(3, 2, 10, 10, dtype=torch.float64, generator=generator(3))
    size = model[:7](x).shape[-1] ** 2
    model[8] = nn.Linear(7 * size, 4).double()
    randomize(model[8])
    expected = model(x)
    assert remove_neurons(model) == removed
    torch.testing.assert_close(model(x), expected)
    assert model.get_parameter("8.weight").shape == (4, 5 * size)
    assert model.get_parameter("1.weight").shape == (6 - removed + 2,)
    fresh = convolutions(**options).double().eval()
    fresh[8] = nn.Linear(7 * size, 4).double()
    torch.testing.assert_close(restore(fresh, model.state_dict())(x), expected)


def test_pruned_channels_make_a_smaller_network() -> None:
    seed()
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)
    )
    x = torch.randn(4, 3, 6, 6)
    options: dict[str, Any] = {"structure": "channels", "params": ["0", "2"]}
    sparsifier = Sparsifier(model, None, "magnitude", sparsity=0.5, **options)
    expected = model(x).detach()
    final = sparsifier.finalize("dense")
    torch.testing.assert_close(final(x).detach(), expected, rtol=1e-5, atol=1e-5)
    shapes = [tuple(p.shape) for p in final.parameters() if p.dim() > 1]
    assert shapes == [(4, 3, 3, 3), (4, 4, 3, 3), (2, 16)]


def test_ablated_neurons_leave_a_class_and_sparse_layers() -> None:
    for model in (Net(), Linears()):
        seed()
        x = torch.randn(5, 6 if isinstance(model, Linears) else 5)
        options: dict[str, Any] = {"sparsity": 0.5, "structure": "channels"}
        first = "block.0" if isinstance(model, Linears) else "fc1"
        sparsifier = Sparsifier(model.eval(), None, "magnitude", params=[first], **options)
        expected = model(x).detach()
        sparsifier.finalize("condensed")
        assert model.get_submodule(first).out_features in (4, 5)
        torch.testing.assert_close(model(x).detach(), expected)
        assert sparsifier.report().sparsity >= 0


class Forked(Net):
    """The hidden layer has another reader."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        y: Tensor = self.fc2(torch.relu(hidden)) + hidden.sum(-1, keepdim=True)
        return y


class Reading(Net):
    """Another place reads the weight."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.fc1.weight.sum()


class Training(Net):
    """Training goes another way."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.fc1(x))
        y: Tensor = self.fc2(hidden)
        return y + hidden.sum() if self.training else y


class Optional(Net):
    """An argument opens another way."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        hidden = torch.relu(self.fc1(x))
        y: Tensor = self.fc2(hidden)
        return y if mask is None else y + (hidden * mask).sum(-1, keepdim=True)


class Twice(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(2 * x)


class ByValue(Net):
    """Cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if bool(x.sum() > 0) else self.fc2(self.fc1(x))


@pytest.mark.parametrize("kind", [Forked, Reading, Training, Optional, Twice, ByValue])
@pytest.mark.parametrize("training", [True, False])
def test_what_has_other_readers_stays(kind: type[Net], training: bool) -> None:
    model = kind().train(training)
    drop(model, "fc1.weight", [1], [])
    drop(model, "fc2.weight", [], [3])
    assert remove_neurons(model) == 0
    assert model.training is training
    hooked = Net()
    drop(hooked, "fc2.weight", [], [3])
    hooked.fc1.register_forward_hook(lambda *_: None)
    assert remove_neurons(hooked) == 0


def test_parts_of_what_cannot_be_traced() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([Net(), ByValue(), Net()])
            self.seen = 0

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            y = sum(part(x) for part in self.parts)
            assert isinstance(y, Tensor)
            return y if bool(x.sum() > 0) else -y

    model = Outer().eval()
    for i in range(3):
        drop(model, f"parts.{i}.fc1.weight", [1], [])
    x = torch.randn(4, 5)
    expected = model(x)
    assert remove_neurons(model) == 2
    torch.testing.assert_close(model(x), expected)
    assert model.seen == 2  # not one call of its own


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)), (3, 8, 4)),
        ((nn.Linear(4, 8), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(8, 2)), (3, 5, 4)),
        ((nn.Linear(4, 8), nn.MaxPool1d(3, 1, padding=1), nn.Linear(8, 2)), (7, 4)),
        ((nn.Linear(4, 9), nn.ReLU(), nn.AdaptiveAvgPool1d(9), nn.Linear(9, 2)), (7, 4)),
        ((nn.Linear(4, 8), nn.AdaptiveAvgPool2d((6, 8)), nn.Linear(8, 2)), (2, 3, 4)),
        ((nn.Conv2d(2, 6, 3), nn.AdaptiveAvgPool3d((6, 4, 4)), nn.Conv2d(6, 1, 2)), (3, 2, 9, 9)),
    ],
)
def test_norms_and_pools_over_other_axes_than_channels(
    layers: tuple[nn.Module, ...], shape: tuple[int, ...]
) -> None:
    model = nn.Sequential(*layers).eval()
    randomize(model)
    drop(model, "0.weight", [1, 2], [])
    x = torch.randn(shape, generator=generator(5))
    expected = model(x)
    assert remove_neurons(model) == 0
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("known", ["flattened", "sizes", "viewed"])
@pytest.mark.parametrize("tracked", [True, False])
def test_norms_of_features(known: str, tracked: bool) -> None:
    class Viewed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(x.shape[0], -1)

    options: dict[str, Any] = {"track_running_stats": tracked}
    before: dict[str, nn.Module] = {"flattened": nn.Flatten(), "viewed": Viewed()}
    model = nn.Sequential(
        before.get(known, nn.Identity()),
        *(nn.Linear(6, 8), nn.BatchNorm1d(8, **options), nn.Tanh(), nn.Linear(8, 5)),
        *([nn.BatchNorm1d(5)] if known == "sizes" else []),
    )
    model = model.double().eval()
    randomize(model)
    drop(model, "1.weight", [0, 6], [])
    x = torch.randn(7, 6, dtype=torch.float64, generator=generator(6))
    expected = model(x)
    assert remove_neurons(model) == 2
    assert model.get_parameter("2.weight").shape == (6,)
    torch.testing.assert_close(model(x), expected)


class Around(nn.Module):
    """Cannot be traced, and holds a row of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 4))
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.features(x)
        return y if bool(x.sum() > 0) else -y


class InParts(Around):
    """Another layer reads what is inside the row."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(9, 1)

    def forward(self, x: Tensor) -> Tensor:
        middle: list[Tensor] = []
        for layer in self.features:
            x = layer(x)
            middle.append(x)
        return x + self.head(middle[1]) if bool(x.sum() > 0) else x


class AmongChildren(InParts):
    """The same, by a way that does not name the row."""

    def forward(self, x: Tensor) -> Tensor:
        features, head = self.children()
        assert isinstance(features, nn.Sequential)
        middle = features[:2](x)
        y: Tensor = features[2:](middle) + head(middle)
        return y if bool(x.sum() > 0) else -y


@pytest.mark.parametrize(("kind", "removed"), [(Around, 2), (InParts, 0), (AmongChildren, 0)])
def test_a_row_of_layers_may_be_called_in_parts(kind: type[Around], removed: int) -> None:
    model = kind()
    randomize(model)
    drop(model, "features.0.weight", [2, 8], [])
    x = torch.randn(6, 5, generator=generator(7))
    expected = model(x)
    assert remove_neurons(model) == removed
    torch.testing.assert_close(model(x), expected)


class Counting(Net):
    """Writes into buffers and lists, and draws random numbers."""

    seen: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("mean", torch.ones(4))
        self.plain, self.calls = torch.zeros(3), [1]

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.seen + 1
        self.mean.mul_(0.9)
        self.plain.data.add_(1)
        self.calls.append(2)
        return super().forward(x) + self.mean + 0 * torch.rand(4)


def test_looking_at_a_model_leaves_it_as_it_is() -> None:
    model = Counting()
    drop(model, "fc1.weight", [3], [])
    seen, random = model.seen, torch.get_rng_state()
    assert remove_neurons(model) == 1
    assert torch.equal(torch.get_rng_state(), random)
    assert model.seen is seen
    assert model.seen == 0
    assert torch.equal(model.mean, torch.ones(4))
    assert torch.equal(model.plain, torch.zeros(3))
    assert model.calls == [1]
