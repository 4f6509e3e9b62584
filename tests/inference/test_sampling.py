"""Draws against exact answers, and what is said where they cannot be trusted."""

import math
import time

import numpy as np
import pytest
import torch
from measures import z_of_mean
from torch.distributions import Independent, MultivariateNormal, Normal

from sbi_core import InputError, Parameter, Simulator, UniformPrior, infer
from sbi_core.inference import SamplePosterior, hamilton, sampling
from sbi_core.inference.convergence import Convergence, convergence
from sbi_core.seeding import seeded
from sbi_core.simulators import LinearGaussian

METHODS = ("hmc", "importance")
X = torch.tensor([0.5, -1.0, 2.0, 0.3, 1.0]).double()


def offsets(posterior, exact, batch=()):
    """Largest distance of mean and variance from the exact ones, in standard errors of so many effective draws."""
    verdict = posterior.verdicts.get("chains") or posterior.verdicts["importance sampling"]
    number = [float(word) for word in verdict.replace(",", " ").split() if word.replace(".", "").isdigit()]
    effective = min(n for n in number if n > 100)
    mean = (posterior.mean - exact.mean).abs() / exact.stddev * effective**0.5
    variance = (posterior.variance / exact.variance - 1).abs() / (2 / effective) ** 0.5
    return float(torch.maximum(mean, variance).max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dims", [1, 5, pytest.param(10, marks=pytest.mark.slow)])
def test_the_posterior_is_the_exact_one(dims, method):
    world, x = LinearGaussian(dims), X.repeat(2)[:dims]
    posterior, exact = infer(world, world.prior, x, method=method, seed=1), world.posterior(x)
    assert isinstance(posterior, SamplePosterior) and posterior.flags == ()
    assert posterior.batch_shape == () and posterior.event_shape == (dims,) and posterior.seed == 1
    assert offsets(posterior, exact) < 4
    assert offsets(posterior, LinearGaussian(dims, prior_std=1.3).posterior(x)) > 4, "saboteur: another prior"
    with seeded(1):
        theta = exact.sample((5,))
    said = float(posterior.verdicts["normalisation"].split()[4])
    assert ((posterior.log_prob(theta) - exact.log_prob(theta)).abs() < 4 * said).all() and said < 0.1
    marginal = MultivariateNormal(torch.zeros(dims).double(), torch.eye(dims).double() * (1 + world.variance))
    assert abs(float(posterior.verdicts["normalisation"].split()[-1]) - float(marginal.log_prob(x))) < 4 * said + 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_each_row_of_a_batch_has_its_own(method):
    world = LinearGaussian(3)
    x = torch.stack([X[:3], X[:3] - 4, X[:3] + 2])
    posterior = infer(world, world.prior, x, batch=True, method=method, seed=1)
    assert posterior.batch_shape == (3,) and posterior.sample((7,)).shape == (7, 3, 3)
    exact = [world.posterior(row) for row in x]
    together = Independent(Normal(torch.stack([e.mean for e in exact]), torch.stack([e.stddev for e in exact])), 1)
    assert offsets(posterior, together) < 4
    turned = Independent(Normal(together.mean.roll(1, 0), together.stddev), 1)
    assert offsets(posterior, turned) > 4, "saboteur: rows exchanged"
    theta = torch.zeros(4, 3, 3).double()
    wanted = torch.stack([e.log_prob(theta[:, 0]) for e in exact], 1)
    assert torch.allclose(posterior.log_prob(theta), wanted, atol=0.1)
    low, high = posterior.credible_interval(0.9)
    assert low.shape == (3, 3) and torch.allclose(
        (high - low) / (2 * 1.645 * together.stddev), torch.ones(3, 3).double(), atol=0.15
    )


def test_many_draws_of_equal_theta():
    world = LinearGaussian(3)
    x = world.sample(torch.full((50, 3), 0.4).double(), None, torch.Generator().manual_seed(1))[0]
    assert offsets(infer(world, world.prior, x, iid=True, seed=1), world.posterior(x)) < 4


def test_a_posterior_is_the_next_prior():
    world = LinearGaussian(3)
    x = torch.stack([X[:3], X[:3] - 1])
    first = infer(world, world.prior, x[0], seed=1)
    second = infer(world, first, x[1], seed=2)
    assert offsets(second, world.posterior(x)) < 4
    assert offsets(infer(world, first, x[0], seed=2), world.posterior(x)) > 4, "saboteur: the first again"


def test_the_seed_fixes_all_and_nothing_else_is_touched():
    world = LinearGaussian(3)
    before = torch.get_rng_state()
    one, same, other = (infer(world, world.prior, X[:3], seed=seed, n=20) for seed in (1, 1, 2))
    assert torch.equal(one.draws, same.draws) and not torch.equal(one.draws, other.draws)
    assert torch.equal(torch.get_rng_state(), before)
    free = infer(world, world.prior, X[:3], n=20)
    assert torch.equal(free.draws, infer(world, world.prior, X[:3], seed=free.seed, n=20).draws)


class TwoPlaces(Simulator):
    """x is of no account: the posterior has modes of weights 3 : 1, a hundred widths apart."""

    parameters = tuple(Parameter(name, -3, 3) for name in "abc")
    x_shape = (1,)

    def sample(self, theta, design, generator):
        return theta[:, :1], None

    def log_likelihood(self, theta, x, design=None):
        each = [-(((theta - at) / 0.02) ** 2).sum(-1) / 2 for at in (-1.0, 1.0)]
        return torch.logaddexp(each[0] + math.log(3), each[1])


def test_modes_have_their_weights():
    world = TwoPlaces()
    posterior = infer(world, world.prior, [0.0], seed=1)
    assert posterior.flags == () and "agree" in posterior.verdicts["chains"]
    effective = float(posterior.verdicts["chains"].split("effective draws ")[1].split()[0])
    share = (posterior.draws[..., 0] > 0).double().mean()
    assert abs(float(share) - 0.25) < 4 * (0.25 * 0.75 / effective) ** 0.5
    low, high = posterior.credible_interval(0.9)
    assert (low < -0.9).all() and (high > 0.9).all()


def test_chains_that_disagree_learn_from_what_they_drew(monkeypatch):
    """A bent density in a population's mixture of few parts: the first draws make a better one, and are not kept."""

    class Bent(TwoPlaces):
        parameters = (Parameter("a", -3, 3), Parameter("b", -3, 3))

        def log_likelihood(self, theta, x, design=None):
            a, b = theta.unbind(-1)
            return -((b - a.square() + 1.5) ** 2) / (2 * 0.02**2) + 0.0 * x[..., 0]

    world, fits = Bent(), []
    refit = sampling.refit
    monkeypatch.setattr(sampling, "CHEAP", 0)  # as few jumps as many chains make
    monkeypatch.setattr(sampling, "refit", lambda *given: fits.append(given[3].shape) or refit(*given))
    posterior = infer(world, world.prior, [0.0], seed=1, method="hmc")
    assert fits == [(1, 20 * sampling.FIRST, 2)] and posterior.flags == ()
    edge = 4.5**0.5  # |a| is at most that, and nearly uniform up to there
    effective = float(posterior.verdicts["chains"].split("effective draws ")[1].split()[0])
    a = posterior.draws[..., 0].abs()
    assert abs(float(a.mean()) - edge / 2) < 4 * edge / 12**0.5 / effective**0.5
    assert abs(float(a.clamp(max=1.5).mean()) - edge / 2) > 4 * edge / 12**0.5 / effective**0.5, "saboteur: cut"
    infer(world, world.prior, [0.0], seed=1, method="hmc", n=50)
    assert len(fits) == 1, "so few are drawn as they come"


def test_f66_chains_that_stay_in_their_modes_disagree(monkeypatch):
    """Without jumps each chain stays where it began, and the result says so; of one chain nothing can be said."""
    world = TwoPlaces()
    stay = lambda points, mixture, jumps, heat: (points, torch.ones(1))  # noqa: E731
    monkeypatch.setattr("sbi_core.inference.hamilton._jump", stay)
    posterior = infer(world, world.prior, [0.0], seed=1, n=200)
    assert "DISAGREE" in posterior.verdicts["chains"] and any("cannot be trusted" in flag for flag in posterior.flags)
    alone = infer(world, world.prior, [0.0], seed=1, n=200, chains=1)
    assert "at least 2 chains" in alone.verdicts["chains"] and any("at least 2 chains" in flag for flag in alone.flags)


def test_trajectories_rest_where_jumps_renew_the_chains(monkeypatch):
    world, calls, trajectory = LinearGaussian(3), [], hamilton._trajectory

    def counted(target, points, *given):
        calls.append(points.u.shape[1])
        return trajectory(target, points, *given)

    monkeypatch.setattr(hamilton, "_trajectory", counted)
    for renewed, rounds in ((sampling.RENEWED, 10), (1.0, 40)):
        monkeypatch.setattr(sampling, "RENEWED", renewed)
        calls.clear()
        infer(world, world.prior, X[:3], method="hmc", chains=20, n=40, seed=1)
        assert calls.count(20) == rounds


def test_convergence_sees_what_it_should():
    with seeded(1):
        draws = torch.randn(4, 500, 1, 3).double()
    good = convergence(draws)
    assert good.good and 1500 < good.effective < 2600 and str(good).startswith("agree: R-hat 1.00")
    shifted, wider = draws.clone(), draws.clone()
    shifted[0] += 1
    wider[0] *= 3
    for bad in (shifted, wider):
        assert not convergence(bad).good and "DISAGREE" in str(convergence(bad))
    few = Convergence(np.array([[1.005]]), np.array([[390.0]]), np.array([[500.0]]))
    assert not few.good and "too few" in str(few)


def test_draws_that_count_differently():
    """A weighted posterior against the same draws repeated as often as they count."""
    with seeded(1):
        draws = torch.randn(1, 400, 2).double()
    often = torch.where(draws[0, :, 0] > 0, 4, 1)
    axes = (Parameter("a", -9, 9), Parameter("b", -9, 9))
    options = {"support": UniformPrior(axes).support, "verdicts": {}}
    weighted = SamplePosterior(axes, draws, log_weight=often.double().log()[None], **options)
    repeated = SamplePosterior(axes, draws.repeat_interleave(often, 1), **options)
    assert torch.allclose(weighted.mean, repeated.mean) and torch.allclose(weighted.variance, repeated.variance)
    for level in (0.5, 0.9):
        ends = zip(weighted.credible_interval(level), repeated.credible_interval(level), strict=True)
        assert all(torch.allclose(a, b, atol=0.05) for a, b in ends)
    with seeded(2):
        assert z_of_mean(weighted.sample((20_000,)), repeated.mean) < 4
        assert z_of_mean(weighted.sample((20_000,)), draws[0].mean(0)) > 4, "saboteur: all count the same"
    with pytest.raises(InputError, match="density of this posterior is not known"):
        weighted.log_prob(torch.zeros(2))


class Slow(LinearGaussian):
    def log_likelihood(self, theta, x, design=None):
        time.sleep(0.02)
        return super().log_likelihood(theta, x, design)


def test_a_time_limit_ends_the_chains_and_is_said(monkeypatch):
    monkeypatch.setattr(sampling, "FIRST", 10_000)
    world = Slow(3)
    started = time.monotonic()
    posterior = infer(world, world.prior, X[:3], seed=1, time_limit=4.0)
    assert time.monotonic() - started < 12
    assert any("time limit of 4 s" in flag for flag in posterior.flags) and len(posterior.draws[0]) < 1000
    with pytest.raises(InputError, match="time_limit"):
        infer(world, world.prior, X[:3], seed=1, time_limit=0.01)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "hcm"}, ["method = 'hcm'", "did you mean 'hmc'"]),
        ({"method": "grid"}, ["5 parameters", "at most 3", "hmc"]),
        ({"chains": 0}, ["chains = 0"]),
        ({"n": 0}, ["n = 0"]),
        ({"time_limit": -1.0}, ["time_limit = -1"]),
    ],
)
def test_options_that_do_not_fit(options, words):
    world = LinearGaussian(5)
    with pytest.raises(InputError) as caught:
        infer(world, world.prior, X, **options)
    assert all(word in str(caught.value) for word in words)


