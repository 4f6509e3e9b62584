"""What must happen with bad input; one test a fault, numbered as in the project's table of faults."""

import time

import numpy as np
import pytest
import torch
from measures import z_of_mean
from toys import BOX, reference, row_by_row, run, same_bits, shifted, table

from sbi_core import (
    FunctionSimulator,
    InputError,
    SbiWarning,
    Simulations,
    SimulatorError,
    Store,
    UniformPrior,
    infer,
    simulate,
)
from sbi_core.estimators import RatioEstimator, carl, fit

PRIOR = UniformPrior(BOX)


def from_arrays(theta, x):
    return Simulations.from_arrays(theta, x, proposal=PRIOR)


def train(theta, x, **options):
    data = from_arrays(theta, x)
    return fit(RatioEstimator.from_data(data), carl, data, seed=1, gold_check=False, progress=False, **options)


def says(words, error, call, *arguments, **options):
    """Whether the call ends within five seconds in an error that has every word; returns it."""
    started = time.monotonic()
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    assert time.monotonic() - started < 5
    return caught.value


def with_value(array, value, index):
    array = array.copy()
    array[index] = value
    return array


THETA, X = reference(2000)

TABLES = {
    "F06 NaN": (with_value(THETA, np.nan, (17, 1)), X, ["theta", "row 17"]),
    "F06 inf": (with_value(THETA, np.inf, (3, 0)), X, ["theta", "row 3"]),
    "F07": (THETA, X[:1999], ["theta", "x", "2000", "1999"]),
    "F08": (THETA[:, 0], X, ["theta", "(n, 2)", "(2000,)"]),
    "F09": (THETA, X[:, 0], ["x", "(2000,)"]),
    "F10": (THETA.T, X.T, ["theta", "(n, 2)", "(2, 2000)"]),
    "F16": (THETA, X + 1j, ["x", "complex"]),
}


@pytest.mark.parametrize(("theta", "x", "words"), TABLES.values(), ids=TABLES)
def test_table_that_does_not_fit(theta, x, words):
    says(words, InputError, from_arrays, theta, x)
    assert len(from_arrays(THETA, X)) == 2000


def test_f10_without_a_prior():
    says(["theta", "(n, 2)", "(2, 2000)"], InputError, Simulations.from_arrays, THETA.T, X.T)


@pytest.mark.parametrize("make", [torch.from_numpy, np.asarray, lambda a: a.tolist()], ids=["F13", "F14", "lists"])
def test_numbers_of_every_kind_are_accepted(make, tmp_path):
    rows = from_arrays(make(THETA), make(X))
    assert rows.x.dtype == torch.float64 and np.array_equal(rows.x.numpy(), X)
    stored = simulate(row_by_row(), 5, seed=1, store=tmp_path / "run.zarr", progress=False)
    assert stored[:].x.dtype == torch.float64, "doubles stay doubles in a store"


def test_f15_whole_numbers_are_accepted_and_never_rounded():
    x = np.array([[2**24 + 1, 3], [1, -(2**30) - 1]])
    assert from_arrays(THETA[:2], x).x.tolist() == x.tolist()
    assert float(np.float32(2**24 + 1)) != 2**24 + 1, "saboteur: float32 would round"
    says(["x", "2**53"], InputError, from_arrays, THETA[:1], np.array([[2**60]]))


def test_f05_every_row_failed():
    says(["x", "0 valid"], InputError, train, THETA, np.full_like(X, np.nan))


@pytest.mark.parametrize(("name", "n"), [("F28", 0), ("F29", 1), ("F30", 5)])
def test_too_few_rows(name, n):
    assert name and says(["simulations", str(n), "at least"], InputError, train, THETA[:n], X[:n])


def test_f28_asking_for_no_simulation():
    says(["simulations", "0", "at least"], InputError, simulate, row_by_row(), 0)


# F11 and F12: a simulator that breaks its contract


