"""The boarding school of 1978 without learning: particle filters of several models, and the posteriors they give.

    python benchmarks/influenza.py [--particles 400] [--seeds 1] [--out benchmarks/influenza.csv]

Each model is a line: stages of the infection, reporting and dispersion of the counts. For each, log p(x | beta, gamma)
is estimated on a grid by bootstrap filters, whose likelihoods are unbiased and are averaged over seeds; the grid is
placed around the posterior by coarse ones, the first of them over the whole prior; `noise` is the standard deviation
of the logarithm from run to run at the posterior mean. The evidence is the mean likelihood over the prior of
`study=influenza`. At the posterior mean the filter also says how each day's count ranks among its predictions from the
days before: of a true model these ranks are uniform. One thread, one to three minutes a line.
"""

import argparse
import csv
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sbi_core.simulators import Epidemic
from sbi_core.simulators.epidemic_paths import follow

SCHOOL = [3, 8, 26, 76, 225, 298, 258, 233, 189, 128, 68, 29, 14, 4]
PRIOR = ((0.5, 3.0), (0.15, 0.7))
ROWS = 4000
"""Paths that are followed at once."""

MODELS = [
    (1, 0.95, 0.0),
    (1, 0.95, 0.1),
    (1, 0.7, 0.02),
    (2, 0.7, 0.02),
    (3, 0.7, 0.02),
    (4, 0.7, 0.02),
    (6, 0.7, 0.02),
    (3, 0.6, 0.02),
    (3, 0.8, 0.02),
    (3, 0.9, 0.02),
    (3, 0.7, 0.0),
    (3, 0.7, 0.01),
    (3, 0.7, 0.05),
]
"""Stages, reporting, dispersion."""

NAMES = ("beta", "gamma", "R0")


def school(stages: int, reporting: float, dispersion: float, *, infected: int = 1) -> Epidemic:
    """The school of `study=influenza`, with another infection or other counts."""
    return Epidemic(
        population=763,
        infected=infected,
        observed="prevalence",
        times=range(1, 15),
        reporting=reporting,
        dispersion=dispersion,
        stages=stages,
        beta=PRIOR[0],
        gamma=PRIOR[1],
    )


@dataclass(frozen=True)
class Filtered:
    """Log likelihoods of G thetas (G,), and the rank of each count among its predictions (G, K)."""

    log_likelihood: Tensor
    ranks: Tensor


