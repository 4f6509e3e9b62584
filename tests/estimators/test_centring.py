"""What f gets wrong in all x alike is found, taken away and kept; what is right stays."""

import math
from functools import partial

import pytest
import torch

from sbi_core import Parameter, TrainingError, UniformPrior, infer, simulate
from sbi_core.estimators import Ensemble, RatioEstimator, alices, carl, fit, load_estimator
from sbi_core.estimators.centring import Centring
from sbi_core.simulations import Info, Simulations
from sbi_core.simulators import DeathProcess

AXES = (Parameter("a", 0.001, 0.2), Parameter("b", -1.5, -0.5))


def places(n, seed, axes=AXES):
    torch.manual_seed(seed)
    low, high = (torch.tensor([getattr(axis, end) for axis in axes], dtype=torch.float64) for end in ("low", "high"))
    return low + (high - low) * torch.rand(n, len(axes), dtype=torch.float64)


def slope_of(function, theta):
    theta = theta.clone().requires_grad_()
    return torch.autograd.grad(function(theta).sum(), theta)[0]


def bias(theta):
    """A wrong term in nats, steep towards a = 0."""
    return 0.3 * theta[:, 0].log() * (theta[:, 1] + 1) + 0.2 * torch.sin(4 * theta[:, 1])


def noise(theta, seed):
    """True scores of mean 0: from x ~ N(g(theta), 1) with g = (3 ln a + b, 2 b)."""
    torch.manual_seed(seed)
    e = torch.randn(len(theta), 2, dtype=torch.float64)
    return torch.stack([3 / theta[:, 0] * e[:, 0], e[:, 0] + 2 * e[:, 1]], 1)


def excess(centring, theta, wrong):
    """Mean over theta of |gradient of (c - wrong)|^2 in units of the true scores' covariance, per parameter."""
    off = slope_of(centring, theta) - slope_of(wrong, theta)
    first = off[:, 0] * theta[:, 0] / 3
    return float(((first**2) + ((off[:, 1] - first) / 2) ** 2).mean()) / 2


def test_a_wrong_term_of_theta_is_found() -> None:
    theta, found = places(20_000, 1), Centring(AXES)
    assert found.degree == 0 and bool((found(theta) == 0).all())
    found.fit(theta, noise(theta, 2) + slope_of(bias, theta))
    fresh = places(1000, 3)
    assert found.degree >= 3
    before, after = excess(lambda at: 0 * at.sum(-1), fresh, bias), excess(found, fresh, bias)
    assert before > 0.01 and after < 2 * len(found.powers) / 40_000 < 0.3 * before
    lopsided = Centring(AXES)
    lopsided.logarithmic = [False, False]
    lopsided.fit(theta, noise(theta, 2) + slope_of(bias, theta))
    assert excess(lopsided, fresh, bias) > 1.5 * after, "saboteur: in a itself the term is no short polynomial"


def test_what_is_right_stays_about_as_it_is() -> None:
    degrees, costs = [], []
    for seed in range(40):
        theta, found = places(2000, seed), Centring(AXES)
        found.fit(theta, noise(theta, 100 + seed))
        degrees.append(found.degree)
        costs.append(excess(found, theta, lambda at: 0 * at.sum(-1)))
    assert degrees.count(0) > 25 and sum(costs) / 40 < 0.02, "a few terms of a two-thousandth each, more at the edge"


