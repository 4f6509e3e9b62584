"""Pyro programs that several tests share, each with a `log_joint` written by hand."""

import itertools
import math

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import Bernoulli, Binomial, Exponential, Normal, Poisson

from sbi_core import Parameter
from sbi_core.simulators import GaltonBoard, PyroSimulator

MU = Parameter("mu", -1, 1)


def gaussian(theta):
    with pyro.plate("rows", len(theta)):
        z = pyro.sample("z", dist.Normal(theta[:, 0], 2.0))
        pyro.sample("x", dist.Normal(z, 1.0))


def gaussian_by_hand(theta, x, z, design):
    return Normal(theta[:, 0], 2.0).log_prob(z[:, 0]) + Normal(z[:, 0], 1.0).log_prob(x[:, 0])


def decays(theta):
    """Five lifetimes, each measured with noise; events are the inner plate."""
    with pyro.plate("rows", len(theta), dim=-2), pyro.plate("events", 5, dim=-1):
        t = pyro.sample("t", dist.Exponential(1 / theta[:, :1]))
        pyro.sample("x", dist.Normal(t, theta[:, 1:]))


def decays_left(theta):
    """The same, with events to the left of the rows."""
    with pyro.plate("rows", len(theta), dim=-1), pyro.plate("events", 5, dim=-2):
        t = pyro.sample("t", dist.Exponential(1 / theta[:, 0]))
        pyro.sample("x", dist.Normal(t, theta[:, 1]))


def decays_event(theta):
    """The same, without plates, the five as one event."""
    t = pyro.sample("t", dist.Exponential(1 / theta[:, :1].expand(-1, 5)).to_event(1))
    pyro.sample("x", dist.Normal(t, theta[:, 1:]).to_event(1))


def decays_loop(theta):
    """The same, one after the other."""
    for k in pyro.plate("events", 5):
        t = pyro.sample(f"t_{k}", dist.Exponential(1 / theta[:, 0]))
        pyro.sample(f"x_{k}", dist.Normal(t, theta[:, 1]))


def decays_by_hand(theta, x, z, design):
    return (Exponential(1 / theta[:, :1]).log_prob(z) + Normal(z, theta[:, 1:]).log_prob(x)).sum(1)


LIFETIME = (Parameter("tau", 0.5, 2), Parameter("noise", 0.2, 0.5))


def mixture(theta):
    share, mu = theta.unbind(1)
    which = pyro.sample("which", dist.Categorical(torch.stack([share, 1 - share], 1)))
    pyro.sample("x", dist.Normal(torch.where(which == 0, mu, -mu), 1.0))


def mixture_by_hand(theta, x, z, design):
    share, mu = theta.unbind(1)
    first = z[:, 0] == 0
    return torch.where(first, share, 1 - share).log() + Normal(torch.where(first, mu, -mu), 1.0).log_prob(x[:, 0])


def walk(theta):
    """Steps until |position| is 3 or more, at most 12; position and number of steps are seen with noise."""
    at, steps = torch.zeros(len(theta)).double(), torch.zeros(len(theta)).double()
    for k in range(12):
        going = at.abs() < 3
        with pyro.poutine.mask(mask=going):
            step = pyro.sample(f"step_{k}", dist.Normal(theta[:, 0], theta[:, 1]))
        at, steps = at + torch.where(going, step, 0.0), steps + going
    pyro.sample("x", dist.Normal(torch.stack([at, steps], 1), 0.5).to_event(1))


def walk_by_hand(theta, x, z, design):
    path = torch.zeros(len(z)).double()
    total, steps = torch.zeros(len(z)).double(), torch.zeros(len(z)).double()
    for step in z.unbind(1):
        going = path.abs() < 3
        total = total + torch.where(going, Normal(theta[:, 0], theta[:, 1]).log_prob(step), 0.0)
        path, steps = torch.where(going, path + step, path), steps + going
    return total + Normal(torch.stack([path, steps], 1), 0.5).log_prob(x).sum(1)


def epidemic(theta):
    """Susceptible, infectious and recovered in six steps, written over in place; the recovered are counted."""
    rows = len(theta)
    s, i, r = torch.full((rows,), 20.0).double(), torch.full((rows,), 3.0).double(), torch.zeros(rows).double()
    for day in range(6):
        chance = 1 - torch.exp(-theta[:, 0] * i / 23)
        new = pyro.sample(f"new_{day}", dist.Binomial(s.clone(), chance))
        well = pyro.sample(f"well_{day}", dist.Binomial(i.clone(), 1 - torch.exp(-theta[:, 1])))
        s -= new
        i = i + new - well
        r += well
        well += 1000
    pyro.sample("x", dist.Poisson(r + 0.1))


