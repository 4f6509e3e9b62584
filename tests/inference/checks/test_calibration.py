"""Trained heads hold the truth as often as they claim: the bar of the calibration benchmark, and a head that fails."""

import warnings

import pytest

from sbi_core import simulate
from sbi_core.errors import SbiWarning
from sbi_core.estimators import (
    Ensemble,
    LikelihoodEstimator,
    PosteriorEstimator,
    RatioEstimator,
    fit,
    nle,
    npe,
    nre,
    nre_gold,
    scandal,
)
from sbi_core.inference.checks.diagnose import diagnose
from sbi_core.inference.checks.ranks import compared
from sbi_core.parameters import names
from sbi_core.simulators import SLCP, GaltonBoard, LinearGaussian, TwoMoons

LEVELS = (0.5, 0.8, 0.9, 0.95)
KINDS = {nre: RatioEstimator, nre_gold: RatioEstimator, npe: PosteriorEstimator}
KINDS |= {nle: LikelihoodEstimator, scandal: LikelihoodEstimator}
CELLS = [(world, loss, 1) for world in (GaltonBoard, lambda: LinearGaussian(2)) for loss in (nre_gold, scandal, npe)]
CELLS += [(TwoMoons, nre, 5), (TwoMoons, nle, 1), (TwoMoons, npe, 5)]  # of single ones, some seeds miss
CELLS += [(SLCP, nre_gold, 1), (SLCP, npe, 5)]  # likelihoods of SLCP take half an hour: see the benchmark


def meets_the_bar(world, loss, rows, members=1, pairs=500, **options):
    data = simulate(world, rows, seed=1, progress=False)
    options |= {"simulator": world, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SbiWarning)
        each = [fit(KINDS[loss].from_data(data), loss, data, seed=1 + m, **options).estimator for m in range(members)]
    estimator = each[0] if members == 1 else Ensemble(each)
    found = diagnose(estimator, world, n=pairs, seed=1, time_limit=3600, progress=False)
    covered = [float((found.credibility <= level).double().mean()) for level in LEVELS]
    error = [4 * (level * (1 - level) / pairs) ** 0.5 for level in LEVELS]
    bar = zip(LEVELS, covered, error, strict=True)
    checks, _ = compared("ranks", names(world.parameters), found.ranks, 1e-3 * len(world.parameters))
    return all(v - e <= c <= v + 0.08 for v, c, e in bar) and all(check.passed for check in checks)


def test_a_trained_ratio_is_calibrated_and_a_flow_of_few_rows_is_not():
    assert meets_the_bar(GaltonBoard(), nre_gold, 2000, max_epochs=20)
    assert not meets_the_bar(LinearGaussian(2), npe, 30, max_epochs=300), "saboteur: 30 rows"


@pytest.mark.slow
@pytest.mark.parametrize(("make", "loss", "members"), CELLS)
def test_heads_of_ten_thousand_rows_are_calibrated(make, loss, members):
    assert meets_the_bar(make(), loss, 10_000, members)
