"""The table and the picture of `estimators.py`: medians, bars, and what failed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from estimator_methods import PEERS
from reference_posteriors import OBSERVATIONS, PROBLEMS, SAMPLES

Row = dict[str, str]

NOTHING = 0.063
"""Error of the answer log r = 0 at the pair of the board."""

PUBLISHED = (0.022, 0.0062, 0.0012)
"""The same of RASCAL as in arXiv:1805.12244, remeasured on rows with theta uniform in [-1, -0.4]."""

ENOUGH = 0.003
"""Grid error whose price in simulations is read off."""

BOARD_BARS: dict[str, tuple[float | None, ...]] = {
    "carl": (None, 0.045, 0.010),
    "nre": (None, 0.045, 0.010),
    "nle": (None, 0.03, 0.011),
    "rolr": (0.012, 0.005, 0.0015),
    "cascal": (0.015, 0.003, 0.0006),
    "rascal": (0.010, 0.0025, 0.0006),
    "alice": (None, None, None),
    "nre_gold": (0.008, 0.0017, 0.0004),
    "alices": (0.008, 0.0017, 0.0004),
    "scandal": (0.012, 0.003, 0.0005),
}
SALLY_BAR = 0.002
BALLS_BARS = {10_000: (0.08, 0.15), 40_000: (0.05, 0.12)}
FREE = ("carl", "nre", "nle")
SIZES = (1000, 10_000)


def pick(rows: Sequence[Row], column: str, **wanted: object) -> dict[tuple[int, str], float]:
    """Numbers of a column by (seed, observation), of the rows that match; failures are left out."""
    found = [row for row in rows if row[column] and all(row[key] == str(value) for key, value in wanted.items())]
    return {(int(row["seed"]), row["observation"]): float(row[column]) for row in found}


def verdict(good: bool) -> str:
    """Say whether a bar was met."""
    return "met" if good else "**missed**"


def table(rows: Sequence[Row], folder: Path) -> str:
    """All results as Markdown."""
    parts = [
        _board(rows),
        _price(rows),
        _balls(rows),
        _linear(rows),
        _posteriors(rows, folder),
        _gold(rows),
        _alpha(rows),
    ]
    return "\n\n".join([*parts, _time(rows), _failures(rows)])


def _frame(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def _median(found: dict[tuple[int, str], float], bar: float | None) -> str:
    if not found:
        return "not run"
    low, middle, high = np.quantile(list(found.values()), [0.16, 0.5, 0.84])
    judged = "" if bar is None else f", bar {bar}: {verdict(middle <= bar)}"
    return f"{middle:.2g} ({low:.2g} to {high:.2g}; {len(found)} seeds{judged})"


def _board(rows: Sequence[Row]) -> str:
    lines = [["saying nothing", *[str(NOTHING)] * 3], ["RASCAL as published", *map(str, PUBLISHED)]]
    for column, text in (("error", ""), ("grid", ", mean of 13 x 13 pairs")):
        for method, bars in BOARD_BARS.items():
            found = [pick(rows, column, task="galton", method=method, simulations=n) for n in (200, 1000, 5000)]
            limits = bars if column == "error" else (None, None, None)
            lines.append([method + text, *(_median(f, bar) for f, bar in zip(found, limits, strict=True))])
    sally = pick(rows, "error", task="galton", method="sally", simulations=1000)
    lines.append(["sally, at theta_ref = -0.7", "", _median(sally, SALLY_BAR), ""])
    head = "Galton board, error of log r: median (16% to 84%)"
    return _frame([head, *(f"{n} simulations" for n in (200, 1000, 5000))], lines)


def curve(rows: Sequence[Row], method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Simulations (K,), median grid error (K,), and its 16% and 84% (2, K)."""
    sizes = sorted({int(row["simulations"]) for row in rows if row["method"] == method and row["grid"]})
    found = [list(pick(rows, "grid", task="galton", method=method, simulations=n).values()) for n in sizes]
    quantiles = np.array([np.quantile(f, [0.5, 0.16, 0.84]) for f in found]).reshape(-1, 3).T
    return np.array(sizes), quantiles[0], quantiles[1:]


def price(rows: Sequence[Row], method: str) -> tuple[str, float, bool]:
    """Simulations at which the median grid error falls to ENOUGH, log-log between sizes: text, number, whether it does.

    Where it does not, the number is a lower bound; where the smallest size does already, an upper one.
    """
    sizes, middle, _ = curve(rows, method)
    below = np.flatnonzero(middle <= ENOUGH)
    if not len(sizes):
        return "not run", np.nan, False
    if not len(below):
        return f"more than {sizes[-1]} ({middle[-1]:.2g} there)", float(sizes[-1]), False
    first = int(below[0])
    if not first:
        return f"fewer than {sizes[0]}", float(sizes[0]), True
    pair = slice(first - 1, first + 1)
    at = np.exp(np.interp(-np.log(ENOUGH), -np.log(middle[pair]), np.log(sizes[pair])))
    return f"{at:.0f}", float(at), True


