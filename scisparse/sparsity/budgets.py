"""How many weights each layer keeps, and each region of a layer.

A budget turns one sparsity into numbers of weights. They add up exactly: what rounding leaves goes
to the layers with the largest remainders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.grids.masks import is_data_array
from scisparse.sparsity.labels import SiteLabels
from scisparse.sparsity.scores import at_least_single

__all__ = [
    "AreaWeighted",
    "Budget",
    "Regions",
    "check_fraction",
    "erdos_renyi",
    "global_magnitude",
    "proportional",
    "share",
    "uniform",
]


def uniform(
    shapes: Sequence[Sequence[int]], density: float, sizes: Sequence[int] | None = None
) -> list[int]:
    """Keep the same fraction of every layer.

    Parameters
    ----------
    shapes
        Shapes of the weights.
    density
        Fraction kept, ``1 - sparsity``.
    sizes
        Weights of each layer, where they are not the product of its shape.

    Returns
    -------
    list of int
        Weights kept of each layer; their sum is ``round(density * all)``.

    Examples
    --------
    >>> uniform([(10, 10), (10, 5)], 0.1)
    [10, 5]
    """
    sizes = [math.prod(shape) for shape in shapes] if sizes is None else list(sizes)
    return share([density * size for size in sizes], sizes, round(density * sum(sizes)))


def erdos_renyi(
    shapes: Sequence[Sequence[int]], density: float, sizes: Sequence[int] | None = None
) -> list[int]:
    """Keep more of small layers: density in proportion to the sum of sizes over their product.

    ``density of a layer = eps * (O + C + K_1 + K_2 ...) / (O * C * K_1 * K_2 ...)``, at most 1; the
    kernel sizes ``K`` count as in RigL (Erdos-Renyi kernel).

    Parameters
    ----------
    shapes
        Shapes of the weights.
    density
        Fraction kept of all layers together.
    sizes
        Weights of each layer, where they are not the product of its shape.

    Returns
    -------
    list of int
        Weights kept of each layer; their sum is ``round(density * all)``.

    References
    ----------
    Mocanu, D. C., et al. (2018). Scalable training of artificial neural networks with adaptive
    sparse connectivity inspired by network science. https://doi.org/10.1038/s41467-018-04316-3

    Evci, U., et al. (2020). Rigging the lottery: making all tickets winners.
    https://doi.org/10.48550/arXiv.1911.11134

    Examples
    --------
    >>> erdos_renyi([(100, 100), (10, 10)], 0.2)  # the small one stays dense
    [1920, 100]
    """
    sizes = [math.prod(shape) for shape in shapes] if sizes is None else list(sizes)
    wanted = [float(sum(shape)) for shape in shapes]
    goal = round(density * sum(sizes))
    return share(proportional(wanted, sizes, goal), sizes, goal)


def proportional(weights: Sequence[float], limits: Sequence[float], total: float) -> list[float]:
    """Parts of `total` in proportion to `weights`, none beyond its limit: others take the rest.

    Examples
    --------
    >>> proportional([4.0, 1.0, 1.0], [2, 9, 9], 6)
    [2.0, 2.0, 2.0]
    """
    full: set[int] = set()
    while True:
        rest = total - sum(limits[i] for i in full)
        weight = sum(w for i, w in enumerate(weights) if i not in full)
        factor = rest / weight if weight else 0.0
        over = {i for i, w in enumerate(weights) if i not in full and w * factor > limits[i]}
        if not over:
            break
        full |= over
    return [float(limits[i]) if i in full else w * factor for i, w in enumerate(weights)]


def global_magnitude(scores: Sequence[Tensor], density: float) -> list[int]:
    """Keep the highest scores of all layers together, whichever layer they are in.

    Parameters
    ----------
    scores
        Scores of the weights of each layer.
    density
        Fraction kept of all layers together.

    Examples
    --------
    >>> import torch
    >>> global_magnitude([torch.tensor([1.0, 5.0]), torch.tensor([4.0, 6.0])], 0.5)
    [1, 1]
    """
    flat = torch.cat([at_least_single(score.detach()).flatten().cpu() for score in scores])
    goal = round(density * flat.numel())
    if not goal:
        return [0] * len(scores)
    bound = torch.kthvalue(flat, flat.numel() - goal + 1).values
    above = [int((part > bound).sum()) for part in flat.split([s.numel() for s in scores])]
    equal = [int((part == bound).sum()) for part in flat.split([s.numel() for s in scores])]
    left = goal - sum(above)
    for i, count in enumerate(equal):
        taken = min(count, left)
        above[i], left = above[i] + taken, left - taken
    return above


def share(wanted: Sequence[float], limits: Sequence[int], total: int) -> list[int]:
    """Round so that the sum is `total` and none passes its limit: largest remainders first.

    Examples
    --------
    >>> share([0.5, 0.5, 1.0], [1, 1, 1], 2)
    [1, 0, 1]
    """
    counts = [min(math.floor(w + 1e-9), limit) for w, limit in zip(wanted, limits, strict=True)]
    order = sorted(range(len(counts)), key=lambda i: counts[i] - wanted[i])
    left = min(total, sum(limits)) - sum(counts)
    while left > 0:
        for i in order:
            if left > 0 and counts[i] < limits[i]:
                counts[i] += 1
                left -= 1
    return counts


@dataclass(frozen=True)
class Regions:
    """A sparsity for each region of the sites of a layer.

    Holds for pattern layers with a weight of its own on each edge; others take the sparsity of the
    sparsifier.

    Parameters
    ----------
    labels
        Region of each site: an array of M values in the order of the sites, or a DataArray, which
        is matched by its coordinates where the layer has a grid. Those that are missing (NaN) are
        one region.
    sparsity
        Sparsity of each label; labels that are missing take the sparsity of the layer.

    Examples
    --------
    >>> budget = Regions(labels=["sea", "land", "sea"], sparsity={"land": 0.5})
    """

    labels: object
    sparsity: Mapping[Any, float]

    def __post_init__(self) -> None:
        for label, value in self.sparsity.items():
            check_fraction(f"sparsity[{label!r}]", value)
        names = SiteLabels.of(self.labels).names
        unknown = sorted(str(key) for key in self._named() if key not in names)
        if unknown:
            known = ", ".join(str(label) for label in names[:10])
            raise OptionError(f"`sparsity` names {', '.join(unknown)}; the labels are {known}")

    def _named(self) -> dict[object, float]:
        # NaN is not equal to itself, but a tuple or a dictionary finds the same object.
        return {math.nan if key != key else key: value for key, value in self.sparsity.items()}

    def groups(
        self,
        fan_in: Tensor,
        sparsity: float,
        progress: float = 1.0,
        labels: SiteLabels | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the region of each site, int64 ``[M]``, and the edges each region keeps, ``[G]``.

        Parameters
        ----------
        fan_in
            Edges of each site before pruning, ``[M]``.
        sparsity
            Of the regions that :attr:`sparsity` does not name.
        progress
            Part of their sparsity that the others have reached, while a layer is pruned gradually.
        labels
            In the order of the sites; by default as they were given.
        """
        labels, named = SiteLabels.of(self.labels) if labels is None else labels, self._named()
        if labels.region.numel() != fan_in.numel():
            raise OptionError(
                f"`labels` has {labels.region.numel()} values; the layer has {fan_in.numel()} sites"
            )
        edges = torch.zeros(len(labels.names), dtype=torch.int64)
        edges.index_add_(0, labels.region, fan_in.cpu())
        now = {name: value * progress for name, value in named.items()}
        kept = [
            round((1 - now.get(name, sparsity)) * int(count))
            for name, count in zip(labels.names, edges, strict=True)
        ]
        return labels.region, torch.tensor(kept)


