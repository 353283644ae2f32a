"""Importance by curvature, and pruning that makes up for it: dense solves, step by step."""

from __future__ import annotations

import itertools
import os

import pytest
import torch
from torch import Tensor, nn

from scisparse.errors import OptionError, ShapeError
from scisparse.sparsity import Sparsifier, curvature, schedules
from scisparse.sparsity.curvature import (
    empirical_fisher,
    optimal_brain_damage,
    optimal_brain_surgeon,
    surgeon_step,
)
from scisparse.sparsity.probes import leave_one_out
from scisparse.sparsity.reconstruction import sparsegpt

blocks = pytest.mark.parametrize("block", [1, 5, 12, 64])  # 12 weights: 5 leaves a short block


def draw(*shape: int, seed: int = 0) -> Tensor:
    offset = int(os.environ.get("SCISPARSE_TEST_SEED", "0"))
    generator = torch.Generator().manual_seed(seed + offset)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def fisher_matrix(grads: Tensor, block: int, damping: float) -> Tensor:
    """Damped, and cut to diagonal blocks."""
    flat = grads.flatten(1)
    size = flat.shape[1]
    whole = torch.stack([torch.outer(g, g) for g in flat]).mean(0)
    place = torch.arange(size) // block
    return whole * (place[:, None] == place) + damping * torch.eye(size, dtype=flat.dtype)


def constrained(weight: Tensor, hessian: Tensor, removed: list[int]) -> Tensor:
    """Minimiser of the quadratic around `weight` with some at 0, with Lagrange multipliers."""
    size, count = len(weight), len(removed)
    system = torch.zeros(size + count, size + count, dtype=weight.dtype)
    system[:size, :size] = hessian
    for row, index in enumerate(removed):
        system[size + row, index] = system[index, size + row] = 1.0
    right = torch.cat([hessian @ weight, weight.new_zeros(count)])
    solution: Tensor = torch.linalg.solve(system, right)
    return solution[:size]


# --- optimal brain damage ---


def test_empirical_fisher_equals_a_loop() -> None:
    grads = draw(7, 2, 3)
    fisher = empirical_fisher(grads)
    for i, j in itertools.product(range(2), range(3)):
        assert fisher[i, j].item() == pytest.approx(sum(g[i, j].item() ** 2 for g in grads) / 7)


def test_damage_by_name_is_that_of_the_weights_as_they_are() -> None:
    """A weight that has shrunk to 0 does none, whatever it was when gradients were large."""
    layer, steps = nn.Linear(12, 8, bias=False).double(), 6
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    schedule = schedules.OneShot(steps)
    sparsifier = Sparsifier(
        layer, optimizer, "gmp", sparsity=0.5, score="optimal_brain_damage", schedule=schedule
    )
    grads, start = draw(steps, 8, 12), draw(8, 12, seed=1)
    now = torch.where(torch.arange(12) % 3 == 0, 1e-4, 1.0) * start
    with torch.no_grad():
        layer.weight.copy_(start)
    for step, grad in enumerate(grads):
        (layer.weight * grad).sum().backward()
        optimizer.step()
        if step == steps - 1:
            with torch.no_grad():
                layer.weight.copy_(now)
        sparsifier.step()
        optimizer.zero_grad()
    expected, left = optimal_brain_damage(now, empirical_fisher(grads)), layer.weight != 0
    assert int(left.sum()) == 48
    assert expected[left].min() > expected[~left].max()


def test_sums_that_rounding_has_made_indefinite_have_scores() -> None:
    """Gradients that go along with each other, over many steps, in one block of a hundred."""
    grads, noise = draw(100, 8) * 1e-3, draw(8, 8, seed=1) * 1e-4
    grads[0] = 1.0 + 1e-4 * draw(8, seed=2)
    total = torch.stack([torch.outer(g, g) for g in grads])
    sound = curvature.surgeon_of_sums(torch.ones(800), total)
    total[0] += noise + noise.T
    scores = curvature.surgeon_of_sums(torch.ones(800), total)
    assert 0 < float(scores.min()) <= float(scores.max()) < 0.1
    torch.testing.assert_close(scores[8:], sound[8:], rtol=1e-2, atol=0.0)


