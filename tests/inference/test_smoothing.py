import math

import pytest
import torch
from measures import z_of_mean

from sbi_core.inference.smoothing import smoothed
from sbi_core.seeding import seeded

FREE = torch.tensor([-math.inf]), torch.tensor([math.inf])


def drawn(n, *, weighted=False):
    """Draws of N(1, 2^2), or of N(0, 3^2) weighted to be such."""
    with seeded(1):
        normal = torch.randn(n, 1).double()
    if not weighted:
        return 1 + 2 * normal, torch.full((n,), 1 / n).double()
    draws = 3 * normal
    return draws, torch.softmax((-((draws - 1) ** 2) / 8 + draws**2 / 18)[:, 0], 0)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_normal_density(weighted):
    (points,), density = smoothed(*drawn(20_000, weighted=weighted), *FREE, 128)
    exact = torch.exp(-((points - 1) ** 2) / 8) / math.sqrt(8 * math.pi)
    assert float(density.sum() * (points[1] - points[0])) == pytest.approx(1, abs=1e-9)
    assert (density - exact).abs().max() < 0.05 * exact.max()
    assert (density - exact.roll(20)).abs().max() > 0.05 * exact.max(), "saboteur: shifted"


def test_an_end_keeps_its_density():
    with seeded(1):
        draws = torch.rand(20_000, 1).double()
    weight = torch.full((20_000,), 1 / 20_000).double()
    (points,), density = smoothed(draws, weight, torch.zeros(1), torch.ones(1), 128)
    assert points.min() > 0 and points.max() < 1
    assert density[0] == pytest.approx(1, abs=0.15) and density[-1] == pytest.approx(1, abs=0.15)
    (points,), density = smoothed(draws, weight, *FREE, 128)
    assert density[(points - 0).abs().argmin()] < 0.7, "saboteur: an end that nobody told of is washed out"


def test_separate_modes_stay_separate():
    with seeded(1):
        draws = torch.randn(4000, 1).double() * 0.1 + torch.where(torch.rand(4000, 1) < 0.5, -2.0, 2.0)
    (points,), density = smoothed(draws, torch.full((4000,), 1 / 4000).double(), *FREE, 128)
    top = density.max()
    assert density[points.abs().argmin()] < 1e-3 * top
    width = float((density > top / 2).sum()) * float(points[1] - points[0]) / 2
    assert width == pytest.approx(0.2355, rel=0.35)  # full width at half maximum of each


def test_two_parameters_keep_their_correlation():
    with seeded(2):
        draws = torch.randn(20_000, 2).double() @ torch.tensor([[1.0, 0.8], [0.0, 0.6]]).double()
    weight = torch.full((20_000,), 1 / 20_000).double()
    ends = torch.full((2,), math.inf)
    (x, y), density = smoothed(draws, weight, -ends, ends, 64)
    cell = (x[1] - x[0]) * (y[1] - y[0])
    assert float(density.sum() * cell) == pytest.approx(1, abs=1e-9)
    correlation = float((density * cell * x[:, None] * y).sum())
    assert correlation == pytest.approx(0.8, abs=0.04)
    assert z_of_mean(draws[:, 0] * draws[:, 1], 0.8) < 4


def test_draws_that_are_all_the_same():
    (points,), density = smoothed(torch.ones(10, 1).double(), torch.full((10,), 0.1).double(), *FREE, 16)
    assert torch.isfinite(density).all() and float(points.mean()) == pytest.approx(1)
