"""What the processes of tests on several ranks run; importable, as spawned processes need it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from kernel_cases import generator
from sparsity_cases import OFTEN, adam, batches, fields, locally, network, seed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from scisparse import memory
from scisparse.errors import MemoryLimitError
from scisparse.layers import SparseAttention, SparseLinear
from scisparse.patterns import sliding_window
from scisparse.sparsity import Sparsifier, finalize, ranks, schedules
from scisparse.sparsity.ablation import remove_neurons
from scisparse.sparsity.edge_target import EdgeTarget

RANKS = 2


#: What is under the sparsifier, and how it grows.
CASES = [
    *itertools.product(["masked", "edges", "attention"], ["random", "gradient"]),
    ("far", "gradient"),
    ("masked", "superset"),
    ("gates", "none"),
    ("shared", "momentum"),
    ("partly", "momentum"),
    ("partly", "gradient"),
]


class Partly(nn.Module):
    """Two layers, of which a call may leave one out, with edges or without."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank, self.calls = rank, 0
        self.always, self.first, self.second = (nn.Linear(12, 12) for _ in range(3))
        self.edges = SparseLinear(12, 6, fan_in=5)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.always(x)
        if self.calls % 3 or self.rank == 0:
            x = x + self.first(x)
        if self.calls % 4 or self.rank == 1:
            return torch.tanh(self.edges(x + self.second(x)))
        return torch.tanh(x[:, :6])


def train_together(rank: int, folder: str) -> None:
    """Train on this rank's half of each batch; save topology and weights of each case."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=RANKS)
    try:
        for kind, growth in CASES:
            torch.save(_train(rank, kind, growth), Path(folder) / f"{kind}-{growth}-{rank}.pt")
        for name, found in (("kept", _exchange(rank)), ("forms", _forms(rank))):
            torch.save(found, Path(folder) / f"{name}-{rank}.pt")
    finally:
        dist.destroy_process_group()


def _attention(width: int = 5) -> nn.Module:
    return nn.Sequential(SparseAttention(sliding_window(40, width), 2, 2), nn.Linear(2, 3))


def _shared() -> nn.Module:
    """Layers that hand on weights to each other."""
    return nn.Sequential(SparseLinear(12, 20, fan_in=12), nn.Tanh(), nn.Linear(20, 6))


def _exchange(rank: int) -> dict[str, Any]:
    """What ranks exchange, before and after, and scales of the loss, the same question thrice."""
    own = [torch.rand(3, generator=generator(rank)) for _ in range(3)]
    before = [one.clone() for one in own]
    for exchange, one in zip((ranks.total, ranks.average, ranks.agree), own, strict=True):
        exchange(one)
    model = _shared()
    options: dict[str, Any] = {"sparsity": 0.5, "total_steps": 100}
    sparsifier = Sparsifier(model, adam(model), "sparse_momentum", **options)
    model(torch.randn(4, 12, generator=generator(rank))).square().sum().backward()
    (target, _) = sparsifier.targets
    assert isinstance(target, EdgeTarget)
    weight = model.get_parameter("0.weight")
    assert weight.grad is not None
    weight.grad = ranks.average(weight.grad) / 4
    scales = [target._scale(sparsifier.rules) for _ in range(3)]
    if rank == 1:
        target.record(True)  # knows no gradient any more
    alone = target._scale(sparsifier.rules)
    return {"before": before, "after": own, "scales": scales, "alone": alone}


def _forms(rank: int) -> dict[str, Any]:
    """Final forms where ranks measure the opposite, and where one has no room, or a hook."""
    with pytest.MonkeyPatch.context() as patch:
        fast = ("dense", "condensed")[rank]
        times = {"dense": 2.0, "condensed": 2.0, fast: 1.0}
        patch.setattr(finalize, "_side_by_side", lambda runs: {name: times[name] for name in runs})
        measured, hooked = _end("auto"), _end("auto", hooked=rank == 0)
        patch.setattr(finalize, "available_bytes", lambda device: 0 if rank else 1 << 40)
        full = _end("auto")
        patch.setattr(memory, "available_bytes", lambda device: 0 if rank else 1 << 40)
        with pytest.raises(MemoryLimitError, match="take to='condensed'"):
            _end("dense")
    return {"measured": measured, "full": full, "hooked": hooked, "left": _left(rank)}


def _left(rank: int) -> list[list[int]]:
    """Sizes of weights where one rank logs what a layer with an idle neuron gives."""
    seed()
    pairs = [nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)) for _ in range(2)]
    model = nn.Sequential(*pairs)
    for pair in pairs:
        pair.get_parameter("0.weight").data[1] = 0
    if rank == 0:
        pairs[0].get_submodule("0").register_forward_hook(lambda *_: None)
    remove_neurons(model)
    return [list(p.shape) for p in model.parameters()]


def _end(to: str, hooked: bool = False) -> list[str]:
    model = _shared()
    if hooked:
        model.get_submodule("0").register_forward_hook(lambda *_: None)
    sparsifier = Sparsifier(model, None, "rigl", sparsity=0.5, total_steps=100)
    sparsifier.finalize(to)
    return [str(form) for form in sparsifier.forms]


def _train(rank: int, kind: str, growth: str) -> dict[str, Any]:
    torch.manual_seed(generator(1).initial_seed())  # the same weights on all ranks
    on_fields = {"edges": locally, "attention": _attention, "far": lambda: _attention(1)}
    models: dict[str, Any] = {"partly": lambda: Partly(rank), "shared": _shared, **on_fields}
    model: nn.Module = models.get(kind, network)()
    data = fields(12) if kind in on_fields else batches(12)
    optimizer = adam(model)
    # Random numbers of the ranks differ: the choices must not.
    options: dict[str, Any] = {"method": "rigl", "growth": growth, "schedule": OFTEN}
    if kind == "attention":
        options |= {"params": ["0.edges"], "candidates": sliding_window(40, 9)}
    if kind == "gates":
        options = {"method": "l0", "total_steps": 12}
    if kind == "shared":
        options["method"] = "sparse_momentum"
    if kind == "far":
        schedule = schedules.CosineDrop(end=4, every=2, fraction=0.5)
        options |= {"params": ["0.edges"], "teleconnections": 1, "schedule": schedule}
    options |= {} if kind == "far" else {"sparsity": 0.6}
    sparsifier = Sparsifier(model, optimizer, seed=rank, **options)
    together = DistributedDataParallel(model, find_unused_parameters=kind == "partly")
    for k, (x, y) in enumerate(data):
        half = slice(rank * len(x) // RANKS, (rank + 1) * len(x) // RANKS)
        optimizer.zero_grad()
        (together(x[half]) - y[half]).square().mean().backward()
        if k == 1:  # a change is due, and one rank alone has seen an overflow
            weight = next(model.parameters())
            assert weight.grad is not None
            weight.grad.mul_(torch.inf if rank == 0 else 1.0)
        else:
            optimizer.step()
        sparsifier.step()
        if k == 1:
            assert all(layer.churn == 0 for layer in sparsifier.report().layers)
    topology = [
        t.active if isinstance(t, EdgeTarget) else t.state_dict()["mask"]
        for t in sparsifier.targets
    ]
    churn = [layer.churn for layer in sparsifier.report().layers]
    return {"topology": topology, "weights": list(model.state_dict().values()), "churn": churn}
