"""What no layer can do is said when a sparsifier is built, with the nearest that one can."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from kernel_cases import generator
from sparsity_cases import adam, locally, network, seed, train
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from scisparse.errors import OptionError
from scisparse.layers import LocallyConnected, SparseAttention, SparseLinear
from scisparse.patterns import window
from scisparse.sparsity import Sparsifier, budgets, growth, schedules, structures
from scisparse.sparsity.growth import Candidates, Growth
from scisparse.sparsity.importance import area_weighted, named


@pytest.mark.parametrize(("structure", "sparsity"), [("block", 0.87), ("channels", 0.94)])
def test_a_layer_is_never_pruned_to_nothing(structure: str, sparsity: float) -> None:
    """Half a unit is rounded up to one; less cannot be met."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    Sparsifier(model, None, "magnitude", sparsity=sparsity, structure=structure)
    assert all(bool((layer.weight != 0).any()) for layer in model)  # type: ignore[union-attr]
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(OptionError, match=r"weights to 0.weight, which would keep (8|16) at least"):
        Sparsifier(model, None, "magnitude", sparsity=0.98, structure=structure)
    assert all(map(torch.equal, before, model.parameters()))


UNMET: list[tuple[str, float, dict[str, Any], str]] = [
    ("rigl", 0.9999, {}, "be left without any"),
    ("gmp", 0.99, {"structure": "taps"}, "keep 6 at least"),
    ("rigl", 0.99, {"structure": "constant_fan_in"}, "keep [0-9]+ at least"),
    ("rigl", 0.99, {"structure": "taps"}, "keep [0-9]+ at least"),
    ("magnitude", 0.5, {"budget": {"*": 0.9999}}, "be left without any"),
]


@pytest.mark.parametrize(("method", "sparsity", "options", "message"), UNMET)
def test_sparsities_that_no_layer_can_meet(
    method: str, sparsity: float, options: dict[str, Any], message: str
) -> None:
    tie = "all" if method == "gmp" else None
    pattern = window((5, 8), 3, padding=1, padding_mode="circular")
    model = LocallyConnected(pattern, 2, 3, tie=tie)
    weight = model.weight.detach().clone()
    with pytest.raises(OptionError, match=message):
        Sparsifier(model, None, method, sparsity=sparsity, total_steps=90, **options)
    assert torch.equal(model.pattern.col, pattern.col)
    assert torch.equal(model.weight, weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"params": []}, "`params` is empty"),
        ({"params": nn.Linear(2, 2).parameters()}, "`params` takes the names of weights or mod"),
        ({"params": [nn.Linear(2, 2)]}, "not what they name; the model has 'encoder.0.weight', "),
        ({"schedule": "cubic"}, "did you mean 'Cubic'"),
        ({"structure": 4}, "`structure` is 4; the choices are"),
        ({"sparsity": "0.9"}, r"`sparsity` \(='0.9'\) must lie in"),
        ({"score": 4}, "`score` is 4; the choices are"),
        ({"teleconnections": 1.5}, r"`teleconnections` \(=1.5\) must be whole"),
        ({"budget": {"encoders": 0.9}}, "`budget` is 'encoders'"),
    ],
)
def test_values_of_another_kind(options: dict[str, Any], message: str) -> None:
    model = nn.ModuleDict({"encoder": network(), "decoder": network()})
    with pytest.raises(OptionError, match=message):
        Sparsifier(model, None, "rigl", **({"sparsity": 0.5, "total_steps": 9} | options))


def test_a_budget_names_modules_as_params_do() -> None:
    model = nn.ModuleDict({"encoder": network(), "decoder": network()})
    budget = {"encoder": 0.75}
    sparsifier = Sparsifier(model, None, "magnitude", sparsity=0.5, budget=budget)
    wanted = {
        row.name: 0.75 if "encoder" in row.name else 0.5 for row in sparsifier.report().layers
    }
    for row in sparsifier.report().layers:
        assert row.sparsity == pytest.approx(wanted[row.name], abs=0.01)


