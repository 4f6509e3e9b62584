"""Paths, gold and counts of epidemics."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from epidemics_by_hand import gillespie
from measures import z_of_mean
from scipy.integrate import solve_ivp
from scipy.stats import betabinom

from sbi_core import InputError, MissingGold, UniformPrior, check_gold, joint_score, simulate
from sbi_core.seeding import seeded
from sbi_core.simulators import Epidemic
from sbi_core.simulators.epidemic_counts import Reporting
from sbi_core.simulators.epidemic_paths import BLOCK, follow

SCHOOL = {"population": 40, "infected": 2, "horizon": 12.0, "beta": (0.5, 2.0), "gamma": (0.2, 1.0)}
KINDS = {
    "prevalence": {"observed": "prevalence", "times": [2, 4, 8], "reporting": 0.8},
    "incidence": {"observed": "incidence", "times": [2, 4, 8]},
    "stages": {"observed": "prevalence", "times": [3, 6], "stages": 3, "dispersion": 0.05},
}
by_kind = pytest.mark.parametrize("kind", KINDS)


def world_of(kind, of=Epidemic, **more):
    return of(**{**KINDS[kind], **SCHOOL, **more})


def with_designs(world, n, seed=1):
    """Rows whose own last times differ by a lot."""
    with seeded(seed):
        design = UniformPrior(world.designs).sample(torch.Size([n])).sort(-1).values
    return simulate(world, n, seed=seed, design=design, progress=False)


class ByHand(Epidemic):
    """One stage, event after event, and integrals until whatever is said: rightly its own last time."""

    until = "its own last time"

    def sample(self, theta, design, generator):
        rng = np.random.default_rng(torch.randint(0, 2**62, (1,), generator=generator).tolist())
        times = self._times(design).expand(len(theta), -1).numpy()
        (s, ill), z = gillespie(theta.numpy(), self.population, self.infected, times, rng, self.until)
        true = ill if self.observed == "prevalence" else -np.diff(s, prepend=self.population - self.infected)
        return rng.binomial(true.astype(int), self.reporting).astype(float), z


class ToTheLastEvent(ByHand):
    """Saboteur: the last incomplete interval is dropped."""

    until = "the last event"


class ToTheLongestTime(ByHand):
    """Saboteur: integrals go on after the row's own last time."""

    until = "the longest time"


class Exchanged(Epidemic):
    """Saboteur: infections are taken for recoveries."""

    def log_joint(self, theta, x, z, design):
        return super().log_joint(theta, x, z[:, [1, 0, 2, 3]], design)


class OneStage(Epidemic):
    """Saboteur: as if all stages had the rate of one."""

    def log_joint(self, theta, x, z, design):
        return super().log_joint(theta, x, z * torch.tensor([1.0, 1.0, 1.0, 1 / self.stages]), design)


@by_kind
def test_gold_passes(kind):
    """At one design, and at many, whose last times differ by a lot."""
    world = world_of(kind)
    check_gold(world, simulate(world, 4000, seed=1, progress=False)).raise_if_failed()
    check_gold(world, with_designs(world, 4000)).raise_if_failed()


@pytest.mark.parametrize(
    ("kind", "of", "passes"),
    [
        ("prevalence", ByHand, True),
        ("prevalence", ToTheLastEvent, False),
        ("incidence", ToTheLastEvent, False),
        ("incidence", ToTheLongestTime, False),
        ("incidence", Exchanged, False),
        ("prevalence", Exchanged, False),
        ("stages", OneStage, False),
    ],
)
def test_wrong_gold_is_told(kind, of, passes):
    times = torch.linspace(1, 4, len(KINDS[kind]["times"])).tolist()
    world = world_of(kind, of, times=times, horizon=4.0)  # while most epidemics go on
    found = check_gold(world, with_designs(world, 4000))
    assert found.passed == passes, found.verdict


def test_paths_are_those_of_one_event_after_another():
    """Means and second moments of counts and latents, beside those of a plain loop."""
    theta = torch.tensor([1.2, 0.5]).double().expand(6000, 2)
    rows, other = (
        simulate(world_of("prevalence", of), 6000, seed=2, proposal=theta, progress=False) for of in (Epidemic, ByHand)
    )

    def moments(made):
        columns = torch.cat([made.x, made.z], 1).double()
        return torch.cat([columns, columns**2, columns.roll(1, 1) * columns], 1)

    both = moments(rows), moments(other)
    error = torch.stack([part.var(0) / len(part) for part in both]).sum(0).sqrt()
    assert float(((both[0].mean(0) - both[1].mean(0)) / error).abs().max()) < 4
    wrong = simulate(world_of("prevalence"), 6000, seed=2, proposal=theta * torch.tensor([1.08, 1.0]), progress=False)
    assert float(((moments(wrong).mean(0) - both[1].mean(0)) / error).abs().max()) > 4, "saboteur: other rates"


