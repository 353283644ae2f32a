"""Post-processing of forecasts, from xarray to xarray."""

from __future__ import annotations

from scisparse.postprocess.options import Options as Options
from scisparse.postprocess.processor import PostProcessor as PostProcessor

__all__ = [
    "Options",
    "PostProcessor",
]
