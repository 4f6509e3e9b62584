"""Trained heads hold the truth as often as they claim: the bar of the calibration benchmark, and a head that fails."""

import warnings

import pytest

from sbi_core import simulate
from sbi_core.errors import SbiWarning
from sbi_core.estimators import LikelihoodEstimator, PosteriorEstimator, RatioEstimator, alices, fit, npe, scandal
from sbi_core.inference.checks.diagnose import diagnose
from sbi_core.inference.checks.ranks import compared
from sbi_core.parameters import names
from sbi_core.simulators import GaltonBoard, LinearGaussian

LEVELS = (0.5, 0.8, 0.9, 0.95)
HEADS = {"ratio": (RatioEstimator, alices), "likelihood": (LikelihoodEstimator, scandal)}
HEADS |= {"posterior": (PosteriorEstimator, npe)}


def meets_the_bar(world, head, rows, pairs=500, **options):
    kind, loss = HEADS[head]
    data = simulate(world, rows, seed=1, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SbiWarning)
        run = fit(kind.from_data(data), loss, data, simulator=world, seed=1, progress=False, **options)
    found = diagnose(run.estimator, world, n=pairs, seed=1, progress=False)
    covered = [float((found.credibility <= level).double().mean()) for level in LEVELS]
    error = [4 * (level * (1 - level) / pairs) ** 0.5 for level in LEVELS]
    bar = zip(LEVELS, covered, error, strict=True)
    checks, _ = compared("ranks", names(world.parameters), found.ranks, 1e-3 * len(world.parameters))
    return all(v - e <= c <= v + 0.08 for v, c, e in bar) and all(check.passed for check in checks)


def test_a_trained_ratio_is_calibrated_and_a_flow_of_few_rows_is_not():
    assert meets_the_bar(GaltonBoard(), "ratio", 2000, max_epochs=20)
    assert not meets_the_bar(LinearGaussian(2), "posterior", 30, max_epochs=300), "saboteur: 30 rows"


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("world", [GaltonBoard(), LinearGaussian(2)], ids=["galton", "linear"])
def test_heads_of_ten_thousand_rows_are_calibrated(world, head):
    assert meets_the_bar(world, head, 10_000)
