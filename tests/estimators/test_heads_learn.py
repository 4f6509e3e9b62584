"""Heads with an embedding, trained by `fit`, against exact log ratios."""

from dataclasses import replace

import pytest
import torch
from picture_toys import Hits, Spot, rows

from sbi_core import Events
from sbi_core.estimators import RatioEstimator, alice, fit

SPOT, RUNS = Spot(), Events(Hits(), luminosity=3.0)


def trained(world, data, embedding, epochs):
    head = RatioEstimator.from_data(data, embedding=embedding, hidden=(32,))
    options = {"max_epochs": epochs, "batch_size": 64, "learning_rate": 1e-2, "gold_check": False, "progress": False}
    return fit(head, alice, data, simulator=world, seed=1, **options).estimator


def squared_errors(world, estimator, step, data, told=None):
    """Of log ratios against a theta at a distance, (N,), in units of their mean square; n_events may be told wrong."""
    low, high = world.parameters[0].low, world.parameters[0].high
    other = data.theta + step * torch.where(torch.arange(len(data)) % 2 == 0, 1.0, -1.0)[:, None]
    other = torch.where((other < low) | (other > high), 2 * data.theta - other, other)
    known = {"n_events": data.n_events} if data.n_events is not None else {}

    def log_ratio(source, options):
        with torch.no_grad():
            ends = [source.log_likelihood(theta, data.x, **options) for theta in (data.theta, other)]
        return ends[0].double() - ends[1].double()

    truth = log_ratio(world, known)
    heard = known if told is None else {"n_events": told}
    learned = log_ratio(estimator, heard if estimator.needs_n_events else {})
    return (learned - truth) ** 2 / (truth**2).mean()


def below(errors, bar):
    """Whether their mean is less than the bar by four standard errors."""
    return bool(errors.mean() + 4 * errors.std() / len(errors) ** 0.5 < bar)


def of_a_spot(symmetry="none", n=1000, epochs=15):
    embedding = {"name": "cnn", "width": 4, "features": 8, "symmetry": symmetry}
    estimator = trained(SPOT, rows(SPOT, n), embedding, epochs)
    return squared_errors(SPOT, estimator, 2.0, rows(SPOT, 1000, seed=9))


def test_an_image_is_read_by_a_cnn():
    assert below(of_a_spot(), 0.25)
    assert not below(of_a_spot("flips", epochs=3), 0.25), "saboteur: a network that cannot tell up from down"


@pytest.mark.slow
def test_an_image_is_read_well():
    assert below(of_a_spot(n=4000, epochs=30), 0.05)
    assert not below(of_a_spot("flips", n=4000, epochs=10), 0.05), "saboteur"


def of_runs(embedding, counted=True, n=1000, epochs=15):
    data, test = rows(RUNS, n), rows(RUNS, 4000, seed=9)
    if not counted:
        data = replace(data, n_events=None)
    return squared_errors(RUNS, trained(RUNS, data, embedding, epochs), 0.3, test)


SETS = {"name": "sets", "width": 16, "features": 8}


def test_a_run_of_events_is_read_as_a_set():
    estimator, test = trained(RUNS, rows(RUNS, 1000), SETS, 15), rows(RUNS, 4000, seed=9)
    assert below(squared_errors(RUNS, estimator, 0.3, test), 0.3)
    other = squared_errors(RUNS, estimator, 0.3, test, test.n_events.roll(1))
    assert not below(other, 0.3), "saboteur: the number of another run"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:x column")
def test_runs_of_events_need_their_number():
    read = of_runs(SETS, n=4000, epochs=25)
    assert below(read, 0.08)
    for embedding in (SETS, None):
        blind = of_runs(embedding, counted=False, n=4000, epochs=25)
        assert below(read - blind, 0) and not below(blind, 0.08), embedding
