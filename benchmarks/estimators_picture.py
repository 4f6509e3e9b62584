"""The picture of `estimators.py`: what gold saves in simulations, and the posteriors beside sbi's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from estimator_methods import PEERS
from estimators_table import BOARD_BARS, ENOUGH, FREE, SIZES, Row, curve, quality
from reference_posteriors import PROBLEMS

GREYS = dict(zip(FREE, ("#000000", "#666666", "#a0a0a0"), strict=True))
COLOURS = ("#4477AA", "#66CCEE", "#228833", "#CCBB44", "#EE6677", "#AA3377", "#EE7733")


def picture(rows: Sequence[Row], path: Path) -> None:
    """Draw grid error against simulations, and C2ST of both libraries cell by cell."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained", width_ratios=(1, 1.25))
    _curves(left, rows)
    _pairs(right, rows)
    figure.savefig(path, dpi=150)


def _curves(axes: Any, rows: Sequence[Row]) -> None:
    gold = iter(COLOURS)
    for method in BOARD_BARS:
        free = method in FREE
        color = GREYS[method] if free else next(gold)
        sizes, middle, spread = curve(rows, method)
        if not len(sizes):
            continue
        axes.fill_between(sizes, *spread, color=color, alpha=0.1, lw=0)
        axes.plot(sizes, middle, "s--" if free else "o-", color=color, ms=3.5, lw=1.3, label=method)
    axes.axhline(ENOUGH, color="0.7", lw=1, zorder=0)
    axes.set(xscale="log", yscale="log", xlabel="simulations", ylabel=r"mean squared error of $\log r$, 13 x 13 pairs")
    axes.set_title("Galton board: with gold (lines) and without (dashes)", fontsize=10)
    axes.legend(frameon=False, fontsize=8, ncols=2)


def _pairs(axes: Any, rows: Sequence[Row]) -> None:
    ticks, at = [], 0.0
    for problem in PROBLEMS:
        floor = quality(rows, problem, "exact", "exact", 0)
        start = at
        for method in PEERS:
            for n in SIZES:
                found = [quality(rows, problem, method, library, n) for library in ("sbi_core", "sbi")]
                for values, face, shift in zip(found, ("#4477AA", "white"), (-0.16, 0.16), strict=True):
                    each = np.array(list(values.values()))
                    edge = "#4477AA" if face != "white" else "#CC6677"
                    axes.plot(np.full(len(each), at + shift), each, ".", color=edge, alpha=0.35, ms=4, mew=0)
                    if len(each):
                        axes.plot(at + shift, each.mean(), "o", mfc=face, mec=edge, mew=1.5, ms=6)
                ticks.append((at, f"{method} {n // 1000}k"))
                at += 1
        if floor:
            axes.hlines(np.mean(list(floor.values())), start - 0.5, at - 0.5, color="0.6", lw=1)
        axes.text((start + at - 1) / 2, 1.05, problem, ha="center", fontsize=9)
        at += 0.8
    axes.plot([], [], "o", color="#4477AA", label="here")
    axes.plot([], [], "o", mfc="white", mec="#CC6677", mew=1.5, label="sbi 0.27")
    axes.plot([], [], color="0.6", lw=1, label="exact likelihood")
    axes.set_xticks([place for place, _ in ticks], [name for _, name in ticks], rotation=90, fontsize=8)
    axes.set(ylabel="C2ST (0.5 is perfect)", ylim=(0.44, 1.08), xlim=(-0.8, at - 1))
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0.95), ncols=3)