def _price(rows: Sequence[Row]) -> str:
    found = {method: price(rows, method) for method in BOARD_BARS}
    lines = [[method, text] for method, (text, _, _) in found.items()]
    gold = min((n for method, (_, n, reached) in found.items() if method not in FREE and reached), default=np.nan)
    ratio = min(found[method][1] for method in FREE) / gold
    if np.isfinite(ratio):
        least = "" if all(found[method][2] for method in FREE) else "at least "
        lines.append(
            ["best without gold over best with gold", f"{least}{ratio:.0f}, bar 20: {verdict(bool(ratio >= 20))}"]
        )
    return _frame(["method, Galton board", f"simulations for a grid error of {ENOUGH}"], lines)


def _balls(rows: Sequence[Row]) -> str:
    lines = []
    for n, bars in BALLS_BARS.items():
        found = sorted(pick(rows, "error", task="balls", simulations=n).values())
        if found:
            ends = np.median(found), found[int(np.ceil(0.9 * len(found))) - 1]
            judged = [f"{end:.3f}, bar {bar}: {verdict(end <= bar)}" for end, bar in zip(ends, bars, strict=True)]
            lines.append([f"alices, {n} ({len(found)} seeds)", *judged])
    return _frame(["total variation of the posterior of 500 balls", "median", "nine of ten below"], lines)


def _linear(rows: Sequence[Row]) -> str:
    lines = []
    for method in ("alices", "scandal"):
        for n in SIZES:
            one = {"task": "linear", "method": method, "simulations": n}
            error, best, free = (pick(rows, key, **one) for key in ("error", "best", "best_without_gold"))
            gradient = pick(rows, "gradient", **one)
            if not error:
                continue
            ratio = np.median([error[key] / best[key] for key in error])
            lines.append(
                [
                    f"{method}, {n}",
                    *(_median(found, None) for found in (error, best, free)),
                    f"{ratio:.2g}, bar 1.2: {verdict(bool(ratio <= 1.2))}",
                    f"{max(gradient.values()):.1g}",
                ]
            )
    head = ["mean squared error of log r over the prior", "learned", "regression of the joint score on (1, x, theta)"]
    head += ["regression of x on (1, theta)", "learned over the best regression", "gradient against its difference"]
    return "LinearGaussian(10):\n\n" + _frame(head, lines)


def quality(rows: Sequence[Row], problem: str, method: str, library: str, n: int, column: str = "c2st") -> dict:
    """A column by (seed, observation), whichever task it was run for."""
    return pick(rows, column, problem=problem, method=method, library=library, simulations=n)


def paired(ours: dict, theirs: dict) -> tuple[float, float, int]:
    """Mean difference where both are there, its standard error, and of how many pairs."""
    difference = np.array([ours[key] - theirs[key] for key in ours if key in theirs])
    if len(difference) < 2:
        return float(difference.mean()) if len(difference) else np.nan, np.nan, len(difference)
    return float(difference.mean()), float(difference.std(ddof=1) / len(difference) ** 0.5), len(difference)


def _moments(rows: Sequence[Row], *cell: object) -> str:
    offset, spread = (quality(rows, *cell, column) for column in ("offset", "log_spread"))
    return f"{np.mean(list(offset.values())):.2f} / {np.mean(list(spread.values())):+.2f}"


def _posteriors(rows: Sequence[Row], folder: Path) -> str:
    lines, gaps = [], []
    for problem in PROBLEMS:
        floor = quality(rows, problem, "exact", "exact", 0)
        if floor:
            lines.append([f"{problem}, exact likelihood", f"{np.mean(list(floor.values())):.3f}", *[""] * 4])
        for method in PEERS:
            for n in SIZES:
                both = [(problem, method, library, n) for library in ("sbi_core", "sbi")]
                ours, theirs = (quality(rows, *cell) for cell in both)
                gap, error, pairs = paired(ours, theirs)
                if not pairs:
                    continue
                gaps.append((method, gap))
                judged = f": {verdict(gap <= max(0.04, 3 * error))}" if pairs > 1 else ""
                means = [np.mean([found[key] for key in ours if key in theirs]) for found in (ours, theirs)]
                lines.append(
                    [
                        f"{problem}, {method}, {n}",
                        *(f"{mean:.3f}" for mean in means),
                        f"{gap:+.3f} +- {error:.3f} ({pairs} runs){judged}",
                        *(_moments(rows, *cell) for cell in both),
                    ]
                )
    for name in (*PEERS, "all"):
        each = [gap for method, gap in gaps if name in (method, "all")]
        if each:
            judged = f", bar +.010: {verdict(np.mean(each) <= 0.01)}" if name == "all" else ""
            lines.append([f"mean over {len(each)} cells, {name}", "", "", f"{np.mean(each):+.3f}{judged}", "", ""])
    head = ["C2ST", "here", "sbi 0.27", "difference, paired", "here: offset / log spread", "sbi: offset / log spread"]
    source = "published samples" if folder.name == "sbibm" else f"thinned samples in {folder.name}/"
    about = f"Posteriors, {SAMPLES} samples a side, observations {OBSERVATIONS}; {source}, of Bernoulli GLM own:"
    return about + "\n\n" + _frame(head, lines)


