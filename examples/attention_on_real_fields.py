# %% [markdown]
# # Does a sparse pattern stand for dense attention? Random tensors and sea surface temperature
#
# Sparse attention is often judged by its pattern alone, or on random tensors. What it loses depends
# on what is attended to. Here each sea cell of ERSSTv5 (2 degrees) is a token: queries and keys are
# its standardised anomalies of the 96 months of 2010-2017, so that scores are correlations times
# sqrt(96), and values its anomalies of the 32 months after. Nothing is trained.
#
# `approximation_error` compares each pattern with attention to all 8361 cells: on random tensors of
# that shape, on the same fields after the cells were shuffled, and on the fields as they are. The
# second part puts the cells in other orders and counts the tiles of 128 x 128 that hold an edge.
# It takes some 20 seconds and writes a table and a map into `examples_output/`.
#
# **What to see**
# * On random tensors the weight that a pattern catches is its density, whatever its shape, and all
#   errors are above 1, that of a layer which gives 0: dense attention is nearly a mean of 8361
#   independent values. Such a test says nothing about fields.
# * On the real fields 0.9 % of the pairs, a radius of 1000 km, catch 57 % of the weight. After
#   shuffling they catch 4 %: it is the geography, not the distribution of the numbers. A radius of
#   4000 km, 11 % of the pairs, catches 81 %; the rest is farther still.
# * The same number of edges in a window over tokens catches 20 % row by row, and 41 % along a
#   Hilbert curve. Longformer and BigBird reach every cell within 4 hops, but catch no more than
#   their window does: reach is not weight.
# * Weight is not error. The softmax shares what is left out among what is read, the own cell most:
#   alone its error is 0.52, and some 75 cells bring 0.35 to 0.41, whether they catch 57 % or 19 %.
#   Random edges, without the own cell, have 0.69. No pattern here is close to dense attention.
# * The map says where: mid-latitude seas attend to their surroundings, the tropical Pacific to all
#   of itself, and to what El Nino moves elsewhere; of that 1000 km hold less than a quarter.
# * Rows of latitude are a good order already: a Hilbert curve saves a tenth of the tiles, Cuthill-
#   McKee a seventh. Points in random order touch every tile.

# %%
from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from scisparse import datasets, orders, patterns, plots
from scisparse.errors import ScisparseError
from scisparse.grids import LatLonGrid, UnstructuredGrid
from scisparse.layers import approximation_error
from scisparse.pattern import Pattern

HISTORY = 96  # months that queries and keys see
SITES_PART = 8  # one site in so many stands for all in the table
TILE = 128
MAPPED = "radius 1000 km"

# %% [markdown]
# ## Tokens
#
# Cells that are sea, and never freeze, in all months. Where the data cannot be had, a simulated
# climate takes their place: the table is then about that one.


# %%
class Tokens(NamedTuple):
    """Sea cells of a latitude-longitude grid, and their anomalies."""

    globe: LatLonGrid  # sea cells are the valid ones
    cells: UnstructuredGrid  # N sea cells, row by row
    query: Tensor  # [1, N, 1, T], standardised
    value: Tensor  # [1, N, 1, V]


def tokens(monthly: xr.DataArray) -> Tokens:
    """Anomalies from the climatology of the first months, NaN or ice wherever it is no token."""
    fields = monthly.transpose("time", "lat", "lon")
    past = fields[:HISTORY].groupby("time.month")
    anomaly = (fields.groupby("time.month") - past.mean()).drop_vars("month").values
    spread = anomaly[:HISTORY].std(0)
    globe = LatLonGrid.from_degrees(
        fields.lat, fields.lon, mask=np.isfinite(fields.values).all(0) & (spread > 0)
    )
    sea = globe.valid
    cells = UnstructuredGrid(globe.lat[sea], globe.lon[sea], areas=globe.areas[sea])
    anomaly, spread = (a.reshape(-1, globe.size)[:, sea].T for a in (anomaly, spread[None]))
    history = torch.from_numpy(anomaly[:, :HISTORY] / spread).float()
    later = torch.from_numpy(anomaly[:, HISTORY:]).float()
    return Tokens(globe, cells, history[None, :, None], later[None, :, None])


def sea_surface() -> tuple[str, xr.DataArray]:
    try:
        sst = datasets.load("ersst")["sst"]
        return "ERSSTv5 sea surface temperature", sst.where((sst >= -1.7).all("time"))
    except ScisparseError as error:
        print(f"No real data ({error}): a simulated climate takes their place.\n")
        data = datasets.simulated_ensemble((32, 64), times=128, interval=30, members=2)
        return "simulated temperature", data["observed"].where(data["land"] < 0.5)


# %% [markdown]
# ## Patterns
#
# Most read about as many cells as a radius of 1000 km holds. `sliding_window` and its relatives
# know nothing of the sphere: they see tokens in a row, here those row by row, or along a Hilbert
# curve. `pattern.reorder(order.argsort())` brings what was built along the curve back to the cells.


