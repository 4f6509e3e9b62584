"""Bands that hold as often as they say, ranks that are uniform, levels that are repaired."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from measures import z_of_mean
from sabotage import linear
from scipy.stats import binom

from sbi_core import InputError
from sbi_core.inference.checks.coverage import coverage, information, reference_ranks
from sbi_core.inference.checks.ranks import POINTS, band, compared, credibility, normal_scores, ranks
from sbi_core.inference.checks.repair import Recalibration
from sbi_core.inference.posterior import Posterior
from sbi_core.seeding import seeded


@pytest.mark.parametrize(("n", "false_alarm"), [(100, 0.05), (1000, 0.01)])
def test_the_band_is_left_as_often_as_it_says(n, false_alarm):
    at, low, high = band(n, false_alarm)
    places = np.minimum((np.random.default_rng(1).random((10_000, n)) * POINTS).astype(int), POINTS - 1)
    count = np.stack([np.bincount(row, minlength=POINTS) for row in places]).cumsum(1)[:, :-1]
    left = ((count < low) | (count > high)).any(1)
    error = (false_alarm * (1 - false_alarm) / len(left)) ** 0.5
    assert abs(left.mean() - false_alarm) < 4 * error
    low, high = binom.ppf(false_alarm / 2, n, at), binom.isf(false_alarm / 2, n, at)
    pointwise = ((count < low) | (count > high)).any(1)
    assert abs(pointwise.mean() - false_alarm) > 4 * error, "saboteur: a band for each place alone"


def test_ranks_are_uniform_with_ties_and_without():
    with seeded(1):
        values = torch.randint(3, (4000, 10)).double()
        found = ranks(values[:, 0], values[:, 1:])
        moments = torch.stack([found, found**2, found**3], 1) - torch.tensor([1 / 2, 1 / 3, 1 / 4])
        plain = ((values[:, 1:] < values[:, :1]).sum(1) + 0.5) / 10
    assert z_of_mean(moments) < 4
    assert z_of_mean(plain - 0.5) > 4, "saboteur: ties at their lower end"


def test_right_posteriors_pass_and_wrong_ones_do_not():
    for fault, passes in (("", True), ("narrow", False)):
        pairs = linear(fault)
        with seeded(2):
            each = ranks(pairs.theta, pairs.draws)
            checks, curves = compared("ranks", ("a", "b"), each, 1e-3)
            scores = normal_scores(("a", "b"), each, 1e-3)
            covered = coverage(credibility(pairs), 1e-3)
            near, _ = compared("TARP", ("",), reference_ranks(pairs)[:, None], 1e-3)
        for group in (checks, scores, covered, near):
            assert all(check.passed for check in group) == passes, group
        assert len(curves[0].at) == len(curves[0].value) and [curve.about for curve in curves] == ["a", "b"]
    assert all(abs(check.value - 0.85**-2) < 4 * (2 / 1000) ** 0.5 * 0.85**-2 for check in scores[1::2])


def test_information_tells_more_than_the_prior_from_less():
    pairs = linear()
    found = information(pairs, 1e-3)
    exact = 0.5 * float(torch.linalg.slogdet(torch.eye(2) + (m := torch.tensor([[1.0, 0.3], [0.2, 2.0]])).T @ m / 5)[1])
    error = float((pairs.log_q - pairs.log_prior).std()) / len(pairs) ** 0.5
    assert found.passed is True and abs(found.value - exact) < 4 * error
    assert information(linear("swapped"), 1e-3).passed is False
    with seeded(1):
        nothing = replace(pairs, log_q=pairs.log_prior + 0.1 * torch.randn(1000))
    assert information(nothing, 1e-3).passed is None
    lost = replace(pairs, log_q=torch.full((1000,), -torch.inf))
    assert information(lost, 1e-3).passed is False


@pytest.mark.parametrize("nominal", [0.5, 0.9])
def test_levels_are_repaired(nominal):
    """Coverage on fresh pairs, by levels that other pairs of the same wrong posteriors gave."""
    with seeded(3):
        held, fresh = (credibility(linear("narrow", n=4000, seed=seed, width=0.6)) for seed in (1, 2))
    repair = Recalibration(held.sort().values)
    error = (2 * nominal * (1 - nominal) / 4000) ** 0.5  # of both samples
    assert abs(float((fresh <= repair.level(nominal)).double().mean()) - nominal) < 4 * error
    assert abs(float((fresh <= nominal).double().mean()) - nominal) > 4 * error, "saboteur: levels as they were"


def test_conformal_levels_by_hand():
    repair = Recalibration(torch.tensor([0.1, 0.4, 0.6, 0.95], dtype=torch.float64))
    assert [repair.level(v) for v in (0.2, 0.5, 0.8, 0.81)] == [0.1, 0.6, 0.95, 1.0]
    with pytest.raises(InputError, match=r"level 1\.2"):
        repair.level(1.2)


class Line(Posterior):
    """Standard normal in one dimension."""

    verdicts = {"coverage": "unchecked"}  # noqa: RUF012

    def log_prob(self, theta):
        return -theta[..., 0].abs()

    def threshold(self, level):
        return torch.tensor(-10 * level)


def test_a_repaired_posterior_says_so_and_quotes_wider_regions():
    posterior = Line(event_shape=torch.Size([1]), validate_args=False)
    repaired = Recalibration(torch.linspace(0, 1, 999).double() ** 0.5)(posterior)
    at = torch.tensor([[6.0]])
    assert not posterior.contains(at, 0.5) and repaired.contains(at, 0.5)
    assert "recalibrated by 999" in repaired.verdicts["coverage"] and posterior.verdicts["coverage"] == "unchecked"
