import math
from pathlib import Path

import numpy as np
import pytest
import torch
from measures import z_of_mean
from torch.distributions import MultivariateNormal

from sbi_core import InputError, MissingGold, check_gold, joint_score, simulate
from sbi_core.simulators import LinearGaussian

MATRIX = [[1.0, 0.0], [1.0, 2.0], [0.0, -1.0]]
WORLDS = {
    "one": LinearGaussian(),
    "three": LinearGaussian(3),
    "matrix": LinearGaussian(matrix=MATRIX, latent_std=1.5, noise_std=0.5, prior_std=2.0),
}
BENCHMARK = LinearGaussian.benchmark()
PUBLISHED = np.load(Path(__file__).parent / "reference" / "gaussian_linear.npz")
worlds = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)


def moment_test(x, theta, world, spread):
    """z-score of (x - A theta)^2 against the variance that is stated."""
    return z_of_mean((x - theta @ world.matrix.T) ** 2, spread)


@worlds
def test_rows_have_their_moments(world):
    rows = simulate(world, 20_000, seed=1, progress=False)
    assert rows.x.shape == rows.z.shape == (20_000, len(world.matrix))
    assert z_of_mean(rows.x - rows.theta @ world.matrix.T) < 4
    assert moment_test(rows.x, rows.theta, world, world.variance) < 4
    assert moment_test(rows.z, rows.theta, world, world.latent_std**2) < 4
    assert moment_test(rows.x, rows.theta, world, world.latent_std**2) > 4, "saboteur: the latent's variance"
    assert z_of_mean(rows.theta**2, world.prior_std**2) < 4


def test_textbook_case():
    rows = simulate(WORLDS["one"], 100, seed=1, progress=False)
    assert torch.allclose(joint_score(WORLDS["one"], rows), (rows.z - rows.theta) / 4, atol=1e-12)
    assert torch.allclose(WORLDS["one"].score(rows.theta, rows.x), (rows.x - rows.theta) / 5, atol=1e-12)


@worlds
def test_log_likelihood_is_the_normal_density(world):
    rows = simulate(world, 50, seed=1, progress=False)
    wide = world.variance * torch.eye(len(world.matrix)).double()
    exact = MultivariateNormal(rows.theta @ world.matrix.T, wide).log_prob(rows.x)
    assert torch.allclose(world.log_likelihood(rows.theta, rows.x), exact, atol=1e-12)
    assert not torch.allclose(world.log_likelihood(rows.theta, rows.z), exact, atol=1e-2)


@worlds
def test_score_is_the_gradient(world):
    rows = simulate(world, 50, seed=1, progress=False)
    leaf = rows.theta.clone().requires_grad_()
    gradient = torch.autograd.grad(world.log_likelihood(leaf, rows.x).sum(), leaf)[0]
    assert torch.allclose(world.score(rows.theta, rows.x), gradient, atol=1e-12)


@worlds
def test_mean_joint_score_given_x_is_the_score(world):
    """E[(t - score) phi(x)] = 0 for any phi; here 1, x and x^2."""
    rows = simulate(world, 20_000, seed=1, proposal=torch.full((world.matrix.shape[1],), 0.3), progress=False)
    for target, saboteur in ((world.score(rows.theta, rows.x), False), (1.1 * world.score(rows.theta, rows.x), True)):
        difference = (joint_score(world, rows) - target)[:, :, None]
        worst = max(z_of_mean(difference * phi[:, None]) for phi in (rows.x**0, rows.x, rows.x**2))
        assert (worst > 4) == saboteur


@worlds
def test_information_is_the_variance_of_the_score(world):
    rows = simulate(world, 20_000, seed=1, progress=False)
    for score, latent in ((world.score(rows.theta, rows.x), False), (joint_score(world, rows), True)):
        square = (score[:, :, None] * score[:, None]).flatten(1)
        assert z_of_mean(square, world.fisher_information(latent=latent).flatten()) < 4
        assert z_of_mean(square, world.fisher_information(latent=not latent).flatten()) > 4


