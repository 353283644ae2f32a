"""What the processes of `test_communication.py` run: scenarios, each a function of a process group.

`worker` runs every scenario on ranks 0 and 1 and on all three, and saves what it saw.
"""

from __future__ import annotations

import copy
import io
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scisparse.errors import CheckpointError
from scisparse.layers import SparseLinear
from scisparse.sparsity import Sparsifier, exchange, schedules
from scisparse.sparsity.communication import TopKCompression

WORLDS = (2, 3)
SEED = int(os.environ.get("SCISPARSE_TEST_SEED", "0"))
SIZES = (7, 20, 10, 3)


class Forgetful(TopKCompression):
    """Plain top-k: what is not sent is lost."""

    def _commit(self) -> None:
        super()._commit()
        self._residual.clear()


class Unchecked(TopKCompression):
    """Takes over residuals of an overflow; for a test of the test."""

    def _commit(self) -> None:
        self._finite = [torch.tensor(True)]
        super()._commit()


class Watched(TopKCompression):
    """Notes the parameters of each bucket."""

    buckets: list[list[str]]

    def _reduce(self, names: Sequence[str], gradients: Sequence[Tensor], world: int) -> None:
        self.buckets.append(list(names))
        super()._reduce(names, gradients, world)


def start(rank: int, world: int, file: Path) -> None:
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo",
        init_method=file.as_uri(),
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=200),
    )


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1000 * SEED))


