"""Pictures of experimental design: what experiments would teach, and what a loop of them has taught."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sbi_core.errors import InputError
from sbi_core.plots.posteriors import threshold
from sbi_core.plots.style import BLUE, GREY, ORANGE, VERMILION, blues, on
from sbi_core.results import LEVEL

DONE = "experiments done"

SHOWN = 8
"""Rounds of which curves or regions are drawn, at most: the first, the last, and some between."""


def gain_curve(choice: Any, *, label: str | None = None, colour: Any = BLUE, axes: Any = None) -> Any:
    """Draw a `Choice` along its one design axis: utilities with their standard errors, and the chosen design.

    Args:
        choice: what `propose` returned.
        label: of the curve.
        colour: of the curve.
        axes: where to draw.

    Raises:
        InputError: for designs of several axes.
    """
    if len(choice.designs) != 1:
        raise InputError(f"a gain curve needs one design axis, this choice has {len(choice.designs)}.")
    axes, design = on(axes), choice.designs[0]
    order = choice.candidates[:, 0].argsort()
    at, value, error = (v[order].numpy() for v in (choice.candidates[:, 0], choice.values, choice.errors))
    axes.plot(at, value, color=colour, lw=1.6, label=label)
    axes.fill_between(at, value - error, value + error, color=colour, alpha=0.25, lw=0)
    best = float(choice.gain.value) / float(choice.costs[int((choice.candidates - choice.design).norm(dim=1).argmin())])
    axes.plot([float(choice.design)], [best], "o", ms=7, color=colour, mec="white", mew=1.2, zorder=4)
    axes.set(xlabel=design.label, ylabel=_what(choice))
    axes.set_ylim(bottom=min(0.0, float(np.nanmin(value - error))))
    return axes


def gain_curves(loop: Any, *, axes: Any = None) -> Any:
    """Draw the gain curves of a loop's rounds over one design axis, from light to dark, with the chosen designs."""
    axes, chosen = on(axes), [(k, one) for k, one in enumerate(loop.experiments) if one.choice is not None]
    if not chosen:
        raise InputError("no round of this loop chose its design by a utility.")
    ends = []
    for shade, k in _shades(len(chosen)):
        number, one = chosen[k]
        axes.set_autoscaley_on(True)
        gain_curve(one.choice, label=f"{number}", colour=shade, axes=axes)
        ends.append(axes.get_ylim())
    axes.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))
    axes.legend(ncols=1 + (len(chosen) > 4), loc="best", title=DONE)
    return axes


def shrinking(loop: Any, parameters: Sequence[int] = (0, 1), *, truth: Any = None, axes: Any = None) -> Any:
    """Draw the posterior of each round, from light to dark: 68% regions of two parameters, or the density of one.

    Args:
        loop: what `run_loop` returned.
        parameters: one or two axes of theta (D,), across and up.
        truth: theta (D,), marked if it is known.
        axes: where to draw.
    """
    if not loop.experiments:
        raise InputError("this loop has no experiments to show.")
    axes, axis = on(axes), loop.experiments[0].posterior.parameters
    for shade, k in _shades(len(loop.experiments)):
        posterior, label = loop.experiments[k].posterior, f"{k + 1}"
        if len(parameters) == 1:
            theta, density = posterior.curve(parameters[0])
            axes.plot(theta, density, color=shade, label=label)
            continue
        x, y, density = (values.numpy() for values in posterior.surface(*parameters))
        level = threshold(density, LEVEL)
        axes.contourf(x, y, density.T, levels=[level, density.max() * 1.001], colors=[shade], alpha=0.25)
        axes.contour(x, y, density.T, levels=[level], colors=[shade], linewidths=1.5)
        axes.plot([], [], color=shade, label=label)
    if truth is not None and len(parameters) == 1:
        axes.axvline(float(truth[parameters[0]]), color=VERMILION, lw=1.3, label="truth")
    elif truth is not None:
        axes.plot(*(float(truth[k]) for k in parameters), "x", color=VERMILION, ms=8, mew=2, label="truth", zorder=5)
    up = "posterior density" if len(parameters) == 1 else axis[parameters[1]].label
    axes.set(xlabel=axis[parameters[0]].label, ylabel=up)
    axes.legend(loc="best", title=DONE, ncols=1 + (len(loop.experiments) > 5))
    return axes


