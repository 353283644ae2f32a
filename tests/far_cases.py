"""The sea of the real grid of sea surface temperature, for planted links."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from scisparse.grids import from_xarray
from scisparse.pattern import Pattern
from scisparse.patterns import window


class Ocean(NamedTuple):
    pattern: Pattern
    sea: Tensor  # numbers of the cells

    def far_links(self, gen: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sites, a tenth of the sea, and a source for each that lies beyond its window."""
        count = len(self.sea) // 10
        site = self.sea[torch.randperm(len(self.sea), generator=gen)[:count]]
        source = self.sea[torch.randint(0, len(self.sea), (count,), generator=gen)]
        far = ~self.pattern.to_dense()[site, source]
        return site[far], source[far]


def ocean_of(data_dir: Path, rows: int, columns: int) -> Ocean:
    """Points of the ERSST grid, so many `rows` and `columns` apart, land dropped."""
    with xr.open_dataset(data_dir / "reanalysis" / "sst.mnmean.nc") as data:
        apart = {"lat": slice(None, None, rows), "lon": slice(None, None, columns)}
        sst = data["sst"].isel(apart).load()
    sea = torch.from_numpy(np.isfinite(sst.values).all(0).ravel())
    pattern = window(from_xarray(sst), 3).restrict(sea, sea)
    return Ocean(pattern, sea.nonzero().squeeze(1))


def edges(pattern: Pattern) -> set[tuple[int, int]]:
    """Pairs of source and site."""
    return {(source, site) for source, site in pattern.to_edge_index().T.tolist()}
