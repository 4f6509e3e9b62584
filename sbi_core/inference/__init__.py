"""Reads any log likelihood: posteriors, their checks, and limits."""

from sbi_core.inference.checks import Check, ObservationCheck, check_observation
from sbi_core.inference.checks.diagnose import diagnose
from sbi_core.inference.checks.diagnosis import CalibrationError, Diagnosis
from sbi_core.inference.frequentist import Limits, calibrate_ratio, coverage_map, expected_limits, fit_rate, limits
from sbi_core.inference.grid import GridPosterior
from sbi_core.inference.infer import infer
from sbi_core.inference.posterior import Posterior
from sbi_core.inference.samples import SamplePosterior

__all__ = [
    "CalibrationError",
    "Check",
    "Diagnosis",
    "GridPosterior",
    "Limits",
    "ObservationCheck",
    "Posterior",
    "SamplePosterior",
    "calibrate_ratio",
    "check_observation",
    "coverage_map",
    "diagnose",
    "expected_limits",
    "fit_rate",
    "infer",
    "limits",
]
