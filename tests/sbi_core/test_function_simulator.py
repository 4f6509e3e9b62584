"""What a user's function may return and receive: x, gold, NumPy or torch; and what is found out about it."""

import time
import warnings

import numpy as np
import pytest
import torch
from measures import z_of_mean
from toys import BOX, Shift, row_by_row, run, same_bits, shifted

from sbi_core import FunctionSimulator, InputError, Mined, Parameter, SbiWarning, SimulatorError, check_gold
from sbi_core.estimators import RatioEstimator, ScoreEstimator, cascal, fit, rascal, sally
from sbi_core.simulations import INVALID

MU = [Parameter("mu", -1, 1)]


def mined(theta, theta_alt, rng, wrong=0.0):
    """x ~ N(z, 1), z ~ N(theta, 1), all rows at once or one."""
    z = theta + rng.standard_normal(theta.shape)
    ratio = ((theta_alt - z[..., None, :]) ** 2).sum(-1) / 2 - ((theta - z) ** 2).sum(-1)[..., None] / 2
    x = z + rng.standard_normal(theta.shape)
    return {"x": x, "joint_score": z - theta + wrong, "joint_log_ratio": ratio}


@pytest.mark.parametrize("vectorized", [True, False])
def test_gold_that_a_function_returns_is_kept(vectorized):
    toy = FunctionSimulator(mined, MU, contrasts=3, vectorized=vectorized)
    rows = run(toy, 2000)
    shapes = {name: tuple(column.shape) for name, column in rows.columns().items()}
    assert shapes["theta_alt"] == (2000, 3, 1) and shapes["joint_log_ratio"] == (2000, 3)
    assert shapes["joint_score"] == (2000, 1) and rows.z is None
    check_gold(toy, rows).raise_if_failed()
    wrong = FunctionSimulator(lambda *given: mined(*given, wrong=0.2), MU, contrasts=3, vectorized=vectorized)
    assert not check_gold(wrong, run(wrong, 2000)).passed


def test_score_alone_needs_no_contrasts():
    def scored(theta, rng):
        z = theta + rng.standard_normal(theta.shape)
        return Mined(z + rng.standard_normal(theta.shape), joint_score=z - theta)

    rows = run(FunctionSimulator(scored, MU), 3000)
    assert rows.theta_alt is None and z_of_mean(rows.joint_score) < 4
    fit(RatioEstimator.from_data(rows), cascal, rows, max_epochs=1, progress=False)


@pytest.mark.slow
def test_gold_of_a_function_is_worth_having():
    toy, rows = Shift(), run(FunctionSimulator(mined, MU, contrasts=2), 1000)
    theta, x = torch.linspace(-0.9, 0.9, 7)[:, None].double(), torch.linspace(-2, 2, 9)[:, None, None].double()
    exact = toy.log_likelihood(theta, x)
    for loss, most in ((rascal, 0.003), (cascal, 0.01)):
        head = fit(RatioEstimator.from_data(rows), loss, rows, seed=1, progress=False).estimator
        off = head.log_likelihood(theta, x) - exact
        assert (off - off.mean(1, keepdim=True)).square().mean() < most
    here = run(FunctionSimulator(mined, MU, contrasts=2), 2000, proposal=torch.zeros(1))
    head = fit(ScoreEstimator.from_data(here, theta_ref=[0.0]), sally, here, seed=1, progress=False).estimator
    at = torch.linspace(-2, 2, 9)[:, None]
    assert (head.score(at)[:, 0] - at[:, 0] / 2).square().mean() < 0.01


@pytest.mark.parametrize("vectorized", [True, False])
def test_torch_functions_get_tensors_and_a_generator(vectorized):
    def noisy(theta, generator):
        assert isinstance(theta, torch.Tensor) and isinstance(generator, torch.Generator)
        return theta + 0.3 * torch.randn(theta.shape, generator=generator, dtype=torch.float64)

    toy = FunctionSimulator(noisy, BOX, backend="torch", vectorized=vectorized)
    rows = run(toy, 200)
    assert same_bits(rows, run(toy, 200)) and len(rows.x.unique()) == 400
    assert z_of_mean(rows.x - rows.theta) < 4


def test_nan_marks_rows():
    def fails(theta, rng):
        x = shifted(theta, rng)
        x[theta[:, 0] > 1.5] = np.nan
        return x

    rows = run(FunctionSimulator(fails, BOX), 500)
    assert torch.equal(rows.status == INVALID, rows.theta[:, 0] > 1.5) and not rows.failures


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ({"y": np.zeros(1)}, ["['y']", "expected x"]),
        ({"x": np.zeros(1), "score": np.zeros(1)}, ["['score', 'x']", "joint_score and joint_log_ratio"]),
        ({"x": None}, ["[]", "expected x"]),
        ({"x": np.zeros(1), "joint_score": "steep"}, ["str", "an array"]),
        ({"x": np.zeros(1), "joint_score": np.zeros(2)}, ["joint_score", "(1, 2)", "(1, 1)"]),
    ],
)
def test_what_a_function_may_not_return(returned, words):
    with pytest.raises(SimulatorError) as caught:
        run(FunctionSimulator(lambda theta, rng: returned, MU, vectorized=False), 10)
    assert all(word in str(caught.value) for word in words)


def test_gold_comes_in_every_row_or_in_none():
    def sometimes(theta, rng):
        x = shifted(theta, rng)
        return Mined(x, joint_score=x) if theta[0] > 0 else x

    toy = FunctionSimulator(sometimes, MU, vectorized=False, rows_per_seed=20)
    with pytest.raises(SimulatorError, match="other gold than before"):
        run(toy, 20)


@pytest.mark.parametrize(("option", "value"), [("backend", "jax"), ("contrasts", -1), ("contrasts", 0.5)])
def test_options_that_make_no_sense_are_refused(option, value):
    with pytest.raises(InputError, match=f"{option} = {value!r}"):
        FunctionSimulator(shifted, BOX, **{option: value})


def fresh(theta, rng):
    return theta + np.random.default_rng().standard_normal(theta.shape)


def reseeding(theta, rng):
    np.random.seed()  # noqa: NPY002
    return theta + np.random.standard_normal(theta.shape)  # noqa: NPY002


def clocked(theta, rng):
    return theta + time.perf_counter_ns() % 1000


def global_state(theta, rng):
    return theta + np.random.standard_normal(theta.shape)  # noqa: NPY002


@pytest.mark.parametrize("function", [fresh, reseeding, clocked])
@pytest.mark.parametrize("vectorized", [True, False])
def test_randomness_from_elsewhere_is_found(function, vectorized):
    with pytest.warns(SbiWarning, match="other rows for the same seed"):
        run(FunctionSimulator(function, BOX, vectorized=vectorized), 20)


@pytest.mark.parametrize("simulator", [FunctionSimulator(global_state, BOX), row_by_row(), Shift()])
def test_rows_that_repeat_raise_no_alarm(simulator):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(simulator, 20)


def test_a_slow_trial_is_not_repeated(monkeypatch):
    monkeypatch.setattr("sbi_core.plan.QUICK", 0.0)
    calls = []

    def counted(theta, rng):
        calls.append(1)
        return shifted(theta, rng)

    run(row_by_row(counted), 3)
    assert len(calls) == 4
