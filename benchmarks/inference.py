"""The samplers of `infer` against the truth, and beside sbi 0.27's default, which the extra `benchmarks` installs.

    python benchmarks/inference.py                 # whatever is missing, then the table
    python benchmarks/inference.py --task exact    # only these cells; several such processes may run at once
    python benchmarks/inference.py --task speed --problem gaussian_linear
    python benchmarks/inference.py --table         # only the table

Rows are appended to inference.csv as they come, and cells that are there are not run again. One thread.

exact: the exact likelihood in, 1000 draws out, C2ST against 1000 published samples of the posterior; 5 observations,
    3 seeds, every method that serves. Bars: mean at most .51, none above .55. The 1000 are taken from many more, for
    neighbours in a chain, and repeated draws of large weight, are what a classifier would find.
speed: effective draws (the least of bulk and tail over the parameters) per CPU second, on a likelihood that sbi's NLE
    learned from 10,000 simulations; chains as long as R-hat <= 1.01 needs, warm-up counted. sbi's slice sampler runs
    anew with twice the draws until that, and only the last run counts. Bars on Gaussian linear: ours at 20 chains 10
    times sbi's default of 20, ours at 200 chains 50 times that and 20 times sbi's at 100 chains.
"""

import argparse
import csv
import time
import warnings
from functools import cache
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import arviz_stats.base  # noqa: F401  (`infer` imports it late, and imports are not what is timed)
import torch
from estimator_methods import peer, peer_prior
from posterior_sampling import c2st
from reference_posteriors import PROBLEMS, SAMPLES, default_folder, reference
from torch import Tensor

from sbi_core import infer, simulate
from sbi_core.inference.convergence import R_HAT, convergence

TABLE = Path(__file__).with_suffix(".csv")
METHODS = {"gaussian_linear": ("hmc", "importance"), "slcp": ("hmc", "importance")}
METHODS |= {"two_moons": ("grid", "hmc", "importance")}
DRAWS = {"hmc": 1000, "importance": 200_000}
"""Draws of each of 20 chains, and in all."""

SPEED = (("ours", 20), ("ours", 200), ("sbi slice", 20), ("sbi slice", 100))
LONGEST = 1200.0
"""CPU seconds after which sbi's chains are not doubled again."""


class Cell(NamedTuple):
    """One inference, or one observation."""

    task: str
    problem: str
    method: str
    chains: int
    observation: int
    seed: int


COLUMNS = (*Cell._fields, "c2st", "effective", "r_hat", "draws", "cpu_seconds")


def cells() -> list[Cell]:
    """All cells, first seeds first."""
    exact = [
        Cell("exact", problem, method, 20, observation, seed)
        for seed, problem, observation in product(range(3), METHODS, range(1, 6))
        for method in METHODS[problem]
    ]
    speed = [
        Cell("speed", problem, method, chains, 1, seed)
        for seed, problem in product(range(3), ("gaussian_linear", "slcp"))
        for method, chains in SPEED
    ]
    return exact + speed


def exact(cell: Cell, folder: Path) -> dict[str, Any]:
    """Infer from an exact likelihood and compare with the published samples."""
    world, truth = PROBLEMS[cell.problem], reference(cell.problem, cell.observation, folder)
    begun = time.process_time()
    options = {"method": cell.method, "n": DRAWS.get(cell.method), "seed": cell.seed, "time_limit": 300.0}
    posterior = infer(world, world.prior, truth.x_obs, **options)
    used = time.process_time() - begun
    torch.manual_seed(cell.seed)
    return {"c2st": c2st(posterior.sample((SAMPLES,)), truth.posterior, cell.seed), "cpu_seconds": used}


class Potential:
    """sbi's learned log likelihood, to be read as an estimator of ours."""

    x_shape = None

    def __init__(self, network: Any, world: Any) -> None:
        self.parameters, self.x_shape, self._network = world.parameters, world.x_shape, network

    def observe(self, x: Tensor, design: None = None) -> Any:
        """x (1, 1, 1, P) -> theta (R, G, 1, D) -> nats (R, G, 1)."""
        x = x.reshape(1, 1, -1).float()

        def log_likelihood(theta: Tensor) -> Tensor:
            rows = theta.reshape(-1, theta.shape[-1]).float()
            found: Tensor = self._network.log_prob(x.expand(1, len(rows), -1), condition=rows)
            return found.reshape(theta.shape[:-1])

        return log_likelihood


@cache
def learned(problem: str, seed: int) -> tuple[Any, Any]:
    """sbi's NLE and its trainer, the same for all cells of a problem and seed."""
    world = PROBLEMS[problem]
    return peer("nle", simulate(world, 10_000, seed=seed, progress=False), world, seed)