def epidemic_by_hand(theta, x, z, design):
    s, i, r = (torch.full((len(z),), n).double() for n in (20.0, 3.0, 0.0))
    total = 0.0
    for new, well in zip(z[:, ::2].unbind(1), z[:, 1::2].unbind(1), strict=True):
        chance = 1 - torch.exp(-theta[:, 0] * i / 23)
        total = total + Binomial(s, chance).log_prob(new) + Binomial(i, 1 - torch.exp(-theta[:, 1])).log_prob(well)
        s, i, r = s - new, i + new - well, r + well
    return total + Poisson(r + 0.1).log_prob(x[:, 0])


def counting(theta, design):
    """Decays during a time, of which a detector sees a share; the time and the share are the design."""
    signal, background = theta.unbind(1)
    time, share = design.unbind(1)
    n = pyro.sample("n", dist.Poisson((signal + background) * time))
    seen = pyro.sample("seen", dist.Binomial(n, share))
    pyro.sample("x", dist.Normal(seen, 1 + background))


def counting_by_hand(theta, x, z, design):
    n, seen = z.unbind(1)
    share, choices = design[:, 1], torch.lgamma(n + 1) - torch.lgamma(z[:, 1] + 1) - torch.lgamma(n - seen + 1)
    thinned = choices + seen * share.log() + (n - seen) * (1 - share).log()
    return Poisson(theta.sum(1) * design[:, 0]).log_prob(n) + thinned + Normal(seen, 1 + theta[:, 1]).log_prob(x[:, 0])


COUNTING = {
    "parameters": (Parameter("signal", 1, 4), Parameter("background", 0.5, 1)),
    "designs": (Parameter("time", 1, 5), Parameter("share", 0.2, 0.9)),
}

PROGRAMS = {
    "gaussian": (PyroSimulator(gaussian, [MU]), gaussian_by_hand),
    "decays": (PyroSimulator(decays, LIFETIME), decays_by_hand),
    "decays_left": (PyroSimulator(decays_left, LIFETIME), decays_by_hand),
    "decays_event": (PyroSimulator(decays_event, LIFETIME), decays_by_hand),
    "decays_loop": (PyroSimulator(decays_loop, LIFETIME, observed=[f"x_{k}" for k in range(5)]), decays_by_hand),
    "mixture": (PyroSimulator(mixture, [Parameter("share", 0.2, 0.8), Parameter("mu", 0.5, 2)]), mixture_by_hand),
    "walk": (PyroSimulator(walk, [MU, Parameter("sigma", 0.5, 1.5)]), walk_by_hand),
    "epidemic": (PyroSimulator(epidemic, [Parameter("beta", 0.5, 2), Parameter("gamma", 0.2, 1)]), epidemic_by_hand),
    "counting": (PyroSimulator(counting, **COUNTING), counting_by_hand),
}
"""Simulators, and log p(x, z | theta, design) of each by hand."""


def board(n_rows=20, n_nails=31):
    """The generalised Galton board as a Pyro program, and by hand."""

    def galton(theta, design=None):
        start = torch.tensor([(n_nails - 1) // 2, n_rows]) if design is None else design
        at, rows = start.double().expand(len(theta), 2).unbind(1)
        for row in range(n_rows):
            tilt, side = math.sin(math.pi * row / (n_rows - 1)), 2 * at / (n_nails - 1) - 1
            left = (1 - tilt) / 2 + tilt * torch.sigmoid(10 * theta[:, 0] * side)
            if row % 2:
                left = torch.where(at == 0, 0.0, torch.where(at == n_nails, 1.0, left))
            turn = pyro.sample(f"left_{row}", dist.Bernoulli(left).mask(row < rows))
            at = torch.where(row < rows, at + 1 - row % 2 - turn, at)
        pyro.deterministic("x", at)

    hand = GaltonBoard(n_rows, n_nails)
    options = {"designs": hand.designs, "categories": n_nails + 1}
    return PyroSimulator(galton, hand.parameters, **options), hand


def turns_of(rows, start):
    """Which turns the paths of the board by hand took, (N, n_rows), from positions; 0 in rows that are not read."""
    z, number = rows.z.double(), torch.arange(rows.z.shape[1])
    start = torch.full((len(z), 1), start).double() if rows.design is None else rows.design[:, :1]
    turns = 1 - number % 2 - torch.cat([start, z], 1).diff(dim=1)
    return turns if rows.design is None else torch.where(number < rows.design[:, 1:], turns, 0.0)


def ragged(theta):
    """Tosses until the first head, in a Python loop; the number of tosses makes x."""
    for tosses in itertools.count(1):
        if pyro.sample(f"head_{tosses}", dist.Bernoulli(torch.sigmoid(theta[0]))):
            break
    pyro.sample("x", dist.Normal(tosses * theta[1], 0.5))


def ragged_by_hand(theta, tosses, x):
    """log p of a run, theta (*, 2), tosses and x (*)."""
    chance = torch.sigmoid(theta[..., 0])
    tails = Bernoulli(chance).log_prob(torch.zeros(()).double()) * (tosses - 1)
    return tails + chance.log() + Normal(tosses * theta[..., 1], 0.5).log_prob(x)