def test_the_nearest_name_of_a_budget_counts() -> None:
    """Whatever their order: names before patterns, and longer before shorter."""
    words = {"*": 0.8, "encoder": 0.6, "*coder.2": 0.4, "encoder.2": 0.2, "*.0.weight": 0.7}
    wanted = {
        "encoder.0.weight": 0.6,
        "encoder.2.weight": 0.2,
        "decoder.0.weight": 0.7,
        "decoder.2.weight": 0.4,
    }
    for budget in (words, dict(reversed(words.items()))):
        model = nn.ModuleDict({"encoder": network(), "decoder": network()})
        sparsifier = Sparsifier(model, None, "magnitude", sparsity=0.5, budget=budget)
        for row in sparsifier.report().layers:
            assert row.sparsity == pytest.approx(wanted[row.name], abs=0.01)


def test_a_layer_that_a_global_budget_empties_is_named() -> None:
    seed()
    model = network((20, 20, 4))
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(1e-3)
    with pytest.warns(UserWarning, match=r"'global' leaves no weight to 0.weight, as others"):
        Sparsifier(model, None, "magnitude", sparsity=0.9, budget="global")


def test_regions_that_keep_much_more_than_the_layer_may() -> None:
    labels = torch.arange(40) % 2
    budget = budgets.Regions(labels, {0: 0.5, 1: 0.5})
    message = r"regions, a sparsity of 0.5, and `sparsity` leaves \d+, one of 0.9; lower"
    with pytest.raises(OptionError, match=message):
        Sparsifier(locally(), None, "rigl", sparsity=0.9, total_steps=40, budget=budget)


WIDE = window((5, 8), 5, padding=2, padding_mode=("zeros", "circular"))
CYCLE = schedules.CosineDrop(end=40, every=2)

IDLE: list[tuple[str, dict[str, Any], str]] = [
    ("rigl", {"teleconnections": 1, "budget": "uniform"}, "whatever `budget` says"),
    ("rigl", {"teleconnections": 1, "structure": "constant_fan_in"}, "leave one of the two out"),
    ("srigl", {"teleconnections": 1}, r"ConstantFanIn\(.*choose method='rigl'"),
    ("rigl", {"budget": {"*": 0.9}, "candidates": WIDE}, "`budget` shares out `sparsity`"),
    ("set", {"structure": "sites", "candidates": WIDE}, "others would go empty"),
    (
        "rigl",
        {"sparsity": 0.5, "schedule": schedules.Steady(2)},
        r"method 'rigl' .* drops none; choose .*CosineDrop\(end=...\), or leave `schedule` out",
    ),
    ("gmp", {"sparsity": 0.5, "growth": "gradient"}, "drops none; .*, or leave `growth` out"),
    ("static", {"sparsity": 0.5, "growth": "random"}, "drops none; .*, or leave `growth` out"),
    (
        "rigl",
        {"sparsity": 0.5, "growth": "random", "schedule": schedules.Steady(2)},
        "leave `growth` and `schedule` out",
    ),
    ("magnitude", {"sparsity": 0.5, "growth": "superset"}, "chooses once; .* leave `growth` out"),
    (
        "top_kast",
        {"sparsity": 0.5, "schedule": schedules.OneShot(3)},
        r"'top_kast' .* OneShot\(step=3\) chooses once; .*Steady.*, or leave `schedule` out",
    ),
    ("top_kast", {"sparsity": 0.5, "growth": "gradient"}, "drops none"),
    ("l0", {"sparsity": 0.5, "score": "magnitude"}, "learns gates, and `score` 'magnitude' has"),
    ("static", {"sparsity": 0.5, "candidates": WIDE}, "'static' never moves edges"),
]


