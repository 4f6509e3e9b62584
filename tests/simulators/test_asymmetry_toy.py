import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from measures import z_of_mean
from scipy.integrate import quad

from sbi_core import Events, UniformPrior, check_gold, infer, joint_score, simulate
from sbi_core.simulators import AsymmetryToy

TOY = AsymmetryToy()
ANYWHERE = UniformPrior(TOY.designs)
CELLS = 200
"""Of the grid in g; 100 change the gains by less than 1e-5."""


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


def legendre(low, high, n=60):
    points, weights = np.polynomial.legendre.leggauss(n)
    return torch.from_numpy(low + (high - low) * (points + 1) / 2), torch.from_numpy(weights * (high - low) / 2)


def density(c, g, phi):
    """The formula, written out again."""
    return (1 + c**2 + 4 / 3 * g * math.tanh(10 * (2 * phi - 90) / 90) * c) / (8 / 3)


@pytest.fixture(scope="module")
def rows():
    return simulate(TOY, 20_000, seed=1, design=ANYWHERE, progress=False)


@pytest.mark.parametrize(("g", "phi"), [(0.5, 40.0), (1.5, 50.0), (1.1, 45.0), (0.9, 46.3)])
def test_density_is_the_formula_and_normalised(g, phi):
    c = torch.linspace(-1, 1, 41).double()
    value = TOY.log_likelihood(at(g), c[:, None], at(phi))
    assert torch.allclose(value.exp(), density(c, g, phi), atol=1e-14) and (value > -math.inf).all()
    assert not torch.allclose(value.exp(), density(c, g, phi + 0.1), atol=1e-3)
    assert quad(lambda c: float(TOY.log_likelihood(at(g), at(c), at(phi)).exp()), -1, 1)[0] == pytest.approx(1, 1e-9)
    assert torch.isneginf(TOY.log_likelihood(at(g), at(1.001, -1.001)[:, None], at(phi))).all()


def test_default_is_50_GeV():
    x = at(0.3, -0.9)[:, None]
    assert torch.equal(TOY.log_likelihood(at(1.2), x), TOY.log_likelihood(at(1.2), x, at(50.0)))
    same = [TOY.sample(at(1.2, 0.7)[:, None], d, torch.Generator())[0] for d in (None, at(50.0, 50.0)[:, None])]
    assert torch.equal(*same)


def distribution(rows, shift=0.0):
    """CDF(c) of each row, (N,), with phi off by a shift."""
    c, a = rows.x[:, 0], 4 / 3 * rows.theta[:, 0] * torch.tanh((2 * (rows.design[:, 0] + shift) - 90) / 9)
    return (c**3 + 3 * c + 1.5 * a * (c**2 - 1) + 4) / 8


def test_rows_have_the_density(rows):
    """CDF(c) is uniform whatever g and phi; c has mean a / 4 and c^2 mean 2 / 5."""
    power = torch.arange(1, 6)
    assert z_of_mean(distribution(rows)[:, None] ** power, 1 / (power + 1)) < 4
    assert z_of_mean(distribution(rows, 0.5)[:, None] ** power, 1 / (power + 1)) > 4, "saboteur: half a GeV off"
    a = 4 * rows.theta[:, 0] / 3 * torch.tanh((2 * rows.design[:, 0] - 90) / 9)
    assert z_of_mean(a * (rows.x[:, 0] - a / 4)) < 4 < z_of_mean(a * (rows.x[:, 0] + a / 4))
    assert z_of_mean(rows.x**2, 0.4) < 4 and rows.x.abs().max() <= 1


