from functools import partial

import numpy as np
import pytest
import torch
from measures import z_of_mean

from sbi_core import Parameter, Simulations, simulate
from sbi_core.estimators import RatioEstimator, carl, fit
from sbi_core.estimators.scaling import Scaler, ScoreScale
from sbi_core.simulators import LinearGaussian

SIGNAL = torch.from_numpy(np.random.default_rng(1).standard_normal((2000, 1)))
EPS = torch.finfo(torch.float32).eps


def scaled(values):
    """The column scaled by a scaler that learnt from it."""
    scaler = Scaler(values.shape[1])
    scaler.adapt(values)
    return scaler(values), scaler


def test_the_bulk_is_median_and_half_the_central_range():
    got, _ = scaled(3 + 5 * SIGNAL)
    low, middle, high = np.quantile(SIGNAL, [0.16, 0.5, 0.84])
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), (SIGNAL - middle) * 2 / (high - low), rtol=2 * EPS, atol=1e-12)
    assert got.abs().max() < 6, "no value of the bulk is touched by the tail"


@pytest.mark.parametrize("factor", [1e-300, 1e-20, 1e-8, 1.0, 1e8, 1e20, 1e300])
def test_the_unit_does_not_matter(factor):
    assert torch.allclose(scaled(SIGNAL * factor)[0], scaled(SIGNAL)[0], rtol=4 * EPS, atol=0)


@pytest.mark.parametrize("offset", [-1e9, 3e7, 1e9, 1e12])
def test_an_offset_costs_only_its_float64_rounding(offset):
    """In float32, 1e9 + signal is one number."""
    rounding = np.spacing(abs(offset)) / float(SIGNAL.std())
    gap = (scaled(SIGNAL + offset)[0] - scaled(SIGNAL)[0]).abs().max()
    assert gap <= 4 * rounding + 8 * EPS
    late = (SIGNAL + offset).float()
    late = (late - late.median()) / SIGNAL.std()
    gap = (late - scaled(SIGNAL)[0]).abs().max()
    assert not gap <= 4 * rounding + 8 * EPS, "saboteur: float32 before the subtraction"


def test_an_offset_in_units_of_its_own():
    mixed = torch.cat([1e9 + SIGNAL, 1e-20 * SIGNAL, 1e8 * SIGNAL], 1)
    got, _ = scaled(mixed)
    assert torch.allclose(got, got[:, 2:].expand(-1, 3), atol=1e-6)


def test_outliers_do_not_move_the_bulk():
    wild = SIGNAL.clone()
    wild[[10, 20]] = torch.tensor([[1e12], [-1e12]]).double()
    got, clean = scaled(wild)[0], scaled(SIGNAL)[0]
    rest = torch.ones(len(wild), dtype=torch.bool)
    rest[[10, 20]] = False
    shift = (got - clean)[rest].abs().max()
    assert shift < 2 / len(wild) * 10, "two rows of 2000 move a quantile by about a rank"
    by_moments = ((wild - wild.mean()) / wild.std())[rest]
    assert not (by_moments - clean[rest]).abs().max() < 2 / len(wild) * 10, "saboteur: mean and standard deviation"
    assert got[10] > 6 and got[20] < -6 and got.abs().max() < 40, "a wild row stays outside, and within reach"


def test_the_scaling_is_strictly_increasing_and_smooth_into_the_tail():
    _, scaler = scaled(SIGNAL)
    values = torch.linspace(-50, 50, 4001).double()[:, None]
    steps = scaler(values).diff(dim=0)
    assert (steps > 0).all()
    assert (steps.diff(dim=0).abs() < 0.1 * steps.max()).all(), "no kink at the end of the bulk"


def test_constant_columns_are_named_and_left_out():
    values = torch.cat([SIGNAL, torch.full_like(SIGNAL, 7.0), torch.full_like(SIGNAL, 1e9)], 1)
    got, scaler = scaled(values)
    assert scaler.constant == [1, 2]
    assert (got[:, 1:] == 0).all() and torch.equal(got[:, :1], scaled(SIGNAL)[0])
    assert (scaler(torch.full((1, 3), 1e6))[:, 1:] == 0).all(), "whatever comes later"


@pytest.mark.parametrize("share", [0.001, 0.1, 0.3])
def test_a_column_with_mostly_one_value_is_kept(share):
    count = int(share * len(SIGNAL))
    values = torch.full_like(SIGNAL, 5.0)
    values[:count] += SIGNAL[:count].abs() + 1
    got, scaler = scaled(values)
    assert scaler.constant == [] and torch.isfinite(got).all()
    assert (got[count:] == 0).all() and (got[:count] > 1).all() and got.max() < 40
    assert len(got[:count].unique()) == count, "the values that differ still do"


