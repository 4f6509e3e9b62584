import pytest
import torch
from torch.distributions import Normal

from sbi_core import InputError
from sbi_core.inference.frequentist.expected import expected_limits
from sbi_core.inference.frequentist.limits import limits
from sbi_core.simulators import GaltonBoard, LinearGaussian

BOARD = GaltonBoard()
TRUTH = torch.tensor([-0.7]).double()


def test_the_width_is_that_of_the_information():
    """Of 400 balls the standard error is 1 / sqrt(n I); q = 1 lies there but for the skewness of the likelihood."""
    found = expected_limits(BOARD, BOARD, TRUTH, events=400, simulations=50_000, seed=1, level=0.6827)
    sd = float(BOARD.fisher_information(TRUTH).flatten()) ** -0.5 / 20
    (piece,) = found.interval()
    off = float(found.best_fit - TRUTH) / sd
    assert abs(off) < 4 * (400 / 50_000) ** 0.5
    assert abs(float(found.error) / sd - 1) < 0.05 and abs((piece.high - piece.low) / (2 * sd) - 1) < 0.05
    assert abs(float(found.error) / (1.1 * sd) - 1) > 0.05, "saboteur: another number of events"
    assert found.flags == () and "unchecked" in found.verdicts["coverage"]


def test_the_stated_error_of_an_end_is_its_spread():
    """Over 15 seeds, whose spread is itself known to a fifth."""
    found = [
        expected_limits(BOARD, BOARD, TRUTH, events=100, simulations=1000, seed=seed, level=0.95) for seed in range(15)
    ]
    for end in ("low", "high"):
        at = torch.tensor([getattr(one.interval()[0], end) for one in found])
        stated = torch.tensor([getattr(one.interval()[0], f"{end}_error") for one in found])
        assert abs(float(at.std() / stated.mean()) - 1) < 4 / 5
    fewer = expected_limits(BOARD, BOARD, TRUTH, events=100, simulations=8000, seed=1, level=0.95).interval()[0]
    assert at.std() / fewer.high_error > 1 + 4 / 5, "saboteur: the error of eight times as many"


def test_a_nuisance_parameter_and_its_constraint():
    world = LinearGaussian(matrix=[[1.0, 0.5], [0.3, 1.0], [0.2, -0.4]])
    truth = torch.tensor([0.4, -0.3]).double()
    options = {"of": "theta_1", "events": 25, "simulations": 5000, "seed": 1}
    found = expected_limits(world, world, truth, constraints={"theta_2": Normal(3.0, 0.1)}, **options)
    matrix = 25 * world.fisher_information() + torch.diag(torch.tensor([0.0, 100.0])).double()
    exact = torch.linalg.inv(matrix)[0, 0].sqrt()
    assert abs(found.error[0] / exact - 1) < 1e-3 and abs(found.best_fit[1] + 0.3) < 0.01
    free = expected_limits(world, world, truth, **options)
    assert abs(free.error[0] / exact - 1) > 0.01, "saboteur: no constraint"


def test_a_region_is_expected_too():
    world = LinearGaussian(2)
    found = expected_limits(world, world, [0.5, -0.5], events=25, simulations=2000, seed=1)
    sd = float(world.variance) ** 0.5 / 5
    cell = float(found.grid[0][1] - found.grid[0][0]) * float(found.grid[1][1] - found.grid[1][0])
    assert abs(float(found.regions[0.95].sum()) * cell / (3.14159 * 5.9915 * sd**2) - 1) < 0.05


def test_a_biased_likelihood_is_flagged():
    class Biased(GaltonBoard):
        def log_likelihood(self, theta, x, design=None):
            return super().log_likelihood(theta + 0.05, x)

    class Wide(GaltonBoard):
        pass

    found = expected_limits(Biased(), BOARD, TRUTH, events=100, seed=1)
    assert any("is biased" in flag for flag in found.flags)
    assert not expected_limits(Wide(), BOARD, TRUTH, events=100, seed=1).flags


def test_the_expectation_lies_amid_the_toys():
    found = expected_limits(BOARD, BOARD, TRUTH, events=100, seed=1, level=0.95).interval()[0]
    widths = []
    for seed in range(8):
        x = BOARD.sample(TRUTH.expand(100, 1), None, torch.Generator().manual_seed(seed))[0]
        piece = limits(BOARD, x, iid=True, level=0.95).interval()[0]
        widths.append(piece.high - piece.low)
    widths = torch.tensor(widths)
    assert widths.min() < found.high - found.low < widths.max()


def test_arguments_that_do_not_fit():
    with pytest.raises(InputError, match="inside the parameters' ranges"):
        expected_limits(BOARD, BOARD, [0.5])
    with pytest.raises(InputError, match="same design"):
        expected_limits(BOARD, BOARD, TRUTH, design=[[15, 20], [15, 20]])
