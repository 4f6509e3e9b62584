import math

import pytest
import torch
from torch.distributions import (
    Beta,
    Categorical,
    Exponential,
    Independent,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    constraints,
)

from sbi_core import Parameter, UniformPrior
from sbi_core.design.belief import EDGE, points
from sbi_core.inference.grid import GridPosterior
from sbi_core.inference.samples import SamplePosterior
from sbi_core.seeding import seeded

TWO = torch.tensor([0.5, 2.0]).double()
AXES = tuple(Parameter(name, -3, 3) for name in "abc")


def correlated(dims):
    """A grid of unequal cells that holds a Gaussian with correlations of -1/4 to -.4, not in its middle."""
    edges = [torch.linspace(-1.5, 1.6 + 0.1 * k, 26 + k).double().sinh() for k in range(dims)]
    theta = torch.stack(torch.meshgrid(*[(edge[1:] + edge[:-1]) / 2 for edge in edges], indexing="ij"), -1) - 0.3
    precision = 2 * torch.eye(dims).double() + 0.8
    density = -0.5 * ((theta @ precision) * theta).sum(-1)
    return GridPosterior(AXES[:dims], edges, density, verdicts={})


def of_draws():
    with seeded(3):
        draws = torch.randn(2, 400, 2).double() * TWO
        weight = torch.rand(2, 400).double().log()
    support = constraints.independent(constraints.real, 1)
    return SamplePosterior(AXES[:2], draws, support=support, log_weight=weight, verdicts={})


def mixture():
    parts = Independent(Normal(torch.tensor([[-1.0, 0.0], [2.0, 1.0]]), torch.ones(2, 2)), 1)
    return MixtureSameFamily(Categorical(torch.tensor([0.3, 0.7])), parts)


COVARIANCE = torch.tensor([[1.0, 0.9, 0.3], [0.9, 2.0, -0.4], [0.3, -0.4, 0.5]]).double()
SPREAD = {
    "uniform": lambda: UniformPrior(AXES[:2]),
    "whole": lambda: UniformPrior([Parameter("k", -1, 2, integer=True), AXES[0], Parameter("l", 0, 6, integer=True)]),
    "normal": lambda: Independent(Normal(TWO, TWO), 1),
    "single precision": lambda: Independent(Normal(TWO.float(), TWO.float()), 1),
    "lognormal": lambda: Independent(LogNormal(0 * TWO, TWO / 3), 1),
    "exponential": lambda: Independent(Exponential(TWO), 1),
    "correlated": lambda: MultivariateNormal(torch.tensor([1.0, -2.0, 0.0]).double(), COVARIANCE),
    "correlated, single precision": lambda: MultivariateNormal(torch.zeros(3), COVARIANCE.float()),
    "grid 1": lambda: correlated(1),
    "grid 2": lambda: correlated(2),
    "grid 3": lambda: correlated(3),
}
"""Their quantiles are known."""

DRAWN = {"beta": lambda: Independent(Beta(TWO, 3 * TWO), 1), "draws": of_draws, "mixture": mixture}
"""Theirs are not."""

by_belief = pytest.mark.parametrize("make", [*SPREAD.values(), *DRAWN.values()], ids=[*SPREAD, *DRAWN])


def moments(theta):
    """First and second moments, one column each, and a third one."""
    i, j = torch.triu_indices(theta.shape[1], theta.shape[1])
    return torch.cat([theta, theta[:, i] * theta[:, j], theta**3], 1)


def apart(theta, drawn):
    """Largest distance between the moments of two sets, in the standard errors of independent draws."""
    one, two = moments(theta), moments(drawn)
    error = (two.var(0) * (1 / len(one) + 1 / len(two))).sqrt()
    return float(((one.mean(0) - two.mean(0)) / error).abs().max())


def gap(theta, drawn):
    """Largest distance between the distribution functions of any one axis."""
    found = []
    for one, two in zip(theta.T.contiguous(), drawn.T.contiguous(), strict=True):
        shares = [torch.searchsorted(part.sort().values, two, right=True) / len(part) for part in (one, two)]
        found.append(float((shares[0] - shares[1]).abs().max()))
    return max(found)


def sampled(prior, n=20_000, seed=5):
    with seeded(seed):
        return prior.sample((n,)).double()


