"""Pictures of checks: ranks, coverage, ratio closure, predictions, each with the band that nothing wrong stays in."""

from typing import Any

import numpy as np

from sbi_core.errors import InputError
from sbi_core.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION, on

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)


def ranks(diagnosis: Any, *, axes: Any = None) -> Any:
    """Draw the distribution of each parameter's ranks minus the uniform one, with its simultaneous band.

    Above zero on the left: truths lie below the draws too often. A slope like a hill then a valley, or the reverse,
    is a posterior that is too wide, or too narrow.
    """
    return _differences(diagnosis, "ranks", "ranks: found minus uniform", "rank of the truth", axes)


def coverage(diagnosis: Any, *, axes: Any = None) -> Any:
    """Draw how often regions of highest density, and TARP regions, hold the truth, against their level, with bands."""
    axes = on(axes)
    names = {"credibility": "regions of highest density", "TARP": "TARP regions"}
    for (name, label), colour in zip(names.items(), COLOURS, strict=False):
        for curve in _curves(diagnosis, name):
            axes.fill_between(curve.at, curve.low, curve.high, color=colour, alpha=0.14, lw=0)
            axes.plot(curve.at, curve.value, color=_judged(curve, colour), label=label)
    axes.plot([0, 1], [0, 1], color="black", lw=0.9, ls=(0, (4, 3)))
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="level", ylabel="share of regions that hold the truth")
    axes.legend(loc="upper left")
    return axes


def closure(diagnosis: Any, *, axes: Any = None) -> Any:
    """Draw the ROC of a classifier between simulations at one theta and others reweighted to it: diagonal if none can.

    Raises:
        InputError: if the diagnosis has no closure, which needs the simulator.
    """
    axes = on(axes)
    for curve in _curves(diagnosis, "ratio closure"):
        axes.plot(curve.at, curve.value, color=BLUE, label="reweighted against simulated")
    axes.plot([0, 1], [0, 1], color="black", lw=0.9, ls=(0, (4, 3)))
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="false positives", ylabel="true positives")
    axes.legend(loc="upper left")
    return axes


def predictive(predicted: Any, *, axes: Any = None) -> Any:
    """Draw what was observed over the bands of what the posterior predicts (68% and 95%); orange-red outside of 95%.

    Statistics that are no numbers of one kind are shown from the median of their predictions, in units of half the 68%
    band.
    """
    axes = on(axes)
    observed, bands = predicted.observed.numpy(), predicted.bands.numpy()
    if not predicted.alike:
        unit = (bands[3] - bands[1]) / 2
        unit = np.where(unit > 0, unit, np.where(bands[4] > bands[0], (bands[4] - bands[0]) / 4, 1.0))
        observed, bands = (observed - bands[2]) / unit, (bands - bands[2]) / unit
    place = np.arange(len(observed))
    edges, many = np.append(place, len(place)) - 0.5, len(place) > 60
    for low, high, alpha, label in ((0, 4, 0.16, "95% of predictions"), (1, 3, 0.34, "68%")):
        axes.stairs(bands[high], edges, baseline=bands[low], fill=True, color=BLUE, alpha=alpha, lw=0, label=label)
    axes.hlines(bands[2], edges[:-1], edges[1:], color=BLUE, lw=1.4)
    inside = (observed >= bands[0]) & (observed <= bands[4])
    size = 2.5 if many else 5
    axes.plot(place[inside], observed[inside], "o", color="black", ms=size, label="observed")
    if not inside.all():
        axes.plot(place[~inside], observed[~inside], "o", color=VERMILION, ms=size, label="observed, outside")
    if len(place) <= 8 and not predicted.alike:
        axes.set_xticks(place, predicted.names, rotation=20, ha="right")
    else:
        axes.set_xlabel("statistic" if not predicted.alike else predicted.names[0].split()[0])
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylabel("predicted and observed" if predicted.alike else "from the median, in half 68% bands")
    axes.legend(loc="best")
    return axes


def _differences(diagnosis: Any, name: str, across: str, up: str, axes: Any) -> Any:
    axes, curves = on(axes), _curves(diagnosis, name)
    for curve, colour in zip(curves, COLOURS * len(curves), strict=False):
        at, value, low, high = (np.asarray(part) for part in (curve.at, curve.value, curve.low, curve.high))
        axes.fill_between(at, low - at, high - at, color=GREY, alpha=0.22 / len(curves), lw=0)
        axes.plot(at, value - at, color=_judged(curve, colour), label=curve.about)
    axes.axhline(0, color="black", lw=0.8)
    axes.set(xlim=(0, 1), xlabel=up, ylabel=across)
    axes.legend(loc="best", ncols=2)
    return axes


def _curves(diagnosis: Any, name: str) -> list[Any]:
    found = [curve for curve in diagnosis.curves if curve.name == name]
    if not found:
        known = sorted({curve.name for curve in diagnosis.curves})
        raise InputError(f"the diagnosis has no curve '{name}'; it has {', '.join(known)}.")
    return found


def _judged(curve: Any, colour: str) -> str:
    """The colour, or that of an alarm if the curve leaves its band."""
    outside = any(v < low or v > high for v, low, high in zip(curve.value, curve.low, curve.high, strict=True))
    return VERMILION if outside else colour
