"""Learned gates and proximal steps: sampling, quadrature, numerical minimisers; bad input."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import torch
from kernel_cases import generator
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.utils.parametrize import register_parametrization

from scisparse.errors import OptionError, ShapeError
from scisparse.sparsity.gates import HardConcrete, VariationalDropout
from scisparse.sparsity.proximal import group_soft_threshold, soft_threshold


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def gates_at(values: Sequence[float] | Tensor, **options: Any) -> HardConcrete:
    """Gates in float64 with the given log alpha."""
    start = torch.as_tensor(values, dtype=torch.float64)
    gates = HardConcrete(start.shape, dtype=torch.float64, **options)
    with torch.no_grad():
        gates.log_alpha.copy_(start)
    return gates


# --- hard concrete gates ---


@pytest.mark.parametrize("options", [{}, {"temperature": 0.4, "low": -0.3, "high": 1.5}])
def test_gates_are_0_and_1_as_often_as_said(options: dict[str, float]) -> None:
    count = 100_000
    gates = gates_at([-3.0, -1.0, 0.0, 2.0], **options)
    with torch.no_grad():
        z = gates_at(gates.log_alpha.expand(count, 4), **options)(generator(1))
    assert z.min() == 0
    assert z.max() == 1
    beta, low, high = gates.temperature, gates.low, gates.high
    # z = 1 where s >= (1 - low) / (high - low), and log u - log(1 - u) is logistic.
    full = torch.sigmoid(gates.log_alpha.detach() - beta * math.log((1 - low) / (high - 1)))
    for probability, seen in ((gates.open_probability().detach(), z > 0), (full, z == 1)):
        error = (seen.double().mean(0) - probability) / (probability * (1 - probability)).sqrt()
        assert error.abs().max() < 5 / math.sqrt(count)


def test_gates_follow_their_generator() -> None:
    gates = HardConcrete((50,))
    first = gates(generator(1))
    assert torch.equal(first, gates(generator(1)))
    assert not torch.equal(first, gates(generator(2)))


def test_expected_l0_counts_open_gates() -> None:
    gates = HardConcrete((3, 4), open_probability=0.7, dtype=torch.float64)
    torch.testing.assert_close(gates.open_probability(), torch.full((3, 4), 0.7).double())
    assert gates.expected_l0().item() == pytest.approx(8.4)
    gates = gates_at(draw(5))
    assert gradcheck(lambda _: gates.expected_l0(), (gates.log_alpha,))
    (slope,) = torch.autograd.grad(gates.expected_l0(), gates.log_alpha)
    p = gates.open_probability().detach()
    torch.testing.assert_close(slope, p * (1 - p))


def test_gradient_of_drawn_gates() -> None:
    gates = gates_at(2 * draw(40))
    z = gates(generator(3)).detach()
    inside = (z > 0) & (z < 1)
    assert inside.any()
    assert not inside.all()
    assert gradcheck(lambda _: gates(generator(3)), (gates.log_alpha,))
    (slope,) = torch.autograd.grad(gates(generator(3)).sum(), gates.log_alpha)
    assert torch.equal(slope != 0, inside)


def test_gates_settle_in_evaluation() -> None:
    start = [-9.0, -math.log(11) - 1e-9, -math.log(11) + 1e-9, 0.0, math.log(11) + 1e-9]
    gates = gates_at(start).eval()
    z = gates()
    torch.testing.assert_close(z, torch.tensor([0.0, 0.0, 0.0, 0.5, 1.0]).double())
    assert z[:2].tolist() == [0.0, 0.0]
    assert gates.active().tolist() == [False, False, True, True, True]
    assert torch.equal(gates.train().active(), z > 0)
    assert torch.equal(gates.settled(), z)


def test_extreme_gates_have_finite_gradients() -> None:
    gates = gates_at([-1e4, 1e4])
    z = gates(generator())
    assert z.tolist() == [0.0, 1.0]
    (slope,) = torch.autograd.grad(z.sum() + gates.expected_l0(), gates.log_alpha)
    assert slope.tolist() == [0.0, 0.0]


def test_training_closes_the_gate_of_a_useless_input() -> None:
    x = draw(100, 2)
    gates, gen = gates_at([1.0, 1.0]), generator(4)
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (x @ gates(gen) - x[:, 0]).square().mean() + 0.1 * gates.expected_l0()
        loss.backward()
        optimizer.step()
    assert gates.active().tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gates_of_16_bits(dtype: torch.dtype) -> None:
    gates = HardConcrete((1000,), open_probability=0.5, dtype=dtype)
    z = gates(generator())
    assert z.dtype == gates.settled().dtype == dtype
    assert (z == 0).any()
    assert (z == 1).any()
    assert gates.expected_l0().dtype == torch.float32
    assert gates.expected_l0().item() == pytest.approx(500, rel=0.01)
    assert HardConcrete((0, 3))().shape == (0, 3)
    assert HardConcrete((0, 3)).expected_l0() == 0


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"open_probability": 1.0}, r"`open_probability` \(=1.0\) must lie strictly between 0"),
        ({"temperature": 0.0}, r"`temperature` \(=0.0\) must be finite and above 0"),
        ({"low": 0.0}, r"`low` \(=0.0\) must be below 0 and `high` \(=1.1\) above 1"),
        ({"high": 1.0}, r"`low` \(=-0.1\) must be below 0 and `high` \(=1.0\) above 1"),
        ({"high": math.nan}, r"`high` \(=nan\) above 1"),
    ],
)
def test_bad_options_of_gates(options: dict[str, float], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        HardConcrete((2,), **options)  # type: ignore[arg-type]


# --- variational dropout ---


def noise_at(log_sigma2: Tensor, **options: Any) -> VariationalDropout:
    noise = VariationalDropout(log_sigma2.shape, dtype=log_sigma2.dtype, **options)
    with torch.no_grad():
        noise.log_sigma2.copy_(log_sigma2)
    return noise


def exact_divergence(log_alpha: float) -> float:
    """KL of N(1, alpha) from the log-uniform prior by quadrature, 0 for infinite alpha."""
    sigma = math.exp(0.5 * log_alpha)

    def integrand(x: float) -> float:
        density = math.exp(-0.5 * ((x - 1) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
        return math.log(abs(x)) * density

    middle = 0.0 if 12 * sigma > 1 else 1.0  # where it is singular, or where the mass is
    ends = [1 - 12 * sigma, middle, 1 + 12 * sigma]
    mean_log = sum(scipy.integrate.quad(integrand, a, b, limit=200)[0] for a, b in pairwise(ends))
    # The mean of log |x| of a standard normal is -(Euler's constant + log 2) / 2.
    return float(mean_log - 0.5 * log_alpha + 0.5 * (np.euler_gamma + math.log(2)))


@pytest.mark.parametrize("log_alpha", [-8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0])
def test_divergence_is_close_to_quadrature(log_alpha: float) -> None:
    theta = torch.tensor([-1.7], dtype=torch.float64)
    noise = noise_at(log_alpha + 2 * theta.abs().log())
    assert noise.log_alpha(theta).item() == pytest.approx(log_alpha)
    assert noise.kl(theta).item() == pytest.approx(exact_divergence(log_alpha), abs=0.01)


def test_gradient_of_the_divergence() -> None:
    theta = draw(3, 4).requires_grad_()
    noise = noise_at(2 * draw(3, 4, seed=1))
    assert gradcheck(lambda t, _: noise.kl(t), (theta, noise.log_sigma2))
    zero = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    for slope in torch.autograd.grad(noise.kl(zero), (zero, noise.log_sigma2)):
        torch.testing.assert_close(slope, torch.zeros_like(slope))
    assert not noise.active(zero).any()


def test_noise_has_the_mean_and_variance_said() -> None:
    count, theta, log_sigma2 = 50_000, draw(3), torch.tensor([-6.0, -2.0, 1.0]).double()
    noise = noise_at(log_sigma2.expand(count, 3))
    weight = theta.expand(count, 3).clone().requires_grad_()
    w = noise(weight, generator(5))
    variance = log_sigma2.exp()
    error = (w.detach().mean(0) - theta) / (variance / count).sqrt()
    assert error.abs().max() < 5
    spread = w.detach().var(0) / variance - 1
    assert spread.abs().max() < 5 * math.sqrt(2 / count)
    slope, by_size = torch.autograd.grad(w.sum(), (weight, noise.log_sigma2))
    assert torch.equal(slope, torch.ones_like(slope))
    torch.testing.assert_close(by_size, 0.5 * (w - weight).detach())
    assert torch.equal(w, noise(weight, generator(5)))


def test_weights_of_mostly_noise_go_in_evaluation() -> None:
    edge = math.exp(-0.5 * (3.0 + 4.0))  # log alpha = -4 - log theta^2 = 3
    theta = torch.tensor([1.0, edge * 1.001, edge * 0.999, -0.001, 0.0], dtype=torch.float64)
    noise = noise_at(torch.full((5,), -4.0).double())
    assert noise.active(theta).tolist() == [True, True, False, False, False]
    assert noise.eval()(theta).tolist() == [*theta[:2].tolist(), 0.0, 0.0, 0.0]
    strict = noise_at(torch.full((5,), -4.0).double(), threshold=-3.0)
    assert strict.active(theta).tolist() == [True, False, False, False, False]


def test_noise_as_a_parametrization() -> None:
    layer = torch.nn.Linear(3, 2)
    theta = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight[0, 1] = theta[0, 1] = 1e-4
    register_parametrization(layer, "weight", VariationalDropout((2, 3), log_sigma2=-9.0))
    assert (layer.weight != theta).all()
    expected = theta.clone()
    expected[theta.square().log() <= -12.0] = 0.0
    assert expected[0, 1] == 0
    assert torch.equal(layer.eval().weight, expected)


def test_noise_of_16_bits_and_bad_input() -> None:
    noise = VariationalDropout((4,))
    weight = torch.ones(4, dtype=torch.bfloat16)
    assert noise(weight).dtype == noise.eval()(weight).dtype == torch.bfloat16
    assert noise.kl(weight).dtype == torch.float32
    assert VariationalDropout((0,)).kl(torch.zeros(0)).item() == 0
    for call in (noise, noise.train(), noise.kl, noise.log_alpha, noise.active):
        with pytest.raises(
            ShapeError, match=r"`weight` has shape \[3\]; it must be \[4\], as `log"
        ):
            call(torch.ones(3))
    with pytest.raises(OptionError, match=r"`log_sigma2` \(=inf\) must be finite"):
        VariationalDropout((1,), log_sigma2=math.inf)
    with pytest.raises(OptionError, match=r"`threshold` \(=nan\) must be a number"):
        VariationalDropout((1,), threshold=math.nan)


# --- proximal steps ---


@pytest.mark.parametrize("amount", [0.0, 0.4, 1.0, 50.0])
def test_soft_threshold_is_the_minimiser(amount: float) -> None:
    weight = 1.5 * draw(4, 5)
    ours = soft_threshold(weight, amount)
    for w, x in zip(weight.flatten().tolist(), ours.flatten().tolist(), strict=True):
        found = scipy.optimize.minimize_scalar(
            lambda t, w=w: 0.5 * (t - w) ** 2 + amount * abs(t),
            bounds=(-10, 10),
            method="bounded",
            options={"xatol": 1e-9},
        )
        assert x == pytest.approx(found.x, abs=1e-6)
    assert torch.equal(ours == 0, weight.abs() <= amount)


@pytest.mark.parametrize("amount", [0.0, 0.5, 1.5, 50.0])
@pytest.mark.parametrize("dims", [(1,), (0, 2), (-1,)])
def test_group_soft_threshold_is_the_minimiser(amount: float, dims: tuple[int, ...]) -> None:
    weight = draw(2, 3, 2)
    weight[:, 0] *= 0.2
    ours = group_soft_threshold(weight, amount, dims)
    last = [dim % 3 for dim in dims]
    first = [dim for dim in range(3) if dim not in last]
    size = math.prod(weight.shape[dim] for dim in last)
    groups, found = (t.permute(*first, *last).reshape(-1, size).numpy() for t in (weight, ours))
    for w, x in zip(groups, found, strict=True):
        best = scipy.optimize.minimize(
            lambda t, w=w: 0.5 * ((t - w) ** 2).sum() + amount * np.linalg.norm(t),
            w,
            method="Nelder-Mead",
            options={"xatol": 1e-8, "fatol": 1e-14, "maxiter": 5000, "maxfev": 5000},
        )
        np.testing.assert_allclose(x, best.x, atol=1e-5)
        assert (np.linalg.norm(w) <= amount) == (not x.any())


def test_amounts_for_each_weight_or_group() -> None:
    weight, amount = draw(3, 4), torch.tensor([[0.1], [0.5], [9.0]]).double()
    by_weight, by_group = soft_threshold(weight, amount), group_soft_threshold(weight, amount, 1)
    for row in range(3):
        limit = amount[row].item()
        torch.testing.assert_close(by_weight[row], soft_threshold(weight[row], limit))
        torch.testing.assert_close(by_group[row], group_soft_threshold(weight[row], limit, 0))
    assert by_group[0].all()
    assert not by_group[2].any()


def test_gradients_of_proximal_steps() -> None:
    weight = draw(3, 4)
    weight[1] = 0.0
    weight.requires_grad_()
    amount = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(soft_threshold, (weight, amount))
    assert gradcheck(lambda w, a: group_soft_threshold(w, a, 1), (weight, amount))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_proximal_steps_of_16_bits(dtype: torch.dtype) -> None:
    weight = draw(6, 50).to(dtype)
    wide = weight.double()
    single = soft_threshold(weight, 0.3)
    assert single.dtype == dtype
    torch.testing.assert_close(single, soft_threshold(wide, 0.3).to(dtype))
    torch.testing.assert_close(
        group_soft_threshold(weight, 2.0, 1), group_soft_threshold(wide, 2.0, 1).to(dtype)
    )


def test_proximal_steps_keep_nan_and_empty() -> None:
    weight = torch.tensor([[math.nan, 1.0], [0.0, 0.0]])
    assert soft_threshold(weight, 2.0).isnan().tolist() == [[True, False], [False, False]]
    assert group_soft_threshold(weight, 2.0, 1).isnan().tolist() == [[True, True], [False, False]]
    for shape in ((0,), (0, 3), (3, 0)):
        assert soft_threshold(torch.zeros(shape), 1.0).shape == shape
        assert group_soft_threshold(torch.zeros(shape), 1.0, -1).shape == shape


def test_bad_input_of_proximal_steps() -> None:
    weight = torch.ones(2, 3)
    for amount in (-0.1, math.nan):
        with pytest.raises(OptionError, match=r"`amount` \(=.*\) must be at least 0"):
            soft_threshold(weight, amount)
        with pytest.raises(OptionError, match=r"`amount` \(=.*\) must be at least 0"):
            group_soft_threshold(weight, amount, 1)
    with pytest.raises(ShapeError, match=r"shape \[2\], which does not broadcast to \[2, 3\]"):
        soft_threshold(weight, torch.ones(2))
    with pytest.raises(ShapeError, match=r"shape \[3\], which does not broadcast to \[2, 1\]"):
        group_soft_threshold(weight, torch.ones(3), 1)
    with pytest.raises(ShapeError, match=r"`weight` is of torch.int64; it must be of floating"):
        soft_threshold(weight.long(), 1.0)
    for dims in ((), 2, (0, 0), (1, -1), (0, 5)):
        with pytest.raises(OptionError, match=r"`dims` \(=.* must be one or several different dim"):
            group_soft_threshold(weight, 1.0, dims)
