"""The exact likelihood of muon pairs: against scipy's quadrature, against simulations, and against its own score."""

import math

import muons_by_hand as by_hand
import numpy as np
import pytest
import torch
from measures import z_of_mean

from sbi_core import Events, UniformPrior, joint_score, simulate
from sbi_core.simulators import MuonPairs

OFF = {"radiation": False, "flips": False, "smearing": 0.0}
SKEW = (-0.3, 0.95)
WORLDS = {
    "default": MuonPairs(),
    "skew": MuonPairs(window=SKEW, smearing=0.03),
    "open": MuonPairs(window=None, flips=False),
    "no radiation": MuonPairs(radiation=False),
    "no smearing": MuonPairs(smearing=0.0, window=SKEW),
}
BARE = MuonPairs(**OFF, window=None)
DEFAULT = WORLDS["default"]
worlds = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)


def at(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


STANDARD = at(0.23153, 1.0)
HARD = at(91.2, 0, 92, 0.5, 93, 0, 95, 0.2, 130, -0.5, 60, 1).reshape(6, 2)  # the Z at the edge, and far
PLACES = at(0.1, 0, 0.9, -0.01, 0.949, 0.1, -0.2, 0.3, 0.5, 0.3546, 0, 1.16).reshape(6, 2)


@pytest.mark.parametrize("window", [(-0.95, 0.95), SKEW])
def test_density_is_that_of_quadrature(window):
    world = MuonPairs(window=window, polarised=True, positron_polarisation=0.3)
    rows = simulate(world, 18, seed=1, design=UniformPrior(world.designs), progress=False)
    design, x = torch.cat([HARD, rows.design[6:]]), torch.cat([PLACES, rows.x[6:]])
    value = world.log_likelihood(rows.theta, x, design).exp()
    for k in range(18):
        energy, electron = design[k].tolist()
        exact, wrong = (
            by_hand.density(rows.theta[k], x[k], energy**2, window, smearing, electron, 0.3)
            for smearing in (0.02, 0.0201)
        )
        assert float(value[k]) == pytest.approx(exact, rel=1e-8)
        assert float(value[k]) != pytest.approx(wrong, rel=1e-5), "saboteur: another smearing"


def legendre(edges, order):
    """Nodes and weights (cells, order)."""
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(order))
    low, high = edges[:-1, None], edges[1:, None]
    return (low + high + (high - low) * nodes) / 2, (high - low) * weights / 2


def cells(world, theta, design, order):
    """Edges in c_obs and |y_obs|, and the probability of each cell; y^(1/20) tames f at 0."""
    in_c = torch.linspace(*world.window, 9).double() if world.window else at(-1.2, -1, -0.8, -0.4, 0, 0.4, 0.8, 1, 1.2)
    in_y = at(0, 1e-4, 0.005, 0.02, 0.04, 0.07, 0.15, 0.25, 0.35, 0.45, 0.8, 1, 1.1513 + 9 * world.smearing)
    in_y = in_y[in_y < 9 * world.smearing] if not world.radiation else in_y
    if world.smearing == 0:
        in_y[-1] = -0.5 * math.log(0.1)
    c, at_c = legendre(in_c, 12)
    root, at_root = legendre(in_y ** (1 / 20), order)
    y, at_y = root**20, 2 * 20 * root**19 * at_root
    x = torch.stack(torch.broadcast_tensors(c[:, None, :, None], y[:, None, :]), -1)
    density = world.log_likelihood(theta, x, design).exp()
    return in_c, in_y, (density * at_c[:, None, :, None] * at_y[:, None, :]).sum((-1, -2))


places = pytest.mark.parametrize(
    ("world", "energy"),
    [
        pytest.param(world, energy, id=f"{name} {energy:g}")
        for name, world in WORLDS.items()
        for energy in ((92.5, 130.0) if name == "default" else (80.0,))
    ],
)


@places
def test_density_is_normalised(world, energy):
    total = float(cells(world, STANDARD, at(energy), 40)[2].sum())
    assert total == pytest.approx(1, abs=1e-6)


def chi_square(counts, share):
    """Distance of counts from those expected, in standard deviations; rare cells pooled."""
    wanted = counts.sum() * share
    often = wanted > 10
    counts, wanted = (torch.cat([v[often], v[~often].sum()[None]]) for v in (counts, wanted))
    return float(((counts - wanted) ** 2 / wanted.clamp(min=1)).sum() - len(wanted)) / math.sqrt(2 * len(wanted))


