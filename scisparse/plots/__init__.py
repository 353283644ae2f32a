"""Figures of corrections, skill, calibration, scores and sparsity; readable without colour vision.

Every function returns a `matplotlib.figure.Figure` of its own, outside pyplot, and changes nothing
global. Save it with ``figure.savefig("map.png", dpi=150)``.
"""

from __future__ import annotations

from scisparse.plots.charts import rank_histogram as rank_histogram
from scisparse.plots.charts import score_table as score_table
from scisparse.plots.maps import map_correction as map_correction
from scisparse.plots.maps import map_field as map_field
from scisparse.plots.maps import map_skill as map_skill
from scisparse.plots.sparsity import sparsity_efficiency as sparsity_efficiency
from scisparse.plots.sparsity import sparsity_history as sparsity_history
from scisparse.plots.sparsity import sparsity_report as sparsity_report

__all__ = [
    "map_correction",
    "map_field",
    "map_skill",
    "rank_histogram",
    "score_table",
    "sparsity_efficiency",
    "sparsity_history",
    "sparsity_report",
]
