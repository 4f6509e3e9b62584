"""Every estimator against exact truth and side by side with sbi 0.27, which the extra `benchmarks` installs.

    python benchmarks/estimators.py                         # whatever is missing, then the table and the picture
    python benchmarks/estimators.py --task galton cpu       # only these cells; several such processes may run at once
    python benchmarks/estimators.py --library sbi_core --seeds 1
    python benchmarks/estimators.py --table                 # only the table and the picture

Resumable: a cell is one training (of `cpu` and `epoch` one comparison). Its rows are appended to estimators.csv when it
ends, and cells that are there are not run again. A cell that fails becomes a row with the error's name; delete the row
to try again. Every process uses one thread.

| task | cells | measured |
|---|---|---|
| galton | 11 methods on the Galton board | error of log r at one pair and over a grid of pairs |
| balls | alices on the Galton board | total variation of the posterior of 500 published balls |
| linear | alices, scandal on LinearGaussian(10) | error of log r against that of linear regression |
| c2st | nle, nre, npe of both libraries on four tasks | C2ST against samples of the true posterior |
| gold | scandal at 1,000 rows | the same, against sbi's NLE at 10,000 |
| alpha | scandal, cascal, alices, by default and with alpha = 0 | the same |
| epoch | carl on SLCP | one epoch of `fit` against a bare loop |
| cpu | nle, nre, npe of both libraries | CPU seconds until sbi's held-out loss |
"""

import argparse
import csv
import itertools
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from estimator_methods import PEERS, RATIO
from estimators_picture import picture
from estimators_table import table
from exact_truth import balls_cell, galton_cell, linear_cell
from posterior_quality import quality_cell
from reference_posteriors import PROBLEMS, default_folder
from threadpoolctl import threadpool_limits
from training_cost import cost_cell, epoch_cell

HERE = Path(__file__).parent
TABLE = HERE / "estimators.csv"
TASKS = ("epoch", "galton", "balls", "linear", "c2st", "gold", "alpha", "cpu")
LIBRARIES = ("sbi_core", "sbi", "exact", "both")
MEASURED = (
    "error",
    "grid",
    "best",
    "best_without_gold",
    "gradient",
    "c2st",
    "offset",
    "log_spread",
    "epoch_seconds",
    "bare_seconds",
    "loss",
    "peer_loss",
    "reached_cpu_seconds",
    "peer_cpu_seconds",
    "peer_best_cpu_seconds",
    "cpu_seconds",
    "seconds",
)
VERSIONS = ("torch", "sbi-core", "sbi", "scikit-learn")


class Cell(NamedTuple):
    """One training."""

    task: str
    problem: str
    method: str
    library: str
    simulations: int
    seed: int


COLUMNS = (*Cell._fields, "observation", *MEASURED, "failure", *VERSIONS)


def cells() -> list[Cell]:
    """All cells: first seeds first, then small ones."""
    return sorted({*_cells()}, key=lambda cell: (cell.seed, cell.simulations, TASKS.index(cell.task), *cell[1:3]))


def _cells() -> Iterator[Cell]:
    free, product = ("carl", "nre", "nle"), itertools.product
    every = (*RATIO, "nle", "scandal")
    gold = tuple(method for method in every if method not in free)
    board = [
        *product(every, (200, 1000, 5000), range(20)),
        *product(free, (2000, 10_000, 20_000, 40_000, 80_000), range(5)),
        *product(gold, (100, 300, 500), range(5)),
        *product(("sally",), (1000,), range(20)),
    ]
    yield from (Cell("galton", "galton", method, "sbi_core", n, seed) for method, n, seed in board)
    for n, seed in product((10_000, 40_000), range(10)):
        yield Cell("balls", "galton", "alices", "sbi_core", n, seed)
    for method, n, seed in product(("alices", "scandal"), (1000, 10_000), range(5)):
        yield Cell("linear", "linear_gaussian_10", method, "sbi_core", n, seed)
    for problem, seed in product(PROBLEMS, range(3)):
        yield Cell("c2st", problem, "exact", "exact", 0, seed)
        for method, library, n in product(PEERS, ("sbi_core", "sbi"), (1000, 10_000)):
            yield Cell("c2st", problem, method, library, n, seed)
    smooth = [problem for problem in PROBLEMS if problem != "two_moons"]  # two moons has no gold
    for problem, seed in product(("bernoulli_glm", "gaussian_linear"), range(3)):
        yield Cell("gold", problem, "scandal", "sbi_core", 1000, seed)
    for problem, method, alpha, seed in product(smooth, ("scandal", "cascal", "alices"), ("", "@0"), range(2)):
        if (problem, method, alpha) not in product(("bernoulli_glm", "gaussian_linear"), ("scandal",), ("",)):
            yield Cell("alpha", problem, method + alpha, "sbi_core", 1000, seed)
    for seed in range(3):
        yield Cell("epoch", "slcp", "carl", "sbi_core", 10_000, seed)
        for problem, method in product(("two_moons", "slcp"), PEERS):
            yield Cell("cpu", problem, method, "both", 10_000, seed)


