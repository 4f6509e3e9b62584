"""Reads any log likelihood: posteriors now; limits, calibration and diagnostics have their place here."""

from sbi_core.inference.grid import GridPosterior
from sbi_core.inference.infer import infer
from sbi_core.inference.posterior import Posterior

__all__ = ["GridPosterior", "Posterior", "infer"]
