"""Worlds whose x is an image or a run of events, with exact likelihoods."""

import torch

from sbi_core import Parameter, Simulator, simulate

SIDE = 16


class Spot(Simulator):
    """The image x (16, 16) of a spot at a height z ~ N(theta, 1), with noise of 0.1 in every pixel.

    p(x | theta) is the integral over z, a sum over a grid far finer than the noise lets one see.
    """

    parameters = (Parameter("height", 5, 10),)
    rows_per_seed = 500
    grid = torch.arange(0, 15, 0.02).double()

    def spot(self, z):
        place = torch.arange(SIDE).double()
        return torch.exp(-((place - z) ** 2) / 8)[..., :, None] * torch.exp(-((place - 7.5) ** 2) / 8)

    def sample(self, theta, design, generator):
        z = theta + torch.randn(theta.shape, generator=generator, dtype=torch.float64)
        noise = torch.randn(len(theta), SIDE, SIDE, generator=generator, dtype=torch.float64)
        return (self.spot(z) + 0.1 * noise).float(), z

    def log_joint(self, theta, x, z, design):
        return -((z - theta) ** 2).sum(-1) / 2

    def log_likelihood(self, theta, x, design=None):
        spots = self.spot(self.grid[:, None]).flatten(1)
        seen = 100 * (x.double().flatten(-2) @ spots.T - spots.square().sum(1) / 2)
        return torch.logsumexp(seen - (self.grid - theta) ** 2 / 2, -1)


class Hits(Simulator):
    """Events x = (N(theta, 1) in units of a thousandth, a number that says nothing) at a rate of exp(theta)."""

    parameters = (Parameter("theta", -1, 1),)

    def sample(self, theta, design, generator):
        x = torch.randn(len(theta), 2, generator=generator, dtype=torch.float64)
        x[:, :1] += theta
        return 1e-3 * x, None

    def log_joint(self, theta, x, z, design):
        return self.log_likelihood(theta, x)

    def log_likelihood(self, theta, x, design=None):
        return -((1e3 * x[..., 0] - theta[..., 0]) ** 2) / 2

    def rate(self, theta, design):
        return theta[..., 0].exp()


def rows(world, n, seed=1):
    return simulate(world, n, seed=seed, progress=False)
