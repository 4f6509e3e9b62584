"""Sample efficiency of the gold on the generalised Galton board, against exact truth.

Resumable: one row per cell (loss, simulations, seed) in galton_gold.csv; cells that are there are not run again.

    python benchmarks/galton_gold.py            # whatever is missing, then the table and the picture
    python benchmarks/galton_gold.py --task posterior    # only these cells, beside another process with the others
    python benchmarks/galton_gold.py --table    # only the table and the picture

Ratio cells: theta uniform in [-1, -0.4]; `error` is sum_x p(x | -0.6) (log r_hat - log r)^2 at theta = -0.8 against
-0.6, `grid` its mean over a 13 x 13 grid of pairs in [-1, -0.4]. Posterior cells ("posterior", ALICES): theta uniform
in [-1, 0]; `error` is the total variation between learned and exact posterior of the 500 published balls. Data and
training both change with the seed; nothing but the defaults of `fit` is set, so a tenth of the rows is held out.
"""

import argparse
import csv
import itertools
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Independent, Uniform

import sbi_core.simulators
from sbi_core import infer, simulate
from sbi_core.columns import read_csv
from sbi_core.estimators import Estimator, RatioEstimator, alice, alices, carl, fit
from sbi_core.simulators import GaltonBoard
from sbi_core.store import package_versions

HERE = Path(__file__).parent
TABLE = HERE / "galton_gold.csv"
COLUMNS = ("task", "loss", "simulations", "seed", "error", "grid", "seconds", "torch", "sbi_core")
LOSSES = {"carl": carl, "alice": alice, "alices": alices}
SIZES = (200, 1000, 5000)
POSTERIORS = (10_000, 40_000)
NOTHING = 0.063
PUBLISHED = {"published RASCAL setting, remeasured": (0.022, 0.0062, 0.0012)}
BARS = {"carl": (None, 0.045, 0.010), "alice": (0.009, 0.002, 0.0005), "alices": (0.008, 0.0018, 0.0004)}
BOARD = GaltonBoard()
SLOTS = torch.arange(5.0, 26.0)[:, None]


def pair_errors(estimator: Estimator, theta: Tensor) -> Tensor:
    """Return sum_x p(x | theta_j) (log r_hat - log r)^2 for all pairs of theta (T, 1), as (T, T)."""
    with torch.no_grad():
        learned = estimator.log_likelihood(theta[:, None], SLOTS).double()
    exact = BOARD.log_likelihood(theta[:, None], SLOTS)
    wrong = learned - exact
    return ((wrong[:, None] - wrong[None, :]) ** 2 * exact.exp()[None]).sum(-1)


def ratio_cell(loss: str, simulations: int, seed: int) -> tuple[float, float]:
    """Train on one data set and return the error at (-0.8, -0.6) and its mean over the grid."""
    ends = torch.tensor([-1.0]).double(), torch.tensor([-0.4]).double()
    data = simulate(BOARD, simulations, proposal=Independent(Uniform(*ends), 1), seed=seed, progress=False)
    run = fit(RatioEstimator.from_data(data), LOSSES[loss], data, simulator=BOARD, seed=seed, progress=False)
    pair = pair_errors(run.estimator, torch.tensor([[-0.8], [-0.6]]).double())
    grid = pair_errors(run.estimator, torch.linspace(-1, -0.4, 13).double()[:, None])
    return float(pair[0, 1]), float(grid.mean())


def posterior_cell(loss: str, simulations: int, seed: int) -> tuple[float, float]:
    """Return the total variation between learned and exact posterior of the published balls."""
    data = simulate(BOARD, simulations, seed=seed, progress=False)
    run = fit(RatioEstimator.from_data(data), LOSSES[loss], data, simulator=BOARD, seed=seed, progress=False)
    balls = read_csv(str(files(sbi_core.simulators) / "data" / "galton_published_balls.csv"))[1]
    learned, exact = (infer(source, BOARD.prior, balls, iid=True) for source in (run.estimator, BOARD))
    theta = (torch.arange(20_000).double()[:, None] + 0.5) / 20_000 - 1
    return float((learned.log_prob(theta).exp() - exact.log_prob(theta).exp()).abs().mean() / 2), float("nan")


def cells() -> list[tuple[str, str, int, int]]:
    """All cells, the cheap ones and the first seeds first."""
    ratios = [("ratio", loss, n, seed) for seed, n, loss in itertools.product(range(20), SIZES, LOSSES)]
    posteriors = [("posterior", "alices", n, seed) for seed, n in itertools.product(range(10), POSTERIORS)]
    return sorted(ratios + posteriors, key=lambda cell: (cell[3], cell[0]))


