import pytest
import torch
from torch.distributions import Gamma, LogNormal, Normal

from sbi_core import Events, InputError
from sbi_core.inference.frequentist import construction
from sbi_core.inference.frequentist.limits import limits
from sbi_core.inference.frequentist.maximum import Box
from sbi_core.inference.frequentist.neyman import Belt, order_statistic
from sbi_core.inference.frequentist.sets import Sets, Toys
from sbi_core.inference.frequentist.toys import Plan, statistics, toy_statistics
from sbi_core.seeding import seeded
from sbi_core.simulators import GaltonBoard, LinearGaussian

BOARD = GaltonBoard()


def test_counted_sets_are_the_same_as_single_events():
    with seeded(1):
        index = torch.randint(7, (400,))
    x = BOARD.sample(torch.full((400, 1), -0.7).double(), None, torch.Generator().manual_seed(1))[0]
    counted = Sets(BOARD, Toys(x, index, 7))
    single = Sets(BOARD, Toys(x, index, 7, design=torch.tensor([15.0, 20.0]).double().expand(400, 2)))
    assert counted.counted and not single.counted
    theta = torch.linspace(-1, 0, 5).double()[:, None]
    wide = theta.expand(7, 5, 1)
    exact = torch.stack([BOARD.log_likelihood(theta[:, None], x[index == k]).sum(1) for k in range(7)])
    for sets in (counted, single):
        assert torch.allclose(sets(wide), exact) and torch.allclose(sets.shared(theta), exact)
    assert not torch.allclose(Sets(BOARD, Toys(x, index.roll(1), 7))(wide), exact), "saboteur: other sets"


def test_a_set_with_an_impossible_event():
    sets = Sets(BOARD, Toys(torch.tensor([[15.0], [0.0]]).repeat(4, 1), torch.tensor([0, 1]).repeat(4), 2))
    few = GaltonBoard(4)
    sets = Sets(few, Toys(torch.tensor([[15.0], [0.0]]).repeat(4, 1), torch.tensor([0, 1]).repeat(4), 2))
    found = sets.shared(torch.tensor([[-0.5]]).double())
    assert sets.counted and found[0].isfinite() and found[1] == -torch.inf


def test_both_ways_to_the_best_fit_agree():
    """A table with a parabola, and a climb, on the same toys."""
    plan = Plan(BOARD, Box.of(BOARD.parameters), (0,), 100, simulator=BOARD)
    theta = torch.tensor([-0.6]).double()
    with seeded(1):
        toys = plan.draw(theta, 10)
    line = statistics(plan, plan.read(toys), theta)
    single = Toys(toys.x, toys.index, toys.rows, design=torch.tensor([15.0, 20.0]).double().expand(len(toys.x), 2))
    climbed = statistics(plan, plan.read(single), theta)
    assert (line.q - climbed.q).abs().max() < 1e-4 and (line.estimate - climbed.estimate).abs().max() < 2e-3
    assert line.q.max() > 1


def test_q_of_toys_with_a_nuisance_parameter_is_chi_squared():
    world = LinearGaussian(matrix=[[1.0, 0.5], [0.3, 1.0], [0.2, -0.4]])
    plan = Plan(world, Box.of(world.parameters), (0,), 3, simulator=world)
    with seeded(1):
        toys = plan.draw(torch.tensor([0.4, -0.2]).double(), 300)
    found = statistics(plan, plan.read(toys), torch.tensor([0.4, -0.2]).double())
    means = torch.stack([toys.x[toys.index == k].mean(0) for k in range(300)])
    covariance = torch.linalg.inv(3 * world.fisher_information())
    hat = means @ world.matrix @ torch.linalg.inv(world.matrix.T @ world.matrix)
    assert torch.allclose(found.q, (hat[:, 0] - 0.4) ** 2 / covariance[0, 0], atol=2e-4)
    assert torch.allclose(found.estimate[:, 0], hat[:, 0], atol=0.02)


def test_p_values_are_uniform_and_never_too_small():
    with seeded(1):
        q, other = torch.rand(1, 400).double().round(decimals=1), torch.rand(1, 20_000).double().round(decimals=1)
        draw = torch.rand(1, 20_000).double()
    belt = Belt(torch.zeros(1, 1), q, torch.zeros(1, 400, 1), False, (0,))
    shared, against = belt.p_value(other, draw)[0], belt.p_value(other)[0]
    assert abs(float((shared < 0.3).double().mean()) - 0.3) < 4 * (0.21 / 400 + 0.21 / 20_000) ** 0.5
    assert (against >= shared).all() and float((against < 0.3).double().mean()) < 0.29
    beyond = torch.tensor([[2.0]]).double()
    assert float(belt.p_value(beyond)[0]) == 1 / 401 and (q >= beyond).sum() == 0, "saboteur: the plain share is 0"


