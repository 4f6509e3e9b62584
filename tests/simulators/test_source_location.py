import math

import numpy as np
import pytest
import torch
from measures import z_of_mean
from scipy.stats import ncx2, norm

from sbi_core import Events, InputError, Parameter, UniformPrior, check_gold, infer, joint_score, simulate
from sbi_core.seeding import seeded
from sbi_core.simulators import SourceLocation

FIELD = SourceLocation()
WORLDS = {
    "two": FIELD,
    "one": SourceLocation(1),
    "three": SourceLocation(3, strength=2.0, background=0.3, softening=0.01, noise_std=0.2, reach=2.0),
}
worlds = pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


def rows_of(world, n=20_000, **options):
    return simulate(world, n, seed=1, design=UniformPrior(world.designs), progress=False, **options)


@pytest.fixture(scope="module")
def rows():
    return rows_of(FIELD)


def by_numpy(world, theta, design):
    """log mu, source by source."""
    total = world.background * np.ones(len(theta))
    for k in range(world.n_sources):
        distance = np.linalg.norm(theta[:, 2 * k : 2 * k + 2].numpy() - design.numpy(), axis=1)
        total += world.strength / (world.softening + distance**2)
    return np.log(total)


@worlds
def test_likelihood_is_that_of_scipy(world):
    some = rows_of(world, 200)
    exact = norm.logpdf(some.x[:, 0], by_numpy(world, some.theta, some.design), world.noise_std)
    value = world.log_likelihood(some.theta, some.x, some.design)
    assert torch.allclose(value, torch.from_numpy(exact), atol=1e-10)
    turned = world.log_likelihood(some.theta, some.x, some.design.flip(-1))
    assert not torch.allclose(turned, torch.from_numpy(exact), atol=1), "saboteur: x for y"


def test_published_values_are_the_defaults():
    """Two sources, alpha = 1, b = 0.1, m = 1e-4, sigma = 0.5: on one source and 2 from the other."""
    mean = math.log(0.1 + 1 / 1e-4 + 1 / (1e-4 + 4))
    value = FIELD.log_likelihood(at(1, 1, 1, 3), at(mean + 0.5), at(1, 1))
    assert float(value) == pytest.approx(-0.5 - math.log(0.5 * math.sqrt(2 * math.pi)), abs=1e-12)
    assert [p.name for p in FIELD.parameters] == ["theta_1x", "theta_1y", "theta_2x", "theta_2y"]
    assert float(FIELD.prior.log_prob(at(0, 0, 0, 0))) == pytest.approx(-2 * math.log(2 * math.pi))


def test_default_design_is_the_origin():
    theta, x = at(1, 2, -1, 0.5), at(0.3)
    for method in (FIELD.log_likelihood, FIELD.score):
        assert torch.equal(method(theta, x), method(theta, x, at(0, 0)))


def test_sources_may_change_places(rows):
    swapped = rows.theta[:, [2, 3, 0, 1]]
    here, there = (FIELD.log_likelihood(theta, rows.x, rows.design) for theta in (rows.theta, swapped))
    assert torch.allclose(here, there, atol=1e-10)
    mixed = FIELD.log_likelihood(rows.theta[:, [0, 3, 2, 1]], rows.x, rows.design)
    assert not torch.allclose(here, mixed, atol=1), "saboteur: only one coordinate"


def test_everything_broadcasts():
    theta, x, design = torch.randn(3, 1, 1, 4).double(), torch.randn(5, 1, 1).double(), torch.randn(7, 2).double()
    value = FIELD.log_likelihood(theta, x, design)
    assert value.shape == (3, 5, 7) and FIELD.score(theta, x, design).shape == (3, 5, 7, 4)
    assert FIELD.fisher_information(theta, design).shape == (3, 1, 7, 4, 4)
    alone = FIELD.log_likelihood(theta[1, 0, 0].float(), x[2, 0].float(), design[4].float())
    assert alone.dtype == torch.float64 and torch.allclose(value[1, 2, 4], alone, atol=1e-4)


