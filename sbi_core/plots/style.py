"""How pictures look."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

BLUE, VERMILION, GREEN, ORANGE, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#8a8f98"
"""Colours that people with any colour vision can tell apart (Okabe & Ito)."""

STYLE = {
    "figure.figsize": (5.2, 3.7),
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 200,
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": f"cycler('color', {[BLUE, VERMILION, GREEN, ORANGE, PURPLE, GREY]})",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "mathtext.fontset": "dejavusans",
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
}


@contextmanager
def style() -> Iterator[None]:
    """Set the report's style for a block of code."""
    import matplotlib

    settings = STYLE | {"axes.prop_cycle": matplotlib.rcsetup.validate_cycler(STYLE["axes.prop_cycle"])}
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        yield


def on(axes: Any) -> Any:
    """The axes given, or new ones."""
    if axes is not None:
        return axes
    import matplotlib.pyplot as plt

    with style():
        return plt.subplots()[1]


def blues() -> Any:
    """From light to dark blue."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("blues", ["#86c5ea", BLUE, "#00304d"])