def run(cell: Cell, folder: Path) -> list[dict[str, Any]]:
    """Run one cell; its rows, or one row with the name of the error."""
    started = time.perf_counter()
    task, problem, method, library, n, seed = cell
    rows: list[dict[str, Any]]
    try:
        if task == "galton":
            rows = galton_cell(method, n, seed)
        elif task == "balls":
            rows = balls_cell(method, n, seed)
        elif task == "linear":
            rows = linear_cell(method, n, seed)
        elif task == "epoch":
            rows = epoch_cell(n, seed)
        elif task == "cpu":
            rows = cost_cell(problem, method, n, seed)
        else:
            rows = quality_cell(problem, method, library, n, seed, folder)
    except Exception as error:  # whatever it is, it belongs in the table
        rows = [{"failure": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}]
    seconds = time.perf_counter() - started
    versions = {name: version(name) for name in VERSIONS}
    return [{**cell._asdict(), **versions, "seconds": seconds, **row} for row in rows]


def read() -> list[dict[str, str]]:
    """The rows that are there."""
    if not TABLE.exists():
        return []
    with open(TABLE, newline="") as file:
        return list(csv.DictReader(file))


def write(rows: list[dict[str, Any]]) -> None:
    """Append the rows of a cell and print what was measured."""
    new = not TABLE.exists()
    with open(TABLE, "a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            short = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()}
            writer.writerow(short)
            print(*(short[key] for key in COLUMNS[: -len(VERSIONS)] if key in short), flush=True)


def run_missing(wanted: list[Cell], folder: Path, workers: int) -> None:
    """Run what is missing, writing after each cell."""
    done = {tuple(row[key] for key in Cell._fields) for row in read()}
    missing = [cell for cell in wanted if tuple(map(str, cell)) not in done]
    print(f"{len(missing)} of {len(wanted)} cells to run", flush=True)
    if workers == 1:
        for cell in missing:
            write(run(cell, folder))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread) as pool:
        for future in as_completed([pool.submit(run, cell, folder) for cell in missing]):
            write(future.result())


def one_thread() -> None:
    """Keep torch, BLAS and OpenMP to one thread in this process."""
    torch.set_num_threads(1)
    threadpool_limits(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="do not run anything")
    parser.add_argument("--task", nargs="+", choices=TASKS, default=TASKS, help="run only these")
    parser.add_argument("--problem", nargs="+", help="run only these simulators")
    parser.add_argument("--method", nargs="+", help="run only these methods")
    parser.add_argument("--library", nargs="+", choices=LIBRARIES, default=LIBRARIES, help="run only these")
    parser.add_argument("--most", type=int, default=10**9, help="run only cells of so many simulations at most")
    parser.add_argument("--seeds", type=int, default=100, help="run only so many seeds")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--reference", type=Path, default=default_folder(), help="folder of reference samples")
    arguments = parser.parse_args()
    one_thread()
    if not arguments.table:
        chosen = [
            cell
            for cell in cells()
            if cell.task in arguments.task
            and cell.library in arguments.library
            and (arguments.problem is None or cell.problem in arguments.problem)
            and (arguments.method is None or cell.method in arguments.method)
            and cell.seed < arguments.seeds
            and cell.simulations <= arguments.most
        ]
        run_missing(chosen, arguments.reference, arguments.workers)
    print(table(read(), arguments.reference))
    picture(read(), HERE / "estimators.png")
