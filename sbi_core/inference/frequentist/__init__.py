"""Limits with frequentist guarantees: maximum likelihood, profiles, toys."""

from sbi_core.inference.frequentist.coverage import Coverage, coverage_map
from sbi_core.inference.frequentist.expected import expected_limits
from sbi_core.inference.frequentist.intervals import Interval
from sbi_core.inference.frequentist.limits import limits
from sbi_core.inference.frequentist.neyman import Belt
from sbi_core.inference.frequentist.rates import FittedRate, fit_rate
from sbi_core.inference.frequentist.ratio_calibration import RatioCalibration, calibrate_ratio
from sbi_core.inference.frequentist.record import Limits

__all__ = [
    "Belt",
    "Coverage",
    "FittedRate",
    "Interval",
    "Limits",
    "RatioCalibration",
    "calibrate_ratio",
    "coverage_map",
    "expected_limits",
    "fit_rate",
    "limits",
]
