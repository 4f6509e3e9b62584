"""Is the posterior true, and is the observation one that it knows?"""

from sbi_core.inference.checks.check import Check
from sbi_core.inference.checks.observation import ObservationCheck, check_observation

__all__ = ["Check", "ObservationCheck", "check_observation"]