def net(*sizes: int) -> nn.Sequential:
    """The same on every rank."""
    torch.manual_seed(SEED)
    layers: list[nn.Module] = []
    for inside, out in itertools.pairwise(sizes or SIZES):
        layers += [nn.Linear(inside, out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def parallel(
    model: nn.Module, group: dist.ProcessGroup | None, hook: TopKCompression | None, **options: Any
) -> DistributedDataParallel:
    """One bucket in the first step; four afterwards, with cuts inside and between layers."""
    ddp = DistributedDataParallel(model, process_group=group, bucket_cap_mb=5e-5, **options)
    if hook is not None:
        hook.register(ddp)
    return ddp


def batch(step: int, rank: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Other numbers on each rank."""
    return draw(16, SIZES[0], seed=100 * step + rank).to(dtype)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    error: Tensor = model(x) - x[:, : SIZES[-1]].sin()
    return error.float().square().mean()


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def gradient_of(model: nn.Module) -> Tensor:
    return flat(p.grad for p in model.parameters())


def residual_of(hook: TopKCompression, model: nn.Module) -> Tensor:
    saved = hook.state_dict()["residual"]
    return flat([saved[name] for name, _ in model.named_parameters()])


def train(
    ddp: DistributedDataParallel, steps: range, rank: int, optimizer: torch.optim.Optimizer
) -> Tensor:
    for step in steps:
        optimizer.zero_grad()
        loss_of(ddp, batch(step, rank)).backward()
        optimizer.step()
    return flat(ddp.parameters())


def momentum(ddp: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)


# Scenarios: each runs on every rank of `group` and returns what the tests look at.


def dense_equal(group: dist.ProcessGroup, rank: int) -> dict[str, Any]:
    """Density 1, warm-up and no hook at all."""
    hooks = [None, TopKCompression(1.0), TopKCompression(0.1, dense_steps=4)]
    ends = []
    for hook in hooks:
        ddp = parallel(net(), group, hook)
        ends.append(train(ddp, range(4), rank, momentum(ddp)))
    return {"ends": ends}


def by_the_book(
    gradients: list[list[list[Tensor]]], density: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Means of each step, and residuals of each rank, by masks; `gradients` [step][rank][param].

    With R ranks, parameters of which R * k reaches n are sent whole.
    """
    rests = [[torch.zeros_like(g) for g in each] for each in gradients[0]]
    means = []
    for ranks in gradients:
        sent = [[torch.zeros_like(g) for g in each] for each in ranks]
        for each, rest, out in zip(ranks, rests, sent, strict=True):
            for i, g in enumerate(each):
                total = rest[i] + g
                k = max(1, round(density * g.numel()))
                k = k if len(ranks) * k < g.numel() else g.numel()
                kept = total.abs() >= total.abs().flatten().sort(descending=True).values[k - 1]
                out[i], rest[i] = total * kept, total * ~kept
        means.append(flat([sum(parts) / len(ranks) for parts in zip(*sent, strict=True)]))
    return means, [flat(rest) for rest in rests]


def nothing_lost(group: dist.ProcessGroup, rank: int) -> dict[str, Any]:
    """Gradients of fixed parameters, accumulated over two backward passes in every step."""
    result: dict[str, Any] = {}
    world, model = dist.get_world_size(group), net()
    for view in (False, True):
        hook = Watched(0.2)
        hook.buckets = []
        ddp = parallel(copy.deepcopy(model), group, hook, gradient_as_bucket_view=view)
        means = []
        for step in range(5):
            ddp.zero_grad()
            with ddp.no_sync():
                loss_of(ddp, batch(2 * step, rank)).backward()
            loss_of(ddp, batch(2 * step + 1, rank)).backward()
            means.append(gradient_of(ddp))
        result[f"means {view}"], result[f"rest {view}"] = means, residual_of(hook, ddp.module)
        result["buckets"] = hook.buckets
    local = [
        [
            [a + b for a, b in zip(gradient(2 * s, r), gradient(2 * s + 1, r), strict=True)]
            for r in range(world)
        ]
        for s in range(5)
    ]
    result["book means"], rests = by_the_book(local, 0.2)
    result["book rest"] = rests[rank]
    result["all"] = sum(flat(each) for ranks in local for each in ranks)
    return result


def gradient(step: int, rank: int) -> list[Tensor]:
    model = net()
    return list(torch.autograd.grad(loss_of(model, batch(step, rank)), list(model.parameters())))


def resumed(group: dist.ProcessGroup, rank: int) -> dict[str, Any]:
    """Six steps; and three, saved, loaded into new objects, and three more."""
    whole = parallel(net(), group, TopKCompression(0.1))
    end = train(whole, range(6), rank, momentum(whole))
    hook = TopKCompression(0.1)
    first = parallel(net(), group, hook)
    optimizer = momentum(first)
    train(first, range(3), rank, optimizer)
    file = io.BytesIO()
    torch.save([first.module.state_dict(), optimizer.state_dict(), hook.state_dict()], file)
    file.seek(0)
    weights, moments, state = torch.load(file, weights_only=True)
    model, fresh, forgetful = net(), TopKCompression(0.1), TopKCompression(0.1)
    model.load_state_dict(weights)
    fresh.load_state_dict(state)
    again = parallel(model, group, fresh)
    optimizer = momentum(again)
    optimizer.load_state_dict(copy.deepcopy(moments))
    reports = [hook.report(), fresh.report()]
    without = parallel(copy.deepcopy(model), group, forgetful)
    other = momentum(without)
    other.load_state_dict(copy.deepcopy(moments))
    with mock.patch.object(exchange, "MOST", 210):  # cut into three messages or four
        cut = parallel(net(), group, TopKCompression(0.1))
        cut_end = train(cut, range(6), rank, momentum(cut))
    wrong = dict(state, place=(rank + 1, dist.get_world_size(group)))
    return {
        "reports": [vars(report) for report in reports],
        "end": end,
        "cut": cut_end,
        "again": train(again, range(3, 6), rank, optimizer),
        "without": train(without, range(3, 6), rank, other),
        "error": error_of(lambda: fresh.load_state_dict(wrong)),
    }


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except CheckpointError as error:
        return str(error)
    return "no error"


def traffic(group: dist.ProcessGroup, rank: int) -> dict[str, Any]:
    """Three steps by density: report as numbers."""
    result = {}
    for name, density, warm in (("0.01", 0.01, 0), ("0.6", 0.6, 0), ("warm", 0.01, 2)):
        hook = TopKCompression(density, dense_steps=warm)
        ddp = parallel(net(), group, hook)
        train(ddp, range(3), rank, momentum(ddp))
        result[name] = vars(hook.report())
    return result


def overflow(group: dist.ProcessGroup, rank: int) -> dict[str, Any]:
    """One infinite target on the last rank in step 2, under a GradScaler."""
    result: dict[str, Any] = {}
    for kind in (TopKCompression, Unchecked):
        hook = kind(0.1)
        ddp = parallel(net(), group, hook)
        optimizer, scaler = momentum(ddp), torch.amp.GradScaler("cpu", init_scale=4.0)
        seen: list[Any] = []
        for step in range(4):
            optimizer.zero_grad()
            loss = loss_of(ddp, batch(step, rank))
            if step == 2 and rank == dist.get_world_size(group) - 1:
                loss = loss + ddp.module[4].bias[1] * torch.inf
            scaler.scale(loss).backward()
            finite = bool(gradient_of(ddp).isfinite().all())
            scaler.step(optimizer)
            scaler.update()
            rest = residual_of(hook, ddp.module)
            seen.append((finite, scaler.get_scale(), flat(ddp.parameters()), rest))
        result[kind.__name__] = seen
    return result


def half(group: dist.ProcessGroup, rank: int) -> dict[str, Any]:
    """Gradients in half precision: of three steps, all that was sent and what is left."""
    result: dict[str, Any] = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        for density in (0.1, 1.0):
            hook = TopKCompression(density)
            ddp = parallel(net().to(dtype), group, hook)
            total = local = torch.zeros((), dtype=torch.float64)
            for step in range(3):
                ddp.zero_grad()
                loss_of(ddp, batch(step, rank, dtype)).backward()
                total = total + gradient_of(ddp).double()
                alone = copy.deepcopy(ddp.module)
                alone.zero_grad()
                loss_of(alone, batch(step, rank, dtype)).backward()
                local = local + gradient_of(alone).double()
            rest = residual_of(hook, ddp.module)
            result[f"{dtype} {density}"] = (total, local, rest)
    return result


class Branches(nn.Module):
    """The second layer is used where asked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(SEED)
        self.first, self.second = nn.Linear(7, 20), nn.Linear(7, 20)
        self.never = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor, both: bool) -> Tensor:
        y: Tensor = self.first(x)
        return y + self.second(x) if both else y


def unused(group: dist.ProcessGroup, rank: int) -> dict[str, Any]:
    """Step 1: nobody uses the second layer; step 2: the last rank alone."""
    hook = TopKCompression(0.1)
    ddp = parallel(Branches(), group, hook, find_unused_parameters=True)
    second = [*ddp.module.second.parameters()]
    rests, sent = [], []
    for step in range(4):
        ddp.zero_grad()
        last = step == 2 and rank == dist.get_world_size(group) - 1
        ddp(batch(step, rank), last or step in (0, 3)).square().mean().backward()
        saved = hook.state_dict()["residual"]
        rests.append(flat([saved["second.weight"], saved["second.bias"]]))
        sent.append(None if second[0].grad is None else flat(p.grad for p in second))
    return {"rests": rests, "sent": sent}


def sparsified(group: dist.ProcessGroup, rank: int) -> dict[str, Any]:
    """Residuals and which weights learn, before and after each change, as dense matrices."""
    often, rounds = schedules.CosineDrop(9, 2), schedules.Iterative(2, 2)
    result: dict[str, Any] = {}
    for method, schedule in (("rigl", often), ("lottery", rounds)):
        for sparse in (False, True):
            model, hook = net(12, 20, 6), TopKCompression(0.05)
            model[0] = SparseLinear(12, 20, fan_in=7) if sparse else model[0]
            optimizer = momentum(model)
            options: dict[str, Any] = {"sparsity": 0.6, "params": ["0"], "schedule": schedule}
            sparsifier = Sparsifier(model, optimizer, method, **options)
            ddp, seen = parallel(model, group, hook), list[Any]()
            for step in range(5):
                optimizer.zero_grad()
                ddp(draw(9, 12, seed=100 * step + rank)).exp().mean().backward()
                optimizer.step()
                seen.append(_as_matrices(hook, sparsifier.targets[0]))
                sparsifier.step()
                seen[-1] += _as_matrices(hook, sparsifier.targets[0])
            result[f"{method} {sparse}"] = seen
    return result


def _as_matrices(hook: TopKCompression, target: Any) -> tuple[Tensor, Tensor]:
    residual = hook.state_dict()["residual"]["0.weight"]
    if hasattr(target, "learning"):
        return residual, target.learning
    dense = torch.zeros(20 * 12).index_put_((target.active,), residual.flatten())
    return dense, torch.zeros(20 * 12).index_fill_(0, target.active, 1).bool()


def convergence(group: dist.ProcessGroup, rank: int) -> dict[str, Any]:
    """Learn another network from 256 cases on each rank; final losses, and bytes."""
    x = draw(256, 30, seed=rank) * torch.logspace(0, -0.5, 30)
    y = torch.tanh(x @ draw(30, 16, seed=90) / 4) @ draw(16, 3, seed=91) / 2
    result: dict[str, Any] = {}
    for hook in (TopKCompression(1.0), TopKCompression(0.01), Forgetful(0.01)):
        ddp = DistributedDataParallel(net(30, 64, 3), process_group=group)
        hook.register(ddp)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=300)
        for step in range(300):
            chosen = (32 * step + torch.arange(32)) % 256
            optimizer.zero_grad()
            (ddp(x[chosen]) - y[chosen]).square().mean().backward()
            optimizer.step()
            decay.step()
        loss = (ddp.module(x) - y).square().mean().item()
        result[repr(hook)] = (loss, vars(hook.report()))
    return result


SCENARIOS = (dense_equal, nothing_lost, resumed, traffic, overflow, half, unused)


def worker(rank: int, folder: Path) -> None:
    warnings.simplefilter("error")
    torch.use_deterministic_algorithms(True)  # unwritten memory is NaN
    torch.set_num_threads(1)
    start(rank, max(WORLDS), folder / "init")
    result: dict[str, Any] = {}
    for world in WORLDS:
        group = dist.new_group(list(range(world)))
        if rank < world:
            for scenario in (*SCENARIOS, convergence if world == 2 else sparsified):
                result[f"{scenario.__name__} {world}"] = scenario(group, rank)
    torch.save(result, folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
