"""How many fewer simulations reach the same posterior error if an ensemble chooses them: two worlds, one table.

    python benchmarks/acquisition.py                       # all cells, 5 seeds, CPU; what the table has is kept
    python benchmarks/acquisition.py --world two_moons     # one world
    python benchmarks/acquisition.py --table               # what was measured so far

Error is the total variation between the ensemble's posterior and the exact one, on a grid. Seed k has an observation
of its own, drawn from the prior predictive; prior sampling, which knows none, is judged at all of them. Methods:
thetas of the prior; where members disagree at x_obs; of the prior truncated to the belief; where they disagree within
it; and, without x_obs, where they disagree for any x. All train the same heads with the same options.

For the saving, the error of prior sampling at the same observation, mean over its seeds, is interpolated in the
logarithms of error and simulations: by it prior sampling needs `factor` times as many. ">" counts runs that beat the
largest prior sample; they enter with its size.
"""

import argparse
import csv
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sbi_core import Simulator, simulate
from sbi_core.design import acquire
from sbi_core.errors import SbiWarning
from sbi_core.estimators import Ensemble, nle, nre
from sbi_core.estimators.losses import Loss
from sbi_core.simulators import GaltonBoard, TwoMoons

TABLE = Path(__file__).parent / "acquisition.csv"
FIELDS = ("world", "method", "seed", "observation", "n", "error", "disagreement", "acceptance", "seconds")
SEEDS = range(1, 6)
MEMBERS, EPOCHS, ROUNDS = 2, 200, 4


@dataclass(frozen=True)
class World:
    """What is simulated and learned, chosen simulations and those of the prior, and cells of the grid per axis."""

    simulator: Simulator
    loss: Loss
    size: int
    of_prior: tuple[int, ...]
    methods: tuple[str, ...]
    cells: int


WORLDS = {
    "two_moons": World(
        TwoMoons(), nre, 1000, (250, 500, 1000, 2000, 4000), ("both", "disagreement", "truncation", "any x"), 401
    ),
    "galton": World(
        GaltonBoard(), nle, 400, (100, 200, 400, 800, 1600), ("both", "disagreement", "truncation", "any x"), 2001
    ),
}
METHODS: dict[str, dict[str, Any]] = {
    "disagreement": {"exponent": 1.0, "epsilon": None},
    "truncation": {"exponent": 0.0},
    "both": {},
    "any x": {"x_obs": None, "exponent": 1.0},
}


def observation(world: str, k: int) -> Tensor:
    """x drawn from the prior predictive."""
    found: Tensor = simulate(WORLDS[world].simulator, 1, seed=1000 + k, progress=False).x[0]
    return found


def error(ensemble: Ensemble, world: str, k: int) -> float:
    """Total variation between the members' mixture and the exact posterior at an observation."""
    simulator, cells = WORLDS[world].simulator, WORLDS[world].cells
    axes = [torch.linspace(p.low, p.high, cells, dtype=torch.float64) for p in simulator.parameters]
    theta = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    x = observation(world, k)
    with torch.no_grad():
        exact = torch.softmax(simulator.log_likelihood(theta, x).double(), 0)
        each = [torch.softmax(member.log_likelihood(theta, x).double(), 0) for member in ensemble.members]
    return float((torch.stack(each).mean(0) - exact).abs().sum() / 2)


