"""Expected information gain against exact values: a table of errors, one row for each way of estimating one gain.

    python benchmarks/information_gain.py                 # all cells, 16 seeds
    python benchmarks/information_gain.py --cell galton   # those whose name begins so
    python benchmarks/information_gain.py --table         # what was measured so far

Each row: the exact gain in nats, the mean over seeds, the root mean square error relative to the exact gain, the mean
stated error likewise, calls of the simulator and densities evaluated (each a mean), and CPU seconds. Peers run in the
same process on the same problem: plain nested Monte Carlo of an implicit simulator (a table of simulations stands for
p(x | theta)), and Pyro's `nmc_eig` where the likelihood is exact.
"""

import argparse
import csv
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sbi_core import Events, Parameter, Simulator, UniformPrior, simulate
from sbi_core.design import bracket, learn, posterior_gain
from sbi_core.errors import SbiWarning
from sbi_core.seeding import seeded
from sbi_core.simulators import AsymmetryToy, DeathProcess, GaltonBoard, LinearGaussian

TABLE = Path(__file__).parent / "information_gain.csv"
BOARD, TOY, EPIDEMIC = GaltonBoard(), AsymmetryToy(), DeathProcess()
BELIEF = UniformPrior([Parameter("theta", -1.0, 1.0)])
CENTRE, SIDE = (None, 4000, 0.188064), ([25.0, 16.0], 1500, 0.858864)
WORLDS = {
    "linear 1-D": (LinearGaussian(1, latent_std=0.1, noise_std=0.1), 0.5 * math.log(51)),
    "linear 2-D": (LinearGaussian(2, latent_std=0.3, noise_std=0.4), math.log(5)),
    "linear 5-D": (LinearGaussian(5, latent_std=0.5, noise_std=0.5), 2.5 * math.log(3)),
}

Estimate = Callable[[int], tuple[float, float, int, int]]
"""seed -> value, stated error, simulator calls, densities evaluated."""


def learned(setting: Any, calls: int, labels: str) -> Estimate:
    """A head trained on so many balls, and its read-out, which sums over the slots."""

    def estimate(seed: int) -> tuple[float, float, int, int]:
        at = None if setting is None else torch.tensor(setting, dtype=torch.float64)
        found = learn(BOARD, BELIEF, calls, designs=at, labels=labels, seed=seed)
        gain = posterior_gain(found.estimator, BOARD, BELIEF, setting, seed=seed)
        return gain.value, gain.error, calls + gain.simulations, gain.evaluations

    return estimate


