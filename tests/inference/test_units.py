"""The same world in other units: x in thousandths and from another zero, theta in degrees."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

from sbi_core import Parameter, Simulations, UniformPrior, infer
from sbi_core.estimators import LikelihoodEstimator, PosteriorEstimator, RatioEstimator, carl, fit, nle, npe
from sbi_core.simulators import LinearGaussian

DEGREES = 180 / math.pi
X = np.array([0.5, -0.5])
HEADS = {"carl": (RatioEstimator, carl), "nle": (LikelihoodEstimator, nle), "npe": (PosteriorEstimator, npe)}


def in_units(method, *, theta_unit, x_unit, x_zero, seed=1):
    """The posterior of theta in its unit, learned and observed in units of x."""
    rng = np.random.default_rng(0)
    theta = rng.uniform(-2, 2, (1500, 2))
    x = theta + 0.3 * rng.standard_normal(theta.shape)
    end = 2 * theta_unit
    parameters = [Parameter(name, -end, end) for name in ("a", "b")]
    prior = UniformPrior(parameters)
    rows = Simulations.from_arrays(theta * theta_unit, x * x_unit + x_zero, parameters=parameters, proposal=prior)
    head, loss = HEADS[method]
    options = {"transforms": 2} if head is not RatioEstimator else {}
    run = fit(head.from_data(rows, **options), loss, rows, max_epochs=15, seed=seed, progress=False)
    return infer(run.estimator, prior, X * x_unit + x_zero, seed=1)


@pytest.mark.parametrize("method", HEADS)
def test_a_learned_posterior_maps_back(method):
    plain = in_units(method, theta_unit=1.0, x_unit=1.0, x_zero=0.0)
    other = in_units(method, theta_unit=DEGREES, x_unit=1e3, x_zero=70.0)
    again = in_units(method, theta_unit=DEGREES, x_unit=1e3, x_zero=70.0, seed=2)

    def off(posterior):
        """Largest difference of mean, sd and interval ends, in standard deviations."""
        ends = [part.credible_interval(0.9) for part in (posterior, plain)]
        pairs = [(posterior.mean, plain.mean), (posterior.stddev, plain.stddev), *zip(*ends, strict=True)]
        return max(float(((found / DEGREES - expected) / plain.stddev).abs().max()) for found, expected in pairs)

    assert off(other) < 1e-3
    assert off(again) > 1e-2, "saboteur: another training, which units must not be"


class InDegrees(LinearGaussian):
    """The same exact likelihood for theta in degrees."""

    def log_likelihood(self, theta, x, design=None):
        return super().log_likelihood(theta / DEGREES, x, design)


@pytest.mark.parametrize("method", ["grid", "hmc", "importance"])
def test_a_method_maps_back(method):
    plain, other = LinearGaussian(2, prior_std=1.0), InDegrees(2, prior_std=1.0)
    x_obs = torch.tensor([1.0, -2.0])
    scaled = Independent(Normal(torch.zeros(2).double(), DEGREES), 1)
    exact, found = plain.posterior(x_obs), infer(other, scaled, x_obs, method=method, seed=1)
    effective = 1e6 if method == "grid" else 400
    z = (found.mean / DEGREES - exact.mean) / exact.stddev * effective**0.5
    assert z.abs().max() < 4
    assert torch.allclose(found.stddev / DEGREES, exact.stddev, rtol=4 / (2 * effective) ** 0.5)
    evidence = float(infer(plain, plain.prior, x_obs, method="hmc", seed=1).verdicts["normalisation"].split(", ")[1])
    if method != "grid":
        assert float(found.verdicts["normalisation"].split(", ")[1]) == pytest.approx(evidence, abs=0.2)
