import pytest
import torch
from measures import z_of_mean
from torch.distributions import Independent, Normal

from sbi_core import InputError, infer, simulate
from sbi_core.estimators import LikelihoodEstimator, PosteriorEstimator, fit, npe
from sbi_core.simulators import LinearGaussian

WORLD = LinearGaussian(3)
X = torch.tensor([1.0, -0.5, 2.0])
QUICK = {"max_epochs": 20, "seed": 1, "progress": False}


@pytest.fixture(scope="module")
def flow():
    data = simulate(WORLD, 2000, seed=1, progress=False)
    return fit(PosteriorEstimator.from_data(data, transforms=2), npe, data, **QUICK).estimator


def test_draws_are_those_of_the_flow(flow):
    posterior = infer(flow, WORLD.prior, X, seed=1)
    assert posterior.verdicts["direct draws"] == "10000 of 10000 draws are effective"
    assert posterior.verdicts["normalisation"].endswith(", 0.000")
    with torch.no_grad():
        assert torch.allclose(posterior.log_prob(posterior.draws[0, :9]), flow.log_posterior(posterior.draws[0, :9], X))
    chains = infer(flow, WORLD.prior, X, seed=2, method="hmc")
    said = chains.verdicts["chains"]
    effective = int(said.split("draws ")[1].split()[0])
    assert said.startswith("20 chains agree")
    for phi in (lambda theta: theta, torch.square):
        ours, theirs = phi(posterior.draws[0]), phi(chains.draws.flatten(0, 1))
        error = theirs.std(0) * (1 / len(ours) + 1 / effective) ** 0.5
        assert ((ours.mean(0) - theirs.mean(0)) / error).abs().max() < 4
        wrong = phi(posterior.draws[0] + 0.5 * posterior.stddev)
        assert ((wrong.mean(0) - theirs.mean(0)) / error).abs().max() > 4, "saboteur: shifted"


def test_another_prior_weighs_the_draws(flow):
    other = Independent(Normal(torch.tensor([0.5, 0.0, 0.0]).double(), 0.8), 1)
    posterior = infer(flow, other, X, seed=1)
    effective = int(posterior.verdicts["direct draws"].split()[0])
    assert 400 < effective < 9000
    chains = infer(flow, other, X, seed=2, method="hmc")
    error = posterior.stddev * (1 / effective + 1 / 900) ** 0.5
    assert ((posterior.mean - chains.mean) / error).abs().max() < 4
    unweighted = posterior.draws[0].mean(0)
    assert ((unweighted - chains.mean) / error).abs().max() > 8, "saboteur: the prior it was trained on"
    evidence = [float(p.verdicts["normalisation"].split(", ")[1]) for p in (posterior, chains)]
    assert evidence[0] == pytest.approx(evidence[1], abs=0.15)


def test_a_batch_of_observations(flow):
    many = infer(flow, WORLD.prior, torch.stack([X, -X]), batch=True, method="direct", n=4000, seed=1)
    assert many.batch_shape == (2,) and many.draws.shape == (1, 4000, 2, 3)
    for row, sign in enumerate((1, -1)):
        alone = infer(flow, WORLD.prior, sign * X, method="direct", n=4000, seed=2)
        assert z_of_mean(many.draws[0, :, row] - alone.mean) < 5.6  # both are noisy: sqrt(2) * 4
        assert z_of_mean(many.draws[0, :, 1 - row] - alone.mean) > 5.6, "saboteur: the other observation"


def test_auxiliary_measurements_count(flow):
    measured = {WORLD.parameters[0].name: Normal(torch.tensor(0.0).double(), 0.2)}
    with_it, without = (infer(flow, WORLD.prior, X, seed=1, constraints=found) for found in (measured, {}))
    assert with_it.stddev[0] < 0.25 < 0.5 < without.stddev[0]


def test_where_it_does_not_serve(flow):
    with pytest.raises(InputError, match="posterior flow and a single observation"):
        infer(flow, WORLD.prior, torch.stack([X, X]), iid=True, method="direct")
    with pytest.raises(InputError, match="LinearGaussian with this x_obs is not that"):
        infer(WORLD, WORLD.prior, X, method="direct")
    assert "chains" in infer(flow, WORLD.prior, torch.stack([X, X]), iid=True, n=100, chains=2, seed=1).verdicts
    assert not hasattr(LikelihoodEstimator, "log_posterior")
