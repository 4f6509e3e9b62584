"""The posterior of an ensemble is the mixture of its members' posteriors, by every method."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from sbi_core import infer, simulate
from sbi_core.errors import InputError
from sbi_core.estimators import Ensemble, PosteriorEstimator, fit, npe
from sbi_core.inference.checks.pairs import posterior_draws
from sbi_core.simulators import LinearGaussian

EYE, NARROW = torch.eye(2).double(), {"latent_std": 0.3, "noise_std": 0.1}
X = torch.tensor([2.0, -1.5]).double()


class Two(LinearGaussian):
    """An ensemble whose members' posteriors are narrow and apart; its own likelihood is the mean of theirs, in nats."""

    members = (LinearGaussian(2, **NARROW), LinearGaussian(matrix=2 * EYE, **NARROW))


WORLD = Two(2)


def exact(x=X):
    """What each member finds."""
    found = []
    for one in WORLD.members:
        precision = EYE + one.matrix.T @ one.matrix / one.variance
        mean = torch.linalg.solve(precision, one.matrix.T @ x[..., None] / one.variance)[..., 0]
        found.append(MultivariateNormal(mean, precision_matrix=precision))
    return found


def moments(x=X):
    """Mean and variance of the mixture."""
    mean, variance = (torch.stack([getattr(q, name) for q in exact(x)]) for name in ("mean", "variance"))
    return mean.mean(0), variance.mean(0) + mean.var(0, unbiased=False)


def log_density(theta, x=X):
    return torch.stack([q.log_prob(theta) for q in exact(x)]).logsumexp(0) - math.log(2)


@pytest.mark.parametrize("method", ["grid", "hmc", "importance"])
def test_it_is_the_mixture_of_the_members(method):
    posterior = infer(WORLD, WORLD.prior, X, method=method, seed=1)
    mean, variance = moments()
    assert ((posterior.mean - mean).abs() < 0.1 * variance.sqrt()).all()
    assert ((posterior.variance / variance).log().abs() < 0.15).all()
    assert (torch.stack([q.variance for q in exact()]) < 0.7 * variance).all(), "saboteur: one member alone"
    points = torch.stack([q.mean for q in exact()])
    assert torch.allclose(posterior.log_prob(points), log_density(points), atol=0.05)
    for member, q in zip(posterior.members, exact(), strict=True):
        assert ((member.mean - q.mean).abs() < 0.2 * q.stddev).all()
        assert member.verdicts["spread of trainings"] == "unchecked" and member.seed == 1
    assert [member.event_shape for member in posterior.marginal(["theta_2"]).members] == [(1,), (1,)]
    worst = float((points.std(0) / variance.sqrt()).max())
    assert float(posterior.verdicts["spread of trainings"].split()[0]) == pytest.approx(worst, abs=0.1)


@pytest.mark.parametrize("method", ["grid", "hmc"])
def test_batches_have_a_mixture_each(method):
    x = torch.stack([X, -X, 0 * X])
    posterior = infer(WORLD, WORLD.prior, x, batch=True, method=method, seed=1)
    mean, variance = moments(x)
    assert ((posterior.mean - mean).abs() < 0.15 * variance.sqrt()).all()
    assert ((posterior.stddev / variance.sqrt()).log().abs() < 0.1).all()
    assert posterior.log_prob(mean).shape == (3,)
    wanted = torch.stack([log_density(*row) for row in zip(mean, x, strict=True)])
    assert torch.allclose(posterior.log_prob(mean), wanted, atol=0.1)


def test_sets_are_mixed_as_sets():
    """The mixture of the posteriors of three observations, not three mixtures."""
    posterior = infer(WORLD, WORLD.prior, X.repeat(3, 1), iid=True)
    tighter = [EYE + 3 * one.matrix.T @ one.matrix / one.variance for one in WORLD.members]
    assert torch.allclose(
        torch.stack([member.variance for member in posterior.members]),
        torch.stack([torch.linalg.inv(precision).diagonal() for precision in tighter]),
        rtol=0.02,
    )


@pytest.mark.parametrize("method", ["grid", "chains"])
def test_checks_read_the_mixture(method):
    x = X.repeat(40, 1)
    pairs = posterior_draws(WORLD, WORLD.prior, x, x, method=method, seed=1)
    mean, variance = moments()
    draws = pairs.draws.flatten(0, 1)
    assert ((draws.mean(0) - mean).abs() < 4 * (variance / 1000).sqrt()).all(), "a fourth of the draws are independent"
    assert ((draws.std(0) / variance.sqrt()).log().abs() < 0.1).all()
    assert torch.allclose(pairs.log_q_draws, log_density(pairs.draws), atol=0.15)
    assert torch.allclose(pairs.log_q, log_density(x), atol=0.15)


def test_flows_are_mixed_by_their_draws():
    data = simulate(LinearGaussian(3), 300, seed=1, progress=False)
    options = {"max_epochs": 2, "progress": False}
    flows = [fit(PosteriorEstimator.from_data(data, transforms=2), npe, data, seed=s, **options) for s in (1, 2)]
    both = Ensemble([run.estimator for run in flows])
    prior, x = LinearGaussian(3).prior, torch.zeros(3).double()
    posterior = infer(both, prior, x, seed=1, n=500)
    assert posterior.draws.shape == (1, 1000, 3) and "direct draws" in posterior.verdicts
    assert posterior.log_weight is None, "trained on this prior, all draws count the same"
    values = [run.estimator.log_posterior(posterior.mean, x) for run in flows]
    wanted = torch.stack(values).double().logsumexp(0) - math.log(2)
    assert torch.allclose(posterior.log_prob(posterior.mean), wanted, atol=1e-4)
    pairs = posterior_draws(both, prior, x[None], x[None], seed=1)
    assert pairs.method == "direct" and torch.allclose(pairs.log_q, posterior.log_prob(x[None]), atol=1e-4)


def test_nuts_serves_one_training_at_a_time():
    with pytest.raises(InputError, match="one observation and one training"):
        infer(WORLD, WORLD.prior, X, method="nuts")
