import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from measures import z_of_mean
from scipy.stats import multivariate_normal

from sbi_core import GoldError, Parameter, Store, UniformPrior, check_gold, joint_score, simulate
from sbi_core.simulators import SLCP

WORLD = SLCP()
PUBLISHED = np.load(Path(__file__).parent / "reference" / "slcp.npz")
AWAY = UniformPrior(
    [Parameter(p.name, 1.0 if p.name in ("theta_3", "theta_4") else -3.0, 3.0) for p in WORLD.parameters]
)
"""The prior without the thetas near 0 where scores have heavy tails."""


@pytest.fixture(scope="module")
def rows():
    return simulate(WORLD, 20_000, seed=1, progress=False)


def widths(theta):
    """s1, s2 and rho, written out again."""
    return theta[:, 2] ** 2, theta[:, 3] ** 2, (theta[:, 4].exp() - (-theta[:, 4]).exp()) / (2 * theta[:, 4].cosh())


def by_scipy(theta, x):
    total = 0.0
    for draw in x.reshape(4, 2).numpy():
        (s1,), (s2,), (rho,) = widths(theta[None])
        wide = [[float(s1**2), float(rho * s1 * s2)], [float(rho * s1 * s2), float(s2**2)]]
        total += multivariate_normal.logpdf(draw, theta[:2].numpy(), wide)
    return total


def test_likelihood_is_that_of_scipy():
    rows = simulate(WORLD, 100, seed=2, proposal=AWAY, progress=False)
    value = WORLD.log_likelihood(rows.theta, rows.x)
    exact = torch.tensor([by_scipy(theta, x) for theta, x in zip(rows.theta, rows.x, strict=True)])
    assert torch.allclose(value, exact, atol=1e-8)
    swapped = rows.x.reshape(-1, 2, 4).mT.flatten(1)  # saboteur: x as all first components, then all second ones
    assert not torch.allclose(WORLD.log_likelihood(rows.theta, swapped), exact, atol=1)


def test_rows_have_their_moments(rows):
    s1, s2, rho = widths(rows.theta)
    first, second = (
        (rows.x.unflatten(1, (4, 2)) - rows.theta[:, None, :2]) / torch.stack([s1, s2], -1)[:, None]
    ).unbind(-1)
    assert z_of_mean(torch.cat([first, second], 1)) < 4
    assert z_of_mean(torch.cat([first**2, second**2], 1), 1.0) < 4
    assert z_of_mean(first[:, :-1] * first[:, 1:]) < 4, "the four draws are independent"
    side = rows.theta[:, 4:].sign()
    assert z_of_mean(side * (first * second - rho[:, None])) < 4
    assert z_of_mean(side * (first * second + rho[:, None])) > 4, "saboteur: the sign of the correlation"


def information(theta):
    """Diagonal of the Fisher information of four draws, by hand."""
    s1, s2, rho = widths(theta)
    free = 1 - rho**2
    means = [1 / (s**2 * free) for s in (s1, s2)]
    scales = [(2 / theta[:, d]) ** 2 * (2 - rho**2) / free for d in (2, 3)]
    return 4 * torch.stack([*means, *scales, 1 + rho**2], 1)


def test_mean_score_is_zero_and_its_square_the_information(rows):
    unit = joint_score(WORLD, rows) / information(rows.theta).sqrt()  # a weight of theta alone tames the tails
    assert z_of_mean(unit) < 4
    assert z_of_mean(unit**2, 1.0) < 4
    wide = torch.tensor([1.0, 1.0, 1.02, 1.02, 1.0])
    wrong = joint_score(WORLD, rows, wide * rows.theta) / information(wide * rows.theta).sqrt()
    assert z_of_mean(wrong**2, 1.0) > 4, "saboteur: theta_3 and theta_4 off by a fiftieth"


