"""What users do that the usual loop does not: each of these went wrong once."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest
import torch
from kernel_cases import generator
from sparsity_cases import OFTEN, adam, batches, fields, locally, masks, network, seed, train
from torch import Tensor, nn

from scisparse.errors import OptionError, ShapeError
from scisparse.kernels import _watch
from scisparse.layers import (
    LocallyConnected,
    LocallyConnected2d,
    LocallyConnectedTranspose2d,
    SparseLinear,
)
from scisparse.patterns import window
from scisparse.sparsity import Sparsifier, budgets, schedules, structures
from scisparse.sparsity.ablation import remove_neurons


@pytest.mark.parametrize("make", [LocallyConnected2d, LocallyConnectedTranspose2d])
@pytest.mark.parametrize(
    "options",
    [{"sparsity": 0.5}, {"teleconnections": 1}, {"method": "gmp", "sparsity": 0.5}],
    ids=str,
)
def test_layers_over_fields_keep_their_shapes(make: Any, options: dict[str, Any]) -> None:
    seed()
    layer = make(2, 3, 3, input_size=(6, 7), padding=1)
    x = torch.randn(16, 2, 6, 7, generator=generator(1))
    shape, optimizer = layer(x).shape, adam(layer)
    sparsifier = Sparsifier(layer, optimizer, **{"method": "rigl", "total_steps": 60, **options})
    target = torch.randn(shape, generator=generator(2))
    train(layer, optimizer, sparsifier, [(x, target)] * 60)
    final: Any = sparsifier.finalize()
    assert final(x).shape == shape
    fresh = make(2, 3, 3, input_size=(6, 7), padding=1)
    fresh.load_state_dict(final.state_dict())
    assert torch.equal(fresh(x), final(x))
    assert torch.equal(final.untie()(x), final(x))


@pytest.mark.parametrize("method", ["magnitude", "gmp"])
def test_sparse_linear_can_be_pruned(method: str) -> None:
    seed()
    model = SparseLinear(16, 8, 8)
    optimizer = adam(model)
    sparsifier = Sparsifier(model, optimizer, method, sparsity=0.5, total_steps=8)
    train(model, optimizer, sparsifier, batches(8, 16, 8))
    x = batches(1, 16, 8)[0][0]
    expected = model(x).detach()
    sparsifier.finalize()
    assert model.weight.shape == (32,)
    torch.testing.assert_close(model(x).detach(), expected)


def test_more_candidates_than_running_means_can_be_kept() -> None:
    layer = SparseLinear(9000, 9000, fan_in=1)
    with pytest.raises(OptionError, match=r"each of the 81000000 candidates of weight; give fewer"):
        Sparsifier(layer, adam(layer), "sparse_momentum", sparsity=0.9999, total_steps=40)


def far_problem(steps: int) -> tuple[LocallyConnected, list[tuple[Tensor, Tensor]]]:
    """Every cell reads the one with the opposite number, far away for most."""
    seed(2)
    layer = LocallyConnected(window((6, 6), 3, padding=1), 1, 1)
    gen = generator(8)
    xs = [torch.randn(64, 36, 1, generator=gen) for _ in range(steps)]
    return layer, [(x, 3 * x.flip(1)) for x in xs]


@pytest.mark.parametrize("stop", [61, 64, 67])
def test_training_that_ends_within_the_audit_keeps_what_it_found(stop: int) -> None:
    layer, data = far_problem(stop)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    schedule = schedules.CosineDrop(end=60, every=5, fraction=0.5)
    sparsifier = Sparsifier(layer, optimizer, "rigl", teleconnections=1, schedule=schedule)
    train(layer, optimizer, sparsifier, data)
    sparsifier.finalize()
    assert layer.weight.detach().abs().max().item() > 1


def test_a_step_that_overflows_within_the_audit_does_not_count() -> None:
    layer, data = far_problem(90)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    schedule = schedules.CosineDrop(end=60, every=5, fraction=0.5)
    sparsifier = Sparsifier(layer, optimizer, "rigl", teleconnections=1, schedule=schedule)
    train(layer, optimizer, sparsifier, data[:63])
    optimizer.zero_grad()
    (layer(data[0][0]) * torch.inf).sum().backward()
    sparsifier.step()
    train(layer, optimizer, sparsifier, data[64:])
    far = 36 - int((layer.pattern.to_dense() & torch.eye(36).flip(1).bool()).sum())
    assert far <= 1


def test_training_too_short_for_the_audit() -> None:
    layer, _ = far_problem(0)
    with pytest.raises(OptionError, match=r"`total_steps` \(=24\) must be at least 26"):
        Sparsifier(layer, adam(layer), "rigl", teleconnections=1, total_steps=24)
    once = schedules.OneShot(5)
    with pytest.raises(OptionError, match="has no `end`"):
        Sparsifier(layer, adam(layer), "rigl", teleconnections=1, schedule=once)


def test_two_sparsifiers_on_one_weight() -> None:
    model = network()
    optimizer = adam(model)
    first = Sparsifier(model, optimizer, "set", sparsity=0.5, total_steps=100)
    with pytest.raises(OptionError, match=r"0\.weight is under another sparsifier"):
        Sparsifier(model, optimizer, "set", sparsity=0.5, total_steps=100)
    first.release()
    Sparsifier(model, optimizer, "set", sparsity=0.5, total_steps=100)


def test_a_dropped_sparsifier_leaves_nothing_behind() -> None:
    layer, dense = locally(), network()
    for model in (layer, dense):
        optimizer = adam(model)
        sparsifier = Sparsifier(
            model, optimizer, "rigl", sparsity=0.5, growth="momentum", total_steps=9
        )
        del sparsifier
    gc.collect()
    assert not _watch._watches
    dense(batches(1)[0][0]).square().sum().backward()
    grad = dense.get_parameter("2.weight").grad
    assert grad is not None
    assert int(torch.count_nonzero(grad)) == grad.numel()  # no mask is left


def test_failed_construction_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(8, 10), nn.Linear(10, 4))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(OptionError, match="must be divisible by 4"):
        Sparsifier(model, None, "magnitude", sparsity=0.5, structure="2:4")
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not model.get_parameter("0.weight")._backward_hooks
    Sparsifier(model, None, "magnitude", sparsity=0.5)


def test_frozen_and_unused_weights() -> None:
    seed()
    model = nn.ModuleDict({name: nn.Linear(12, 6) for name in ("frozen", "used", "unused")})
    model["frozen"].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sparsifier = Sparsifier(model, optimizer, "rigl", sparsity=0.5, schedule=OFTEN)
    assert [t.name for t in sparsifier.targets] == ["used.weight", "unused.weight"]
    unused = masks(sparsifier)[1].clone()
    train(model["used"], optimizer, sparsifier, batches(4))
    assert sparsifier.report().layers[0].churn > 0
    assert torch.equal(masks(sparsifier)[1], unused)


def test_weights_that_are_integers() -> None:
    table = nn.Module()
    table.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int64), requires_grad=False)
    with pytest.raises(ShapeError, match="must be of floating point"):
        Sparsifier(table, None, "magnitude", sparsity=0.5, params=["weight"])


class Tied(nn.Module):
    """Words that go in and come out by the same vectors, and a layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)
        self.out.weight = self.embed.weight
        self.mix = self.again = nn.Linear(8, 8)

    def forward(self, words: Tensor) -> Tensor:
        scores: Tensor = self.out(self.again(self.mix(self.embed(words))))
        return scores


