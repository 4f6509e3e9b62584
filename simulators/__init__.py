"""Worlds: one simulator per file, each with its exact answers where they exist."""

from sbi_core.simulators.asymmetry_toy import AsymmetryToy
from sbi_core.simulators.bernoulli_glm import BernoulliGLM
from sbi_core.simulators.command_simulator import CommandSimulator
from sbi_core.simulators.death_process import DeathProcess
from sbi_core.simulators.galton_board import GaltonBoard
from sbi_core.simulators.linear_gaussian import LinearGaussian
from sbi_core.simulators.muon_pairs import MuonPairs
from sbi_core.simulators.pyro_simulator import PyroSimulator
from sbi_core.simulators.slcp import SLCP
from sbi_core.simulators.source_location import SourceLocation
from sbi_core.simulators.strong_lensing import StrongLensing
from sbi_core.simulators.two_moons import TwoMoons

__all__ = [
    "SLCP",
    "AsymmetryToy",
    "BernoulliGLM",
    "CommandSimulator",
    "DeathProcess",
    "GaltonBoard",
    "LinearGaussian",
    "MuonPairs",
    "PyroSimulator",
    "SourceLocation",
    "StrongLensing",
    "TwoMoons",
]
