import pytest
import torch

from sbi_core import InputError
from sbi_core.inference.frequentist.ratio_calibration import calibrate_ratio
from sbi_core.simulators import GaltonBoard, LinearGaussian

BOARD = GaltonBoard()
PAIR = torch.tensor([[-0.8], [-0.6]]).double()


class Wrong(GaltonBoard):
    """Twice the log likelihood, and something that shifts the log ratio of two thetas."""

    def log_likelihood(self, theta, x, design=None):
        return 2 * super().log_likelihood(theta, x, design) + 3 * theta[..., 0]


def verdicts(found):
    return {(check.name.split()[0], check.about): check.passed for check in found.checks}


def test_a_true_ratio_passes():
    found = calibrate_ratio(BOARD, BOARD, *PAIR, seed=1)
    assert found.passed and all(verdicts(found).values()) and len(found.checks) == 9
    assert "effective of 10000 rows" in found.checks[0].text


@pytest.mark.parametrize("kind", ["histogram", "isotonic"])
def test_a_wrong_ratio_is_seen_and_repaired(kind):
    """Where x is likely, the repaired log ratio is the exact one within the errors of the numbers it comes from."""
    found = calibrate_ratio(Wrong(), BOARD, *PAIR, n=100_000, bins=40, seed=1)
    said = verdicts(found)
    assert not found.passed and said["E[r", "none"] is False and said["share", "none"] is False
    assert all(said[name, kind] for name in ("E[r", "share", "slope"))
    slots = torch.arange(31)[:, None].double()
    likely = BOARD.log_likelihood(PAIR[:, None], slots).amin(0) > -5
    exact = BOARD.log_likelihood(PAIR[0], slots) - BOARD.log_likelihood(PAIR[1], slots)
    learned = Wrong().log_likelihood(PAIR[0], slots) - Wrong().log_likelihood(PAIR[1], slots)
    steps = found.maps[kind]
    error = steps.error[torch.searchsorted(steps.edges, learned)]
    off = (found.log_ratio(learned, kind) - exact) / error
    assert off[likely].abs().max() < 4
    assert ((learned - exact) / error)[likely].abs().max() > 4, "saboteur: not repaired"
    predicted, seen, spread = found.reliability(20, kind)
    assert ((predicted - seen) / spread).abs().max() < 5
    before = found.reliability(20)
    assert ((before[0] - before[1]) / before[2]).abs().max() > 5, "saboteur: not repaired"


def test_a_continuous_ratio():
    world = LinearGaussian(2)
    pair = torch.tensor([[0.5, 0.0], [0.0, 0.5]]).double()
    assert calibrate_ratio(world, world, *pair, seed=1).passed

    class Flat(LinearGaussian):
        def log_likelihood(self, theta, x, design=None):
            return 0.7 * super().log_likelihood(theta, x, design)

    found = calibrate_ratio(Flat(2), world, *pair, seed=1)
    said = verdicts(found)
    assert not found.passed and said["share", "isotonic"] and said["share", "histogram"]
    s = torch.linspace(-0.2, 0.2, 9).double()
    assert (found.log_ratio(s) - s / 0.7).abs().max() < 0.25
    assert (found.log_ratio(s, "none") == s).all()


def test_a_small_error_of_scale_is_seen_by_the_slope():
    class Steep(GaltonBoard):
        def log_likelihood(self, theta, x, design=None):
            return 1.3 * super().log_likelihood(theta, x, design)

    found = [calibrate_ratio(Steep(), BOARD, *PAIR, seed=seed) for seed in range(10)]
    assert sum(verdicts(one)["slope", "none"] is False for one in found) >= 8
    slopes = [float(one.checks[2].text.split("b = ")[1].split(";")[0]) for one in found]
    assert abs(sum(slopes) / 10 - 1 / 1.3) < 0.05
    assert all(verdicts(one)["slope", "isotonic"] for one in found)


def test_what_rests_on_few_rows_is_unchecked():
    world = LinearGaussian(1, latent_std=0.2, noise_std=0.1)
    found = calibrate_ratio(world, world, [2.0], [0.0], seed=1, n=2000)
    assert verdicts(found)["E[r", "none"] is None


def test_a_statistic_that_says_nothing_is_mapped_to_nothing():
    """s depends on a component of x that is the same at both thetas: r = 1, also on rows the maps have not seen."""

    class Blind(LinearGaussian):
        def log_likelihood(self, theta, x, design=None):
            return theta[..., 0] * x[..., 1]

    found = calibrate_ratio(Blind(2), LinearGaussian(2), [1.0, 0.0], [0.0, 0.0], seed=1)
    said = verdicts(found)
    assert said["share", "none"] is False
    assert all(said[name, kind] for name in ("E[r", "share", "slope") for kind in ("histogram", "isotonic"))
    assert found.log_ratio(found.s0).abs().mean() < 0.1
    same = calibrate_ratio(LinearGaussian(2), LinearGaussian(2), [0.0, 0.0], [0.0, 0.0], seed=1)
    assert all(passed is not False for passed in verdicts(same).values())


@pytest.mark.parametrize(
    ("options", "words"),
    [({"n": 100}, "50 simulations for each"), ({"theta0": [0.1, 0.2]}, "theta0 has shape (2,)")],
)
def test_arguments_that_do_not_fit(options, words):
    with pytest.raises(InputError) as caught:
        calibrate_ratio(BOARD, BOARD, **{"theta0": [-0.7], "theta1": [-0.6], **options})
    assert words in str(caught.value)
    with pytest.raises(InputError, match="did you mean 'isotonic'"):
        calibrate_ratio(BOARD, BOARD, [-0.7], [-0.6], seed=1, n=1000).log_ratio(torch.zeros(1), "isotonc")
