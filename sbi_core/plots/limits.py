"""Pictures of confidence sets: profiles, regions, belts of toys, coverage, and what a learned ratio is worth."""

from typing import Any

import numpy as np

from sbi_core.errors import InputError
from sbi_core.plots.style import BLUE, GREY, ORANGE, VERMILION, on

COLOURS = (BLUE, VERMILION, ORANGE)
TALLEST = 2.1
"""Part of the highest critical value up to which a profile is shown."""


def profile(limits: Any, *, truth: float | None = None, axes: Any = None) -> Any:
    """Draw q = -2 log likelihood ratio of one parameter, the others at their best, with its critical values and sets.

    Args:
        limits: of one parameter of interest (see `limits`); curves of an ensemble's members are drawn thinly.
        truth: marked if it is known.
        axes: where to draw.

    Raises:
        InputError: for limits of two parameters.
    """
    axes, at = on(axes), _column(limits)
    for member in limits.members:
        axes.plot(member.grid[0], member.q, color=GREY, lw=0.7, alpha=0.6)
    axes.plot(limits.grid[0], limits.q, color="black", label=r"$q = -2\,\log$ profile likelihood ratio", zorder=3)
    highest, signed = [1.0], limits.method == "neyman"
    for level, colour in zip(limits.levels, COLOURS, strict=False):
        for number, piece in enumerate(limits.intervals[level]):
            label = f"{level:.1%} set, {_kind(limits)}" if number == 0 else None
            axes.axvspan(piece.low, piece.high, color=colour, alpha=0.16, lw=0, label=label)
        if not signed:  # else the set is where the signed root of q is in a band of its own
            value = np.asarray(limits.critical[level])
            line = np.full(len(limits.q), float(value)) if value.ndim == 0 else value
            axes.plot(limits.grid[0], line, color=colour, lw=1.2, ls=(0, (4, 2)), zorder=2)
            highest.append(float(np.nanmax(line)))
        else:
            highest.append(6.0)
    best = float(limits.best_fit[at])
    axes.plot([best], [0.0], "o", color="black", ms=5, clip_on=False, zorder=4, label=f"best fit {best:.4g}")
    if truth is not None:
        axes.axvline(truth, color=VERMILION, lw=1.3, label="truth")
    top = TALLEST * max(highest)
    shown = np.flatnonzero(np.asarray(limits.q) < 1.5 * top)
    grid = np.asarray(limits.grid[0])
    axes.set(xlim=(grid[max(shown[0] - 1, 0)], grid[min(shown[-1] + 1, len(grid) - 1)]), ylim=(0, top))
    axes.set(xlabel=limits.parameters[at].label, ylabel="$q$")
    axes.legend(loc="upper center", fontsize=8.5)
    return axes


def region(limits: Any, *, truth: Any = None, axes: Any = None) -> Any:
    """Draw confidence regions of two parameters, smallest level darkest, and the best fit.

    Args:
        limits: of two parameters of interest.
        truth: their values (2,), marked if they are known.
        axes: where to draw.

    Raises:
        InputError: for limits of one parameter.
    """
    if len(limits.of) != 2:
        raise InputError(f"region draws limits of two parameters, got {limits.of}; profile draws those of one.")
    axes = on(axes)
    across, up = (np.asarray(grid) for grid in limits.grid)
    for level, shade in zip(sorted(limits.levels, reverse=True), ("#9ecae1", BLUE, "#00304d"), strict=False):
        critical = np.asarray(limits.critical[level])
        if critical.ndim == 0:  # the edge of the region is a contour of q
            axes.contourf(across, up, np.asarray(limits.q).T, levels=[-1e-9, critical], colors=[shade], alpha=0.75)
        else:
            inside = np.asarray(limits.regions[level], dtype=float)
            axes.contourf(across, up, inside.T, levels=[0.5, 1.5], colors=[shade], alpha=0.75)
        axes.fill_between([], [], color=shade, alpha=0.75, label=f"{level:.1%}, {_kind(limits)}")
    names = [parameter.name for parameter in limits.parameters]
    columns = [names.index(name) for name in limits.of]
    axes.plot(*(float(limits.best_fit[k]) for k in columns), "+", color="white", ms=9, mew=1.6)
    if truth is not None:
        axes.plot(float(truth[0]), float(truth[1]), "x", color=VERMILION, ms=8, mew=2, label="truth")
    axes.set(xlabel=limits.parameters[columns[0]].label, ylabel=limits.parameters[columns[1]].label)
    axes.legend(loc="best")
    return axes