def test_optimal_brain_damage_is_exact_where_weights_do_not_interact() -> None:
    weight, second = draw(3, 4), draw(3, 4, seed=1).square()
    minimum = weight.clone()
    increase = leave_one_out(lambda: (0.5 * second * (weight - minimum).square()).sum(), weight)
    torch.testing.assert_close(optimal_brain_damage(weight, second), increase)


# --- optimal brain surgeon ---


@pytest.mark.parametrize("samples", [3, 40])
@blocks
def test_surgeon_score_is_the_least_rise_of_a_quadratic(block: int, samples: int) -> None:
    weight, grads = draw(3, 4), draw(samples, 3, 4, seed=1)
    hessian = fisher_matrix(grads, block, 0.02)
    score = optimal_brain_surgeon(weight, grads, block=block, damping=0.02).flatten()
    for j in range(12):
        change = constrained(weight.flatten(), hessian, [j]) - weight.flatten()
        rise = 0.5 * change @ hessian @ change
        assert score[j].item() == pytest.approx(rise.item(), rel=1e-9)


@blocks
def test_surgeon_step_of_one_weight_is_the_textbook_formula(block: int) -> None:
    weight, grads = draw(3, 4), draw(20, 3, 4, seed=1)
    inverse = torch.linalg.inv(fisher_matrix(grads, block, 0.02))
    for j in range(12):
        keep = torch.ones(12, dtype=torch.bool)
        keep[j] = False
        step = surgeon_step(weight, grads, keep.reshape(3, 4), block=block, damping=0.02)
        w = weight.flatten()
        expected = w - w[j] / inverse[j, j] * inverse[:, j]
        torch.testing.assert_close(step.flatten(), expected)
        assert step.flatten()[j] == 0


@pytest.mark.parametrize("removed", [[0, 1], [2, 3, 7, 11], list(range(1, 12)), list(range(12))])
@blocks
def test_surgeon_step_of_several_is_the_constrained_minimum(block: int, removed: list[int]) -> None:
    weight, grads = draw(3, 4), draw(9, 3, 4, seed=1)
    keep = torch.ones(12, dtype=torch.bool)
    keep[removed] = False
    step = surgeon_step(weight, grads, keep.reshape(3, 4), block=block, damping=0.02)
    hessian = fisher_matrix(grads, block, 0.02)
    torch.testing.assert_close(step.flatten(), constrained(weight.flatten(), hessian, removed))
    assert step.flatten()[removed].tolist() == [0.0] * len(removed)


def test_surgeon_in_turns_equals_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, grads, keep = draw(50), draw(8, 50, seed=1), draw(50, seed=2) > 0
    score = optimal_brain_surgeon(weight, grads, block=6)
    step = surgeon_step(weight, grads, keep, block=6)
    assert torch.equal(surgeon_step(weight, grads, torch.ones_like(keep)), weight)
    monkeypatch.setattr(curvature, "_CHUNK", 2 * 6 * 14)  # two blocks
    torch.testing.assert_close(optimal_brain_surgeon(weight, grads, block=6), score)
    torch.testing.assert_close(surgeon_step(weight, grads, keep, block=6), step)


def test_surgeon_keeps_digits_where_the_fisher_matrix_has_none() -> None:
    """In float32 the matrix itself cannot be factored: 1 + 1e-9 is 1."""
    weight, grads = draw(30), draw(2, 30, seed=1)
    grads[1] = grads[0] * (1 + 1e-5)
    keep = torch.arange(30) % 3 > 0
    single = weight.float(), grads.float()
    exact = single[0].double(), single[1].double()
    score = optimal_brain_surgeon(*single, damping=1e-9).double()
    torch.testing.assert_close(
        score, optimal_brain_surgeon(*exact, damping=1e-9), rtol=0.01, atol=1e-12
    )
    step = surgeon_step(*single, keep, damping=1e-9).double()
    torch.testing.assert_close(step, surgeon_step(*exact, keep, damping=1e-9), rtol=1e-3, atol=1e-3)


# --- sparsegpt ---


def correlated(samples: int, channels: int, seed: int) -> Tensor:
    return draw(samples, channels, seed=seed) @ draw(channels, channels, seed=seed + 1)


def damped_gram(inputs: Tensor, damping: float) -> Tensor:
    rows = inputs.reshape(-1, inputs.shape[-1])
    gram = rows.T @ rows
    return gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)


