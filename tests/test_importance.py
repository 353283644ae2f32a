"""Scores given by name or weighted by cell area; what new weights find in optimizers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from kernel_cases import generator
from sparsity_cases import OFTEN, adam, batches, fields, locally, masks, network, seed, train
from torch import Tensor, nn

from scisparse.errors import OptionError, ShapeError
from scisparse.grids import LatLonGrid
from scisparse.layers import LocallyConnected, SparseLinear
from scisparse.patterns import window
from scisparse.sparsity import Recipe, Sparsifier, curvature, probes, schedules, scores
from scisparse.sparsity.importance import Importance, _needed, area_weighted, mest, named
from scisparse.sparsity.probes import synflow


def test_scores_by_name_decide_what_stays() -> None:
    seed()
    model = network()
    given = {"0.weight": torch.rand(20, 12), "2.weight": torch.rand(6, 20)}
    sparsifier = Sparsifier(model, None, "magnitude", sparsity=0.7, score=given)
    for mask, score in zip(masks(sparsifier), given.values(), strict=True):
        assert score[mask].min() > score[~mask].max()


def test_synaptic_flow_prunes_before_training() -> None:
    seed()
    model = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 6))
    scores = synflow(model, torch.zeros(1, 12))
    optimizer, data = adam(model), batches(3)
    sparsifier = Sparsifier(
        model, optimizer, "magnitude", sparsity=0.8, score=scores, budget="global"
    )
    train(model, optimizer, sparsifier, data)
    assert sum(int(mask.sum()) for mask in masks(sparsifier)) == round(0.2 * (480 + 240))
    every = torch.cat([scores[name].flatten() for name in ("0.weight", "2.weight")])
    kept = torch.cat([mask.flatten() for mask in masks(sparsifier)])
    assert every[kept].min() >= every[~kept].max()


@pytest.mark.parametrize("budget", ["global", "uniform"])
@pytest.mark.parametrize("factor", [10.0, 0.001])
def test_synaptic_flow_beyond_single_precision(budget: str, factor: float) -> None:
    seed()
    model = nn.Sequential(*[nn.Linear(16, 16, bias=False) for _ in range(40)])
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(factor)
    scores = synflow(model, torch.zeros(1, 16))
    every = torch.stack([score.flatten() for score in scores.values()])
    limits = torch.finfo(torch.float32)
    assert every.min() > limits.max or every.max() < limits.tiny
    sparsifier = Sparsifier(model, None, "magnitude", sparsity=0.75, score=scores, budget=budget)
    kept = torch.stack([mask.flatten() for mask in masks(sparsifier)])
    rows = [slice(None)] if budget == "global" else list(range(40))
    for row in rows:
        assert every[row][kept[row]].min() > every[row][~kept[row]].max()


@pytest.mark.parametrize("method", ["magnitude", "top_kast"])
def test_scores_of_double_weights_are_compared_in_double(method: str) -> None:
    seed()
    layer = nn.Linear(8, 8).double()
    with torch.no_grad():
        layer.weight.copy_(1.0 + 1e-12 * torch.randperm(64).double().reshape(8, 8))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    before = layer.weight.detach().clone()
    schedule = schedules.OneShot(1) if method == "magnitude" else schedules.Steady(every=1)
    sparsifier = Sparsifier(layer, optimizer, method, sparsity=0.5, schedule=schedule)
    for _ in range(2):
        layer(torch.zeros(1, 8).double()).sum().backward()
        optimizer.step()
        sparsifier.step()
    (kept,) = masks(sparsifier)
    assert before[kept].min() > before[~kept].max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mest_of_weights_of_16_bits_sees_small_gradients(dtype: torch.dtype) -> None:
    weight, grad = torch.ones(3, dtype=dtype), torch.tensor([0.01, 0.02, 0.03], dtype=dtype)
    torch.testing.assert_close(mest(weight, grad), 1.0 + 0.01 * grad.float())


def on_a_grid() -> LocallyConnected:
    seed()
    grid = LatLonGrid.regular(6, 12)
    pattern = window(grid, 3)
    return LocallyConnected(pattern, 2, 3)


def polar(layer: LocallyConnected) -> int:
    """Edges of the two rows of cells next to the poles."""
    rows = layer.pattern.fan_in.reshape(6, 12)
    return int(rows[[0, -1]].sum())


@pytest.mark.parametrize("method", ["magnitude", "rigl"])
def test_weights_of_small_cells_count_less(method: str) -> None:
    """All weights alike: with areas those near the poles go first."""
    left = []
    for score in ("magnitude", area_weighted()):
        layer = on_a_grid()
        with torch.no_grad():
            layer.weight.copy_(1 + 0.01 * torch.rand_like(layer.weight))
        optimizer, x = adam(layer), torch.randn(4, 72, 2)
        options: dict[str, Any] = {"schedule": OFTEN} if method == "rigl" else {}
        sparsifier = Sparsifier(layer, optimizer, method, sparsity=0.5, score=score, **options)
        train(layer, optimizer, sparsifier, [(x, torch.randn(4, 72, 3))] * 4)
        left.append(polar(sparsifier.finalize()))  # type: ignore[arg-type]
    assert left[1] < 0.8 * left[0]


def test_areas_are_those_of_the_cells() -> None:
    layer = on_a_grid()
    areas = torch.as_tensor(LatLonGrid.regular(6, 12).areas).reshape(-1).float()
    sparsifier = Sparsifier(
        layer, None, "magnitude", sparsity=0.5, score=area_weighted("magnitude")
    )
    (target,) = sparsifier.targets
    score = target.importance(sparsifier.rules)  # type: ignore[attr-defined]
    expected = (
        layer.weight.detach().abs() * (areas / areas.mean())[layer.pattern.rows(), None, None]
    )
    torch.testing.assert_close(score, expected)


@pytest.mark.parametrize("method", ["magnitude", "rigl"])
def test_signed_scores_cannot_be_weighted_by_area(method: str) -> None:
    layer = on_a_grid()
    optimizer, x = adam(layer), torch.randn(4, 72, 2)
    score = area_weighted(lambda weight, gradient: weight)
    options: dict[str, Any] = {"schedule": OFTEN} if method == "rigl" else {}
    with pytest.raises(OptionError, match="some are below 0; choose scores of sizes"):
        train(
            layer,
            optimizer,
            Sparsifier(layer, optimizer, method, sparsity=0.5, score=score, **options),
            [(x, torch.randn(4, 72, 3))] * 4,
        )


BAD: list[tuple[nn.Module, dict[str, Any], str]] = [
    (nn.Linear(4, 5), {"score": {"wieght": torch.ones(5, 4)}}, "did you mean 'wieght'"),
    (
        nn.Linear(4, 5),
        {"score": {"weight": torch.ones(4, 5)}},
        r"shape \[4, 5\], the weight \[5, 4",
    ),
    (
        SparseLinear(9, 8, fan_in=4),
        {"score": {"weight": torch.ones(32)}, "method": "rigl", "total_steps": 10},
        "edges of weight move",
    ),
    (locally(), {"score": area_weighted()}, "its pattern has no grid"),
    (
        LocallyConnected(window(LatLonGrid.regular(6, 12), 3), 2, 3, tie="longitude"),
        {"score": area_weighted()},
        "its edges share weights",
    ),
]


@pytest.mark.parametrize(("model", "options", "message"), BAD)
def test_bad_scores(model: nn.Module, options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"method": "magnitude", "sparsity": 0.5} | options
    with pytest.raises(OptionError, match=message):
        Sparsifier(model, adam(model), **given)


@pytest.mark.parametrize("kind", ["masked", "edges"])
@pytest.mark.parametrize(
    ("optimizer_type", "options", "key", "start"),
    [
        (torch.optim.Rprop, {"lr": 0.02}, "step_size", 0.02),
        (torch.optim.Adagrad, {"lr": 0.02, "initial_accumulator_value": 0.5}, "sum", 0.5),
        (torch.optim.Adam, {"lr": 0.02}, "exp_avg_sq", 0.0),
    ],
)
def test_new_weights_find_the_state_that_optimizers_start_with(
    kind: str, optimizer_type: Any, options: dict[str, float], key: str, start: float
) -> None:
    seed()
    model: nn.Module = nn.Linear(12, 6) if kind == "masked" else locally()
    data = batches(2) if kind == "masked" else fields(2)
    optimizer = optimizer_type(model.parameters(), **options)
    sparsifier = Sparsifier(model, optimizer, "set", sparsity=0.6, schedule=OFTEN)
    weight = model.get_parameter("weight")
    train(model, optimizer, sparsifier, data)  # the second step moves connections
    assert sparsifier.report().layers[0].churn > 0
    (target,) = sparsifier.targets
    rows = weight.shape[0] if kind == "masked" else target.count // 6
    new = (weight[:rows] == 0) & (masks(sparsifier)[0] if kind == "masked" else True)
    state = optimizer.state[weight][key][:rows]
    assert int(new.sum()) > 0
    assert bool((state[new] == start).all())
    assert not bool((state[~new] == start).all())


def test_functions_of_the_package_mean_their_rules() -> None:
    for function in (scores.magnitude, scores.taylor, scores.movement, scores.snip, scores.random):
        assert named(function) is named(function.__name__)
    assert named(curvature.optimal_brain_damage) is named("optimal_brain_damage")
    assert named(curvature.optimal_brain_surgeon) is named("optimal_brain_surgeon")


@pytest.mark.parametrize(
    "function", [scores.wanda, probes.grasp, probes.leave_one_out, probes.synflow]
)
def test_functions_that_need_more_are_refused_with_the_remedy(function: Any) -> None:
    """They would take the gradient for inputs, or for what else they read."""
    model = network()
    said = rf"`score` is {function.__name__}, .* score=\{{'0\.we"
    for score in (function, function.__name__):
        with pytest.raises(OptionError, match=said):
            Sparsifier(model, adam(model), "gmp", sparsity=0.5, total_steps=20, score=score)
    with pytest.raises(OptionError, match=said):
        Recipe(score=function.__name__)


class Recorded(torch.optim.SGD):
    """Remembers gradients, and moves nothing."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.0)
        self.seen: list[list[Tensor]] = []

    def step(self, closure: Any = None) -> Any:
        weights = [p for group in self.param_groups for p in group["params"]]
        self.seen.append([p.grad.clone() for p in weights])
        return super().step(closure)


