"""Pictures of confidence sets and checks, on worlds that draw them in a second."""

from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch.distributions import Normal

from sbi_core import InputError, limits, plots
from sbi_core.inference import Limits, calibrate_ratio, coverage_map, expected_limits
from sbi_core.simulators import GaltonBoard, LinearGaussian

BOARD = GaltonBoard()
WORLD = LinearGaussian(2)


@pytest.fixture(scope="module")
def balls() -> torch.Tensor:
    return BOARD.sample(torch.full((100, 1), -0.7).double(), None, torch.Generator().manual_seed(1))[0]


@pytest.fixture(scope="module")
def toys(balls: torch.Tensor) -> Limits:
    return limits(BOARD, balls, iid=True, method="feldman_cousins", simulator=BOARD, toys=200, points=9, seed=1)


def panel() -> Any:
    with plots.style():
        return Figure().add_subplot()


def spans(axes: Any) -> list[tuple[float, float]]:
    return [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]


@pytest.mark.parametrize("method", ["profile", "feldman_cousins"])
def test_profile(balls: torch.Tensor, toys: Limits, method: str) -> None:
    found = toys if method == "feldman_cousins" else limits(BOARD, balls, iid=True)
    axes = plots.profile(found, truth=-0.7, axes=panel())
    curve = next(line for line in axes.lines if "profile likelihood" in line.get_label())
    assert np.array_equal(curve.get_ydata(), found.q)
    pieces = [(piece.low, piece.high) for level in found.levels for piece in found.intervals[level]]
    assert np.allclose(spans(axes), pieces)
    said = [text.get_text() for text in axes.get_legend().get_texts()]
    assert any(("asymptotic" if method == "profile" else "Feldman-Cousins") in text for text in said)
    low, high = axes.get_xlim()
    assert low <= pieces[-1][0] and high >= pieces[-1][1]


def test_profile_of_neyman_sets(balls: torch.Tensor) -> None:
    found = limits(BOARD, balls, iid=True, method="neyman", simulator=BOARD, toys=200, points=9, seed=1)
    assert len(spans(plots.profile(found, axes=panel()))) >= 2


def test_profile_of_what_is_expected() -> None:
    found = expected_limits(BOARD, BOARD, [-0.7], events=100, simulations=2000, seed=1)
    said = [text.get_text() for text in plots.profile(found, axes=panel()).get_legend().get_texts()]
    assert any("set, expected" in text for text in said)


def test_region() -> None:
    found = limits(WORLD, torch.tensor([0.5, -1.0]), constraints={"theta_1": Normal(0.0, 1.0)})
    axes = plots.region(found, truth=(0.0, 0.0), axes=panel())
    assert axes.get_xlabel() == WORLD.parameters[0].label and axes.get_ylabel() == WORLD.parameters[1].label
    assert len(axes.get_legend().get_texts()) == 3
    with pytest.raises(InputError, match="region draws those of two"):
        plots.profile(found, axes=panel())


def test_neyman_belt(toys: Limits, balls: torch.Tensor) -> None:
    axes = plots.neyman_belt(toys, axes=panel())
    middle = axes.lines[0]
    inner = slice(1, -1)  # at the ends of the range best fits pile up
    assert np.abs(middle.get_xdata() - middle.get_ydata())[inner].max() < 0.1
    with pytest.raises(InputError, match="no toys"):
        plots.neyman_belt(limits(BOARD, balls, iid=True), axes=panel())
    with pytest.raises(InputError, match="profile draws those of one"):
        plots.region(toys, axes=panel())


def test_coverage_map() -> None:
    theta = torch.linspace(-0.9, -0.2, 3)[:, None].double()
    found = coverage_map(BOARD, BOARD, theta, events=20, toys=100, critical_toys=200, seed=1)
    axes = plots.coverage_map(found, axes=panel())
    assert len(axes.containers) == len(found.levels)
    assert np.allclose(axes.containers[0].lines[0].get_ydata(), found.share[0])


def test_ratio_calibration() -> None:
    found = calibrate_ratio(BOARD, BOARD, [-0.8], [-0.6], n=4000, seed=1)
    axes = plots.ratio_calibration(found, axes=panel())
    learned = axes.containers[0].lines[0]
    off = np.abs(learned.get_xdata() - learned.get_ydata())
    assert len(axes.containers) == 2 and np.median(off) < 0.2
