"""Post-processing of forecasts, from xarray to xarray."""

from scisparse.postprocess.options import Options as Options
from scisparse.postprocess.processor import PostProcessor as PostProcessor
