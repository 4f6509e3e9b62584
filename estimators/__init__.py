"""Estimators of log p(x | theta): heads, losses, and the one training loop."""

from sbi_core.estimators.embeddings import as_embedding, embedding
from sbi_core.estimators.ensemble import Ensemble
from sbi_core.estimators.estimator import Estimator
from sbi_core.estimators.files import load_estimator
from sbi_core.estimators.fisher import FisherInformation, fisher_information, observed_information
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
    sally,
    scandal,
)
from sbi_core.estimators.posterior import PosteriorEstimator
from sbi_core.estimators.ratio import RatioEstimator
from sbi_core.estimators.score import ScoreEstimator
from sbi_core.estimators.summaries import DirectionEstimator, SummaryEstimator, summarise
from sbi_core.estimators.training import Fit, fit

__all__ = [
    "Batch",
    "DirectionEstimator",
    "Ensemble",
    "Estimator",
    "FisherInformation",
    "Fit",
    "LikelihoodEstimator",
    "PosteriorEstimator",
    "RatioEstimator",
    "ScoreEstimator",
    "SummaryEstimator",
    "alice",
    "alices",
    "as_embedding",
    "carl",
    "cascal",
    "embedding",
    "fisher_information",
    "fit",
    "load_estimator",
    "nle",
    "npe",
    "nre",
    "nre_gold",
    "observed_information",
    "rascal",
    "rolr",
    "sally",
    "scandal",
    "summarise",
]
