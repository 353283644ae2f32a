"""What training leaves behind: layers without what was pruned, in the form that runs fastest."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scisparse.errors import BackendError, MemoryLimitError, OptionError
from scisparse.layers.linear import SparseLinear
from scisparse.layers.rewiring import is_trained_together
from scisparse.memory import available_bytes, check_fits
from scisparse.names import choice
from scisparse.sparsity import optimizer_state
from scisparse.sparsity.ablation import remove_neurons
from scisparse.sparsity.attended import AttentionTarget
from scisparse.sparsity.edge_target import EdgeTarget
from scisparse.sparsity.forms import (
    CompressedLinear,
    SemiStructuredLinear,
    StoredLinear,
    check_2_of_4,
    check_packs,
    computed_dtype,
)
from scisparse.sparsity.masked import MaskedTarget
from scisparse.sparsity.ownership import has_hooks
from scisparse.sparsity.ranks import agree, every
from scisparse.sparsity.rewired import RewiredTarget
from scisparse.sparsity.target import Target

__all__ = ["FORMS", "Form", "check_form", "check_free", "finalize_layers"]

logger = logging.getLogger("scisparse.sparsity")

#: What a linear layer may become; ``"auto"`` measures and takes the fastest.
FORMS = ("auto", "condensed", "dense", "csr", "bsr", "2:4")


@dataclass(frozen=True)
class Form:
    """What became of a layer.

    Parameters
    ----------
    name
        Of the weight in the model.
    form
        ``"condensed"``: its edges alone; ``"dense"``: zeros stay; ``"csr"``, ``"bsr"``, ``"2:4"``.
    milliseconds
        Of a forward pass, by form, where it was measured.
    """

    name: str
    form: str
    milliseconds: dict[str, float]

    def __str__(self) -> str:
        times = ", ".join(f"{form} {ms:.3g} ms" for form, ms in self.milliseconds.items())
        return f"{self.name}: {self.form}" + (f" ({times})" if times else "")


def check_form(to: str, model: nn.Module, targets: Sequence[Target]) -> None:
    """Raise unless linear layers can take this form."""
    if to not in FORMS:
        raise OptionError(choice("to", to, FORMS))
    for target in targets:
        if not _may_replace(model, target):
            continue
        if isinstance(target.module, SparseLinear) and to not in ("auto", "condensed"):
            _check_room(target.name, target.module)
        if to == "2:4":
            check_2_of_4(target.name, _mask(target))
    if to == "2:4" and not all(p.is_cuda for p in model.parameters()):
        raise BackendError(
            "2:4 sparse weights run on NVIDIA GPUs alone; move the model there, or take "
            "to='condensed'"
        )
    for target in targets if to == "2:4" else ():
        layer: Any = target.module
        if _may_replace(model, target):
            size = (layer.out_features, layer.in_features)
            check_packs(target.name, size, computed_dtype(layer.weight, "cuda"))


def check_free(targets: Sequence[Target]) -> None:
    """Raise on all ranks where one of them still trains a weight that will lose edges."""
    for target in targets:
        kept, weight = _kept_edges(target), target.parameter
        if kept is None or weight is None:
            continue
        may_lose = kept.numel() < len(weight) or (
            isinstance(target, EdgeTarget) and target.in_audit
        )
        if may_lose and not every(not is_trained_together(weight), weight):
            raise OptionError(
                f"{target.name} {list(weight.shape)} is to lose its rows without an edge, and "
                "DistributedDataParallel holds it; delete the wrapper and the last loss on all "
                "ranks, call finalize(), and wrap what it returns to train on"
            )


def _check_room(name: str, layer: SparseLinear) -> None:
    """Raise on all ranks where one of them has no room for a layer as a dense matrix."""
    what, otherwise = f"{name} as a dense matrix", "take to='condensed'"
    error = None
    try:
        check_fits(_dense_bytes(layer), layer.weight.device, dict, what=what, otherwise=otherwise)
    except MemoryLimitError as found:
        error = found
    if not every(error is None, layer.weight):
        raise error or MemoryLimitError(f"{what} does not fit on another rank; {otherwise}")


def finalize_layers(
    model: nn.Module,
    targets: Sequence[Target],
    to: str,
    batch: int,
    optimizer: Optimizer | None = None,
) -> tuple[nn.Module, list[Form]]:
    """Remove idle neurons, and give every layer its last form.

    Parameters
    ----------
    model
        Changed in place, but for a model that is itself a linear layer.
    targets
        The layers, and what of them is active.
    to
        One of :data:`FORMS`, for linear layers, ``nn.Linear`` and ``SparseLinear``, but for those
        with hooks, which a new layer would not call; other pattern layers lose their pruned edges
        in any case, and convolutions keep zeros.
    batch
        Rows of the input that is timed.
    optimizer
        Whose state loses what pattern layers lose, as they may be trained further.

    Returns
    -------
    tuple
        The model and what became of each layer.
    """
    for target in targets:
        target.enforce()
    removed = remove_neurons(model) if to != "2:4" else 0  # runs of 4 inputs would shift
    for target in targets if removed else []:
        target.refresh(model)
    logger.info("removed %d idle neurons", removed)
    forms = []
    for target in targets:
        form = Form(target.name, "dense", {})
        layer: Any = target.module
        new: Any
        kept = _kept_edges(target)
        if kept is not None:
            optimizer_state.rewire(optimizer, layer, layer.pattern.select(kept), kept)
        if kept is not None or isinstance(target, AttentionTarget):  # has edges and nothing else
            form = Form(target.name, "condensed", {})
        if _may_replace(model, target):
            new, form = _linear(target, to, batch)
            target.stored = new.values if isinstance(new, StoredLinear) else new.weight
            model = _replace(model, target.name.rpartition(".")[0], new)
        forms.append(form)
    for form in forms:
        logger.info("%s", form)
    return model, forms


def _may_replace(model: nn.Module, target: Target) -> bool:
    """Whether a layer is a plain linear one without hooks, whose weight no other module reads.

    A module that reads the weight of a child by itself says so in `reads_weights`.
    """
    path, _, name = target.name.rpartition(".")[0].rpartition(".")
    parent: Any = model.get_submodule(path)
    holders = [
        name
        for name, weight in model.named_parameters(remove_duplicate=False)
        if weight is target.parameter
    ]
    reads_children = isinstance(parent, nn.TransformerEncoderLayer | nn.MultiheadAttention)
    reads_children |= name in getattr(parent, "reads_weights", ())
    linear = type(target.module) in (nn.Linear, SparseLinear)
    return linear and len(holders) == 1 and not reads_children and not has_hooks(target.module)


def _kept_edges(target: Target) -> Tensor | None:
    """Edges of a pattern layer with weights that are not pruned; ``None``: it keeps zeros."""
    layer: Any = target.module
    if isinstance(target, RewiredTarget):
        return torch.arange(layer.pattern.num_edges)  # spare rows go
    if not isinstance(target, MaskedTarget) or not hasattr(layer, "rewire"):
        return None
    keep = target.final_mask.reshape(target.mask.shape[0], -1).any(1).cpu()
    if getattr(layer, "tie", None) is not None or keep.numel() != layer.pattern.num_edges:
        return None
    return keep.nonzero().squeeze(1)


def _linear(target: Target, to: str, batch: int) -> tuple[nn.Module, Form]:
    layer: Any = target.module
    if to == "auto" and isinstance(layer, SparseLinear):
        available = available_bytes(layer.weight.device)
        room = available is None or 2 * _dense_bytes(layer) <= available
        if not every(room, layer.weight):
            to = "condensed"  # there is no room to measure in
    if to != "auto":
        return _as(target, to), Form(target.name, to, {})
    forms = {form: _as(target, form) for form in ("dense", "condensed")}
    x = torch.randn(batch, layer.in_features, device=layer.weight.device).to(layer.weight)
    own = _side_by_side({form: _run(module, x) for form, module in forms.items()})
    # Ranks measure different times, and need one model.
    agreed = agree(torch.tensor(list(own.values()), dtype=torch.float64))
    times = dict(zip(own, agreed.tolist(), strict=True))
    best = min(times, key=lambda form: times[form])
    return forms[best], Form(target.name, best, times)


def _dense_bytes(layer: SparseLinear) -> int:
    return layer.out_features * layer.in_features * layer.weight.element_size()


def _mask(target: Target) -> Tensor:
    """Weights of a linear layer that are active, booleans ``[M, N]``."""
    if isinstance(target.module, SparseLinear):
        return target.module.pattern.to_dense().to(target.module.weight.device)
    assert isinstance(target, MaskedTarget)
    return target.mask


def _as(target: Target, form: str) -> nn.Module:
    """Return a linear layer in another form."""
    layer: Any = target.module
    if form == "condensed":
        sparse = isinstance(layer, SparseLinear)
        return layer if sparse else SparseLinear.from_dense(layer, _mask(target))
    linear: nn.Linear = layer.to_dense() if isinstance(layer, SparseLinear) else layer
    if form == "dense":
        return linear
    mask = _mask(target)
    with torch.no_grad():
        weight = linear.weight.masked_fill(~mask, 0)
    if form == "2:4":
        made: nn.Module = SemiStructuredLinear.of(weight, linear.bias)
    else:
        block = 1 if form == "csr" else _block(mask)
        made = CompressedLinear.of(weight, linear.bias, block=block)
    return made.train(linear.training)


def _block(mask: Tensor) -> int:
    """Side of the largest block of a power of two, up to 32, all active or all pruned."""
    for size in (32, 16, 8, 4, 2):
        if mask.shape[0] % size or mask.shape[1] % size:
            continue
        blocks = mask.unfold(0, size, size).unfold(1, size, size).float().mean((2, 3))
        if bool(((blocks == 0) | (blocks == 1)).all()):
            return size
    return 1


def _run(module: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            out = module(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        return out

    return run


def _side_by_side(runs: dict[str, Callable[[], object]], rounds: int = 15) -> dict[str, float]:
    """Median milliseconds of each, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(rounds + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if k >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def _replace(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    if not path:
        return module
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
    return model
