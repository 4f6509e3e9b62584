"""Small worlds and measures that several tests share."""

import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.distributions import Normal

from sbi_core import FunctionSimulator, Parameter, Simulations, Simulator, SimulatorError, simulate

BOX = (Parameter("a", -2, 2), Parameter("b", -2, 2))


def run(simulator, n, seed=1, **options):
    """Simulate without a bar."""
    return simulate(simulator, n, seed=seed, progress=False, **options)


def same_bits(one, other):
    """Whether two tables hold the same columns, bit for bit."""
    one, other = one[:].columns(), other[:].columns()
    return one.keys() == other.keys() and all(
        one[k].dtype == other[k].dtype and one[k].numpy().tobytes() == other[k].numpy().tobytes() for k in one
    )


def shifted(theta, rng):
    """x = theta + 0.3 N(0, I), all rows at once or one row."""
    return theta + 0.3 * rng.standard_normal(theta.shape)


def reference(n, seed=0, **options):
    """The reference problem of the fault table: theta ~ U(-2, 2)^2, x = theta + 0.3 N(0, I)."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform(-2, 2, (n, 2))
    return theta, shifted(theta, rng)


def table(n=50, seed=0, **columns):
    """A table of the reference problem with named parameters."""
    return Simulations.from_arrays(*reference(n, seed), parameters=BOX, **columns)


def row_by_row(function=shifted, **options):
    """The reference problem, or another function on its box, as code that works row by row."""
    return FunctionSimulator(function, BOX, vectorized=False, **options)


class Shift(Simulator):
    """x ~ N(z, 1), z ~ N(theta, 1); the rate of events is 2 + theta^2."""

    parameters = (Parameter("mu", -1, 1),)

    def sample(self, theta, design, generator):
        z = theta + torch.randn(theta.shape, generator=generator, dtype=torch.float64)
        return z + torch.randn(theta.shape, generator=generator, dtype=torch.float64), z

    def log_joint(self, theta, x, z, design):
        return -((z - theta) ** 2).sum(-1) / 2

    def log_likelihood(self, theta, x, design=None):
        return Normal(theta[..., 0], 2**0.5).log_prob(x[..., 0])

    def rate(self, theta, design):
        return 2 + theta[..., 0] ** 2


class GlobalState(Simulator):
    """Code that draws from the global state of torch, NumPy and random."""

    parameters = BOX

    def sample(self, theta, design, generator):
        x = Normal(theta, 1.0).sample() + torch.from_numpy(np.random.normal(size=theta.shape))  # noqa: NPY002
        return x + random.random(), None


class Fragile(Shift):
    """Breaks down, as long as it is told to, in the block whose number is that of calls made before."""

    rows_per_seed = 10

    def __init__(self, breaks_at=None):
        self._breaks_at = breaks_at
        self._calls = -1  # the trial comes first

    def sample(self, theta, design, generator):
        self._calls += 1
        if self._calls - 1 == self._breaks_at:
            raise SimulatorError("out of nails") if self._breaks_at % 2 else OSError("out of nails")
        return super().sample(theta, design, generator)


class Slow:
    """The reference problem with a pause in each row; that it is private tells settings that it changes no row."""

    def __init__(self, pause=0.0):
        self._pause = pause

    def __call__(self, theta, rng):
        time.sleep(self._pause)
        return shifted(theta, rng)


HERE = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
"""The environment of a process that finds these toys."""


def commits(path):
    """The commit marks of a store."""
    return sorted(Path(path, "commits").glob("0*.json"))
