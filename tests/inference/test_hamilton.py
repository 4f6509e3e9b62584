"""The moves leave the posterior as it is, and the population finds it."""

import math
import time

import pytest
import torch
from measures import z_of_mean
from torch.distributions import Beta, Gamma, Independent, Normal

from sbi_core import Parameter, UniformPrior
from sbi_core.inference import hamilton
from sbi_core.inference.hamilton import Kernel, OutOfTime, advance, propose, temper
from sbi_core.inference.mixture import Mixture, centre_and_factor
from sbi_core.inference.target import Target
from sbi_core.seeding import seeded

PRIORS = {
    "normal": Independent(Normal(torch.zeros(2).double(), 1.0), 1),
    "uniform": UniformPrior([Parameter("a", -1, 2), Parameter("b", 0, 5)]),
    "gamma": Independent(Gamma(torch.tensor([2.0, 3.0]).double(), 1.0), 1),
    "beta": Independent(Beta(torch.tensor([2.0, 0.7]).double(), 1.5), 1),
}


def flat(theta):
    return torch.zeros(theta.shape[:-1]).double() + 0.0 * theta.sum(-1)


@pytest.mark.parametrize("tries", [1, 3])
@pytest.mark.parametrize("name", PRIORS)
def test_without_data_moves_leave_the_prior_as_it_is(name, tries):
    """Draws of the prior, moved for ten rounds by a kernel that fits badly, have its mean and variance still."""
    prior, many = PRIORS[name], 20_000
    target = Target(prior, flat, 1)
    with seeded(1):
        start = target(target.draw(many))
        some = target.draw(400)
        kernel = Kernel(
            Mixture(some * 0.7, 2), 1.5 * centre_and_factor(some)[1], torch.full((1, 1), 0.8), torch.ones(1)
        )

        def moved(points, rounds=10):
            for _ in range(rounds):
                points, jumps, accepted = advance(
                    target, points, kernel, jumps=propose(target, kernel.mixture, tries * many)
                )
                assert 0.2 < float(jumps) < 0.99 and 0.3 < float(accepted) < 0.999
            return target.theta(points.u)[0]

        theta = moved(start)
        assert z_of_mean(theta, prior.mean) < 4 and z_of_mean((theta - prior.mean) ** 2, prior.variance) < 4
        unmoved = (theta == target.theta(start.u)[0]).all(1)
        assert unmoved.double().mean() < 0.02
        always = pytest.MonkeyPatch()
        with always.context() as patch:
            patch.setattr(hamilton, "_accepted", lambda log_ratio: (log_ratio > -torch.inf, torch.full((1,), 0.5)))
            wrong = moved(start)
        off = max(z_of_mean(wrong, prior.mean), z_of_mean((wrong - prior.mean) ** 2, prior.variance))
        assert off > 4, "saboteur: everything is accepted"


def test_slopes_are_those_of_the_density():
    prior = PRIORS["gamma"]
    target = Target(prior, lambda theta: -((theta - 1.3) ** 2).sum(-1) * 3, 1)
    with seeded(1):
        u = target.draw(5)
    for heat in (0.3, 1.0):
        at, step = target(u, heat), 1e-5
        for k in range(2):
            ends = [target(u + sign * step * torch.eye(2)[k], heat) for sign in (1, -1)]
            values = [end.before + heat * end.value for end in ends]
            assert torch.allclose((values[0] - values[1]) / (2 * step), at.slope[..., k], rtol=1e-5, atol=1e-6)


def two_modes(shift):
    """Log density in D = 3 of two normals of width .05, weights 3 : 1, the second `shift` away along each axis."""

    def log_likelihood(theta):
        each = [-(((theta - at) / 0.05) ** 2).sum(-1) / 2 for at in (-1.0, -1.0 + shift)]
        return torch.logaddexp(each[0] + math.log(3), each[1])

    return log_likelihood


def test_the_population_finds_both_modes_of_every_problem():
    prior = UniformPrior([Parameter(name, -3, 3) for name in "abc"])
    shifts = torch.tensor([1.0, 2.0, 3.0]).double()[:, None]

    def rows(theta):
        return torch.stack([two_modes(float(shift))(part) for shift, part in zip(shifts, theta, strict=True)])

    target = Target(prior, rows, 3)

    with seeded(1):
        points, kernel = temper(target, 512, time.monotonic() + 60)
    theta = target.theta(points.u)
    second = (theta.mean(-1) > -1 + shifts / 2).double().mean(1)
    assert ((second - 0.25).abs() < 0.12).all(), "weights are roughly right; jumps of the chains make them so"
    assert (kernel.jumps > 0.2).all()


def test_time_runs_out_on_the_way():
    def slow(theta):
        time.sleep(0.05)
        return -(((theta - 1) / 1e-4) ** 2).sum(-1)

    target = Target(PRIORS["normal"], slow, 1)
    with seeded(1), pytest.raises(OutOfTime, match=r"heat .* of 1.*time_limit"):
        temper(target, 256, time.monotonic() + 0.3)