@by_belief
def test_points_have_the_beliefs_distribution(make):
    prior, n = make(), 4096
    theta, drawn = points(prior, n, 1), sampled(prior)
    assert theta.shape == (n, *prior.event_shape) and theta.dtype == torch.float64
    assert apart(theta, drawn) < 4
    assert apart(1.1 * theta + 0.1, drawn) > 4, "saboteur"
    reach = 1.95 * (1 / n + 1 / len(drawn)) ** 0.5
    assert gap(theta, drawn) < reach < gap(theta + 0.2 * theta.std(0), drawn), "of Kolmogorov and Smirnov, at 1e-3"


@pytest.mark.parametrize("name", ["correlated", "grid 2", "grid 3"])
def test_correlations_are_kept(name):
    prior = SPREAD[name]()
    theta, drawn = points(prior, 4096, 1), sampled(prior)
    alone = torch.stack([column.roll(17 * k) for k, column in enumerate(theta.T)], 1)
    assert apart(theta, drawn) < 4 < apart(alone, drawn), "saboteur: the same axes, one by one"


@pytest.mark.parametrize("make", SPREAD.values(), ids=SPREAD)
def test_spread_points_lie_within(make):
    prior, theta = make(), points(make(), 1024, 2)
    assert prior.support.check(theta).all() and theta.isfinite().all()
    assert prior.log_prob(theta).isfinite().all()


def test_whole_numbers_come_equally_often():
    count = points(SPREAD["whole"](), 1024, 1)[:, 0].unique(return_counts=True)
    assert count[0].tolist() == [-1, 0, 1, 2] and count[1].tolist() == [256] * 4


def spread_of_means(make, n, seeds=24):
    """Standard deviation over seeds of the mean of theta, in standard deviations of theta."""
    prior = make()
    means = torch.stack([points(prior, n, seed).mean(0) for seed in range(seeds)])
    return float((means.std(0) / sampled(prior).std(0)).max())


@pytest.mark.parametrize("make", SPREAD.values(), ids=SPREAD)
def test_errors_fall_faster_than_those_of_draws(make):
    """By 1/4 those of draws fall from 64 to 1024."""
    few, many = spread_of_means(make, 64), spread_of_means(make, 1024)
    assert many < few / 7 and many < 0.25 / 1024**0.5


@pytest.mark.parametrize("make", DRAWN.values(), ids=DRAWN)
def test_errors_of_draws_are_those_of_draws(make):
    """Saboteurs of the test above."""
    few, many = spread_of_means(make, 64), spread_of_means(make, 1024)
    assert many > few / 7 and 0.6 / 1024**0.5 < many < 1.6 / 1024**0.5


@by_belief
def test_points_are_the_seeds(make):
    before = torch.get_rng_state()
    theta = points(make(), 64, 7)
    assert torch.equal(torch.get_rng_state(), before), "the global state is as it was"
    assert torch.equal(points(make(), 64, 7), theta) and torch.equal(points(make(), 64, 7, 0), theta)
    assert not (points(make(), 64, 8) == theta).all() and not (points(make(), 64, 7, 1) == theta).all()


@pytest.mark.parametrize("name", ["normal", "grid 2", "beta"])
def test_streams_are_independent(name):
    """Over seeds, neither places nor what points of two streams make of a mean go together."""
    prior = {**SPREAD, **DRAWN}[name]()
    several = torch.stack([torch.stack([points(prior, 32, seed, stream) for stream in (0, 1)]) for seed in range(300)])
    first, mean = several[:, :, 0, 0], several[..., 0].mean(2)
    for pair in (first, mean):
        together = float(torch.corrcoef(pair.T)[0, 1]) * math.sqrt(len(pair))
        assert abs(together) < 4 < abs(float(torch.corrcoef(pair[:, [0, 0]].T)[0, 1])) * math.sqrt(len(pair))


def test_quantiles_are_finite_at_the_ends():
    ends = torch.tensor([[0.0], [EDGE], [1 - EDGE], [1.0]]).double()
    reached = Normal(0.0, 1.0).icdf(ends.clamp(EDGE, 1 - EDGE))
    assert reached.abs().max() < 6.3 and not Normal(0.0, 1.0).icdf(ends).isfinite().all()
    assert (torch.quasirandom.SobolEngine(1, scramble=True, seed=1).draw(64, dtype=torch.float64) / EDGE % 2 == 0).all()