@pytest.mark.parametrize(
    "params",
    [
        None,
        ["embed.weight", "out.weight", "mix"],
        ["embed", "again"],
        ["out", "mix", "again.weight"],
        ["*.weight"],
    ],
)
def test_a_weight_of_several_modules_is_one(params: list[str] | None) -> None:
    seed()
    model = Tied()
    optimizer = adam(model)
    rule: dict[str, Any] = {"sparsity": 0.5, "schedule": schedules.Cubic(0, 6, 2)}
    sparsifier = Sparsifier(model, optimizer, "gmp", params=params, **rule)
    assert [target.name for target in sparsifier.targets] == ["out.weight", "mix.weight"]
    words = torch.randint(30, (8, 16), generator=generator(1))
    train(model, optimizer, sparsifier, [(x, nn.functional.one_hot(x, 30)) for x in words])
    assert int(torch.count_nonzero(model.embed.weight)) == 120
    assert int(torch.count_nonzero(model.mix.weight)) == 32


def test_options_that_no_layer_can_honour() -> None:
    layer, dense = locally(), network()
    groups = LocallyConnected(window((5, 8), 3, padding=1), 2, 2, groups=2)
    regions = budgets.Regions([0] * 40, {0: 0.9})
    cases: list[tuple[nn.Module, str, dict[str, Any], str]] = [
        (dense, "magnitude", {"budget": regions}, "is for pattern layers with a weight of its own"),
        (groups, "rigl", {"budget": regions}, "is for pattern layers with a weight of its own"),
        (layer, "gmp", {"budget": regions, "structure": "taps"}, "leave one of the two out"),
        (groups, "rigl", {"candidates": layer.pattern}, "no layer has edges that can move"),
        (layer, "magnitude", {"structure": "constant_fan_in"}, "needs a method that regrows"),
        (nn.Sequential(layer, dense), "rigl", {"budget": "global"}, "needs the scores of all"),
        (dense, "gmp", {"structure": "2:4", "params": ["0"]}, "cannot be reached step by step"),
    ]
    for model, method, options, message in cases:
        with pytest.raises(OptionError, match=message):
            Sparsifier(model, None, method, sparsity=0.5, total_steps=10, **options)