def test_an_impossible_observation():
    class Never(LinearGaussian):
        def log_likelihood(self, theta, x, design=None):
            return super().log_likelihood(theta, x, design) - torch.inf

    for method in METHODS:
        with pytest.raises(InputError, match="zero, or not a number, everywhere"):
            infer(Never(3), LinearGaussian(3).prior, X[:3], method=method)


@pytest.mark.parametrize("method", ["grid", "hmc"])
def test_parts_of_a_posterior(method):
    """The highest point, regions of highest density and marginals, against those of a normal distribution."""
    world = LinearGaussian(matrix=[[1.0, 0.5, 0.0], [0.0, 1.0, 0.5], [0.3, 0.0, 1.0]])
    posterior, exact = infer(world, world.prior, X[:3], method=method, seed=1), world.posterior(X[:3])
    close = 0.5 if method == "grid" else 1e-3
    assert ((posterior.mode - exact.mean).abs() < close * exact.stddev).all()
    assert not posterior.mode.requires_grad
    with seeded(2):
        theta = exact.sample((20_000,))
    for level in (0.5, 0.9):
        inside = posterior.contains(theta, level).double().mean()
        assert abs(float(inside) - level) < 0.03
    several, one = posterior.marginal(["theta_3", "theta_1"]), posterior.marginal(["theta_2"])
    assert [p.name for p in several.parameters] == ["theta_3", "theta_1"] and several.event_shape == (2,)
    assert torch.allclose(several.mean, posterior.mean[[2, 0]]) and torch.allclose(
        one.variance, posterior.variance[1:2]
    )
    asked = infer(world, world.prior, X[:3], method=method, seed=1, of=["theta_2"])
    assert torch.allclose(asked.mean, one.mean) and asked.event_shape == (1,)
    with pytest.raises(InputError, match="there is no parameter 'theta_4'"):
        infer(world, world.prior, X[:3], of=["theta_4"])
    with pytest.raises(InputError, match="different parameter names"):
        posterior.marginal(["theta_1", "theta_1"])


