"""The score head: what it learns, from which rows, and the likelihood it gives near theta_ref."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from measures import z_of_mean
from runs import bits

from sbi_core import InputError, MissingGold, Simulations, TrainingError, infer, joint_score, simulate
from sbi_core.estimators import Ensemble, RatioEstimator, ScoreEstimator, carl, fit, load_estimator, sally
from sbi_core.estimators.batches import prepare
from sbi_core.estimators.reference import weights_at
from sbi_core.gold import log_joint
from sbi_core.seeding import seeded
from sbi_core.simulators import GaltonBoard, LinearGaussian

SMALL, GAUSSIAN = GaltonBoard(n_rows=8, n_nails=11), LinearGaussian(2)
WORLDS = {"board": SMALL, "board with designs": SMALL, "gaussian": GAUSSIAN}
REF = {"board": [-0.7], "board with designs": [-0.7], "gaussian": [0.3, -0.2]}


@cache
def rows(name="gaussian", n=2000, *, wide=False, seed=1):
    """Rows of theta_ref, or of the prior."""
    design = None
    if name == "board with designs":
        with seeded(3):
            design = torch.stack([torch.randint(2, 9, (n,)), torch.randint(4, 9, (n,))], 1)
    proposal = None if wide else REF[name]
    return simulate(WORLDS[name], n, seed=seed, proposal=proposal, design=design, progress=False)


@cache
def trained(seed=1, *, wide=False):
    data = rows(wide=wide)
    head = ScoreEstimator.from_data(data, theta_ref=REF["gaussian"], hidden=[16])
    return fit(head, sally, data, simulator=GAUSSIAN, seed=seed, max_epochs=40, progress=False, gold_check=False)


# The loss


class Perturbed:
    """The exact score at theta_ref, times a factor, plus eps (B, 4, D) times four functions of x."""

    def __init__(self, name, eps, factor):
        self.world, self.theta, self.eps, self.factor = (
            WORLDS[name],
            torch.tensor(REF[name], dtype=torch.float64),
            eps,
            factor,
        )

    def score(self, x, design=None):
        v = (x / 3).sum(-1, keepdim=True)
        g = torch.stack([torch.ones_like(v), v, torch.sin(3 * v), torch.exp(-(v**2))], 1)
        return self.factor * self.world.score(self.theta, x, design) + (self.eps * g).sum(1)


def batch_of(name, *, wide):
    data = rows(name, 20_000, wide=wide)
    theta_ref = torch.tensor(REF[name], dtype=torch.float64)
    source, _ = prepare(sally, data, WORLDS[name], contrasts=1, seed=0, theta_ref=theta_ref)
    with seeded(4):
        return source.part(torch.arange(len(data))).batch()


def significance(name, batch, factor=1.0):
    """Largest mean of d loss / d eps, in standard errors measured over the rows."""
    eps = torch.zeros(len(batch), 4, len(REF[name]), dtype=torch.float64, requires_grad=True)
    value = sally(Perturbed(name, eps, factor), batch) * len(batch)
    return z_of_mean(torch.autograd.grad(value, eps)[0])


@pytest.mark.parametrize("wide", [False, True], ids=["at theta_ref", "of the prior"])
@pytest.mark.parametrize("name", WORLDS)
def test_the_exact_score_is_stationary(name, wide):
    batch = batch_of(name, wide=wide)
    assert significance(name, batch) < 4
    assert significance(name, batch, factor=0.8) > 4, "saboteur: a score that is too small"
    assert significance(name, replace(batch, joint_score=0.8 * batch.joint_score)) > 4, "saboteur: gold too small"


@pytest.mark.parametrize("name", WORLDS)
def test_what_rows_of_other_thetas_must_not_do(name):
    batch, data = batch_of(name, wide=True), rows(name, 20_000, wide=True)
    plain = replace(batch, score_weight=torch.ones(len(batch)).double())
    assert significance(name, plain) > 4, "saboteur: no weights"
    own = replace(plain, joint_score=joint_score(WORLDS[name], data))
    assert significance(name, own) > 4, "saboteur: the score at each row's own theta"


def test_the_loss_has_no_unit():
    batch = batch_of("gaussian", wide=False)
    silent = Perturbed("gaussian", torch.zeros(len(batch), 4, 2).double(), 0.0)
    assert abs(float(sally(silent, batch)) - 2) < 2e-3, "D = 2 for s = 0, whatever the size of the joint score"


# Rows of other thetas


def effective(weight):
    return float(weight.sum() ** 2 / weight.square().sum())


@pytest.mark.parametrize("name", ["board", "gaussian"])
@pytest.mark.parametrize("recorded", [True, False], ids=["proposal", "rows' own thetas"])
def test_weighted_rows_stand_for_theta_ref(name, recorded):
    world, data, theta = WORLDS[name], rows(name, 20_000, wide=True), torch.tensor(REF[name], dtype=torch.float64)
    data = data if recorded else replace(data, info=replace(data.info, proposal=None))
    weight, flag = weights_at(data, world, theta, seed=1)
    score = world.score(theta, data.x)
    features = torch.cat([score, score**2 - world.fisher_information(theta).diagonal()], 1)
    assert z_of_mean(weight[:, None] * features) < 4 and z_of_mean(features) > 4, "saboteur: no weights"
    ratio = torch.exp(log_joint(world, data, theta.expand_as(data.theta)) - log_joint(world, data, data.theta))
    assert effective(weight) > 1.2 * effective(ratio), "the ratio to the row's own theta is worth less"
    assert f"count as {effective(weight):.0f} at theta_ref = {REF[name]}" in flag


def test_rows_that_are_too_far_are_refused_with_the_cure():
    far = simulate(GAUSSIAN, 200, seed=1, proposal=[9.0, 9.0], progress=False)
    head = ScoreEstimator.from_data(far, theta_ref=[0.0, 0.0])
    with pytest.raises(InputError, match=r"count as .* expected at least 50\. Simulate at theta_ref: simulate\("):
        fit(head, sally, far, simulator=GAUSSIAN, seed=1, progress=False)


def test_the_effective_sample_size_is_always_said():
    with pytest.warns(UserWarning, match=r"2000 rows of other thetas count as 1[6-9]\d\d at theta_ref"):
        run = fit(
            ScoreEstimator.from_data(rows(wide=True), theta_ref=REF["gaussian"], hidden=[4]),
            sally,
            rows(wide=True),
            simulator=GAUSSIAN,
            seed=1,
            max_epochs=1,
            progress=False,
            gold_check=False,
        )
    assert "effective sample size" in run.flags[0] and trained().flags == ()


def test_gold_is_needed_at_theta_ref():
    head = ScoreEstimator.from_data(rows())
    with pytest.raises(MissingGold, match="sally needs a joint score, and neither the simulations nor a simulator"):
        fit(head, sally, rows(), seed=1, progress=False)
    stored = replace(rows(wide=True), z=None, joint_score=joint_score(GAUSSIAN, rows(wide=True)))
    with pytest.raises(MissingGold, match=r"at theta_ref = \[0.3, -0.2\] is not stored .* Simulate at theta_ref"):
        fit(head, sally, stored, seed=1, progress=False, gold_check=False)


def test_a_stored_score_at_theta_ref_serves_without_simulator_and_z():
    data = rows()
    stored = Simulations.from_arrays(
        data.theta.float(), data.x, parameters=GAUSSIAN.parameters, joint_score=joint_score(GAUSSIAN, data)
    )
    head = ScoreEstimator.from_data(data, hidden=[4])
    options = {"seed": 1, "max_epochs": 2, "progress": False}
    assert bits(fit(head, sally, stored, **options)) == bits(fit(head, sally, data, simulator=GAUSSIAN, **options))


# What is learned


def squared_error(estimator, factor=1.0):
    """Of the score, over the information, on fresh rows of theta_ref."""
    test = rows(seed=9)
    exact = GAUSSIAN.score(torch.tensor(REF["gaussian"], dtype=torch.float64), test.x)
    return float(((factor * estimator.score_of(test) - exact) ** 2).mean() / GAUSSIAN.fisher_information()[0, 0])


@pytest.mark.filterwarnings("ignore:2000 rows of other thetas")
@pytest.mark.parametrize("wide", [False, True], ids=["at theta_ref", "of the prior"])
def test_the_score_is_learned(wide):
    estimator = trained(wide=wide).estimator
    assert squared_error(estimator) < 0.05
    assert squared_error(estimator, 0.7) > 0.05, "saboteur: a score that is too small"


def test_the_local_model_is_exact_in_an_exponential_family():
    estimator, theta_ref = trained().estimator, torch.tensor(REF["gaussian"], dtype=torch.float64)
    test = rows(seed=9)
    theta = theta_ref + torch.tensor([[0.5, 0.0], [-0.4, 0.4], [0.0, 1.0]]).double()
    with torch.no_grad():
        found = estimator.log_likelihood(theta[:, None], test.x)
        plain = (estimator.score(test.x) * (theta - theta_ref)[:, None]).sum(-1)
    exact = GAUSSIAN.log_likelihood(theta[:, None], test.x) - GAUSSIAN.log_likelihood(theta_ref, test.x)
    error, without = ((value - exact).square().mean() for value in (found, plain))
    assert error < 0.02 < (exact**2).mean() and without > 1.5 * error, "saboteur: without the normaliser"


def test_it_is_normalised_and_its_slope_is_the_score():
    run = trained()
    test, step = rows(n=8000, seed=9), torch.tensor([0.3, -0.6]).double()
    f = run.estimator.log_likelihood(run.estimator.theta_ref + step, test.x).detach()
    assert z_of_mean(f.exp(), 1.0) < 4
    assert z_of_mean((run.estimator.score_of(test) @ step).exp(), 1.0) > 4, "saboteur: without the normaliser"
    at = torch.tensor(REF["gaussian"], dtype=torch.float64).expand(50, 2).clone().requires_grad_()
    x = rows(seed=9).x[:50]
    slope = torch.autograd.grad(run.estimator.log_likelihood(at, x).sum(), at)[0]
    assert torch.allclose(slope, run.estimator.score(x), atol=1e-9)


def test_results_say_where_they_hold(tmp_path):
    one, two = trained().estimator, trained(2).estimator
    words = "valid near theta_ref = [0.3, -0.2] only"
    for estimator in (one, Ensemble([one, two]), load_estimator(one.save(tmp_path))):
        assert sum(words in flag for flag in infer(estimator, GAUSSIAN.prior, [0.1, 0.2]).flags) == 1
    assert infer(GAUSSIAN, GAUSSIAN.prior, [0.1, 0.2]).flags == (), "the exact likelihood has no such limit"


def test_the_posterior_near_theta_ref_is_right():
    """40 observations there pin theta to .35 prior standard deviations."""
    x = rows(n=40, seed=5).x
    learned, exact = infer(trained().estimator, GAUSSIAN.prior, x, iid=True), GAUSSIAN.posterior(x)
    spread = exact.variance.sqrt()
    assert ((learned.mean - exact.mean).abs() < 0.5 * spread).all()
    assert ((learned.stddev / spread - 1).abs() < 0.15).all() and ((1 / spread - 1).abs() > 0.15).all()


def test_an_ensemble_has_the_mean():
    one, two = trained().estimator, trained(2).estimator
    both, theta, x = Ensemble([one, two]), torch.zeros(2).double(), rows(seed=9).x[:5]
    mean = (one.log_likelihood(theta, x) + two.log_likelihood(theta, x)) / 2
    assert torch.allclose(both.log_likelihood(theta, x), mean) and (both.spread(theta, x) > 0).all()


def test_it_returns_from_its_folder(tmp_path):
    back = load_estimator(trained().estimator.save(tmp_path))
    x = rows(seed=9).x[:5]
    assert isinstance(back, ScoreEstimator) and bits(back) == bits(trained())
    assert torch.equal(back.score(x), trained().estimator.score(x))
    assert torch.equal(back.log_likelihood(x, x), trained().estimator.log_likelihood(x, x))


def test_units_of_the_parameters_do_not_matter():
    """In units of 1e20, theta and the score are too large and too small for float32."""
    unit = 1e20
    world = LinearGaussian(matrix=torch.eye(2) / unit, prior_std=unit)
    theta = unit * torch.tensor(REF["gaussian"], dtype=torch.float64)
    data = simulate(world, 2000, seed=1, proposal=theta, progress=False)
    head = ScoreEstimator.from_data(data, hidden=[16])
    options = {"simulator": world, "seed": 1, "max_epochs": 40, "progress": False, "gold_check": False}
    found = fit(head, sally, data, **options).estimator
    assert torch.allclose(unit * found.score_of(data), trained().estimator.score_of(data), atol=1e-3)


def test_with_designs_there_is_a_score_and_no_likelihood():
    data = rows("board with designs", 500)
    head = ScoreEstimator.from_data(data, hidden=[4])
    found = fit(head, sally, data, simulator=SMALL, seed=1, max_epochs=2, progress=False).estimator
    assert found.score(data.x, data.design).shape == (500, 1)
    with pytest.raises(InputError, match=r"has a score, but no log likelihood.*summarise"):
        found.log_likelihood(data.theta, data.x, data.design)


# What is refused


def test_sally_and_the_score_head_belong_together():
    for head, loss in ((RatioEstimator, sally), (ScoreEstimator, carl)):
        with pytest.raises(TrainingError, match=f"{loss.__name__} does not go with {head.__name__}.*estimator=score"):
            fit(head.from_data(rows()), loss, rows(), simulator=GAUSSIAN, progress=False)


def test_theta_ref():
    assert torch.equal(ScoreEstimator.from_data(rows()).theta_ref, rows().theta[0])
    with pytest.raises(InputError, match=r"theta_ref is missing, and the rows are at many thetas"):
        ScoreEstimator.from_data(rows(wide=True))
    for wrong in ([0.0], [0.0, np.nan]):
        with pytest.raises(InputError, match=r"expected 2 numbers for \['theta_1', 'theta_2'\]"):
            ScoreEstimator.from_data(rows(), theta_ref=wrong)


@pytest.mark.slow
def test_the_bar_on_the_galton_board():
    board, pair = GaltonBoard(), torch.tensor([[-0.8], [-0.6]]).double()
    slots = torch.arange(5.0, 26.0)[:, None]
    exact = board.log_likelihood(pair[:, None], slots)

    def error(estimator):
        with torch.no_grad():
            wrong = estimator.log_likelihood(pair[:, None], slots) - exact
        return float(((wrong[0] - wrong[1]) ** 2 * exact[1].exp()).sum())

    errors = []
    for seed in range(5):
        data = simulate(board, 1000, proposal=[-0.7], seed=seed, progress=False)
        run = fit(ScoreEstimator.from_data(data), sally, data, simulator=board, seed=seed, progress=False)
        errors.append(error(run.estimator))
    assert np.median(errors) < 0.002 < error(ScoreEstimator.from_data(data)), "saboteur: untrained"