def implicit(setting: Any, calls: int, each: int) -> Estimate:
    """Plain nested Monte Carlo without a likelihood: p(x | theta) is the share of x among `each` balls of a theta."""

    def estimate(seed: int) -> tuple[float, float, int, int]:
        at = None if setting is None else torch.tensor(setting, dtype=torch.float64)
        with seeded(seed):
            theta = BELIEF.sample(torch.Size([calls // each])).repeat_interleave(each, 0)
        x = simulate(BOARD, len(theta), proposal=theta, design=at, seed=seed, progress=False).x[:, 0].long()
        count = torch.zeros(len(theta) // each, BOARD.categories or 0).double()
        count.scatter_add_(1, x.reshape(-1, each), torch.ones(len(count), each).double())
        share = count / each
        whole = share.mean(0)
        terms = torch.where(share > 0, share * (share / whole).log(), 0.0).nan_to_num().sum(1)
        return float(terms.mean()), float(terms.std() / math.sqrt(len(terms))), len(theta), 0

    return estimate


def exact(reader: Any, simulator: Simulator, setting: Any, n: int, inner: int, prior: Any = None) -> Estimate:
    """Read-out of the exact likelihood."""

    def estimate(seed: int) -> tuple[float, float, int, int]:
        gain = posterior_gain(reader, simulator, prior or simulator.prior, setting, n=n, inner=inner, seed=seed)
        return gain.value, gain.error, gain.simulations, gain.evaluations

    return estimate


def nested(world: LinearGaussian, n: int, inner: int) -> Estimate:
    """The middle of the bracket of nested Monte Carlo bounds."""

    def estimate(seed: int) -> tuple[float, float, int, int]:
        low, high = bracket(world, world.prior, n=n, inner=inner, seed=seed)
        value, error = (low.value + high.value) / 2, max(low.error, high.error)
        return value, error, low.simulations, low.evaluations

    return estimate


def pyro_nested(world: LinearGaussian, n: int, inner: int) -> Estimate:
    """Pyro's nested Monte Carlo on the same world."""
    import pyro
    import pyro.distributions as dist
    from pyro.contrib.oed.eig import nmc_eig

    noise = math.hypot(world.latent_std, world.noise_std)

    def model(design: torch.Tensor) -> None:
        with pyro.plate_stack("designs", design.shape[:-1]):
            theta = pyro.sample("theta", dist.Normal(torch.zeros(len(world.parameters)), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(theta, noise).to_event(1))

    def estimate(seed: int) -> tuple[float, float, int, int]:
        with seeded(seed):
            value = nmc_eig(model, torch.zeros(1, 1), "x", "theta", N=n, M=inner)
        return float(value), math.nan, n, n * (inner + 1)

    return estimate


def cells() -> dict[str, tuple[float, Estimate]]:
    """Name -> exact gain and how it is estimated."""
    found: dict[str, tuple[float, Estimate]] = {}
    for place, (setting, calls, truth) in {"centre": CENTRE, "drop 25, 16 rows": SIDE}.items():
        for labels in ("hard", "gold"):
            found[f"galton {place}: learn, {labels} labels"] = truth, learned(setting, calls, labels)
        for each in (20, 100):
            found[f"galton {place}: implicit nested, {each} each"] = truth, implicit(setting, calls, each)
        found[f"galton {place}: exact"] = truth, exact(BOARD, BOARD, setting, 0, 1024, BELIEF)
    for name, (world, truth) in WORLDS.items():
        found[f"{name}: read-out, 50,000 densities"] = truth, exact(world, world, None, 97, 512)
        found[f"{name}: bracket, 50,000 densities"] = truth, nested(world, 97, 512)
        found[f"{name}: Pyro nmc_eig, 50,000 densities"] = truth, pyro_nested(world, 224, 223)
    for phi, n, truth in ((50.0, 20, 0.1760), (50.0, 100, 0.5566), (47.0, 20, 0.0426)):
        found[f"toy {phi:g} GeV, {n} events: exact"] = truth, exact(TOY, Events(TOY, n), [phi], 2048, 256)
    found["death process (.5439, 2.6781): exact"] = 0.983271, exact(EPIDEMIC, EPIDEMIC, [0.5439, 2.6781], 2048, 512)
    return found


def measure(name: str, truth: float, estimate: Estimate, seeds: int) -> dict[str, Any]:
    """One row."""
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SbiWarning)
        value, error, calls, densities = torch.tensor([estimate(seed) for seed in range(seeds)]).double().T
    off = value / truth - 1
    return {
        "cell": name,
        "exact": truth,
        "mean": round(float(value.mean()), 5),
        "rms error %": round(100 * float(off.square().mean().sqrt()), 2),
        "stated error %": round(100 * float(error.mean()) / truth, 2),
        "calls": int(calls.mean()),
        "densities": int(densities.mean()),
        "CPU s": round((time.process_time() - started) / seeds, 2),
        "seeds": seeds,
    }


def main() -> None:
    """Measure cells that are asked for, and print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cell", default="", help="beginning of the name")
    options.add_argument("--seeds", type=int, default=16)
    options.add_argument("--table", action="store_true")
    asked = options.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    if TABLE.exists():
        with TABLE.open() as file:
            rows = {row["cell"]: row for row in csv.DictReader(file)}
    if not asked.table:
        for name, (truth, estimate) in cells().items():
            if name.startswith(asked.cell):
                rows[name] = measure(name, truth, estimate, asked.seeds)
                print(rows[name], flush=True)
                with TABLE.open("w", newline="") as file:
                    writer = csv.DictWriter(file, rows[name])
                    writer.writeheader()
                    writer.writerows(rows.values())
    for row in rows.values():
        print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