@by_kind
def test_events_have_their_rates(kind):
    """E[n_i] = beta E[A] and E[n_c] = L gamma E[B], whatever the design: both sides are stopped at the same time."""
    world = world_of(kind)
    rows = with_designs(world, 6000)
    rate = rows.theta * torch.tensor([1.0, world.stages])
    assert z_of_mean(rows.z[:, :2] - rate * rows.z[:, 2:]) < 4
    assert z_of_mean(rows.z[:, :2] - 1.03 * rate * rows.z[:, 2:]) > 4, "saboteur: three hundredths more"
    assert bool((rows.z[:, 3] <= world.population * rows.design[:, -1]).all())


def test_large_populations_follow_the_differential_equation():
    world = Epidemic(population=10_000, infected=400, observed="prevalence", times=[5, 10, 15], reporting=1.0)
    x, _ = world.sample(torch.tensor([[0.8, 0.25]]).double().expand(40, 2), None, torch.Generator().manual_seed(1))

    def change(_, y):
        return [-0.8 * y[0] * y[1], 0.8 * y[0] * y[1] - 0.25 * y[1]]

    mean = solve_ivp(change, (0, 15), [0.96, 0.04], t_eval=world.times, rtol=1e-9).y[1]
    assert torch.allclose(x.mean(0) / 10_000, torch.tensor(mean), rtol=0.015)
    assert not torch.allclose(x.mean(0) / 10_000, torch.tensor(mean) * 1.02, rtol=0.015)


def test_time_goes_on_from_where_it_was():
    """Two waits are one: what follows at 3 + 3 days has the moments of what follows at 6."""
    generator, n = torch.Generator().manual_seed(1), 6000
    beta, gamma, s = (torch.full((n,), value, dtype=torch.float64) for value in (1.2, 0.5, 60.0))
    begin = torch.tensor([4.0, 2.0]).double().expand(n, 2)
    days = torch.ones((n, 1), dtype=torch.float64)

    def columns(last, *parts):
        sums = [sum(getattr(part, name) for part in parts)[:, None] for name in ("burden", "contacts")]
        return torch.cat([last.susceptible, last.infected[:, 0], *sums], 1)

    def worst(infected, wait):
        then = follow(beta, gamma, first.susceptible[:, 0], infected, wait * days, 70, generator)
        twice = columns(then, first, then)
        return (once.mean(0) - twice.mean(0)).abs() / ((once.var(0) + twice.var(0)) / n).sqrt()

    whole = follow(beta, gamma, s, begin, 6 * days, 70, generator)
    first = follow(beta, gamma, s, begin, 3 * days, 70, generator)
    once, stages = columns(whole, whole), first.infected[:, 0]
    assert float(worst(stages, 3.0).max()) < 4
    young = torch.stack([stages.sum(1), torch.zeros(n)], 1)
    assert float(worst(young, 3.0).max()) > 4, "saboteur: all are in the first stage again"
    assert float(worst(stages, 3.5).min()) > 4, "saboteur: half a day too long, which every column shows"


def test_everyone_is_somewhere():
    """Numbers are whole and balance at every time; those who died out, and those at time 0, stay as they were."""
    world = Epidemic(population=50, infected=50, observed="prevalence", times=[0, 0, 3, 300], reporting=1.0, stages=2)
    rows = simulate(world, 200, seed=1, progress=False)
    assert bool((rows.x[:, :2] == 50).all() and (rows.x[:, 3] == 0).all() and (rows.x == rows.x.round()).all())
    assert bool((rows.z[:, 0] == 0).all() and (rows.z[:, 1] == 100).all()) and BLOCK < 2 * 50
    mixed = simulate(Epidemic(population=300, reporting=1.0), 200, seed=1, progress=False)
    assert torch.equal(mixed.x.sum(1).double(), mixed.z[:, 0]) and bool((mixed.z[:, 1] <= mixed.z[:, 0] + 10).all())
    nothing = simulate(Epidemic(population=30, times=[0.0], horizon=1.0), 20, seed=1, progress=False)
    assert not bool(nothing.z.any() or nothing.x.any())


@pytest.mark.parametrize("dispersion", [0.0, 0.02, 0.4])
def test_counts_are_binomial_or_wider(dispersion):
    counting, true = Reporting(0.7, dispersion), torch.full((40_000,), 25.0).double()
    x = counting.draw(true, np.random.default_rng(1))
    assert z_of_mean(x, 17.5) < 4
    variance = 25 * 0.7 * 0.3 * (1 + 24 * dispersion)
    assert z_of_mean((x - 17.5) ** 2, variance) < 4 < z_of_mean((x - 17.5) ** 2, 1.1 * variance)
    at = torch.arange(26.0).double()
    exact = betabinom.logpmf(at, 25, *counting.shape) if dispersion else None
    log_p = counting.log_prob(at, true[:1])
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert exact is None or torch.allclose(log_p, torch.tensor(exact), atol=1e-10)
    assert z_of_mean(torch.nn.functional.one_hot(x.long(), 26)[:, 8:24], log_p.exp()[8:24]) < 4