def gain_map(choice: Any, *, axes: Any = None) -> Any:
    """Draw a `Choice` over its first two design axes: candidates coloured by utility, and the chosen design."""
    if len(choice.designs) < 2:
        raise InputError("a map of gains needs two design axes; see gain_curve for one.")
    axes = on(axes)
    found = axes.scatter(*choice.candidates[:, :2].T.numpy(), c=choice.values.numpy(), cmap=blues(), s=28)
    axes.plot(*choice.design[:2].tolist(), "x", color=VERMILION, ms=9, mew=2.2, label="chosen")
    axes.set(xlabel=choice.designs[0].label, ylabel=choice.designs[1].label)
    axes.figure.colorbar(found, ax=axes, label=_what(choice))
    axes.legend(loc="best")
    return axes


def gains_by_round(loop: Any, *, axes: Any = None) -> Any:
    """Draw what the rounds of a loop were expected to teach, with errors, and what they taught, both summed up."""
    axes = on(axes)
    asked = [(k + 1, one) for k, one in enumerate(loop.experiments) if one.predicted is not None]
    if not asked:
        raise InputError("no round of this loop was predicted.")
    number = [k for k, _ in asked]
    predicted = np.cumsum([one.predicted.value for _, one in asked])
    error = np.sqrt(np.cumsum([one.predicted.error**2 for _, one in asked]))
    realised = np.array([one.realised for _, one in asked])
    axes.errorbar(number, predicted, error, fmt="o-", ms=5, color=BLUE, capsize=2, label="predicted")
    axes.plot(number, np.cumsum(realised), "s--", ms=5, color=ORANGE, label="realised")
    axes.set(xlabel=DONE, ylabel="information since [nats]", xticks=number[:: 1 + len(number) // 12])
    axes.set_ylim(bottom=0)
    axes.legend(loc="best")
    return axes


def widths_by_round(loops: Mapping[str, Sequence[Any]], parameter: int = 0, *, axes: Any = None) -> Any:
    """Draw posterior standard deviations of one parameter after each round.

    Args:
        loops: label -> loops at the same truth; of several the median and the central 68% are drawn.
        parameter: which axis of theta (D,).
        axes: where to draw.
    """
    axes, longest = on(axes), 1
    for (label, some), colour in zip(loops.items(), (BLUE, GREY, ORANGE), strict=False):
        rounds = min(len(loop.experiments) for loop in some)
        longest = max(longest, rounds)
        each = [[float(one.posterior.stddev[parameter]) for one in loop.experiments[:rounds]] for loop in some]
        low, middle, high = np.quantile(np.array(each), [0.16, 0.5, 0.84], axis=0)
        number = np.arange(1, rounds + 1)
        axes.plot(number, middle, "o-", ms=4, color=colour, label=label if len(some) == 1 else f"{label}, {len(some)}")
        if len(some) > 1:
            axes.fill_between(number, low, high, color=colour, alpha=0.25, lw=0)
    axis = next(iter(loops.values()))[0].experiments[0].posterior.parameters[parameter]
    axes.set(xlabel=DONE, ylabel=f"posterior sd of {axis.label}", yscale="log", xticks=_ticks(longest))
    axes.legend(loc="best")
    return axes


def _what(choice: Any) -> str:
    """What a choice was made by, for a label."""
    read_out = choice.gain.method.startswith("posterior read-out")
    per_cost = "" if bool((choice.costs == 1).all()) else " per cost"
    return f"{'expected information gain [nats]' if read_out else choice.gain.method}{per_cost}"


def _shades(count: int) -> list[tuple[Any, int]]:
    """At most `SHOWN` of so many things, as colours from light to dark and positions."""
    places = np.unique(np.linspace(0, count - 1, min(count, SHOWN)).round().astype(int))
    return [(blues()(k / max(count - 1, 1)), int(k)) for k in places]


def _ticks(count: int) -> list[int]:
    return list(range(1, count + 1, 1 + count // 12))
