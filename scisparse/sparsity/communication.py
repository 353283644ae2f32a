"""Gradients of data-parallel training, sent sparse: only the largest entries, and none is lost.

:class:`TopKCompression` is a communication hook of ``DistributedDataParallel``; the training loop
stays as it is.
"""

# No `from __future__ import annotations`: DistributedDataParallel compares the annotations of a
# hook with classes, and refuses strings.
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from torch.utils.weak import WeakTensorKeyDictionary

from scisparse.errors import CheckpointError, OptionError
from scisparse.sparsity import exchange, optimizer_state
from scisparse.sparsity.exchange import Share, Traffic

__all__ = ["TopKCompression", "Traffic"]


class TopKCompression:
    r"""Send the largest entries of the gradient, and keep the rest for later (Stich et al. 2018).

    On each rank r, for each parameter, with gradient g and residual e (0 at first)::

        a_r = g_r + e_r
        s_r = a_r where |a_r| is among the k largest, else 0        k = max(1, round(density * n))
        e_r = a_r - s_r
        gradient on every rank = (s_0 + s_1 + ... + s_{R-1}) / R

    Nothing is lost: what was sent and the residual always add up to all gradients so far.

    Parameters
    ----------
    density
        Fraction of the entries of a parameter's gradient that each rank sends, in (0, 1].
    dense_steps
        So many steps at first send everything.

    Raises
    ------
    OptionError
        An argument is out of range.

    Notes
    -----
    *Exchange.* The ranks gather each other's pairs of index (4 bytes) and value (v = 4 bytes; 8 for
    float64), bucket by bucket, and add them in the order of ranks: all ranks get the same bits. A
    rank receives ``(R - 1) * (4 + v) * k`` bytes; a dense all-reduce of entries of w bytes takes
    ``2 * (R - 1) / R * w * n``. A parameter is sent whole, its residual included, when pairs are no
    cheaper: when ``R * k``, which bounds the union of the ranks' non-zeros, reaches the threshold
    ``delta = 2 * w * n / (4 + v)`` (SparCML's delta, for these costs). That is n for float32, so
    that a density of 1 / R or more is dense, and n / 2 for float16 and bfloat16. On one rank
    everything is dense, and nothing is sent. Whole parameters are summed in the order of ranks too:
    each rank adds up a part of the entries, then all gather the parts.

    *Choice per parameter.* DistributedDataParallel makes other buckets after the first step, and
    again after a restart. As the choice of entries and the residual belong to a parameter, this
    changes no number: a resumed run has the bits of an uninterrupted one.

    *Numbers.* Residual, pairs and sums are float32, or float64 for float64 gradients. A finite
    mean beyond the range of the gradient's dtype becomes the largest number of that dtype.

    *Overflow.* An entry that is not finite is larger than all others, so it reaches every rank.
    Then the residuals of all parameters, on all ranks, stay as they were before the step, as the
    optimizer will skip it. Residuals are in units of the scaled loss: when a
    ``GradScaler`` doubles its scale, what is left over counts half, once.

    *Moving edges.* Where a :class:`~scisparse.Sparsifier` moves, drops or grows connections, their
    residuals go with them as the state of the optimizer does: new ones start at 0, and what is
    pruned has none.

    *Unused parameters.* Where a parameter's gradient is 0 on a rank, that rank sends 0 and its
    residual waits: DistributedDataParallel drops what arrives for a parameter that no rank used.

    *Cost.* 4 bytes of memory for an entry, and 4 more during the backward pass. The hook returns
    when the exchange is done (on a GPU: queued on the stream of the backward pass), so it saves
    bytes but does not overlap with computation; it pays where the network is slow.

    References
    ----------
    Stich, S. U., Cordonnier, J.-B., Jaggi, M. (2018). Sparsified SGD with memory.
    https://doi.org/10.48550/arXiv.1809.07599

    Alistarh, D., Hoefler, T., Johansson, M., Khirirat, S., Konstantinov, N., Renggli, C. (2018).
    The convergence of sparsified gradient methods. https://doi.org/10.48550/arXiv.1809.10505

    Lin, Y., Han, S., Mao, H., Wang, Y., Dally, W. J. (2018). Deep gradient compression: reducing
    the communication bandwidth for distributed training.
    https://doi.org/10.48550/arXiv.1712.01887

    Renggli, C., Ashkboos, S., Aghagolzadeh, M., Alistarh, D., Hoefler, T. (2019). SparCML:
    high-performance sparse communication for machine learning.
    https://doi.org/10.1145/3295500.3356222

    Examples
    --------
    In each process, once ``torch.distributed`` is initialised: ``compression.register(model)``.

    >>> compression = TopKCompression(density=0.01, dense_steps=100)
    >>> compression
    TopKCompression(density=0.01, dense_steps=100)
    >>> compression.report()
    Traffic(steps=0, dense_steps=0, sent=0, received=0, dense=0)
    """

    def __init__(self, density: float, *, dense_steps: int = 0) -> None:
        if not 0 < density <= 1:
            raise OptionError(f"`density` (={density!r}) must be above 0 and at most 1: try 0.01")
        if dense_steps < 0:
            raise OptionError(f"`dense_steps` (={dense_steps!r}) must be a whole number: try 0")
        self.density, self.dense_steps = density, dense_steps
        self._residual: dict[str, Tensor] = {}
        self._counts = {"steps": 0, "dense_steps": 0, "sent": 0, "dense": 0}
        self._place: tuple[int, int] | None = None  # rank and world size that the residual is of
        # Of the model that it is registered with, which it does not keep alive.
        self._group: dist.ProcessGroup | None = None
        self._names = WeakTensorKeyDictionary()
        self._shapes: dict[str, torch.Size] = {}
        # Of the step under way.
        self._pending: dict[str, Tensor] = {}
        self._finite: list[Tensor] = []
        self._any_pairs = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}(density={self.density}, dense_steps={self.dense_steps})"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickle as options and state; the copy is registered with no model."""
        return _restore, (type(self), self.density, self.dense_steps, self.state_dict())

    def register(self, model: DistributedDataParallel) -> None:
        """Make this the communication hook of `model`, before its first backward pass.

        Parameters
        ----------
        model
            A model that has no other hook.

        Raises
        ------
        OptionError
            `model` is no ``DistributedDataParallel``, or this object serves a model already.
        CheckpointError
            A state loaded before does not fit `model`, or comes from another rank.
        """
        if not isinstance(model, DistributedDataParallel):
            raise OptionError(
                f"`model` (={type(model).__name__}) must be a DistributedDataParallel: wrap it"
            )
        if self._group is not None:
            raise OptionError(f"{self!r} serves a model already: make another one for each model")
        group: dist.ProcessGroup = model.process_group
        named = [(n, p) for n, p in model.module.named_parameters() if p.requires_grad]
        shapes = {name: parameter.shape for name, parameter in named}
        place = (dist.get_rank(group), dist.get_world_size(group))
        _check_fit(self._residual, self._place, shapes, place)
        model.register_comm_hook(self, _hook)
        self._group, self._place, self._shapes = group, place, shapes
        self._names = WeakTensorKeyDictionary({parameter: name for name, parameter in named})
        optimizer_state.join(self)

    def state_dict(self) -> dict[str, Any]:
        """Residuals of this rank and counters; each rank saves its own, between steps.

        Returns
        -------
        dict
            Tensors, numbers and names only: ``torch.load`` reads it with ``weights_only=True``.
        """
        residual = {name: rest.clone() for name, rest in self._residual.items()}
        return {"place": self._place, "counts": dict(self._counts), "residual": residual}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state of the same rank, before or after :meth:`register`.

        Parameters
        ----------
        state
            What :meth:`state_dict` returned; tensors may be on any device.

        Raises
        ------
        CheckpointError
            `state` is something else, has other parameters, or is of another rank or number of
            ranks.
        """
        try:
            place, counts, residual = (state[key] for key in ("place", "counts", "residual"))
            counts = {key: int(counts[key]) for key in self._counts}
            residual = {str(name): torch.as_tensor(rest).clone() for name, rest in residual.items()}
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"`state` (a {type(state).__name__}) must hold 'place', 'counts' and 'residual': "
                "give what `state_dict` returned"
            ) from error
        place = None if place is None else (int(place[0]), int(place[1]))
        if self._group is not None:
            _check_fit(residual, place, self._shapes, self._place)
        else:
            self._place = place
        self._residual, self._counts = residual, counts

    def report(self) -> Traffic:
        """Count what was exchanged.

        Returns
        -------
        Traffic
            Bytes sent and received so far, what dense would have cost, and steps sent dense.
        """
        return Traffic(received=self._counts["sent"], **self._counts)

    def kept_of(self, parameter: nn.Parameter) -> tuple[dict[str, Tensor], str]:
        """Where the residual of a parameter is held, and its name; for who moves weights.

        Parameters
        ----------
        parameter
            Of any model.

        Returns
        -------
        tuple
            All residuals by name, and the name of this one.
        """
        return self._residual, self._names.get(parameter, "")

    def _reduce(self, names: Sequence[str], gradients: Sequence[Tensor], world: int) -> None:
        """Replace the gradients of a bucket by their means over the ranks."""
        pairs: list[Share] = []
        whole: list[Share] = []
        for name, gradient in zip(names, gradients, strict=True):
            share = self._share(name, gradient, world)
            (pairs if share.kept < gradient.numel() else whole).append(share)
            self._counts["dense"] += 2 * (world - 1) * gradient.nbytes // world
        for message in exchange.messages(pairs):
            self._send_pairs(message, world)
        if whole:
            self._send_whole(whole, world)

    def _share(self, name: str, gradient: Tensor, world: int) -> Share:
        wide = torch.promote_types(gradient.dtype, torch.float32)
        total = gradient.to(wide, copy=True).view(-1)
        if name in self._residual:
            total += self._residual[name].to(total).view(-1)
        n = gradient.numel()
        k = min(n, max(1, round(self.density * n)))
        cheaper = world * k * (exchange.INDEX_BYTES + wide.itemsize) < 2 * gradient.nbytes
        sparse = (
            cheaper
            and world > 1
            and n <= exchange.MOST
            and self._counts["steps"] >= self.dense_steps
        )
        return Share(name, gradient, total, (gradient != 0).any(), k if sparse else n)

    def _send_pairs(self, shares: Sequence[Share], world: int) -> None:
        first, indices, values = 0, [], []
        for share in shares:
            chosen = exchange.largest(share.total, share.kept)
            sent = torch.where(share.used, share.total[chosen], 0)
            share.total.index_add_(0, chosen, sent, alpha=-1)
            indices.append(chosen + first)
            values.append(sent)
            first += share.total.numel()
        index, value = torch.cat(indices).int(), torch.cat(values)
        self._any_pairs = True
        self._counts["sent"] += (world - 1) * (index.nbytes + value.nbytes)
        total = exchange.sum_pairs(index, value, first, self._group)
        self._receive(shares, total / world)

    def _send_whole(self, shares: Sequence[Share], world: int) -> None:
        sent = [exchange.cast(torch.where(s.used, s.total, 0), s.gradient.dtype) for s in shares]
        for share, part in zip(shares, sent, strict=True):
            share.total.sub_(part)
        whole = torch.cat(sent)
        if world > 1:
            part_bytes = exchange.part_size(whole.numel(), world) * whole.itemsize
            self._counts["sent"] += 2 * (world - 1) * part_bytes
            whole = exchange.mean_whole(whole, shares[0].total.dtype, self._group)
        self._receive(shares, whole)

    def _receive(self, shares: Sequence[Share], mean: Tensor) -> None:
        sizes = [share.total.numel() for share in shares]
        for share, part in zip(shares, mean.split(sizes), strict=True):
            shape, dtype = share.gradient.shape, share.gradient.dtype
            share.gradient.copy_(exchange.cast(part, dtype).view(shape))
            self._pending[share.name] = share.total.view(shape)
        self._finite.append(mean.isfinite().all())

    def _begin(self) -> None:
        # A backward pass that was broken off may have left something.
        self._pending, self._finite, self._any_pairs = {}, [], False

    def _commit(self) -> None:
        """Take over the new residuals, unless a gradient of the step was not finite."""
        device = self._finite[0].device
        finite = torch.stack([flag.to(device) for flag in self._finite]).all()
        for name in list(self._pending):
            rest = self._pending.pop(name)
            before = self._residual.get(name, torch.zeros((), dtype=rest.dtype)).to(rest)
            self._residual[name] = torch.where(finite.to(rest.device), rest, before)
        self._counts["steps"] += 1
        self._counts["dense_steps"] += not self._any_pairs


@torch.no_grad()
def _hook(
    state: TopKCompression,
    bucket: dist.GradBucket,  # type: ignore[name-defined]  # torch defines it where mypy cannot see
) -> Future[Tensor]:
    buffer = bucket.buffer()
    if buffer.is_sparse:
        raise OptionError("a gradient is a sparse tensor; build its embedding with `sparse=False`")
    if bucket.index() == 0:
        state._begin()
    names = [state._names[parameter] for parameter in bucket.parameters()]
    state._reduce(names, bucket.gradients(), dist.get_world_size(state._group))
    if bucket.is_last():
        state._commit()
    future: Future[Tensor] = Future(devices=[] if buffer.is_cpu else [buffer.device])
    future.set_result(buffer)
    return future


def _check_fit(
    residual: Mapping[str, Tensor],
    origin: tuple[int, int] | None,
    shapes: Mapping[str, torch.Size],
    place: tuple[int, int] | None,
) -> None:
    """Raise unless `residual` is of these parameters, and of this rank."""
    if not residual:
        return
    if origin != place:
        old, new = ("no rank" if p is None else f"rank {p[0]} of {p[1]}" for p in (origin, place))
        raise CheckpointError(f"`state` is of {old}, this is {new}: each rank loads what it saved")
    for name in sorted(residual.keys() | shapes.keys()):
        saved = tuple(residual[name].shape) if name in residual else None
        needed = tuple(shapes[name]) if name in shapes else None
        if saved != needed:
            raise CheckpointError(
                f"`state` has {name!r} with shape {saved}, the model with {needed}: build the "
                "model that was saved"
            )


def _restore(
    kind: type[TopKCompression], density: float, dense_steps: int, state: Mapping[str, Any]
) -> TopKCompression:
    compression = kind(density, dense_steps=dense_steps)
    compression.load_state_dict(state)
    return compression
