"""Chosen simulations: where members disagree, inside what is believed, and learned from rightly."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from sbi_core import InputError, MissingGold, Parameter, SbiWarning, Simulator, UniformPrior
from sbi_core.design import acquire
from sbi_core.design.explore import Explored, at_x_obs
from sbi_core.design.label import CONTRASTS, Labeller
from sbi_core.design.region import BAND, Cloud, edge, survey
from sbi_core.estimators import LikelihoodEstimator, RatioEstimator, fit, nle, npe, nre, nre_gold, sally

LINE = [Parameter("a", -1.0, 1.0)]
SMALL = {"max_epochs": 30, "gold_check": False}


def box(dims):
    return UniformPrior([Parameter(f"t{k}", -1.0, 1.0) for k in range(dims)])


def member(function):
    """What `Trainings` reads of an estimator: theta (*, 1) -> nats, whatever x."""
    return SimpleNamespace(axes=tuple(LINE), x_shape=(1,), observe=lambda x, design=None: lambda t: function(t[..., 0]))


class Shifted(Simulator):
    """x ~ N(theta, sigma^2) along each axis, theta uniform on [-1, 1]^D; design, if any, is the slope."""

    x_shape = (1,)
    rows_per_seed = 50

    def __init__(self, sigma=0.1, slopes=False):
        self.sigma = sigma
        self.parameters = tuple(LINE)
        self.designs = (Parameter("slope", 0.0, 2.0),) if slopes else ()

    def sample(self, theta, design, generator):
        mean = theta if design is None else design * theta
        return mean + self.sigma * torch.randn(theta.shape, generator=generator, dtype=torch.float64), None

    def log_likelihood(self, theta, x, design=None):
        mean = theta if design is None else design * theta
        return -(((x - mean) / self.sigma) ** 2).sum(-1) / 2


def normal_look(sigma, at=0.0):
    return lambda theta: -(((theta - at) / sigma) ** 2).sum(-1)[None] / 2


# --- where members disagree


def disagreeing():
    """At .5 they do, where both believe; at -.8, which neither believes in, more; constants mean nothing."""

    def one(sign, constant):
        def look(t):
            off = (t - 0.5) / 0.05
            tail = torch.where(t < -0.6, -40 + 10 * sign, 0.0)
            return constant + 0.3 * sign * off * (-(off**2) / 2).exp() + tail

        return member(look)

    return SimpleNamespace(members=[one(1.0, 0.0), one(-1.0, 300.0)])


@pytest.mark.parametrize("epsilon", [None, 1e-3])
def test_thetas_are_chosen_where_believing_members_disagree(epsilon):
    found = at_x_obs(disagreeing(), box(1), torch.zeros(1), {}, epsilon, 100, 1)
    theta, weight = found.cloud.theta[:, 0], found.weight(1.0)
    near, tail = (theta - 0.5).abs() < 0.15, theta < -0.6
    assert float(weight.sum()) == pytest.approx(1)
    assert float(weight[near].sum()) > 0.9 and float(found.cloud.mass[near].sum()) == pytest.approx(0.15, abs=0.01)
    assert float(weight[tail].sum()) < 1e-4
    raw = torch.stack([m.observe(None)(found.cloud.theta) for m in disagreeing().members]).std(0) * found.cloud.mass
    assert float((raw / raw.sum())[near].sum()) < 0.2, "saboteur: the spread of f counts constants and tails"
    assert float(found.apart[0]) == pytest.approx(float(found.apart[1])), "two members are as far from their mean"
    flat = found.weight(0.0)
    assert float(flat[near].sum()) == pytest.approx(0.15 if epsilon is None else 0.1875, abs=0.01)


def test_a_batch_is_no_heap_of_copies():
    found = at_x_obs(disagreeing(), box(1), torch.zeros(1), {}, None, 100, 1)
    labeller = Labeller(Shifted(), box(1), nre, None, False, 3, 1)
    labeller.add_chosen(found, 1.0, 100, 1)
    theta = labeller.all_rows().theta[:, 0]
    assert len(theta.unique()) == 100 and float(theta.std()) > 0.05
    best = found.cloud.theta[found.weight(1.0).topk(100).indices, 0]
    assert float(((best - 0.5).abs() - 0.05).abs().max()) < 0.01, "saboteur: the best hundred lie at two peaks"


# --- truncation


@pytest.mark.parametrize(("dims", "sigma"), [(1, 0.1), (2, 0.05), (3, 0.005), (3, 0.4)])
def test_truncation_keeps_the_posterior(dims, sigma):
    epsilon = 0.01
    cloud, density, region = survey(box(dims), normal_look(sigma, 0.2), 8192, epsilon, 1)
    draws = 0.2 + sigma * torch.randn(40_000, dims, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    draws = draws[(draws.abs() < 1).all(1)]
    outside = 1 - float(region.contains(draws).double().mean())
    error = math.sqrt(epsilon / len(draws)) + math.sqrt(epsilon / 2048)
    assert abs(outside - epsilon) < 4 * error
    assert float(cloud.mass.sum()) == pytest.approx(1) and float((cloud.mass * density).sum()) == pytest.approx(1)
    inside = region.sample(2000, 2)
    assert region.contains(inside.theta).all() and float(inside.mass.sum()) == pytest.approx(region.mass, rel=0.1)
    if sigma < 0.4:  # a ball of chi^2 quantile radius
        radius = {1: 2.576, 2: 3.035, 3: 3.368}[dims] * sigma
        volume = {1: 2 * radius, 2: math.pi * radius**2, 3: 4 / 3 * math.pi * radius**3}[dims]
        assert region.mass == pytest.approx(volume / 2**dims, rel=0.15)
        off = (inside.theta - 0.2).square().sum(1) / radius**2
        assert float(off.mean()) == pytest.approx(dims / (dims + 2), abs=0.03), "uniform inside, not crowded"
    assert edge(region, cloud, density.mean(0)) == pytest.approx(BAND * epsilon, rel=0.2)


def test_truncation_of_other_priors():
    normal = Independent(Normal(torch.zeros(2).double(), 5 * torch.ones(2).double()), 1)
    parts = Independent(Normal(torch.tensor([[-1.0], [1.0]]).double(), torch.ones(2, 1).double()), 1)
    for prior, dims in ((normal, 2), (MixtureSameFamily(Categorical(torch.ones(2).double()), parts), 1)):
        cloud, density, region = survey(prior, normal_look(0.1), 4096, 1e-3, 1)
        mean = (cloud.mass * density[0]) @ cloud.theta
        assert mean.abs().max() < 0.02 and region.contains(torch.zeros(1, dims).double())
        assert not region.contains(torch.full((1, dims), 0.6).double())
        variance = (cloud.mass * density[0]) @ cloud.theta**2
        assert torch.allclose(variance, torch.tensor(0.01).double(), rtol=0.1)


def test_a_posterior_that_has_moved_touches_the_edge():
    _, _, region = survey(box(1), normal_look(0.05), 4096, 1e-3, 1)
    for at, low, high in ((0.0, 0.005, 0.02), (0.1, 0.1, 0.5), (0.5, 0.99, 1.0)):
        cloud, density, _ = survey(box(1), normal_look(0.05, at), 4096, 1e-3, 2)
        assert low <= edge(region, cloud, density[0]) <= high + 1e-9