@pytest.mark.parametrize(("method", "options", "message"), IDLE)
def test_options_that_cannot_act_are_refused(
    method: str, options: dict[str, Any], message: str
) -> None:
    layer = locally()
    with pytest.raises(OptionError, match=message):
        Sparsifier(layer, adam(layer), method, **({"total_steps": 99} | options))


def test_sites_of_a_linear_layer_cannot_be_wholes_at_its_fan_in() -> None:
    layer = SparseLinear(9, 7, 3)
    with pytest.raises(OptionError, match="up to 9 candidates each"):
        Sparsifier(layer, adam(layer), "set", structure="sites", total_steps=9)


def test_edges_without_room_to_move_get_a_warning() -> None:
    attend = SparseAttention(window((5, 8), 3, padding=1), 8, 2)
    for layer, params in ((locally(), None), (attend, ["edges"])):
        with pytest.warns(UserWarning, match="no edge of (weight|edges) can move"):
            Sparsifier(layer, adam(layer), "rigl", params=params, schedule=CYCLE)
        Sparsifier(layer, adam(layer), "static", params=params)


def by_gradient(weight: Tensor, gradient: Tensor) -> Tensor:
    return weight.abs() * gradient.abs()


def by_weight(weight: Tensor, gradient: Tensor | None) -> Tensor:
    return weight.square()


def test_a_score_that_prunes_at_once_reads_the_gradients_there_are() -> None:
    model = nn.Sequential(first := nn.Linear(9, 7), nn.Linear(7, 4))
    for score in ("taylor", lambda w, g: (w * g).abs()):
        with pytest.raises(OptionError, match=r"loss.backward\(\) .* before building a sparsifier"):
            Sparsifier(model, None, "magnitude", sparsity=0.5, score=score)
    with pytest.raises(OptionError, match=r"there is none \(it raised: .* no attribute 'sizes'\)"):
        Sparsifier(model, None, "magnitude", sparsity=0.5, score=lambda w, g: w.sizes)
    with pytest.raises(
        OptionError,
        match=r"sums gradients of 0.weight over steps, and there were none; .*OneShot\(step",
    ):
        Sparsifier(model, adam(model), "magnitude", sparsity=0.5, score="movement")
    model(torch.randn(5, 9)).square().mean().backward()
    assert first.weight.grad is not None
    size = (first.weight.detach() * first.weight.grad).abs()
    Sparsifier(model, None, "magnitude", sparsity=0.5, score="taylor")
    assert size[first.weight == 0].max() <= size[first.weight != 0].min()


NOT_USUAL: list[tuple[str, nn.Module, list[str] | None]] = [
    ("embedding", nn.Embedding(9, 4), None),
    ("frozen", nn.Sequential(nn.Linear(5, 6)).requires_grad_(False), ["0"]),
    ("transposed", nn.Sequential(nn.ConvTranspose2d(2, 4, 3)), None),
    ("recurrent", nn.LSTM(4, 5), ["weight_*"]),
]


@pytest.mark.parametrize(
    ("model", "params"), [case[1:] for case in NOT_USUAL], ids=[case[0] for case in NOT_USUAL]
)
def test_weights_that_count_by_full_name_are_named(
    model: nn.Module, params: list[str] | None
) -> None:
    with pytest.raises(OptionError, match=r"made sparse by default, .* name others in") as caught:
        Sparsifier(model, None, "magnitude", sparsity=0.5, params=params)
    (name,) = re.findall(r"params=\['(.*)'\]", str(caught.value))
    Sparsifier(model, None, "magnitude", sparsity=0.5, params=[name])
    assert 0.4 < float((model.get_parameter(name) == 0).float().mean()) < 0.6


@pytest.mark.parametrize("model", [nn.LayerNorm(4), weight_norm(nn.Linear(5, 6))])
def test_a_model_without_a_weight_to_name(model: nn.Module) -> None:
    with pytest.raises(OptionError, match="remove parametrizations, or give a model"):
        Sparsifier(model, None, "magnitude", sparsity=0.5)