def cell(world: str, method: str, seed: int, n: int) -> list[dict[str, Any]]:
    """All rows of one run: of prior sampling one for each observation, of the others one for each round."""
    started = time.monotonic()
    options: dict[str, Any] = {"members": MEMBERS, "max_epochs": EPOCHS, "seed": seed}
    simulator, loss = WORLDS[world].simulator, WORLDS[world].loss
    if method == "prior":
        found = acquire(simulator, loss, n=n, rounds=1, **options)
        runs = [(k, n, found.rounds[0]) for k in SEEDS]
    else:
        options = {"x_obs": observation(world, seed), "rounds": ROUNDS, **options, **METHODS[method]}
        done = acquire(simulator, loss, n=n, **options).rounds
        runs = [(seed, n * (k + 1) // ROUNDS, one) for k, one in enumerate(done)]
    seconds = time.monotonic() - started
    return [
        {
            "world": world,
            "method": method,
            "seed": seed,
            "observation": k,
            "n": size,
            "error": f"{error(one.estimator, world, k):.4f}",
            "disagreement": f"{one.disagreement:.4f}",
            "acceptance": f"{one.acceptance:.4g}",
            "seconds": f"{seconds:.0f}",
        }
        for k, size, one in runs
    ]


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The table so far."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def needed(errors: dict[int, float], wanted: float) -> tuple[float, bool]:
    """Simulations at which a curve n -> error first reaches the wanted error, and whether it does at all.

    Of a curve that rises again somewhere its lower envelope counts.
    """
    sizes, lowest = sorted(errors), math.inf
    before: tuple[int, float] | None = None
    for n in sizes:
        value = errors[n]
        if value <= wanted:
            if before is None:
                return float(n), True
            step = math.log(before[1] / wanted) / math.log(before[1] / value)
            return math.exp(math.log(before[0]) + step * math.log(n / before[0])), True
        if value < lowest:
            lowest, before = value, (n, value)
    return float(sizes[-1]), False


def show(rows: list[dict[str, Any]]) -> None:
    """Errors, and how many simulations of the prior do what n chosen ones do."""
    for world in dict.fromkeys(row["world"] for row in rows):
        mine = [row for row in rows if row["world"] == world]
        curves: dict[str, dict[int, float]] = {}
        plain: dict[int, list[float]] = {}
        for row in (row for row in mine if row["method"] == "prior"):
            plain.setdefault(int(row["n"]), []).append(float(row["error"]))
        if not plain:
            continue
        for k in dict.fromkeys(row["observation"] for row in mine):
            at = [row for row in mine if row["method"] == "prior" and row["observation"] == k]
            sizes = {int(row["n"]) for row in at}
            curves[k] = {
                n: float(torch.tensor([float(row["error"]) for row in at if int(row["n"]) == n]).mean()) for n in sizes
            }
        print(f"\n{world}: prior sampling, error {', '.join(f'{n}: {_said(plain[n])}' for n in sorted(plain))}")
        print(f"{'method':14} {'n':>6} {'error':>15} {'factor':>7} {'16% to 84%':>14} {'runs':>5} {'>':>3} {'s':>6}")
        for method in METHODS:
            for n in sorted({int(row["n"]) for row in mine if row["method"] == method}):
                at = [row for row in mine if row["method"] == method and int(row["n"]) == n]
                pairs = [needed(curves[row["observation"]], float(row["error"])) for row in at]
                factor = torch.tensor([found / n for found, _ in pairs])
                low, middle, high = factor.log().quantile(torch.tensor([0.16, 0.5, 0.84])).exp().tolist()
                beyond, seconds = sum(not reached for _, reached in pairs), sum(float(r["seconds"]) for r in at)
                print(
                    f"{method:14} {n:6d} {_said([float(row['error']) for row in at]):>15} {middle:7.2f} "
                    f"{f'{low:.2f} to {high:.2f}':>14} {len(at):5d} {beyond:3d} {seconds / len(at):6.0f}"
                )


def _said(values: list[float]) -> str:
    column = torch.tensor(values)
    return f"{float(column.mean()):.3f} +- {float(column.std()):.3f}"


def main() -> None:
    """Fill the table, cell by cell, then print it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--world", choices=list(WORLDS))
    options.add_argument("--out", type=Path, default=TABLE)
    options.add_argument("--table", action="store_true")
    asked = options.parse_args()
    warnings.simplefilter("ignore", SbiWarning)
    rows = rows_of(asked.out)
    known = {(row["world"], row["method"], int(row["seed"]), int(row["n"])) for row in rows}
    cells = [
        (name, method, n, seed)
        for name, world in WORLDS.items()
        for method, n in [*(("prior", n) for n in world.of_prior), *((one, world.size) for one in world.methods)]
        for seed in SEEDS
    ]
    for world, method, n, seed in cells:
        if asked.table or asked.world not in (None, world) or (world, method, seed, n) in known:
            continue
        rows += cell(world, method, seed, n)
        with asked.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
    show(rows_of(asked.out))


if __name__ == "__main__":
    main()
