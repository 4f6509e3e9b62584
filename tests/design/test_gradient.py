"""Slopes of the information gain against exact ones, and the climb along them."""

import math

import pytest
import torch
from measures import z_of_mean
from torch.distributions import Independent, Normal

from sbi_core import Events, InputError, MissingGold, Parameter, Simulator, simulate
from sbi_core.design.gradient import ascend, gain_gradient, joint_design_score
from sbi_core.errors import SbiWarning
from sbi_core.simulators import AsymmetryToy, DeathProcess, GaltonBoard

TOY = AsymmetryToy()


class Gauges(Simulator):
    """theta ~ N(0, 1), z ~ N(theta, 1), x_k ~ N(design_k z, v_k), v = 1 + blur design^4, (K,).

    With q = sum_k design_k^2 / v_k the gain is 1/2 log((1 + 2 q) / (1 + q)).
    """

    parameters = (Parameter("theta", -6, 6),)
    design_score = True

    def __init__(self, k=1, blur=0.0):
        self.blur = blur
        self.designs = tuple(Parameter(f"d_{i}", 0, 3) for i in range(k))

    @property
    def prior(self):
        zero = torch.zeros(1, dtype=torch.float64)
        return Independent(Normal(zero, zero + 1), 1)

    def sample(self, theta, design, generator):
        z = theta + torch.randn(theta.shape, generator=generator, dtype=torch.float64)
        noise = torch.randn(design.shape, generator=generator, dtype=torch.float64)
        return design * z + self._width(design) * noise, z

    def log_joint(self, theta, x, z, design):
        width = self._width(design)
        return Normal(theta, 1).log_prob(z)[:, 0] + Normal(design * z, width).log_prob(x).sum(1)

    def log_likelihood(self, theta, x, design=None):
        """x = design (theta + e) + noise: the covariance is diag(v) + design design^T."""
        variance = self._width(design) ** 2
        pull, q = (x - design * theta) / variance, (design**2 / variance).sum(-1)
        square = (pull * (x - design * theta)).sum(-1) - (pull * design).sum(-1) ** 2 / (1 + q)
        return -(square + variance.log().sum(-1) + torch.log1p(q) + design.shape[-1] * math.log(2 * math.pi)) / 2

    def gain(self, design):
        q = (design**2 / self._width(design) ** 2).sum(-1)
        return torch.log((1 + 2 * q) / (1 + q)) / 2

    def slope(self, *design):
        """Exact gradient of the gain, (K,)."""
        leaf = torch.tensor(design, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(self.gain(leaf), leaf)[0]

    def _width(self, design):
        return (1 + self.blur * design**4).sqrt()


class Unnormalised(Gauges):
    """Saboteur: keeps the square, and leaves out the normaliser, which knows the design."""

    def log_joint(self, theta, x, z, design):
        return super().log_joint(theta, x, z, design) + self._width(design).log().sum(1)


def estimate(simulator, design, **options):
    return gain_gradient(simulator, simulator, simulator.prior, torch.tensor(design), **options)


def pull(found, exact):
    """Largest distance of an estimate (gradient, error) from the exact gradient, in its standard errors."""
    gradient, error = found
    assert gradient.shape == error.shape == exact.shape and bool((error > 0).all())
    return float(((gradient - exact) / error).abs().max())


def test_exact_gain_of_the_gauges():
    """1/2 log((2 d^2 + 1) / (d^2 + 1)), and the slope d / ((1 + 2 d^2)(1 + d^2))."""
    for d in (0.3, 1.0, 2.5):
        exact = d / ((1 + 2 * d**2) * (1 + d**2))
        assert float(Gauges().slope(d)) == pytest.approx(exact, rel=1e-12)
    world, design, theta = Gauges(2, 0.3), torch.tensor([[0.7, 1.4]]).double(), torch.tensor([[0.4]]).double()
    x, z = torch.tensor([[0.2, 1.9]]).double(), torch.linspace(-12, 12, 4001).double()[:, None]
    joint = world.log_joint(theta.expand(4001, 1), x.expand(4001, 2), z, design.expand(4001, 2))
    by_sum = torch.logsumexp(joint, 0) + math.log(24 / 4000)
    assert torch.allclose(world.log_likelihood(theta, x, design)[0], by_sum, atol=1e-10)


@pytest.mark.parametrize("design", [0.3, 1.0, 2.5])
def test_slope_where_it_is_known(design):
    exact, found = Gauges().slope(design), estimate(Gauges(), [design], n=4096, inner=128, seed=1)
    assert pull(found, exact) < 4
    assert pull(found, exact + 0.15) > 4, "saboteur: steeper"


def test_slope_of_two_designs():
    world, design = Gauges(2, 0.5), [0.4, 1.7]
    found, exact = estimate(world, design, n=8192, inner=64, seed=2), world.slope(*design)
    assert pull(found, exact) < 4 < pull(found, exact.flip(0)), "saboteur: axes swapped"


def test_slope_needs_all_terms():
    found, wrong = (estimate(kind(1, 0.1), [2.5], n=16384, inner=4096, seed=2) for kind in (Gauges, Unnormalised))
    exact = Gauges(1, 0.1).slope(2.5)
    assert pull(found, exact) < 4 < pull(wrong, exact), "saboteur: no normaliser"


def test_stated_errors_are_right():
    """Pulls of 40 seeds have mean square 1, or below, as thetas are spread evenly; half the errors would be caught."""
    world = Gauges(1, 0.5)
    pulls = [pull(estimate(world, [0.6], n=256, inner=32, seed=seed), world.slope(0.6)) for seed in range(40)]
    square = float(torch.tensor(pulls).square().mean())
    assert square < 1 + 4 * (2 / 40) ** 0.5 < 4 * square, "saboteur: half of the errors"


def test_regression_on_the_scores_lowers_the_error(monkeypatch):
    def error():
        return float(estimate(world, [2.5], n=2048, inner=128, seed=3)[1])

    world = Gauges()
    with_all = error()
    monkeypatch.setattr("sbi_core.design.gradient._controls", lambda score, theta: torch.zeros_like(score))
    assert error() > 1.15 * with_all


def test_scores_have_mean_zero():
    world = Gauges(2, 0.5)
    rows = simulate(world, 8192, design=torch.tensor([0.7, 1.2]), seed=4, progress=False)
    score = joint_design_score(world, rows)
    assert score.shape == (8192, 2) and not score.requires_grad
    products = torch.cat([score, score * rows.theta, score * rows.theta**2], 1)
    assert z_of_mean(products) < 4
    assert z_of_mean(joint_design_score(Unnormalised(2, 0.5), rows)) > 4, "saboteur: no normaliser"
    rows = rows[:5]
    by_hand = (rows.x.double() - rows.design * rows.z.double()) * rows.z.double()
    assert torch.allclose(joint_design_score(Gauges(2), rows), by_hand)


def events_slope(phi, cells=801):
    """Exact d gain / d phi of one event of the asymmetry toy, by the trapezium rule and central differences."""
    g, c = torch.linspace(0.5, 1.5, cells).double(), torch.linspace(-1, 1, cells).double()
    weight = torch.ones(cells).double()
    weight[[0, -1]] = 0.5

    def gain(phi):
        log_p = TOY.log_likelihood(g[:, None, None], c[:, None], torch.tensor([phi]).double())
        prior, cell = weight / weight.sum(), weight * 2 / (cells - 1)
        each = log_p.exp() * (log_p - (prior @ log_p.exp()).log())
        return float(prior @ each @ cell)

    return (gain(phi + 1e-3) - gain(phi - 1e-3)) / 2e-3


@pytest.mark.parametrize("phi", [43.0, 48.0])
def test_one_event_of_the_asymmetry_toy(phi):
    exact = torch.tensor([events_slope(phi)]).double()
    assert (float(exact) > 0) == (phi > 45)
    found = estimate(TOY, [phi], n=2**12, inner=256, seed=5)
    assert pull(found, exact) < 4 < pull(found, -exact), "saboteur: the other sign"


def test_slopes_of_twenty_events_add_up():
    """Integrated from 47 to 50 GeV they give the difference of the gains, .1760 - .0426."""
    nodes = torch.tensor([-0.861136, -0.339981, 0.339981, 0.861136])
    weights = torch.tensor([0.347855, 0.652145, 0.652145, 0.347855]).double()
    twenty = Events(TOY, 20)
    found = [
        estimate(twenty, [48.5 + 1.5 * float(node)], n=1024, inner=128, seed=seed) for seed, node in enumerate(nodes)
    ]
    slopes, errors = (1.5 * weights * torch.cat(part) for part in zip(*found, strict=True))
    pulls = [(float(slopes.sum()) - gain) / float(errors.norm()) for gain in (0.1760 - 0.0426, 0.0426)]
    assert abs(pulls[0]) < 4 < abs(pulls[1]), "saboteur: the gain at 47 alone"


def test_climb_to_the_best_gauges():
    """The gain is highest where both designs are blur^(-1/4)."""
    world = Gauges(2, 0.5)

    def slope(design, seed):
        return gain_gradient(world, world, world.prior, design, n=256, inner=64, seed=seed)

    way = ascend(slope, world.designs, [0.3, 2.7], steps=30, seed=6)
    best = torch.full((2,), 0.5**-0.25).double()
    assert way.path.shape == (31, 2) and way.gradients.shape == way.errors.shape == (30, 2)
    assert float(world.gain(best) - world.gain(way.design)) < 0.1 * float(world.gain(best))
    assert float(world.gain(best) - world.gain(way.path[0])) > 0.4 * float(world.gain(best))
    down = ascend(lambda *at: (-slope(*at)[0], slope(*at)[1]), world.designs, [1.0, 1.0], steps=15, seed=6)
    assert float(world.gain(best) - world.gain(down.design)) > 0.2 * float(world.gain(best)), "saboteur: downhill"


def quiet(design, seed):
    return -2 * (design - 2.5), torch.full_like(design, 0.1)


def test_climb_stays_in_the_box_and_repeats():
    axes = (Parameter("a", 0, 2), Parameter("b", 2, 30))
    way = ascend(quiet, axes, [0.0, 30.0], steps=40)
    assert torch.equal(way.path, ascend(quiet, axes, [0.0, 30.0], steps=40).path)
    assert way.design.tolist() == [pytest.approx(2.0, abs=1e-3), pytest.approx(2.5, abs=0.3)]
    assert float(way.path[:, 0].max()) == 2.0


def test_same_seed_same_slope():
    first, again, other = (estimate(TOY, [48.0], n=64, inner=64, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_has_no_slope_is_refused():
    death, board = DeathProcess(), GaltonBoard()
    with pytest.raises(MissingGold, match="'DeathProcess' does not state design_score = True"):
        gain_gradient(death, death, death.prior, torch.tensor([0.5, 2.0]))
    board.design_score = True
    with pytest.raises(InputError, match="take whole numbers only, and have no gradient"):
        gain_gradient(board, board, board.prior, torch.tensor([10.0, 10.0]))
    runs = Events(TOY, n=TOY.rate_events)
    with pytest.raises(InputError, match="the number of events is a function of the design"):
        gain_gradient(runs, runs, runs.prior, torch.tensor([48.0]))
    with pytest.raises(InputError, match="have no design"):
        joint_design_score(TOY, simulate(TOY, 4, seed=1, progress=False))


def test_posteriors_that_are_not_resolved_are_named():
    many = Events(TOY, 3000)
    with pytest.warns(SbiWarning, match="matter to an experiment. Raise inner"):
        gain_gradient(many, many, TOY.prior, torch.tensor([49.0]), n=32, inner=32)


@pytest.mark.parametrize(
    ("start", "options", "text"),
    [
        ([1.0], {}, "expected one design"),
        ([1.0, 40.0], {}, "inside the ranges"),
        ([1.0, 3.0], {"steps": 0}, "at least 1"),
        ([1.0, 3.0], {"rate": math.nan}, "a positive number"),
    ],
)
def test_climbs_that_cannot_be(start, options, text):
    axes = (Parameter("a", 0, 2), Parameter("b", 2, 30))
    with pytest.raises(InputError, match=text):
        ascend(quiet, axes, start, **options)
    with pytest.raises(InputError, match="expected numbers"):
        ascend(lambda design, seed: (math.nan * design, design), axes, [1.0, 3.0])
    with pytest.raises(InputError, match="whole numbers only"):
        ascend(quiet, (Parameter("a", 0, 2, integer=True),), [1.0])