@places
def test_sampled_events_have_the_exact_density(world, energy):
    rows = simulate(world, 30_000, seed=5, proposal=STANDARD, design=at(energy), progress=False)
    in_c, in_y, share = cells(world, STANDARD, at(energy), 16)
    counts = torch.histogramdd(torch.stack([rows.x[:, 0], rows.x[:, 1].abs()], 1), [in_c, in_y])[0]
    assert counts.sum() > 29_950
    assert chi_square(counts, share) < 4
    assert chi_square(counts, cells(world, at(0.26, 1.4), at(energy), 16)[2]) > 4, "saboteur: another theta"


def test_bare_angles_have_the_exact_density():
    rows = simulate(BARE, 20_000, seed=1, proposal=STANDARD, progress=False)
    assert (rows.x[:, 1] == 0).all() and torch.equal(rows.x[:, 0], rows.z[:, 0])
    c = torch.linspace(-1, 1, 2001).double()
    density = BARE.log_likelihood(STANDARD, torch.stack([c, 0 * c], 1)).exp()
    assert float(torch.trapezoid(density, c)) == pytest.approx(1, abs=1e-6)
    for power in (1, 2):
        assert z_of_mean(rows.x[:, 0] ** power, float(torch.trapezoid(density * c**power, c))) < 4
    assert z_of_mean(rows.x[:, 0], -float(torch.trapezoid(density * c, c))) > 4


@worlds
def test_mean_joint_score_given_x_is_the_score(world):
    """E[(t - score) phi(x)] = 0 for any phi."""
    rows = simulate(world, 20_000, seed=1, design=UniformPrior(world.designs), progress=False)
    gold, (c, y) = joint_score(world, rows), rows.x.T
    for score, saboteur in ((world.score(rows.theta, rows.x, rows.design), False), (0.0 * gold, True)):
        worst = max(z_of_mean((gold - score) * phi[:, None]) for phi in (c**0, c, c**2, y.abs(), (y.abs() > 0.1) * c))
        assert (worst > 4) == saboteur


