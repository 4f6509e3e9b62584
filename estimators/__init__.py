"""Estimators of log p(x | theta): heads, losses, and the one training loop."""

from sbi_core.estimators.estimator import Estimator
from sbi_core.estimators.files import load_estimator
from sbi_core.estimators.losses import Batch, alice, alices, carl, cascal, nre, nre_gold, rascal, rolr
from sbi_core.estimators.ratio import RatioEstimator
from sbi_core.estimators.training import Fit, fit

__all__ = [
    "Batch",
    "Estimator",
    "Fit",
    "RatioEstimator",
    "alice",
    "alices",
    "carl",
    "cascal",
    "fit",
    "load_estimator",
    "nre",
    "nre_gold",
    "rascal",
    "rolr",
]