@pytest.mark.parametrize("build", [network, locally])
def test_surgeon_by_name_reads_the_gradients_of_all_steps(build: Any) -> None:
    seed()
    model = build()
    optimizer, steps = Recorded(model), 5
    data = batches(steps) if build is network else fields(steps)
    sparsifier = Sparsifier(
        model,
        optimizer,
        "gmp",
        sparsity=0.5,
        score="optimal_brain_surgeon",
        schedule=schedules.OneShot(steps),
    )
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    train(model, optimizer, sparsifier, data)
    names = [name for name, _ in model.named_parameters()]
    for target in sparsifier.targets:
        k = names.index(target.name)
        grads = torch.stack([step[k] for step in optimizer.seen]).double()
        damping = 1e-3 * float(grads.square().mean())
        expected = curvature.optimal_brain_surgeon(weights[k].double(), grads, damping=damping)
        expected = expected.flatten(1).sum(1) if build is locally else expected.flatten()
        left = (model.get_parameter(target.name) != 0).reshape(len(expected), -1).any(1)
        assert int(left.sum()) == len(expected) // 2
        # Rounding may exchange scores that are nearly the same.
        assert expected[left].min() > 0.98 * expected[~left].max()


def test_surgeon_forgets_what_it_knew_of_weights_that_go_and_come() -> None:
    rule, gen = named("optimal_brain_surgeon"), generator(6)
    weight = torch.randn(9, 15, generator=gen)
    changed = torch.rand(9, 15, generator=gen) < 0.3
    first, second = torch.randn(2, 9, 15, generator=gen)
    total = rule.share(weight, first, gen)
    rule.forget(total, changed)
    expected = rule.share(weight, first.masked_fill(changed, 0), gen)
    torch.testing.assert_close(total, expected)
    total += rule.share(weight, second, gen)
    assert bool((rule.of_sum(weight, total) > 0).all())