@worlds
def test_rows_have_their_moments(world):
    made = rows_of(world)
    unit = (made.x[:, 0] - torch.from_numpy(by_numpy(world, made.theta, made.design))) / world.noise_std
    assert made.z.shape == (20_000, 0) and z_of_mean(made.theta) < 4 and z_of_mean(made.theta**2, 1) < 4
    near = torch.from_numpy(by_numpy(world, made.theta, made.design))
    assert z_of_mean(torch.stack([unit, unit * near, unit * made.theta[:, 0], unit**3], 1)) < 4
    assert z_of_mean(unit**2, 1) < 4 < z_of_mean(unit**2, 1.1)
    far = (made.x[:, 0] - torch.from_numpy(by_numpy(world, made.theta, 1.1 * made.design))) / world.noise_std
    assert z_of_mean(far * near) > 4, "saboteur: measured a tenth farther out"


@worlds
def test_score_is_the_gradient(world):
    some = rows_of(world, 500)
    leaf = some.theta.clone().requires_grad_()
    gradient = torch.autograd.grad(world.log_likelihood(leaf, some.x, some.design).sum(), leaf)[0]
    assert torch.allclose(world.score(some.theta, some.x, some.design), gradient, rtol=1e-9, atol=1e-9)
    assert torch.allclose(joint_score(world, some), gradient, atol=1e-12)


def test_nothing_breaks_on_top_of_a_source():
    """The score is bounded by 1 / sqrt(softening) / noise_std, times the residual in units of the noise."""
    distance = torch.logspace(-12, 0, 200).double()
    theta = torch.stack([distance, 0 * distance, 0 * distance + 3, 0 * distance], 1)
    x = FIELD.log_signal(theta, at(0, 0))[:, None] + FIELD.noise_std
    size = FIELD.score(theta, x, at(0, 0)).norm(dim=1)
    assert size.isfinite().all() and 180 < size.max() < 200
    assert FIELD.score(at(0, 0, 3, 0), at(1.0), at(0, 0))[:2].tolist() == [0, 0]


def test_mean_score_is_zero_and_its_square_the_information(rows):
    """In units of the information at theta and the design, for the score itself has heavy tails."""
    information = FIELD.fisher_information(rows.theta, rows.design)
    unit = joint_score(FIELD, rows) / information.diagonal(dim1=1, dim2=2).sqrt()
    assert z_of_mean(unit) < 4 and z_of_mean(unit**2, 1) < 4
    cross = FIELD.score(rows.theta, rows.x, rows.design)
    cross = cross[:, 0] * cross[:, 3] / information[:, 0, 3].abs()
    assert z_of_mean(cross - information[:, 0, 3].sign()) < 4
    wide = FIELD.fisher_information(1.1 * rows.theta, rows.design).diagonal(dim1=1, dim2=2)
    wrong = joint_score(FIELD, rows, 1.1 * rows.theta) / wide.sqrt()
    assert z_of_mean(wrong**2, 1) > 4, "saboteur: sources a tenth farther out"


def test_mean_design_score_is_zero(rows):
    """Every term of the design is kept, so that E[grad_xi log p] = 0, here in units of its standard deviation."""
    assert FIELD.design_score

    def unit(theta):
        leaf = rows.design.clone().requires_grad_()
        slope = torch.autograd.grad(FIELD.log_joint(theta, rows.x, rows.z, leaf).sum(), leaf)[0]
        size = torch.autograd.grad(FIELD.log_signal(theta, leaf).sum(), leaf)[0] / FIELD.noise_std
        return slope / size

    assert z_of_mean(unit(rows.theta)) < 4 and z_of_mean(unit(rows.theta) ** 2, 1) < 4
    assert z_of_mean(unit(1.1 * rows.theta) ** 2, 1) > 4, "saboteur"


class Away(SourceLocation):
    """Its sources lie 1 to 3 from the origin along each axis, where the score has no heavy tails."""

    @property
    def prior(self):
        return UniformPrior(
            [Parameter(p.name, *((1.0, 3.0) if "1" in p.name else (-3.0, -1.0))) for p in self.parameters]
        )


class Brighter(Away):
    """Saboteur: log_joint of sources that are brighter by a tenth."""

    def log_joint(self, theta, x, z, design):
        return SourceLocation(strength=1.1).log_likelihood(theta, x, design)


