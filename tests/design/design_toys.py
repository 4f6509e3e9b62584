"""Worlds whose designs are understood in closed form."""

import math

import torch
from torch.distributions import Independent, Normal

from sbi_core import Parameter, Simulator


class Slope(Simulator):
    """x ~ N(d theta, 1), theta ~ N(0, 1): the gain at d is log(1 + d^2) / 2, the posterior's precision 1 + sum d^2."""

    parameters = (Parameter("theta", -8, 8),)
    designs = (Parameter("d", 0, 2),)
    x_shape = (1,)

    @property
    def prior(self):
        return Independent(Normal(torch.zeros(1).double(), torch.ones(1).double()), 1)

    def sample(self, theta, design, generator):
        return design * theta + torch.randn(theta.shape, generator=generator, dtype=torch.float64), None

    def log_likelihood(self, theta, x, design=None):
        return -((x.double() - design * theta) ** 2)[..., 0] / 2 - math.log(2 * math.pi) / 2


def slope_gain(d):
    """Expected information gain of one x at d, nats."""
    return math.log1p(d**2) / 2


def outcome_of(loop):
    """All that a loop found, bit for bit comparable: designs, outcomes, predicted and realised gains, posterior."""
    rounds = [
        (one.design.tolist(), one.x_obs.tolist(), None if one.n_events is None else int(one.n_events), one.realised)
        for one in loop.experiments
    ]
    predicted = [
        None if one.predicted is None else (one.predicted.value, one.predicted.error) for one in loop.experiments
    ]
    return rounds, predicted, [one.posterior.mean.tolist() for one in loop.experiments]
