"""Experiments whose expected information gain is known without any of the code that is tested."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.distributions import Distribution

from sbi_core import Events, Parameter, Simulator, UniformPrior
from sbi_core.simulators import AsymmetryToy, DeathProcess, GaltonBoard, LinearGaussian

BOARD, TOY, EPIDEMIC = GaltonBoard(), AsymmetryToy(), DeathProcess()
WIDE = UniformPrior([Parameter("theta", -1, 1)])
"""Of the Galton board, whose own prior is half of this."""

RUNS = {(50.0, 20): 0.1760, (47.0, 20): 0.0426, (50.0, 100): 0.5566}
"""Beam energy and number of events: gain of the asymmetry toy, nats, known to .0005."""


@dataclass(frozen=True)
class Known:
    """What is to be run, and what it teaches, in nats."""

    simulator: Simulator
    prior: Distribution
    design: Any
    gain: float


def summed(log_p, weight):
    """Gain of one of X outcomes, log p (T, X), about theta of T cells of probability weight (T,)."""
    p = log_p.exp()
    each = p * (log_p - (weight @ p).log())
    return float(weight @ torch.where(p > 0, each, 0.0).sum(1))


def legendre(low, high, n):
    points, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(low + (high - low) * (points + 1) / 2), torch.from_numpy(weights * (high - low) / 2)


def galton(drop, rows):
    design = torch.tensor([drop, rows]).double()
    theta, weight = legendre(-1, 1, 200)
    return Known(BOARD, WIDE, design, summed(BOARD.log_probabilities(theta[:, None], design), weight / 2))


def asymmetry(phi):
    g, weight = legendre(0.5, 1.5, 40)
    c, step = legendre(-1, 1, 40)
    p = (3 / 8) * (1 + c**2 + 4 / 3 * g[:, None] * math.tanh((2 * phi - 90) / 9) * c)
    gain = float(weight @ (p * (p / (weight @ p)).log()) @ step)
    return Known(TOY, TOY.prior, torch.tensor([phi]).double(), gain)


def asymmetry_of_runs(phi, n):
    return Known(Events(TOY, n), TOY.prior, torch.tensor([phi]).double(), RUNS[phi, n])


def death(*times):
    design = torch.tensor(times).double()
    world, u = DeathProcess(len(times)), torch.linspace(-8, 8, 2001).double()
    ill = torch.cartesian_prod(*[torch.arange(world.population + 1)] * len(times)).reshape(-1, len(times))
    weight = torch.softmax(-(u**2) / 2, 0)
    possible = ill[(ill.diff(dim=1) >= 0).all(1)].double()
    log_p = world.log_likelihood(u.exp()[:, None, None], possible, design)
    return Known(world, world.prior, design, summed(log_p, weight))


def linear(world, n=1):
    return Known(world if n == 1 else Events(world, n), world.prior, None, float(world.information_gain(n)))


def any_of(number):
    """One of many experiments, at random but for its kind; and how many experiments and thetas to take."""
    rng = np.random.default_rng([83, number])
    n, inner = (int(2 ** rng.uniform(low, 10)) for low in (6, 5))
    kind = number % 5
    if kind < 2:
        dims, runs = int(rng.integers(1, 4)), int(rng.integers(1, 6)) * kind or 1
        matrix = rng.normal(size=(dims + int(rng.integers(0, 2)), dims))
        latent, noise, prior = rng.uniform(0.3, 2.0, 3)
        return (
            linear(LinearGaussian(matrix=matrix, latent_std=latent, noise_std=noise, prior_std=prior), runs),
            n,
            inner,
        )
    if kind == 2:
        return galton(int(rng.integers(5, 26)), int(rng.integers(3, 21))), n, inner
    if kind == 3:
        runs = [asymmetry(rng.uniform(40, 50)), *(asymmetry_of_runs(*key) for key in RUNS)]
        return runs[int(rng.integers(4))], n, inner
    return death(*sorted(rng.uniform(0.1, 5.0, int(rng.integers(1, 3))))), n, inner