def neyman_belt(limits: Any, *, axes: Any = None) -> Any:
    """Draw where best fits of toys fall at each value of one parameter (68% and 95% of them), and the observation's.

    The horizontal bands are the acceptance regions of a construction ordered by the best fit itself; the set that
    `limits` quotes orders by the likelihood ratio and is drawn on the vertical axis.

    Raises:
        InputError: for limits of two parameters, or without toys.
    """
    at = _column(limits)
    if limits.belt is None:
        raise InputError("these limits have no toys; say method='neyman' or 'feldman_cousins' and simulator=...")
    axes = on(axes)
    truth = np.asarray(limits.belt.theta[:, at])
    fits = np.sort(np.asarray(limits.belt.estimate[..., 0]), axis=1)
    for level, alpha in ((0.954, 0.25), (0.683, 0.5)):
        low, high = (np.quantile(fits, tail, axis=1) for tail in ((1 - level) / 2, (1 + level) / 2))
        axes.fill_betweenx(truth, low, high, color=BLUE, alpha=alpha, lw=0, label=f"{level:.0%} of the toys")
    axes.plot(np.median(fits, axis=1), truth, color=BLUE, lw=1.2)
    best = float(limits.best_fit[at])
    axes.axvline(best, color="black", lw=1.2, label=f"observed: {best:.4g}")
    for piece in limits.interval():
        axes.plot([best, best], [piece.low, piece.high], color=VERMILION, lw=5, alpha=0.7, solid_capstyle="butt")
    axes.plot([], [], color=VERMILION, lw=5, alpha=0.7, label=f"{limits.levels[0]:.1%} set")
    label = limits.parameters[at].label
    axes.set(xlabel=f"best fit of {label}", ylabel=label, ylim=(truth.min(), truth.max()))
    axes.legend(loc="best")
    return axes


def coverage_map(coverage: Any, *, axes: Any = None) -> Any:
    """Draw the share of toys whose set contains the truth against the first parameter, with errors, and the levels."""
    axes = on(axes)
    theta = np.asarray(coverage.theta[:, 0])
    for level, share, error, colour in zip(coverage.levels, coverage.share, coverage.error, COLOURS, strict=False):
        axes.axhline(level, color=colour, lw=0.9, ls=(0, (4, 2)))
        axes.errorbar(theta, share, error, color=colour, fmt="o", ms=4, lw=1.1, label=f"{level:.1%} sets")
    axes.set(xlabel=coverage.parameters[0].label, ylabel="share of sets that hold the truth")
    axes.legend(loc="best")
    return axes


def ratio_calibration(calibration: Any, *, bins: int = 20, axes: Any = None) -> Any:
    """Draw the log ratio that held-out simulations have against the one that was learned, before and after the map."""
    axes = on(axes)
    ends = [0.0]
    for kind, colour, label in (("none", VERMILION, "as learned"), ("isotonic", BLUE, "isotonic map")):
        said, found, error = (np.asarray(values) for values in calibration.reliability(bins, kind))
        axes.errorbar(said, found, error, color=colour, fmt="o", ms=4, lw=1.1, label=label)
        ends += [*said[np.isfinite(said)], *found[np.isfinite(found)]]
    low, high = min(ends), max(ends)
    axes.plot([low, high], [low, high], color="black", lw=0.9, ls=(0, (4, 3)))
    axes.set(xlabel=r"predicted $\log\,r$ [nats]", ylabel=r"$\log\,r$ of held-out simulations [nats]")
    axes.legend(loc="best")
    return axes


def _kind(limits: Any) -> str:
    said = {"profile": "asymptotic", "neyman": "Neyman", "feldman_cousins": "Feldman-Cousins", "expected": "expected"}
    return said[limits.method]


def _column(limits: Any) -> int:
    if len(limits.of) != 1:
        raise InputError(f"this draws limits of one parameter, got {limits.of}; region draws those of two.")
    return [parameter.name for parameter in limits.parameters].index(limits.of[0])