def _gold(rows: Sequence[Row]) -> str:
    lines = []
    for problem in ("bernoulli_glm", "gaussian_linear"):
        ours = quality(rows, problem, "scandal", "sbi_core", 1000)
        theirs = quality(rows, problem, "nle", "sbi", 10_000)
        gap, error, pairs = paired(ours, theirs)
        if pairs:
            means = [f"{np.mean(list(found.values())):.3f}" for found in (ours, theirs)]
            judged = f"{gap:+.3f} +- {error:.3f} ({pairs} runs), bar 2 errors: {verdict(gap <= 2 * error)}"
            lines.append([problem, *means, judged])
    return _frame(["C2ST", "scandal at 1000", "sbi NLE at 10000", "difference, paired"], lines)


def _alpha(rows: Sequence[Row]) -> str:
    lines, gaps = [], []
    for method in ("scandal", "cascal", "alices"):
        for problem in PROBLEMS:
            ours, theirs = (quality(rows, problem, method + at, "sbi_core", 1000) for at in ("", "@0"))
            gap, error, pairs = paired(ours, theirs)
            if pairs:
                gaps += [ours[key] - theirs[key] for key in ours if key in theirs]
                means = [f"{np.mean([found[key] for key in theirs if key in ours]):.3f}" for found in (ours, theirs)]
                lines.append([f"{problem}, {method}", *means, f"{gap:+.3f} +- {error:.3f} ({pairs} runs)"])
    if len(gaps) > 1:
        gap, error = np.mean(gaps), np.std(gaps, ddof=1) / len(gaps) ** 0.5
        good = gap <= 0.01 + 2 * error
        lines.append(["mean", "", "", f"{gap:+.3f} +- {error:.3f}, bar .010 + 2 errors: {verdict(bool(good))}"])
    return _frame(["C2ST at 1000", "default alpha", "alpha = 0", "difference, paired"], lines)


def _time(rows: Sequence[Row]) -> str:
    lines = []
    epochs = [pick(rows, f"{kind}_seconds", task="epoch") for kind in ("epoch", "bare")]
    if epochs[0]:
        ratio = np.median([epochs[0][key] / epochs[1][key] for key in epochs[0]])
        lines.append(
            [
                "one epoch, carl on SLCP",
                *(_median(e, None) for e in epochs),
                "",
                "",
                f"{ratio:.2f}, bar 1.1: {verdict(bool(ratio <= 1.1))}",
            ]
        )
    columns = ("reached_cpu_seconds", "peer_cpu_seconds", "cpu_seconds", "peer_best_cpu_seconds", "loss", "peer_loss")
    for problem in PROBLEMS:
        for method in PEERS:
            found = [pick(rows, column, task="cpu", problem=problem, method=method) for column in columns]
            if not found[0]:
                continue
            ratios = [np.median([found[0][key] / found[k][key] for key in found[0]]) for k in (1, 3)]
            middle = [np.median(list(one.values())) for one in found]
            lines.append(
                [
                    f"{problem}, {method}, 10000: CPU s to sbi's held-out loss",
                    f"{middle[0]:.0f} (whole training {middle[2]:.0f})",
                    f"{middle[1]:.0f} (to its best epoch {middle[3]:.0f})",
                    f"{middle[4]:.3f}",
                    f"{middle[5]:.3f}",
                    f"{ratios[0]:.2f}, bar 0.5: {verdict(bool(ratios[0] <= 0.5))} (to its best epoch {ratios[1]:.2f})",
                ]
            )
    return _frame(["time", "here", "bare loop, or sbi", "loss here", "loss of sbi", "ratio, median"], lines)


def _failures(rows: Sequence[Row]) -> str:
    failed = [row for row in rows if row["failure"]]
    text = f"{len(failed)} of {len({tuple(row.values())[:6] for row in rows})} cells failed."
    keys = ("task", "problem", "method", "library", "simulations", "seed", "failure")
    return "\n".join([text, *("- " + " ".join(row[key] for key in keys) for row in failed)])
