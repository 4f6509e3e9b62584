import random

import numpy as np
import pytest
import torch
from runs import BOX, WORLD, Weak, bits, quick, rows
from torch import nn

from sbi_core import (
    Simulations,
    TrainingError,
    UniformPrior,
    infer,
    simulate,
)
from sbi_core.estimators import RatioEstimator, alice, alices, carl, fit, nre, training
from sbi_core.priors import describe
from sbi_core.seeding import seeded
from sbi_core.simulators import GaltonBoard


def squared_errors(estimator, n=20_000):
    """Squared error of the log ratio of each row's theta against another theta of the prior, (n,)."""
    test, alt = rows(n, seed=8), rows(n, seed=9).theta
    with torch.no_grad():
        ratio, truth = (
            f.log_likelihood(test.theta, test.x).double() - f.log_likelihood(alt, test.x).double()
            for f in (estimator, WORLD)
        )
    return (ratio - truth) ** 2


class Silent:
    """f = 0."""

    def log_likelihood(self, theta, x):
        return torch.zeros(len(x))


# Accuracy


def test_the_learned_log_ratio_is_the_exact_one():
    """Within one part in forty of what saying nothing costs, at 1000 simulations."""
    bar = 0.025 * float(squared_errors(Silent()).mean())
    options = {"hidden": (32, 32), "max_epochs": 40, "gold_check": False}
    right = squared_errors(quick(rows(1000), **options).estimator)
    assert (right.mean() - bar) / (right.std() / len(right) ** 0.5) < -4
    wrong = squared_errors(quick(rows(1000), simulator=Weak(2), **options).estimator)
    assert not (wrong.mean() - bar) / (wrong.std() / len(wrong) ** 0.5) < -4, "saboteur: gold times 0.8"


SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("1e-8", "3e7 + signal")]


@pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")
@pytest.mark.parametrize("kind", ["constant column", "1e-20", "1e8", *SLOW])
def test_posteriors_hold_whatever_the_units_of_x(kind):
    """The mean within half a standard deviation, the width within 0.7 to 1.4 of the exact ones, from 2000 rows."""
    rng = np.random.default_rng(1)
    theta = rng.uniform(-2, 2, (2000, 2))
    x, x_obs = theta + 0.3 * rng.standard_normal(theta.shape), np.array([0.5, -0.5])

    def changed(x):
        if kind == "constant column":
            return np.concatenate([x, np.full_like(x[..., :1], 7.0)], -1)
        return x + 3e7 if kind == "3e7 + signal" else x * float(kind)

    def in_band(x):
        posterior = infer(run.estimator, UniformPrior(BOX), changed(x))
        offset, ratio = (posterior.mean - torch.tensor(x_obs)) / 0.3, posterior.stddev / 0.3
        return bool(((offset.abs() < 0.5) & (ratio > 0.7) & (ratio < 1.4)).all())

    data = Simulations.from_arrays(theta, changed(x), parameters=BOX)
    options = {"hidden": (32, 32), "max_epochs": 40, "learning_rate": 1e-2, "contrasts": 4, "simulator": None}
    run = quick(data, carl, **options)
    assert in_band(x_obs)
    assert not in_band(x_obs + 0.3), "saboteur: an observation one standard deviation away"
    flags = ["x column 2 is constant in the training rows; it was left out"]
    assert list(run.flags) == (flags if kind == "constant column" else [])


# Same seed, same bits


@pytest.mark.parametrize("loss", [carl, alice, alices])
def test_a_seed_fixes_everything(loss):
    first = quick(rows(), loss)
    torch.manual_seed(99)
    again, other = quick(rows(), loss), quick(rows(), loss, seed=2)
    assert bits(first) == bits(again) and first.history == again.history
    assert bits(first) != bits(other) and first.history != other.history
    assert (first.seed, other.seed) == (1, 2)


def test_without_a_seed_one_is_drawn_and_recorded():
    first, second = quick(rows(), seed=None), quick(rows(), seed=None)
    assert first.seed != second.seed
    assert bits(quick(rows(), seed=first.seed)) == bits(first)