def test_the_end_is_the_end() -> None:
    model = network()
    sparsifier = Sparsifier(model, adam(model), "gmp", sparsity=0.5, total_steps=40)
    sparsifier.finalize()
    with pytest.raises(OptionError, match="the model is final"):
        sparsifier.finalize()
    with pytest.raises(OptionError, match="build a new one"):
        sparsifier.step()


def test_shared_layers_stay_shared() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False)
            self.head.weight = self.words.weight
            self.again = nn.Linear(8, 8)
            self.first = nn.Sequential(self.again, nn.ReLU(), nn.Linear(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.again(self.first(self.words(x))))
            return y

    seed()
    model = Shared()
    with torch.no_grad():
        model.again.weight[3] = 0
    sparsifier = Sparsifier(model, None, "magnitude", sparsity=0.5)
    x = torch.arange(9)
    expected = model(x).detach()
    sparsifier.finalize("condensed")
    torch.testing.assert_close(model(x).detach(), expected)
    assert model.head.weight is model.words.weight
    assert model.first.get_submodule("0") is model.again


def test_transformer_layer_still_runs_its_fast_path() -> None:
    seed()
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    sparsifier = Sparsifier(layer, None, "magnitude", sparsity=0.8)
    x = torch.randn(2, 5, 16, generator=generator(1))
    with torch.no_grad():
        expected = layer(x)
        torch.testing.assert_close(sparsifier.finalize("condensed")(x), expected)


def test_attention_with_inputs_of_other_widths() -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    sparsifier = Sparsifier(attention, None, "magnitude", sparsity=0.5)
    names = [target.name for target in sparsifier.targets]
    assert names == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]


def test_edges_that_two_layers_share() -> None:
    first = SparseLinear(8, 8, 3)
    second = SparseLinear(8, 8, pattern=first.pattern)
    second.weight = first.weight
    with pytest.raises(OptionError, match="belongs to another pattern layer"):
        Sparsifier(nn.Sequential(first, second), None, "rigl", total_steps=10)


