"""The linear regression that heads start with, against closed forms and exact likelihoods."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from sbi_core import Parameter, Simulations, joint_score, simulate
from sbi_core.estimators import (
    LikelihoodEstimator,
    PosteriorEstimator,
    RatioEstimator,
    alices,
    fit,
    load_estimator,
    nle,
    nre,
    scandal,
)
from sbi_core.estimators.regression import WIDEST, GaussianRegression, refine
from sbi_core.simulators import LinearGaussian, TwoMoons

SLOPE = torch.tensor([[1.0, -2.0], [0.5, 0.0], [0.0, 3.0]])
SHIFT = torch.tensor([1.0, 0.0, -2.0])
ROOT = torch.tensor([[0.5, 0.0, 0.0], [0.3, 0.2, 0.0], [-0.1, 0.1, 0.4]])
WORLD = LinearGaussian(10)


def rows(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    context = torch.randn(n, 2, generator=generator)
    return SHIFT + context @ SLOPE.T + torch.randn(n, 3, generator=generator) @ ROOT.T, context


class Standard:
    """The density of residuals that nothing was learned of."""

    def log_prob(self, value, context):
        return MultivariateNormal(torch.zeros(3), torch.eye(3)).log_prob(value)

    def sample(self, context, n):
        return torch.randn(len(context), n, 3)


def test_it_finds_slope_shift_and_covariance():
    n = 40_000
    regression = GaussianRegression(3, 2)
    regression.adapt(*rows(n))
    errors = ROOT.square().sum(1).sqrt() / n**0.5
    back = torch.linalg.inv(regression.root)
    assert bool(((back @ regression.slope - SLOPE).abs() < 5 * errors[:, None]).all())
    assert bool(((back @ regression.shift - SHIFT).abs() < 5 * errors).all())
    assert bool((((back @ regression.slope).roll(1, 0) - SLOPE).abs() > 5 * errors[:, None]).any())
    value, context = rows(50, seed=1)
    exact = MultivariateNormal(SHIFT + context @ SLOPE.T, ROOT @ ROOT.T).log_prob(value)
    found = regression.log_prob(Standard(), value, context)
    assert (found - exact).abs().mean() < 0.05
    regression.alone = True
    assert torch.allclose(regression.log_prob(None, value, context), found, atol=1e-5)


def test_samples_have_its_mean_and_covariance():
    regression, n = GaussianRegression(3, 2), 40_000
    regression.adapt(*rows(2000))
    context = torch.tensor([[0.0, 0.0], [2.0, -1.0]])
    torch.manual_seed(0)
    drawn = regression.sample(Standard(), context, n)
    white = torch.stack([regression.look(value.float())(given) for value, given in zip(drawn, context, strict=True)])
    assert drawn.dtype == torch.float64 and white.mean(1).abs().max() < 5 / n**0.5
    for part in white:
        assert (torch.cov(part.T) - torch.eye(3)).abs().max() < 5 * (2 / n) ** 0.5
    other = regression.look(drawn[1].float())(context[0])
    assert other.mean(0).abs().max() > 1, "the residual of another context is not centred"


@pytest.mark.parametrize(("n", "width"), [(29, 3), (2000, WIDEST + 1)])
def test_few_rows_or_many_columns_leave_it_alone(n, width):
    regression = GaussianRegression(width, 2)
    torch.manual_seed(0)
    regression.adapt(torch.randn(n, width) + 3, torch.randn(n, 2))
    assert not regression.used
    value = torch.randn(4, width)
    assert torch.equal(regression.look(value)(torch.randn(4, 2)), value)


def test_copies_of_a_column_do_no_harm():
    value, context = rows(500)
    regression = GaussianRegression(4, 4)
    regression.adapt(torch.cat([value, value[:, :1]], 1), torch.cat([context, context], 1))
    found = regression.look(torch.cat([value, value[:, :1]], 1))(torch.cat([context, context], 1))
    assert bool(found.isfinite().all()) and found.std(0)[:3].sub(1).abs().max() < 0.1


def test_refining_reaches_the_minimum_or_changes_nothing():
    regression = GaussianRegression(3, 2)
    regression.adapt(*rows(2000))
    before = [part.clone() for part in regression.buffers()]
    refine(regression, lambda: (regression.shift - 7).square().sum() + (regression.slope + 1).square().sum())
    assert torch.allclose(regression.shift, torch.full((3,), 7.0), atol=1e-3) and not regression.alone
    assert torch.allclose(regression.slope, torch.full((3, 2), -1.0), atol=1e-3)
    assert not any(part.requires_grad for part in regression.buffers())
    changed = [part.clone() for part in regression.buffers()]
    refine(regression, lambda: regression.shift.sum() * torch.nan)
    assert all(map(torch.equal, regression.buffers(), changed)) and not torch.equal(changed[1], before[1])


def error(estimator, test):
    """Mean squared error of log r over pairs of thetas of the prior."""
    other = test.theta.roll(1, 0)
    with torch.no_grad():
        found = estimator.log_likelihood(test.theta, test.x) - estimator.log_likelihood(other, test.x)
    exact = WORLD.log_likelihood(test.theta, test.x) - WORLD.log_likelihood(other, test.x)
    return float((found - exact).square().mean())


def least_squares(data, test):
    """The same of the linear regression of the joint score on (1, x, theta)."""
    both = [torch.cat([torch.ones(len(d), 1), d.x, d.theta], 1).double() for d in (data, test)]
    found = torch.linalg.lstsq(both[0], joint_score(WORLD, data)).solution
    constant, by_x, by_theta = found.split([1, 10, 10])

    def value(theta):
        return (theta * (constant + test.x.double() @ by_x + 0.5 * theta @ by_theta)).sum(1)

    other = test.theta.roll(1, 0)
    exact = WORLD.log_likelihood(test.theta, test.x) - WORLD.log_likelihood(other, test.x)
    return float((value(test.theta) - value(other) - exact).square().mean())


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_ten_dimensions_cost_what_linear_regression_costs(seed):
    data, test = (simulate(WORLD, n, seed=seed + s, progress=False) for n, s in ((1000, 0), (10_000, 100)))
    options = {"simulator": WORLD, "seed": seed, "progress": False}
    best = least_squares(data, test)
    run = fit(RatioEstimator.from_data(data, hidden=[16]), alices, data, **options)
    plain = RatioEstimator.from_data(data, hidden=[16], regression=False)
    without = fit(plain, alices, data, max_epochs=30, **options)
    assert error(run.estimator, test) < 2 * best < 0.2 * error(without.estimator, test)


def test_gold_of_every_row_counts(monkeypatch):
    data, test = (simulate(WORLD, n, seed=s, progress=False) for n, s in ((10_000, 0), (10_000, 100)))
    best = least_squares(data, test)

    def measured():
        head = LikelihoodEstimator.from_data(data, transforms=1)
        run = fit(head, scandal, data, simulator=WORLD, seed=0, progress=False, max_epochs=2)
        return error(run.estimator, test)

    assert measured() < 1.3 * best
    monkeypatch.setattr("sbi_core.estimators.start.REFINED", 5000)
    assert measured() > 1.3 * best, "saboteur: every second row"


def test_a_density_that_nothing_can_be_added_to_is_the_regression():
    data, test = (simulate(WORLD, n, seed=s, progress=False) for n, s in ((500, 0), (2000, 1)))
    run = fit(LikelihoodEstimator.from_data(data, transforms=1), nle, data, seed=0, progress=False, max_epochs=10)
    excess = WORLD.log_likelihood(test.theta, test.x) - run.estimator.log_likelihood(test.theta, test.x).detach()
    parameters = 10 + 100 + 55
    assert 0 < excess.mean() < 2 * parameters / (2 * 450), "nats, where theory has parameters / (2 rows)"
    start = LikelihoodEstimator.from_data(data)
    start.adapt(data)
    with torch.no_grad():
        start.regression.slope.mul_(0.5)
        wrong = WORLD.log_likelihood(test.theta, test.x) - start.log_likelihood(test.theta, test.x)
    assert wrong.mean() > excess.mean()


def test_a_start_that_is_wrong_is_corrected():
    """Two moons: one column of x is linear in theta, the other bends, and both have moons for noise."""
    data, test = (simulate(TwoMoons(), n, seed=s, progress=False) for n, s in ((1000, 0), (1000, 1)))
    run = fit(LikelihoodEstimator.from_data(data, transforms=2), nle, data, seed=0, progress=False, max_epochs=30)
    start = LikelihoodEstimator.from_data(data, transforms=2)
    start.adapt(data)
    with torch.no_grad():
        gain = run.estimator.log_likelihood(test.theta, test.x) - start.log_likelihood(test.theta, test.x)
    assert run.best_epoch > 0 and gain.mean() > 5 * gain.std() / math.sqrt(len(gain))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_a_ratio_network_reads_the_residuals(seed):
    """The moons are narrow: theta is known a hundred times better than the prior knows it."""
    world = TwoMoons()
    data, test = (simulate(world, n, seed=seed + s, progress=False) for n, s in ((1000, 0), (2000, 100)))
    alt = torch.stack([test.theta.roll(k, 0) for k in range(50)], 1)

    def loss(estimator):
        with torch.no_grad():
            return float(-torch.log_softmax(estimator.observe(test.x[:, None])(alt).double(), 1)[:, 0].mean())

    def excess(**options):
        run = fit(RatioEstimator.from_data(data, **options), nre, data, seed=seed, max_epochs=100, progress=False)
        return loss(run.estimator) - loss(world)

    assert 2 * excess() < excess(regression=False)


def bent(n, seed, sharpness):
    """Two parameters seen through tanh, with little noise."""
    generator = torch.Generator().manual_seed(seed)
    theta = 6 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 3
    mean = torch.tanh(sharpness * theta) / sharpness
    x = mean + 0.1 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    return Simulations.from_arrays(theta, x, parameters=[Parameter("a", -3, 3), Parameter("b", -3, 3)])


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_a_trial_decides_whether_it_is_used(seed):
    for sharpness, used in ((0.01, True), (5.0, False)):
        data = bent(1000, seed, sharpness)
        head = LikelihoodEstimator.from_data(data, flow="maf", transforms=2, flow_hidden=16)
        run = fit(head, nle, data, seed=seed, batch_size=50, max_epochs=100, patience=1, progress=False)
        assert run.estimator.regression.used == used


def test_a_training_that_goes_on_is_not_tried_again(tmp_path):
    data, calls = bent(200, 0, 0.01), []

    def counted(estimator, batch):
        calls.append(estimator.regression.used)
        return nle(estimator, batch)

    head = LikelihoodEstimator.from_data(data, transforms=1, flow_hidden=4)
    options = {"seed": 1, "max_epochs": 2, "progress": False, "checkpoint": tmp_path}
    first = fit(head, counted, data, **options)
    assert False in calls, "the trial without it"
    calls.clear()
    again = fit(head, counted, data, **options)
    assert not calls and again.history == first.history
    for one, two in zip(first.estimator.state_dict().values(), again.estimator.state_dict().values(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("head", [RatioEstimator, LikelihoodEstimator, PosteriorEstimator])
def test_it_is_saved_with_its_head(head, tmp_path):
    data = simulate(LinearGaussian(2), 200, seed=0, progress=False)
    estimator = head.from_data(data)
    estimator.adapt(data)
    estimator.trained.fill_(True)
    again = load_estimator(estimator.save(tmp_path / "model"))
    assert again.regression.used
    values = [part.log_likelihood(data.theta, data.x) for part in (estimator, again)]
    assert torch.equal(*values)
