"""Worlds: one simulator per file, each with its exact answers where they exist."""

from sbi_core.simulators.asymmetry_toy import AsymmetryToy
from sbi_core.simulators.bernoulli_glm import BernoulliGLM
from sbi_core.simulators.command_simulator import CommandSimulator
from sbi_core.simulators.contact_interaction import ContactInteraction
from sbi_core.simulators.death_process import DeathProcess
from sbi_core.simulators.event_files import StoredEvents, read_madminer
from sbi_core.simulators.galton_board import GaltonBoard
from sbi_core.simulators.lhe_files import Particles, read_lhe, write_lhe
from sbi_core.simulators.linear_gaussian import LinearGaussian
from sbi_core.simulators.morphing import Monomials, Morphing, propose_benchmarks
from sbi_core.simulators.muon_pairs import MuonPairs
from sbi_core.simulators.pyro_simulator import PyroSimulator
from sbi_core.simulators.slcp import SLCP
from sbi_core.simulators.source_location import SourceLocation
from sbi_core.simulators.strong_lensing import StrongLensing
from sbi_core.simulators.two_moons import TwoMoons
from sbi_core.simulators.weighted_events import WeightedEvents

__all__ = [
    "SLCP",
    "AsymmetryToy",
    "BernoulliGLM",
    "CommandSimulator",
    "ContactInteraction",
    "DeathProcess",
    "GaltonBoard",
    "LinearGaussian",
    "Monomials",
    "Morphing",
    "MuonPairs",
    "Particles",
    "PyroSimulator",
    "SourceLocation",
    "StoredEvents",
    "StrongLensing",
    "TwoMoons",
    "WeightedEvents",
    "propose_benchmarks",
    "read_lhe",
    "read_madminer",
    "write_lhe",
]
