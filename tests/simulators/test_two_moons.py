import math
from pathlib import Path

import numpy as np
import pytest
import torch
from measures import z_of_mean

from sbi_core import MissingGold, joint_score, simulate
from sbi_core.simulators import TwoMoons

WORLD = TwoMoons()
PUBLISHED = np.load(Path(__file__).parent / "reference" / "two_moons.npz")
THETAS = [(0.3, -0.5), (-0.7, 0.2), (0.9, 0.8)]
MEAN_INVERSE_RADIUS = 10.1031  # E[1 / r], r ~ N(0.1, 0.01^2)


def at(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def centres(low, high, cells):
    return low + (high - low) * (torch.arange(cells).double() + 0.5) / cells


def grid(centre):
    """Places x (G, G, 2) about a crescent whose circle has this centre; cells meet at its straight edge."""
    return torch.stack(torch.meshgrid(centres(-0.02, 0.2, 550), centres(-0.2, 0.2, 1000), indexing="ij"), -1) + centre


def centre_of(theta):
    return at(0.25 - abs(theta[0] + theta[1]) / math.sqrt(2), (theta[1] - theta[0]) / math.sqrt(2))


CELL = (0.22 / 550) * (0.4 / 1000)


@pytest.mark.parametrize("theta", THETAS)
def test_likelihood_integrates_to_one(theta):
    x = grid(centre_of(theta))
    density = WORLD.log_likelihood(at(*theta), x).exp()
    assert float(density.sum() * CELL) == pytest.approx(1, abs=1e-4)
    radius = (x - centre_of(theta)).norm(dim=-1)
    flat = float((density * math.pi * radius).sum() * CELL)
    assert abs(flat - 1) > 0.5, "saboteur: without 1 / (pi r)"


@pytest.mark.parametrize("theta", THETAS)
def test_sampled_places_follow_the_likelihood(theta):
    x = simulate(WORLD, 20_000, seed=1, proposal=at(*theta), progress=False).x
    places = grid(centre_of(theta))
    weight = WORLD.log_likelihood(at(*theta), places).exp() * CELL

    def features(where):
        u, v = (where - centre_of(theta)).unbind(-1)
        return torch.stack([u, v, u**2, v**2, u * v, torch.hypot(u, v), (u < 0.02).double(), (v > 0.05).double()], -1)

    expected = (weight[..., None] * features(places)).sum((0, 1))
    assert z_of_mean(features(x), expected) < 4
    assert z_of_mean(features(x + at(0.001, 0.0)), expected) > 4, "saboteur: shifted by 0.001"


def test_place_of_a_known_draw():
    """At a = 0, r = 0.1, theta = (0.3, -0.5): by hand."""
    x = at(0.1 + 0.25 - 0.2 / math.sqrt(2), -0.8 / math.sqrt(2))
    peak = -math.log(0.01 * math.sqrt(2 * math.pi) * math.pi * 0.1)
    assert float(WORLD.log_likelihood(at(0.3, -0.5), x)) == pytest.approx(peak, abs=1e-12)


def test_two_thetas_are_the_same():
    rows = simulate(WORLD, 200, seed=1, progress=False)
    theta, x = rows.theta, rows.x
    here = WORLD.log_likelihood(theta, x)
    assert here.isfinite().all()
    assert torch.allclose(WORLD.log_likelihood(-theta.flip(-1), x), here, atol=1e-6)
    assert not torch.allclose(WORLD.log_likelihood(theta.flip(-1), x), here, atol=1e-6)


def test_outside_is_minus_infinity_without_nan():
    theta = at(0.3, 0.2).requires_grad_()
    x = torch.stack([at(0.25, 0.0), centre_of((0.3, 0.2)), centre_of((0.3, 0.2)) - at(0.1, 0.0)])
    value = WORLD.log_likelihood(theta, x)
    assert value[0].isfinite() and torch.isneginf(value[1:]).all()
    assert torch.autograd.grad(value.sum(), theta)[0].isfinite().all()


def naive_score(rows):
    leaf = rows.theta.clone().requires_grad_()
    return torch.autograd.grad(WORLD.log_likelihood(leaf, rows.x).sum(), leaf)[0]


def test_the_gradient_inside_is_no_score():
    """The edge moves with theta: E[grad log p] is minus what flows over it, not 0. A smooth world would pass."""
    rows = simulate(WORLD, 20_000, seed=1, proposal=at(0.3, 0.2), progress=False)
    flow = -math.sqrt(2) / math.pi * MEAN_INVERSE_RADIUS
    assert z_of_mean(naive_score(rows)) > 4, "the trap: it is not zero"
    assert z_of_mean(naive_score(rows), flow) < 4
    other_side = simulate(WORLD, 20_000, seed=1, proposal=at(-0.3, -0.2), progress=False)
    assert z_of_mean(naive_score(other_side), -flow) < 4


def test_there_is_no_gold():
    assert not WORLD.has_gold and WORLD.is_exact
    rows = simulate(WORLD, 10, seed=1, progress=False)
    assert rows.z is None
    with pytest.raises(MissingGold, match="'TwoMoons' has no log_joint"):
        joint_score(WORLD, rows)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_published_posterior_samples(k):
    x, samples = torch.from_numpy(PUBLISHED[f"x_obs_{k}"]), torch.from_numpy(PUBLISHED[f"posterior_{k}"]).double()
    found = WORLD.log_likelihood(samples, x)
    assert found.isfinite().all()
    axis = centres(-1.0, 1.0, 1000)
    theta = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).flatten(0, 1)
    log_p = WORLD.log_likelihood(theta, x)
    inside = log_p.isfinite()
    log_p, theta = log_p[inside], theta[inside]

    def worst(weight):
        """Of the mean log likelihood and of moments of theta that tell the ends of the crescents."""
        columns = [(log_p, found)]
        for power in (1, 2):
            columns += [(theta[:, d] ** power, samples[:, d] ** power) for d in (0, 1)]
        columns.append((theta.prod(1), samples.prod(1)))
        return max(z_of_mean(ours, float((weight * exact).sum() / weight.sum())) for exact, ours in columns)

    assert worst(log_p.exp()) < 4
    assert worst((1.5 * log_p).exp()) > 4, "saboteur: a posterior too sharp"


def test_shapes_broadcast():
    theta, x = torch.linspace(-1, 1, 10).reshape(5, 1, 2), torch.linspace(-1, 1, 8).reshape(4, 2)
    value = WORLD.log_likelihood(theta, x)
    assert value.shape == (5, 4) and torch.equal(value[2, 1], WORLD.log_likelihood(theta[2, 0], x[1]))
    assert torch.equal(WORLD.observe(x)(theta), value)