@pytest.mark.parametrize("score", [by_gradient, lambda w, g: (w * g).abs(), "mest"])
def test_a_score_of_users_names_the_layer_that_took_no_part(score: Any) -> None:
    model = nn.ModuleList([nn.Linear(9, 7), nn.Linear(9, 7)])
    optimizer = adam(model)
    rule: dict[str, Any] = {"sparsity": 0.5, "schedule": schedules.Cubic(0, 8, 2), "score": score}
    sparsifier = Sparsifier(model, optimizer, "gmp", **rule)
    for due in (False, True):
        model[0](torch.randn(3, 9)).square().mean().backward()
        optimizer.step()
        if not due:
            sparsifier.step()
    with pytest.raises(OptionError, match=r"reads the gradient of 1\.weight, and there is none"):
        sparsifier.step()


def test_what_a_function_raises_by_itself_is_not_hidden() -> None:
    def faulty(weight: Tensor, gradient: Tensor | None) -> Tensor:
        return weight + ("a word" if gradient is not None else 0)  # type: ignore[operator]

    weight = torch.randn(3, 4)
    with pytest.raises(TypeError):
        named(faulty).evaluate(weight, torch.randn(3, 4))
    assert torch.equal(named(faulty).evaluate(weight, None), weight)


def test_what_users_write_is_told_what_it_will_not_get() -> None:
    model = network()
    options: dict[str, Any] = {"sparsity": 0.5, "total_steps": 40}
    with pytest.raises(OptionError, match="have no gradient, and the function of `score` 'by_gra"):
        Sparsifier(model, adam(model), "top_kast", score=by_gradient, **options)
    with pytest.raises(OptionError, match="have no gradient, and the function of `score` 'taylor"):
        Sparsifier(model, adam(model), "top_kast", score=area_weighted("taylor"), **options)
    Sparsifier(model, adam(model), "top_kast", score=by_weight, **options).release()
    rule = Growth("eastward", lambda c: c.site.float(), needs_sites=True)  # type: ignore[union-attr]
    with pytest.raises(OptionError, match="'eastward' reads sites, which layers over patterns"):
        Sparsifier(model, adam(model), "set", growth=rule, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_never_active_first_keeps_the_order_of_small_gradients(dtype: torch.dtype) -> None:
    size = torch.rand(200, generator=generator(4)).mul(1e-4).to(dtype)
    seen = torch.arange(200) % 2 == 0
    score = growth.never_active_first().score(
        Candidates(200, torch.Generator(), gradient=size, explored=seen)
    )
    expected = torch.cat([size[~seen].sort().values, size[seen].sort().values][::-1])
    assert torch.equal(size[score.argsort()], expected)


UNFIT: list[tuple[str, dict[str, Any], str]] = [
    ("dense", {"structure": "v:n:m", "sparsity": 0.75}, r"VNM\(.*of weight cannot grow"),
    ("tied", {"structure": "taps"}, r"EdgeGroups\(\) of weight cannot grow"),
    ("tied", {"growth": "cannistraci_hebb"}, "by links is not known for weight"),
    ("tied", {"growth": "preferential_attachment"}, "by links is not known for weight"),
    ("tied", {"growth": growth.distance_prior(1e5)}, "needs distances, which weight does not"),
    ("edges", {"growth": growth.distance_prior(1e5)}, "needs distances, which weight does not"),
    ("edges", {"score": "movement"}, "'movement' is summed over steps"),
    ("edges", {"score": "optimal_brain_damage"}, "'optimal_brain_damage' is summed over steps"),
]


@pytest.mark.parametrize(("kind", "options", "message"), UNFIT)
def test_what_does_not_fit_together_is_refused_at_once(
    kind: str, options: dict[str, Any], message: str
) -> None:
    model: nn.Module = nn.Linear(16, 16)
    if kind != "dense":
        pattern = window((5, 8), 3, padding=1)
        model = LocallyConnected(pattern, 2, 3, tie="all" if kind == "tied" else None)
    with pytest.raises(OptionError, match=message):
        Sparsifier(model, adam(model), "rigl", **({"sparsity": 0.5, "total_steps": 99} | options))


def up_and_down(dimensions: int) -> nn.Sequential:
    down = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    up = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dimensions - 1]
    return nn.Sequential(down(4, 8, 3), nn.Tanh(), up(8, 12, 3, groups=2))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize(
    ("method", "structure"), [("rigl", "unstructured"), ("gmp", "taps"), ("l0", "unstructured")]
)
def test_transposed_convolutions_take_masks_of_weights_and_taps(
    dimensions: int, method: str, structure: str
) -> None:
    seed()
    model = up_and_down(dimensions)
    rule: dict[str, Any] = {"sparsity": 1 / 3, "schedule": schedules.Cubic(0, 6, 2)}
    rule |= {"budget": "uniform", "structure": structure, "params": ["0", "2.weight"]}
    if method == "rigl":
        rule["schedule"] = schedules.CosineDrop(end=99, every=2, fraction=0.5)
    optimizer = adam(model)
    sparsifier = Sparsifier(model, optimizer, method, **rule)
    x = torch.randn(2, 4, *[5] * dimensions, generator=generator(1))
    y = torch.randn(2, 12, *[5] * dimensions, generator=generator(2))
    train(model, optimizer, sparsifier, [(x, y)] * 7)
    row = sparsifier.report().layers[1]
    assert row.sparsity == pytest.approx(1 / 3, abs=0.02)
    assert row.churn > 0 or method != "rigl"
    expected = model(x) if method != "l0" else model.eval()(x)
    final: Any = sparsifier.finalize()
    torch.testing.assert_close(final(x), expected)
    if structure == "taps":
        used = final[2].weight.flatten(2).ne(0)
        assert torch.equal(used.any(0).any(0), used.all(0).all(0))


