"""Structures of layers over patterns: edges that stand or fall together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from scisparse.errors import OptionError
from scisparse.sparsity.row_groups import RowGroups
from scisparse.sparsity.select import best, best_of_groups
from scisparse.sparsity.structure import nearest
from scisparse.sparsity.structures import (
    NM,
    VNM,
    Block,
    Channels,
    ConstantFanIn,
    Rows,
    Sites,
    Structure,
    Taps,
    Unstructured,
)

__all__ = ["EdgeGroups", "OutputChannels", "SiteRows", "for_pattern"]


@dataclass(frozen=True, eq=False)
class EdgeGroups(Structure):
    """Rows of a weight ``[W, C, O]`` with the same label stand or fall together.

    Groups need not be of one size: those with the highest mean score stay, as many as come nearest
    to the number of weights that is asked for, the fewer of two equally near, and at least one.

    Parameters
    ----------
    labels
        Group of each row, int64 ``[W]``.

    Examples
    --------
    >>> import torch
    >>> taps = EdgeGroups(torch.tensor([0, 1, 0, 1]))
    >>> taps.choose(torch.tensor([[1.0], [2.0], [4.0], [2.0]]), 2).flatten().tolist()
    [True, False, True, False]
    """

    labels: Tensor = field(repr=False)

    def pool(self, score: Tensor) -> Tensor:
        """Sum over each group."""
        labels = self.labels.to(score.device)
        sums = score.new_zeros(int(labels.max()) + 1 if labels.numel() else 0)
        return sums.index_add_(0, labels, score.reshape(score.shape[0], -1).sum(1))

    def expand(self, units: Tensor, shape: Sequence[int]) -> Tensor:
        """Repeat the value of a group over its weights."""
        rows = units[self.labels.to(units.device)]
        return rows.reshape(-1, *[1] * (len(shape) - 1)).expand(tuple(shape))

    def choose(self, score: Tensor, count: int) -> Tensor:
        """Keep whole groups with the highest mean scores."""
        sizes = self.pool(torch.ones_like(score, dtype=torch.float64))
        order = (self.pool(score) / sizes.clamp(min=1)).argsort(descending=True, stable=True)
        total = sizes[order].cumsum(0)
        keep = torch.zeros_like(sizes, dtype=torch.bool)
        if count and keep.numel():
            keep[order[: int((total - count).abs().argmin()) + 1]] = True
        return self.expand(keep, score.shape)


@dataclass(frozen=True, eq=False)
class OutputChannels(Structure):
    """Whole output channels of a weight ``[W, C, O]``, at all sites together.

    Parameters
    ----------
    group
        Group of channels that each row is of, int64 ``[W]``, as many of each; ``None``: all are of
        one. Groups have O channels each, of their own.
    groups_of_channels
        Number of groups.

    Examples
    --------
    >>> import torch
    >>> OutputChannels().choose(torch.tensor([[[1.0, 3.0]], [[1.0, 0.0]]]), 2)[:, 0].tolist()
    [[False, True], [False, True]]
    """

    group: Tensor | None = field(default=None, repr=False)
    groups_of_channels: int = 1

    def _group(self, rows: int, device: torch.device) -> Tensor:
        one = torch.zeros(rows, dtype=torch.int64) if self.group is None else self.group
        return one.to(device)

    def pool(self, score: Tensor) -> Tensor:
        """Sum over edges and input channels."""
        sums = score.new_zeros(self.groups_of_channels, score.shape[2])
        group = self._group(len(score), score.device)
        return sums.index_add_(0, group, score.sum(1)).flatten()

    def expand(self, units: Tensor, shape: Sequence[int]) -> Tensor:
        """Repeat the value of a channel."""
        of_row = units.reshape(-1, 1, shape[2])[self._group(shape[0], units.device)]
        return of_row.expand(tuple(shape))

    def quota(self, shape: Sequence[int], count: int) -> Tensor:
        """Whole channels."""
        size = math.prod(shape[:2]) / self.groups_of_channels
        return torch.tensor([max(min(1, count), nearest(count, max(1, size)))])


@dataclass(frozen=True, eq=False)
class SiteRows(Rows):
    """Edges of a pattern layer, of which a budget says how many each group of sites keeps.

    Parameters
    ----------
    site
        Of each edge, int64 ``[E]``.
    row_groups
        Group of each site and edges of each group, for a number of edges.
    """

    site: Tensor = field(repr=False)
    row_groups: RowGroups = field(repr=False)

    def groups(self, shape: Sequence[int]) -> Tensor | None:
        """Group of each edge."""
        group, _ = self.row_groups(self.site.numel())
        return None if group is None else group[self.site]

    def quota(self, shape: Sequence[int], count: int) -> Tensor:
        """Edges of each group."""
        return self.row_groups(round(count / max(1, math.prod(shape[1:]))))[1]

    def choose(self, score: Tensor, count: int) -> Tensor:
        """Keep the best of each group.

        Quotas are rounded anew at each sparsity, so that a group may have lost an edge that its
        quota now has room for: the best edges of others fill it, and the sum is kept.
        """
        units, groups = self.pool(score), self.groups_on(score)
        quota = self.quota(score.shape, count).to(score.device)
        chosen = best_of_groups(units, groups, quota)
        left = int(quota.sum() - chosen.sum())
        chosen |= best(units.masked_fill(chosen, -torch.inf), left)
        return self.expand(chosen, score.shape)


def for_pattern(structure: Structure, name: str, layer: nn.Module, edges: bool) -> Structure:
    """Return a structure as it applies to the weight of a layer over a pattern.

    Parameters
    ----------
    structure
        As given for the whole model.
    name
        Of the weight, for messages.
    layer
        Which holds it, with a pattern.
    edges
        Whether each edge has a weight of its own.

    Raises
    ------
    OptionError
        The layer has no taps, or shares weights between them or between sites; or the structure
        would mean something else on edges.
    """
    pattern: Any = layer.pattern
    dimensions = getattr(layer, "weight", torch.empty(0)).dim()
    if edges and isinstance(structure, Unstructured):
        return Rows()
    if isinstance(structure, Channels) and dimensions == 3:
        groups = getattr(layer, "groups", 1)
        return OutputChannels(None if groups == 1 else _channel_groups(layer), groups)
    if isinstance(structure, Taps):
        if pattern.tap is None:
            raise OptionError(f"the pattern of {name} has no taps; windows have some")
        return EdgeGroups(_of_weights(pattern.tap, structure, name, layer))
    if isinstance(structure, Sites | Channels):  # the sites of a linear layer are its outputs
        return EdgeGroups(_of_weights(pattern.rows(), structure, name, layer))
    if isinstance(structure, Block | VNM) or (isinstance(structure, NM) and dimensions != 3):
        raise OptionError(
            f"{structure!r} would join edges of different sites in {name}; choose 'unstructured', "
            "'taps', 'sites' or 'channels' for layers over patterns, or leave it out of `params`"
        )
    if isinstance(structure, ConstantFanIn):
        raise OptionError(
            f"{structure!r} needs a weight of its own on each edge, and {name} shares weights or "
            "splits channels; build it with tie=None and groups=1, or leave it out of `params`"
        )
    return structure


def _channel_groups(layer: Any) -> Tensor:
    """Group of channels that each row of the weight is of: sites take their groups in turns."""
    rows, groups = torch.arange(layer.weight.shape[0]), int(layer.groups)
    if layer.tie_index is None:
        rows = torch.searchsorted(layer.row_ptr.cpu(), rows, right=True) - 1
    return rows % groups


def _of_weights(labels: Tensor, structure: Structure, name: str, layer: Any) -> Tensor:
    """Labels of weights from those of the edges that read them."""
    labels = labels.long().cpu()
    weight = layer.weight_of_edges().cpu() if hasattr(layer, "weight_of_edges") else None
    if weight is None:
        return labels
    of_weight = torch.zeros(layer.weight.shape[0], dtype=torch.int64)
    if weight.numel() == labels.numel():
        of_weight[weight] = labels
    if weight.numel() != labels.numel() or not torch.equal(of_weight[weight], labels):
        raise OptionError(
            f"{structure!r} does not fit {name}, whose weights are shared between several of them "
            "or split into groups of channels"
        )
    return of_weight
