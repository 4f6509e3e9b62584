"""CPU time of a row of `Epidemic`, beside a plain loop in which all rows advance event by event.

    python benchmarks/epidemic_speed.py [--repeats 3]

Both are exact and serve the same rows: 2,000 thetas of the prior, or 500 of the largest population. The plain loop does
in every step with NumPy, for all rows, what an event is: two random numbers, rates, sums and counts; rows that have
ended are dropped every 64 steps. One thread, medians of CPU time.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sbi_core.seeding import seeded
from sbi_core.simulators import Epidemic

INFLUENZA = {"infected": 1, "observed": "prevalence", "times": range(1, 15), "beta": (0.5, 3.0), "gamma": (0.15, 0.7)}
WORLDS: dict[str, dict[str, Any]] = {
    "763 boys, 14 days": {"population": 763, **INFLUENZA},
    "the same, three stages": {"population": 763, "stages": 3, **INFLUENZA},
    "10,000 people, 10 weeks": {"population": 10_000},
}


def plain(world: Epidemic, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Latents z (M, 4) of one stage: infections, recoveries and both integrals until the last time."""
    found, row = np.zeros((len(theta), 4)), np.arange(len(theta))
    s, ill = np.full(len(theta), float(world.population - world.infected)), np.full(len(theta), float(world.infected))
    now, end, step = np.zeros(len(theta)), world.times[-1], 0
    beta, gamma = theta[:, 0] / world.population, theta[:, 1]
    while len(row):
        catch, heal = beta * s * ill, gamma * ill
        after = np.minimum(now + rng.exponential(size=len(row)) / np.maximum(catch + heal, 1e-300), end)
        found[row, 2] += (after - now) * s * ill / world.population
        found[row, 3] += (after - now) * ill
        happens = (after < end) & (ill > 0)
        infection = happens & (rng.random(len(row)) * (catch + heal) < catch)
        recovery = happens & ~infection
        found[row, 0] += infection
        found[row, 1] += recovery
        s, ill, now, step = s - infection, ill + infection - recovery, after, step + 1
        if step % 64 == 0:
            on = (now < end) & (ill > 0)
            row, s, ill, now, beta, gamma = (part[on] for part in (row, s, ill, now, beta, gamma))
    return found


def seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median CPU time."""
    took = []
    for _ in range(repeats):
        begun = time.process_time()
        call()
        took.append(time.process_time() - begun)
    return statistics.median(took)


def main(repeats: int) -> None:
    """Print a table."""
    torch.set_num_threads(1)
    print(f"{'world':>26} {'events':>8} {'us a row':>9} {'ns an event':>12} {'plain loop':>11}")
    for name, options in WORLDS.items():
        world = Epidemic(**options)
        with seeded(1):
            theta = world.prior.sample(torch.Size([500 if world.population > 5000 else 2000]))
        generator = torch.Generator().manual_seed(1)
        events = float(world.sample(theta, None, generator)[1][:, :2].sum(1).mean())
        took = seconds(lambda at=theta, of=world: of.sample(at, None, torch.Generator().manual_seed(2)), repeats)
        each = 1e6 * took / len(theta)
        other = "-"
        if world.stages == 1:
            loop = seconds(lambda at=theta, of=world: plain(of, at.numpy(), np.random.default_rng(1)), repeats)
            other = f"{1e6 * loop / len(theta):.0f}"
        print(f"{name:>26} {events:8.0f} {each:9.0f} {1e3 * each / events:12.0f} {other:>11}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    main(**vars(parser.parse_args()))
