"""Losses for probabilistic forecasts: the CRPS family, their mean, and forecast distributions.

Needs torch alone. Units: a score has those of the observations; `lower` and `upper` too.
"""

from __future__ import annotations

from scisparse.losses.crps import crps_censored_normal as crps_censored_normal
from scisparse.losses.crps import crps_ensemble as crps_ensemble
from scisparse.losses.crps import crps_normal as crps_normal
from scisparse.losses.crps import crps_truncated_normal as crps_truncated_normal
from scisparse.losses.distributions import CensoredNormal as CensoredNormal
from scisparse.losses.distributions import Distribution as Distribution
from scisparse.losses.distributions import Normal as Normal
from scisparse.losses.distributions import TruncatedNormal as TruncatedNormal
from scisparse.losses.distributions import distribution as distribution
from scisparse.losses.reduction import weighted_mean as weighted_mean

__all__ = [
    "CensoredNormal",
    "Distribution",
    "Normal",
    "TruncatedNormal",
    "crps_censored_normal",
    "crps_ensemble",
    "crps_normal",
    "crps_truncated_normal",
    "distribution",
    "weighted_mean",
]
