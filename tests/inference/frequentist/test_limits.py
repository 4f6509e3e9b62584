import math

import pytest
import torch
from torch.distributions import Normal

from sbi_core import InputError, Parameter, Simulator
from sbi_core.inference.frequentist.limits import limits
from sbi_core.simulators import GaltonBoard, LinearGaussian

WORLD = LinearGaussian(matrix=[[1.0, 0.5], [0.3, 1.0], [0.2, -0.4]])
X = torch.tensor([0.8, -0.3, 1.1]).double()
COVARIANCE = torch.linalg.inv(WORLD.fisher_information())
HAT = COVARIANCE @ (WORLD.matrix.T @ X) / WORLD.variance
LEVELS = {0.683: 1.00064, 0.95: 1.95996}  # of a normal distribution, two-sided


@pytest.mark.parametrize("name", ["theta_1", "theta_2"])
def test_profile_and_wilks_are_the_analytic_answer(name):
    """A bar of the project: with one nuisance parameter q is a parabola of the marginal variance."""
    k = int(name[-1]) - 1
    found = limits(WORLD, X, of=name)
    sd = float(COVARIANCE[k, k].sqrt())
    exact = (found.grid[0] - HAT[k]) ** 2 / sd**2
    assert (found.q - exact).abs().max() < 1e-3 and (found.best_fit - HAT).abs().max() < 1e-3 * sd
    assert torch.allclose(found.covariance, COVARIANCE, rtol=1e-3)
    fixed = (found.grid[0] - HAT[k]) ** 2 * WORLD.fisher_information()[k, k]
    assert (found.q - fixed).abs().max() > 1e-3, "saboteur: the nuisance parameter is known"
    for level, z in LEVELS.items():
        (piece,) = found.interval(level)
        assert abs(piece.low - (HAT[k] - z * sd)) < 1e-3 * sd and abs(piece.high - (HAT[k] + z * sd)) < 1e-3 * sd
        assert not piece.low_open and not piece.high_open and (piece.low_error, piece.high_error) == (0, 0)
    assert found.verdicts["coverage"] == "asymptotic (Wilks, chi-squared of 1), unchecked by toys"
    assert found.verdicts["maximum"].startswith("16 of 16") and found.flags == ()


def test_a_constraint_counts_once():
    sd = 0.7
    found = limits(WORLD, X.expand(4, 3), iid=True, of="theta_1", constraints={"theta_2": Normal(0.5, sd)})
    matrix = 4 * WORLD.fisher_information() + torch.diag(torch.tensor([0.0, sd**-2]).double())
    pull = 4 * WORLD.matrix.T @ X / WORLD.variance + torch.tensor([0.0, 0.5 * sd**-2]).double()
    exact, width = torch.linalg.solve(matrix, pull), torch.linalg.inv(matrix)[0, 0].sqrt()
    (piece,) = found.interval(0.95)
    ends = torch.tensor([piece.low, piece.high]).double()
    wanted = exact[0] + width * torch.tensor([-1, 1]) * LEVELS[0.95]
    assert (ends - wanted).abs().max() < 1e-3 * width
    free = limits(WORLD, X.expand(4, 3), iid=True, of="theta_1").interval(0.95)[0]
    assert abs(free.high - wanted[1]) > 0.01 * width, "saboteur: no constraint"


def test_a_region_of_two_parameters():
    """Wilks' region is an ellipse of area pi c sqrt(det of the covariance); its cells count it."""
    found = limits(WORLD, X, level=[0.683, 0.95])
    cell = math.prod(float(axis[1] - axis[0]) for axis in found.grid)
    for level, c in {0.683: 2.2977, 0.95: 5.9915}.items():
        area = math.pi * c * float(torch.linalg.det(COVARIANCE).sqrt())
        counted = float(found.regions[level].sum()) * cell
        assert abs(counted / area - 1) < 0.04
        assert abs(counted / (area * math.sqrt(1 + 0.3)) - 1) > 0.04, "saboteur: another ellipse"
    offset = torch.stack(torch.meshgrid(*found.grid, indexing="ij"), -1) - HAT
    exact = (offset @ WORLD.fisher_information() * offset).sum(-1)
    assert (found.q - exact).abs().max() < 1e-3


class Square(Simulator):
    """x ~ N(a^2 + b, 1), b known to a tenth: two maxima, and an edge beyond which nothing lies."""

    parameters = (Parameter("a", -3, 3), Parameter("b", -1, 1))
    x_shape = (1,)

    def sample(self, theta, design, generator):
        noise = torch.randn((len(theta), 1), generator=generator, dtype=torch.float64)
        return theta[:, :1] ** 2 + theta[:, 1:] + noise, None

    def log_likelihood(self, theta, x, design=None):
        return -((x[..., 0] - theta[..., 0] ** 2 - theta[..., 1]) ** 2) / 2


TENTH = {"b": Normal(0.0, 0.1)}