@pytest.mark.parametrize("world", [*WORLDS.values(), BARE], ids=[*WORLDS, "bare"])
def test_score_is_the_gradient(world):
    rows = simulate(world, 300, seed=2, design=UniformPrior(world.designs), progress=False)
    leaf = rows.theta.clone().requires_grad_()
    gradient = torch.autograd.grad(world.log_likelihood(leaf, rows.x, rows.design).sum(), leaf)[0]
    score = world.score(rows.theta, rows.x, rows.design)
    assert torch.allclose(score, gradient, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(world.score(rows.theta + 1e-3, rows.x, rows.design), gradient, rtol=1e-9, atol=1e-5)


@pytest.mark.parametrize("world", [DEFAULT, MuonPairs(polarised=True, window=SKEW), WORLDS["no smearing"]])
def test_information_is_the_variance_of_the_score(world):
    design, elsewhere = at(88.0, 0.5)[: len(world.designs)], at(1.0, 0.0)[: len(world.designs)]
    rows = simulate(world, 40_000, seed=1, proposal=STANDARD, design=design, progress=False)
    for latent, score in ((False, world.score(rows.theta, rows.x, rows.design)), (True, joint_score(world, rows))):
        square = (score[:, :, None] * score[:, None]).flatten(1)
        assert z_of_mean(square, world.fisher_information(STANDARD, design, latent=latent).flatten()) < 4
        assert z_of_mean(square, world.fisher_information(STANDARD, design + elsewhere, latent=latent).flatten()) > 4


def test_smearing_and_flips_lose_information():
    energy = torch.linspace(60, 130, 8).double()[:, None]
    gap = DEFAULT.fisher_information(STANDARD, energy, latent=True) - DEFAULT.fisher_information(STANDARD, energy)
    assert gap.shape == (8, 2, 2) and (torch.linalg.eigvalsh(gap) > 0).all()


def test_one_energy_leaves_a_direction_of_theta_unknown():
    world = MuonPairs(radiation=False)
    theta = torch.stack([STANDARD, at(0.22, 0.7), at(0.24, 1.4)])[:, None]
    each = world.fisher_information(theta, at(80, 88, 92, 100)[:, None])

    def weakest(information):
        unit = torch.diag_embed(information.diagonal(dim1=-2, dim2=-1).rsqrt())
        return torch.linalg.eigvalsh(unit @ information @ unit)[..., 0]

    assert (weakest(each).abs() < 1e-9).all()
    assert (weakest(each[:, :-1] + each[:, 1:]) > 1e-3).all(), "two energies tell both"
    assert (weakest(DEFAULT.fisher_information(theta, at(80, 88, 100)[:, None])) > 1e-3).all(), "so does radiation"
    along = torch.linalg.eigh(world.fisher_information(STANDARD, at(88.0))).eigenvectors[:, 0]
    x = torch.stack([torch.linspace(-0.9, 0.9, 7), torch.zeros(7)], 1)
    assert world.score(STANDARD, x, at(88.0)).matmul(along).abs().max() < 1e-9
    assert DEFAULT.score(STANDARD, x, at(88.0)).matmul(along).abs().max() > 1e-2


def test_unpolarised_beams_mistake_the_angle_for_its_mirror_image():
    """They see g_L^2, g_R^2 and g_L g_R alike, and these stay when sin2_theta_w becomes 1/2 - sin2_theta_w."""
    mirror, x = at(0.5 - 0.23153, 1.0), at(0.3, -0.1)
    for world, same in ((DEFAULT, True), (MuonPairs(polarisation=0.5), False)):
        pairs = (world.rate(STANDARD), world.rate(mirror)), [world.log_likelihood(t, x) for t in (STANDARD, mirror)]
        for one, other in pairs:
            assert torch.allclose(one, other, rtol=1e-9) == same
    assert DEFAULT.fisher_information(at(0.25, 1.0))[0].abs().max() < 1e-9


def test_shapes_broadcast():
    world = MuonPairs(polarised=True)
    rows = simulate(world, 12, seed=1, design=UniformPrior(world.designs), progress=False)
    x, design = rows.x.reshape(3, 4, 2), rows.design[:4]
    theta = UniformPrior(world.parameters).sample(torch.Size([5, 1, 1]))
    value, score = (function(theta, x, design) for function in (world.log_likelihood, world.score))
    assert value.shape == (5, 3, 4) and score.shape == (5, 3, 4, 2)
    assert torch.allclose(value[2, 1, 3], world.log_likelihood(theta[2, 0, 0], x[1, 3], design[3]))
    assert torch.allclose(score[2, 1, 3], world.score(theta[2, 0, 0], x[1, 3], design[3]))
    assert torch.equal(world.observe(x, design)(theta), value)
    assert world.rate(theta, design).shape == (5, 1, 4)
    assert world.fisher_information(theta[:2, :, 0], design[:3]).shape == (2, 3, 2, 2)
    assert world.log_likelihood(theta, x[:, :0], design[:0]).shape == (5, 3, 0)


def test_many_rows_are_rows():
    rows = simulate(DEFAULT, 2500, seed=1, design=UniformPrior(DEFAULT.designs), progress=False)
    value = DEFAULT.log_likelihood(rows.theta, rows.x, rows.design)
    for k in (0, 1023, 1024, 2499):
        assert float(value[k]) == pytest.approx(
            float(DEFAULT.log_likelihood(rows.theta[k], rows.x[k], rows.design[k])), abs=1e-12
        )


def test_default_energy():
    x = at(0.3, -0.1)
    assert float(DEFAULT.log_likelihood(STANDARD, x)) == float(DEFAULT.log_likelihood(STANDARD, x, at(89.0)))
    assert float(DEFAULT.log_likelihood(STANDARD, x)) != float(DEFAULT.log_likelihood(STANDARD, x, at(89.1)))


def test_outside_is_minus_infinity_and_no_nan():
    x = at(0.96, 0, -0.96, 0, 0.2, 1e-3, 0.2, 0).reshape(4, 2)
    for world, finite in ((DEFAULT, [0, 0, 1, 1]), (MuonPairs(smearing=0.0), [0, 0, 1, 0]), (BARE, [1, 1, 0, 1])):
        theta = STANDARD.expand(4, 2).clone().requires_grad_()
        value = world.log_likelihood(theta, x)
        assert value.isfinite().int().tolist() == finite and not value.isnan().any()
        assert torch.autograd.grad(value.sum(), theta)[0].isfinite().all()
    assert torch.isposinf(MuonPairs(smearing=0.0).log_likelihood(STANDARD, x)[3]), "no radiation at all"
    assert torch.isneginf(BARE.log_likelihood(STANDARD, at(0.2, 1e-3)))
    far = DEFAULT.log_likelihood(STANDARD, at(0.2, 3.0))
    assert far.isfinite() and far < -1000


def test_runs_sum_their_events():
    world = Events(DEFAULT, luminosity=0.1)
    runs = simulate(world, 5, seed=1, progress=False)
    theta = torch.stack([STANDARD, at(0.22, 0.8), at(0.25, 1.3)])[:, None]
    value = world.log_likelihood(theta, runs.x, n_events=runs.n_events)
    assert value.shape == (3, 5)
    for j in range(3):
        for k, n in enumerate(runs.n_events.tolist()):
            mean = 0.1 * float(DEFAULT.rate(theta[j, 0]))
            exact = float(DEFAULT.log_likelihood(theta[j, 0], runs.x[k, :n]).sum()) + n * math.log(mean) - mean
            assert float(value[j, k]) == pytest.approx(exact, abs=1e-8)
