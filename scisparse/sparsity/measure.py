"""Counts what the layers of a sparsifier hold: by layer, by region of sites, by distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.pattern import Pattern
from scisparse.sparsity.budgets import Budget, Regions
from scisparse.sparsity.distances import distance_on_grids
from scisparse.sparsity.edge_target import EdgeTarget
from scisparse.sparsity.labels import SiteLabels
from scisparse.sparsity.masked import MaskedTarget
from scisparse.sparsity.progress import Progress
from scisparse.sparsity.report import DISTANCE_BINS, LayerReport, RegionReport, Report
from scisparse.sparsity.target import Move, Target

__all__ = ["count_distances", "count_regions", "measure"]


def measure(
    targets: Sequence[Target],
    progress: Progress,
    budget: Budget,
    regions: object = None,
    accuracy: float | None = None,
) -> Report:
    """Report on layers.

    Parameters
    ----------
    targets
        The layers.
    progress
        Steps of training that were done, and the last change of each layer.
    budget
        Of the sparsifier; one by regions says the regions where `regions` does not.
    regions
        Label of each site.
    accuracy
        Of the model.

    Raises
    ------
    OptionError
        No layer has weights at these sites.
    """
    given = budget.labels if regions is None and isinstance(budget, Regions) else regions
    labels = None if given is None else SiteLabels.of(given)
    rows = tuple(_measure_one(t, progress.moved.get(t.name, Move(0, 0)), labels) for t in targets)
    if labels is not None and regions is not None:
        _check_labels(labels, targets, rows)
    return Report(progress.steps, rows, accuracy)


def _measure_one(target: Target, move: Move, labels: SiteLabels | None) -> LayerReport:
    return LayerReport(
        name=target.name,
        size=target.size,
        active=target.count,
        explored=target.explored,
        churn=move.grown / max(1, target.count),
        bytes=target.bytes,
        operations=target.operations,
        distances=_distances(target),
        taps=_taps(target),
        regions=() if labels is None else count_regions(target, labels),
    )


def _check_labels(
    labels: SiteLabels, targets: Sequence[Target], rows: Sequence[LayerReport]
) -> None:
    """Raise unless a layer was counted by region."""
    patterns = {t.name: p for t in targets if (p := _pattern(t)) is not None}
    if not patterns:
        raise OptionError("`regions` are given and no layer is over a pattern; leave them out")
    if any(row.regions for row in rows):
        return
    count = labels.region.numel()
    if any(pattern.num_sites == count for pattern in patterns.values()):
        raise OptionError(
            f"`regions` has {count} labels, but sites of different regions share the weights of "
            f"{', '.join(patterns)}; count layers with tie=None, or give the labels of their tie"
        )
    sizes = ", ".join(f"{name} has {p.num_sites} sites" for name, p in patterns.items())
    raise OptionError(f"`regions` has {count} labels and {sizes}; give one label for each site")


# -- regions -----------------------------------------------------------------------------------


def count_regions(target: Target, labels: SiteLabels) -> tuple[RegionReport, ...]:
    """Count the weights of each region.

    Empty for layers without as many sites, and for weights that sites of several regions share.
    """
    pattern = _pattern(target)
    if pattern is None or pattern.num_sites != labels.region.numel():
        return ()
    labels = labels.of_sites("regions", pattern, target.name)
    if isinstance(target, EdgeTarget):
        region: Tensor | None = labels.region
        site = target.candidates.ends(target.active)[0]
        active = torch.bincount(site, minlength=pattern.num_sites) * target.block
        size = target.reference * target.block
    elif isinstance(target, MaskedTarget):
        region = _regions_of_rows(target, labels)
        mask = target.mask.cpu().reshape(target.mask.shape[0], -1)
        active, size = mask.sum(1), torch.full((mask.shape[0],), mask.shape[1])
    else:
        return ()
    if region is None:
        return ()
    sums = [
        torch.zeros(len(labels.names), dtype=torch.int64).index_add_(0, region, values)
        for values in (size, active)
    ]
    rows = zip(labels.names, *(one.tolist() for one in sums), strict=True)
    return tuple(RegionReport(*row) for row in rows)


def _regions_of_rows(target: MaskedTarget, labels: SiteLabels) -> Tensor | None:
    """Region of each row of weights, int64; ``None`` where rows belong to none or to several."""
    uses = _uses(target)
    if uses is None:
        return None
    row, site, _ = uses
    region, rows = labels.region[site], target.mask.shape[0]
    least = torch.full((rows,), len(labels.names)).scatter_reduce_(0, row, region, "amin")
    most = torch.full((rows,), -1).scatter_reduce_(0, row, region, "amax")
    return least if torch.equal(least, most) else None


# -- edges of masked weights -------------------------------------------------------------------


def _pattern(target: Target) -> Pattern | None:
    """Pattern that the weights of a layer lie on; before training ended, where that differs."""
    if isinstance(target, MaskedTarget):
        return target.pattern
    pattern = getattr(target.module, "pattern", None)
    return pattern if isinstance(pattern, Pattern) else None


def _uses(target: MaskedTarget) -> tuple[Tensor, Tensor, Tensor] | None:
    """Row of weights, site and edge of each product of a pattern layer, int64 ``[E * groups]``."""
    pattern, rows = target.pattern, target.mask.shape[0]
    if pattern is None:
        return None
    layer: Any = target.module
    shared = getattr(layer, "tie", None) is not None
    index = layer.weight_of_edges().cpu() if shared else torch.arange(rows)
    groups = index.numel() // max(1, pattern.num_edges)
    if not groups or index.numel() != groups * pattern.num_edges or int(index.max()) >= rows:
        return None
    fan_in = pattern.fan_in.cpu()
    site = torch.arange(pattern.num_sites).repeat_interleave(fan_in * groups)
    first = pattern.row_ptr.cpu()[site]
    edge = first + (torch.arange(index.numel()) - groups * first) % fan_in[site]
    return index, site, edge


# -- distances ---------------------------------------------------------------------------------


def _distances(target: Target) -> tuple[int, ...]:
    """Edges with an active weight by distance."""
    pattern = _pattern(target)
    if pattern is None:
        return ()
    if isinstance(target, MaskedTarget):
        uses = _uses(target)
        if uses is None:
            return ()
        row, _, edge = uses
        active = target.mask.cpu().reshape(target.mask.shape[0], -1).any(1)
        kept = torch.zeros(pattern.num_edges, dtype=torch.bool)
        kept[edge[active[row]]] = True
        pattern = pattern.to("cpu").select(kept)
    return count_distances(pattern)


def count_distances(pattern: Pattern) -> tuple[int, ...]:
    """Edges in each bin of distance; empty where neither the pattern nor its grids know it."""
    pattern = pattern.to("cpu")
    distance = pattern.distance
    if distance is None:
        distance = distance_on_grids(pattern, pattern.rows(), pattern.col.long())
    if distance is None:
        return ()
    return tuple(np.histogram(distance.numpy(), DISTANCE_BINS)[0].tolist())


# -- taps --------------------------------------------------------------------------------------


def _taps(target: Target) -> tuple[int, ...]:
    """Active weights by tap; empty where weights have none."""
    pattern = _pattern(target)
    if pattern is None:
        if not isinstance(target, MaskedTarget) or target.mask.dim() < 3:
            return ()
        return tuple(target.mask.sum((0, 1)).flatten().tolist())
    if pattern.tap is None:
        return ()
    tap = pattern.tap.cpu().long()
    if isinstance(target, EdgeTarget):
        counts = torch.bincount(tap, minlength=pattern.num_taps) * target.block
        return tuple(counts.tolist())
    uses = _uses(target) if isinstance(target, MaskedTarget) else None
    if uses is None or not isinstance(target, MaskedTarget):
        return ()
    row, _, edge = uses
    mask = target.mask.cpu().reshape(target.mask.shape[0], -1)
    of_row = torch.zeros(len(mask), dtype=torch.int64)
    of_row[row] = tap[edge]
    used = torch.zeros(len(mask), dtype=torch.bool)
    used[row] = True
    counts = torch.zeros(pattern.num_taps, dtype=torch.int64)
    counts.index_add_(0, of_row[used], mask.sum(1)[used])
    return tuple(counts.tolist())