def test_root_of_the_cubic_is_exact():
    """The same uniform numbers, put back: u = CDF(c) to rounding."""
    g, phi = torch.linspace(0.5, 1.5, 999).double()[:, None], torch.linspace(40, 50, 999).double()[:, None]
    x, z = TOY.sample(g, phi, torch.Generator().manual_seed(3))
    unit = torch.rand(999, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    c, a = x[:, 0], 4 / 3 * g[:, 0] * torch.tanh((2 * phi[:, 0] - 90) / 9)
    assert torch.allclose((c**3 + 3 * c + 1.5 * a * (c**2 - 1) + 4) / 8, unit, atol=1e-15) and z.shape == (999, 0)


def test_score_is_the_gradient_and_gold_is_the_score(rows):
    leaf = rows.theta[:500].clone().requires_grad_()
    total = TOY.log_likelihood(leaf, rows.x[:500], rows.design[:500]).sum()
    score = TOY.score(rows.theta, rows.x, rows.design)
    assert torch.allclose(score[:500], torch.autograd.grad(total, leaf)[0], atol=1e-13)
    assert torch.allclose(joint_score(TOY, rows), score, atol=1e-13)
    assert TOY.score(at(1.0), rows.x[:7], at(46.0, 47.0)[:, None, None]).shape == (2, 7, 1)
    assert not TOY.score(at(1.0), rows.x, at(45.0)).any(), "45 GeV says nothing"


class Mirrored(AsymmetryToy):
    """Saboteur: log_joint at the mirror energy, which turns the sign of a."""

    def log_joint(self, theta, x, z, design):
        return self.log_likelihood(theta, x, 90 - design)


def failed(world, rows):
    return {test.name for test in check_gold(world, rows).rows if test.passed is False}


def test_gold_passes(rows):
    """p is linear in g, so t^2 + dt/dg is 0 in every row, and a test of its mean would test rounding."""
    assert failed(TOY, rows) <= {"score: Fisher information"}
    assert "score mean" in failed(Mirrored(), rows)


def test_gold_of_runs_passes():
    runs = simulate(Events(TOY, 20), 2000, seed=1, design=ANYWHERE, progress=False)
    check_gold(Events(TOY, 20), runs).raise_if_failed()
    assert not check_gold(Events(Mirrored(), 20), runs).passed


def test_mean_design_score_is_zero(rows):
    """Every term of the design is kept, so that E[d/dphi log p] = 0."""
    assert TOY.design_score

    def slope(world):
        phi = rows.design.clone().requires_grad_()
        return torch.autograd.grad(world.log_joint(rows.theta, rows.x, rows.z, phi).sum(), phi)[0]

    assert z_of_mean(torch.cat([slope(TOY), slope(TOY) * (rows.design - 45)], 1)) < 4
    assert z_of_mean(torch.cat([slope(Mirrored()), slope(Mirrored()) * (rows.design - 45)], 1)) > 4


def test_mirror_energies_say_the_same():
    theta, x, off = (
        torch.linspace(0.5, 1.5, 9).double()[:, None, None],
        at(-0.9, 0.2, 0.7)[:, None],
        at(0.4, 5)[:, None],
    )
    high, low = (TOY.log_likelihood(theta, sign * x, 45 + sign * off[:, :, None, None]) for sign in (1, -1))
    assert torch.allclose(high, low, atol=1e-14)
    assert not torch.allclose(high, TOY.log_likelihood(theta, x, 45 - off[:, :, None, None]), atol=1e-3)
    assert torch.equal(TOY.rate_events(45 + off), TOY.rate_events(45 - off))


def test_events_at_the_resonance():
    run = Events(TOY, TOY.rate_events)
    assert run.n_max == 1000 and run.needs_n_events
    assert TOY.rate_events(at(45.0, 46.5, 48.5, 50.0)[:, None]).tolist() == [1000, 500, 155, 83]
    rows = simulate(run, 20, seed=1, design=ANYWHERE, progress=False)
    assert torch.equal(rows.n_events.double(), TOY.rate_events(rows.design)) and joint_score(run, rows).isfinite().all()


def gain_of_one(phi):
    """Expected information gain of one event, nats, by quadrature."""
    (g, weight), (c, step) = legendre(0.5, 1.5), legendre(-1, 1)
    log_p = TOY.log_likelihood(g[:, None, None], c[:, None], at(phi))
    return float((weight[:, None] * step * log_p.exp() * (log_p - (weight @ log_p.exp()).log())).sum())


def test_gain_of_one_event():
    assert gain_of_one(50.0) == pytest.approx(0.0104134, abs=1e-6) and gain_of_one(45.0) == pytest.approx(0, abs=1e-12)
    assert gain_of_one(40.0) == pytest.approx(gain_of_one(50.0), abs=1e-12)
    assert gain_of_one(49.9) != pytest.approx(0.0104134, abs=1e-6), "saboteur: a tenth of a GeV"


def gains(n, phi, rows, seed=1):
    """KL(posterior || prior) in nats of simulated runs, (rows,), their g drawn one from each of as many strata."""
    many = TOY.rate_events(at(phi)) if n is None else n
    run, generator = Events(TOY, int(many)), torch.Generator().manual_seed(seed)
    within = torch.rand(rows, generator=generator, dtype=torch.float64)
    theta = (0.5 + (torch.arange(rows) + within) / rows)[:, None]
    grid = (0.5 + (torch.arange(CELLS).double() + 0.5) / CELLS)[:, None, None]
    found = []
    for part in theta.split(max(1, 20_000 // run.n_max)):
        x, _ = run.sample(part, at(phi).expand(len(part), 1), generator)
        log_mass = run.log_likelihood(grid, x, at(phi)).log_softmax(0)
        found.append((log_mass.exp() * (log_mass + math.log(CELLS))).sum(0))
    return torch.cat(found)


def sigmas(found, value, error):
    """Distance of the mean from a value with an error, in joint standard errors."""
    return float((found.mean() - value).abs()) / math.hypot(float(found.std()) / len(found) ** 0.5, error)


KNOWN = {(20, 50.0): (0.1760, 0.0005), (100, 50.0): (0.5566, 0.0010), (20, 47.0): (0.0426, 0.0005)}
RESONANCE = {
    46.0: (0.291, 0.001),
    47.0: (0.470, 0.001),
    48.0: (0.519, 0.001),
    48.5: (0.522, 0.002),
    50.0: (0.497, 0.001),
}
"""Gains and their standard errors."""


@pytest.mark.parametrize(("n", "phi", "rows"), [(20, 50.0, 1000), (20, 47.0, 500), (None, 48.5, 300)])
def test_gain(n, phi, rows):
    known = KNOWN[n, phi] if n else RESONANCE[phi]
    found = gains(n, phi, rows)
    assert sigmas(found, *known) < 4
    assert sigmas(found, 1.5 * known[0], known[1]) > 4, "saboteur: half as much again"


@pytest.mark.slow
@pytest.mark.parametrize(("n", "phi"), [*KNOWN, *((None, phi) for phi in RESONANCE)])
def test_gain_in_full(n, phi):
    known = KNOWN[n, phi] if n else RESONANCE[phi]
    found = gains(n, phi, 50_000 if n == 20 else 12_000)
    assert sigmas(found, *known) < 4 < sigmas(found, 1.1 * known[0], known[1])


@pytest.mark.slow
def test_best_energies_are_a_plateau():
    """Between 48.1 and 48.9 GeV the gain is flat; a GeV beside them it is less."""
    found = {phi: gains(None, phi, 6000, seed=int(10 * phi)) for phi in (47.1, 48.1, 48.5, 48.9, 49.9)}
    flat = [found[phi] for phi in (48.1, 48.5, 48.9)]
    assert all(sigmas(a, float(b.mean()), float(b.std()) / len(b) ** 0.5) < 4 for a, b in pairwise(flat))
    best = torch.cat(flat)
    for beside in (found[47.1], found[49.9]):
        assert best.mean() > beside.mean() and sigmas(best, float(beside.mean()), float(beside.std()) / 6000**0.5) > 3


def test_posterior_is_the_normalised_likelihood():
    x = TOY.sample(torch.full((50, 1), 1.2).double(), None, torch.Generator().manual_seed(1))[0]
    posterior = infer(TOY, TOY.prior, x, iid=True, design=at(50.0))
    g, weight = legendre(0.5, 1.5)
    p = TOY.log_likelihood(g[:, None, None], x).sum(1).exp()
    assert float(posterior.mean) == pytest.approx(float((weight * p * g).sum() / (weight * p).sum()), abs=1e-5)
    other = infer(TOY, TOY.prior, x, iid=True, design=at(48.0))
    assert float(other.mean) != pytest.approx(float(posterior.mean), abs=1e-2), "saboteur: another energy"


def test_picture_is_drawn(rows):
    from matplotlib.figure import Figure

    for some in (rows[:300], simulate(TOY, 2, seed=1, progress=False)):
        axes = Figure().subplots()
        TOY.draw(axes, some)
        assert axes.has_data() and axes.get_xlabel()
