"""Fisher information against exact answers."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from sbi_core import InputError, joint_score, simulate
from sbi_core.estimators import (
    Ensemble,
    RatioEstimator,
    ScoreEstimator,
    alices,
    fisher_information,
    fit,
    observed_information,
    sally,
)
from sbi_core.simulators import GaltonBoard, LinearGaussian

WORLD = LinearGaussian(matrix=[[1.0, 0.0], [1.0, 1.0], [0.0, 0.5]])
EXACT = WORLD.fisher_information()
THETA = torch.tensor([0.5, -0.3], dtype=torch.float64)
BOARD, AT = GaltonBoard(), torch.tensor([-0.7], dtype=torch.float64)


@cache
def rows(n=5000, seed=1):
    return simulate(WORLD, n, seed=seed, proposal=THETA, progress=False)


@cache
def balls(n=5000):
    return simulate(BOARD, n, seed=1, proposal=AT, progress=False)


@cache
def scores():
    """Two trained scores of the linear world."""
    data = rows(2000)
    options = {"simulator": WORLD, "max_epochs": 30, "progress": False, "gold_check": False}
    head = ScoreEstimator.from_data(data, hidden=[16])
    return [fit(head, sally, data, seed=seed, **options).estimator for seed in (1, 2, 3)]


def z(found, expected):
    return float(((found.matrix - expected).abs() / found.error).max())


@pytest.mark.parametrize("n", [1, 40])
def test_expected_information_of_an_exact_likelihood(n):
    found = fisher_information(WORLD, rows(), n=n)
    assert z(found, n * EXACT) < 4 and z(found, 1.2 * n * EXACT) > 4, "saboteur: a fifth more"
    assert found.parameters == ("theta_1", "theta_2") and found.kind == "expected" and found.flags == ()
    assert torch.allclose(found.bounds, (n * EXACT).inverse().diagonal().sqrt(), rtol=0.1)


def test_the_board_and_its_latents():
    found, exact = fisher_information(BOARD, balls()), BOARD.fisher_information(AT)
    assert z(found, exact) < 4 and z(found, BOARD.fisher_information(AT, latent=True)) > 4, "saboteur: of the path"
    bound = float(joint_score(BOARD, balls()).var())
    assert abs(bound / float(BOARD.fisher_information(AT, latent=True)) - 1) < 0.1 and bound > float(found.matrix)


def test_rows_of_the_prior_are_weighted():
    data = simulate(BOARD, 5000, seed=1, progress=False)
    found = fisher_information(BOARD, data, AT, simulator=BOARD)
    assert z(found, BOARD.fisher_information(AT)) < 4 and "count as 45" in found.flags[0]
    at_each = replace(data, theta=AT.expand_as(data.theta))
    assert z(fisher_information(BOARD, at_each), BOARD.fisher_information(AT)) > 4, "saboteur: no weights"
    with pytest.raises(InputError, match=r"not all of theta = \[-0.7\].*simulate\(simulator, n, proposal=\[-0.7\]\)"):
        fisher_information(BOARD, data, AT)


def test_errors_are_what_repetition_gives():
    found = [fisher_information(WORLD, rows(20_000, 3)[k * 100 : (k + 1) * 100]) for k in range(200)]
    for every in (found, [one.profiled(["theta_2"]) for one in found]):
        spread = torch.stack([one.matrix for one in every]).std(0)
        said = torch.stack([one.error for one in every]).square().mean(0).sqrt()
        assert ((said / spread - 1).abs() < 0.2).all()
    alone = torch.stack([one.error[1, 1] for one in found]).mean()
    assert alone > 1.2 * said[0, 0], "saboteur: the error before profiling"


def test_profiled_nuisances():
    found = replace(fisher_information(WORLD, rows()), matrix=EXACT)
    profiled = found.profiled(["theta_2"])
    assert torch.allclose(profiled.matrix, 1 / EXACT.inverse()[1:, 1:]) and profiled.matrix[0, 0] < EXACT[1, 1]
    assert profiled.parameters == ("theta_2",) and torch.equal(profiled.theta, THETA[1:])
    turned = found.profiled(["theta_2", "theta_1"])
    assert torch.equal(turned.matrix, EXACT.flip(0, 1)) and torch.equal(turned.error, found.error.flip(0, 1))
    with pytest.raises(InputError, match="no parameter 'theta_3'; did you mean"):
        found.profiled(["theta_3"])
    for wrong in ([], ["theta_1", "theta_1"]):
        with pytest.raises(InputError, match="each once"):
            found.profiled(wrong)


def test_observed_information_of_an_exact_likelihood():
    x = rows().x[:7]
    assert torch.allclose(observed_information(WORLD, x, [1.0, 2.0], iid=True).matrix, 7 * EXACT)
    one = observed_information(WORLD, x[0], THETA)
    assert torch.allclose(one.matrix, EXACT) and one.kind == "observed" and one.error.isnan().all()


def test_observed_information_of_the_board_is_its_curvature():
    x, step = balls().x[:300], 1e-4
    f = BOARD.observe(x)
    curvature = (2 * f(AT) - f(AT + step) - f(AT - step)).sum() / step**2
    found = observed_information(BOARD, x, AT, iid=True).matrix
    assert torch.allclose(found, curvature, rtol=1e-4)
    assert not torch.allclose(found, 300 * BOARD.fisher_information(AT), rtol=1e-4), "saboteur: the expected one"


def test_a_learned_score_and_its_ensemble():
    """The error holds what the members disagree in; noise makes each member's matrix too large."""
    data, both = rows(5000, 7), Ensemble(scores())
    found, one = fisher_information(both, data), fisher_information(scores()[0], data)
    assert ((found.matrix - EXACT).abs() < 0.1 * EXACT.max()).all() and (found.error > one.error).all()
    members = torch.stack([fisher_information(member, data).matrix for member in scores()])
    assert torch.trace(found.matrix) < torch.trace(members.mean(0))
    local = observed_information(both, data.x[:3], THETA, iid=True)
    assert torch.allclose(local.matrix, 3 * EXACT, rtol=0.3, atol=0.1) and (local.error > 0).all()


def test_a_ratio_has_the_same_information_and_its_bias_is_said():
    data = simulate(WORLD, 2000, seed=1, progress=False)
    head = RatioEstimator.from_data(data, hidden=[32])
    options = {"simulator": WORLD, "seed": 1, "max_epochs": 30, "progress": False, "gold_check": False}
    ratio = fit(head, alices, data, **options).estimator
    found = fisher_information(ratio, rows(5000, 7))
    assert ((found.matrix - EXACT).abs() < 0.15 * EXACT.max()).all()

    class Tilted(LinearGaussian):
        """With a term in theta_1 that no ratio training sees is wrong at once."""

        def log_likelihood(self, theta, x, design=None):
            return super().log_likelihood(theta, x) + 5 * theta[..., 0]

    tilted = fisher_information(Tilted(matrix=WORLD.matrix), rows())
    assert torch.allclose(tilted.matrix, fisher_information(WORLD, rows()).matrix), "the mean is taken off"
    assert "mean score" in tilted.flags[0] and tilted.flags[0].endswith("for theta_1")


def test_theta_of_another_length():
    with pytest.raises(InputError, match=r"theta has shape \(1,\), expected \(2,\)"):
        fisher_information(WORLD, rows(), [0.5])