def test_gold_passes():
    made = simulate(Away(), 5000, seed=1, progress=False)
    report = check_gold(Away(), made)
    report.raise_if_failed()
    assert sum(test.passed is None for test in report.rows) < len(report.rows) / 4
    assert not check_gold(Brighter(), made).passed


def test_gold_of_several_measurements_passes():
    runs = simulate(Events(Away(), 5), 2000, seed=1, design=at(0.5, -0.5), progress=False)
    check_gold(Events(Away(), 5), runs).raise_if_failed()
    assert not check_gold(Events(Brighter(), 5), runs).passed


def gain_of_one(distance, cells=60):
    """Expected information gain of one measurement, nats: quadrature over the squared distances of both sources."""
    point, weight = np.polynomial.legendre.leggauss(cells)
    share = (point + 1) / 2  # cubed, for near sources matter most
    weight = 1.5 * weight * share**2
    signal = 1 / (FIELD.softening + ncx2.ppf(share**3, 2, distance**2))
    mean = np.log(FIELD.background + signal[:, None] + signal).ravel()
    x = np.linspace(mean.min() - 4, mean.max() + 4, 1000)
    density = norm.pdf(x[:, None], mean, FIELD.noise_std) @ np.outer(weight, weight).ravel()
    entropy = -np.trapezoid(density * np.log(density), x)
    return entropy - 0.5 * math.log(2 * math.pi * math.e * FIELD.noise_std**2)


@pytest.mark.parametrize(("distance", "gain"), [(0, 0.8267), (1, 0.7856), (2, 0.5620), (3, 0.2795), (4, 0.1127)])
def test_stated_gains(distance, gain):
    assert gain_of_one(distance) == pytest.approx(gain, abs=1e-4)


@pytest.mark.parametrize("distance", [0.0, 2.0])
def test_gain_of_one_measurement(distance):
    design, angle = torch.zeros(2).double(), 0.7
    design[0], design[1] = distance * math.cos(angle), distance * math.sin(angle)
    made = simulate(FIELD, 1000, seed=1, design=design, progress=False)
    with seeded(2):
        others = FIELD.prior.sample(torch.Size([20_000]))
    evidence = [FIELD.log_likelihood(others, x, design).logsumexp(-1) for x in made.x[:, None].split(50)]
    gain = FIELD.log_likelihood(made.theta, made.x, design) - torch.cat(evidence) + math.log(len(others))
    assert z_of_mean(gain, gain_of_one(distance)) < 4 < z_of_mean(gain, gain_of_one(distance + 2))


def test_a_single_source_is_found():
    """Posterior mean of one source after 30 measurements: as importance weights of the prior say, and near it."""
    world, truth = WORLDS["one"], at(0.8, -0.5)
    made = simulate(world, 30, seed=1, proposal=truth, design=UniformPrior(world.designs), progress=False)
    posterior = infer(world, world.prior, made.x, iid=True, design=made.design)
    with seeded(3):
        theta = world.prior.sample(torch.Size([100_000]))
    weight = sum(world.log_likelihood(theta, x, xi) for x, xi in zip(made.x, made.design, strict=True)).softmax(0)
    spread = posterior.variance.sqrt()
    error = spread * (weight**2).sum().sqrt()
    assert ((weight @ theta - posterior.mean).abs() < 4 * error).all() and (
        (posterior.mean - truth).abs() < 4 * spread
    ).all()
    elsewhere = infer(world, world.prior, made.x, iid=True, design=made.design.flip(-1))
    assert not ((elsewhere.mean - truth).abs() < 4 * spread).all(), "saboteur: x for y"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_sources": 0}, "n_sources = 0, expected at least 1"),
        ({"background": -0.1}, "background = -0.1, expected at least 0"),
        ({"softening": 0.0}, "softening = 0.0"),
        ({"noise_std": -1.0}, "noise_std = -1.0"),
    ],
)
def test_world_that_is_none_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        SourceLocation(**options)


def test_picture_is_drawn(rows):
    from matplotlib.figure import Figure

    for some in (rows[:50], simulate(FIELD, 3, seed=1, proposal=at(1, 0, -1, 0), progress=False)):
        axes = Figure().subplots()
        FIELD.draw(axes, some)
        assert axes.has_data() and axes.get_xlabel()
