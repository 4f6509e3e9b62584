"""Pictures of designs and loops, read back from the axes."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from sbi_core import InputError, Parameter, plots
from sbi_core.design import Choice, Experiment, Gain, Loop
from sbi_core.inference import infer
from sbi_core.simulators import LinearGaussian

WORLD = LinearGaussian(2)
ENERGY, ANGLE = Parameter("energy", 0.0, 10.0, unit="GeV"), Parameter("angle", 0.0, 1.0)
TRUTH = torch.tensor([0.3, -0.2])


def gain(value: float, error: float = 0.1) -> Gain:
    return Gain(value, error, "none", "posterior read-out")


def choice(*values: float, axes: tuple[Parameter, ...] = (ENERGY,), costs: float = 1.0) -> Choice:
    """A choice among designs 0, 1, ..., backwards, with these utilities; the largest was confirmed at 0.9 of it."""
    number = torch.arange(len(values) - 1, -1, -1).double()
    rows = torch.stack([number] + [number / 10] * (len(axes) - 1), 1)
    best = int(np.nanargmax(values))
    gains = tuple(None if np.isnan(value) else gain(value) for value in values)
    excluded = {k: "it broke" for k, one in enumerate(gains) if one is None}
    return Choice(
        rows[best], gain(0.9 * values[best]), axes, rows, gains, torch.full((len(values),), costs).double(), excluded, 1
    )


def loop(rounds: int = 3, scale: float = 1.0) -> Loop:
    """Rounds at one truth, the first of which was given, not chosen."""
    found = []
    x = TRUTH + scale * torch.randn((rounds, 2), generator=torch.Generator().manual_seed(1)).double()
    for k in range(rounds):
        posterior = infer(WORLD, WORLD.prior, x[: k + 1], iid=True)
        asked = choice(0.5, 1.0 / (k + 1), 0.2) if k else None
        predicted = None if asked is None else asked.gain
        found.append(Experiment(torch.ones(1), x[k], None, predicted, 0.5 / (k + 1), posterior, asked))
    return Loop(tuple(found), WORLD.prior, "all done")


@pytest.fixture
def axes() -> Any:
    return Figure().add_subplot()


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_gain_curve(axes: Any) -> None:
    assert plots.gain_curve(choice(0.2, float("nan"), 1.0, 0.4), axes=axes) is axes
    curve, chosen = axes.lines
    assert curve.get_xdata().tolist() == [0, 1, 2, 3], "in order"
    np.testing.assert_allclose(curve.get_ydata(), [0.4, 1.0, np.nan, 0.2])
    assert (chosen.get_xdata()[0], chosen.get_ydata()[0]) == (1, 0.9), "as it was confirmed"
    assert axes.get_xlabel() == "energy [GeV]" and axes.get_ylabel() == "expected information gain [nats]"
    assert axes.get_ylim()[0] == 0
    with pytest.raises(InputError, match="needs one design axis, this choice has 2"):
        plots.gain_curve(choice(0.2, 0.4, axes=(ENERGY, ANGLE)))


def test_gain_curve_per_cost(axes: Any) -> None:
    plots.gain_curve(choice(0.2, 1.0, costs=4.0), axes=axes)
    assert axes.get_ylabel().endswith("[nats] per cost")
    assert axes.lines[0].get_ydata().tolist() == [0.25, 0.05] and axes.lines[1].get_ydata()[0] == pytest.approx(0.225)


def test_gain_curves_of_rounds(axes: Any) -> None:
    plots.gain_curves(loop(4), axes=axes)
    assert legend(axes) == ["1", "2", "3"]
    shades = [line.get_color() for line in axes.lines[::2]]
    assert sum(shades[0][:3]) > sum(shades[1][:3]) > sum(shades[2][:3]), "from light to dark"
    with pytest.raises(InputError, match="no round of this loop chose"):
        plots.gain_curves(loop(1))


def test_later_curves_are_not_cut(axes: Any) -> None:
    low, high = (SimpleNamespace(choice=choice(0.1, top)) for top in (0.2, 1.0))
    plots.gain_curves(SimpleNamespace(experiments=[low, high, low]), axes=axes)
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 1.0


def test_of_many_rounds_some_are_shown(axes: Any) -> None:
    plots.gain_curves(SimpleNamespace(experiments=loop(2).experiments[1:] * 30), axes=axes)
    assert len(legend(axes)) == 8 and (legend(axes)[0], legend(axes)[-1]) == ("0", "29")


def test_gain_map(axes: Any) -> None:
    plots.gain_map(choice(0.2, 1.0, 0.4, axes=(ENERGY, ANGLE)), axes=axes)
    points = axes.collections[0]
    assert points.get_array().tolist() == [0.2, 1.0, 0.4] and points.get_offsets().tolist()[0] == [2, 0.2]
    assert axes.lines[0].get_xdata()[0] == 1 and axes.lines[0].get_ydata()[0] == 0.1
    with pytest.raises(InputError, match="two design axes"):
        plots.gain_map(choice(0.2, 1.0))


def extent(collection: Any) -> float:
    """Area of the box around a contour."""
    return float(np.prod(np.ptp(np.concatenate([path.vertices for path in collection.get_paths()]), axis=0)))


def test_shrinking(axes: Any) -> None:
    found = loop(4)
    plots.shrinking(found, truth=TRUTH, axes=axes)
    assert legend(axes) == ["1", "2", "3", "4", "truth"]
    areas = [extent(collection) for collection in axes.collections[1::2]]
    expected = [float(one.posterior.stddev.prod()) for one in found.experiments]
    np.testing.assert_allclose(np.array(areas) / areas[0], np.array(expected) / expected[0], rtol=0.05)
    assert axes.get_xlabel() and axes.get_ylabel() != axes.get_xlabel()


def test_shrinking_of_one_parameter(axes: Any) -> None:
    found = loop(2)
    plots.shrinking(found, (1,), truth=TRUTH, axes=axes)
    for line, one in zip(axes.lines, found.experiments, strict=False):
        x, y = line.get_xdata(), line.get_ydata()
        assert np.trapezoid(x * y, x) == pytest.approx(float(one.posterior.mean[1]), abs=0.01)
    assert axes.get_ylabel() == "posterior density"
    with pytest.raises(InputError, match="no experiments"):
        plots.shrinking(Loop((), WORLD.prior, "waiting"))


def test_gains_by_round(axes: Any) -> None:
    plots.gains_by_round(loop(3), axes=axes)
    predicted = axes.containers[0].lines[0]
    realised = next(line for line in axes.lines if line.get_linestyle() == "--")
    np.testing.assert_allclose(predicted.get_ydata(), [0.45, 0.45 + 0.45])
    np.testing.assert_allclose(realised.get_ydata(), [0.25, 0.25 + 0.5 / 3])
    assert predicted.get_xdata().tolist() == [2, 3], "the first was given"
    with pytest.raises(InputError, match="no round of this loop was predicted"):
        plots.gains_by_round(loop(1))


def test_widths_by_round(axes: Any) -> None:
    ours, others = loop(3), [loop(k) for k in (3, 4, 5)]
    plots.widths_by_round({"chosen": [ours], "random": others}, 1, axes=axes)
    widths = [float(one.posterior.stddev[1]) for one in ours.experiments]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), widths)
    assert len(axes.lines[1].get_ydata()) == 3, "as far as all go" and legend(axes) == ["chosen", "random, 3"]
    assert axes.get_yscale() == "log" and WORLD.parameters[1].label in axes.get_ylabel()
