"""Reads any log likelihood: posteriors now; limits, calibration and diagnostics have their place here."""

from sbi_core.inference.grid import GridPosterior
from sbi_core.inference.infer import infer
from sbi_core.inference.posterior import Posterior
from sbi_core.inference.samples import SamplePosterior

__all__ = ["GridPosterior", "Posterior", "SamplePosterior", "infer"]
