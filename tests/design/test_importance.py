"""Thetas near each experiment's posterior: right weights, smaller errors, and none where they are not needed."""

import math
from functools import cache

import pytest
import torch
from known_gains import asymmetry_of_runs
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from sbi_core.design.belief import points
from sbi_core.design.estimates import Rollouts
from sbi_core.design.importance import Near
from sbi_core.design.information import posterior_gain
from sbi_core.design.readers import reader
from sbi_core.design.rollouts import experiments, roll, see
from sbi_core.simulators import LinearGaussian

WORLD = LinearGaussian(5, latent_std=0.5, noise_std=0.5)
GAIN = 2.5 * math.log(3)


def gains(seeds, world=WORLD, n=90, inner=512):
    found = [posterior_gain(world, world, world.prior, n=n, inner=inner, seed=seed) for seed in range(seeds)]
    return torch.tensor([[one.value, one.error, one.evaluations, len(one.flags)] for one in found]).double()


@cache
def five():
    return gains(16)


def rms(values):
    return float(values.square().mean().sqrt())


def test_five_parameters_within_one_percent():
    value, error, evaluations, flags = five().T
    assert rms(value / GAIN - 1) < 0.01 and evaluations.max() < 51_000 and flags.sum() == 0
    assert rms((value - GAIN) / error) < 1.3, "with an error that is as large as it says"
    plain = [
        roll(reader(WORLD), WORLD, WORLD.prior, None, n=97, inner=512, seed=seed).estimate(
            lambda log_sum, mean, inner: mean[:, 0] - log_sum + math.log(inner), corrected=True, controlled=True
        )[0]
        for seed in range(16)
    ]
    assert rms(torch.tensor(plain) / GAIN - 1) > 0.01, "saboteur: thetas of the belief alone"


class Weightless(Near):
    """Saboteur: thetas near the posterior, as if they were of the belief."""

    def __call__(self, value, index):
        theta, weights = super().__call__(value, index)
        return theta, tuple(torch.zeros_like(weight) for weight in weights)


@pytest.mark.parametrize("dims", [1, 3])
def test_evidence_and_posterior_are_those_of_the_belief(dims):
    """Of a normal world both are known at every x; means of both over 40 of them, in errors by the jackknife."""
    world = LinearGaussian(dims, latent_std=0.2, noise_std=0.2)
    rows = experiments(world, points(world.prior, 40, 1), None, 1)
    spread = points(world.prior, 1024, 1, 1)
    evidence = Normal(0.0, math.sqrt(1 + world.variance)).log_prob(rows.x.double()).sum(1)
    mean = rows.x.double() / (1 + world.variance)
    wanted = torch.stack([evidence, mean.sum(1), (mean**2 + world.variance / (1 + world.variance)).sum(1)], 1)

    def pull(kind):
        found = see(reader(world), rows, spread, near=kind(world.prior, 1024, 512, 1))
        terms = (
            lambda log_sum, mean, inner: log_sum - math.log(inner) - wanted[:, 0],
            lambda log_sum, mean, inner: mean[:, 1 : 1 + dims].sum(1) - wanted[:, 1],
            lambda log_sum, mean, inner: mean[:, 1 + dims :].sum(1) - wanted[:, 2],
        )
        off, error = torch.tensor([found.estimate(term, drawn=False) for term in terms]).T
        assert isinstance(found, Rollouts) and found.inner == 1536 and found.effective() > 100
        return float((off / error).abs().max())

    assert pull(Near) < 4 < pull(Weightless)


def test_weights_are_bounded_and_average_to_one():
    prior = Independent(Normal(torch.zeros(2).double(), 1), 1)
    near = Near(prior, 1024, 512, 1)
    theta = points(prior, 1024, 1, 1)
    value = -((theta[None] - torch.tensor([[1.0, 0.0], [-1.0, 1.0]]).double()[:, None]) ** 2).sum(-1) / 0.1
    drawn, (old, new) = near(value, torch.arange(2))
    assert drawn.shape == (2, 512, 2) and old.exp().max() <= 1.5 + 1e-9 and new.exp().max() <= 1.5 + 1e-9
    total = (old.exp().sum(1) + new.exp().sum(1)) / 1536
    assert torch.allclose(total, torch.ones(2).double(), atol=0.02), total
    assert (drawn.mean(1)[0] - torch.tensor([1.0, 0.0])).norm() < 0.3, "they are where the likelihood is"


def test_a_common_set_stays_where_it_is_enough():
    """Of the asymmetry toy more than half matter; of beliefs without quantiles nothing nearer can be drawn."""
    known = asymmetry_of_runs(50.0, 20)
    options = {"n": 64, "inner": 64, "seed": 1}
    near, plain = (
        roll(reader(known.simulator), known.simulator, known.prior, known.design, **options, near=asked)
        for asked in (True, False)
    )
    assert torch.equal(near.log_sum, plain.log_sum) and near.evaluations > plain.evaluations
    two = Independent(Normal(torch.tensor([[-1.0] * 5, [1.0] * 5]).double(), 0.5), 1)
    belief = MixtureSameFamily(Categorical(torch.ones(2)), two)
    found = [roll(reader(WORLD), WORLD, belief, None, **options, near=asked) for asked in (True, False)]
    assert torch.equal(found[0].log_sum, found[1].log_sum) and found[0].evaluations == found[1].evaluations


def test_one_seed_is_one_estimate_and_unresolved_posteriors_are_flagged():
    assert gains(2)[0].equal(gains(1)[0]) and gains(2)[0, 0] != gains(2)[1, 0]
    narrow = LinearGaussian(5, latent_std=0.02, noise_std=0.02)
    assert gains(4, narrow, 64, 64)[:, 3].min() > 0, "18 nats are beyond 64 thetas"


def test_hard_edges_leave_thetas_and_weights_finite():
    """One theta that is possible, or none at all."""
    value = torch.full((2, 64), -torch.inf).double()
    value[0, 7] = 0.0
    theta, (old, new) = Near(WORLD.prior, 64, 64, 1)(value, torch.arange(2))
    assert theta.isfinite().all() and old.isfinite().all() and new.isfinite().all()
    assert torch.allclose((old.exp().sum(1) + new.exp().sum(1))[1], torch.tensor(128.0).double(), rtol=0.1)