@pytest.mark.parametrize("method", ["gmp", "rigl"])
def test_surgeon_resumes_bit_for_bit(method: str) -> None:
    def start() -> tuple[Any, Any, Any]:
        seed()
        model = network()
        optimizer = adam(model)
        recipe = Recipe(method=method, sparsity=0.6, total_steps=30, score="optimal_brain_surgeon")
        return model, optimizer, recipe.apply(model, optimizer)

    data, whole, first, again = batches(30), start(), start(), start()
    losses = train(*whole, data)
    train(*first, data[:13])
    for part, saved in zip(again, first, strict=True):
        part.load_state_dict(copy.deepcopy(saved.state_dict()))
    assert train(*again, data[13:]) == losses[13:]
    assert whole[2].report().sparsity == pytest.approx(0.6, abs=1e-3)


def test_wanda_of_the_edges_of_a_linear_layer() -> None:
    seed()
    layer = SparseLinear(14, 9, fan_in=5)
    x = torch.randn(3, 7, 14) * torch.linspace(0.1, 4.0, 14)
    score = scores.wanda(layer.edge_weight, x, layer.pattern.col)
    dense = torch.zeros(9, 14)
    dense[layer.pattern.rows(), layer.pattern.col.long()] = layer.weight.detach()
    expected = scores.wanda(dense, x)[layer.pattern.rows(), layer.pattern.col.long()]
    torch.testing.assert_close(score, expected)
    sparsifier = Sparsifier(layer, None, "magnitude", sparsity=0.4, score={"weight": score})
    left = layer.weight.detach() != 0
    assert int(left.sum()) == 27
    assert score[left].min() >= score[~left].max()
    assert sparsifier.report().layers[0].active == 27