def particle_filter(
    world: Epidemic, theta: Tensor, x: Sequence[float], *, particles: int = 1000, seed: int = 1
) -> Filtered:
    """Bootstrap filters of prevalence, one for each theta (G, 2), x (K,) (Gordon, Salmond & Smith 1993)."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        _filtered(world, some, torch.as_tensor(x, dtype=torch.float64), particles, generator)
        for some in theta.split(max(1, ROWS // particles))
    ]
    return Filtered(torch.cat([part.log_likelihood for part in parts]), torch.cat([part.ranks for part in parts]))


def _filtered(world: Epidemic, theta: Tensor, x: Tensor, particles: int, generator: torch.Generator) -> Filtered:
    beta, gamma = theta.repeat_interleave(particles, 0).T
    susceptible = torch.full_like(beta, world.population - world.infected)
    infected = torch.zeros((len(beta), world.stages), dtype=torch.float64)
    infected[:, 0] = world.infected
    waits = np.diff([0.0, *world.times])
    total, ranks = torch.zeros(len(theta), dtype=torch.float64), []
    for count, wait in zip(x, waits, strict=True):
        until = torch.full((len(beta), 1), wait, dtype=torch.float64)
        paths = follow(beta, gamma, susceptible, infected, until, world.population, generator)
        susceptible, infected = paths.susceptible[:, 0], paths.infected[:, 0]
        true = infected.sum(1)
        log_weight = log_count(count, true, world.reporting, world.dispersion).reshape(len(theta), particles)
        ranks.append(_rank(count, true, world, generator).reshape(len(theta), particles).mean(1))
        total += log_weight.logsumexp(1) - math.log(particles)
        possible = torch.where(log_weight.isneginf().all(1, keepdim=True), 0.0, log_weight)
        share = possible.softmax(1).cumsum(1)
        unit = (
            torch.arange(particles) + torch.rand((len(theta), 1), generator=generator, dtype=torch.float64)
        ) / particles
        chosen = torch.searchsorted(share, unit).clamp(max=particles - 1)  # systematic resampling
        chosen = (chosen + particles * torch.arange(len(theta))[:, None]).flatten()
        susceptible, infected = susceptible[chosen], infected[chosen]
    return Filtered(total, torch.stack(ranks, 1))


def log_count(x: Tensor, true: Tensor, reporting: float, dispersion: float) -> Tensor:
    """log probability that x of `true` are counted: binomial, or beta-binomial with dispersion."""
    n = torch.maximum(true, x)
    ways = torch.lgamma(n + 1) - torch.lgamma(x + 1) - torch.lgamma(n - x + 1)
    if dispersion:
        a, b = _shape(reporting, dispersion)
        chance = torch.lgamma(x + a) + torch.lgamma(n - x + b) - torch.lgamma(n + a + b)
        chance = chance + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    else:
        chance = x * math.log(reporting) + (n - x) * math.log1p(-reporting)
    return torch.where(true >= x, ways + chance, -torch.inf)


def _shape(reporting: float, dispersion: float) -> tuple[float, float]:
    both = (1 - dispersion) / dispersion
    return reporting * both, (1 - reporting) * both


def _rank(x: Tensor, true: Tensor, world: Epidemic, generator: torch.Generator) -> Tensor:
    """1 where a predicted count is below x, 1/2 where it is x."""
    rng = np.random.default_rng(int(torch.randint(0, 2**62, (1,), generator=generator)))
    share = world.reporting
    if world.dispersion:
        share = rng.beta(*_shape(world.reporting, world.dispersion), size=len(true))
    predicted = torch.from_numpy(rng.binomial(true.long().numpy(), share))
    return (predicted < x).double() + 0.5 * (predicted == x).double()


@dataclass(frozen=True)
class GridReference:
    """A posterior on a grid, with its moments and the log evidence over the prior."""

    beta: Tensor
    gamma: Tensor
    log_density: Tensor
    mean: Tensor
    stddev: Tensor
    r0: tuple[float, float]
    log_evidence: float


def reference(
    world: Epidemic, x: Sequence[float], *, particles: int, seeds: int, cells: tuple[int, int] = (17, 15)
) -> GridReference:
    """The posterior under the uniform prior: mean likelihood of several filters on a grid of 4 sd about the mean."""
    axes = [torch.linspace(low, high, 12, dtype=torch.float64) for low, high in PRIOR]
    for passes in range(3):
        cut = passes < 2
        theta = torch.cartesian_prod(*axes)
        runs = 1 if cut else seeds
        found = [
            particle_filter(
                world, theta, x, particles=300 if cut else particles, seed=100 * passes + seed
            ).log_likelihood
            for seed in range(runs)
        ]
        log_l = torch.stack(found).logsumexp(0) - math.log(runs)
        chance = (log_l / (4 if passes == 0 else 1)).softmax(0)  # tempered first: a coarse grid may miss the top
        mean = chance @ theta
        stddev = (chance @ (theta - mean) ** 2).sqrt()
        if cut:
            axes = [
                torch.linspace(max(low, float(m - 4 * s)), min(high, float(m + 4 * s)), n, dtype=torch.float64)
                for (low, high), m, s, n in zip(PRIOR, mean, stddev, (14, 12) if passes == 0 else cells, strict=True)
            ]
    ratio = theta[:, 0] / theta[:, 1]
    r0 = float(chance @ ratio)
    area = math.prod(float(axis[1] - axis[0]) for axis in axes)
    box = math.prod(high - low for low, high in PRIOR)
    return GridReference(
        *axes,
        (chance / area).log().reshape(len(axes[0]), len(axes[1])),
        mean,
        stddev,
        (r0, float(chance @ (ratio - r0) ** 2) ** 0.5),
        float(log_l.logsumexp(0)) + math.log(area / box),
    )


def main(particles: int, seeds: int, out: Path | None) -> None:
    """Print a line for each model, and write them down."""
    torch.set_num_threads(1)
    names = [
        "stages",
        "reporting",
        "dispersion",
        "log_evidence",
        "noise",
        *(f"{a}{b}" for b in NAMES for a in ("", "sd_")),
    ]
    names += ["infected", "ranks", "seconds"]
    print(("{:>12} " * len(names)).format(*names))
    lines = []
    for model in MODELS:
        begun, world = time.perf_counter(), school(*model)
        count = particles if world.stages > 1 else 20 * particles  # a model that fits badly leaves few of them
        found = reference(world, SCHOOL, particles=count, seeds=seeds)
        again = particle_filter(world, found.mean.expand(10, 2), SCHOOL, particles=count, seed=7)
        noise, ranks = float(again.log_likelihood.std()), again.ranks.mean(0)
        moments = [v for pair in zip(found.mean.tolist(), found.stddev.tolist(), strict=True) for v in pair]
        size = world.population * final_size(found.r0[0])
        told = [found.log_evidence, noise, *moments, *found.r0, size]
        shown = " ".join(f"{rank:.2f}" for rank in ranks.tolist())
        lines.append([*model, *(f"{value:.4f}" for value in told), shown, f"{time.perf_counter() - begun:.0f}"])
        print(("{:>12} " * len(names)).format(*map(str, lines[-1])), flush=True)
    if out is not None:
        with out.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([names, *lines])


def final_size(r0: float) -> float:
    """Share of a large population that is infected in the end, z = 1 - exp(-R0 z)."""
    share = 1.0
    for _ in range(200):
        share = 1 - math.exp(-r0 * share)
    return share


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--particles", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    main(**vars(parser.parse_args()))