def step_by_step(
    weight: Tensor, hessian: Tensor, block: int, keep_fraction: float | None, m: int
) -> tuple[Tensor, Tensor]:
    """SparseGPT with an inverse for each column; m > 0 keeps one of m."""
    w, keep = weight.clone(), torch.ones_like(weight, dtype=torch.bool)
    inverse = [torch.linalg.inv(hessian[j:, j:]) for j in range(len(hessian))]
    cost = torch.stack([i[0, 0] for i in inverse]).rsqrt()
    outputs, columns = w.shape
    for j in range(columns):
        if m and j % m == 0:
            best = (w[:, j : j + m] * cost[j : j + m]).abs().max(1).indices
            keep[:, j : j + m] = torch.arange(m) == best[:, None]
        if keep_fraction is not None and j % block == 0:
            part = (w[:, j : j + block] * cost[j : j + block]).abs()
            end = min(j + block, columns)
            stay = round(keep_fraction * outputs * end) - round(keep_fraction * outputs * j)
            limit = part.flatten().sort(descending=True).values[stay - 1]
            keep[:, j : j + block] = part >= limit
        for row in range(outputs):
            if not keep[row, j]:
                w[row, j:] -= w[row, j] / inverse[j][0, 0] * inverse[j][0]
    return w, keep


@pytest.mark.parametrize("block", [1, 4, 9, 128])
@pytest.mark.parametrize(("keep_fraction", "m"), [(0.3, 0), (0.75, 0), (None, 4), (None, 1)])
def test_sparsegpt_equals_the_steps_by_dense_inverses(
    block: int, keep_fraction: float | None, m: int
) -> None:
    block = block * m if m else block
    weight, inputs = draw(6, 12), correlated(40, 12, 1).reshape(4, 10, 12)
    n_of_m = (1, m) if m else None
    pruned, keep = sparsegpt(
        weight, inputs, keep_fraction=keep_fraction, n_of_m=n_of_m, damping=0.01, block=block
    )
    expected, stay = step_by_step(weight, damped_gram(inputs, 0.01), block, keep_fraction, m)
    assert torch.equal(keep, stay)
    torch.testing.assert_close(pruned, expected)
    assert torch.equal(pruned != 0, keep)


def test_sparsegpt_of_one_weight_is_the_surgeon() -> None:
    """In the first column all others make up for it, in the last one none can."""
    weight, inputs = draw(3, 5), correlated(20, 5, 1)
    for column in (0, 4):
        small = weight.clone()
        small[1, column] = 1e-3
        hessian = damped_gram(inputs, 0.05)
        pruned, keep = sparsegpt(small, inputs, keep_fraction=14 / 15, damping=0.05)
        assert (~keep).nonzero().tolist() == [[1, column]]
        expected = small.clone()
        expected[1] = constrained(small[1], hessian, [0]) if column == 0 else small[1]
        expected[1, column] = 0.0
        torch.testing.assert_close(pruned, expected)
        assert (column == 0) == bool((pruned[1, 1:4] != small[1, 1:4]).all())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sparsegpt_keeps_outputs_better_than_magnitude(seed: int) -> None:
    weight, few = draw(16, 32, seed=seed), draw(200, 8, seed=seed + 10)
    inputs = few @ draw(8, 32, seed=seed + 20) + 0.3 * draw(200, 32, seed=seed + 30)
    pruned, keep = sparsegpt(weight, inputs, keep_fraction=0.5, block=8)
    assert keep.sum() == 256
    order = weight.abs().flatten().argsort(descending=True)
    by_size = torch.zeros(512, dtype=weight.dtype)
    by_size[order[:256]] = weight.flatten()[order[:256]]
    ours = (inputs @ (weight - pruned).T).norm()
    theirs = (inputs @ (weight - by_size.reshape(16, 32)).T).norm()
    assert ours < 0.7 * theirs
    # Its choice alone is not what helps: the others make up for what is removed.
    assert ours < 0.7 * (inputs @ torch.where(keep, 0.0, weight).T).norm()