def weights_by_edge(layer: LocallyConnected) -> dict[tuple[int, ...], Any]:
    edges = [tuple(pair) for pair in layer.pattern.to_edge_index().T.tolist()]
    return dict(zip(edges, layer.weight.tolist(), strict=True))


def test_a_model_loaded_under_a_sparsifier() -> None:
    layer = locally()
    optimizer = adam(layer)
    sparsifier = Sparsifier(layer, optimizer, "rigl", sparsity=0.5, schedule=OFTEN)
    state = copy.deepcopy(layer.state_dict())
    train(layer, optimizer, sparsifier, fields(5))
    layer.load_state_dict(state)
    own = weights_by_edge(layer)
    frozen = torch.optim.SGD(layer.parameters(), lr=0.0)
    train(layer, frozen, sparsifier, fields(1))
    kept = 0
    for edge, weight in weights_by_edge(layer).items():
        kept += own.get(edge) == weight
        assert weight in (own.get(edge), [[0.0] * 3] * 2)
    assert kept > 50


@pytest.mark.parametrize("method", ["movement", "sparse_momentum"])
def test_overflow_under_a_fused_optimizer(method: str) -> None:
    seed()
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    sparsifier = Sparsifier(model, optimizer, method, sparsity=0.5, total_steps=20)
    for k, (x, y) in enumerate(batches(20)):
        loss = (model(x) - y).square().mean() * (torch.inf if k == 3 else 1.0)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        sparsifier.step()
    assert sparsifier.report().sparsity == 0.5
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_n_of_m_regrows_and_vnm_keeps_its_sparsity() -> None:
    seed()
    model = network((16, 16, 8))
    optimizer = adam(model)
    sparsifier = Sparsifier(model, optimizer, "rigl", sparsity=0.5, structure="2:4", schedule=OFTEN)
    train(model, optimizer, sparsifier, batches(9, 16, 8))
    for mask in masks(sparsifier):
        assert mask.reshape(-1, 4).sum(1).unique().tolist() == [2]
    structure, score = structures.VNM(2, 8, 4), torch.rand(8, 16, generator=generator(3))
    keep = structure.choose(score, 32)
    again = structure.choose(score.masked_fill(~keep, -torch.inf), 32)
    assert torch.equal(keep, again)


def test_own_forward_of_a_sequential_is_left_alone() -> None:
    class Skip(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            first: Tensor = self.get_submodule("0")(x)
            rest: Tensor = super().forward(x)
            return first + rest

    model = Skip(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    with torch.no_grad():
        model.get_parameter("0.weight")[1] = 0
    assert remove_neurons(model) == 0


@pytest.mark.parametrize("kind", ["dense", "edges"])
def test_lbfgs_starts_anew_when_connections_have_moved(kind: str) -> None:
    """Its history is a vector of all weights; a new optimizer takes the same step."""
    seed()
    sizes = [nn.Linear(12, 20), nn.Linear(20, 6)]
    layers = sizes if kind == "dense" else [SparseLinear.from_dense(m) for m in sizes]
    model = nn.Sequential(layers[0], nn.Tanh(), layers[1])
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    sparsifier = Sparsifier(model, optimizer, "set", sparsity=0.5, schedule=OFTEN)

    def step(model: nn.Module, optimizer: torch.optim.LBFGS, x: Tensor, y: Tensor) -> None:
        def closure() -> float:
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            value: float = loss.item()
            return value

        optimizer.step(closure)

    data = batches(6)
    for x, y in data:
        step(model, optimizer, x, y)
        sparsifier.step()
    assert sparsifier.report().layers[0].churn > 0
    sparsifier.release()
    again = copy.deepcopy(model)
    fresh = torch.optim.LBFGS(again.parameters(), lr=0.1, max_iter=3)
    for one, its in ((model, optimizer), (again, fresh)):
        step(one, its, *data[0])
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b)