def test_the_callers_random_state_is_untouched():
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    threads = torch.get_num_threads()
    quick(rows())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all() and random.getstate() == before[2]  # noqa: NPY002
    assert torch.get_num_threads() == threads


def test_the_estimator_given_is_not_changed():
    head = RatioEstimator.from_data(rows())
    before = bits(head)
    run = fit(head, carl, rows(), seed=1, max_epochs=1, progress=False)
    assert bits(head) == before and not head.trained and head.training and head.provenance == {}
    assert bits(run) != before and run.estimator.trained and not run.estimator.training
    assert all(parameter.requires_grad for parameter in run.estimator.parameters())


def test_training_goes_on_from_a_trained_estimator():
    first = quick(rows())
    second = fit(first.estimator, carl, rows(2000), seed=2, max_epochs=1, progress=False)
    scaling = [name for name in bits(first) if "scaler" in name]
    assert scaling and all(bits(first)[name] == bits(second)[name] for name in scaling)
    assert bits(first) != bits(second)


def test_a_store_trains_the_same_network(tmp_path):
    store = simulate(WORLD, 300, store=tmp_path / "rows.zarr", seed=1, progress=False)
    assert bits(quick(store)) == bits(quick(rows()))
    assert bits(quick(store)) != bits(quick(rows(seed=2))), "saboteur: other rows"


def test_what_is_recorded():
    run = quick(rows())
    assert run.rows == (270, 30) and run.loss == "alices" and run.seconds > 0
    assert run.gold.passed and quick(rows(), carl).gold is None and quick(rows(), gold_check=False).gold is None
    known = dict(run.estimator.provenance)
    digests = [known.pop("data_sha256"), quick(rows(seed=2)).estimator.provenance["data_sha256"]]
    assert known == {
        "loss": "alices",
        "seed": 1,
        "rows": [270, 30],
        "simulator": "LinearGaussian",
        "simulator_version": WORLD.version,
        "campaign_seed": 1,
        "prior": describe(WORLD.prior),
        "flags": [],
    }
    assert len(digests[0]) == 64 and digests[0] == quick(rows(), carl).estimator.provenance["data_sha256"]
    assert digests[0] != digests[1], "other rows"


# Options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("learning_rate", 0.0),
        ("learning_rate", float("inf")),
        ("batch_size", 0),
        ("validation_fraction", 0.0),
        ("validation_fraction", 1.0),
        ("validation_fraction", float("nan")),
        ("max_epochs", 0),
        ("patience", 0),
        ("contrasts", 0),
        ("weight_decay", -1.0),
        ("memory", 0.0),
    ],
)
def test_unusable_options_are_named(option, value):
    with pytest.raises(TrainingError) as caught:
        quick(rows(), carl, **{option: value})
    assert str(caught.value).startswith(f"{option} = {value}, expected ")


def test_misspelt_options_are_named():
    with pytest.raises(TypeError, match="learning_rat"):
        quick(rows(), carl, learning_rat=0.1)


def test_a_loss_of_ones_own():
    """A new method is one function: any (estimator, batch) -> scalar."""

    def likely(estimator, batch):
        return carl(estimator, batch)

    own, known = quick(rows(), likely, learning_rate=1e-2), quick(rows(), carl)
    assert own.loss == "likely" and bits(own) == bits(known)


@pytest.mark.parametrize("contrasts", [1, 3])
def test_the_number_of_contrasts(contrasts):
    seen = set()

    def watching(estimator, batch):
        seen.add(tuple(batch.theta_alt.shape[1:]))
        return carl(estimator, batch)

    quick(rows(), watching, contrasts=contrasts)
    assert seen == {(contrasts, 2)}
    assert bits(quick(rows(), nre)) == bits(quick(rows(), nre, contrasts=9)) != bits(quick(rows(), nre, contrasts=2))