def test_wanda_of_edges_says_what_does_not_fit() -> None:
    layer = SparseLinear(14, 9, fan_in=5)
    col = layer.pattern.col
    with pytest.raises(ShapeError, match="give `source` for weights of edges"):
        scores.wanda(layer.edge_weight, torch.ones(2, 14))
    for weight, source in ((torch.ones(9, 14), col), (torch.ones(45), torch.ones(45))):
        with pytest.raises(ShapeError, match=r"must be integers \[E\]"):
            scores.wanda(weight, torch.ones(2, 14), source)
    for inputs in (torch.ones(2, int(col.max())), torch.tensor(1.0)):
        with pytest.raises(ShapeError, match="put the sources last"):
            scores.wanda(layer.edge_weight, inputs, col)
    with pytest.raises(ShapeError, match="holds no sample"):
        scores.wanda(layer.edge_weight, torch.ones(0, 14), col)


def test_the_sensitivity_of_layers_is_compared_over_the_whole_network() -> None:
    """SNIP's sum runs over all weights: it ranks as the product of weight and gradient does."""
    left = []
    for score in ("snip", "taylor"):
        seed()
        model = network()
        with torch.no_grad():
            next(model.parameters()).mul_(10)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        sparsifier = Sparsifier(
            model, optimizer, "gmp", sparsity=0.6, total_steps=4, score=score, budget="global"
        )
        train(model, optimizer, sparsifier, batches(4))
        left.append([mask.clone() for mask in masks(sparsifier)])
    assert all(torch.equal(a, b) for a, b in zip(*left, strict=True))


@pytest.mark.parametrize("build", [network, locally])
def test_random_pruning_goes_by_the_seed_of_the_sparsifier(build: Any) -> None:
    chosen = []
    for number in (1, 1, 2):
        seed()
        model = build()
        torch.rand(number)  # torch's own generator does not matter
        sparsifier = Sparsifier(model, None, "magnitude", sparsity=0.5, score="random", seed=number)
        assert sparsifier.report().sparsity == pytest.approx(0.5, abs=0.01)
        chosen.append(torch.cat([mask.flatten() for mask in masks(sparsifier)]))
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])


@pytest.mark.parametrize("number", [0, 1, 7])
@pytest.mark.parametrize("build", [lambda: nn.Linear(64, 64), lambda: SparseLinear(64, 64, 64)])
def test_a_random_start_does_not_see_the_weights(build: Any, number: int) -> None:
    """Initial weights and connections are drawn with the same seed, but not of the same numbers."""
    torch.manual_seed(number)
    layer = build()
    before = layer.weight.detach().flatten().clone()
    sparsifier = Sparsifier(layer, None, "static", sparsity=0.5, seed=number)
    (target,) = sparsifier.targets
    kept = layer.weight[layer.weight != 0].detach()
    assert len(kept) == 2048 == target.count
    # Means of half of the weights, drawn at random, differ from that of all by chance.
    assert abs(float(kept.mean() - before.mean())) < 5 * float(before.std()) / 2048**0.5


@pytest.mark.parametrize("dtypes", [(torch.bfloat16,) * 600, (torch.float64, torch.float32)])
def test_sums_are_of_no_less_than_single_precision(dtypes: tuple[torch.dtype, ...]) -> None:
    """Whatever the function of a user returns, and also where the model is cast meanwhile."""
    model = nn.Linear(2, 2, bias=False).to(dtypes[0])
    nn.init.ones_(model.weight)
    kept = Importance("kept", lambda weight, gradient: weight * _needed(gradient), True, sums=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    sparsifier = Sparsifier(model, optimizer, "gmp", sparsity=0.5, total_steps=9000, score=kept)
    for dtype in dtypes:
        weight = model.to(dtype).weight
        weight.grad = torch.full_like(weight, 1 / 3)
        optimizer.step()
    total = sparsifier.state_dict()["targets"]["weight"]["sum"]
    exact = sum(torch.tensor(1 / 3, dtype=dtype).double() for dtype in dtypes)
    torch.testing.assert_close(
        total.double(), torch.full((2, 2), float(exact), dtype=torch.float64), rtol=1e-5, atol=0
    )
    assert total.dtype == torch.promote_types(dtypes[0], torch.float32)
