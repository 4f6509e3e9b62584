"""Reads any log likelihood: posteriors, their checks, and limits."""

from sbi_core.inference.checks import Check, ObservationCheck, check_observation
from sbi_core.inference.grid import GridPosterior
from sbi_core.inference.infer import infer
from sbi_core.inference.posterior import Posterior
from sbi_core.inference.samples import SamplePosterior

__all__ = ["Check", "GridPosterior", "ObservationCheck", "Posterior", "SamplePosterior", "check_observation", "infer"]
