"""Estimators of log p(x | theta): heads, losses, and the one training loop."""

from sbi_core.estimators.ensemble import Ensemble
from sbi_core.estimators.estimator import Estimator
from sbi_core.estimators.files import load_estimator
from sbi_core.estimators.likelihood import LikelihoodEstimator
from sbi_core.estimators.losses import (
    Batch,
    alice,
    alices,
    carl,
    cascal,
    nle,
    npe,
    nre,
    nre_gold,
    rascal,
    rolr,
    scandal,
)
from sbi_core.estimators.posterior import PosteriorEstimator
from sbi_core.estimators.ratio import RatioEstimator
from sbi_core.estimators.training import Fit, fit

__all__ = [
    "Batch",
    "Ensemble",
    "Estimator",
    "Fit",
    "LikelihoodEstimator",
    "PosteriorEstimator",
    "RatioEstimator",
    "alice",
    "alices",
    "carl",
    "cascal",
    "fit",
    "load_estimator",
    "nle",
    "npe",
    "nre",
    "nre_gold",
    "rascal",
    "rolr",
    "scandal",
]
