import json

import pytest
import torch

from sbi_core import InputError, simulate
from sbi_core.estimators import Ensemble, RatioEstimator, alices, fit
from sbi_core.inference.frequentist.coverage import coverage_map
from sbi_core.inference.frequentist.limits import limits
from sbi_core.simulators import GaltonBoard

BOARD = GaltonBoard()


def assert_covers(estimator, thetas, **options):
    """Within 4 joint standard errors at 68.3% on both sides, and at 95% not below."""
    theta = torch.linspace(-1, 0, thetas).double()[:, None]
    found = coverage_map(estimator, BOARD, theta, events=100, toys=500, critical_toys=2000, **options)
    assert found.share.shape == found.error.shape == (2, thetas)
    assert torch.allclose(found.error[0], torch.tensor((0.683 * 0.317 * (1 / 500 + 1 / 2000)) ** 0.5).double())
    z = (found.share - torch.tensor([[0.683], [0.95]])) / found.error
    assert z[0].abs().max() < 4 and z[1].min() > -4
    return found


def test_neyman_sets_cover():
    found = assert_covers(BOARD, 5, seed=3)
    assert all(check.passed for check in found.checks) and found.belt.q.shape == (5, 2000)
    assert json.loads(json.dumps(found.summary()))["checks"][0]["passed"] is True


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("method", ["feldman_cousins", "neyman"])
def test_neyman_sets_cover_everywhere(method, seed):
    """A bar of the project: 500 toys of 100 balls at 25 thetas, critical values from 2,000 others."""
    assert_covers(BOARD, 25, method=method, seed=seed)


@pytest.fixture(scope="module")
def trained():
    """Two trainings on 5,000 balls."""
    runs = []
    for seed in (1, 2):
        data = simulate(BOARD, 5000, seed=seed, progress=False)
        runs.append(fit(RatioEstimator.from_data(data), alices, data, simulator=BOARD, seed=seed, progress=False))
    return [run.estimator for run in runs]


@pytest.mark.slow
def test_sets_of_a_trained_estimator_cover(trained):
    for estimator in trained:
        assert_covers(estimator, 25, seed=1)


@pytest.mark.slow
def test_sets_of_trained_estimators_are_the_exact_ones(trained):
    """Within a quarter of the standard error; the spread of two trainings is about how far they are off."""
    x = BOARD.sample(torch.full((100, 1), -0.7).double(), None, torch.Generator().manual_seed(1))[0]
    options = {"iid": True, "simulator": BOARD, "seed": 1, "toys": 1000, "points": 17}
    for method in ("profile", "feldman_cousins"):
        found, exact = (limits(one, x, method=method, **options) for one in (Ensemble(trained), BOARD))
        for level in found.levels:
            one, other = found.interval(level)[0], exact.interval(level)[0]
            for end in ("low", "high"):
                noise = (getattr(one, f"{end}_error") ** 2 + getattr(other, f"{end}_error") ** 2) ** 0.5
                off = abs(getattr(one, end) - getattr(other, end))
                assert off < 0.25 * float(exact.error) + 4 * noise
                assert 0 < getattr(one, f"{end}_training") < 0.25 * float(exact.error) + 4 * noise
        assert "2 trainings" in found.verdicts["spread of trainings"] and len(found.members) == 2


def test_wilks_sets_do_not_cover_as_they_say_at_the_edge():
    """The saboteur of the test above, and a use of the map: q is half of the time zero at the edge."""
    found = coverage_map(BOARD, BOARD, [[-1.0], [-0.5]], events=100, method="profile", seed=3)
    z = (found.share - torch.tensor([[0.683], [0.95]])) / found.error
    assert z[0, 0] > 4 and abs(z[0, 1]) < 4
    assert not found.checks[0].passed and "theta = -1" in found.checks[0].text


def test_ties_of_a_discrete_statistic():
    """One ball: 20 slots. Shared ties cover as often as they should, ties that count against do more often."""
    theta = [[-0.9], [-0.1]]
    shared = coverage_map(BOARD, BOARD, theta, seed=1, toys=2000)
    against = coverage_map(BOARD, BOARD, theta, seed=1, toys=2000, ties="against")
    assert all(check.passed for check in shared.checks)
    assert (against.share > shared.share).all() and not all(check.passed for check in against.checks)


def test_sets_of_a_wrong_likelihood_cover_too():
    """Toys make up for a wrong estimator, at the price of wider sets; the chi-squared law does not."""

    class Narrow(GaltonBoard):
        def log_likelihood(self, theta, x, design=None):
            return 3 * super().log_likelihood(theta, x, design)

    found = coverage_map(Narrow(), BOARD, [[-0.7], [-0.3]], events=100, seed=1, level=0.95)
    wilks = coverage_map(Narrow(), BOARD, [[-0.7], [-0.3]], events=100, seed=1, level=0.95, method="profile")
    assert found.checks[0].passed and not wilks.checks[0].passed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"theta": [-0.5]}, "expected (G, 1)"),
        ({"theta": [[0.5]]}, "inside the parameters' ranges"),
        ({"ties": "random"}, "ties = 'random'"),
        ({"time_limit": 1e-9}, "ended it after 1 of 2 thetas"),
        ({"method": "wilks"}, "method = 'wilks'"),
    ],
)
def test_options_that_do_not_fit(options, words):
    with pytest.raises(InputError) as caught:
        coverage_map(BOARD, BOARD, **{"theta": [[-0.5], [-0.4]], **options})
    assert words in str(caught.value)
