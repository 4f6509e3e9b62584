"""Worlds: one simulator per file, each with its exact answers where they exist."""

from sbi_core.simulators.galton_board import GaltonBoard
from sbi_core.simulators.linear_gaussian import LinearGaussian

__all__ = ["GaltonBoard", "LinearGaussian"]
