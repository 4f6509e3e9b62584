"""The same gains by peers: plain nested Monte Carlo of an implicit simulator, and Pyro's `pyro.contrib.oed.eig`."""

import math
from collections.abc import Callable
from typing import Any

import torch
from information_gain_cells import (
    BELIEF,
    BEST_GAIN,
    BEST_TIMES,
    BOARD,
    CENTRE,
    EPIDEMIC,
    SIDE,
    WORLDS,
    Cell,
    Found,
)
from torch import Tensor, nn
from torch.distributions import Distribution

from sbi_core import Simulator, simulate
from sbi_core.seeding import seeded
from sbi_core.simulators import LinearGaussian

Estimate = Callable[[int], Found]

SIZES = {"centre": [(4000, 20), (4000, 100), (10**5, 1000), (750_000, 1500)], "drop 25": [(1500, 20), (1500, 100)]}
SIZES["drop 25"] += [(10**4, 100), (10**5, 250)]
EPIDEMICS = [(5000, 20), (5000, 100), (10**5, 500), (10**6, 2000)]
"""Calls, and how many of them at each theta."""


def implicit(simulator: Simulator, prior: Distribution, setting: Any, cells: int, calls: int, each: int) -> Estimate:
    """Plain nested Monte Carlo without a likelihood: p(x | theta) is the share of x among `each` draws of a theta."""

    def estimate(seed: int) -> Found:
        at = None if setting is None else torch.tensor(setting, dtype=torch.float64)
        with seeded(seed):
            theta = prior.sample(torch.Size([calls // each])).repeat_interleave(each, 0)
        x = simulate(simulator, len(theta), proposal=theta, design=at, seed=seed, progress=False).x
        base = cells if x.shape[1] == 1 else math.isqrt(cells)
        number = sum(column * base**k for k, column in enumerate(x.long().unbind(1)))
        count = torch.zeros(len(theta) // each, cells, dtype=torch.float64)
        count.scatter_add_(1, number.reshape(-1, each), torch.ones(len(count), each, dtype=torch.float64))
        share = count / each
        terms = torch.where(share > 0, share * (share / share.mean(0)).log(), 0.0).nan_to_num().sum(1)
        return Found(float(terms.mean()), float(terms.std() / math.sqrt(len(terms))), len(theta), 0)

    return estimate


def linear_model(world: LinearGaussian) -> Callable[[Tensor], None]:
    """theta ~ N(0, 1), x ~ N(theta, s^2)."""
    import pyro
    import pyro.distributions as dist

    noise, dims = math.hypot(world.latent_std, world.noise_std), len(world.parameters)

    def model(design: Tensor) -> None:
        with pyro.plate_stack("designs", design.shape[:-1]):
            theta = pyro.sample("theta", dist.Normal(torch.zeros(dims), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(theta, noise).to_event(1))

    return model


def pyro_nested(world: LinearGaussian, n: int, inner: int) -> Estimate:
    """Pyro's nested Monte Carlo."""

    def estimate(seed: int) -> Found:
        from pyro.contrib.oed.eig import nmc_eig

        with seeded(seed):
            value = nmc_eig(linear_model(world), torch.zeros(1, 1), "x", "theta", N=n, M=inner)
        return Found(float(value), math.nan, n, n * (inner + 1))

    return estimate


def pyro_posterior(model: Any, guide: Any, entropy: float, calls: int, rate: float) -> Estimate:
    """Pyro's `posterior_eig`: Barber & Agakov's lower bound by a guide that is trained on 4/5 of the calls.

    Each step takes fresh simulations; the prior's entropy, which it would sample, is given.
    """

    def estimate(seed: int) -> Found:
        import pyro
        from pyro.contrib.oed.eig import posterior_eig

        pyro.clear_param_store()
        final, steps = calls // 5, 400
        with seeded(seed):
            optim = pyro.optim.Adam({"lr": rate})
            ape = posterior_eig(
                model,
                torch.zeros(1, 1),
                "x",
                "theta",
                num_samples=(calls - final) // steps,
                num_steps=steps,
                guide=guide(),
                optim=optim,
                final_num_samples=final,
                eig=False,
            )
        return Found(entropy - float(ape), math.nan, calls, 0)

    return estimate


def linear_guide(dims: int) -> Callable[[], Any]:
    """N(A x + b, s^2), which holds the posterior."""

    def make() -> Any:
        import pyro
        import pyro.distributions as dist

        def guide(seen: dict[str, Tensor], design: Tensor, observed: Any, targets: Any) -> None:
            matrix = pyro.param("matrix", torch.eye(dims))
            shift, log_width = pyro.param("shift", torch.zeros(dims)), pyro.param("log_width", torch.zeros(dims))
            with pyro.plate_stack("designs", design.shape[:-1]):
                normal = dist.Normal(seen["x"] @ matrix.T + shift, log_width.exp())
                pyro.sample("theta", normal.to_event(1))

        return guide

    return make


def epidemic_model(design: Tensor) -> None:
    """log b ~ N(0, 1), and the counts at the best times, as they are simulated."""
    import pyro
    import pyro.distributions as dist

    with pyro.plate_stack("designs", design.shape[:-1]):
        theta = pyro.sample("theta", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        first = dist.Binomial(10, -torch.expm1(-theta.exp() * BEST_TIMES[0])).sample()
        rest = dist.Binomial(10 - first, -torch.expm1(-theta.exp() * (BEST_TIMES[1] - BEST_TIMES[0]))).sample()
        pyro.sample("x", dist.Delta(torch.cat([first, first + rest], -1), event_dim=1))


def epidemic_guide() -> Any:
    """A normal distribution of log b, by a small network of the counts."""
    import pyro
    import pyro.distributions as dist

    network = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))

    def guide(seen: dict[str, Tensor], design: Tensor, observed: Any, targets: Any) -> None:
        pyro.module("network", network)
        centre, log_width = network(seen["x"] / 5 - 1).unbind(-1)
        with pyro.plate_stack("designs", design.shape[:-1]):
            pyro.sample("theta", dist.Normal(centre[..., None], log_width[..., None].exp()).to_event(1))

    return guide


def peers() -> dict[str, Cell]:
    """Name -> cell."""
    found: dict[str, Cell] = {}
    for place, (setting, _, truth) in {"centre": CENTRE, "drop 25": SIDE}.items():
        for calls, each in SIZES[place]:
            estimate = implicit(BOARD, BELIEF, setting, BOARD.categories or 0, calls, each)
            found[f"galton {place}: implicit nested {calls // each} x {each}"] = Cell(truth, estimate)
    for calls, each in EPIDEMICS:
        estimate = implicit(EPIDEMIC, EPIDEMIC.prior, BEST_TIMES, 121, calls, each)
        found[f"death process gain there: implicit nested {calls // each} x {each}"] = Cell(BEST_GAIN, estimate)
    entropy = 0.5 * math.log(2 * math.pi * math.e)
    for calls in (5000, 50_000):
        estimate = pyro_posterior(epidemic_model, epidemic_guide, entropy, calls, 1e-2)
        found[f"death process gain there: Pyro posterior_eig {calls} calls"] = Cell(BEST_GAIN, estimate)
    for name, (world, truth) in WORLDS.items():
        dims = len(world.parameters)
        found[f"linear {name}: Pyro nmc_eig"] = Cell(truth, pyro_nested(world, 224, 223))
        estimate = pyro_posterior(linear_model(world), linear_guide(dims), dims * entropy, 50_000, 1e-2)
        found[f"linear {name}: Pyro posterior_eig"] = Cell(truth, estimate)
    return found
