import pytest
import torch

from sbi_core import InputError
from sbi_core.inference.frequentist.coverage import coverage_map
from sbi_core.simulators import GaltonBoard

BOARD = GaltonBoard()


@pytest.mark.parametrize("method", ["feldman_cousins", "neyman"])
def test_neyman_sets_cover(method):
    """A bar of the project: 500 toys of 100 balls at 25 thetas, critical values from 2,000 others."""
    theta = torch.linspace(-1, 0, 25).double()[:, None]
    found = coverage_map(BOARD, BOARD, theta, events=100, method=method, toys=500, critical_toys=2000, seed=3)
    assert found.share.shape == (2, 25)
    z = (found.share - torch.tensor([[0.683], [0.95]])) / found.error
    assert z[0].abs().max() < 4 and z[1].min() > -4
    assert all(check.passed for check in found.checks)


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
