"""What a sparsifier has done, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["LayerReport", "Report"]


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
    """

    name: str
    size: int
    active: int
    seen: int
    churn: float
    bytes: int

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
        }
        return xr.Dataset(
            {
                key: ("layer", [getattr(r, key) for r in self.layers], {"long_name": text})
                for key, text in numbers.items()
            },
            coords={"layer": [r.name for r in self.layers]},
            attrs={"steps": self.steps},
        )