def test_a_set_of_two_pieces_and_one_that_the_range_ends():
    width = 1.01**0.5 * LEVELS[0.95]
    found = limits(Square(), [4.0], of="a", constraints=TENTH, level=0.95)
    left, right = found.interval()
    ends = [-((4 + width) ** 0.5), -((4 - width) ** 0.5), (4 - width) ** 0.5, (4 + width) ** 0.5]
    assert torch.allclose(torch.tensor([left.low, left.high, right.low, right.high]), torch.tensor(ends), atol=1e-3)
    assert found.flags == ("the set of 'a' at 95.0% has 2 pieces",)
    near = limits(Square(), [1.0], of="a", constraints=TENTH, level=0.95)
    assert len(near.interval()) == 1, "saboteur: the two grow together where a = 0 is in the set"
    beyond = limits(Square(), [14.0], of="a", constraints=TENTH, level=0.95)
    assert beyond.interval()[0].low_open and beyond.interval()[-1].high_open and abs(float(beyond.best_fit[0])) == 3
    assert any("edge of its range" in flag for flag in beyond.flags)
    assert any("ends with the range" in flag for flag in beyond.flags)


def test_a_narrow_second_piece_is_found():
    """A second maximum a thousandth of the range wide, .5 nats lower, is in the 95% set and not in the 50% one."""

    class Needles(Square):
        parameters = (Parameter("a", -3, 3),)

        def log_likelihood(self, theta, x, design=None):
            each = [-(((theta[..., 0] - at) / 0.02) ** 2) / 2 for at in (-1.2345, 2.1)]
            return torch.logaddexp(each[0], each[1] - 0.5) + 0 * x[..., 0]

    found = limits(Needles(), [0.0], level=[0.5, 0.95])
    assert [len(found.interval(level)) for level in (0.5, 0.95)] == [1, 2]
    assert abs(found.interval(0.95)[1].high - (2.1 + 0.02 * (LEVELS[0.95] ** 2 - 1) ** 0.5)) < 1e-4


def test_toys_on_a_world_that_is_exactly_normal():
    """Feldman-Cousins and central sets of an unbounded normal mean are Wilks', within their Monte Carlo errors."""
    for method in ("feldman_cousins", "neyman"):
        found = limits(WORLD, X, of="theta_1", method=method, simulator=WORLD, seed=1, toys=1000, points=9)
        sd = float(COVARIANCE[0, 0].sqrt())
        for level, z in LEVELS.items():
            (piece,) = found.interval(level)
            off = [(piece.low - float(HAT[0]) + z * sd), (piece.high - float(HAT[0]) - z * sd)]
            assert abs(off[0]) < 4 * piece.low_error and abs(off[1]) < 4 * piece.high_error
            assert 0.01 * sd < piece.low_error < 0.2 * sd
            assert abs(off[1] + 0.3 * sd) > 4 * piece.high_error or level == 0.95, "saboteur: .3 sd off"
        assert "by 1000 toys at each of 9 points" in found.verdicts["coverage"]
        assert "profile construction" in found.verdicts["coverage"]


def test_the_summary_is_plain_data():
    import json

    found = limits(WORLD, X, of="theta_1", method="feldman_cousins", simulator=WORLD, seed=1, toys=100, points=5)
    plain = json.loads(json.dumps(found.summary()))
    assert plain["seed"] == 1 and plain["of"] == ["theta_1"] and len(plain["intervals"]["0.95"]) == 1
    again = limits(WORLD, X, of="theta_1", method="feldman_cousins", simulator=WORLD, seed=1, toys=100, points=5)
    assert again.summary() == found.summary()
    other = limits(WORLD, X, of="theta_1", method="feldman_cousins", simulator=WORLD, seed=2, toys=100, points=5)
    assert other.summary()["intervals"] != found.summary()["intervals"]


def test_members_of_an_ensemble_are_the_training_uncertainty():
    class Three(LinearGaussian):
        members = tuple(LinearGaussian(1, noise_std=noise) for noise in (0.5, 1.0, 1.5))

    found = limits(Three(1), [0.3], level=0.95)
    ends = [0.3 + LEVELS[0.95] * member.variance**0.5 for member in Three.members]
    (piece,) = found.interval()
    assert piece.high_training == pytest.approx(float(torch.tensor(ends).std()), rel=1e-3)
    assert "3 trainings" in found.verdicts["spread of trainings"] and len(found.members) == 3
    assert limits(LinearGaussian(1), [0.3], level=0.95).interval()[0].high_training is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "feldman"}, ["method = 'feldman'", "feldman_cousins"]),
        ({"of": "theta_4"}, ["there is no parameter 'theta_4'"]),
        ({"level": 1.5}, ["level = 1.5"]),
        ({"toys": 10}, ["toys = 10"]),
        ({"method": "neyman"}, ["simulator=..."]),
        ({"method": "neyman", "simulator": WORLD, "of": ["theta_1", "theta_2"]}, ["feldman_cousins"]),
        ({"nuisance": "worst"}, ["nuisance = 'worst'"]),
        ({"rate": True}, ["rate=True", "fit_rate"]),
    ],
)
def test_options_that_do_not_fit(options, words):
    with pytest.raises(InputError) as caught:
        limits(WORLD, X, **{"of": "theta_1", **options})
    assert all(word in str(caught.value) for word in words)


def test_worlds_that_cannot_be_served():
    with pytest.raises(InputError, match="Name them"):
        limits(LinearGaussian(3), X)

    class Endless(LinearGaussian):
        parameters = (Parameter("a", -math.inf, 3),)

    world = LinearGaussian(1)
    world.parameters = Endless.parameters
    with pytest.raises(InputError, match="no finite range"):
        limits(world, [0.3])
    board = GaltonBoard()
    with pytest.raises(InputError, match="Raise time_limit"):
        limits(board, [[15.0]] * 9, iid=True, method="neyman", simulator=board, time_limit=1e-3)
