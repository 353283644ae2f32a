"""Moving averages of models over patterns: of weights on the same edges, or an error."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from sparsity_cases import OFTEN, adam, batches, fields, locally, network, seed, train
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from scisparse.errors import OptionError, PatternError
from scisparse.layers import LocallyConnected, SparseAttention, SparseLinear
from scisparse.patterns import window
from scisparse.sparsity import Sparsifier
from scisparse.sparsity.masked import MaskedTarget

EMA: list[dict[str, Any]] = [
    {},
    {"avg_fn": get_ema_avg_fn(0.9)},
    {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
]


class Attending(nn.Module):
    """A map to channels that attention has, and back."""

    def __init__(self) -> None:
        super().__init__()
        pattern = window((5, 8), 5, padding=2, padding_mode=("zeros", "circular"))
        self.first, self.last = nn.Linear(2, 8), nn.Linear(8, 3)
        self.attend = SparseAttention(pattern, 8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.attend(self.first(x)))
        return y


def attending() -> nn.Module:
    seed()
    return Attending()


def linear() -> nn.Module:
    seed()
    return nn.Sequential(nn.Flatten(), SparseLinear(80, 120, fan_in=40), nn.Unflatten(1, (40, 3)))


def moving(build: Any) -> tuple[Any, Any, Sparsifier]:
    model = build()
    optimizer = adam(model)
    given: dict[str, Any] = {"params": ["*.edges"]} if build is attending else {}
    return (
        model,
        optimizer,
        Sparsifier(model, optimizer, "rigl", sparsity=0.5, schedule=OFTEN, **given),
    )


@pytest.mark.parametrize("kind", EMA)
@pytest.mark.parametrize("build", [locally, linear, attending])
@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize("follows", [True, False])
def test_over_edges_that_move(build: Any, kind: Any, use_buffers: bool, follows: bool) -> None:
    model, optimizer, sparsifier = moving(build)
    mean = AveragedModel(model, use_buffers=use_buffers, **kind)
    if follows:
        sparsifier.follow(mean.module)
    rounds = bool(kind) and use_buffers  # torch's mean of equal numbers is lower
    for batch in fields(9):
        train(model, optimizer, sparsifier, [batch])
        mean.update_parameters(model)
    if rounds or not follows:
        for read in (mean.eval, mean.train, mean.state_dict):
            with pytest.raises(PatternError, match=r"col.* are not those of its pattern any more"):
                read()
    if not follows:
        return
    copied: Any = mean.module
    if rounds:
        copied = copy.deepcopy(model)
        for averaged, own in zip(mean.parameters(), copied.parameters(), strict=True):
            assert averaged.shape == own.shape
        vector_to_parameters(parameters_to_vector(mean.parameters()), copied.parameters())
    layers: list[Any] = [part for part in copied.modules() if hasattr(part, "row_ptr")]
    for part in layers:
        assert torch.equal(part.col, part.pattern.col)
    x = fields(1)[0][0]
    again = build()
    again.load_state_dict(copied.eval().state_dict())
    torch.testing.assert_close(again(x), copied(x))
    torch.testing.assert_close(dict(again.named_parameters()), dict(mean.module.named_parameters()))


@pytest.mark.parametrize("build", [locally, linear, attending])
def test_of_buffers_that_stay(build: Any) -> None:
    """Torch rounds numbers of edges down; those of the model itself stay."""
    model = build()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    mean = AveragedModel(model, use_buffers=True, avg_fn=get_ema_avg_fn(0.9))
    for _ in range(3):
        mean.update_parameters(model)
    remedies = r"leave `use_buffers` of torch's AveragedModel at F.* save a copy\.deepcopy\(model\)"
    with pytest.raises(PatternError, match=remedies):
        mean.eval()
    torch.testing.assert_close(dict(model.named_buffers()), before)
    model.eval()
    for part in model.modules():
        if hasattr(part, "pattern"):
            part.pattern.validate()


@pytest.mark.parametrize("build", [locally, linear, attending])
@pytest.mark.parametrize("kind", EMA)
def test_of_a_copy_that_has_moved(build: Any, kind: Any) -> None:
    """As one on the CPU of a model on a GPU: its buffers are written anew."""
    model = build()
    mean = AveragedModel(model, use_buffers=True, **kind)
    mean.module.to_empty(device="cpu")
    mean.module.load_state_dict(model.state_dict())
    patterns = [part.pattern for part in model.modules() if hasattr(part, "pattern")]
    before = [dataclasses.replace(one, col=one.col.clone()).fingerprint for one in patterns]
    for _ in range(3):
        mean.update_parameters(model)
    assert [dataclasses.replace(one).fingerprint for one in patterns] == before
    model.eval()
    if kind:
        with pytest.raises(PatternError, match=r"col.* are not those of its pattern any more"):
            mean.eval()


@pytest.mark.parametrize("build", [locally, linear, attending])
def test_values_that_are_written_again_are_the_same(build: Any) -> None:
    """As by those who broadcast buffers, and by copies that share their memory with none."""
    model = build()
    if isinstance(model, LocallyConnected):
        model.smoothness()  # keeps what it computes over
    for buffer in model.buffers():
        buffer.copy_(buffer.clone())
    before = vars(model).copy()
    model.eval()
    assert all(vars(model)[name] is value for name, value in before.items() if name != "training")
    copied = copy.deepcopy(model).train().double().eval()
    assert len(copied.state_dict()) == len(model.state_dict())
    assert not {b.data_ptr() for b in copied.buffers()} & {b.data_ptr() for b in model.buffers()}
    with torch.inference_mode():
        build().eval().train()
    with torch.device("meta"):
        build().eval()


def test_a_graph_may_set_the_mode() -> None:
    layer = locally()

    def scored(x: Tensor) -> Tensor:
        y: Tensor = layer.eval()(x)
        layer.train()
        return y

    torch.compiler.reset()
    x = fields(1)[0][0]
    compiled: Any = torch.compile(scored, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), scored(x))


def test_copies_that_cannot_follow() -> None:
    model, _, sparsifier = moving(linear)
    with pytest.raises(OptionError, match=r"edges of 1.weight are buffers, whose numbers have no"):
        sparsifier.follow(AveragedModel(model, use_buffers=True))
    with pytest.raises(OptionError, match=r"`copy` has no module '1', which holds 1.weight; giv"):
        sparsifier.follow(nn.Linear(2, 2))
    average: Any = AveragedModel(model)
    sparsifier.follow(average)
    assert average.module[1].pattern == model[1].pattern
    dense = network()
    masked = Sparsifier(dense, adam(dense), "rigl", sparsity=0.5, total_steps=40)
    masked.follow(AveragedModel(dense, use_buffers=True))


@pytest.mark.parametrize("method", ["rigl", "top_kast"])
def test_an_average_that_is_made_before_the_sparsifier_steps(method: str) -> None:
    """Until then weights under the mask are what the optimizer has made of them."""
    model = network()
    optimizer = torch.optim.Muon([p for p in model.parameters() if p.dim() == 2])
    sparsifier = Sparsifier(model, optimizer, method, sparsity=0.5, total_steps=400)
    average: Any = AveragedModel(model)
    sparsifier.follow(average)
    for batch in batches(3):
        train(model, optimizer, None, [batch])
        average.update_parameters(model)
        sparsifier.step()
    for target in sparsifier.targets:
        assert isinstance(target, MaskedTarget)
        weight = average.module.get_parameter(target.name)
        assert not weight[~target.mask].any()
        assert weight[target.mask].all()
