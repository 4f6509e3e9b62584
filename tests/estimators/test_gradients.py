"""The gradient of every estimator in theta is that of its own values."""

import pytest
import torch

from sbi_core import simulate
from sbi_core.estimators import (
    Ensemble,
    LikelihoodEstimator,
    PosteriorEstimator,
    RatioEstimator,
    ScoreEstimator,
    alices,
    fit,
    nle,
    npe,
    sally,
    scandal,
)
from sbi_core.simulators import LinearGaussian

WORLD = LinearGaussian(10)
METHODS = {
    "alices": (RatioEstimator, alices, {}),
    "scandal": (LikelihoodEstimator, scandal, {}),
    "nle, maf": (LikelihoodEstimator, nle, {"flow": "maf"}),
    "nle, couplings": (LikelihoodEstimator, nle, {"flow": "spline_coupling"}),
    "npe": (PosteriorEstimator, npe, {}),
    "sally": (ScoreEstimator, sally, {"theta_ref": [0.0] * 10}),
}


def trained(method):
    head, loss, options = METHODS[method]
    where = {"proposal": torch.zeros(10).double()} if head is ScoreEstimator else {}
    data = simulate(WORLD, 400, seed=1, progress=False, **where)
    options = options if head in (RatioEstimator, ScoreEstimator) else {"transforms": 2, **options}
    return fit(
        head.from_data(data, **options), loss, data, simulator=WORLD, seed=1, max_epochs=3, progress=False
    ).estimator


def mismatch(estimator, slope=1.0):
    """Distance of the gradient, times `slope`, from central differences, relative to its size; (400, 10) numbers."""
    data = simulate(WORLD, 40, seed=2, progress=False)
    theta = data.theta.clone().requires_grad_()
    gradient = torch.autograd.grad(estimator.log_likelihood(theta, data.x).sum(), theta)[0]
    step, columns = 0.005, []  # splines have knots, float32 has noise
    with torch.no_grad():
        for axis in torch.eye(10).double():
            ends = [estimator.log_likelihood(data.theta + way * step * axis, data.x).double() for way in (1, -1)]
            columns.append((ends[0] - ends[1]) / (2 * step))
    found = torch.stack(columns, 1)
    return float((slope * gradient - found).norm() / found.norm())


@pytest.mark.parametrize("method", METHODS)
def test_gradients_agree_with_finite_differences(method):
    estimator = trained(method)
    assert mismatch(estimator) < 0.01
    assert not mismatch(estimator, slope=0.97) < 0.01, "saboteur: three parts in a hundred off"


def test_the_gradient_of_an_ensemble():
    both = Ensemble([trained("alices"), trained("alices")])
    assert mismatch(both) < 0.01
