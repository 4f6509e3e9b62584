"""Bounds are bounds: over many experiments at random, few are on the wrong side of the truth, and none by chance."""

import pytest
import torch
from known_gains import any_of

from sbi_core.design.information import bracket, posterior_gain


def honest(numbers):
    """How far lower bounds are above the truth and upper bounds below it, in standard errors, (R, 2)."""
    found = []
    for number in numbers:
        known, n, inner = any_of(number)
        low, high = bracket(known.simulator, known.prior, known.design, n=n, inner=inner, seed=number)
        found.append([(low.value - known.gain) / low.error, (known.gain - high.value) / high.error])
    return torch.tensor(found)


def wrong(pulls):
    """Share of bounds that are three standard errors on the wrong side, the larger of the two."""
    return float((pulls > 3).double().mean(0).max())


@pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")
@pytest.mark.parametrize("runs", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_bounds_are_on_their_side(runs):
    pulls = honest(range(runs))
    assert wrong(pulls) <= 0.01
    assert pulls.mean(0).max() < 3 / runs**0.5, "nor on the wrong one on average"
    assert wrong(2.5 * pulls) > 0.01, "saboteur: errors that are too small"


@pytest.mark.filterwarnings("ignore::sbi_core.errors.SbiWarning")
@pytest.mark.parametrize("runs", [15, pytest.param(200, marks=pytest.mark.slow)])
def test_read_out_is_right_or_flagged(runs):
    """Between the two bounds there is the gain; fewer than 1% are more than 4 standard errors off without a flag."""
    pulls = []
    for number in range(runs):
        known, n, inner = any_of(number)
        world, options = known.simulator, {"n": n, "inner": inner, "seed": number}
        gain = posterior_gain(world, world, known.prior, known.design, **options)
        pulls.append([(gain.value - known.gain) / gain.error, (1.3 * gain.value - known.gain) / gain.error, gain.flags])
    sure = torch.tensor([pull[:2] for pull in pulls if not pull[2]])
    assert len(sure) > 0.8 * runs and (sure[:, 0].abs() > 4).double().mean() < 0.01
    assert (sure[:, 1].abs() > 4).double().mean() > 0.2, "saboteur: 1.3 times the gain"