@pytest.mark.parametrize("n", [1, 7])
def test_posterior_in_one_dimension_is_that_of_a_grid(n):
    world, x = WORLDS["one"], simulate(WORLDS["one"], n, seed=1, progress=False).x
    theta = torch.linspace(-8, 8, 4001).double()[:, None]
    log_p = world.prior.log_prob(theta) + world.log_likelihood(theta[:, None], x).sum(1)
    p = (log_p - log_p.max()).exp()
    p = p / p.sum() / (16 / 4000)
    assert torch.allclose(world.posterior(x).log_prob(theta).exp(), p, atol=1e-8)
    assert not torch.allclose(world.posterior(x + 0.1).log_prob(theta).exp(), p, atol=1e-3)


def test_posterior_in_more_dimensions_is_prior_times_likelihood():
    world, x = WORLDS["matrix"], simulate(WORLDS["matrix"], 4, seed=1, progress=False).x
    theta = torch.randn(20, 2, generator=torch.Generator().manual_seed(1)).double()
    joint = world.prior.log_prob(theta) + world.log_likelihood(theta[:, None], x).sum(1)
    gap = joint - world.posterior(x).log_prob(theta)
    assert torch.allclose(gap, gap[0].expand(20), atol=1e-10), "their difference is the log evidence"


@pytest.mark.parametrize(("name", "n"), [("one", 1), ("one", 5), ("matrix", 1)])
def test_information_gain_is_the_mean_divergence(name, n):
    world = WORLDS[name]
    rows = simulate(world, 400, seed=1, progress=False)
    noise = math.sqrt(world.variance) * torch.randn(
        (400, n, len(world.matrix)), generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    gains = torch.stack(
        [
            world.posterior(x).log_prob(theta) - world.prior.log_prob(theta)
            for theta, x in zip(rows.theta, (rows.theta @ world.matrix.T)[:, None] + noise, strict=True)
        ]
    )
    assert z_of_mean(gains, world.information_gain(n)) < 4
    assert z_of_mean(gains, 1.5 * world.information_gain(n) + 0.1) > 4


def test_information_gain_known_values():
    assert float(WORLDS["one"].information_gain()) == pytest.approx(0.5 * math.log(1.2))
    assert float(WORLDS["three"].information_gain(10)) == pytest.approx(1.5 * math.log(3))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dim": 2, "matrix": MATRIX}, "dim or matrix, not both"),
        ({"matrix": [1.0, 2.0]}, r"matrix has shape \(2,\)"),
        ({"latent_std": 0.0}, "must be positive"),
        ({"noise_std": -1.0}, "noise -1.0 at least 0"),
    ],
)
def test_world_that_is_none_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        LinearGaussian(**options)


def test_latent_is_needed_for_gold():
    with pytest.raises(MissingGold, match="'LinearGaussian'"):
        WORLDS["one"].log_joint(torch.zeros(1, 1), None, None, None)


def test_world_without_noise_has_exact_gold():
    rows = simulate(BENCHMARK, 5000, seed=1, progress=False)
    assert torch.equal(rows.x, rows.z) and rows.x.shape == rows.theta.shape == (5000, 10)
    assert torch.allclose(joint_score(BENCHMARK, rows), BENCHMARK.score(rows.theta, rows.x), atol=1e-12)
    assert z_of_mean((rows.x - rows.theta) ** 2, 0.1) < 4 and z_of_mean(rows.theta**2, 0.1) < 4
    assert z_of_mean((rows.x - rows.theta) ** 2, 0.2) > 4, "saboteur: as if there were noise too"
    check_gold(BENCHMARK, rows).raise_if_failed()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_published_posterior_samples(k):
    x, samples = torch.from_numpy(PUBLISHED[f"x_obs_{k}"]), torch.from_numpy(PUBLISHED[f"posterior_{k}"]).double()

    def worst(world):
        exact = world.posterior(x)
        off = samples - exact.mean
        square = (off[:, :, None] * off[:, None]).flatten(1)
        return max(z_of_mean(off), z_of_mean(square, exact.covariance_matrix.flatten()))

    assert worst(BENCHMARK) < 4
    assert worst(LinearGaussian(10, latent_std=0.3, noise_std=0.3, prior_std=0.316)) > 4, "saboteur: more noise"
