"""Edges of attention move while a model trains: planted links, rules, states, compilers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from kernel_cases import generator
from layer_cases import needs_scipy
from rewired_attention_cases import GRID, WIDE, Model, data, joined, plain, started
from sparsity_cases import OFTEN, adam, seed, train
from torch import Tensor, nn

from scisparse.errors import PatternError
from scisparse.layers import Scores, SparseAttention
from scisparse.pattern import Pattern
from scisparse.patterns import radius, window
from scisparse.sparsity import Sparsifier, growth, importance, schedules
from scisparse.sparsity.attended import AttentionTarget
from scisparse.sparsity.candidates import Listed


class Reader(nn.Module):
    """Sites that know by a code which source they want, and sources that have codes and values."""

    def __init__(self, number: int) -> None:
        super().__init__()
        gen, sites, sources = generator(number), 40, 50
        self.link = torch.randint(0, sources, (sites,), generator=gen)
        site = torch.arange(sites)
        draw = torch.rand(sites, sources, generator=gen)
        draw[site, self.link] = 2
        wide = torch.zeros(sites, sources).scatter_(1, draw.topk(14, 1).indices, 1)
        draw = draw.masked_fill(wide == 0, -1)
        draw[site, self.link] = -1  # decoys alone
        start = torch.zeros(sites, sources).scatter_(1, draw.topk(3, 1).indices, 1)
        self.candidates, self.code = Pattern.from_dense(wide == 1), torch.randn(sources, 8)
        self.attend = SparseAttention(Pattern.from_dense(start == 1), 12, 2)

    def forward(self, value: Tensor) -> Tensor:
        """``[B, M, 4]`` of values ``[B, N, 4]``."""
        batch = len(value)
        source = torch.cat([value, self.code.expand(batch, -1, -1)], 2)
        wanted = self.code[self.link].expand(batch, -1, -1)
        y: Tensor = self.attend(torch.cat([torch.zeros(*wanted.shape[:2], 4), wanted], 2), source)
        return y[..., :4]

    def found(self) -> float:
        """Part of the links that the pattern has."""
        sites = torch.arange(len(self.link))
        return float(self.attend.pattern.to_dense()[sites, self.link].float().mean())


@pytest.mark.parametrize("number", range(3))
def test_planted_links_are_found_among_decoys(number: int) -> None:
    parts = {}
    for method in ("rigl", "static"):
        seed(number)
        model, gen = Reader(number), generator(number + 10)
        optimizer = adam(model)
        options: dict[str, Any] = {"params": ["*.edges"]}
        if method == "rigl":
            options["schedule"] = schedules.CosineDrop(end=80, every=4, fraction=0.4)
            options["candidates"] = model.candidates
        sparsifier = Sparsifier(model, optimizer, method, **options)
        assert [t.name for t in sparsifier.targets] == ["attend.edges"]
        data = [torch.randn(24, 50, 4, generator=gen) for _ in range(100)]
        losses = train(model, optimizer, sparsifier, [(x, x[:, model.link]) for x in data])
        assert model.attend.pattern.num_edges == 3 * 40
        parts[method] = model.found(), losses[-1]
    assert parts["rigl"][0] >= 0.95
    assert parts["rigl"][1] < 0.5
    assert parts["static"][0] == 0
    assert parts["static"][1] > 0.8


def test_taps_are_matched_where_a_bias_reads_them() -> None:
    """The same offset is another tap in a wider window."""
    near = window(GRID, 3)
    for taps, wide in ((False, WIDE), (True, near)):
        seed()
        model = Model(near, scores=Scores(taps=taps))
        optimizer = adam(model)
        options: dict[str, Any] = {"sparsity": 0.3, "schedule": OFTEN, "params": ["*.edges"]}
        sparsifier = Sparsifier(model, optimizer, candidates=wide, **options)
        train(model, optimizer, sparsifier, data(3))
        assert sparsifier.report().layers[0].churn > 0
        pattern = model.attend.pattern
        assert (pattern.tap is not None) == taps
        if pattern.tap is not None:
            at = Listed(near).numbers(pattern)
            assert near.tap is not None
            assert model.attend.bias.tap is not None
            assert torch.equal(model.attend.bias.tap, near.tap[at].long())
    with pytest.raises(PatternError, match="has 15 taps"):
        Sparsifier(Model(near, scores=Scores(taps=True)), candidates=WIDE, **options)


def test_edges_move_in_place_and_parameters_stay() -> None:
    model, optimizer, sparsifier = started()
    layer, built = model.attend, Pattern.from_dense(window(GRID, 3).to_dense())
    held = list(layer.edges.buffers())
    places = [t.data_ptr() for t in held]
    patterns = set()
    for batch in data(9):
        train(model, optimizer, sparsifier, [batch])
        patterns.add(layer.pattern.fingerprint)
    assert len(patterns) == 5  # after steps 2, 4, 6 and 8
    assert places == [t.data_ptr() for t in layer.edges.buffers()]
    assert layer.pattern.validate().num_edges == built.num_edges
    assert bool((layer.pattern.to_dense() <= joined().to_dense()).all())
    assert torch.equal(layer.edges.col, layer.pattern.col)
    assert torch.equal(layer.edges.col_t, layer.pattern.transpose()[0].col)
    fresh = Model(layer.pattern)
    fresh.load_state_dict(model.state_dict())
    x = data(1)[0][0]
    assert torch.equal(fresh(x), model(x))


def test_growth_takes_the_candidates_that_lower_the_loss_most() -> None:
    model, _, sparsifier = started(schedule=schedules.CosineDrop(end=100, every=2, fraction=0.2))
    (target,) = sparsifier.targets
    assert isinstance(target, AttentionTarget)
    sparsifier.step()  # the change is due after the second
    x, y = data(1)[0]
    (model(x) - y).square().mean().backward()
    (chunk,) = target.candidates.chunks(target.numbers)
    effect, weight = target._gradients(chunk), target._active().edges.weight
    before = target.active
    sparsifier.step()
    change = sparsifier.schedule.at(2, 0.0)
    assert change is not None
    drops = int(change.drop * len(before))
    kept = before[weight.argsort()[drops:]]
    effect[kept] = torch.inf
    grown = effect.argsort()[:drops]
    assert float(effect[grown].max()) < 0
    assert torch.equal(target.active, torch.cat([kept, grown]).sort().values)
    assert len(set(grown.tolist()) - set(before.tolist())) > drops / 2


def test_sparsity_prunes_edges_and_regrows_among_them() -> None:
    model, optimizer, sparsifier = started(candidates=None, sparsity=0.5)
    built = window(GRID, 3).to_dense()
    assert model.attend.pattern.num_edges == round(0.5 * int(built.sum()))
    before = model.attend.pattern
    train(model, optimizer, sparsifier, data(5))
    assert before != model.attend.pattern
    assert bool((model.attend.pattern.to_dense() <= built).all())


RULES: dict[str, dict[str, Any]] = {
    **{
        growth: {"growth": growth}
        for growth in (
            *("random", "momentum", "never_active_first"),
            *("preferential_attachment", "cannistraci_hebb"),
        )
    },
    **{score: {"score": score} for score in ("taylor", "snip", "mest")},
    **{method: {"method": method} for method in ("srigl", "set", "sparse_momentum")},
    "area": {"score": importance.area_weighted()},
    "function": {"score": lambda weight, grad: weight + grad.abs()},
    "constant_fan_in": {"structure": "constant_fan_in"},
}


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(rule, id=name, marks=needs_scipy if name == "cannistraci_hebb" else ())
        for name, rule in RULES.items()
    ],
)
def test_every_rule_moves_edges_the_same_way_twice(rule: dict[str, Any]) -> None:
    def run() -> tuple[list[float], Pattern, Sparsifier]:
        near, wide = (replace(p, site_grid=GRID) for p in (plain().attend.pattern, joined()))
        seed()
        model = Model(near)
        optimizer = adam(model)
        options: dict[str, Any] = {"params": ["*.edges"], "schedule": OFTEN}
        sparsifier = Sparsifier(model, optimizer, candidates=wide, **options | rule)
        return train(model, optimizer, sparsifier, data(7)), model.attend.pattern, sparsifier

    (losses, pattern, sparsifier), (again, same, _) = run(), run()
    assert losses == again
    assert pattern == same
    assert sparsifier.report().layers[0].churn > 0.05
    if "structure" in rule or rule.get("method") == "srigl":
        assert len(set(pattern.fan_in.tolist())) == 1


@needs_scipy
def test_growth_by_distance_takes_near_candidates() -> None:
    wide = radius(GRID, 8e6)
    assert wide.distance is not None
    mean = []
    for scale in (3e5, 1e9):
        seed()
        model = Model(wide.select(wide.distance < 3e6))
        optimizer = adam(model)
        rule = growth.distance_prior(scale)
        sparsifier = Sparsifier(
            model, optimizer, growth=rule, candidates=wide, params=["*.edges"], schedule=OFTEN
        )
        train(model, optimizer, sparsifier, data(9))
        assert model.attend.pattern.distance is not None
        mean.append(float(model.attend.pattern.distance.mean()))
    assert mean[0] < 0.8 * mean[1]


def test_training_resumes_bit_for_bit() -> None:
    batches = data(16)
    losses = train(*started(), batches)
    first = started()
    train(*first, batches[:7])
    states = copy.deepcopy([part.state_dict() for part in first])
    again = started()
    for part, state in zip(again, states, strict=True):
        part.load_state_dict(state)
    assert again[0].attend.pattern == first[0].attend.pattern
    assert train(*again, batches[7:]) == losses[7:]


def test_other_edges_loaded_in_between_are_taken_over() -> None:
    model, optimizer, sparsifier = started()
    first = copy.deepcopy(model.state_dict())
    train(model, optimizer, sparsifier, data(3))
    x, y = data(4)[3]
    (model(x) - y).square().mean().backward()
    model.load_state_dict(first)  # what the backward pass knew is of other edges
    before = model.attend.pattern
    sparsifier.step()
    assert model.attend.pattern is before
    train(model, optimizer, sparsifier, data(2))
    assert model.attend.pattern != before
    assert model.attend.pattern.num_edges == before.num_edges


def test_compiled_model_sees_every_change() -> None:
    def run(compiled: bool) -> tuple[list[float], Pattern]:
        model, optimizer, sparsifier = started()
        f = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        with torch._dynamo.config.patch(error_on_recompile=True):
            return train(f, optimizer, sparsifier, data(7)), model.attend.pattern

    torch.compiler.reset()
    (losses, pattern), (expected, same) = run(True), run(False)
    assert losses == pytest.approx(expected, rel=1e-5)
    assert pattern == same


def test_change_waits_while_gradients_are_not_finite() -> None:
    model, optimizer, sparsifier = started()
    before = model.attend.pattern
    batches = data(3)
    train(model, optimizer, sparsifier, batches[:1])
    (model(batches[1][0]).sum() * torch.inf).backward()
    sparsifier.step()  # the loop skips the optimizer, as a gradient scaler does
    assert model.attend.pattern == before
    train(model, optimizer, sparsifier, batches[2:])
    assert model.attend.pattern != before


def test_moving_average_and_copies() -> None:
    model, optimizer, sparsifier = started()
    mean = torch.optim.swa_utils.AveragedModel(model)
    apart = copy.deepcopy(model)
    sparsifier.follow(mean.module)
    train(model, optimizer, sparsifier, data(5))
    assert isinstance(mean.module, Model)
    assert mean.module.attend.pattern == model.attend.pattern
    assert torch.equal(mean.module.attend.edges.col_t, model.attend.edges.col_t)
    assert apart.attend.pattern != model.attend.pattern
    assert torch.equal(apart.attend.edges.col, apart.attend.pattern.col)


def test_report_and_final_form() -> None:
    model, optimizer, sparsifier = started(candidates=joined(), sparsity=0.5)
    train(model, optimizer, sparsifier, data(5))
    regions = torch.arange(GRID.size) % 2
    (layer,) = sparsifier.report(regions).layers
    edges = int(window(GRID, 3).to_dense().sum())
    assert (layer.name, layer.size, layer.active) == ("attend.edges", edges, round(0.5 * edges))
    assert layer.flops == 4 * 8 * layer.active
    assert layer.bytes == sum(b.numel() * b.element_size() for b in model.attend.edges.buffers())
    assert layer.bytes > 12 * layer.active
    assert layer.exploration > layer.active / layer.size
    odd = int((model.attend.pattern.rows() % 2).sum())
    assert [r.active for r in layer.regions] == [layer.active - odd, odd]
    pattern, x = model.attend.pattern, data(1)[0][0]
    y = model(x)
    assert sparsifier.finalize() is model
    assert torch.equal(model(x), y)
    assert model.attend.pattern is pattern
    assert [str(form) for form in sparsifier.forms] == ["attend.edges: condensed"]
