"""The score as a summary of x: densities fitted to it, and sallino."""

from functools import cache

import pytest
import torch
from measures import z_of_mean
from runs import bits

from sbi_core import InputError, MissingGold, TrainingError, infer, joint_log_ratio, joint_score, simulate
from sbi_core.estimators import (
    DirectionEstimator,
    RatioEstimator,
    ScoreEstimator,
    SummaryEstimator,
    alices,
    carl,
    fit,
    load_estimator,
    rolr,
    sally,
    summarise,
)
from sbi_core.simulators import GaltonBoard, LinearGaussian

WORLD = LinearGaussian(matrix=[[1.0, 0.0], [1.0, 1.0], [0.0, 0.5]])
REF = torch.zeros(2).double()
OPTIONS = {"seed": 1, "progress": False, "gold_check": False}


@cache
def rows(n=2000, *, wide=False, seed=1):
    return simulate(WORLD, n, seed=seed, proposal=None if wide else REF, progress=False)


@cache
def score():
    head = ScoreEstimator.from_data(rows(), hidden=[32])
    return fit(head, sally, rows(), simulator=WORLD, max_epochs=40, **OPTIONS).estimator


@cache
def pairs():
    return summarise(score(), rows(), simulator=WORLD, contrasts=WORLD.prior)


@cache
def joined(kind):
    """The score with a ratio of all D numbers, or with sallino's one."""
    if kind == "sallino":
        head = DirectionEstimator.from_data(pairs(), theta_ref=REF, hidden=[32])
        return SummaryEstimator([score(), fit(head, rolr, pairs(), max_epochs=40, **OPTIONS).estimator])
    data = summarise(score(), rows(wide=True), simulator=WORLD)
    head = RatioEstimator.from_data(data, hidden=[32])
    return SummaryEstimator([score(), fit(head, alices, data, max_epochs=40, **OPTIONS).estimator])


def squared_error(estimator):
    """Of the log ratio of each row's theta against theta_ref, on fresh rows."""
    test = rows(4000, wide=True, seed=9)
    with torch.no_grad():
        found, exact = (
            f.log_likelihood(test.theta, test.x).double() - f.log_likelihood(REF, test.x).double()
            for f in (estimator, WORLD)
        )
    return float((found - exact).square().mean() / exact.square().mean())


def test_rows_with_the_score_in_the_place_of_x():
    data = rows(wide=True)
    made = summarise(score(), data, simulator=WORLD, per_row=3)
    assert torch.equal(made.x, score().score_of(data)) and torch.equal(made.theta, data.theta)
    assert torch.equal(made.joint_score, joint_score(WORLD, data)) and made.z is None
    assert made.theta_alt.shape == (2000, 3, 2)
    ratio = joint_log_ratio(WORLD, data, data.theta, made.theta_alt[:, 2])
    assert torch.equal(made.joint_log_ratio[:, 2], ratio)
    bare = summarise(score(), data)
    assert bare.theta_alt is None and bare.joint_score is None and bare.info.proposal is data.info.proposal


def test_class_labels_become_numbers():
    board = GaltonBoard()
    data = simulate(board, 100, seed=1, proposal=[-0.7], progress=False)
    head = ScoreEstimator.from_data(data, hidden=[4])
    made = summarise(fit(head, sally, data, simulator=board, max_epochs=1, **OPTIONS).estimator, data)
    assert made.info.categories is None and RatioEstimator.from_data(made).x_shape == (1,)


def test_gold_of_x_is_gold_of_the_score():
    """E[r(x, z) | s] = r(s): any function of s tells as much under either theta."""
    made = pairs()
    ratio = torch.exp(-made.joint_log_ratio[:, 0].clamp(min=-20))
    shift = made.theta_alt[:, 0]
    exact = shift @ WORLD.fisher_information()  # E[s | theta] - E[s | theta_ref], for the exact score
    near = shift.norm(dim=1) < 0.7
    wrong = (ratio[:, None] * WORLD.score(REF, rows().x) - exact)[near]
    assert z_of_mean(wrong * torch.sign(shift[near])) < 4
    plain = (WORLD.score(REF, rows().x) - exact)[near]
    assert z_of_mean(plain * torch.sign(shift[near])) > 4, "saboteur: without the ratio"