def test_weight_decay():
    """By default what suits the head, over the rows."""
    default, same, none = (
        quick(rows(), carl, **option) for option in ({}, {"weight_decay": 50 / 270}, {"weight_decay": 0.0})
    )
    assert bits(default) == bits(same) != bits(none)


# Schedule and stopping


def test_history_and_schedule():
    rates, epochs = [], 40

    def watching(estimator, batch):
        return carl(estimator, batch)

    run = quick(rows(), watching, max_epochs=epochs, learning_rate=2e-3)
    history = run.history
    assert history["epoch"] == list(range(1, epochs + 1))
    assert {len(column) for column in history.values()} == {epochs}
    assert all(np.isfinite(column).all() for column in history.values())
    assert run.flags == () and run.ended == "budget"
    assert run.best_epoch == epochs and history["validation"][-1] == min(history["validation"])
    rates = np.array(history["learning_rate"])
    top = int(rates.argmax())
    assert rates.max() <= 2e-3 and rates.max() > 0.99 * 2e-3 and top < epochs / 10, "a short way up"
    assert (np.diff(rates[top:]) < 0).all() and rates[-1] < 0.01 * 2e-3, "then down to nothing"


def test_the_loss_falls():
    run = quick(rows(1000), max_epochs=20)
    first, last = run.history["validation"][0], run.history["validation"][-1]
    assert last < first


def test_default_length(monkeypatch):
    monkeypatch.setattr(training, "STEPS", 300)

    def epochs(batch_size):
        return quick(rows()[:100], carl, max_epochs=None, batch_size=batch_size, patience=1000).history["epoch"][-1]

    assert epochs(30) == 100, "three steps an epoch"
    assert epochs(8) == training.EPOCHS == 50, "twelve steps an epoch"
    monkeypatch.setattr(training, "MOST_STEPS", 240)
    assert epochs(8) == 20
    monkeypatch.setattr(training, "MOST_STEPS", 5)
    assert epochs(8) == 1, "never less than one pass"


@pytest.mark.parametrize(("n", "size"), [(300, 128), (5000, 250), (20_000, 512)])
def test_default_batch_size(n, size):
    sizes = set()

    def counting(estimator, batch):
        if torch.is_grad_enabled():
            sizes.add(len(batch))
        return carl(estimator, batch)

    quick(rows(n), counting, max_epochs=1)
    assert sizes <= {size, round(0.9 * n) % size} and size in sizes


def test_designs_and_labels_train():
    board = GaltonBoard()
    with seeded(1):
        design = torch.stack([torch.randint(5, 25, (300,)), torch.randint(10, 21, (300,))], 1)
    data = simulate(board, 300, seed=1, design=design, progress=False)
    run = quick(data, simulator=board)
    assert run.estimator.designs == board.designs and np.isfinite(run.history["validation"]).all()


def test_weights_leave_training_apart_from_each_other_and_tied_ones_together():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(2, 2)
            self.second = nn.Linear(2, 2)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    head = RatioEstimator.from_data(rows(200), embedding=Tied())
    found = fit(head, carl, rows(200), seed=1, max_epochs=2, progress=False).estimator
    first, second = found.embedding.network.first, found.embedding.network.second
    assert first.weight is second.weight and first.bias is not second.bias
    weights = list(found.parameters())
    assert len({weight.untyped_storage().data_ptr() for weight in weights}) == len(weights)
    assert all(weight.grad is None for weight in weights)


def test_weights_of_two_precisions_are_trained():
    class Exact(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 3, dtype=torch.float64)

        def forward(self, x):
            return self.linear(x.double()).float()

    head = RatioEstimator.from_data(rows(200), embedding=Exact())
    found = [fit(head, carl, rows(200), seed=1, max_epochs=n, progress=False).estimator for n in (1, 4)]
    exact = [estimator.embedding.network.linear.weight for estimator in found]
    assert exact[0].dtype == torch.float64 and found[0].network[0].weight.dtype == torch.float32
    assert not torch.allclose(exact[0], exact[1]) and not torch.allclose(*(e.network[0].weight for e in found))