def test_the_error_of_an_order_statistic_is_its_spread():
    with seeded(1):
        many = torch.randn(300, 2000).double().square().sort(1).values
    value, error = order_statistic(many, 0.95)
    assert abs(float(value.std() / error.mean()) - 1) < 0.2
    assert abs(float(value.mean()) - 3.841) < 4 * float(value.std()) / 300**0.5 + 0.01
    assert float(order_statistic(many[:, :10], 0.95)[0][0]) == torch.inf


def test_a_region_of_two_parameters_by_toys(monkeypatch):
    """On an exactly normal world its area is Wilks', within the error of the critical values."""
    monkeypatch.setitem(construction.FINER, 2, 6)
    world = LinearGaussian(2)
    x = torch.tensor([0.5, -0.3]).double()
    options = {"of": ["theta_1", "theta_2"], "level": [0.683, 0.95], "seed": 1}
    wilks = limits(world, x, **options)
    found = limits(world, x, method="feldman_cousins", simulator=world, toys=400, points=7, **options)
    assert found.p_value.shape == (7, 7) and found.regions[0.95].shape == found.q.shape == (37, 37)
    for level in found.levels:
        areas = [
            float(one.regions[level].sum()) * float(one.grid[0][1] - one.grid[0][0]) ** 2 for one in (wilks, found)
        ]
        error = float((found.critical_error[level] / found.critical[level]).nanmean()) / 3
        assert abs(areas[1] / areas[0] - 1) < 4 * error + 0.05
    assert "by 400 toys at each of 49 points" in found.verdicts["coverage"]


def test_the_time_limit_ends_the_toys_and_is_said():
    x = BOARD.sample(torch.full((100, 1), -0.7).double(), None, torch.Generator().manual_seed(1))[0]
    found = limits(
        BOARD, x, iid=True, method="feldman_cousins", simulator=BOARD, toys=10**6, points=5, time_limit=3.0, seed=1
    )
    assert any("time limit of 3 s ended the toys after" in flag for flag in found.flags)
    assert 250 <= found.belt.toys < 10**5


def test_toys_of_designs_and_of_runs():
    """Balls at two designs; and some balls as one run, whose sets are the same as those of the balls."""
    board = GaltonBoard(6, 9)
    design = torch.tensor([[4.0, 6.0], [4.0, 4.0]]).repeat(4, 1).double()
    x = board.sample(torch.full((8, 1), -0.7).double(), design, torch.Generator().manual_seed(1))[0]
    options = {"method": "feldman_cousins", "seed": 1, "toys": 100, "points": 5, "level": 0.683}
    found = limits(board, x, iid=True, design=design, simulator=board, **options)
    assert "by 100 toys" in found.verdicts["coverage"]
    run, world = x[::2], Events(board, 4)
    whole = limits(world, run, simulator=world, **options)
    single = limits(board, run, iid=True, simulator=board, **options)
    assert torch.allclose(whole.best_fit, single.best_fit, atol=1e-4)
    error = (whole.interval()[0].high_error ** 2 + single.interval()[0].high_error ** 2) ** 0.5
    assert abs(whole.interval()[0].high - single.interval()[0].high) < 4 * error
    with seeded(1):
        drawn = Plan(board, Box.of(board.parameters), (0,), 8, design=design, simulator=board).draw(
            single.best_fit, 500
        )
    few = drawn.x[drawn.design[:, 1] == 4]
    assert drawn.design.shape == (4000, 2) and few.std() < drawn.x[drawn.design[:, 1] == 6].std()


def test_measurements_that_cannot_be_made_anew():
    world = LinearGaussian(2)
    plan = Plan(world, Box.of(world.parameters), (0,), 1, simulator=world, constraints={"theta_2": Normal(0.0, 2.0)})
    with seeded(1):
        shift = plan.draw(torch.tensor([0.0, 1.0]).double(), 20_000).shift[0]
    assert abs(float(shift.mean()) - 1) < 4 * 2 / 20_000**0.5 and abs(float(shift.std()) - 2) < 0.05
    for measured in (LogNormal(0.0, 1.0), Gamma(2.0, 1.0)):
        with pytest.raises(InputError, match="distribution of a distance"):
            limits(world, [0.1, 0.2], of="theta_1", method="neyman", simulator=world, constraints={"theta_2": measured})


def test_a_simulator_that_fails():
    class Failing(GaltonBoard):
        def sample(self, theta, design, generator):
            x, z = super().sample(theta, design, generator)
            return torch.where(x > 20, torch.nan, x), z

    plan = Plan(BOARD, Box.of(BOARD.parameters), (0,), 100, simulator=Failing())
    with seeded(1), pytest.raises(InputError, match="failed"):
        toy_statistics(plan, torch.tensor([-0.9]).double(), 100)