@pytest.mark.parametrize(
    "structure", ["constant_fan_in", "channels", "2:4", "v:n:m", structures.Block(2, 2)]
)
def test_rows_of_transposed_convolutions_are_no_outputs(structure: Any) -> None:
    model = up_and_down(2)
    default = Sparsifier(model, None, "magnitude", sparsity=0.5)
    assert [target.name for target in default.targets] == ["0.weight"]
    rule: dict[str, Any] = {"sparsity": 0.5, "total_steps": 40, "params": ["2.weight"]}
    with pytest.raises(OptionError, match=r"of 2\.weight are inputs, as its convolution is transp"):
        Sparsifier(model, None, "magnitude", structure=structure, **rule)
    for own in ("preferential_attachment", "cannistraci_hebb"):
        with pytest.raises(OptionError, match=rf"'{own}' .* of 2\.weight are inputs, as its conv"):
            Sparsifier(model, adam(model), "set", growth=own, **rule)


def test_names_with_brackets_stand_for_themselves() -> None:
    model = nn.ModuleDict({name: nn.Linear(4, 8) for name in ("t2m [K]", "sst [K]", "msl [Pa]")})
    sparsifier = Sparsifier(
        model,
        None,
        "magnitude",
        sparsity=0.5,
        params=["t2m [K]", "msl*"],
        budget={"t2m [K]": 0.25},
    )
    kept = {target.name: target.count for target in sparsifier.targets}
    assert kept == {"t2m [K].weight": 24, "msl [Pa].weight": 16}


def test_lazy_layers_have_no_shape_yet() -> None:
    model = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 4))
    with pytest.raises(OptionError, match=r"0.weight of a lazy layer .* call the model on one"):
        Sparsifier(model, None, "magnitude", sparsity=0.5)
    model(torch.zeros(2, 5))
    assert Sparsifier(model, None, "magnitude", sparsity=0.5).report().size == 54
