import math
from itertools import combinations_with_replacement

import numpy as np
import pytest
import torch
from measures import z_of_mean
from scipy.stats import binom

from sbi_core import Events, InputError, MissingGold, Parameter, UniformPrior, check_gold, infer, joint_score, simulate
from sbi_core.seeding import seeded
from sbi_core.simulators import DeathProcess

ONE, TWO, THREE = (DeathProcess(k) for k in (1, 2, 3))
BEST = {1: ([1.0793], 0.807131), 2: ([0.5439, 2.6781], 0.983271)}
"""Times, and their expected information gain in nats."""


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


def outcomes(world):
    """All counts that can be, (X, K)."""
    rows = combinations_with_replacement(range(world.population + 1), world.n_times)
    return torch.tensor(list(rows)).double()


def by_scipy(world, rate, x, times):
    """Binomials one after the other."""
    total, before, last = 0.0, 0, 0.0
    for n, t in zip(x, times, strict=True):
        total += binom.logpmf(n - before, world.population - before, -np.expm1(-rate * (t - last)))
        before, last = n, t
    return total


@pytest.mark.parametrize("world", [ONE, TWO, THREE, DeathProcess(2, population=3)])
@pytest.mark.parametrize("rate", [0.01, 0.7, 30.0])
def test_likelihood_is_that_of_binomials(world, rate):
    times, x = at(0.3, 0.9, 0.9)[: world.n_times], outcomes(world)
    value = world.log_likelihood(at(rate), x, times)
    exact = torch.tensor([by_scipy(world, rate, row.tolist(), times.tolist()) for row in x])
    assert torch.allclose(value, exact, atol=1e-10, equal_nan=False)
    assert float(value.logsumexp(0)) == pytest.approx(0, abs=1e-12)
    later = torch.tensor([by_scipy(world, rate, row.tolist(), (times + 0.01).tolist()) for row in x])
    assert not torch.allclose(value, later, atol=1e-4), "saboteur: counted later"


def test_counts_that_cannot_be_have_no_probability():
    x = at(3, 2, 0, 11, 11, 10, -1, 2, 2, 12).reshape(5, 2)
    assert torch.isneginf(TWO.log_likelihood(at(1.0), x)).all()
    at_once = TWO.log_likelihood(at(1.0), at(3, 4, 3, 3, 0, 3).reshape(3, 2), at(2.0, 2.0))
    assert torch.isneginf(at_once).tolist() == [True, False, True]
    at_first = ONE.log_likelihood(at(1.0), at(0.0, 1.0)[:, None], at(0.0))
    assert at_first[0].abs() < 1e-14 and torch.isneginf(at_first[1])


@pytest.mark.parametrize("rate", [1e-13, 1e-3, 1.0, 50.0, 1e6])
def test_score_is_the_gradient(rate):
    """Also where b t is far too small or too large for exp."""
    leaf, x, times = at(rate).requires_grad_(), outcomes(THREE), at(0.0, 0.4, 0.4)
    can = x[(x[:, 0] == 0) & (x[:, 1] == x[:, 2])]
    for row in can:
        value = THREE.log_likelihood(leaf, row, times)
        slope = torch.autograd.grad(value, leaf)[0]
        assert value.isfinite() and slope.isfinite()
        assert torch.allclose(THREE.score(leaf.detach(), row, times), slope, rtol=1e-9, atol=1e-12)
        if rate == 1e-13:
            assert torch.allclose(slope * rate, row[2:], rtol=1e-9)  # d/db log b^n


@pytest.fixture(scope="module")
def rows():
    times = UniformPrior(TWO.designs)
    with seeded(5):
        design = (times.sample(torch.Size([20_000])) / 3).sort(-1).values
    return simulate(TWO, 20_000, seed=1, design=design, progress=False)


def test_rows_have_the_probabilities():
    """How often each outcome comes at one b and one design."""
    x = outcomes(TWO)
    found = simulate(TWO, 20_000, seed=1, proposal=at(0.8), design=at(0.5, 1.5), progress=False)
    assert found.x.shape == (20_000, 2) and found.z.shape == (20_000, 1)
    came = (found.x[:, None] == x).all(-1).double()
    assert (came.sum(1) == 1).all()

    def worst(design):
        chance = TWO.log_likelihood(at(0.8), x, design).exp()
        often = chance > 5e-3
        return z_of_mean(came[:, often], chance[often])

    assert worst(at(0.5, 1.5)) < 4 < worst(at(0.53, 1.5))


def test_mean_joint_score_given_x_is_the_score(rows):
    """E[(t - score) phi(x)] = 0, in units of 1 / b; and the sum of the times has mean N / b."""
    difference = (joint_score(TWO, rows) - TWO.score(rows.theta, rows.x, rows.design)) * rows.theta
    phi = torch.cat([torch.ones(len(rows), 1), rows.x, rows.x**2, rows.x.prod(1, keepdim=True)], 1)
    assert z_of_mean(difference * phi) < 4
    wrong = joint_score(TWO, rows) * rows.theta - TWO.score(rows.theta, rows.x, rows.design * 1.03) * rows.theta
    assert z_of_mean(wrong * phi) > 4, "saboteur: later times"
    assert z_of_mean(rows.z * rows.theta, 10) < 4 < z_of_mean(rows.z * rows.theta, 10.2)


