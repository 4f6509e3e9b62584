"""An estimator trained on gold from weighted events, against the exact likelihood of the process that made them."""

import pytest
import torch

from sbi_core import infer, simulate
from sbi_core.estimators import RatioEstimator, alices, fit, nre_gold
from sbi_core.seeding import seeded
from sbi_core.simulators import ContactInteraction, WeightedEvents

PROCESS = ContactInteraction(["lq3"], reach=0.2)


def library(n, seed):
    made = PROCESS.generate(n, seed=seed)
    return WeightedEvents(made.x, made.weights, made.benchmarks, PROCESS.parameters)


def learned(events, rows, loss, **options):
    data = simulate(events, rows, seed=1, progress=False)
    head = RatioEstimator.from_data(data)
    return fit(head, loss, data, simulator=events, seed=1, device="cpu", progress=False, **options).estimator


@torch.no_grad()
def errors(estimator):
    """Mean square of log r(x | theta, theta') and of its error, x drawn at theta from events of another seed."""
    rows = simulate(library(40_000, 77), 2000, seed=2, progress=False)
    with seeded(3):
        other = PROCESS.prior.sample(torch.Size([2000]))

    def log_ratio(f):
        return (f.log_likelihood(rows.theta, rows.x) - f.log_likelihood(other, rows.x)).double()

    exact = log_ratio(PROCESS)
    return float(exact.square().mean()), float((log_ratio(estimator) - exact).square().mean())


class Flat:
    """Saboteur: knows the cross-section alone."""

    @staticmethod
    def log_likelihood(theta, x):
        return -PROCESS.rate(theta).log()


def test_estimator_comes_near_the_exact_likelihood():
    """A thin slice: 1500 rows, 30 epochs; nine tenths of log r are explained."""
    size, error = errors(learned(library(20_000, 1), 1500, nre_gold, max_epochs=30, gold_check=False))
    assert error < 0.1 * size < errors(Flat)[1]


@pytest.mark.slow
@pytest.mark.parametrize("loss", [alices, nre_gold])
def test_estimator_is_near_the_exact_likelihood(loss):
    estimator = learned(library(100_000, 1), 8000, loss)
    size, error = errors(estimator)
    assert error < 0.03 * size
    made = PROCESS.generate(40_000, [[0.08]], seed=78)
    x_obs = made.x[torch.multinomial(made.weights[:, 0], 200, generator=torch.Generator().manual_seed(4))]
    found, exact = (infer(f, PROCESS.prior, x_obs, iid=True) for f in (estimator, PROCESS))
    width = float(exact.variance) ** 0.5
    assert abs(float(found.mean - exact.mean)) < 0.5 * width and 0.7 < float(found.variance) ** 0.5 / width < 1.4
