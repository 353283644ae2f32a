"""Edges of attention that move: their gates against autograd, planted links, states, misuse."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from kernel_cases import generator
from layer_cases import needs_scipy
from sparsity_cases import OFTEN, adam, seed, train
from torch import Tensor, nn

from scisparse.errors import OptionError, PatternError
from scisparse.grids import LatLonGrid
from scisparse.layers import LocallyConnected, NeighborhoodAttention2d, Scores, SparseAttention
from scisparse.pattern import Pattern
from scisparse.patterns import radius, window
from scisparse.sparsity import Sparsifier, growth, importance, schedules
from scisparse.sparsity.attended import AttentionTarget
from scisparse.sparsity.candidates import Listed

GRID = LatLonGrid.regular(4, 12)  # across the poles no source is read twice


def some_edges(wide: Pattern, part: float, number: int = 0) -> Pattern:
    """A part of the edges; site 0 reads nothing, site 1 one source."""
    gen = generator(number)
    keep = torch.rand(wide.num_edges, generator=gen) < part
    row = wide.rows()
    keep &= row != 0
    keep[row == 1] = False
    keep[int(wide.row_ptr[1])] = True
    return wide.select(keep)


def randomize(layer: nn.Module, size: float = 0.5) -> None:
    gen = generator(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=gen))


def target_of(layer: SparseAttention, wide: Pattern) -> AttentionTarget:
    def all_in_one(count: int) -> tuple[None, Tensor]:
        return None, torch.tensor([count])

    return AttentionTarget("edges", layer, Listed(wide), layer.pattern.fan_in, all_in_one)


# -- the calculus ----------------------------------------------------------------------------------


def dense_bias(layer: SparseAttention, near: Pattern, wide: Pattern) -> Tensor:
    """What is added to the score of every pair, ``[M, N, H]``, from the words of the docstring."""
    full = torch.zeros(*wide.shape, layer.num_heads, dtype=torch.float64)
    row, col = wide.rows(), wide.col.long()
    if layer.scores.areas:
        areas = torch.as_tensor(GRID.areas).reshape(-1)
        full += (areas / areas.mean()).log()[:, None]
    if layer.scores.taps:
        assert wide.tap is not None
        assert layer.bias.tap_weight is not None
        full[row, col] += layer.bias.tap_weight.detach()[wide.tap.long()]
    if layer.scores.knots:
        assert wide.distance is not None
        assert wide.bearing is not None
        assert near.distance is not None
        assert layer.bias.weight is not None
        reach, knots = float(near.distance.max()), layer.scores.knots
        distance, bearing = wide.distance.double().numpy(), wide.bearing.double().numpy()
        place = np.linspace(0, reach, knots)
        values = layer.bias.weight.detach().numpy().reshape(3, knots, -1)
        for h in range(layer.num_heads):
            plain, cosine, sine = (np.interp(distance, place, v[:, h]) for v in values)
            turned = np.cos(bearing) * cosine + np.sin(bearing) * sine
            full[row, col, h] += torch.from_numpy(plain + np.where(distance > 0, turned, 0))
    return full


def dense_output(
    layer: SparseAttention, x: Tensor, bias: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor]:
    """Output of the heads with a gate ``[B, M, N, H]`` on every pair, and their scores."""
    heads, group = layer.num_heads, layer.num_heads // layer.kv_heads
    q = layer._heads(layer.q_proj(x), heads, layer.q_norm)
    k = layer._heads(layer.k_proj(x), layer.kv_heads, layer.k_norm).repeat_interleave(group, 2)
    v = layer._heads(layer.v_proj(x), layer.kv_heads, None).repeat_interleave(group, 2)
    score = torch.einsum("bmhd,bnhd->bmnh", q, k) / layer.head_dim**0.5 + bias
    most = score.masked_fill(gate == 0, -torch.inf).amax(2, keepdim=True).detach()
    # What is far above the row has no part in it: a gate of 0 times what is still a number.
    size = gate * (score - most.masked_fill(most == -torch.inf, 0)).clamp(max=50).exp()
    total = size.sum(2, keepdim=True)
    return torch.einsum("bmnh,bnhd->bmhd", size / total.masked_fill(total == 0, 1), v), score


class Case(NamedTuple):
    scores: Scores
    kv_heads: int = 4
    size: float = 0.5  # of the maps


CASES = {
    "plain": Case(Scores()),
    "grouped": Case(Scores(), kv_heads=2),
    "areas, norm": Case(Scores(areas=True, norm=True), kv_heads=1),
    "taps": Case(Scores(taps=True, areas=True)),
    "knots": Case(Scores(knots=3)),
    "large": Case(Scores(), size=30.0),  # scores up to thousands
}


@needs_scipy
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_effects_against_a_dense_softmax_with_gates(case: Case) -> None:
    wide = radius(GRID, 6e6) if case.scores.knots else window(GRID, (3, 5))
    near = some_edges(wide, 0.4)
    if case.scores.knots:  # candidates beyond the reach
        assert wide.distance is not None
        near = near.select(wide.distance[Listed(wide).numbers(near)] < 4.5e6)
    layer = SparseAttention(near, 8, 4, kv_heads=case.kv_heads, scores=case.scores).double()
    randomize(layer, case.size)
    target = target_of(layer, wide)
    target.listen(True)
    x = torch.randn(3, GRID.size, 8, generator=generator(1), dtype=torch.float64)
    to = torch.randn(3, GRID.size, 8, generator=generator(2), dtype=torch.float64)
    (layer(x) * to).sum().backward()
    with torch.no_grad():
        for p in layer.bias.parameters():
            p.add_(1.0)  # the optimizer's step: scores are those of before
    effect = target._active().effect
    (chunk,) = target.candidates.chunks(1)
    candidates = target._gradients(chunk)
    with torch.no_grad():
        for p in layer.bias.parameters():
            p.sub_(1.0)

    bias = dense_bias(layer, near, wide)
    one = near.to_dense().double()
    gate = one[None, :, :, None].expand(3, -1, -1, 4).clone().requires_grad_()
    y, score = dense_output(layer, x, bias, gate)
    y.retain_grad()
    (layer.out_proj(y.flatten(2)) * to).sum().backward()
    assert gate.grad is not None
    assert y.grad is not None
    row, col = near.rows(), near.col.long()
    several = near.fan_in[row] > 1
    expected = gate.grad.sum((0, 3))[row, col]
    size = float(expected.abs().max())
    torch.testing.assert_close(effect[several], expected[several], rtol=1e-9, atol=1e-9 * size)
    # Every candidate by itself, added in full; the only edge of a site, taken away.
    numbers = Listed(wide).numbers(near)
    truth = torch.zeros(wide.num_edges, dtype=torch.float64)
    truth[numbers] = effect
    for e, (i, j) in enumerate(zip(wide.rows().tolist(), wide.col.tolist(), strict=True)):
        alone = bool(one[i, j]) and int(near.fan_in[i]) == 1
        if not one[i, j] or alone:
            changed = gate.detach().clone()
            changed[:, i, j] = 0 if alone else 1
            other = dense_output(layer, x, bias, changed)[0].detach()
            truth[e] = float((y.grad * (other - y.detach())).sum()) * (-1 if alone else 1)
    torch.testing.assert_close(candidates.double(), truth, rtol=2e-6, atol=2e-6 * size)
    assert int((truth != 0).sum()) > len(truth) / 2
    # And it is the gradient at a gate of 0, but for the share that the candidate leaves.
    odds = (score - score.masked_fill(gate == 0, -torch.inf).logsumexp(2, keepdim=True)).exp()
    slope = (gate.grad / (1 + odds)).sum((0, 3)).detach()
    if case.size == 0.5:
        free = (one[wide.rows(), wide.col.long()] == 0) & (near.fan_in[wide.rows()] > 0)
        at = wide.rows()[free], wide.col.long()[free]
        torch.testing.assert_close(candidates[free].double(), slope[at], rtol=2e-6, atol=1e-5)


def test_weights_are_means_over_batch_and_heads_of_all_passes() -> None:
    layer = SparseAttention(some_edges(window(GRID, 3), 0.6), 4, 2)
    randomize(layer)
    target = target_of(layer, window(GRID, 3))
    target.listen(True)
    x = torch.randn(5, GRID.size, 4)
    for part in (x[:2], x[2:]):  # gradients are accumulated
        layer(part).square().sum().backward()
    weight = target._active().weight
    sums = torch.zeros(GRID.size).double().index_add_(0, layer.pattern.rows(), weight)
    torch.testing.assert_close(sums, (layer.pattern.fan_in > 0).double())
    together = target_of(layer, window(GRID, 3))
    together.listen(True)
    layer(x).square().sum().backward()
    torch.testing.assert_close(together._active().weight, weight)
    effects = together._active().effect, target._active().effect
    torch.testing.assert_close(*effects, rtol=1e-4, atol=1e-5)


def test_chunks_and_parts_of_the_batch_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> Tensor:
        layer = SparseAttention(some_edges(wide, 0.5), 4, 2, scores=Scores(areas=True))
        randomize(layer)
        target = target_of(layer, wide)
        target.listen(True)
        layer(torch.randn(7, GRID.size, 4, generator=generator(1))).square().sum().backward()
        chunks = list(target.candidates.chunks(target.numbers))
        parts.append(len(chunks))
        return torch.cat([target._gradients(chunk) for chunk in chunks])

    wide, parts = window(GRID, (3, 5)), list[int]()
    whole = found()
    monkeypatch.setattr("scisparse.sparsity.candidates._NUMBERS_AT_ONCE", 60)
    monkeypatch.setattr("scisparse.sparsity.attention_effects._NUMBERS_AT_ONCE", 100)
    torch.testing.assert_close(found(), whole)
    assert parts[0] == 1
    assert parts[1] > 10


# -- training --------------------------------------------------------------------------------------


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
        options: dict[str, Any] = {}
        if method == "rigl":
            options["schedule"] = schedules.CosineDrop(end=80, every=4, fraction=0.4)
        sparsifier = Sparsifier(
            model, optimizer, method, candidates=model.candidates, params=["*.edges"], **options
        )
        assert [t.name for t in sparsifier.targets] == ["attend.edges"]
        data = [torch.randn(24, 50, 4, generator=gen) for _ in range(100)]
        losses = train(model, optimizer, sparsifier, [(x, x[:, model.link]) for x in data])
        assert model.attend.pattern.num_edges == 3 * 40
        parts[method] = model.found(), losses[-1]
    assert parts["rigl"][0] >= 0.95
    assert parts["rigl"][1] < 0.5
    assert parts["static"][0] == 0
    assert parts["static"][1] > 0.8


class Model(nn.Module):
    def __init__(self, pattern: Pattern, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.attend = SparseAttention(pattern, 8, 2, **options)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.tanh(self.attend(self.embed(x))))
        return y


WIDE = window(GRID, (3, 5))


def data(count: int) -> list[tuple[Tensor, Tensor]]:
    gen = generator(5)
    xs = [torch.randn(4, GRID.size, 3, generator=gen) for _ in range(count)]
    return [(x, x.roll(2, 1)[..., :2]) for x in xs]


def joined() -> Pattern:
    """The edges of the 3 x 3 window, without taps, and those of the wider one."""
    return Pattern.from_dense(window(GRID, 3).to_dense() | WIDE.to_dense())


def plain() -> Model:
    seed()
    return Model(Pattern.from_dense(window(GRID, 3).to_dense()))


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
            assert torch.equal(model.attend.bias.tap, near.tap[at].long())
    with pytest.raises(PatternError, match="has 15 taps"):
        Sparsifier(Model(near, scores=Scores(taps=True)), candidates=WIDE, **options)


def started(method: str = "rigl", **options: Any) -> tuple[Model, Any, Sparsifier]:
    model = plain()
    optimizer = adam(model)
    given: dict[str, Any] = {"candidates": joined(), "params": ["*.edges"], "schedule": OFTEN}
    return model, optimizer, Sparsifier(model, optimizer, method, **given | options)


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
    fresh.load_state_dict({n: p for n, p in model.named_parameters()})
    x = data(1)[0][0]
    assert torch.equal(fresh(x), model(x))


def test_sparsity_prunes_edges_and_regrows_among_them() -> None:
    model, optimizer, sparsifier = started(candidates=None, sparsity=0.5)
    built = window(GRID, 3).to_dense()
    assert model.attend.pattern.num_edges == round(0.5 * int(built.sum()))
    before = model.attend.pattern
    train(model, optimizer, sparsifier, data(5))
    assert before != model.attend.pattern
    assert bool((model.attend.pattern.to_dense() <= built).all())


RULES: list[dict[str, Any]] = [
    {"growth": "random"},
    {"growth": "momentum"},
    {"growth": "never_active_first"},
    {"growth": "preferential_attachment"},
    {"growth": "cannistraci_hebb"},
    {"score": "taylor"},
    {"score": "snip"},
    {"score": "mest"},
    {"score": importance.area_weighted()},
    {"score": lambda weight, grad: weight + grad.abs()},
    {"structure": "constant_fan_in"},
    {"method": "srigl"},
    {"method": "set"},
    {"method": "sparse_momentum"},
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(*rule.values()))
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


def test_compiled_model_sees_every_change() -> None:
    def run(compiled: bool) -> tuple[list[float], Pattern]:
        model, optimizer, sparsifier = started()
        f = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
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


# -- layers ----------------------------------------------------------------------------------------


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


@needs_scipy
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
    assert sorted(old) == sorted(name for name, _ in layer.named_parameters())
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


# -- misuse ----------------------------------------------------------------------------------------


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
    with pytest.raises(OptionError, match=r"`teleconnections` \(=2\) .* by `candidates`"):
        started(candidates=None, teleconnections=2)
    with pytest.raises(OptionError, match=r"edges without weights .* such as 'rigl'"):
        started("gmp", candidates=None, sparsity=0.5, schedule=None, total_steps=9)
    with pytest.raises(OptionError, match="edges without weights"):
        started("top_kast", candidates=None, sparsity=0.5, schedule=None, total_steps=9)
    few = joined().select(torch.arange(40))
    with pytest.raises(PatternError, match=r"`candidates` lack \d+ of the layer's"):
        started(candidates=few)
    with pytest.raises(OptionError, match=r"`candidates` of attend\.edges .* \(48, 48\)"):
        started(candidates=few.restrict(torch.arange(48) < 9, relabel=True))
    with pytest.raises(OptionError, match=r"'atend'.*attend"):
        started(candidates={"atend": joined()})
    _, _, sparsifier = started()
    sparsifier.step()
    with pytest.raises(OptionError, match=r"call loss\.backward\(\) before"):
        sparsifier.step()
    model, optimizer, sparsifier = started(score="movement", growth="random")
    with pytest.raises(OptionError, match="'movement' is summed over steps"):
        train(model, optimizer, sparsifier, data(3))


def test_masks_of_calls_are_refused() -> None:
    """A candidate's source may be hidden without any edge to tell."""
    model, _, sparsifier = started()
    mask = torch.arange(GRID.size) > 3
    for x, _ in data(2):
        loss = model.attend(model.embed(x), source_mask=mask).sum()
        loss.backward()
        if sparsifier.steps == 1:
            with pytest.raises(OptionError, match=r"`source_mask`.*restrict\(source_mask="):
                sparsifier.step()
        else:
            sparsifier.step()
