"""What a sparsifier has done, in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scisparse.errors import OptionError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["DISTANCE_BINS", "LayerReport", "RegionReport", "Report"]

_LONG_NAMES = {
    "size": "weights of the layer with nothing pruned",
    "active": "weights that are not pruned",
    "sparsity": "fraction of weights that are pruned",
    "exploration": "weights that were active at some time, relative to size",
    "churn": "fraction of active weights that the last change brought",
    "bytes": "bytes of the stored values",
    "flops": "operations that active weights need for one sample, at one of the places they share",
}

#: Bins of the distances of edges, in metres.
DISTANCE_BINS = (0.0, 2.5e5, 5e5, 1e6, 2e6, 5e6, 1e7, 2.1e7)


@dataclass(frozen=True)
class RegionReport:
    """The weights of one layer at the sites of one region.

    Parameters
    ----------
    label
        Of the region.
    size
        Weights with nothing pruned.
    active
        Weights that are not pruned.
    """

    label: object
    size: int
    active: int

    @property
    def sparsity(self) -> float:
        """Fraction of weights that are pruned."""
        return 1 - self.active / max(1, self.size)


@dataclass(frozen=True)
class LayerReport:
    """One weight, or the edges of an attention layer, which count as weights here.

    Parameters
    ----------
    name
        Of the parameter.
    size
        Weights of the layer with nothing pruned.
    active
        Weights that are not pruned.
    explored
        Weights that have been active at some time of the training: all of them where it begins
        with a dense model.
    churn
        Fraction of the active weights that the last change brought.
    bytes
        Of the stored values, zeros under a mask and spare rows among them, without indices; of the
        indices for edges of attention, which have no values.
    distances
        Edges with an active weight by distance, in the bins of :data:`DISTANCE_BINS`; empty where
        the layer is not over a pattern on a grid.
    taps
        Active weights by tap, of a kernel or of a pattern; empty where there are none.
    regions
        Weights by region of their sites; empty where the layer has none.
    operations
        Of an active weight, for one sample: a product and a sum; of an edge of attention, those for
        each channel of queries and of values.
    """

    name: str
    size: int
    active: int
    explored: int
    churn: float
    bytes: int
    distances: tuple[int, ...] = ()
    regions: tuple[RegionReport, ...] = ()
    operations: int = 2
    taps: tuple[int, ...] = ()

    @property
    def flops(self) -> int:
        """Operations that active weights need for one sample, at one of the places that share them.

        A convolution needs as many at each position of its output; a dense layer under a
        mask multiplies by its zeros as well. Where every weight belongs to one edge this is what
        ``torch.utils.flop_counter`` counts in a forward pass of one sample.
        """
        return self.operations * self.active

    @property
    def sparsity(self) -> float:
        """Fraction of weights that are pruned."""
        return 1 - self.active / max(1, self.size)

    @property
    def exploration(self) -> float:
        """In-time over-parameterisation rate: fraction of weights that were active at some time.

        1 from the start for methods that begin with a dense model, such as ``"gmp"``, as all
        weights were trained. More than 1 where edges have moved among more candidates than the
        layer's size counts: far slots, and `candidates` beyond its own edges.

        References
        ----------
        Liu, S., et al. (2021). https://doi.org/10.48550/arXiv.2102.02887
        """
        return self.explored / max(1, self.size)


@dataclass(frozen=True)
class Report:
    """All weights; prints as a table, and `scisparse.plots.sparsity_report` draws it.

    Parameters
    ----------
    steps
        Steps of training that were done.
    layers
        Of the model.
    accuracy
        Of the model, as it was measured by the user: one number in any unit, larger = better.

    Raises
    ------
    OptionError
        `accuracy` is not a finite number.

    Examples
    --------
    >>> regions = RegionReport("sea", 60, 20), RegionReport("land", 40, 5)
    >>> print(Report(10, (LayerReport("weight", 100, 25, 50, 0.2, 400, regions=regions),)))
    after 10 steps: 25 of 100 weights, sparsity 0.7500
    layer     size   active   sparsity   exploration   churn   FLOPs   bytes
    weight    100    25       0.7500     0.500         0.200   50      400
      sea     60     20       0.6667
      land    40     5        0.8750
    """

    steps: int
    layers: tuple[LayerReport, ...]
    accuracy: float | None = None

    def __post_init__(self) -> None:
        if self.accuracy is None:
            return
        try:
            accuracy = float(self.accuracy)  # of a tensor or an array, too
        except (TypeError, ValueError, RuntimeError):
            accuracy = math.nan
        if not math.isfinite(accuracy):
            raise OptionError(
                f"`accuracy` is {self.accuracy!r}; give one finite number, in any unit in which "
                "larger is better"
            )
        object.__setattr__(self, "accuracy", accuracy)

    @property
    def active(self) -> int:
        """Weights of all layers that are not pruned."""
        return sum(layer.active for layer in self.layers)

    @property
    def size(self) -> int:
        """Weights of all layers with nothing pruned."""
        return sum(layer.size for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Fraction of the weights of all layers that are pruned."""
        return 1 - self.active / max(1, self.size)

    @property
    def efficiency(self) -> float | None:
        """Parameter efficiency: accuracy for each weight that is left, in the accuracy's unit.

        Of networks with the same accuracy the one with fewer weights is more efficient. Biases and
        layers that the sparsifier leaves alone do not count. ``None`` without an accuracy.

        References
        ----------
        Hoefler, T., Alistarh, D., Ben-Nun, T., Dryden, N., Peste, A. (2021). Sparsity in deep
        learning. Journal of Machine Learning Research 22(241).
        https://doi.org/10.48550/arXiv.2102.00554

        Examples
        --------
        >>> dense = Report(0, (LayerReport("weight", 1000, 1000, 1000, 0.0, 4000),), accuracy=0.95)
        >>> sparse = Report(100, (LayerReport("weight", 1000, 100, 150, 0.0, 400),), accuracy=0.94)
        >>> sparse.efficiency / dense.efficiency
        9.89...
        """
        return None if self.accuracy is None else self.accuracy / max(1, self.active)

    def __str__(self) -> str:
        head = ("layer", "size", "active", "sparsity", "exploration", "churn", "FLOPs", "bytes")
        rows = [head, *(row for layer in self.layers for row in _table_rows(layer))]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [
            "   ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        first = f"after {self.steps} steps: {self.active} of {self.size} weights"
        first += f", sparsity {self.sparsity:.4f}"
        if self.accuracy is not None:
            first += f", accuracy {self.accuracy:.6g}, {self.efficiency:.3g} per weight"
        return "\n".join([first, *lines])

    def to_dataset(self) -> xr.Dataset:
        """Give the same numbers as a Dataset over ``layer``.

        Numbers by ``region``, ``distance`` and ``tap`` are NaN for layers that have none;
        ``accuracy`` and ``efficiency`` are there if the accuracy is.
        """
        import xarray as xr

        data: dict[str, Any] = {
            key: ("layer", [getattr(r, key) for r in self.layers], {"long_name": text})
            for key, text in _LONG_NAMES.items()
        }
        if self.accuracy is not None:
            data["accuracy"] = ((), self.accuracy, {"long_name": "accuracy of the model"})
            per_weight = {"long_name": "accuracy for each weight that is not pruned"}
            data["efficiency"] = ((), self.efficiency, per_weight)
        coords: dict[str, Any] = {"layer": [r.name for r in self.layers]}
        labels = list(dict.fromkeys(region.label for r in self.layers for region in r.regions))
        if labels:
            coords["region"] = ("region", labels, {"long_name": "region of the sites"})
            data |= self._by_region(labels)
        if any(r.distances for r in self.layers):
            none = (math.nan,) * (len(DISTANCE_BINS) - 1)
            counts = [r.distances or none for r in self.layers]
            data["edges"] = (("layer", "distance"), counts, {"long_name": "edges by distance"})
            attributes = {"units": "m", "long_name": "lower end of the bin of distances"}
            coords["distance"] = ("distance", list(DISTANCE_BINS[:-1]), attributes)
        if most := max((len(r.taps) for r in self.layers), default=0):
            by_tap = [[*r.taps, *[math.nan] * (most - len(r.taps))] for r in self.layers]
            long_name = {"long_name": "weights that are not pruned, by tap"}
            data["tap_active"] = (("layer", "tap"), by_tap, long_name)
            coords["tap"] = ("tap", list(range(most)), {"long_name": "place in the stencil"})
        return xr.Dataset(data, coords=coords, attrs={"steps": self.steps})

    def _by_region(self, labels: list[object]) -> dict[str, Any]:
        found = [{region.label: region for region in r.regions} for r in self.layers]
        return {
            f"region_{key}": (
                ("layer", "region"),
                [
                    [getattr(f[name], key) if name in f else math.nan for name in labels]
                    for f in found
                ],
                {"long_name": f"{_LONG_NAMES[key]}, by region"},
            )
            for key in ("size", "active", "sparsity")
        }


def _table_rows(layer: LayerReport) -> list[tuple[str, ...]]:
    """Line of a layer, and of each of its regions."""
    rates = f"{layer.exploration:.3f}", f"{layer.churn:.3f}", str(layer.flops), str(layer.bytes)
    whole = (layer.name, str(layer.size), str(layer.active), f"{layer.sparsity:.4f}", *rates)
    parts = [
        (f"  {r.label}", str(r.size), str(r.active), f"{r.sparsity:.4f}", *[""] * len(rates))
        for r in layer.regions
    ]
    return [whole, *parts]