# %%
def candidates(cells: UnstructuredGrid) -> Iterator[tuple[str, Pattern]]:
    yield "own cell alone", patterns.sliding_window(cells.size, 1)
    for metres in (500e3, 1000e3, 2000e3, 4000e3):
        yield f"radius {metres / 1e3:.0f} km", patterns.radius(cells, metres)
    size, fan_in = cells.size, round(patterns.radius(cells, 1000e3).num_edges / cells.size)
    yield "nearest cells", patterns.nearest(cells, fan_in)
    window = patterns.sliding_window(size, fan_in)
    yield "window, row by row", window
    yield "window, Hilbert curve", window.reorder(orders.hilbert(cells).argsort())
    some = list(range(0, size, size // 8))
    yield "Longformer", patterns.longformer(size, fan_in - len(some), some)
    draw = torch.Generator().manual_seed(0)
    third = fan_in // 3
    yield "BigBird", patterns.bigbird(size, third, fan_in - third - len(some), some, generator=draw)
    yield "random", patterns.constant_fan_in(size, size, fan_in, generator=draw)


def compare(sea: Tokens) -> Iterator[list[str]]:
    """One row a pattern: what it costs, what it reaches, what it misses."""
    shuffled = torch.randperm(sea.cells.size, generator=torch.Generator().manual_seed(1))
    draw = torch.Generator().manual_seed(2)
    query, key = torch.randn(2, *sea.query.shape, generator=draw)
    fields = {
        "random": (query, key, torch.randn(sea.value.shape, generator=draw)),
        "shuffled": (sea.query[:, shuffled],) * 2 + (sea.value[:, shuffled],),
        "real": (sea.query, sea.query, sea.value),
    }
    columns = ["pattern", "fan-in", "within 4 hops"]
    yield columns + [f"{name}: {what}" for name in fields for what in ("weight", "error")]
    some = torch.zeros(sea.cells.size, dtype=torch.bool)
    some[torch.randperm(len(some), generator=draw)[: len(some) // SITES_PART]] = True
    for name, pattern in candidates(sea.cells):
        row = [name, f"{pattern.statistics()['fan_in_mean']:.0f}"]
        row.append(f"{pattern.coverage(4, samples=8):.1%}")
        part = pattern.restrict(some, relabel=True)
        for q, k, v in fields.values():
            found = approximation_error(q[:, some], k, v, part)
            row += [f"{found.weight:.1%}", f"{found.error:.2f}"]
        yield row


# %% [markdown]
# ## Orders


# %%
def occupancy(cells: UnstructuredGrid, pattern: Pattern) -> Iterator[list[str]]:
    """One row an order: tiles of the same pattern."""
    yield ["order of the cells", "tiles with an edge", "edges in these", "tiles a row of tiles"]
    found = {
        "row by row": torch.arange(cells.size),
        "random": torch.randperm(cells.size, generator=torch.Generator().manual_seed(0)),
        "Hilbert": orders.hilbert(cells),
        "Morton": orders.morton(cells),
        "HEALPix nested": orders.healpix_nested(cells),
        "reverse Cuthill-McKee": orders.cuthill_mckee(pattern),
    }
    for name, order in found.items():
        tiles = pattern.reorder(order).tile_occupancy(TILE)
        yield [name, f"{tiles.tiles:.1%}", f"{tiles.filled:.1%}", f"{tiles.per_row:.1f}"]


# %% [markdown]
# ## Where the weight is
#
# The part of each cell's attention to all that lies on the edges of one pattern.


# %%
def caught(sea: Tokens, pattern: Pattern) -> Tensor:
    """Part of the weight of each site that lies on its edges, ``[N]``."""
    x = sea.query[0, :, 0]
    parts = []
    for first in range(0, len(x), 1024):
        weight = torch.softmax(x[first : first + 1024] @ x.T / x.shape[1] ** 0.5, -1)
        rows = pattern.row_ptr[first : first + 1025]
        edges = slice(int(rows[0]), int(rows[-1]))
        row, col = pattern.rows()[edges] - first, pattern.col[edges].long()
        parts.append(torch.zeros(len(weight)).index_add_(0, row, weight[row, col]))
    return torch.cat(parts)


def draw(path: Path, sea: Tokens, pattern: Pattern) -> None:
    field = np.full(sea.globe.size, np.nan)
    field[sea.globe.valid] = 100 * caught(sea, pattern).numpy()
    coords = {"lat": np.rad2deg(sea.globe.lat_axis), "lon": np.rad2deg(sea.globe.lon_axis)}
    array = xr.DataArray(field.reshape(sea.globe.shape), coords, ("lat", "lon"))
    array.attrs = {"long_name": "attention weight on the edges", "units": "%"}
    title = f"What a pattern ({MAPPED}) catches of dense attention"
    plots.map_field(array, title=title).savefig(path, dpi=150)


def show(rows: list[list[str]]) -> str:
    lines = [" | ".join(row) for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]
    return "".join(f"| {line} |\n" for line in lines)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Compare sparse patterns with dense attention.")
    parser.add_argument("--output", type=Path, default=Path("examples_output"), help="folder")
    options = parser.parse_args(arguments)
    name, monthly = sea_surface()
    sea = tokens(monthly)
    print(f"{name}: {sea.cells.size} cells\n")
    pattern = patterns.radius(sea.cells, 1000e3)
    tables = [list(compare(sea)), list(occupancy(sea.cells, pattern))]
    print("\n".join(map(show, tables)))
    options.output.mkdir(parents=True, exist_ok=True)
    stem = options.output / "attention_on_real_fields"
    stem.with_suffix(".md").write_text("\n".join(map(show, tables)))
    with stem.with_suffix(".csv").open("w", newline="") as file:
        csv.writer(file).writerows(tables[0])
    draw(stem.with_suffix(".png"), sea, pattern)


if __name__ == "__main__":
    main()
