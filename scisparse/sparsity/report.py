"""What a sparsifier has done, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scisparse.pattern import Pattern
from scisparse.patterns.geometry import great_circle

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["DISTANCE_BINS", "LayerReport", "Report", "count_distances"]

#: Bins of the distances of edges, in metres.
DISTANCE_BINS = (0.0, 2.5e5, 5e5, 1e6, 2e6, 5e6, 1e7, 2.1e7)


@dataclass(frozen=True)
class LayerReport:
    """One weight.

    Parameters
    ----------
    name
        Of the parameter.
    size
        Weights of the layer with nothing pruned.
    active
        Weights that are not pruned.
    seen
        Weights that have been active at some time since the model became sparse.
    churn
        Fraction of the active weights that the last change brought.
    bytes
        Of the stored values.
    distances
        Edges of a pattern on a grid by distance, in the bins of :data:`DISTANCE_BINS`; else empty.
    """

    name: str
    size: int
    active: int
    seen: int
    churn: float
    bytes: int
    distances: tuple[int, ...] = ()

    @property
    def flops(self) -> int:
        """Operations for one sample (in a convolution, one position): a product and a sum each."""
        return 2 * self.active

    @property
    def sparsity(self) -> float:
        """Fraction of weights that are pruned."""
        return 1 - self.active / max(1, self.size)

    @property
    def exploration(self) -> float:
        """In-time over-parameterisation rate: fraction of weights that were active at some time.

        References
        ----------
        Liu, S., et al. (2021). https://doi.org/10.48550/arXiv.2102.02887
        """
        return self.seen / max(1, self.size)


@dataclass(frozen=True)
class Report:
    """All weights; prints as a table.

    Examples
    --------
    >>> print(Report(10, (LayerReport("weight", 100, 25, 50, 0.2, 400),)))
    after 10 steps: 25 of 100 weights, sparsity 0.7500
    layer    size   active   sparsity   ever active   churn   bytes
    weight   100    25       0.7500     0.500         0.200   400
    """

    steps: int
    layers: tuple[LayerReport, ...]

    @property
    def sparsity(self) -> float:
        """Fraction of the weights of all layers that are pruned."""
        return 1 - sum(r.active for r in self.layers) / max(1, sum(r.size for r in self.layers))

    def efficiency(self, accuracy: float) -> float:
        """Accuracy, in any unit, for each weight that is left.

        References
        ----------
        Hoefler, T., Alistarh, D., Ben-Nun, T., Dryden, N., Peste, A. (2021). Sparsity in deep
        learning. https://doi.org/10.48550/arXiv.2102.00554
        """
        return accuracy / max(1, sum(layer.active for layer in self.layers))

    def __str__(self) -> str:
        rows = [("layer", "size", "active", "sparsity", "ever active", "churn", "bytes")]
        rows += [
            (
                r.name,
                str(r.size),
                str(r.active),
                f"{r.sparsity:.4f}",
                f"{r.exploration:.3f}",
                f"{r.churn:.3f}",
                str(r.bytes),
            )
            for r in self.layers
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "   ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        active, size = (sum(getattr(r, key) for r in self.layers) for key in ("active", "size"))
        first = f"after {self.steps} steps: {active} of {size} weights"
        return "\n".join([f"{first}, sparsity {self.sparsity:.4f}", *lines])

    def to_dataset(self) -> xr.Dataset:
        """Give the same numbers as a Dataset over ``layer``."""
        import xarray as xr

        numbers = {
            "size": "weights of the layer with nothing pruned",
            "active": "weights that are not pruned",
            "sparsity": "fraction of weights that are pruned",
            "exploration": "fraction of weights that were active at some time",
            "churn": "fraction of active weights that the last change brought",
            "bytes": "bytes of the stored values",
            "flops": "operations for one sample",
        }
        data: dict[str, Any] = {
            key: ("layer", [getattr(r, key) for r in self.layers], {"long_name": text})
            for key, text in numbers.items()
        }
        coords: dict[str, Any] = {"layer": [r.name for r in self.layers]}
        if any(r.distances for r in self.layers):
            none = (0,) * (len(DISTANCE_BINS) - 1)
            counts = [r.distances or none for r in self.layers]
            data["edges"] = (("layer", "distance"), counts, {"long_name": "edges by distance"})
            attributes = {"units": "m", "long_name": "lower end of the bin of distances"}
            coords["distance"] = ("distance", list(DISTANCE_BINS[:-1]), attributes)
        return xr.Dataset(data, coords=coords, attrs={"steps": self.steps})


def count_distances(pattern: Pattern) -> tuple[int, ...]:
    """Edges in each bin of distance; empty where neither the pattern nor its grids know it."""
    distance = pattern.distance
    sites, sources = pattern.site_grid, pattern.source_grid
    if distance is None and sites is not None and sources is not None:
        ends = (sites.positions()[pattern.rows()], sources.positions()[pattern.col.long()])
        chord = np.linalg.norm(ends[0] - ends[1], axis=1)
        distance = torch.from_numpy(great_circle(chord, sites.spherical))
    if distance is None:
        return ()
    return tuple(np.histogram(distance.numpy(), DISTANCE_BINS)[0].tolist())
