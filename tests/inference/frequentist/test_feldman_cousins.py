"""The published sets of a bounded normal mean and of a Poisson mean, and the number of events in the likelihood."""

import pytest
import torch
from torch.distributions import Normal, Poisson

from sbi_core import InputError, Parameter, Simulator
from sbi_core.inference.frequentist.coverage import coverage_map
from sbi_core.inference.frequentist.limits import limits
from sbi_core.inference.frequentist.rates import fit_rate
from sbi_core.seeding import seeded


class Bounded(Simulator):
    """x ~ N(mu, 1), mu at least 0."""

    parameters = (Parameter("mu", 0, 8),)
    x_shape = (1,)

    def sample(self, theta, design, generator):
        return theta + torch.randn(theta.shape, generator=generator, dtype=torch.float64), None

    def log_likelihood(self, theta, x, design=None):
        return -((x - theta) ** 2).sum(-1) / 2


TABLE = {  # arXiv:physics/9711021, Table X: 68.27% and 90%
    -1.0: ((0.00, 0.27), (0.00, 0.81)),
    0.0: ((0.00, 1.00), (0.00, 1.64)),
    1.0: ((0.24, 2.00), (0.00, 2.64)),
    2.0: ((1.00, 3.00), (0.58, 3.64)),
}


@pytest.mark.parametrize("x", TABLE)
def test_the_published_table(x):
    found = limits(
        Bounded(), [x], method="feldman_cousins", simulator=Bounded(), seed=1, toys=2000, level=[0.6827, 0.9]
    )
    for level, (low, high) in zip(found.levels, TABLE[x], strict=True):
        (piece,) = found.interval(level)
        assert abs(piece.high - high) < 4 * piece.high_error + 0.005
        assert 0 < piece.high_error < 0.1
        if low > 0:
            assert abs(piece.low - low) < 4 * piece.low_error + 0.005 and not piece.low_open
        else:
            assert piece.low_open and piece.low == 0
    wilks = limits(Bounded(), [x], level=[0.6827, 0.9])
    if x < 0:
        assert abs(wilks.interval(0.6827)[0].high - TABLE[x][0][1]) > 0.1, "saboteur: no toys"


class Counted(Simulator):
    """Events without content, s + 3 of them: only their number speaks."""

    parameters = (Parameter("s", 0, 15),)
    x_shape = (1,)

    def sample(self, theta, design, generator):
        return torch.zeros(len(theta), 1).double(), None

    def log_likelihood(self, theta, x, design=None):
        return 0 * (theta + x)[..., 0]

    def rate(self, theta, design=None):
        return theta[..., 0] + 3.0


def exact_p(s, n, background=3.0):
    """Probability under s (G,) of numbers that are no better than n by the ratio to the best fit, (G,)."""
    number = torch.arange(60).double()
    best = (number - background).clamp(0, 15) + background
    law = Poisson(s[:, None] + background).log_prob(number)
    ratio = law - Poisson(best).log_prob(number)
    return torch.where(ratio <= ratio[:, [n]] + 1e-9, law.exp(), 0.0).sum(1).clamp(max=1.0)


@pytest.mark.parametrize(("n", "low", "high"), [(0, 0.0, None), (1, 0.0, None), (4, 0.0, 5.60), (7, 0.89, 9.53)])
def test_the_published_poisson_limits(n, low, high):
    """Background 3, 90%: p-values against their exact sum, and ends against arXiv:physics/9711021, Table IV.

    Of 0 and 1 events the table lengthens the set, and closes a gap that is as narrow as a step of the grid.
    """
    found = limits(
        Counted(),
        torch.zeros(n, 1).double(),
        iid=True,
        rate=True,
        simulator=Counted(),
        method="feldman_cousins",
        level=0.9,
        seed=1,
        toys=1000,
    )
    s = found.belt.theta[:, 0]
    exact = exact_p(s, n)
    error = (exact * (1 - exact) / 1000).sqrt() + 0.001
    assert ((found.p_value - exact) / error).abs().max() < 4
    assert ((found.p_value - exact_p(s, n, 2.5)) / error).abs().max() > 4, "saboteur: another background"
    if high is not None:
        step = float(s[1] - s[0])
        first, last = found.interval()[0], found.interval()[-1]
        assert abs(last.high - high) < step and abs(first.low - low) < step