def test_rows_depend_on_seed_and_number_alone():
    world = world_of("stages")
    rows = simulate(world, 2500, seed=1, progress=False)
    again = simulate(world, 2100, seed=1, progress=False)
    assert torch.equal(rows.x[:2100], again.x) and torch.equal(rows.z[:2100], again.z)
    assert not torch.equal(simulate(world, 100, seed=2, progress=False).x, rows.x[:100])


def test_defaults_are_weekly_cases():
    world = Epidemic()
    assert world.times == tuple(7.0 * week for week in range(1, 11)) and world.x_shape == (10,)
    assert Epidemic(horizon=30).times == (7, 14, 21, 28) and [axis.high for axis in world.designs] == [70.0] * 10
    assert float(world.basic_reproduction_number(torch.tensor([0.6, 0.2]))) == pytest.approx(3)
    rows = simulate(world, 50, seed=1, progress=False)
    assert torch.equal(rows.x, simulate(world, 50, seed=1, design=torch.tensor(world.times), progress=False).x)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"population": 0}, "population = 0, infected = 10"),
        ({"infected": 1001}, "infected = 1001"),
        ({"stages": 0}, "stages = 0: expected whole numbers from 1 up"),
        ({"population": 10.0}, "population = 10.0"),
        ({"observed": "deaths"}, "observed = 'deaths': expected one of incidence, prevalence"),
        ({"reporting": 0.0}, "reporting = 0.0"),
        ({"dispersion": 1.0}, "dispersion = 1.0: expected a probability above 0, and a correlation"),
        ({"times": [2, 1]}, r"times = \[2.0, 1.0\], horizon = 2: expected at least one time, ascending"),
        ({"times": []}, "expected at least one time"),
        ({"times": [8], "horizon": 7}, "horizon = 7"),
        ({"times": [0]}, "horizon = 0"),
        ({"horizon": 3}, r"times = \[\], horizon = 3"),
        ({"beta": [1.0]}, r"beta = \[1.0\]: expected a range of positive rates per day, \[low, high\]"),
        ({"gamma": [0.0, 1.0]}, "gamma = "),
        ({"beta": 0.5}, "beta = 0.5: expected a range of positive rates"),
        ({"beta": ["0.1", "1"]}, "beta = .*: expected a range of positive rates"),
        ({"times": 7}, "times = 7, horizon = None: expected a list of times, and a horizon, in days"),
        ({"times": "weekly"}, "times = 'weekly'"),
        ({"horizon": float("inf")}, "horizon = inf"),
        ({"horizon": float("nan")}, "horizon = nan"),
    ],
)
def test_world_that_is_none_is_refused(options, said):
    with pytest.raises(InputError, match=said):
        Epidemic(**options)


def test_thetas_and_times_that_are_none_are_refused():
    world = world_of("incidence")
    for theta in ([-1.0, 0.5], [1.0, 0.0], [float("nan"), 1.0], [float("inf"), 1.0]):
        with pytest.raises(InputError, match="expected positive rates beta and gamma per day"):
            simulate(world, 10, proposal=torch.tensor(theta), progress=False)
    for times in ([2.0, 1.0, 3.0], [-1.0, 1.0, 2.0], [1.0, float("nan"), 2.0]):
        with pytest.raises(InputError, match=r"design has times .* expected 3 from 0 up, none before the last. Sort"):
            simulate(world, 10, design=torch.tensor(times), progress=False)
    with pytest.raises(InputError, match=r"design has shape \(1, 2\), expected \(\*, 3\) times in days"):
        world.sample(torch.ones(1, 2), torch.ones(1, 2), torch.Generator())
    with pytest.raises(MissingGold, match="'Epidemic'"):
        world.log_joint(torch.ones(1, 2), torch.zeros(1, 3), None, None)


def test_joint_score_is_a_sum_over_events():
    z = torch.tensor([[5.0, 4.0, 3.0, 10.0]]).double()
    rows = simulate(Epidemic(stages=2, times=[7.0]), 1, proposal=torch.tensor([0.5, 0.2]), seed=1, progress=False)
    assert torch.allclose(
        joint_score(Epidemic(stages=2, times=[7.0]), replace(rows, z=z)), torch.tensor([[7.0, 0.0]]).double(), atol=1e-6
    )


def test_picture_is_drawn():
    from matplotlib.figure import Figure

    for kind in KINDS:
        axes = Figure().subplots()
        world_of(kind).draw(axes, with_designs(world_of(kind), 70))
        assert len(axes.lines) == 60 and axes.get_xlabel() == "day"
