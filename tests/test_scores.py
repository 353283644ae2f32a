"""Importance of weights: by definition, by passes through a model, closed forms; bad input."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from kernel_cases import generator
from torch import Tensor, nn

from scisparse.errors import OptionError, ShapeError
from scisparse.sparsity.probes import grasp, hessian_gradient, leave_one_out, synflow
from scisparse.sparsity.scores import magnitude, movement, random, snip, taylor, wanda

WITH_GRADIENT = {"taylor": taylor, "movement": movement, "snip": snip, "grasp": grasp}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def bits(tensor: Tensor) -> list[int]:
    """What is stored: tells 0 from -0."""
    return tensor.detach().contiguous().view(torch.int64).flatten().tolist()


# --- scores of weight and gradient ---


def test_magnitude_and_taylor_of_a_linear_loss() -> None:
    """For a linear loss, the change without a weight is of first order alone."""
    weight, slope = draw(3, 4, 2), draw(3, 4, 2, seed=1)
    change = leave_one_out(lambda: (slope * weight).sum(), weight)
    torch.testing.assert_close(taylor(weight, slope), change.abs())
    torch.testing.assert_close(magnitude(weight), leave_one_out(lambda: -weight.norm(1), weight))


def test_movement_is_half_the_growth_of_the_square_in_a_step() -> None:
    weight, grad, rate = draw(5, 3), draw(5, 3, seed=1), 0.1
    growth = (weight - rate * grad).square() - weight.square()
    torch.testing.assert_close(movement(weight, grad), growth / (2 * rate) - rate * grad**2 / 2)


def test_snip_is_the_share_of_the_gradient_by_a_mask() -> None:
    weight = draw(4, 6)
    x = draw(10, 6, seed=1)
    mask = torch.ones_like(weight, requires_grad=True)
    (by_mask,) = torch.autograd.grad((x @ (mask * weight).T).sigmoid().square().sum(), mask)
    parameter = weight.clone().requires_grad_()
    (grad,) = torch.autograd.grad((x @ parameter.T).sigmoid().square().sum(), parameter)
    score = snip(parameter, grad)
    torch.testing.assert_close(score, by_mask.abs() / by_mask.abs().sum())
    assert score.sum().item() == pytest.approx(1.0, abs=1e-14)
    assert snip(weight, torch.zeros_like(weight)).tolist() == torch.zeros(4, 6).tolist()


def test_random_follows_its_generator() -> None:
    weight = torch.zeros(300, 40)
    score = random(weight, generator(5))
    assert torch.equal(score, random(weight, generator(5)))
    assert not torch.equal(score, random(weight, generator(6)))
    assert score.min() >= 0
    assert score.max() < 1
    assert score.mean().item() == pytest.approx(0.5, abs=5 * (1 / 12 / 12_000) ** 0.5)
    torch.manual_seed(3)
    first = random(weight.double())
    assert first.dtype == torch.float64
    torch.manual_seed(3)
    assert torch.equal(first, random(weight.double()))


# --- wanda ---


def test_wanda_equals_a_loop() -> None:
    weight, inputs = draw(3, 5), draw(2, 7, 5, seed=1)
    score = wanda(weight, inputs)
    for i, j in itertools.product(range(3), range(5)):
        squares = sum(inputs[b, s, j].item() ** 2 for b in range(2) for s in range(7))
        assert score[i, j].item() == pytest.approx(abs(weight[i, j].item()) * squares**0.5)


def test_wanda_of_a_convolution() -> None:
    weight, x = draw(4, 3, 2, 2), draw(5, 3, 6, 7, seed=1)
    score = wanda(weight, x.movedim(1, -1))
    for channel in range(3):
        norm = x[:, channel].flatten().norm()
        torch.testing.assert_close(score[:, channel], weight[:, channel].abs() * norm)


def test_wanda_of_one_sample_without_batch() -> None:
    weight, sample = draw(3, 5), draw(5, seed=1)
    torch.testing.assert_close(wanda(weight, sample), (weight * sample).abs())


# --- leave one out ---


def test_leave_one_out_of_a_quadratic() -> None:
    weight, minimum, root = draw(7, seed=1), draw(7, seed=2), draw(7, 7, seed=3)
    hessian = root @ root.T

    def loss() -> Tensor:
        energy: Tensor = 0.5 * (weight - minimum) @ hessian @ (weight - minimum)
        return energy

    grad = hessian @ (weight - minimum)
    expected = -grad * weight + 0.5 * hessian.diagonal() * weight**2
    torch.testing.assert_close(leave_one_out(loss, weight), expected)


def test_leave_one_out_equals_direct_evaluation_and_restores() -> None:
    x = draw(9, 4, seed=1)
    layer = nn.Linear(4, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(draw(3, 4))
        layer.weight[1, 2] = -0.0
        layer.weight[0, 0] = 0.0
    before, calls = layer.weight.detach().clone(), []

    def loss() -> Tensor:
        calls.append(torch.is_grad_enabled())
        output: Tensor = layer(x)
        return output.tanh().square().mean()

    score = leave_one_out(loss, layer.weight)
    assert bits(layer.weight) == bits(before)
    assert calls == [False] * 11  # once as it is, and for every weight that is not 0
    for index in itertools.product(range(3), range(4)):
        changed = before.clone()
        changed[index] = 0.0
        increase = (x @ changed.T).tanh().square().mean() - (x @ before.T).tanh().square().mean()
        assert score[index].item() == pytest.approx(increase.item(), abs=1e-15)
    assert layer.weight.requires_grad
    assert not score.requires_grad


def test_leave_one_out_restores_after_an_error() -> None:
    weight = draw(3, 4).T  # not contiguous
    before, calls = weight.clone(), []

    def loss() -> float:
        calls.append(float(weight.sum()))
        if len(calls) == 6:
            raise RuntimeError("out of data")
        return calls[-1]

    with pytest.raises(RuntimeError, match="out of data"):
        leave_one_out(loss, weight)
    assert bits(weight) == bits(before)
    assert len(set(calls)) == 6


# --- gradient flow ---


def two_layers() -> tuple[list[Tensor], Callable[..., Tensor]]:
    parameters = [draw(3, 4).requires_grad_(), draw(2, 3, seed=1).requires_grad_()]
    x, y = draw(6, 4, seed=2), draw(6, 2, seed=3)

    def loss(first: Tensor, second: Tensor) -> Tensor:
        error = torch.tanh(x @ first.T) @ second.T - y
        return error.square().mean()

    return parameters, loss


def test_hessian_gradient_equals_the_dense_product() -> None:
    parameters, loss = two_layers()
    hessian = torch.autograd.functional.hessian(loss, tuple(parameters))
    grads = [g.flatten() for g in torch.autograd.grad(loss(*parameters), parameters)]
    products = hessian_gradient(loss(*parameters), parameters)
    for i, product in enumerate(products):
        blocks = [hessian[i][j].reshape(-1, len(grads[j])) @ grads[j] for j in range(2)]
        torch.testing.assert_close(product.flatten(), blocks[0] + blocks[1])
        assert not product.requires_grad


def test_hessian_gradient_where_nothing_is_curved() -> None:
    used, unused = draw(3).requires_grad_(), draw(2).requires_grad_()
    for loss in ((used * draw(3, seed=1)).sum(), (used.square()).sum()):
        flow = hessian_gradient(loss, [used, unused])
        assert flow[1].tolist() == [0.0, 0.0]
    torch.testing.assert_close(flow[0], 4 * used.detach())  # H = 2 I, g = 2 w
    assert hessian_gradient((used * 2).sum(), [used])[0].tolist() == [0.0] * 3
    assert hessian_gradient(used.sum(), []) == []


def test_grasp_is_half_the_fall_of_the_squared_gradient() -> None:
    """Fixes the sign: what holds much gradient flow is kept."""
    parameters, loss = two_layers()
    flow = hessian_gradient(loss(*parameters), parameters)
    score, step = grasp(parameters[0], flow[0]), 1e-6

    def squared(first: Tensor) -> float:
        inputs = (first, parameters[1])
        return sum(g.square().sum().item() for g in torch.autograd.grad(loss(*inputs), inputs))

    assert score.min() < -1e-3  # both signs occur
    assert score.max() > 1e-3
    for index in itertools.product(range(3), range(4)):
        ends = []
        for sign in (1, -1):
            moved = parameters[0].detach().clone()
            moved[index] *= 1 - sign * step
            ends.append(squared(moved.requires_grad_()))
        assert score[index].item() == pytest.approx((ends[1] - ends[0]) / (4 * step), abs=1e-7)


# --- synaptic flow ---


def test_synflow_is_conserved_layer_by_layer() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 5, 3, bias=False),
        nn.ReLU(),
        nn.Conv2d(5, 4, 2, stride=2, bias=False),
        nn.Flatten(),
        nn.ReLU(),
        nn.Linear(16, 6, bias=False),
        nn.ReLU(),
        nn.Linear(6, 3, bias=False),
    )
    with torch.no_grad():
        for seed, parameter in enumerate(model.parameters()):
            parameter.copy_(draw(*parameter.shape, seed=seed))
    scores = synflow(model, torch.zeros(1, 2, 6, 6))
    assert list(scores) == ["0.weight", "2.weight", "5.weight", "7.weight"]
    sums = torch.stack([score.sum() for score in scores.values()])
    torch.testing.assert_close(sums, sums[:1].expand(4))
    # What leaves a hidden unit is what enters it.
    torch.testing.assert_close(scores["5.weight"].sum(1), scores["7.weight"].sum(0))


def test_synflow_of_two_matrices_in_closed_form() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    first, bias, second, _ = (parameter.detach().abs() for parameter in model.parameters())
    hidden = first.sum(1) + bias
    with torch.no_grad():
        scores = synflow(model, torch.zeros(5, 4, dtype=torch.float64))
    torch.testing.assert_close(scores["0.weight"], 5 * second.sum(0)[:, None] * first)
    torch.testing.assert_close(scores["2.weight"], 5 * second * hidden)


class Awkward(nn.Module):
    """Writes to its buffers, reads backwards, ties its weights, and may fail."""

    index: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.tied, self.unused = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(2, 2)
        self.norm, self.dropout = nn.BatchNorm1d(3), nn.Dropout(0.9)
        self.tied.weight = self.first.weight
        self.register_buffer("index", torch.tensor([-3, -2, 0]))
        self.register_buffer("calls", torch.tensor(-0.0))
        self.fails = False

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.index.copy_(self.index.flip(0))
        if self.fails:
            raise RuntimeError("no more")
        hidden = self.dropout(self.norm(self.first(x)))
        y: Tensor = self.tied(hidden[:, self.index])
        return y


@pytest.mark.parametrize("fails", [False, True])
def test_synflow_leaves_the_model_as_it_was(fails: bool) -> None:
    model = Awkward()
    model.tied.eval()
    model.fails = fails
    model.unused.weight.grad = torch.ones(2, 2)
    flags = [module.training for module in model.modules()]
    before = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict().items()}
    identity = [id(p) for p in (*model.parameters(), *model.buffers())]
    if fails:
        with pytest.raises(RuntimeError, match="no more"):
            synflow(model, torch.zeros(2, 3))
    else:
        scores = synflow(model, torch.zeros(2, 3))
        assert list(scores) == ["first.weight", "unused.weight"]
        assert scores["first.weight"].min() > 0
        assert scores["unused.weight"].tolist() == [[0.0, 0.0]] * 2
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0].data_ptr()
        assert tensor.equal(before[name][1])
    assert torch.signbit(model.calls)
    assert identity == [id(p) for p in (*model.parameters(), *model.buffers())]
    assert flags == [module.training for module in model.modules()]
    assert model.first.weight.grad is None
    assert model.unused.weight.grad is not None
    assert model.unused.weight.grad.tolist() == [[1.0, 1.0]] * 2


def test_synflow_of_a_deep_network() -> None:
    model = nn.Sequential(*[nn.Linear(30, 30, bias=False) for _ in range(60)]).bfloat16()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(-1.0)
    scores = synflow(model, torch.zeros(1, 30, dtype=torch.bfloat16))
    # R = 30^61, shared by the 900 weights of a layer.
    for score in scores.values():
        torch.testing.assert_close(score, torch.full((30, 30), 30.0**59, dtype=torch.float64))
    with pytest.raises(OptionError, match=r"inf in `dtype` \(=torch.float32\); it must be finite"):
        synflow(model, torch.zeros(1, 30), dtype=torch.float32)


class Minus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


def test_synflow_without_matrices_or_flow() -> None:
    assert synflow(nn.BatchNorm1d(3), torch.zeros(1, 3)) == {}

    class Constant(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert synflow(Constant(2, 1), torch.zeros(1, 2))["weight"].tolist() == [[0.0, 0.0]]
    scores = synflow(nn.Sequential(nn.Linear(2, 1, bias=False), Minus()), torch.zeros(1, 2))
    assert scores["0.weight"].min() > 0


# --- dtypes, empty tensors, bad input ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_scored_in_float32(dtype: torch.dtype) -> None:
    weight, grad = draw(4, 5).to(dtype), draw(4, 5, seed=1).to(dtype)
    for score in (*WITH_GRADIENT.values(), wanda):
        narrow = score(weight, grad)
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow, score(weight.double(), grad.double()).float())
    assert torch.equal(magnitude(weight), weight.float().abs())
    assert random(weight).dtype == torch.float32
    assert leave_one_out(lambda: weight.float().sum(), weight).dtype == torch.float32


def test_no_score_makes_gradients() -> None:
    weight, grad = draw(3, 3).requires_grad_(), draw(3, 3, seed=1).requires_grad_()
    for score in (*WITH_GRADIENT.values(), wanda):
        assert not score(weight, grad).requires_grad
    assert not magnitude(weight).requires_grad


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
def test_empty_weights_have_empty_scores(shape: tuple[int, ...]) -> None:
    weight = torch.zeros(shape)
    for score in WITH_GRADIENT.values():
        assert score(weight, weight).shape == shape
    assert magnitude(weight).shape == random(weight).shape == shape
    assert leave_one_out(lambda: 1.0, weight).shape == shape
    if len(shape) > 1:
        assert wanda(weight, torch.zeros(4, shape[1])).shape == shape


def test_scalar_weights_have_scalar_scores() -> None:
    weight = torch.tensor(-2.0)
    assert taylor(weight, torch.tensor(3.0)).item() == 6.0
    assert leave_one_out(lambda: weight + 1.0, weight).item() == 2.0


@pytest.mark.parametrize("name", WITH_GRADIENT)
def test_shapes_must_agree(name: str) -> None:
    with pytest.raises(ShapeError, match=r"has shape \[3\]; it must be \[2, 3\], as `weight`"):
        WITH_GRADIENT[name](torch.ones(2, 3), torch.ones(3))
    with pytest.raises(ShapeError, match=r"`weight` is of torch.int64; it must be of floating"):
        WITH_GRADIENT[name](torch.ones(3).long(), torch.ones(3))


def test_bad_input_of_other_scores() -> None:
    with pytest.raises(ShapeError, match=r"`weight` has shape \[3\]; it must be \[O, I\]"):
        wanda(torch.ones(3), torch.ones(3))
    for inputs in (torch.ones(3, 4), torch.tensor(1.0)):
        with pytest.raises(ShapeError, match=r"its last dim must be 3, dim 1 of `weight` \[2, 3\]"):
            wanda(torch.ones(2, 3), inputs)
    with pytest.raises(ShapeError, match=r"`inputs` \(shape \[0, 3\]\) holds no sample"):
        wanda(torch.ones(2, 3), torch.ones(0, 3))
    with pytest.raises(ShapeError, match=r"`weight` is of torch.bool"):
        magnitude(torch.ones(2, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"`loss` returned shape \[2\]; it must return one number"):
        leave_one_out(lambda: torch.ones(2), torch.ones(2))
    for loss in (torch.ones(2, requires_grad=True), torch.ones(())):
        with pytest.raises(ShapeError, match=r"`loss` \(shape .* must be one number with a graph"):
            hessian_gradient(loss, [])
    with pytest.raises(ShapeError, match="`model` returned a tuple; it must return a tensor"):
        synflow(nn.LSTM(2, 2), torch.zeros(1, 1, 2))