def test_the_number_of_events_counts():
    """n log(mu) - mu against its closed form; without it nothing is known."""
    found = limits(Counted(), torch.zeros(9, 1).double(), iid=True, rate=True, simulator=Counted(), exposure=2.0)
    mean = 2 * (found.grid[0] + 3)
    exact = 2 * (mean - 9 - 9 * (mean / 9).log())
    assert abs(float(found.best_fit[0]) - 1.5) < 1e-4 and (found.q - exact).abs().max() < 1e-3
    more = limits(Counted(), torch.zeros(9, 1).double(), iid=True, rate=True, simulator=Counted(), exposure=2, n_obs=12)
    assert abs(float(more.best_fit[0]) - 3.0) < 1e-4
    without = limits(Counted(), torch.zeros(9, 1).double(), iid=True)
    assert without.q.abs().max() == 0, "saboteur: no rate"
    assert without.interval()[0].low_open and without.interval()[0].high_open


def test_toys_with_a_random_number_of_events_cover():
    theta = torch.tensor([[0.5], [4.0], [10.0]]).double()
    found = coverage_map(Counted(), Counted(), theta, rate=True, exposure=5.0, seed=1, toys=1000)
    assert all(check.passed for check in found.checks)
    fixed = coverage_map(Counted(), Counted(), theta, events=15, seed=1, toys=1000)
    assert fixed.belt.q.max() == 0, "saboteur: the number is fixed"


def test_a_fitted_rate():
    axes = (Parameter("a", -1, 1), Parameter("b", 0, 4))
    with seeded(1):
        theta = torch.rand(400, 2).double() * torch.tensor([2.0, 4.0]) + torch.tensor([-1.0, 0.0])
        rate = (2 + 0.5 * theta[:, 0] - 0.3 * theta[:, 1] + 0.2 * theta[:, 0] * theta[:, 1]).exp()
        count = torch.poisson(50 * rate)
    found = fit_rate(theta, count, parameters=axes, exposure=50.0)
    off = (found(theta).log() - rate.log()) / found.log_error(theta)
    assert off.abs().max() < 4 and off.square().mean() < 2 and found.good is True
    straight = fit_rate(theta, count, parameters=axes, exposure=50.0, degree=1)
    assert straight.good is False and "does not describe" in straight.verdict
    world = Counted()
    with seeded(2):
        n = torch.poisson(world.rate(torch.arange(16.0)[:, None].double()) * 1000)
    fitted = fit_rate(torch.arange(16.0)[:, None], n, parameters=world.parameters, exposure=1000.0, degree=4)
    events = torch.zeros(9, 1).double()
    exact, learned = (limits(world, events, iid=True, rate=one).interval(0.95)[0] for one in (world.rate, fitted))
    for wanted, end in ((exact.low, learned.low), (exact.high, learned.high)):
        at = torch.tensor([[wanted]]).double()
        error = float(fitted.log_error(at) * world.rate(at))  # the rate rises by one where theta does
        assert abs(end - wanted) < 4 * error < 0.6
    for wrong in ({"count": count[:5]}, {"count": count - 0.5}, {"count": 0 * count}):
        with pytest.raises(InputError, match="fit_rate"):
            fit_rate(theta, **wrong, parameters=axes)


def test_auxiliary_measurements_are_made_anew_in_toys():
    """x ~ N(mu + b, 1), b measured to 1: q of mu covers with b moved in toys, at a standard deviation of sqrt(2)."""

    class Shifted(Bounded):
        parameters = (Parameter("mu", -10, 10), Parameter("b", -5, 5))

        def sample(self, theta, design, generator):
            return super().sample(theta.sum(1, keepdim=True), design, generator)

        def log_likelihood(self, theta, x, design=None):
            return -((x[..., 0] - theta.sum(-1)) ** 2) / 2

    world, measured = Shifted(), {"b": Normal(0.0, 1.0)}
    theta = [[1.0, 0.0], [0.0, 1.0]]
    exact = coverage_map(world, world, theta, of="mu", constraints=measured, method="profile", seed=1, toys=2000)
    assert all(check.passed for check in exact.checks)
    fixed = coverage_map(
        world, world, theta, of="mu", constraints={"b": Normal(0.0, 1e-2)}, method="profile", seed=1, toys=2000
    )
    assert all(check.passed for check in fixed.checks)
    found = limits(
        world,
        [1.0],
        of="mu",
        constraints=measured,
        method="feldman_cousins",
        simulator=world,
        seed=1,
        toys=600,
        points=15,
    )
    (piece,) = found.interval(0.95)
    assert abs(piece.high - 1 - 1.96 * 2**0.5) < 4 * piece.high_error
    assert abs(piece.high - 1 - 1.96) > 4 * piece.high_error, "saboteur: b is known"
    worst = limits(
        world,
        [1.0],
        of="mu",
        constraints=measured,
        method="feldman_cousins",
        simulator=world,
        nuisance="unconditional",
        seed=1,
        toys=200,
        points=7,
    )
    assert piece.high < worst.interval(0.95)[0].high < 1 + 3 * 2**0.5
    assert "the worst of which counts" in worst.verdicts["coverage"]
