"""Expected information gain against exact values: a table of errors and its picture, one row for each estimate.

    python benchmarks/information_gain.py                 # all cells, 16 seeds
    python benchmarks/information_gain.py --cell galton   # those whose name begins so
    python benchmarks/information_gain.py --table         # what was measured so far, and its picture

Each row: the exact gain in nats, the mean over seeds, an error and what kind of error it is (root mean square relative
to the exact gain, or the largest over seeds), the bar it is to stay below, the mean stated error, calls of the
simulator and densities evaluated (each a mean), and CPU seconds, next to none for what the row before has found. Peers
run in the same process on the same problem: plain nested Monte Carlo of an implicit simulator (a table of simulations
stands for p(x | theta)), and Pyro's `nmc_eig` and `posterior_eig`.
"""

import argparse
import csv
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from information_gain_cells import RMS, Cell, cells
from information_gain_choices import choices
from information_gain_peers import peers
from information_gain_picture import picture

from sbi_core.errors import SbiWarning

TABLE, PICTURE = (Path(__file__).with_suffix(suffix) for suffix in (".csv", ".png"))


def measure(name: str, cell: Cell, seeds: int) -> dict[str, Any]:
    """One row."""
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SbiWarning)
        found = [cell.estimate(seed) for seed in range(seeds)]
    value, error, calls, densities = torch.tensor([[f.value, f.error, f.calls, f.densities] for f in found]).double().T
    off = 100 * (value / cell.exact - 1).square().mean().sqrt()
    if cell.kind != RMS:
        off = torch.tensor([f.off or 0.0 for f in found]).max()
    return {
        "cell": name,
        "exact": f"{cell.exact:.6g}",
        "mean": f"{value.mean():.5g}",
        "error": f"{off:.3g}",
        "kind": cell.kind,
        "bar": "" if cell.bar is None else f"{cell.bar:g}",
        "verdict": "" if cell.bar is None else "met" if off <= cell.bar else "missed",
        "stated error %": f"{100 * error.mean() / cell.exact:.2g}",
        "calls": int(calls.mean()),
        "densities": int(densities.mean()),
        "CPU s": f"{(time.process_time() - started) / seeds:.3g}",
        "seeds": seeds,
    }


def known() -> dict[str, dict[str, Any]]:
    """Rows of the table."""
    if not TABLE.exists():
        return {}
    with TABLE.open() as file:
        return {row["cell"]: row for row in csv.DictReader(file)}


def keep(row: dict[str, Any], order: list[str]) -> None:
    """Write a row into the table, whatever other runs wrote into it meanwhile."""
    rows = known() | {row["cell"]: row}
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerows(rows[name] for name in order if name in rows)


def main() -> None:
    """Measure cells that are asked for; print the table, and draw it."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cell", default="", help="beginning of the name")
    options.add_argument("--seeds", type=int, default=16)
    options.add_argument("--table", action="store_true")
    asked = options.parse_args()
    every = cells() | choices() | peers()
    order = sorted(every, key=lambda name: [cell.split(":")[0] for cell in every].index(name.split(":")[0]))
    for name in order:
        if name.startswith(asked.cell) and not asked.table:
            row = measure(name, every[name], asked.seeds)
            print(row, flush=True)
            keep(row, order)
    rows = list(known().values())
    if rows:
        widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
        for row in ({key: key for key in widths}, *rows):
            print("  ".join(row[key].ljust(width) for key, width in widths.items()))
        picture(rows, PICTURE)


if __name__ == "__main__":
    main()