def speed(cell: Cell, folder: Path) -> dict[str, Any]:
    """Effective draws of one sampler on the learned likelihood."""
    world, x_obs = PROBLEMS[cell.problem], reference(cell.problem, 1, folder).x_obs
    network, trainer = learned(cell.problem, cell.seed)
    torch.manual_seed(cell.seed)
    if cell.method == "ours":
        begun = time.process_time()
        options = {"method": "hmc", "chains": cell.chains, "seed": cell.seed, "time_limit": LONGEST}
        draws = infer(Potential(network, world), world.prior, x_obs, **options).draws[:, :, None]
        return _measured(draws, time.process_time() - begun)
    posterior = trainer.build_posterior(network, prior=peer_prior(world.prior))
    each = 100
    while True:
        begun = time.process_time()
        found = posterior.sample(
            (each * cell.chains,), x=x_obs.float()[None], num_chains=cell.chains, show_progress_bars=False
        )
        used = time.process_time() - begun
        draws = found.reshape(cell.chains, each, 1, -1).double()
        if float(convergence(draws).r_hat.max()) <= R_HAT or 2 * used > LONGEST:
            return _measured(draws, used)
        each *= 2


def _measured(draws: Tensor, used: float) -> dict[str, Any]:
    found = convergence(draws)
    worst = float(found.r_hat.max())
    return {"effective": found.effective, "r_hat": worst, "draws": draws.shape[1], "cpu_seconds": used}


def table() -> str:
    """The rows of inference.csv as text."""
    lines, rows = [], _rows()
    lines.append("C2ST with exact likelihoods: mean, largest, cells")
    every = []
    for problem, methods in METHODS.items():
        for method in methods:
            found = [
                float(r["c2st"]) for r in rows if (r["task"], r["problem"], r["method"]) == ("exact", problem, method)
            ]
            every += found
            if found:
                lines.append(f"  {problem:16} {method:11} {fmean(found):.3f}  {max(found):.3f}  {len(found)}")
    if every:
        met = "met" if fmean(every) <= 0.51 and max(every) <= 0.55 else "MISSED"
        lines.append(f"  all {fmean(every):.3f} (at most .51), largest {max(every):.3f} (at most .55): {met}")
    for problem in ("gaussian_linear", "slcp"):
        rates: dict[tuple[str, int], float] = {}
        lines.append(f"Effective draws per CPU second, {problem}: median (least to most), R-hat")
        for method, chains in SPEED:
            mine = [
                r
                for r in rows
                if (r["task"], r["problem"], r["method"], int(r["chains"])) == ("speed", problem, method, chains)
            ]
            rate = sorted(float(r["effective"]) / float(r["cpu_seconds"]) for r in mine)
            if rate:
                rates[method, chains] = median(rate)
                hats = ", ".join(f"{float(r['r_hat']):.3f}" for r in mine)
                span = f"({rate[0]:.3g} to {rate[-1]:.3g})"
                lines.append(f"  {method:10} {chains:4} chains {rates[method, chains]:8.4g} {span:20} {hats}")
        for ours, theirs, bar in ((20, 20, 10), (200, 20, 50), (200, 100, 20)):
            if ("ours", ours) in rates and ("sbi slice", theirs) in rates:
                ratio = rates["ours", ours] / rates["sbi slice", theirs]
                met = f", at least {bar}: {'met' if ratio >= bar else 'MISSED'}" if problem == "gaussian_linear" else ""
                lines.append(f"  ours at {ours} chains over sbi's at {theirs}: {ratio:.3g}{met}")
    return "\n".join(lines)


def _rows() -> list[dict[str, str]]:
    if not TABLE.exists():
        return []
    with open(TABLE, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _append(cell: Cell, found: dict[str, Any]) -> None:
    new = not TABLE.exists()
    with open(TABLE, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        short = {key: f"{value:.5g}" if isinstance(value, float) else value for key, value in found.items()}
        writer.writerow({**cell._asdict(), **short})


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", choices=("exact", "speed"), default=["exact", "speed"])
    parser.add_argument("--problem", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--reference", type=Path, default=default_folder())
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for cell in [] if given.table else cells():
        done = {tuple(row[name] for name in Cell._fields) for row in _rows()}
        asked = cell.task in given.task and cell.problem in given.problem and cell.seed < given.seeds
        if asked and tuple(map(str, cell)) not in done:
            found = {"exact": exact, "speed": speed}[cell.task](cell, given.reference)
            _append(cell, found)
            print(*cell, found, flush=True)
    print(table())


if __name__ == "__main__":
    main()
