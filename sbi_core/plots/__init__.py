"""Pictures, with matplotlib. Every function draws on `axes` (new ones if none are given) and returns them."""

from sbi_core.plots.checks import closure, coverage, predictive, ranks
from sbi_core.plots.design import gain_curve, gain_curves, gain_map, gains_by_round, shrinking, widths_by_round
from sbi_core.plots.limits import coverage_map, neyman_belt, profile, ratio_calibration, region
from sbi_core.plots.posteriors import corner, posterior_1d, posterior_2d
from sbi_core.plots.run import board, gold_scores, learned_against_exact, log_ratios, observation, training_curves
from sbi_core.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, STYLE, VERMILION, style

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "STYLE",
    "VERMILION",
    "board",
    "closure",
    "corner",
    "coverage",
    "coverage_map",
    "gain_curve",
    "gain_curves",
    "gain_map",
    "gains_by_round",
    "gold_scores",
    "learned_against_exact",
    "log_ratios",
    "neyman_belt",
    "observation",
    "posterior_1d",
    "posterior_2d",
    "predictive",
    "profile",
    "ranks",
    "ratio_calibration",
    "region",
    "shrinking",
    "style",
    "training_curves",
    "widths_by_round",
]
