from itertools import pairwise

import lenses_by_hand as by_hand
import numpy as np
import pytest
import torch
from measures import z_of_mean
from scipy.integrate import quad
from scipy.stats import norm, poisson

from sbi_core import SimulatorError, check_gold, infer, joint_log_ratio, joint_score, simulate
from sbi_core.simulators import StrongLensing

WORLD = StrongLensing("catalogue")
CATALOGUE = WORLD._catalogue
LENS = by_hand.Lens()
SHARP = StrongLensing("catalogue", width=0.05, error=0.04, m_half=1e9, m_calibration=1e7)


def at(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


FIDUCIAL = at(0.05, -0.9)


def number(theta, low, high):
    """Number of subhalos per ln m at 1 solar mass, so that it is m^beta times that; `low` of what is calibrated."""
    f_sub, beta = theta
    options = {"epsabs": 0, "epsrel": 1e-12, "limit": 200}
    return f_sub * LENS.region_mass / quad(lambda t: np.exp((beta + 1) * t), np.log(low), np.log(high), **options)[0]


def intensity(world, theta, y):
    """mu(y) per dex, by quadrature over log10 m."""
    low, high = np.log10(1e8), np.log10(0.01 * LENS.mass)
    scale = number(theta, world.m_calibration, 10**high) * np.log(10)

    def each(t):
        found = norm.cdf((t - np.log10(world.m_half)) / world.width)
        return 10 ** (theta[1] * t) * found * norm.pdf(y, t, world.error)

    ends = np.unique(np.clip([low, y - 8 * world.error, y, y + 8 * world.error, high], low, high))
    pieces = pairwise(ends)
    return scale * sum(quad(each, *piece, epsabs=0, epsrel=1e-11, limit=400)[0] for piece in pieces)


def expected(world, theta):
    low, high = np.log10(1e8), np.log10(0.01 * LENS.mass)
    scale = number(theta, world.m_calibration, 10**high) * np.log(10)

    def each(t):
        return 10 ** (theta[1] * t) * norm.cdf((t - np.log10(world.m_half)) / world.width)

    return scale * quad(each, low, high, epsabs=0, epsrel=1e-12, limit=400)[0]


def catalogue(world, masses):
    x = torch.zeros(world.x_shape, dtype=torch.float64)
    x[: len(masses)] = at(*masses)
    return x


@pytest.mark.parametrize("world", [WORLD, SHARP], ids=["default", "sharp"])
@pytest.mark.parametrize("theta", [(0.05, -0.9), (0.2, -1.5), (0.001, -0.5), (0.1, -1.0)])
def test_likelihood_is_that_of_quadrature(world, theta):
    for masses in ([], [8.7], [7.9, 9.3, 10.9, 11.35]):
        value = float(world.log_likelihood(at(*theta), catalogue(world, masses)))
        each = [np.log(intensity(world, theta, y)) for y in masses]
        exact = sum(each) - expected(world, theta) - np.log(float(np.prod(np.arange(1, len(masses) + 1))))
        assert value == pytest.approx(exact, abs=1e-8)
        moved = float(world.log_likelihood(at(*theta), catalogue(world, [y + 0.001 for y in masses])))
        assert not masses or moved != pytest.approx(exact, abs=1e-8), "saboteur: measured a little higher"


def test_probabilities_add_up_to_one():
    """The intensity integrates to the expected number, and numbers are Poisson."""
    y = torch.linspace(6.0, 13.0, 2801, dtype=torch.float64)
    x = torch.zeros(2801, *WORLD.x_shape, dtype=torch.float64)
    x[:, 0] = y
    mean = float(CATALOGUE.expected(FIDUCIAL))
    alone = torch.trapezoid(WORLD.log_likelihood(FIDUCIAL, x).exp(), y)
    assert float(alone) == pytest.approx(poisson.pmf(1, mean), rel=1e-9)
    assert float(alone) != pytest.approx(poisson.pmf(1, 1.001 * mean), rel=1e-4)
    nothing = WORLD.log_likelihood(FIDUCIAL, torch.zeros(WORLD.x_shape))
    assert float(nothing) == pytest.approx(poisson.logpmf(0, mean), abs=1e-10)


def test_score_is_the_gradient():
    rows = simulate(WORLD, 200, seed=1, progress=False)
    for world in (WORLD, SHARP):
        leaf = rows.theta.clone().requires_grad_()
        slope = torch.autograd.grad(world.log_likelihood(leaf, rows.x).sum(), leaf)[0]
        assert torch.allclose(world.score(rows.theta, rows.x), slope, rtol=1e-9, atol=1e-8)


@pytest.fixture(scope="module")
def fiducial():
    return simulate(WORLD, 20_000, seed=1, proposal=FIDUCIAL, progress=False)


def test_score_has_mean_zero_and_the_information_as_variance(fiducial):
    score = WORLD.score(FIDUCIAL, fiducial.x)
    assert z_of_mean(score) < 4
    exact = WORLD.fisher_information(FIDUCIAL)
    squares = score[:, :, None] * score[:, None, :]
    assert z_of_mean(squares, exact.flatten()) < 4 and z_of_mean(squares, 1.1 * exact.flatten()) > 4
    assert z_of_mean(WORLD.score(FIDUCIAL * at(1.02, 1.0), fiducial.x)) > 4, "saboteur: at another theta"
    found = (fiducial.x > 0).double().sum(1)
    assert z_of_mean(found, float(CATALOGUE.expected(FIDUCIAL))) < 4
    less = WORLD.fisher_information(FIDUCIAL, latent=True) - exact
    assert bool((torch.linalg.eigvalsh(less) > 0).all()), "the masses themselves know more"


def test_information_of_many_thetas_at_once():
    theta = at(0.05, -0.9, 0.1, -1.0, 0.2, -0.5).reshape(3, 2)
    each = torch.stack([WORLD.fisher_information(one) for one in theta])
    assert torch.allclose(WORLD.fisher_information(theta), each, rtol=1e-12)
    y, mass = torch.linspace(6.4, 12.6, 400).double(), torch.linspace(8.0, np.log10(0.01 * LENS.mass), 2000).double()

    def mu(f_sub, beta):
        found = torch.special.ndtr((mass - np.log10(3e8)) / 0.3) * 10 ** (beta * mass)
        spread = torch.exp(-((y[:, None] - mass) ** 2) / (2 * 0.15**2)) / (0.15 * np.sqrt(2 * np.pi))
        scale = number((f_sub, beta), 1e8, 0.01 * LENS.mass) * np.log(10)
        return scale * torch.trapezoid(spread * found, mass)

    slopes = [mu(0.05, -0.9) / 0.05, (mu(0.05, -0.899) - mu(0.05, -0.901)) / 0.002]
    exact = [[float(torch.trapezoid(a * b / mu(0.05, -0.9), y)) for a in slopes] for b in slopes]
    assert np.allclose(WORLD.fisher_information(FIDUCIAL).numpy(), exact, rtol=1e-5)


def features(rows):
    there = rows.x > 0
    n = there.double().sum(1, keepdim=True)
    return torch.cat([torch.ones_like(n), n, rows.x.sum(1, keepdim=True), rows.x.amax(1, keepdim=True)], 1)


def test_mean_gold_given_x_is_exact():
    """E[(t - score) phi(x)] = 0 and E[(r_joint - r) phi(x)] = 0."""
    rows = simulate(WORLD, 10_000, seed=2, progress=False)
    size = WORLD.fisher_information(rows.theta, latent=True).diagonal(dim1=1, dim2=2).sqrt()
    phi = features(rows)[:, :, None]
    differs = (joint_score(WORLD, rows) - WORLD.score(rows.theta, rows.x)) / size
    assert z_of_mean(differs[:, None] * phi) < 4
    blunt = StrongLensing("catalogue", error=0.4)
    wrong = (joint_score(WORLD, rows) - blunt.score(rows.theta, rows.x)) / size
    assert z_of_mean(wrong[:, None] * phi) > 4, "saboteur: another error of the masses"
    near = rows.theta + 0.3 / size * at(1.0, -1.0)
    ratio = joint_log_ratio(WORLD, rows, near, rows.theta).exp()
    exact = (WORLD.log_likelihood(near, rows.x) - WORLD.log_likelihood(rows.theta, rows.x)).exp()
    assert z_of_mean((ratio - exact)[:, None] * phi[:, :, 0]) < 4
    assert z_of_mean((ratio - exact**2)[:, None] * phi[:, :, 0]) > 4, "saboteur"


@pytest.mark.parametrize("seed", [1, 2])
def test_gold_passes(seed):
    check_gold(WORLD, simulate(WORLD, 5000, seed=seed, progress=False)).raise_if_failed()


def test_no_catalogue_is_cut():
    slopes = torch.linspace(-1.5, -0.5, 11, dtype=torch.float64)
    most = max(expected(WORLD, (0.2, beta)) for beta in slopes.tolist())
    assert poisson.sf(CATALOGUE.n_max, most) < 1e-9 < poisson.sf(CATALOGUE.n_max - 25, most)
    with pytest.raises(SimulatorError, match=r"found in one catalogue, expected at most \d+"):
        WORLD.sample(at(2.0, -1.5).expand(10, 2), None, torch.Generator().manual_seed(1))


def test_everything_broadcasts():
    rows = simulate(WORLD, 6, seed=3, progress=False)
    theta = torch.stack([FIDUCIAL, at(0.1, -1.1)])[:, None]
    grid = WORLD.log_likelihood(theta, rows.x)
    assert grid.shape == (2, 6) and WORLD.score(theta, rows.x).shape == (2, 6, 2)
    assert torch.allclose(grid[1, 3], WORLD.log_likelihood(theta[1, 0], rows.x[3]))
    assert torch.allclose(WORLD.observe(rows.x[3])(theta[:, 0]), grid[:, 3])
    assert WORLD.log_likelihood(FIDUCIAL, rows.x[0]).shape == ()


def test_posterior_of_a_population():
    """Fifty catalogues at the fiducial theta: as wide as the information says, and not far from the truth."""
    rows = simulate(WORLD, 50, seed=4, proposal=FIDUCIAL, progress=False)
    posterior = infer(WORLD, WORLD.prior, rows.x, iid=True)
    width = torch.linalg.inv(50 * WORLD.fisher_information(FIDUCIAL)).diagonal().sqrt()
    assert bool(((posterior.mean - FIDUCIAL).abs() < 4 * width).all())
    assert posterior.stddev.tolist() == pytest.approx(width.tolist(), rel=0.35)
    fewer = infer(WORLD, WORLD.prior, rows.x[:10], iid=True)
    assert bool((fewer.stddev > 1.35 * width).all()), "saboteur: ten are less"