@pytest.mark.parametrize("kind", ["ratio", "sallino"])
def test_the_score_is_enough_where_the_likelihood_is_an_exponential_family(kind):
    assert squared_error(joined(kind)) < 0.1

    class Halved:
        def log_likelihood(self, theta, x):
            return joined(kind).log_likelihood(theta, 0.5 * x)

    assert squared_error(Halved()) > 0.1, "saboteur: half of x"


def test_sallino_sees_one_number():
    head = DirectionEstimator.from_data(pairs(), theta_ref=[0.5, 0.0])
    theta, x = torch.tensor([[1.5, 0.0], [0.5, 2.0]]).double(), torch.tensor([[0.7, 0.1]]).double()
    same = torch.tensor([[0.7, 5.0]]).double()
    assert torch.equal(head.log_likelihood(theta[0], x), head.log_likelihood(theta[0], same))
    assert not torch.equal(head.log_likelihood(theta[1], x), head.log_likelihood(theta[1], same))
    assert head.log_likelihood(head.theta_ref, torch.randn(9, 2)).unique().numel() == 1, "a constant at theta_ref"


@pytest.mark.parametrize("kind", ["ratio", "sallino"])
def test_it_returns_from_its_folder_and_says_where_it_holds(kind, tmp_path):
    both = joined(kind)
    back, x = load_estimator(both.save(tmp_path)), rows().x[:5]
    assert isinstance(back, SummaryEstimator) and bits(back) == bits(both)
    assert torch.equal(back.log_likelihood(REF, x), both.log_likelihood(REF, x))
    flags = infer(back, WORLD.prior, x[0]).flags
    assert "through its score at theta_ref = [0.0, 0.0]: information is lost far from it" in flags[0]
    assert ("by one number" in flags[0]) == (kind == "sallino")


def test_what_is_refused():
    with pytest.raises(TrainingError, match=r"carl does not go with DirectionEstimator.*rolr"):
        fit(DirectionEstimator.from_data(pairs(), theta_ref=REF), carl, pairs(), **OPTIONS)
    wide = summarise(score(), rows(wide=True), simulator=WORLD)
    with pytest.raises(MissingGold, match=r"not stored with these rows.*Simulate at theta_ref: simulate\("):
        fit(DirectionEstimator.from_data(wide, theta_ref=REF), rolr, wide, **OPTIONS)
    with pytest.raises(InputError, match=r"theta column 0 .* is constant"):
        fit(RatioEstimator.from_data(pairs()), rolr, pairs(), **OPTIONS)
    with pytest.raises(InputError, match=r"x of shape \(3,\): expected 2 numbers each"):
        DirectionEstimator.from_data(rows(), theta_ref=REF)
    with pytest.raises(InputError, match="score is not trained"):
        summarise(ScoreEstimator.from_data(rows()), rows())
    with pytest.raises(InputError, match=r"parts\[0\] is RatioEstimator"):
        SummaryEstimator([RatioEstimator.from_data(rows()), score()])
    with pytest.raises(InputError, match=r"parts\[1\] has .* x of shape \(3,\)"):
        SummaryEstimator([score(), RatioEstimator.from_data(rows())])
    with pytest.raises(InputError, match=r"parts\[1\] is not trained"):
        SummaryEstimator([score(), RatioEstimator.from_data(pairs())])
    with pytest.raises(InputError, match="then join them"):
        fit(joined("ratio"), carl, rows(wide=True), **OPTIONS)


def test_a_module_of_your_own_inside_the_score(tmp_path):
    own = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.SiLU())
    head = ScoreEstimator.from_data(rows(), hidden=[4], embedding=own)
    found = fit(head, sally, rows(), simulator=WORLD, max_epochs=1, **OPTIONS).estimator
    data = summarise(found, rows(wide=True))
    both = SummaryEstimator([found, fit(RatioEstimator.from_data(data), carl, data, max_epochs=1, **OPTIONS).estimator])
    fresh = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.SiLU())
    assert bits(load_estimator(both.save(tmp_path), embedding=fresh)) == bits(both)
    with pytest.raises(InputError, match="Sequential"):
        load_estimator(tmp_path, embedding=torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()))