@pytest.mark.parametrize("pattern", [(2, 4), (1, 2), (0, 3), (3, 3)])
def test_sparsegpt_keeps_exactly_n_of_m(pattern: tuple[int, int]) -> None:
    weight, inputs = draw(5, 24), correlated(50, 24, 1)
    pruned, keep = sparsegpt(weight, inputs, n_of_m=pattern, block=12)
    count = keep.reshape(5, -1, pattern[1]).sum(2)
    assert torch.equal(count, torch.full_like(count, pattern[0]))
    assert torch.equal(pruned != 0, keep)


@pytest.mark.parametrize("fraction", [0.0, 0.111, 0.5, 0.9, 1.0])
def test_sparsegpt_keeps_the_number_asked_for(fraction: float) -> None:
    weight, inputs = draw(7, 23), correlated(50, 23, 1)
    pruned, keep = sparsegpt(weight, inputs, keep_fraction=fraction, block=5)
    assert int(keep.sum()) == round(fraction * 161)
    assert fraction < 1.0 or torch.equal(pruned, weight)


def test_sparsegpt_with_ties_and_inputs_that_are_zero() -> None:
    weight = torch.tensor([[1.0, -3.0, 2.0, 1.0]])
    pruned = sparsegpt(weight, torch.zeros(2, 4), keep_fraction=0.5)[0]
    assert pruned.tolist() == [[0.0, -3.0, 2.0, 0.0]]
    inputs = draw(30, 4).float()
    inputs[:, 1] = 0.0  # the largest weight reads nothing
    assert not sparsegpt(weight, inputs, keep_fraction=0.5)[1][0, 1]
    ones = torch.ones(2, 4)
    assert (
        sparsegpt(ones, torch.zeros(1, 4), n_of_m=(2, 4))[1].tolist()
        == [[True] * 2 + [False] * 2] * 2
    )
    assert int(sparsegpt(ones, torch.zeros(1, 4), keep_fraction=0.25)[1].sum()) == 2


# --- dtypes, empty tensors, bad input ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_computed_in_float32(dtype: torch.dtype) -> None:
    weight, grads = draw(4, 6).to(dtype), draw(9, 4, 6, seed=1).to(dtype)
    wide, wide_grads = weight.double(), grads.double()
    keep = draw(4, 6, seed=2) > 0
    fisher = empirical_fisher(grads)
    torch.testing.assert_close(fisher, empirical_fisher(wide_grads).float())
    damage = optimal_brain_damage(weight, fisher)
    torch.testing.assert_close(damage, 0.5 * fisher * weight.float() ** 2)
    score = optimal_brain_surgeon(weight, grads, damping=0.1)
    expected = optimal_brain_surgeon(wide, wide_grads, damping=0.1)
    torch.testing.assert_close(score, expected.float(), rtol=1e-4, atol=1e-6)
    step = surgeon_step(weight, grads, keep, damping=0.1)
    torch.testing.assert_close(step, surgeon_step(wide, wide_grads, keep, damping=0.1).to(dtype))
    pruned, stay = sparsegpt(weight, grads, keep_fraction=0.5)
    expected, same = sparsegpt(wide, wide_grads, keep_fraction=0.5)
    assert torch.equal(stay, same)
    torch.testing.assert_close(pruned, expected.to(dtype))
    parameter = weight.float().requires_grad_()
    assert not surgeon_step(parameter, grads, keep).requires_grad
    assert not sparsegpt(parameter, grads, keep_fraction=0.5)[0].requires_grad


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0)])
def test_empty_weights_stay_empty(shape: tuple[int, int]) -> None:
    weight, grads = torch.zeros(shape), torch.zeros(3, *shape)
    assert empirical_fisher(grads).shape == optimal_brain_damage(weight, weight).shape == shape
    assert optimal_brain_surgeon(weight, grads).shape == shape
    assert surgeon_step(weight, grads, weight == 0).shape == shape
    for options in ({"keep_fraction": 0.5}, {"n_of_m": (2, 4)}):
        pruned, keep = sparsegpt(weight, torch.ones(2, shape[1]), **options)
        assert pruned.shape == keep.shape == shape


def test_scalar_weights() -> None:
    weight, grads = torch.tensor(-2.0), torch.tensor([1.0, 3.0])
    score = optimal_brain_surgeon(weight, grads, damping=1.0)
    torch.testing.assert_close(score, torch.tensor(12.0))  # w^2 F / 2 with F = 5 + 1
    assert surgeon_step(weight, grads, torch.tensor(False)).item() == 0.0