def read() -> dict[tuple[str, str, int, int], dict[str, str]]:
    """Return the rows that are there, by cell."""
    if not TABLE.exists():
        return {}
    with open(TABLE, newline="") as file:
        return {(r["task"], r["loss"], int(r["simulations"]), int(r["seed"])): r for r in csv.DictReader(file)}


def run_missing(only: str | None) -> None:
    """Run what is missing, of one task or of both, appending a row after each cell."""
    done = read()
    versions = package_versions()
    for task, loss, simulations, seed in cells():
        if (task, loss, simulations, seed) in done or only not in (None, task):
            continue
        started = time.perf_counter()
        error, grid = (ratio_cell if task == "ratio" else posterior_cell)(loss, simulations, seed)
        row = (task, loss, simulations, seed, f"{error:.4g}", f"{grid:.4g}", f"{time.perf_counter() - started:.1f}")
        new = not TABLE.exists()
        with open(TABLE, "a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(COLUMNS)
            writer.writerow((*row, versions["torch"], versions["sbi-core"]))
        print(*row, flush=True)


def errors(task: str, loss: str, simulations: int, column: str = "error") -> np.ndarray:
    """One number per seed."""
    chosen = [r for key, r in read().items() if key[:3] == (task, loss, simulations)]
    return np.array([float(r[column]) for r in chosen])


def table() -> str:
    """Return the results as a Markdown table: median (16% to 84% of seeds) [bar]."""
    lines = ["| error of log r | " + " | ".join(f"{n} simulations" for n in SIZES) + " |", "|---" * 4 + "|"]
    lines.append("| saying nothing | " + " | ".join([f"{NOTHING}"] * 3) + " |")
    lines += [f"| {name} | {' | '.join(map(str, row))} |" for name, row in PUBLISHED.items()]
    for loss, bars in BARS.items():
        found = [(errors("ratio", loss, n), bar) for n, bar in zip(SIZES, bars, strict=True)]
        lines.append(f"| {loss} | " + " | ".join(_cell(e, bar) for e, bar in found) + " |")
    for loss in BARS:
        found = [(errors("ratio", loss, n, "grid"), 0.0045 if n == 1000 and loss != "carl" else None) for n in SIZES]
        lines.append(f"| {loss}, mean of 13 x 13 pairs | " + " | ".join(_cell(e, bar) for e, bar in found) + " |")
    lines += ["", "| posterior of 500 balls | median | nine of ten below | bars |", "|---" * 4 + "|"]
    for n, bars in zip(POSTERIORS, ((0.08, 0.15), (0.05, 0.12)), strict=True):
        found = np.sort(errors("posterior", "alices", n))
        if len(found):
            ninth = found[int(np.ceil(0.9 * len(found))) - 1]
            lines.append(f"| {n} balls ({len(found)} seeds) | {np.median(found):.3f} | {ninth:.3f} | {bars} |")
    return "\n".join(lines)


def _cell(found: np.ndarray, bar: float | None) -> str:
    if not len(found):
        return "not run"
    low, high = np.quantile(found, [0.16, 0.84])
    limit = "" if bar is None else f", bar {bar}"
    return f"{np.median(found):.2g} ({low:.2g} to {high:.2g}; {len(found)} seeds{limit})"


def picture() -> None:
    """Draw error against simulations, median and 16% to 84% of seeds."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    _, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
    for (loss, _), color in zip(BARS.items(), ("#CC6677", "#4477AA", "#228833"), strict=True):
        found = [errors("ratio", loss, n) for n in SIZES]
        if all(len(e) for e in found):
            low, middle, high = np.array([np.quantile(e, [0.16, 0.5, 0.84]) for e in found]).T
            axes.fill_between(SIZES, low, high, color=color, alpha=0.2, lw=0)
            axes.plot(SIZES, middle, "o-", color=color, label=loss)
    for name, row in PUBLISHED.items():
        axes.plot(SIZES, row, "k:", label=name)
    axes.axhline(NOTHING, color="0.6", lw=1)
    axes.text(SIZES[0], NOTHING * 1.1, "saying nothing", color="0.4", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="simulations", ylabel=r"mean squared error of $\log r$")
    axes.set_xticks(SIZES, [str(n) for n in SIZES])
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, fontsize=8)
    plt.savefig(HERE / "galton_gold.png", dpi=160)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="do not run anything")
    parser.add_argument("--task", choices=("ratio", "posterior"), help="run only these cells")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.table:
        run_missing(arguments.task)
    print(table())
    picture()
