from functools import partial

import numpy as np
import pytest
import torch
from measures import z_of_mean
from runs import BOX, WORLD, bits, rows
from torch.distributions import Beta, Independent, MultivariateNormal, Uniform

from sbi_core import InputError, Parameter, Simulations, TrainingError, UniformPrior, infer, simulate
from sbi_core.estimators import Batch, LikelihoodEstimator, PosteriorEstimator, RatioEstimator, fit, load_estimator, npe
from sbi_core.seeding import seeded
from sbi_core.simulators import GaltonBoard

NARROW = (Parameter("a", 0, 1),)


def trained(data, **options):
    steps = {"max_epochs": 30, "batch_size": 200, "learning_rate": 1e-2, "seed": 1, "progress": False}
    head = PosteriorEstimator.from_data(data, transforms=2, flow_hidden=16, **options)
    return fit(head, npe, data, **steps).estimator


def at_the_edge(n=2000, seed=1):
    """x ~ N(a, 0.3^2), a uniform on [0, 1]: the posterior is a cut Gaussian."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform(0, 1, (n, 1))
    x = theta + 0.3 * rng.standard_normal((n, 1))
    return Simulations.from_arrays(theta, x, parameters=NARROW, proposal=UniformPrior(NARROW))


@pytest.fixture(scope="module")
def edge():
    return trained(at_the_edge(), flow="nsf")


@pytest.fixture(scope="module")
def gaussian():
    return trained(rows(2000), flow="maf")


# Accuracy


def test_it_integrates_to_one_over_the_support_and_holds_nothing_beyond(edge):
    grid = ((torch.arange(20_000).double() + 0.5) / 20_000)[:, None]
    with torch.no_grad():
        density = edge.log_posterior(grid, torch.tensor([0.9]).double()).double().exp()
        beyond = edge.log_posterior(torch.tensor([[-0.01], [1.01]]).double(), torch.tensor([0.9]).double())
    assert abs(density.mean() - 1) < 1e-3 and bool((beyond == -torch.inf).all())
    assert abs(density[:15_000].sum() / 20_000 - 1) > 0.1, "saboteur: part of the support"


def total_variation(estimator, x, at):
    grid = ((torch.arange(2000).double() + 0.5) / 2000)[:, None]
    exact = torch.exp(-(((at - grid[:, 0]) / 0.3) ** 2) / 2)
    with torch.no_grad():
        found = estimator.log_posterior(grid, torch.tensor([x]).double()).double().exp()
    return float((found / found.mean() - exact / exact.mean()).abs().mean() / 2)


@pytest.mark.parametrize("x", [-0.2, 0.5, 1.1])
def test_the_posterior_at_an_edge_is_the_exact_one(edge, x):
    """Over eight seeds of rows and training the total variation was 0.055 with a standard deviation of 0.014."""
    assert total_variation(edge, x, x) < 0.055 + 4 * 0.014
    assert not total_variation(edge, x, x + 0.3) < 0.055 + 4 * 0.014, "saboteur: another observation"


def test_mean_and_covariance_of_draws_are_the_exact_ones(gaussian):
    """theta ~ N(0, P), x ~ N(theta, S): mean P / (P + S) x, variance P S / (P + S).

    Over eight seeds the largest error of four means was 0.05 sd, up to 0.12, of four widths 5%, up to 8%.
    """
    prior, noise = float(WORLD.prior.variance[0]), 5.0
    x = torch.tensor([[1.0, -2.0], [0.0, 3.0]]).double()
    with seeded(1):
        drawn = gaussian.sample(x, 4000)
    assert drawn.shape == (2, 4000, 2) and drawn.dtype == torch.float64
    mean, sd = prior / (prior + noise) * x, (prior * noise / (prior + noise)) ** 0.5
    assert ((drawn.mean(1) - mean).abs() < 0.2 * sd).all()
    assert ((drawn.std(1) / sd - 1).abs() < 0.12).all()
    assert not ((drawn.mean(1) - mean.flip(1)).abs() < 0.2 * sd).all(), "saboteur: axes exchanged"


class Tilted(PosteriorEstimator):
    """log N(theta; x / 6 + eps_1 (1 + tanh(x)), 5 / 6 exp(eps_2 (1 + cos(x)))) in each axis, eps (B, 2) row by row."""

    def __init__(self, eps):
        torch.nn.Module.__init__(self)
        self.eps = eps

    def log_posterior(self, theta, x, design=None, *, n_events=None):
        mean = x / 6 + self.eps[:, :1] * (1 + torch.tanh(x))
        variance = 5 / 6 * torch.exp(self.eps[:, 1:] * (1 + torch.cos(x)))
        return -0.5 * ((theta - mean) ** 2 / variance + torch.log(variance)).sum(-1)


def test_the_exact_posterior_is_stationary():
    """At the exact density, the slope of the loss along perturbations that keep it normalised has mean zero."""
    data = rows(20_000)
    batch = Batch(data.theta, data.x)

    def significance(batch):
        eps = torch.zeros(len(batch), 2, dtype=torch.float64, requires_grad=True)
        return z_of_mean(torch.autograd.grad(npe(Tilted(eps), batch) * len(batch), eps)[0])

    assert significance(batch) < 4
    assert significance(Batch(batch.theta, 1.3 * batch.x)) > 4, "saboteur: x times 1.3"
    assert significance(Batch(batch.theta + 0.1, batch.x)) > 4, "saboteur: another proposal"


def test_what_infer_reads_is_relative_to_the_proposal():
    """Trained under a sloping proposal, read under the uniform prior."""
    rng = np.random.default_rng(1)
    proposal = Independent(Beta(*torch.tensor([[2.0], [1.0]]).double()), 1)
    theta = rng.beta(2, 1, (2000, 1))
    x = theta + 0.3 * rng.standard_normal(theta.shape)
    head = trained(Simulations.from_arrays(theta, x, parameters=NARROW, proposal=proposal), flow="nsf")
    grid = (np.arange(2000) + 0.5) / 2000
    exact = np.average(grid, weights=np.exp(-(((0.3 - grid) / 0.3) ** 2) / 2))
    right = infer(head, UniformPrior(NARROW), [0.3])
    assert abs(float(right.mean) - exact) < 0.04
    head.proposal = UniformPrior(NARROW)
    wrong = infer(head, UniformPrior(NARROW), [0.3])
    assert not abs(float(wrong.mean) - exact) < 0.04, "saboteur: as if drawn from the prior"


# The support


def test_draws_stay_inside_however_far_the_observation(edge):
    with seeded(1):
        drawn = edge.sample(torch.tensor([[-50.0], [0.5], [50.0]]).double(), 1000)
    assert bool(((drawn >= 0) & (drawn <= 1)).all())


def test_ends_of_the_support_are_finite_or_empty(edge):
    ends = torch.tensor([[0.0], [1.0]]).double()
    value = edge.log_likelihood(ends, torch.tensor([0.5]).double())
    assert not value.isnan().any()


# The contract


def test_x_and_theta_broadcast(gaussian):
    data = rows(6)
    with torch.no_grad():
        table = gaussian.log_likelihood(data.theta[:, None], data.x[None, :4])
        one = gaussian.observe(data.x)(data.theta)
    assert table.shape == (6, 4) and torch.allclose(table.diagonal(), one[:4], atol=1e-5)


def test_it_returns_from_its_folder(gaussian, tmp_path):
    back = load_estimator(gaussian.save(tmp_path))
    data = rows(5)
    assert bits(back) == bits(gaussian) and back.options == gaussian.options
    assert torch.equal(back.log_likelihood(data.theta, data.x), gaussian.log_likelihood(data.theta, data.x))


def test_labels_are_read_too():
    data = simulate(GaltonBoard(), 100, seed=1, progress=False)
    head = trained(data, flow="maf")
    assert head.log_likelihood(data.theta, data.x).shape == (100,)


@pytest.mark.parametrize("head", [RatioEstimator, LikelihoodEstimator])
def test_other_heads_are_refused(head):
    with pytest.raises(TrainingError, match=f"needs a density of theta, and {head.__name__} is none"):
        fit(head.from_data(rows(100)), npe, rows(100), seed=1, progress=False)


def test_rows_without_a_proposal_are_refused():
    data = Simulations.from_arrays(rows(100).theta, rows(100).x, parameters=WORLD.parameters)
    with pytest.raises(InputError, match="which density theta was drawn from"):
        trained(data)
    head = PosteriorEstimator.from_data(data, proposal=WORLD.prior)
    assert np.isfinite(fit(head, npe, data, seed=1, max_epochs=1, progress=False).history["validation"]).all()


def test_rows_from_another_proposal_are_refused():
    head = PosteriorEstimator.from_data(at_the_edge(100))
    other = Independent(Uniform(torch.zeros(1).double(), torch.ones(1).double()), 1)
    data = at_the_edge(100)
    changed = Simulations.from_arrays(data.theta, data.x, parameters=NARROW, proposal=other)
    with pytest.raises(InputError, match="the rows come from"):
        fit(head, npe, changed, seed=1, progress=False)


def test_what_cannot_be_described_is_refused():
    with pytest.raises(InputError, match="whole numbers"):
        PosteriorEstimator([Parameter("n", 0, 5, integer=True)], (1,))
    strange = type("Strange", (MultivariateNormal,), {})(torch.zeros(2), torch.eye(2))
    with pytest.raises(InputError, match="cannot be written down"):
        PosteriorEstimator(BOX, (2,), proposal=strange)


def test_options_reach_the_flow():
    build = partial(PosteriorEstimator.from_data, rows(50))
    assert build(flow="maf").flow.width == 2 and build(transforms=1).options["transforms"] == 1
    with pytest.raises(InputError, match="nsf"):
        build(flow="nfs")