def test_bad_shapes() -> None:
    weight = torch.ones(2, 3)
    for grads in (torch.ones(2, 3), torch.ones(5, 3, 2), torch.ones(())):
        with pytest.raises(ShapeError, match=r"`grads` has shape .*; it must be \[S, 2, 3\], samp"):
            surgeon_step(weight, grads, weight > 0)
        with pytest.raises(ShapeError, match=r"`grads` has shape .*; it must be \[S, 2, 3\], samp"):
            optimal_brain_surgeon(weight, grads)
    with pytest.raises(ShapeError, match=r"`grads` \(shape \[0, 2, 3\]\) holds no sample"):
        optimal_brain_surgeon(weight, torch.ones(0, 2, 3))
    for grads in (torch.ones(()), torch.ones(0, 3)):
        with pytest.raises(ShapeError, match=r"`grads` \(shape .* holds no sample"):
            empirical_fisher(grads)
    with pytest.raises(ShapeError, match=r"`grads` is of torch.int64"):
        empirical_fisher(torch.ones(2, 3).long())
    with pytest.raises(ShapeError, match=r"`fisher` has shape \[3\]; it must be \[2, 3\]"):
        optimal_brain_damage(weight, torch.ones(3))
    for keep in (torch.ones(2, 3), torch.ones(3, dtype=torch.bool)):
        with pytest.raises(ShapeError, match=r"`keep` \(torch.* must be booleans \[2, 3\]"):
            surgeon_step(weight, torch.ones(4, 2, 3), keep)
    with pytest.raises(ShapeError, match=r"`weight` has shape \[2\]; it must be \[O, I\]"):
        sparsegpt(torch.ones(2), torch.ones(2), keep_fraction=0.5)
    with pytest.raises(ShapeError, match=r"`inputs` has shape \[4\]; its last dim must be 3"):
        sparsegpt(weight, torch.ones(4), keep_fraction=0.5)
    with pytest.raises(ShapeError, match=r"3 columns, which must be divisible by m \(=2\)"):
        sparsegpt(weight, torch.ones(3), n_of_m=(1, 2))


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_damping(damping: float) -> None:
    weight, grads = torch.ones(2, 3), torch.ones(4, 2, 3)
    match = r"`damping` \(=.*\) must be finite and above 0"
    with pytest.raises(OptionError, match=match):
        optimal_brain_surgeon(weight, grads, damping=damping)
    with pytest.raises(OptionError, match=match):
        surgeon_step(weight, grads, weight > 0, damping=damping)
    with pytest.raises(OptionError, match=match):
        sparsegpt(weight, grads, keep_fraction=0.5, damping=damping)


def test_bad_blocks() -> None:
    weight, grads = torch.ones(2, 3), torch.ones(4, 2, 3)
    match = r"`block` \(=0\) must be at least 1"
    with pytest.raises(OptionError, match=match):
        optimal_brain_surgeon(weight, grads, block=0)
    with pytest.raises(OptionError, match=match):
        surgeon_step(weight, grads, weight > 0, block=0)
    with pytest.raises(OptionError, match=match):
        sparsegpt(weight, grads, keep_fraction=0.5, block=0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, r"`keep_fraction` \(=None\) and `n_of_m` \(=None\): exactly one must be given"),
        ({"keep_fraction": 0.5, "n_of_m": (2, 4)}, "exactly one must be given"),
        ({"keep_fraction": 1.1}, r"`keep_fraction` \(=1.1\) must be in \[0, 1\]"),
        ({"keep_fraction": float("nan")}, r"`keep_fraction` \(=nan\) must be in \[0, 1\]"),
        ({"n_of_m": (4, 2)}, r"`n_of_m` \(=\(4, 2\)\) must be \(n, m\) with 0 <= n <= m"),
        ({"n_of_m": (0, 0)}, r"`n_of_m` \(=\(0, 0\)\) must be"),
        ({"n_of_m": (1, 3)}, r"`block` \(=128\) must be divisible by m \(=3\): try 96"),
    ],
)
def test_bad_options_of_sparsegpt(options: dict[str, object], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        sparsegpt(torch.ones(2, 6), torch.ones(6), **options)  # type: ignore[arg-type]