@pytest.mark.parametrize("method", ["grid", "hmc"])
def test_auxiliary_measurements(method):
    """A constraint is a further observation, here of theta_2 and of the pair (theta_3, theta_1)."""
    world = LinearGaussian(3)
    pair = MultivariateNormal(torch.tensor([1.0, 0.0]).double(), torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double())
    measured = {"theta_2": Normal(torch.tensor(0.7).double(), 0.5), ("theta_3", "theta_1"): pair}
    posterior = infer(world, world.prior, X[:3], constraints=measured, method=method, seed=1)
    before = world.posterior(X[:3])
    extra = torch.zeros(3, 3).double()
    extra[1, 1] = 4.0
    places = torch.tensor([2, 0])
    extra[places[:, None], places] = pair.precision_matrix
    precision = before.precision_matrix + extra
    pull = before.precision_matrix @ before.mean + torch.tensor([0.0, 4 * 0.7, 0.0]).double()
    pull[places] += pair.precision_matrix @ pair.mean
    exact = MultivariateNormal(torch.linalg.solve(precision, pull), precision_matrix=precision)
    assert ((posterior.mean - exact.mean).abs() < 0.1 * exact.stddev).all()
    assert ((posterior.stddev / exact.stddev).log().abs() < 0.06).all()
    assert not ((posterior.mean - before.mean).abs() < 0.1 * exact.stddev).all(), "saboteur: no constraint"
    for wrong, words in (({"theta": measured["theta_2"]}, "no parameter 'theta'"), ({"theta_1": pair}, "event shape")):
        with pytest.raises(InputError, match=words):
            infer(world, world.prior, X[:3], constraints=wrong)


def test_the_members_of_an_ensemble_are_read_too():
    class Two(LinearGaussian):
        members = (LinearGaussian(3), LinearGaussian(3, noise_std=2.0))

    posterior = infer(Two(3), LinearGaussian(3).prior, X[:3], seed=1, n=50, of=["theta_1"])
    assert [member.event_shape for member in posterior.members] == [(1,), (1,)] and posterior.seed == 1
    assert "posterior sd between the means of 2 trainings" in posterior.verdicts["spread of trainings"]
    found = posterior.summary(0.9)["theta_1"]
    ends = [member.summary(0.9)["theta_1"] for member in posterior.members]
    for name in ("mean", "low", "high"):
        assert found[f"{name}_training"] == pytest.approx(np.std([end[name] for end in ends], ddof=1))
    assert "mean_training" not in posterior.members[0].summary()["theta_1"]
