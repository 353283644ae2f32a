"""What no layer can do is said when a sparsifier is built, with the nearest that one can."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import generator
from sparsity_cases import adam, network
from torch import nn

from scisparse.errors import OptionError
from scisparse.layers import (
    LocallyConnected,
)
from scisparse.patterns import window
from scisparse.sparsity import Sparsifier, growth
from scisparse.sparsity.growth import Candidates


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