def test_slopes_are_those_of_the_terms_and_end_with_the_rows() -> None:
    axes, designs = (*AXES, Parameter("c", -math.inf, math.inf)), (Parameter("d", 1, 100),)
    found, n = Centring(axes, designs), 50
    theta = torch.cat([places(n, 1), torch.randn(n, 1, dtype=torch.float64)], 1)
    design = 1 + 99 * torch.rand(n, 1, dtype=torch.float64)
    found.ends.copy_(torch.stack([torch.cat([theta, design], 1).amin(0), torch.cat([theta, design], 1).amax(0)]))
    torch.manual_seed(2)
    found.coefficients.normal_()
    expected = slope_of(lambda at: found(at, design), theta)
    given = found._given(theta, design)
    inside = ((given > found.ends[0]) & (given < found.ends[1])).all(1)
    place, slope = (torch.stack(each, -1) for each in zip(*found._places(given), strict=True))
    slopes = slope[:, :3] * (found._slopes(place) @ found.coefficients)
    torch.testing.assert_close(slopes[inside], expected[inside])
    step = torch.tensor([1e-7, 0.0, 0.0], dtype=torch.float64)
    numerical = (found(theta + step, design) - found(theta - step, design)) / 2e-7
    torch.testing.assert_close(numerical[inside], expected[inside, 0], rtol=1e-4, atol=1e-4)
    above = theta.clone()
    above[:, 2] = 100.0
    farther = above + torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    assert torch.equal(found(above, design), found(farther, design)), "constant beyond the rows"
    assert bool((slope_of(lambda at: found(at, design), above)[:, 2] == 0).all())
    assert all(bool(row[:3].any()) for row in found.powers), "no term of the design alone"
    assert found(theta[:, None], design).shape == (n, n)
    assert len(Centring([Parameter(f"p{k}", 0, 1) for k in range(30)]).powers) == 30


@pytest.mark.parametrize("low", [1e-2, 1e-4, 1e-8])
def test_scores_that_vary_over_many_orders(low) -> None:
    """The score of ln a, which is log-uniform, has noise 1 and a bias of .2 (ln a)^2 / (ln low)^2 everywhere."""
    axes = (Parameter("a", low, 1.0), Parameter("b", 0, 1))
    torch.manual_seed(1)
    theta = torch.rand(5000, 2, dtype=torch.float64)
    theta[:, 0] = low ** theta[:, 0]
    share = theta[:, 0].log() / math.log(low)
    score = torch.randn(5000, 2, dtype=torch.float64)
    score[:, 0] = (score[:, 0] + 0.4 * share**2) / theta[:, 0]
    found = Centring(axes)
    found.fit(theta, score)
    off = slope_of(found, theta)[:, 0] * theta[:, 0] - 0.4 * share**2
    assert float(off.square().mean().sqrt()) < 0.06 < 0.5 * float((0.4 * share**2).square().mean().sqrt())


def test_an_error_that_is_sure_is_found_each_time() -> None:
    axes, left = (Parameter("a", -1, 1),), []
    for seed in range(30):
        theta, found = places(2000, seed, axes), Centring(axes)
        found.fit(theta, torch.randn(2000, 1, dtype=torch.float64) + 0.3)
        left.append(float((slope_of(found, theta) - 0.3).square().mean()) ** 0.5)
    assert max(left) < 0.15 and sum(left) / 30 < 0.05


@pytest.mark.parametrize("wrong", [0.0, math.nan, 1e200])
def test_scores_that_say_nothing_change_nothing(wrong) -> None:
    theta, found = places(200, 1), Centring(AXES)
    score = noise(theta, 1) if wrong else torch.zeros(200, 2)
    score[3] = wrong
    found.fit(theta, score)
    assert found.degree == 0


@pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")
def test_a_training_that_fails_says_so() -> None:
    head = RatioEstimator.from_data(world(300, 1), hidden=[4], regression=False, centred=True)
    with pytest.raises(TrainingError, match="not finite"):
        fit(head, carl, world(300, 1), learning_rate=1e30, max_epochs=5, progress=False)


@pytest.mark.parametrize("n", [5, 60])
def test_few_rows_and_columns_that_do_not_vary(n) -> None:
    theta = places(n, 1)
    theta[:, 1] = -1.0
    found = Centring(AXES)
    found.fit(theta, noise(theta, 1))
    assert bool(found(places(9, 2)).isfinite().all()) and found.degree <= n // 10


def test_terms_of_a_design_are_told_apart() -> None:
    axes, designs = (Parameter("a", -1, 1),), (Parameter("d", -1, 1),)
    theta, design = places(5000, 1, axes), places(5000, 2, designs)
    torch.manual_seed(3)
    found = Centring(axes, designs)
    found.fit(theta, torch.randn(5000, 1, dtype=torch.float64) + 0.5 * design, design)
    ends = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    for setting in (-0.8, 0.8):
        low, high = found(ends, torch.tensor([setting], dtype=torch.float64))
        assert float(high - low) == pytest.approx(2 * 0.5 * setting, abs=0.12)


