"""Attention over other edges than those it was built on; which layers join; misuse."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_cases import generator
from layer_cases import needs_scipy
from rewired_attention_cases import (
    GRID,
    WIDE,
    Model,
    data,
    joined,
    plain,
    randomize,
    some_edges,
    started,
)
from sparsity_cases import OFTEN, train
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict

from scisparse.errors import OptionError, PatternError, ShapeError
from scisparse.layers import LocallyConnected, NeighborhoodAttention2d, Scores, SparseAttention
from scisparse.pattern import Pattern
from scisparse.patterns import radius, sliding_window, window
from scisparse.sparsity import Sparsifier


def test_rewiring_to_the_same_edges_changes_nothing() -> None:
    pattern = window(GRID, 3)
    layer = SparseAttention(pattern, 4, 2, scores=Scores(taps=True, areas=True, norm=True))
    randomize(layer)
    x = torch.randn(2, GRID.size, 4)
    expected = layer(x)
    layer.rewire(pattern)
    assert torch.equal(layer(x), expected)
    col = pattern.col.clone()
    layer.rewire(pattern.select(torch.arange(5, pattern.num_edges)))
    assert torch.equal(pattern.col, col)  # patterns are frozen


def test_hidden_edges_may_go() -> None:
    """Edges at minus infinity have no part in anything."""
    layer = NeighborhoodAttention2d(4, 2, 3, input_size=(4, 8), periodic=(False, True))
    randomize(layer)
    assert layer.bias.tap_weight is not None
    assert layer.pattern.tap is not None
    with torch.no_grad():
        layer.bias.tap_weight[[1, 5]] = -torch.inf
    x = torch.randn(2, 4, 8, 4)
    expected = layer(x)
    hidden = (layer.pattern.tap == 1) | (layer.pattern.tap == 5)
    layer.rewire(layer.pattern.select(~hidden))
    torch.testing.assert_close(layer(x), expected)


@needs_scipy
def test_edges_go_with_the_state_and_bias_keeps_its_reach() -> None:
    wide = radius(GRID, 6e6)
    assert wide.distance is not None
    near = wide.select(wide.distance < 4e6)

    def fresh(pattern: Pattern = near) -> SparseAttention:
        return SparseAttention(pattern, 4, 2, scores=Scores(knots=3, areas=True))

    layer = fresh()
    randomize(layer)
    x = torch.randn(2, GRID.size, 4)
    built = layer(x)
    old = copy.deepcopy(layer.state_dict())
    assert sorted(old) == sorted(["_extra_state", *dict(layer.named_parameters())])
    layer.rewire(some_edges(wide, 0.5))
    expected = layer(x)
    state = copy.deepcopy(layer.state_dict())
    for other in (
        fresh(),
        fresh(wide),
        copy.deepcopy(layer),
        fresh().to("meta").to_empty(device="cpu"),
    ):
        other.load_state_dict(state)
        assert other.pattern == layer.pattern
        assert torch.equal(other(x), expected)
        wrapped = nn.Sequential(other)
        wrapped.load_state_dict({f"0.{name}": value for name, value in state.items()})
        assert torch.equal(
            other.double()(x.double()).float().round(decimals=3), expected.round(decimals=3)
        )
    layer.load_state_dict(old)  # of the pattern that it was built on
    assert torch.equal(layer(x), built)
    assert sorted(fresh(wide).state_dict()) == sorted(old)
    with pytest.raises(
        PatternError, match=r"sites x sources \(48, 48\), this layer's has \(9, 48\)"
    ):
        fresh(near.restrict(torch.arange(48) < 9, relabel=True)).load_state_dict(state)


@needs_scipy
def test_a_bias_by_distance_counts_metres_on_another_pattern() -> None:
    """Loaded onto longer edges it was stretched: another function of the distance."""

    def fresh(metres: float, knots: int = 3) -> SparseAttention:
        return SparseAttention(radius(GRID, metres), 4, 2, scores=Scores(knots=knots))

    def at(layer: SparseAttention) -> Tensor:
        bias: Tensor | None = layer.bias()
        assert bias is not None
        return bias.detach()

    layer, wider, edges = fresh(4e6), fresh(6e6), radius(GRID, 6e6)
    randomize(layer)
    wider.load_state_dict(layer.state_dict())
    assert edges.distance is not None
    near = edges.distance <= layer.bias.reach
    assert wider.pattern == edges
    torch.testing.assert_close(at(wider)[near], at(layer))
    again = fresh(6e6)
    own = again.bias.reach
    again.load_state_dict(wider.state_dict())
    assert torch.equal(at(again), at(wider))
    again.rewire(radius(GRID, 4e6))
    torch.testing.assert_close(at(again), at(layer))
    state = fresh(6e6).state_dict()
    again.load_state_dict(state)
    assert (again.pattern, again.bias.reach) == (edges, own)
    assert not fresh(4e6, knots=0).state_dict()["_extra_state"].numel()


def test_a_state_without_its_edges_is_not_taken_for_whole() -> None:
    layer = SparseAttention(sliding_window(9, 3), 4, 1)
    layer.rewire(sliding_window(9, 5))
    state: dict[str, Any] = get_model_state_dict(layer)  # looks every key up in the module
    assert torch.equal(state["_extra_state"], layer.get_extra_state())
    del state["_extra_state"]
    with pytest.raises(RuntimeError, match="_extra_state"):
        SparseAttention(sliding_window(9, 3), 4, 1).load_state_dict(state)


def test_taps_that_mean_other_offsets_are_refused() -> None:
    layer = SparseAttention(sliding_window(9, 5), 4, 1, scores=Scores(taps=True))
    with pytest.raises(PatternError, match=r"has 3 taps and .* a learned bias for each of 5"):
        layer.rewire(sliding_window(9, 3))


def test_edges_left_on_meta_are_named() -> None:
    layer = SparseAttention(sliding_window(9, 5), 4, 1)
    layer.edges.to("meta")
    with pytest.raises(ShapeError, match=r"`row_ptr` on meta.* `q` on cpu.* to_empty\(\)"):
        layer(torch.randn(2, 9, 4))


def test_dense_weights_and_edges_go_together() -> None:
    model, optimizer, sparsifier = started(params=None, sparsity=0.5, method="rigl")
    names = [t.name for t in sparsifier.targets]
    assert names == ["embed.weight", "attend.edges"] + [
        f"{name}.weight"
        for name in ("attend.q_proj", "attend.k_proj", "attend.v_proj", "attend.out_proj", "head")
    ]
    train(model, optimizer, sparsifier, data(5))
    churn = {layer.name: layer.churn for layer in sparsifier.report().layers}
    assert min(churn["attend.edges"], churn["attend.q_proj.weight"]) > 0
    with pytest.raises(OptionError, match=r"attend\.edges is under another sparsifier"):
        Sparsifier(model, optimizer, params=["*.edges"], candidates=joined(), schedule=OFTEN)
    other = Sparsifier(plain(), None, "rigl", sparsity=0.5, total_steps=9)
    assert all("edges" not in t.name for t in other.targets)
    other.release()
    model = plain()
    weights = Sparsifier(model, None, params=["attend"], sparsity=0.5, total_steps=9)
    assert len(weights.targets) == 4
    # Maps of queries under one sparsifier, edges under another.
    Sparsifier(model, None, params=["attend.edges"], candidates=joined(), total_steps=9)


def test_learned_biases_of_attention_are_no_weights() -> None:
    pattern = plain().attend.pattern
    far = torch.rand(pattern.num_edges, generator=generator(0))
    model = Model(replace(pattern, distance=far), scores=Scores(knots=2))
    sparsifier = Sparsifier(model, None, "gmp", sparsity=0.5, total_steps=9)
    names = {t.name for t in sparsifier.targets}
    assert "attend.q_proj.weight" in names
    assert not any("bias" in name for name in names)


def test_candidates_choose_the_layers_of_their_size() -> None:
    pattern = plain().attend.pattern
    model = nn.ModuleDict(
        {
            "attend": SparseAttention(pattern, 4, 1),
            "described": SparseAttention(pattern, 4, 1, edge_dim=2),
            "other": SparseAttention(pattern.restrict(torch.arange(48) < 9, relabel=True), 4, 1),
            "local": LocallyConnected(pattern, 4, 1),
        }
    )
    options: dict[str, Any] = {"schedule": OFTEN}
    sparsifier = Sparsifier(model, None, "set", candidates={"attend": joined()}, **options)
    assert [t.name for t in sparsifier.targets] == ["attend.edges", "local.weight"]
    sparsifier.release()
    sparsifier = Sparsifier(model, None, "set", candidates=joined(), **options)
    assert [t.name for t in sparsifier.targets] == ["attend.edges", "local.weight"]
    sparsifier.release()
    sparsifier = Sparsifier(model, None, "set", teleconnections=1, **options)
    assert [t.name for t in sparsifier.targets] == ["local.weight"]


@needs_scipy
def test_patterns_that_a_layer_cannot_take() -> None:
    pattern = window(GRID, 3)
    layer = SparseAttention(pattern, 4, 1, scores=Scores(taps=True))
    with pytest.raises(PatternError, match=r"has no taps and .* bias for each of 9"):
        layer.rewire(joined())
    with pytest.raises(PatternError, match=r"has 15 taps and .* bias for each of 9"):
        layer.rewire(WIDE)
    assert layer.pattern == pattern
    with pytest.raises(PatternError, match=r"\(9, 48\)\) must have this layer's \(48, 48\)"):
        layer.rewire(pattern.restrict(torch.arange(48) < 9, relabel=True))
    far = SparseAttention(radius(GRID, 4e6), 4, 1, scores=Scores(knots=2))
    with pytest.raises(PatternError, match=r"has no `distance`, .* patterns\.radius"):
        far.rewire(joined())
    with pytest.raises(PatternError, match=r"edge_dim=3 cannot be rewired"):
        SparseAttention(pattern, 4, 1, edge_dim=3).rewire(pattern)


def test_sparsifiers_that_cannot_be() -> None:
    options: dict[str, Any] = {"params": ["*.edges"], "schedule": OFTEN}
    with pytest.raises(OptionError, match=r"attend\.edges cannot move .* `dropout` \(=0.1\)"):
        Sparsifier(Model(joined(), dropout=0.1), None, candidates=joined(), **options)
    with pytest.raises(PatternError, match="edge_dim=2 cannot be rewired"):
        Sparsifier(Model(joined(), edge_dim=2), None, candidates=joined(), **options)
    with pytest.raises(PatternError, match="has no taps and"):
        Sparsifier(
            Model(window(GRID, 3), scores=Scores(taps=True)), None, candidates=joined(), **options
        )
    with pytest.raises(OptionError, match=r"edges without weights .* such as 'rigl'"):
        started("gmp", candidates=None, sparsity=0.5, schedule=None, total_steps=9)
    with pytest.raises(OptionError, match="edges without weights"):
        started("top_kast", candidates=None, sparsity=0.5, schedule=None, total_steps=9)
    few = joined().select(torch.arange(40))
    with pytest.raises(OptionError, match=r"`candidates` of attend\.edges .* \(48, 48\)"):
        started(candidates=few.restrict(torch.arange(48) < 9, relabel=True))
    with pytest.raises(OptionError, match=r"'atend'.*attend"):
        started(candidates={"atend": joined()})
    _, _, sparsifier = started()
    sparsifier.step()
    with pytest.raises(OptionError, match=r"call loss\.backward\(\) before"):
        sparsifier.step()
    with pytest.raises(OptionError, match="'movement' is summed over steps"):
        started(score="movement", growth="random")


def test_masks_of_calls_are_refused() -> None:
    """A candidate's source may be hidden without any edge to tell."""
    model, _, sparsifier = started()
    mask = torch.arange(GRID.size) > 3
    for x, _ in data(2):
        loss = model.attend(model.embed(x), source_mask=mask).sum()
        loss.backward()
        if sparsifier.progress.steps == 1:
            with pytest.raises(OptionError, match=r"`source_mask`.*restrict\(source_mask="):
                sparsifier.step()
        else:
            sparsifier.step()
