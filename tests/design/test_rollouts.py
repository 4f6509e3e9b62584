import math

import numpy as np
import pytest
import torch
from known_gains import BOARD, EPIDEMIC, TOY, WIDE
from torch import nn

from sbi_core import Events, Parameter, UniformPrior, simulate
from sbi_core.design import readers, rollouts
from sbi_core.design.belief import points
from sbi_core.design.readers import joint_reader, of_runs, reader
from sbi_core.design.rollouts import BLOCKS, experiments, roll, see
from sbi_core.estimators import RatioEstimator, fit, nre
from sbi_core.events import RunLikelihood
from sbi_core.simulators import LinearGaussian

WORLD = LinearGaussian(2, latent_std=0.6, noise_std=0.4)
PHI, TIMES = torch.tensor([48.0]).double(), torch.tensor([0.5439, 2.6781]).double()


class Counted(LinearGaussian):
    """As many of its events come as theta says, or as a design says, or seven."""

    designs = (Parameter("exposure", 1, 9),)

    def rate(self, theta, design):
        return 3 + theta[..., 0].tanh()


POISSON = Events(Counted(2), luminosity=1.0)
PLANNED = Events(Counted(2), lambda design: torch.round(design[:, 0] / 2))
FIXED = Events(Counted(2), 7)
RUNS = {"Poisson": (POISSON, None), "planned": (PLANNED, torch.tensor([6.0])), "fixed": (FIXED, None)}


class Spy:
    """An exact likelihood that counts its looks and what it is shown."""

    def __init__(self, world):
        self.world, self.parameters, self.designs, self.x_shape = world, world.parameters, world.designs, world.x_shape
        self.looks = self.rows = self.pairs = 0

    def observe(self, x, design=None):
        self.looks, self.rows = self.looks + 1, self.rows + len(x)
        look = self.world.observe(x, design)

        def counted(theta):
            value = look(theta)
            self.pairs += value.numel()
            return value

        return counted


def normal_density(theta, x):
    """log p(x | theta) of `WORLD`, (M, L), written out again."""
    off = x[:, None] - theta
    return -0.5 * (off**2).sum(-1) / 0.52 - math.log(2 * math.pi * 0.52)


def same(one, other, tolerance=1e-12):
    names = ("own", "log_sum", "mean", "log_square")
    return all(torch.allclose(getattr(one, k), getattr(other, k), rtol=0, atol=tolerance) for k in names)


def seen(world, design=None, n=40, inner=64, seed=3, read=None, prior=None):
    return roll(read or reader(world), world, prior or world.prior, design, n=n, inner=inner, seed=seed)


def test_sums_against_numpy():
    found, others = seen(WORLD), points(WORLD.prior, 64, 3, 1).numpy()
    theta, x = found.theta.numpy(), found.rows.x.numpy()
    value = normal_density(others, x)
    assert np.allclose(found.own, normal_density(theta[:, None], x)[:, 0], atol=1e-12)
    assert not np.allclose(found.own, value[:, 0], atol=1e-2), "saboteur: another theta"
    for b in range(BLOCKS):
        part = slice(4 * b, 4 * b + 4)
        p, rows = np.exp(value[:, part]), others[part]
        assert np.allclose(found.log_sum[:, b], np.log(p.sum(1)), atol=1e-12)
        assert np.allclose(found.log_square[:, b], np.log((p**2).sum(1)), atol=1e-12)
        weight = p / p.sum(1, keepdims=True)
        wanted = np.column_stack([(weight * value[:, part]).sum(1), weight @ rows, weight @ rows**2])
        assert np.allclose(found.mean[:, b], wanted, atol=1e-12)
        assert not np.allclose(found.mean[:, b], wanted[::-1], atol=1e-2), "saboteur: another x"
    p = np.exp(value)
    assert found.effective() == pytest.approx(1 / np.mean((p**2).sum(1) / p.sum(1) ** 2), rel=1e-12)
    assert (found.inner, found.evaluations, len(found.rows)) == (64, 40 * 65, 40)


