"""The audit of far slots of attention, whose edges carry no weights that could be held at 0.

For some steps the layer does without the edges under test, and for each it is asked whether the
loss misses it. A sample is the edge's effect on one batch entry (formulas in
:mod:`scisparse.sparsity.attention_effects`) less the mean effect of the other candidates of its
site: what any further source would do, such as diluting the row, is no link. With ``S`` samples
``u``, ``z = sum(u) / sqrt(sum(u^2))`` is close to a standard normal for a source that tells nothing
(Rao's score test with the empirical Fisher information), and far below 0 for one that is missed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from scisparse.kernels.graph_attention.primitives import sum_rows
from scisparse.sparsity.candidates import Chunk
from scisparse.sparsity.far import FarSlots
from scisparse.sparsity.ranks import total

__all__ = ["AttentionAudit", "evidence", "normal_bound"]


def normal_bound(probability: float) -> float:
    """What a standard normal number is below with a probability."""
    return float(torch.special.ndtri(torch.tensor(probability, dtype=torch.float64)))


def evidence(far: FarSlots, chunk: Chunk, effects: Iterable[Tensor]) -> Tensor:
    """Sum of the samples ``u`` of all candidates in a chunk, and of their squares, ``[2, n]``.

    Parameters
    ----------
    far
        The slots.
    chunk
        Which candidates.
    effects
        Their effects ``[b, n]``, some batch entries after others.
    """
    contrast, sums = _Contrast(far, chunk), torch.zeros(2, chunk.count, dtype=torch.float64)
    for some in effects:
        u = contrast(some)
        sums += torch.stack([u.sum(0), u.square().sum(0)]).cpu()
    return sums


class AttentionAudit:
    """A running test of edges that an attention layer does without.

    Parameters
    ----------
    numbers
        Candidates under test, rising, int64 ``[n]``.
    """

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers
        self.steps = self.passes = 0  # with finite gradients

    def passed(
        self,
        far: FarSlots,
        samples: Callable[[Chunk], Iterable[Tensor]],
        width: int,
        significance: float,
    ) -> Tensor:
        """Mark the edges that the loss misses, booleans ``[n]``.

        Parameters
        ----------
        far
            The slots.
        samples
            Gives effects ``[b, n]`` of all candidates in a chunk, some batch entries at a time.
        width
            Numbers that a sample of a candidate is made of.
        significance
            Chance that a source which tells nothing passes.
        """
        sums = torch.zeros(2, self.numbers.numel(), dtype=torch.float64)
        first = 0
        for chunk in far.candidates.chunks(width):
            places = chunk.places(self.numbers)
            if not places.numel():
                continue
            part = slice(first, first + places.numel())
            sums[:, part] = evidence(far, chunk, samples(chunk))[:, places]
            first = part.stop
        sums = total(sums)
        passed: Tensor = sums[0] < normal_bound(significance) * sums[1].sqrt()
        return passed

    def state_dict(self) -> dict[str, Any]:
        """Everything."""
        return dict(vars(self))

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> AttentionAudit:
        """Go on where :meth:`state_dict` was taken."""
        audit = cls.__new__(cls)
        vars(audit).update(state)
        return audit


class _Contrast:
    """Effects of the candidates in a chunk beside the others that slots of their site may hold."""

    def __init__(self, far: FarSlots, chunk: Chunk) -> None:
        fan_in = far.candidates.fan_in[chunk.first_site : chunk.last_site]
        self.row_ptr = torch.cat([torch.zeros(1, dtype=torch.int64), fan_in.cumsum(0)])
        self.may = far.may_grow(chunk)
        self.site = torch.arange(fan_in.numel()).repeat_interleave(fan_in)
        number = sum_rows(self.may.double()[None, :, None], self.row_ptr)[0, :, 0]
        self.others = (number[self.site] - self.may.double()).clamp(min=1)

    def __call__(self, effects: Tensor) -> Tensor:
        """Samples ``[b, n]`` of effects ``[b, n]``, in float64."""
        device, own = effects.device, effects.double()
        may, site = self.may.to(device), self.site.to(device)
        of_site = sum_rows((own * may)[..., None], self.row_ptr.to(device))[..., 0]
        return own - (of_site[:, site] - own * may) / self.others.to(device)
