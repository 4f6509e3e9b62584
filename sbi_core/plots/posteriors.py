"""Pictures of posteriors: one parameter, two, or all of them in a corner."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sbi_core.errors import InputError
from sbi_core.parameters import positions
from sbi_core.plots.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION, on, style
from sbi_core.results import LEVEL

LEVELS = (LEVEL, 0.954)
"""Probabilities of the regions that are drawn."""

FILLS = (BLUE, "#9ecae1")
LINES = ("black", GREEN, PURPLE, ORANGE)
REACH = 4.5
"""Standard deviations from the mean that are shown."""


def posterior_1d(posteriors: Mapping[str, Any], parameter: int = 0, *, truth: Any = None, axes: Any = None) -> Any:
    """Draw the densities of one parameter: the first posterior filled, with its interval, the others as lines.

    Args:
        posteriors: label -> posterior.
        parameter: which axis of theta (D,).
        truth: theta (D,), marked if it is known.
        axes: where to draw.
    """
    axes = on(axes)
    for number, (label, posterior) in enumerate(posteriors.items()):
        theta, density = (values.numpy() for values in posterior.curve(parameter))
        if number == 0:
            low, high = (float(end[parameter]) for end in posterior.credible_interval(LEVEL))
            inside = (theta >= low) & (theta <= high)
            axes.fill_between(theta, density, where=inside, color=BLUE, alpha=0.25, lw=0, label=f"{LEVEL:.0%} interval")
        colour, dashes = (BLUE, "-") if number == 0 else (LINES[(number - 1) % len(LINES)], (0, (4, 2)))
        axes.plot(theta, density, color=colour, label=label, ls=dashes, zorder=3 + number)
    if truth is not None:
        axes.axvline(float(truth[parameter]), color=VERMILION, lw=1.3, zorder=2, label="truth")
    axes.set(xlim=_shown(posteriors, parameter), xlabel=_label(posteriors, parameter))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("posterior density")
    axes.legend(loc="best")
    return axes


def posterior_2d(
    posteriors: Mapping[str, Any], parameters: Sequence[int] = (0, 1), *, truth: Any = None, axes: Any = None
) -> Any:
    """Draw the regions of highest density (68% and 95%): the first posterior filled, the others as lines.

    Args:
        posteriors: label -> posterior.
        parameters: which two axes of theta (D,), across and up.
        truth: theta (D,), marked if it is known.
        axes: where to draw.
    """
    axes = on(axes)
    across, up = parameters
    for number, (label, posterior) in enumerate(posteriors.items()):
        x, y, density = (values.numpy() for values in posterior.surface(across, up))
        levels = sorted(threshold(density, level) for level in LEVELS)
        if levels[0] == levels[1]:
            levels[1] = levels[0] * (1 + 1e-9) + 1e-300
        if number == 0:
            axes.contourf(x, y, density.T, levels=[*levels, density.max() * 1.001], colors=FILLS[::-1], alpha=0.75)
            axes.fill_between([], [], color=BLUE, alpha=0.75, label=f"{label}: {LEVEL:.0%} and 95%")
            axes.plot(*(float(posterior.mean[k]) for k in parameters), "+", color="white", ms=9, mew=1.6)
        else:
            colour = LINES[(number - 1) % len(LINES)]
            axes.contour(x, y, density.T, levels=levels, colors=colour, linewidths=1.3, linestyles="dashed")
            axes.plot([], [], color=colour, lw=1.3, ls="--", label=label)
    if truth is not None:
        place = [float(truth[k]) for k in parameters]
        axes.plot(*place, "x", color=VERMILION, ms=8, mew=2, label="truth", zorder=5)
    axes.set(xlim=_shown(posteriors, across), ylim=_shown(posteriors, up))
    axes.set(xlabel=_label(posteriors, across), ylabel=_label(posteriors, up))
    axes.legend(loc="best")
    return axes


def corner(
    posteriors: Mapping[str, Any], *, names: Sequence[str] | None = None, truth: Any = None, axes: Any = None
) -> Any:
    """Draw every parameter and every pair of them, several posteriors over each other.

    Args:
        posteriors: label -> posterior; the first is filled, the others are lines.
        names: which parameters to show, in this order; all by default.
        truth: theta (D,), marked if it is known.
        axes: (K, K) axes for K parameters; a new figure's by default.

    Returns:
        The (K, K) axes.
    """
    if not posteriors:
        raise InputError("posteriors is empty: expected a mapping of labels to posteriors.")
    parameters = next(iter(posteriors.values())).parameters
    shown = list(range(len(parameters))) if names is None else positions(names, parameters)
    panels = _panels(len(shown), axes)
    for row, up in enumerate(shown):
        for column, across in enumerate(shown):
            panel = panels[row, column]
            if column > row:
                panel.axis("off")
                continue
            if row == column:
                posterior_1d(posteriors, across, truth=truth, axes=panel)
                panel.set(ylabel="", yticks=[])
                panel.spines["left"].set_visible(False)
            else:
                posterior_2d(posteriors, (across, up), truth=truth, axes=panel)
            if row != column or len(shown) == 1:
                labels = panel.get_legend_handles_labels()
            panel.get_legend().remove()
            _outer_only(panel, bottom=row == len(shown) - 1, left=column == 0 and row > 0)
    last = panels[0, -1]
    legend = last.legend(*labels, loc="upper right" if len(shown) > 1 else "best")
    legend.set_in_layout(False)
    return panels


def _panels(count: int, axes: Any) -> Any:
    if axes is None:
        import matplotlib.pyplot as plt

        with style():
            size = 1.2 + (1.9 if count < 6 else 1.4) * count
            axes = plt.subplots(count, count, figsize=(size, size), squeeze=False)[1]
    panels = np.atleast_2d(np.asarray(axes, dtype=object))
    if panels.shape != (count, count):
        raise InputError(f"axes has shape {panels.shape}, expected {(count, count)} for {count} parameters.")
    return panels


def _outer_only(panel: Any, *, bottom: bool, left: bool) -> None:
    """Keep the labels of the outer panels."""
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(3, prune="both"))
    panel.tick_params(axis="x", labelbottom=bottom, rotation=35)
    if panel.get_yticks().size:
        panel.yaxis.set_major_locator(MaxNLocator(3, prune="both"))
    panel.tick_params(axis="y", labelleft=left)
    if not bottom:
        panel.set_xlabel("")
    if not left:
        panel.set_ylabel("")


def _shown(posteriors: Mapping[str, Any], k: int) -> tuple[float, float]:
    """The part of one parameter's axis that holds the posteriors."""
    ends = []
    for posterior in posteriors.values():
        theta = posterior.curve(k)[0]
        mean, reach = float(posterior.mean[k]), REACH * float(posterior.stddev[k])
        ends.append((max(mean - reach, float(theta[0])), min(mean + reach, float(theta[-1]))))
    return min(low for low, _ in ends), max(high for _, high in ends)


def threshold(density: np.ndarray, level: float) -> float:
    """The density above which `level` of the probability lies."""
    ordered = np.sort(density.ravel())[::-1]
    mass = np.cumsum(ordered)
    return float(ordered[min(np.searchsorted(mass, level * mass[-1]), len(ordered) - 1)])


def _label(posteriors: Mapping[str, Any], k: int) -> str:
    label: str = next(iter(posteriors.values())).parameters[k].label
    return label