def test_gradients_flow():
    _, scaler = scaled(3 + 5 * SIGNAL)
    at = torch.tensor([[3.0], [-20.0], [500.0], [-1e7]]).double().requires_grad_()
    slope = torch.autograd.grad(scaler(at).sum(), at)[0]
    step = 1e-3 * at.detach().abs()
    ends = [scaler(at.detach() + sign * step).double() for sign in (-1, 1)]
    by_difference = (ends[1] - ends[0]) / (2 * step)
    resolution = 4 * EPS * ends[1].abs() / step
    assert ((slope - by_difference).abs() <= resolution + 1e-5 * slope.abs()).all()
    assert torch.isfinite(slope).all() and (slope > 0).all()
    assert not ((0.9 * slope - by_difference).abs() <= resolution + 1e-5 * slope.abs()).all(), "saboteur"
    flat = Scaler(1)
    flat.adapt(torch.full((5, 1), 7.0))
    assert torch.autograd.grad(flat(at).sum(), at)[0].eq(0).all(), "no slope along a constant column"


def test_before_adapt_nothing_is_scaled():
    assert torch.equal(Scaler(1)(SIGNAL[:, :1].clamp(-6, 6)), SIGNAL.clamp(-6, 6).float())


class Watched(RatioEstimator):
    """Remembers which rows it was scaled to."""

    def adapt(self, rows):
        self.fitted_rows = rows.row
        return super().adapt(rows)


@pytest.mark.filterwarnings("ignore:x is extremely far out")
def test_held_out_rows_reach_neither_scaling_nor_weights():
    axes = (Parameter("a", -10, 10), Parameter("b", -10, 10))
    data = simulate(LinearGaussian(2), 200, seed=1, progress=False)

    def trained(theta, x):
        rows = Simulations.from_arrays(theta, x, parameters=axes)
        run = fit(
            Watched.from_data(rows, hidden=(8,), regression=False), carl, rows, seed=1, max_epochs=1, progress=False
        )
        return run.estimator

    first = trained(data.theta, data.x)
    held_out = torch.ones(len(data), dtype=torch.bool)
    held_out[first.fitted_rows] = False
    assert int(held_out.sum()) == 20

    def changed(mask):
        other = torch.where(mask[:, None], 9.0, data.theta), torch.where(mask[:, None], 1e6, data.x)
        return trained(*other)

    def same(one, other):
        pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
        return {key for (key, value), again in pairs if not torch.equal(value, again)}

    assert same(first, changed(held_out)) == set()
    inside = held_out.roll(1) & ~held_out
    assert {"theta_scaler.shift", "x_scaler.shift", "network.0.weight"} <= same(first, changed(inside)), "saboteur"


# The unit of the score term


def skewed(n=20_000, decades=1):
    """theta (N, 2) and a joint score of mean zero whose size grows with theta_1, skewed and correlated."""
    rng = np.random.default_rng(3)
    theta = rng.uniform(-1, 1, (n, 2))
    noise = rng.standard_exponential((n, 2)) - 1
    score = 10 ** (decades / 2 * theta[:, :1]) * noise @ np.array([[1.0, 0.9], [0.0, 0.2]])
    return torch.from_numpy(theta), torch.from_numpy(score)


def test_the_score_term_is_one_for_silence_everywhere():
    theta, score = skewed(decades=2)
    scale = ScoreScale.of(theta, score)
    size = scale.weight(theta) * (score @ scale.whitening.T).square().mean(1)
    left, right = size[theta[:, 0] < 0], size[theta[:, 0] > 0]
    assert abs(left.mean() - 1) < 0.1 and abs(right.mean() - 1) < 0.1
    flat = (score @ scale.whitening.T).square().mean(1)
    assert flat[theta[:, 0] > 0].mean() > 10 * flat[theta[:, 0] < 0].mean(), "saboteur: without weights"


def test_weights_leave_the_mean_of_the_score_alone():
    rng = np.random.default_rng(3)
    theta, score = (
        torch.from_numpy(draw(size=(2560, 1))) for draw in (partial(rng.uniform, 0, 1), rng.standard_exponential)
    )
    score = score**2 - 2
    scale = ScoreScale.of(theta, score)
    assert z_of_mean(scale.weight(theta, own=True)[:, None] * score @ scale.whitening) < 4
    assert z_of_mean(scale.weight(theta)[:, None] * score @ scale.whitening) > 4, "saboteur: each row in its own weight"


def test_the_unit_of_the_score_follows_the_units_of_theta():
    theta, score = skewed(2000)
    unit = torch.tensor([1e9, 1e-9]).double()
    one, other = ScoreScale.of(theta, score), ScoreScale.of(theta * unit, score / unit)
    assert torch.allclose(other.weight(theta * unit), one.weight(theta), rtol=1e-6)
    assert torch.allclose(other.whitening / unit, one.whitening, rtol=1e-6)


def test_a_parameter_without_a_score_is_left_out():
    theta, score = skewed(2000)
    score[:, 1] = 0.0
    scale = ScoreScale.of(theta, score)
    assert not scale.whitening[:, 1].any() and bool(torch.isfinite(scale.whitening).all())