@pytest.mark.parametrize("block", [None, 0, 5, 15])
def test_without_a_block(block):
    found, others = seen(WORLD), points(WORLD.prior, 64, 3, 1).numpy()
    kept = np.array([k for k in range(64) if k // 4 != block])
    value = normal_density(others, found.rows.x.numpy())[:, kept]
    log_sum, mean, count = found.without(block)
    weight = np.exp(value) / np.exp(value).sum(1, keepdims=True)
    assert count == len(kept) and np.allclose(log_sum, np.log(np.exp(value).sum(1)), atol=1e-12)
    wanted = np.column_stack([(weight * value).sum(1), weight @ others[kept], weight @ others[kept] ** 2])
    assert np.allclose(mean, wanted, atol=1e-12) and not np.allclose(mean, wanted + 1e-6, atol=1e-12)


def test_posterior_moments_are_the_exact_ones():
    found = seen(WORLD, inner=16384)
    mean, exact = found.without()[1][:, 1:], [WORLD.posterior(x) for x in found.rows.x]
    wanted = torch.stack([torch.cat([one.mean, one.mean**2 + one.variance]) for one in exact])
    assert (mean - wanted).square().mean().sqrt() < 0.002 < (mean - wanted.roll(1, 0)).square().mean().sqrt()


@pytest.mark.parametrize("name", RUNS)
def test_runs_against_a_loop(name):
    runs, design = RUNS[name]
    found, others = seen(runs, design), points(runs.prior, 64, 3, 1)
    count = found.rows.n_events
    assert len(count.unique()) > 2 or name != "Poisson"

    def by_hand(k, theta):
        n, at = int(count[k]), None if design is None else design
        each = runs.simulator.log_likelihood(theta[:, None], found.rows.x[k, :n], at).sum(1)
        mean = runs.simulator.rate(theta, at)
        return each + (n * mean.log() - mean if name == "Poisson" else 0.0)

    value = torch.stack([by_hand(k, others) for k in range(40)])
    assert torch.allclose(found.without()[0], value.logsumexp(1), rtol=0, atol=1e-10)
    assert torch.allclose(found.own, torch.cat([by_hand(k, found.theta[k : k + 1]) for k in range(40)]), atol=1e-10)
    assert not torch.allclose(found.without()[0], value.logsumexp(1).roll(1), atol=1e-2), "saboteur"


@pytest.mark.parametrize(("world", "design", "prior"), [(EPIDEMIC, TIMES, None), (BOARD, [15, 20], WIDE)])
def test_equal_x_are_seen_once_and_say_the_same(world, design, prior):
    prior, spy = prior or world.prior, Spy(world)
    found = seen(world, design, 500, read=reader(spy), prior=prior)
    different = len(found.rows.x.unique(dim=0))
    assert different < 60 and spy.looks == 2 and spy.rows == 500 + different
    assert spy.pairs == 500 + 64 * different
    others = points(prior, 64, 3, 1)
    for k in range(0, 500, 50):
        one = see(reader(world), found.rows[k : k + 1], others)
        assert torch.allclose(one.log_sum[0], found.log_sum[k], atol=1e-12)
        assert torch.allclose(one.mean[0], found.mean[k], atol=1e-12) and torch.allclose(one.own[0], found.own[k])
    assert not torch.allclose(one.mean[0], found.mean[found.rows.x[:, 0] != one.rows.x[0, 0]][0]), "saboteur"


def test_different_x_are_looked_at_once():
    spy = Spy(WORLD)
    seen(WORLD, n=100, read=reader(spy))
    assert (spy.looks, spy.rows, spy.pairs) == (1, 100, 100 * 65)


def test_designs_of_their_own_are_kept_apart():
    """Equal x at different designs say different things."""
    design = torch.tensor([[0.4, 1.0], [0.5439, 2.6781]]).double().repeat(100, 1)
    rows = experiments(EPIDEMIC, points(EPIDEMIC.prior, 200, 1), design, 1)
    others = points(EPIDEMIC.prior, 32, 1, 1)
    found = see(reader(EPIDEMIC), rows, others)
    value = EPIDEMIC.log_likelihood(others, rows.x[:, None], design[:, None])
    assert torch.allclose(found.without()[0], value.logsumexp(1), atol=1e-12)
    assert len(rows.x.unique(dim=0)) < len(torch.cat([rows.x, design], 1).unique(dim=0)) < 200


@pytest.mark.parametrize("at_once", [1, 70, 3000])
@pytest.mark.parametrize(
    ("world", "design", "read"),
    [
        (WORLD, None, reader(WORLD)),
        (WORLD, None, joint_reader(WORLD)),
        (EPIDEMIC, TIMES, reader(EPIDEMIC)),
        (POISSON, None, reader(POISSON)),
        (POISSON, None, joint_reader(POISSON)),
        (Events(TOY, TOY.rate_events), PHI, reader(Events(TOY, TOY.rate_events))),
    ],
)
def test_parts_change_nothing(monkeypatch, world, design, read, at_once):
    whole = seen(world, design, 12, 32, read=read)
    for module in (rollouts, readers):
        monkeypatch.setattr(module, "AT_ONCE", at_once)
    parts = seen(world, design, 12, 32, read=read)
    assert same(whole, parts, 1e-9) and not same(whole, seen(world, design, 12, 32, 4, read=read), 1e-3)


def test_joint_reader_against_log_joint():
    found, others = seen(WORLD, read=joint_reader(WORLD)), points(WORLD.prior, 64, 3, 1)
    z = found.rows.z.double()
    value = -((z[:, None] - others) ** 2).sum(-1) / (2 * 0.36)
    assert torch.allclose(found.without()[0], value.logsumexp(1), atol=1e-10)
    assert not torch.allclose(found.without()[0], seen(WORLD).without()[0], atol=1e-2), "saboteur: without latents"


# What was learned


def learned(world, **options):
    data = simulate(world, 200, seed=1, progress=False, **options)
    embedding = {"embedding": nn.Sequential(nn.Flatten(), nn.LazyLinear(3))} if data.n_events is None else {}
    return fit(
        RatioEstimator.from_data(data, **embedding), nre, data, seed=1, max_epochs=1, gold_check=False, progress=False
    ).estimator


@pytest.mark.parametrize("name", ["one event", "runs", "events of runs", "designs"])
def test_learned_likelihoods_against_a_loop(name):
    world, design = (TOY, PHI) if name == "designs" else (WORLD if name == "one event" else POISSON, None)
    anywhere = {"design": UniformPrior(TOY.designs)} if name == "designs" else {}
    head = learned(WORLD if name == "events of runs" else world, **anywhere)
    estimator = of_runs(head, world)
    assert isinstance(estimator, RunLikelihood) == (name == "events of runs")
    found, others = seen(world, design, 20, 32, read=reader(estimator)), points(world.prior, 32, 3, 1)
    options = {} if found.rows.n_events is None else {"n_events": found.rows.n_events[:, None]}
    at = None if design is None else design[None, None]
    with torch.no_grad():
        value = estimator.log_likelihood(others, found.rows.x[:, None], at, **options).double()
    assert torch.allclose(found.without()[0], value.logsumexp(1), atol=1e-4) and value.shape == (20, 32)
    assert not torch.allclose(found.without()[0], value.logsumexp(1).roll(1), atol=1e-4)


def test_who_reads_runs():
    events = Events(TOY, 20)
    assert of_runs(events, events) is events and isinstance(of_runs(TOY, events), RunLikelihood)
    again = Events(TOY, 20)
    assert of_runs(again, events) is again and of_runs(TOY, TOY) is TOY
    assert same(seen(events, PHI, 12, read=reader(of_runs(TOY, events))), seen(events, PHI, 12, read=reader(again)))
