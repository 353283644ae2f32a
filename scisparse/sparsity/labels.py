"""Values of sites that users give, such as the region of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.grids.masks import has_coordinates, in_order_of
from scisparse.pattern import Pattern
from scisparse.tying import site_shape

__all__ = ["SiteLabels", "site_order"]


@dataclass(frozen=True)
class SiteLabels:
    """Regions of sites, numbered.

    Parameters
    ----------
    names
        Labels, rising; those that are missing (NaN) are one region, the last.
    region
        Number of the region of each site, int64 ``[M]``.
    given
        What they were read from.
    """

    names: tuple[object, ...]
    region: Tensor
    given: object = field(repr=False, compare=False)

    @classmethod
    def of(cls, labels: object) -> SiteLabels:
        """Read an array, a tensor or a DataArray.

        Examples
        --------
        >>> labels = SiteLabels.of([["sea", "land"], ["sea", "sea"]])
        >>> labels.names, labels.region.tolist()
        (('land', 'sea'), [1, 0, 1, 1])
        """
        array = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
        flat = [math.nan if label != label else label for label in array.ravel().tolist()]
        names = sorted(dict.fromkeys(flat), key=lambda name: (name != name, str(type(name)), name))
        place = {name: i for i, name in enumerate(names)}
        region = torch.tensor([place[label] for label in flat], dtype=torch.int64)
        return cls(tuple(names), region, labels)

    def of_sites(self, argument: str, pattern: Pattern, name: str) -> SiteLabels:
        """Put them in the order of the sites of a pattern; the rest is as in :func:`site_order`."""
        order = site_order(argument, self.given, pattern, name)
        return self if order is None else replace(self, region=self.region[order])


def site_order(argument: str, given: Any, pattern: Pattern, name: str) -> Tensor | None:
    """Place in what is given of each site of a pattern, int64 ``[M]``; ``None``: the same order.

    A DataArray with coordinates is matched by them where the pattern has a grid; all else is taken
    as it stands.

    Parameters
    ----------
    argument
        Which holds the values, for messages.
    given
        Values of sites, if there are as many.
    pattern, name
        Of the layer.

    Raises
    ------
    GridError
        Its coordinates are not those of the grid.
    OptionError
        Its shape tells of another order.
    """
    grid, size = pattern.site_grid, math.prod(np.shape(given))
    if grid is None or not has_coordinates(given) or size != pattern.num_sites:
        _check_order(argument, np.shape(given), pattern, name)
        return None
    numbers = given.copy(data=np.arange(size).reshape(given.shape))
    return torch.from_numpy(in_order_of(grid, numbers, argument).reshape(-1))


def _check_order(argument: str, given: tuple[int, ...], pattern: Pattern, name: str) -> None:
    """Raise if values have a shape that tells of another order, such as a transposed one."""
    sites = site_shape(pattern)
    both = len(given) > 1 and len(sites) > 1
    if both and given != sites and math.prod(given) == math.prod(sites):
        raise OptionError(
            f"`{argument}` has shape {list(given)} and the sites of {name} have {list(sites)}; "
            "give its values in the order of the sites"
        )