def halved(theta, rng):
    return shifted(theta, rng)[: len(theta) // 2]


@pytest.mark.parametrize("breaks_at_once", [True, False])
def test_f11_half_of_the_rows(breaks_at_once):
    calls = []

    def function(theta, rng):
        calls.append(theta)
        return (halved if breaks_at_once or len(calls) > 3 else shifted)(theta, rng)

    simulator = FunctionSimulator(function, BOX, rows_per_seed=10)
    expected = "expected (10, ...)" if breaks_at_once else "expected (10, 2)"
    error = says(["simulator", "'FunctionSimulator'", "10", "5", expected], SimulatorError, run, simulator, 40)
    if breaks_at_once:
        assert error.simulations is None and len(calls) == 1, "found before any costly work"
    else:
        assert len(error.simulations) == 20 and str(calls[3][0].tolist()) in str(error)


BROKEN = {
    "another width": lambda theta, rng: np.append(shifted(theta, rng), 1.0),
    "None": lambda theta, rng: None,
    "list": lambda theta, rng: shifted(theta, rng).tolist(),
    "0-d": lambda theta, rng: np.array(1.0),
    "number": lambda theta, rng: 1.0,
    "text": lambda theta, rng: "0.1, 0.2",
}


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_f12_row_by_row(broken, stored, tmp_path):
    calls = []

    def function(theta, rng):
        calls.append(theta.tolist())
        return (shifted if len(calls) <= 5 else broken)(theta, rng)

    path = tmp_path / "run.zarr" if stored else None
    error = says(["simulator", "expected (10, 2)"], SimulatorError, run, row_by_row(function), 10, store=path)
    assert str(calls[5]) in str(error), "the first bad call's theta"
    assert same_bits(error.simulations, run(row_by_row(), 4))
    assert path is None or same_bits(Store(path), run(row_by_row(), 4))


@pytest.mark.parametrize("broken", [lambda theta, rng: None, lambda theta, rng: theta.tolist(), lambda theta, rng: 1.0])
@pytest.mark.parametrize("vectorized", [True, False])
def test_f12_from_the_first_call_on(broken, vectorized):
    simulator = FunctionSimulator(broken, BOX, vectorized=vectorized, x_shape=(2,))
    error = says(["simulator", "expected (10, 2)", "theta"], SimulatorError, run, simulator, 10)
    assert error.simulations is None


def test_f12_vectorised():
    calls = []

    def function(theta, rng):
        calls.append(theta[0].tolist())
        return shifted(theta, rng) if len(calls) <= 3 else shifted(theta, rng)[:, :1]

    simulator = FunctionSimulator(function, BOX, rows_per_seed=10)
    error = says(["simulator", "(10, 1)", "expected (10, 2)"], SimulatorError, run, simulator, 50)
    assert str(calls[3]) in str(error) and len(error.simulations) == 20


def test_f12_width_that_changes_inside_one_call():
    def ragged(theta, rng):
        return np.ones(2 if theta[0] > 0 else 3)

    simulator = row_by_row(ragged, rows_per_seed=10)
    says(["simulator", "shape (2,)", "(3,)", "at theta ="], SimulatorError, run, simulator, 10)


def test_f12_one_number_a_row_is_told_what_to_do():
    says(["single number", "shape (1,)"], SimulatorError, run, row_by_row(lambda theta, rng: theta.sum()), 10)
    assert run(row_by_row(lambda theta, rng: theta[:1]), 10).x.shape == (10, 1)


# F17: a column that says nothing


def with_constant_column(n):
    theta, x = reference(n)
    return theta, np.column_stack([x, np.full(n, 7.0)])


def test_f17_constant_column_warns():
    with pytest.warns(SbiWarning, match=r"(?i)constant"):
        train(*with_constant_column(200), max_epochs=1)


@pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")
def test_f17_constant_column_is_named_and_left_out():
    trained = train(*with_constant_column(3000), max_epochs=60)
    assert any("constant" in flag and "2" in flag for flag in trained.flags)
    posterior = infer(trained.estimator, PRIOR, [0.5, -0.5, 7.0])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draws = posterior.sample((4000,))
    assert ((draws.mean(0) - torch.tensor([0.5, -0.5])).abs() < 0.15).all()
    assert ((draws.std(0) / 0.3 > 0.7) & (draws.std(0) / 0.3 < 1.4)).all()
    assert z_of_mean(draws - torch.tensor([1.5, 0.5])) > 4


# F40 to F42: an observation that is none


class Exact:
    """The reference problem's own likelihood, which needs no training."""

    x_shape, designs, categories = (2,), (), None
    parameters = axes = BOX

    def log_likelihood(self, theta, x, design=None):
        return -((x - theta) ** 2).sum(-1) / (2 * 0.3**2)

    def observe(self, x, design=None):
        return lambda theta: self.log_likelihood(theta, x, design)


ESTIMATORS = {"untrained": lambda: RatioEstimator.from_data(table()), "exact": Exact}
OBSERVATIONS = {
    "F40 width": ([0.5, -0.5, 1.0], ["x_obs", "(2,)", "(3,)"]),
    "F40 scalar": (0.5, ["x_obs", "(2,)", "()"]),
    "F40 column": ([[0.5], [-0.5]], ["x_obs", "(2,)", "(2, 1)"]),
    "F41": ([0.5, float("nan")], ["x_obs", "NaN"]),
    "F42": ([[0.5, -0.5], [0.4, -0.4]], ["x_obs", "iid", "(2, 2)"]),
}


@pytest.mark.parametrize("make", ESTIMATORS.values(), ids=ESTIMATORS)
@pytest.mark.parametrize(("x_obs", "words"), OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_observation_that_does_not_fit(x_obs, words, make):
    says(words, InputError, infer, make(), PRIOR, x_obs)


def test_f42_two_rows_when_asked_by_name():
    one = infer(Exact(), PRIOR, [0.5, -0.5])
    two = infer(Exact(), PRIOR, [[0.6, -0.5], [0.4, -0.5]], iid=True)
    at = torch.tensor([[0.5, -0.5], [0.8, -0.5]]).double()
    drop = [float(p.log_prob(at).diff()) for p in (one, two)]
    assert drop[0] == pytest.approx(-0.5, abs=0.05) and drop[1] == pytest.approx(-1.0, abs=0.1)