def test_information_is_the_variance_of_the_score(rows):
    theta, x, times = torch.logspace(-2, 2, 9).double()[:, None], outcomes(THREE), at(0.2, 0.2, 1.3)
    chance = THREE.log_likelihood(theta[:, None], x, times).exp()
    score = torch.where(chance[..., None] > 0, THREE.score(theta[:, None], x, times), 0.0)[..., 0]
    assert torch.allclose((chance * score).sum(1), torch.zeros(9).double(), atol=1e-8)
    exact = THREE.fisher_information(theta, times)
    assert exact.shape == (9, 1, 1) and torch.allclose((chance * score**2).sum(1), exact[:, 0, 0], rtol=1e-9)
    latent = TWO.fisher_information(rows.theta, latent=True)
    assert z_of_mean(joint_score(TWO, rows) ** 2 / latent[:, 0], 1) < 4
    assert (latent > 1.2 * TWO.fisher_information(rows.theta, rows.design)).all(), "the latents know more than counts"


class InABox(DeathProcess):
    """With a flat prior, for which `check_gold` has more tests."""

    @property
    def prior(self):
        return UniformPrior([Parameter("rate", 0.3, 3.0)])


class Crowded(InABox):
    """Saboteur: as if there were eleven."""

    def log_joint(self, theta, x, z, design):
        return super().log_joint(theta, x, z, design) + theta[:, 0].log()


def test_gold_passes():
    check_gold(TWO, simulate(TWO, 5000, seed=1, progress=False)).raise_if_failed()
    check_gold(InABox(), flat := simulate(InABox(), 5000, seed=1, progress=False)).raise_if_failed()
    assert not check_gold(Crowded(), flat).passed


def test_latents_are_needed_for_gold():
    with pytest.raises(MissingGold, match="'DeathProcess'"):
        TWO.log_joint(at(1.0)[None], None, None, None)


def gain(times, population=10, cells=1201):
    """Expected information gain in nats: all outcomes, and the trapezium rule over log b from -9 to 9."""
    world, log_b = DeathProcess(len(times), population=population), torch.linspace(-9, 9, cells).double()
    prior = torch.softmax(-(log_b**2) / 2, 0)
    log_p = world.log_likelihood(log_b.exp()[:, None, None], outcomes(world), at(*times))
    each = log_p.exp() * (log_p - (prior @ log_p.exp()).log())
    return float((prior @ torch.where(log_p.isneginf(), 0.0, each)).sum())


@pytest.mark.parametrize("k", BEST)
def test_best_times_and_their_gain(k):
    times, value = BEST[k]
    assert gain(times) == pytest.approx(value, abs=1e-6) and gain(times, cells=601) == pytest.approx(value, abs=1e-6)
    assert gain(times, population=9) != pytest.approx(value, abs=1e-2), "saboteur: nine individuals"
    steps = np.array([[0.03, 0], [0, 0.03], [0.03, 0.03], [0.03, -0.03]])[: 1 if k == 1 else 4, :k]
    for step in (sign * s for s in steps for sign in (1, -1)):
        assert gain(np.array(times) + step) < value - 1e-6
    half = gain(np.array(times) + 0.015 * np.ones(k)) - value
    assert gain(np.array(times) + 0.03 * np.ones(k)) - value == pytest.approx(4 * half, rel=0.1), "a smooth maximum"


def test_second_count_gains_what_one_count_misses():
    alone = gain([0.5439])
    assert gain([0.5439, 0.5439]) == pytest.approx(alone, abs=1e-12) and alone < gain([0.5439, 0.6]) < gain(
        [0.5439, 1.2]
    )


@pytest.mark.parametrize("times", [[2.0, 1.0], [-0.1, 1.0], [math.nan, 1.0]])
def test_times_that_decrease_are_refused(times):
    with pytest.raises(InputError, match=r"design has times .* expected 2 from 0 up, none before the last"):
        TWO.log_likelihood(at(1.0), at(1, 2), at(*times))
    with pytest.raises(InputError, match="design has times"):
        simulate(TWO, 10, design=at(*times), progress=False)


def test_default_times():
    """Half of the individuals at b = 1; a third, and two thirds."""
    for world, shares in ((ONE, [1 / 2]), (TWO, [1 / 3, 2 / 3])):
        times = -(1 - torch.tensor(shares).double()).log()
        x = outcomes(world)
        assert torch.allclose(world.log_likelihood(at(0.7), x), world.log_likelihood(at(0.7), x, times), atol=1e-12)


@pytest.mark.parametrize("options", [{"n_times": 0}, {"population": 0}])
def test_world_that_is_none_is_refused(options):
    with pytest.raises(InputError, match="expected at least 1 of each"):
        DeathProcess(**options)


def test_posterior_is_prior_times_likelihood():
    x, times, log_b = at(4, 9), at(*BEST[2][0]), torch.linspace(-8, 8, 2001).double()
    posterior = infer(TWO, TWO.prior, x, design=times)
    mass = (TWO.log_likelihood(log_b.exp()[:, None], x, times) - log_b**2 / 2).softmax(0)
    assert float(posterior.mean) == pytest.approx(float(mass @ log_b.exp()), rel=1e-4)
    assert float(infer(TWO, TWO.prior, x, design=1.1 * times).mean) != pytest.approx(float(posterior.mean), rel=1e-2)


def test_several_epidemics_are_events():
    six = DeathProcess(6)
    world = Events(six, 3)
    runs = simulate(world, 100, seed=1, design=torch.arange(1, 7), progress=False)
    each = six.log_joint(runs.theta.repeat_interleave(3, 0), None, runs.z[..., :1].reshape(-1, 1), None)
    joint = world.log_joint(runs.theta, runs.x, runs.z, runs.design)
    assert torch.allclose(joint, each.reshape(100, 3).sum(1), atol=1e-10)


def test_picture_is_drawn():
    from matplotlib.figure import Figure

    for some in (simulate(TWO, 70, seed=1, progress=False), simulate(ONE, 2, design=at(1.0), seed=1, progress=False)):
        axes = Figure().subplots()
        DeathProcess(some.x.shape[1]).draw(axes, some)
        assert axes.has_data() and axes.get_xlabel()
