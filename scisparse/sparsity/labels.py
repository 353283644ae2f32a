"""Values of sites that users give, such as the region of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from scisparse.errors import OptionError
from scisparse.pattern import Pattern
from scisparse.tying import site_shape

__all__ = ["SiteLabels", "check_site_order"]


@dataclass(frozen=True)
class SiteLabels:
    """Regions of sites, numbered.

    Parameters
    ----------
    names
        Labels, rising; those that are missing (NaN) are one region, the last.
    region
        Number of the region of each site, int64 ``[M]``.
    shape
        Of the labels as they were given.
    """

    names: tuple[object, ...]
    region: Tensor
    shape: tuple[int, ...]

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
        return cls(tuple(names), region, array.shape)


def check_site_order(argument: str, shape: Sequence[int], pattern: Pattern, name: str) -> None:
    """Raise if values of sites have a shape that tells of another order, such as a transposed one.

    Parameters
    ----------
    argument
        Which holds the values, for messages.
    shape
        Of the values.
    pattern
        Whose sites they are for, if there are as many.
    name
        Of the layer, for messages.
    """
    given, sites = tuple(shape), site_shape(pattern)
    both = len(given) > 1 and len(sites) > 1
    if both and given != sites and math.prod(given) == math.prod(sites):
        raise OptionError(
            f"`{argument}` has shape {list(given)} and the sites of {name} have {list(sites)}; "
            "give its values in the order of the sites"
        )
