"""The 3 x 3 stencil of a latitude-longitude grid: as edges, and as torch's formulations need it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FORMULATIONS", "TAPS", "Formulation", "Layout", "Stencil"]

TAPS = 9


@dataclass(frozen=True)
class Stencil:
    """Cells of `rows` latitudes and `columns` longitudes; periodic, and cut off at the poles."""

    rows: int
    columns: int
    device: str = "cpu"

    @property
    def sites(self) -> int:
        return self.rows * self.columns

    @cached_property
    def taps(self) -> tuple[Tensor, Tensor]:
        """Source of each tap ``[M, K]``, cell 0 where there is none, and whether there is one."""
        site = torch.arange(self.sites, device=self.device)[:, None]
        down = torch.arange(-1, 2, device=self.device).repeat_interleave(3)
        right = torch.arange(-1, 2, device=self.device).repeat(3)
        row = site // self.columns + down
        source = row * self.columns + (site % self.columns + right) % self.columns
        exists = (row >= 0) & (row < self.rows)
        return source.where(exists, 0), exists

    @cached_property
    def edges(self) -> tuple[Tensor, Tensor, Tensor]:
        """``row_ptr``, ``col`` sorted in each row, and the place of each edge in ``[M, K]``."""
        source, exists = self.taps
        order = source.where(exists, self.sites).argsort(dim=1, stable=True)
        site = torch.arange(self.sites, device=self.device)[:, None]
        place = (site * TAPS + order)[exists.gather(1, order)]
        row_ptr = F.pad(exists.sum(1).cumsum(0), (1, 0))
        return row_ptr, source.flatten()[place].to(torch.int32), place

    def pad(self, x_BCHW: Tensor) -> Tensor:
        """One cell on each side: round the globe in longitude, zeros beyond the poles."""
        return F.pad(F.pad(x_BCHW, (1, 1, 0, 0), mode="circular"), (0, 0, 1, 1))

    def shifts(self, padded_BCHW: Tensor) -> Iterator[Tensor]:
        """Views ``[B, C, H, W]`` of the padded cells, one for each tap."""
        for down in range(3):
            for right in range(3):
                yield padded_BCHW[..., down : down + self.rows, right : right + self.columns]


@dataclass(frozen=True)
class Layout:
    """How a tensor of the contract is laid out for a formulation, and seen again as before."""

    lay: Callable[[Stencil, Tensor], Tensor]
    view: Callable[[Stencil, Tensor], Tensor]


POINTS = Layout(lambda grid, x_BNC: x_BNC, lambda grid, x_BNC: x_BNC)
SITES_FIRST = Layout(
    lambda grid, y_BMO: y_BMO.transpose(0, 1).contiguous(),
    lambda grid, y_MBO: y_MBO.transpose(0, 1),
)
IMAGE = Layout(
    lambda grid, x: x.transpose(1, 2).contiguous().unflatten(2, (grid.rows, grid.columns)),
    lambda grid, x_BCHW: x_BCHW.flatten(2).transpose(1, 2),
)
MATRICES = Layout(lambda grid, w_MKCO: w_MKCO, lambda grid, w_MKCO: w_MKCO)
FIELDS = Layout(
    lambda grid, w: w.permute(1, 2, 3, 0).contiguous().unflatten(3, (grid.rows, grid.columns)),
    lambda grid, w_KCOHW: w_KCOHW.flatten(3).permute(3, 0, 1, 2),
)


def unfold_einsum(grid: Stencil, x_BCHW: Tensor, weight_MKCO: Tensor) -> Tensor:
    """``F.unfold``, then one contraction for each site."""
    patches = F.unfold(grid.pad(x_BCHW), 3).view(*x_BCHW.shape[:2], TAPS, grid.sites)
    return torch.einsum("bckm,mkco->bmo", patches, weight_MKCO)


def strided_einsum(grid: Stencil, x_BCHW: Tensor, weight_MKCO: Tensor) -> Tensor:
    """A strided view of all windows, then the same contraction."""
    windows = grid.pad(x_BCHW).unfold(2, 3, 1).unfold(3, 3, 1)
    weight = weight_MKCO.view(grid.rows, grid.columns, 3, 3, *weight_MKCO.shape[2:])
    return torch.einsum("bchwij,hwijco->bhwo", windows, weight).flatten(1, 2)


def site_bmm(grid: Stencil, x_BNC: Tensor, weight_MKCO: Tensor) -> Tensor:
    """Gather the windows, then one small matrix product for each site."""
    gathered = x_BNC.index_select(1, grid.taps[0].flatten())
    windows = gathered.view(x_BNC.shape[0], grid.sites, -1).transpose(0, 1)
    return torch.bmm(windows, weight_MKCO.flatten(1, 2))


def shifted_sum(grid: Stencil, x_BCHW: Tensor, weight_KCOHW: Tensor) -> Tensor:
    """Multiply shifted fields by weight fields and add."""
    channels_in, channels_out = weight_KCOHW.shape[1:3]
    output = x_BCHW.new_zeros(x_BCHW.shape[0], channels_out, grid.rows, grid.columns)
    for tap, shifted in enumerate(grid.shifts(grid.pad(x_BCHW))):
        if channels_out == 1:
            for channel in range(channels_in):
                output.addcmul_(shifted[:, channel : channel + 1], weight_KCOHW[tap, channel])
        else:
            output += torch.einsum("bchw,cohw->bohw", shifted, weight_KCOHW[tap])
    return output


@dataclass(frozen=True)
class Formulation:
    """A way to write the layer in torch, with the layouts that suit it."""

    name: str
    run: Callable[[Stencil, Tensor, Tensor], Tensor]
    x: Layout
    weight: Layout
    output: Layout


FORMULATIONS = (
    Formulation("unfold + einsum", unfold_einsum, IMAGE, MATRICES, POINTS),
    Formulation("strided view + einsum", strided_einsum, IMAGE, MATRICES, POINTS),
    Formulation("per-site bmm", site_bmm, POINTS, MATRICES, SITES_FIRST),
    Formulation("shifted multiply-add", shifted_sum, IMAGE, FIELDS, IMAGE),
)