@dataclass(frozen=True)
class AreaWeighted:
    """Edges of each site in proportion to the area of its cell, at most its fan-in before pruning.

    On a latitude-longitude grid the many small cells near the poles then keep few edges. Holds for
    pattern layers with a weight of its own on each edge.

    Parameters
    ----------
    areas
        Area of each site, ``[M]`` or in the shape of the grid, in any unit; of the layer's grid
        where not given. An array or a tensor in the order of the sites, or a DataArray, which is
        matched by its coordinates where the layer has a grid; finite and at least 0.

    Examples
    --------
    >>> import torch
    >>> budget = AreaWeighted(areas=[1.0, 2.0])
    >>> budget.groups(torch.tensor([4, 4]), sparsity=0.25)[1].tolist()
    [2, 4]
    """

    areas: object = None

    def __post_init__(self) -> None:
        if self.areas is None:
            return
        areas = self.given
        wrong = areas[~((areas >= 0) & areas.isfinite())]
        if wrong.numel():
            raise OptionError(f"`areas` has {wrong[0].item()}; areas are finite and at least 0")
        if not is_data_array(self.areas):
            object.__setattr__(self, "areas", areas)

    @property
    def given(self) -> Tensor:
        """The areas in the order in which they were given, float64 of their shape."""
        areas = self.areas
        if isinstance(areas, Tensor):
            areas = areas.detach().cpu().numpy()
        try:
            return torch.from_numpy(np.array(areas, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise OptionError(f"`areas` is {areas!r}; give numbers, one for each site") from error

    def groups(
        self, fan_in: Tensor, sparsity: float, areas: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the group of each site, itself, and the edges that each keeps, int64 ``[M]``.

        Parameters
        ----------
        fan_in
            Edges of each site before pruning, ``[M]``.
        sparsity
            Of all sites together.
        areas
            In the order of the sites; by default those that were given.
        """
        area = areas if areas is not None or self.areas is None else self.given
        if area is None or area.numel() != fan_in.numel():
            raise OptionError(
                f"the budget needs the areas of {fan_in.numel()} sites; give "
                "AreaWeighted(areas=...) or build the pattern on a grid"
            )
        limits = fan_in.cpu().tolist()
        goal = round((1 - sparsity) * sum(limits))
        weight = area.double().cpu().reshape(-1) * (fan_in.cpu() > 0)
        counts = torch.zeros_like(weight)
        for _ in range(64):  # sites at their limit leave the rest to others
            free = counts < fan_in.cpu()
            left = goal - counts.sum()
            if left < 0.5 or not bool((weight * free).sum() > 0):
                break
            counts += weight * free * (left / (weight * free).sum())
            counts = counts.minimum(fan_in.cpu())
        kept = share(counts.tolist(), limits, goal)
        return torch.arange(fan_in.numel()), torch.tensor(kept)


Budget: TypeAlias = str | Mapping[str, float] | Regions | AreaWeighted


def check_fraction(argument: str, value: Any) -> float:
    """Return a sparsity, or raise unless it is a number in [0, 1)."""
    number = isinstance(value, int | float | np.integer | np.floating)
    if not number or isinstance(value, bool) or not 0 <= float(value) < 1:
        raise OptionError(
            f"`{argument}` (={value!r}) must lie in [0, 1): it is the fraction of weights that are "
            "pruned"
        )
    return float(value)
