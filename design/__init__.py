"""Experimental design: what an experiment would teach, which one to do next, and the closed loop."""

from sbi_core.design.acquisition import Acquisition, acquire
from sbi_core.design.choice import Choice, propose
from sbi_core.design.experiment import Experiment, Loop
from sbi_core.design.gain import Gain, bracketed
from sbi_core.design.gradient import Ascent, ascend, gain_gradient
from sbi_core.design.information import (
    bracket,
    contrastive_bound,
    latent_bound,
    linear_gaussian_gain,
    nested_bound,
    posterior_gain,
)
from sbi_core.design.learning import Learned, learn
from sbi_core.design.loop import run_loop
from sbi_core.design.nature import Folder, Hidden
from sbi_core.design.screens import barber_agakov, fisher_screen
from sbi_core.design.utilities import expected_limit_width, expected_width

__all__ = [
    "Acquisition",
    "Ascent",
    "Choice",
    "Experiment",
    "Folder",
    "Gain",
    "Hidden",
    "Learned",
    "Loop",
    "acquire",
    "ascend",
    "barber_agakov",
    "bracket",
    "bracketed",
    "contrastive_bound",
    "expected_limit_width",
    "expected_width",
    "fisher_screen",
    "gain_gradient",
    "latent_bound",
    "learn",
    "linear_gaussian_gain",
    "nested_bound",
    "posterior_gain",
    "propose",
    "run_loop",
]
