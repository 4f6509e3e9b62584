"""Pairs whose posterior is known in closed form, with draws of it, or of one that is wrong in a known way."""

import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal

from sbi_core import Parameter
from sbi_core.inference.checks.pairs import Pairs
from sbi_core.seeding import seeded
from sbi_core.simulators import LinearGaussian

UNEQUAL = torch.tensor([[1.0, 0.3], [0.2, 2.0]]).double()
CORRELATED = torch.tensor([[1.0, 0.8, 0.0], [0.0, 2.0, 1.5], [0.2, 0.0, 4.0]]).double()
NEAR, MINOR = (2.0, 0.5), 0.2
"""Place and spread of a mode before x is known; the weight of the lesser mode."""

FAULTS = ("", "narrow", "shifted", "prior", "swapped")
"""What can be wrong with the posterior: nothing; sd times .85; the first mean by .3 sd; the first parameter returned as
its prior; the first two parameters exchanged."""


def linear(fault="", n=1000, seed=1, draws=99, matrix=UNEQUAL, first=0, width=0.85):
    """LinearGaussian with that matrix, (n, D); `first` is the parameter that is returned as its prior or shifted."""
    world = LinearGaussian(matrix=matrix)
    with seeded(seed):
        theta = world.prior.sample((n,)).double()
        x = theta @ world.matrix.T + world.variance**0.5 * torch.randn(n, len(world.matrix)).double()
        precision = world.fisher_information() + torch.eye(theta.shape[1])
        mean, covariance = x @ world.matrix / world.variance @ precision.inverse(), precision.inverse()
        if fault == "narrow":
            covariance = covariance * width**2
        elif fault == "shifted":
            mean[:, first] += 0.3 * covariance[first, first] ** 0.5
        elif fault == "prior":
            mean[:, first], covariance[first, :], covariance[:, first] = 0.0, 0.0, 0.0
            covariance[first, first] = 1.0
        q = MultivariateNormal(mean, covariance)
        order = [1, 0, *range(2, theta.shape[1])] if fault == "swapped" else list(range(theta.shape[1]))
        drawn = q.sample((draws,))
    log_q = q.log_prob(torch.cat([theta[None, :, order], drawn])).T
    drawn = drawn.transpose(0, 1)[..., order]
    return Pairs(world.parameters, theta, x, drawn, log_q[:, 0], log_q[:, 1:], world.prior.log_prob(theta))


def two_modes(fault="", n=1000, seed=1, draws=99):
    """theta_1 is m or -m, the latter with weight MINOR, and x_1 tells m; theta_2 is plain. A mode may be dropped.

    Faults: "minor", the lesser mode is dropped; "major", the other; "any", one at random for each x.
    """
    with seeded(seed):
        size = NEAR[0] + NEAR[1] * torch.randn(n).double()
        sign = torch.where(torch.rand(n) < MINOR, -1.0, 1.0).double()
        theta = torch.stack([sign * size, torch.randn(n).double()], 1)
        x = torch.stack([size, theta[:, 1]], 1) + 0.5 * torch.randn(n, 2).double()
        kept = {"": torch.tensor([1 - MINOR, MINOR]), "minor": torch.tensor([1.0, 1e-9])}
        kept |= {"major": torch.tensor([1e-9, 1.0])}
        if fault == "any":
            weight = torch.where(torch.rand(n, 1) < 0.5, kept["minor"], kept["major"])
        else:
            weight = kept[fault].expand(n, 2)
        where = (x[:, 0] + NEAR[0]) / 2  # equal widths
        first = MixtureSameFamily(Categorical(weight), Normal(torch.stack([where, -where], 1), 0.5 * 0.5**0.5))
        second = Normal(0.8 * x[:, 1], 0.2**0.5)
        drawn = torch.stack([first.sample((draws,)), second.sample((draws,))], -1)
        every = torch.cat([theta[None], drawn]).double()
        log_q = (first.log_prob(every[..., 0]) + second.log_prob(every[..., 1])).T
    weight, place = torch.tensor([1 - MINOR, MINOR]), torch.tensor([NEAR[0], -NEAR[0]])
    prior = MixtureSameFamily(Categorical(weight), Normal(place, NEAR[1]))
    log_prior = prior.log_prob(theta[:, 0]) + Normal(0.0, 1.0).log_prob(theta[:, 1])
    axes = (Parameter("theta_1", -9, 9), Parameter("theta_2", -9, 9))
    return Pairs(axes, theta, x, every[1:].transpose(0, 1), log_q[:, 0], log_q[:, 1:], log_prior)