def world(n, seed, slope=1.0):
    """x ~ N(theta, 1)."""
    theta = places(n, seed, (Parameter("m", -2, 2),))
    x = theta + torch.randn(n, 1, dtype=torch.float64)
    return Simulations(
        theta, x.float(), Info((Parameter("m", -2, 2),), proposal=UniformPrior((Parameter("m", -2, 2),)))
    )


class Biased(RatioEstimator):
    """The exact log ratio of `world`, and a wrong slope of .3 for all x alike."""

    def _learned(self, seen, design):
        x = seen.double() * self.x_scaler.scale + self.x_scaler.shift
        return lambda theta: -(x - theta).square().sum(-1) / 2 + 0.3 * theta[..., 0]


def test_populations_are_biased_without_it() -> None:
    rows, pulls = world(4000, 1), {}
    for centred in (False, True):
        head = Biased.from_data(rows, hidden=[4], regression=False, centred=centred)
        head.adapt(rows)
        head.trained.fill_(True)
        head.eval().normalise(rows, None)
        found = []
        for seed in range(40):
            torch.manual_seed(1000 + seed)
            truth = float(torch.rand(()) * 2 - 1)
            posterior = infer(head, rows.info.proposal, truth + torch.randn(100, 1), iid=True)
            found.append(float((posterior.mean - truth) / posterior.stddev))
        pulls[centred] = torch.tensor(found)
    assert abs(float(pulls[True].mean())) < 4 / 40**0.5 and 0.7 < float(pulls[True].std()) < 1.4
    assert float(pulls[False].mean()) > 2, "without: .3 nats are 3 standard deviations of a hundred"


def test_training_centres_and_files_ensembles_and_further_training_keep_it(tmp_path) -> None:
    rows, options = world(2000, 1), {"max_epochs": 2, "progress": False}
    head = RatioEstimator.from_data(rows, hidden=[8], regression=False, centred=True)
    runs = [fit(head, carl, rows, seed=seed, **options).estimator for seed in (1, 2)]
    plain = fit(RatioEstimator.from_data(rows, hidden=[8], regression=False), carl, rows, seed=1, **options).estimator
    theta, x = rows.theta[:50], rows.x[:50]
    assert runs[0].centring.degree > 0 and plain.centring is None
    off = runs[0].log_likelihood(theta, x) - plain.log_likelihood(theta, x)
    torch.testing.assert_close(off, -runs[0].centring(theta).float(), atol=1e-5, rtol=0)
    for estimator, worst in ((runs[0], 4), (plain, 1e9)):
        slopes = slope_of(lambda at, own=estimator: own.log_likelihood(at, rows.x), rows.theta)[:, 0]
        halves = (slopes[rows.theta[:, 0] < 0], slopes[rows.theta[:, 0] > 0])
        z = [float(half.mean() / half.std() * len(half) ** 0.5) for half in halves]
        assert max(map(abs, z)) < worst
        if estimator is plain:
            assert max(map(abs, z)) > 4, "two epochs do not learn the slope"
    runs[0].save(tmp_path / "model")
    assert torch.equal(load_estimator(tmp_path / "model").log_likelihood(theta, x), runs[0].log_likelihood(theta, x))
    mean = sum(run.log_likelihood(theta, x) for run in runs) / 2
    torch.testing.assert_close(Ensemble(runs).log_likelihood(theta, x), mean)
    runs[0].train()
    runs[0].eval()
    assert runs[0].centring.degree > 0, "a change of mode loses nothing"
    on = fit(runs[0], carl, rows, seed=3, **options).estimator
    assert not torch.equal(on.centring.coefficients, runs[0].centring.coefficients) and runs[0].centring.degree > 0


def test_gold_and_designs_train_centred_heads() -> None:
    data = simulate(DeathProcess(), 500, seed=1, progress=False)
    head = RatioEstimator.from_data(data, hidden=[8], centred=True)
    run = fit(head, partial(alices, alpha=0.1), data, simulator=DeathProcess(), seed=1, max_epochs=1, progress=False)
    assert bool(run.estimator.log_likelihood(data.theta, data.x, data.design).isfinite().all())
