"""Pictures of a run: what was simulated, checked, learned and observed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_core.plots.style import BLUE, GREY, ORANGE, VERMILION, blues, on
from sbi_core.results import LogRatios, compare_log_ratios
from sbi_core.simulator import Simulator


def board(simulator: Simulator, simulations: Any, *, axes: Any = None) -> Any:
    """Draw some simulations in the simulator's own way."""
    axes = on(axes)
    simulator.draw(axes, simulations)
    return axes


def training_curves(history: Mapping[str, Sequence[float]], *, best_epoch: int | None = None, axes: Any = None) -> Any:
    """Draw training and held-out loss against the epoch, and the epoch whose weights were kept."""
    axes = on(axes)
    epochs = list(history["epoch"])
    axes.plot(epochs, history["training"], color=GREY, lw=1.3, label="training")
    if any(map(math.isfinite, history["validation"])):
        axes.plot(epochs, history["validation"], color=BLUE, label="held out")
        if best_epoch in epochs:
            value = history["validation"][epochs.index(best_epoch)]
            axes.plot([best_epoch], [value], "o", color=VERMILION, ms=6, label=f"kept: epoch {best_epoch}", zorder=4)
    late = [v for name in ("training", "validation") for v in history[name][len(epochs) // 20 :] if math.isfinite(v)]
    if len(epochs) > 20 and max(late) > min(late):  # do not let the first epochs flatten the rest
        pad = 0.1 * (max(late) - min(late))
        axes.set_ylim(min(late) - pad, max(late) + 2 * pad)
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend(loc="upper right")
    return axes


def gold_scores(tests: Sequence[Any], *, false_alarm: float = 1e-4, axes: Any = None) -> Any:
    """Draw the z-score of every test of a gold check.

    Args:
        tests: `GoldCheck.rows`, or the same as plain data.
        false_alarm: probability that clean gold leaves the band anywhere.
        axes: where to draw.
    """
    from statistics import NormalDist

    axes = on(axes)
    rows = [test if isinstance(test, Mapping) else vars(test) for test in tests]
    bound = NormalDist().inv_cdf(1 - false_alarm / (2 * max(len(rows), 1)))
    end = 1.6 * bound
    axes.axvspan(-bound, bound, color=BLUE, alpha=0.09, lw=0)
    axes.axvline(0, color=GREY, lw=0.8)
    for height, row in enumerate(reversed(rows)):
        z = row["z"] if row["z"] is not None and math.isfinite(row["z"]) else math.copysign(math.inf, row["z"] or 1.0)
        colour = {True: BLUE, False: VERMILION, None: GREY}[row["passed"]]
        shown = min(max(z, -end), end)
        marker = "o" if shown == z else ">" if z > 0 else "<"
        axes.plot([0, shown], [height, height], color=colour, lw=1.2, alpha=0.6)
        axes.plot([shown], [height], marker, color=colour, ms=6, clip_on=False)
    names = [f"{row['name']}, {row['parameter']}" for row in reversed(rows)]
    axes.set_yticks(range(len(rows)), names)
    axes.set(xlim=(-end, end), ylim=(-0.7, len(rows) - 0.3), xlabel="$z$: deviation in standard errors")
    axes.tick_params(axis="y", length=0)
    return axes


def learned_against_exact(
    estimator: Any, simulator: Simulator | None, data: Any, *, seed: int = 0, axes: Any = None
) -> Any:
    """Draw learned against exact log ratios of N rows; each row's own theta against another row's.

    See `compare_log_ratios` for the arguments and `log_ratios` for the picture.
    """
    return log_ratios(compare_log_ratios(estimator, simulator, data, seed=seed), axes=axes)


def log_ratios(ratios: LogRatios, *, axes: Any = None) -> Any:
    """Draw learned (and joint) log ratios against the exact ones; where nothing is exact, joint against learned."""
    axes = on(axes)
    if ratios.exact is None and ratios.joint is None:
        raise ValueError("neither exact nor joint log ratios are known; there is nothing to draw.")
    across = (ratios.exact if ratios.exact is not None else ratios.learned).numpy()
    end = 1.08 * float(np.quantile(np.abs(across), 0.995))
    if ratios.joint is not None:
        label = r"mined: $\log\,r(x, z)$"
        axes.scatter(across, ratios.joint.numpy(), s=4, color=ORANGE, alpha=0.3, lw=0, label=label, rasterized=True)
    axes.plot([-end, end], [-end, end], color="black", lw=0.9, ls=(0, (4, 3)), zorder=4)
    if ratios.exact is not None:
        learned = ratios.learned.numpy()
        colour = _density(across, learned)
        order = np.argsort(colour)
        axes.scatter(across[order], learned[order], s=8, c=colour[order], cmap=blues(), lw=0, zorder=3, rasterized=True)
        axes.scatter([], [], s=16, color=BLUE, lw=0, label=r"learned: $f(\theta, x) - f(\theta', x)$")
        text = f"rms error {ratios.rms:.3f}\nof {ratios.spread:.2f} nats"
        axes.text(0.97, 0.05, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=10)
    known = "exact" if ratios.exact is not None else "learned"
    axes.set(xlim=(-end, end), ylim=(-1.4 * end, 1.4 * end), xlabel=rf"{known} $\log\,r(x \mid \theta, \theta')$")
    axes.set_ylabel(r"$\log\,r$ [nats]")
    axes.legend(loc="upper left", markerscale=1.6, handletextpad=0.2)
    return axes


def observation(x_obs: Tensor, simulator: Simulator, posterior: Any, *, draws: int = 400, axes: Any = None) -> Any:
    """Draw the counts of observed class labels x_obs (n, 1) over the exact posterior predictive, with its 68% band.

    The predictive probability of a label is its exact probability averaged over `draws` values of theta (draws, D).
    """
    axes = on(axes)
    categories = simulator.categories or int(x_obs.max()) + 1
    counts = torch.bincount(x_obs.flatten().long(), minlength=categories).numpy()
    theta = posterior.sample(torch.Size([draws]))
    labels = torch.arange(categories, dtype=torch.float64)[:, None]
    chance = simulator.log_likelihood(theta[:, None], labels).exp().mean(0).numpy()
    n = len(x_obs)
    expected, width = n * chance, np.sqrt(n * chance * (1 - chance))
    top = expected + width
    place = np.arange(categories)
    axes.bar(place, counts, width=0.82, color=GREY, alpha=0.45, label=f"observed ({n})")
    axes.fill_between(place, np.clip(expected - width, 0, None), top, step="mid", color=BLUE, alpha=0.25, lw=0)
    axes.step(place, expected, where="mid", color=BLUE, label="posterior predictive")
    used = np.flatnonzero((counts > 0) | (expected > 1e-3))
    axes.set(xlim=(used[0] - 0.8, used[-1] + 0.8), xlabel="$x$", ylabel="count")
    axes.set_ylim(0, 1.22 * max(counts.max(), top.max()))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="upper right")
    return axes


def _density(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How crowded each point's neighbourhood is, on a logarithmic scale."""
    counts, *edges = np.histogram2d(x, y, bins=40)
    cells = [np.clip(np.digitize(v, edge) - 1, 0, 39) for v, edge in zip((x, y), edges, strict=True)]
    return np.asarray(np.log1p(counts[cells[0], cells[1]]))
