"""The picture of `information_gain.py`: each error beside its bar, ours and peers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from information_gain_cells import LARGEST

from sbi_core.plots import BLUE, GREY, VERMILION, style

LEAST = 3e-3
"""Percent, the left end of the axis; what is smaller is drawn there, as an arrow."""

PEERS = "Pyro", "implicit nested"


def picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw one line for each row: its error in percent of the exact gain, and its bar if it has one."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    with style():
        figure, axes = plt.subplots(figsize=(9, 1.2 + 0.2 * len(rows)))
        places, at, last = [], 0.0, ""
        for row in rows:
            group = row["cell"].split(":")[0]
            at += 1.0 if group == last else 1.6
            last = group
            places.append(at)
            _line(axes, row, at)
        axes.set_yticks(places, [row["cell"] for row in rows], fontsize=8.5)
        axes.set(xscale="log", xlim=(LEAST, 400), ylim=(at + 1, 0.4))
        axes.set_xlabel("error, % of the exact gain (root mean square, or largest regret)", fontsize=10)
        axes.grid(axis="x", color="0.92", lw=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.plot([], [], "o", color=BLUE, label="here")
        axes.plot([], [], "o", color=VERMILION, mfc="white", label="peers")
        axes.plot([], [], "|", color="black", ms=11, mew=2, label="bar")
        axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _line(axes: Any, row: dict[str, Any], at: float) -> None:
    scale = 100 / float(row["exact"]) if row["kind"] == LARGEST else 1.0
    error, peer = scale * float(row["error"]), any(name in row["cell"] for name in PEERS)
    colour = VERMILION if peer else BLUE
    axes.plot([LEAST, max(error, LEAST)], [at, at], color=colour, lw=1, alpha=0.35)
    face = {"mfc": "white"} if peer else {}
    axes.plot(max(error, LEAST), at, "o" if error > LEAST else "<", color=colour, ms=5.5, clip_on=False, **face)
    bar = scale * float(row["bar"] or 0)
    if bar > LEAST:
        axes.plot(bar, at, "|", color="black", ms=11, mew=2)
    text = f"{error:.2g}%" if LEAST < error < 100 else f"{error:.0f}%" if error >= 100 else f"< {LEAST:g}%"
    missed = row["verdict"] == "missed"
    axes.annotate(
        text,
        (1.01, at),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8,
        color="black" if missed else GREY,
        weight="bold" if missed else "normal",
    )