def test_score_is_the_slope_of_the_log_likelihood():
    rows = simulate(WORLD, 100, seed=2, proposal=AWAY, progress=False)
    score, step = joint_score(WORLD, rows), 1e-5
    for d in range(5):
        shift = step * torch.eye(5).double()[d]
        high, low = (WORLD.log_likelihood(rows.theta + sign * shift, rows.x) for sign in (1, -1))
        slope = (high - low) / (2 * step)
        assert torch.allclose(score[:, d], slope, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(joint_score(WORLD, rows, rows.theta + 0.01)[:, d], slope, rtol=1e-3, atol=1e-3)


def test_signs_of_the_widths_do_not_matter(rows):
    few = rows[:100]
    here = WORLD.log_likelihood(few.theta, few.x)
    for signs, same in (([1, 1, -1, 1, 1], True), ([1, 1, 1, -1, 1], True), ([1, 1, 1, 1, -1], False)):
        assert torch.allclose(WORLD.log_likelihood(few.theta * torch.tensor(signs), few.x), here) == same


@pytest.mark.parametrize("axis", [2, 3])
def test_no_width_is_no_density_and_no_nan(axis):
    theta = torch.ones(2, 5).double()
    theta[0, axis] = 0.0
    theta.requires_grad_()
    value = WORLD.log_likelihood(theta, torch.arange(8.0))
    assert torch.isneginf(value[0]) and value[1].isfinite()
    slope = torch.autograd.grad(value[1:].sum() + value[:1].sum(), theta)[0]
    assert slope.isfinite().all() and not slope[0].any() and slope[1].all()


def test_tanh_loses_no_digits():
    """For theta_5 = 20, tanh is 1 in float64, and 1 - rho^2 = 1 / cosh^2 = 1.7e-17 still counts."""
    theta = torch.tensor([0.0, 0.0, 1.0, 1.0, 20.0]).double().requires_grad_()
    on_the_diagonal = torch.ones(8).double()
    value = WORLD.log_likelihood(theta, on_the_diagonal)
    assert float(value.detach()) == pytest.approx(-2 - 4 * math.log(2 * math.pi) + 4 * (20 - math.log(2)), abs=1e-9)
    assert torch.autograd.grad(value, theta)[0].isfinite().all()


def test_scores_are_finite_over_the_prior(rows):
    assert WORLD.log_likelihood(rows.theta, rows.x).isfinite().all() and joint_score(WORLD, rows).isfinite().all()


class WrongSign(SLCP):
    def log_joint(self, theta, x, z, design):
        return super().log_joint(theta * torch.tensor([1, 1, 1, 1, -1]), x, z, design)


def test_gold_passes():
    rows = simulate(WORLD, 5000, seed=1, proposal=AWAY, progress=False)
    report = check_gold(WORLD, rows)
    report.raise_if_failed()
    assert sum(test.passed is None for test in report.rows) < len(report.rows) / 4
    with pytest.raises(GoldError):
        check_gold(WrongSign(), rows).raise_if_failed()


@pytest.mark.parametrize("seed", range(4))
def test_scores_without_a_bound_raise_no_false_alarm(seed):
    """Over the whole prior the score grows like 1 / theta_3^2: its finite difference is only as good as its step."""
    rows = simulate(WORLD, 10_000, seed=seed, progress=False)
    assert check_gold(WORLD, rows).passed
    wrong = replace(rows, joint_score=1.0001 * joint_score(WORLD, rows))
    tests = check_gold(WORLD, wrong).rows
    assert any(t.passed is False for t in tests if "finite difference" in t.name), "saboteur: a score off by 1e-4"


def test_empty_latents_are_stored(tmp_path):
    store = simulate(WORLD, 1500, seed=1, store=tmp_path / "slcp.zarr", progress=False)
    again, made = Store(store.path)[:], simulate(WORLD, 1500, seed=1, progress=False)
    assert again.z.shape == made.z.shape == (1500, 0)
    assert torch.equal(again.x, made.x)
    assert torch.equal(joint_score(WORLD, again), joint_score(WORLD, made))


def stein(log_likelihood, samples, x):
    """Terms whose posterior mean is 0, by parts over the flat prior: g d log p + d g for g = 9 - theta^2, theta g."""
    leaf = samples.clone().requires_grad_()
    slope = torch.autograd.grad(log_likelihood(leaf, x).sum(), leaf)[0]
    bump = 9 - samples**2
    return torch.cat([bump * slope - 2 * samples, bump * samples * slope + 9 - 3 * samples**2], 1)


SABOTEURS = {
    "widths not squared": lambda theta, x: WORLD.log_likelihood(
        torch.cat([theta[:, :2], theta[:, 2:4].abs().sqrt(), theta[:, 4:]], 1), x
    ),
    "correlation of the other sign": lambda theta, x: WORLD.log_likelihood(
        torch.cat([theta[:, :4], -theta[:, 4:]], 1), x
    ),
    "three draws": lambda theta, x: 0.75 * WORLD.log_likelihood(theta, x),
}


@pytest.mark.parametrize("k", [1, 2, 3])
def test_published_posterior_samples(k):
    x, samples = torch.from_numpy(PUBLISHED[f"x_obs_{k}"]), torch.from_numpy(PUBLISHED[f"posterior_{k}"]).double()
    assert z_of_mean(stein(WORLD.log_likelihood, samples, x)) < 4
    for name, wrong in SABOTEURS.items():
        assert z_of_mean(stein(wrong, samples, x)) > 4, name


def test_shapes_broadcast():
    theta, x = torch.linspace(-2, 2, 25).reshape(5, 1, 5), torch.linspace(-1, 1, 32).reshape(4, 8)
    value = WORLD.log_likelihood(theta, x)
    assert value.shape == (5, 4) and torch.allclose(value[2, 1], WORLD.log_likelihood(theta[2, 0], x[1]))
    assert torch.equal(WORLD.observe(x)(theta), value)
