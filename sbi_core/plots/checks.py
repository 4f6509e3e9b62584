"""Pictures of checks: ranks, coverage and ratio closure, each with the band that nothing wrong stays in."""

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
