"""Worlds, members and heads on which choosing simulations is tested."""

from types import SimpleNamespace

import torch

from sbi_core import Parameter, Simulator
from sbi_core.estimators import RatioEstimator
from sbi_core.simulators import AsymmetryToy

LINE = [Parameter("a", -1.0, 1.0)]
SMALL = {"max_epochs": 10, "gold_check": False}
TOY = AsymmetryToy()


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


world_of_slopes = Shifted(0.3, slopes=True)


def small(rows):
    return RatioEstimator.from_data(rows, hidden=[16])
