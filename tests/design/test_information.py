import math
from dataclasses import replace

import pytest
import torch
from known_gains import (
    BOARD,
    EPIDEMIC,
    TOY,
    WIDE,
    asymmetry,
    asymmetry_of_runs,
    death,
    galton,
    linear,
)
from torch.distributions import Independent, Normal

from sbi_core import Events, FunctionSimulator, InputError, MissingGold, Parameter, SbiWarning
from sbi_core.design.gain import bracketed
from sbi_core.design.information import (
    bracket,
    contrastive_bound,
    latent_bound,
    linear_gaussian_gain,
    nested_bound,
    posterior_gain,
)
from sbi_core.design.readers import reader
from sbi_core.design.rollouts import roll
from sbi_core.inference.grid import GridPosterior
from sbi_core.simulators import LinearGaussian

CLEAR = LinearGaussian(2, latent_std=0.5, noise_std=0.5)
PHI = torch.tensor([50.0]).double()


def read_out(known, **options):
    return posterior_gain(known.simulator, known.simulator, known.prior, known.design, **options)


def pull(gain, truth, error=0.0):
    """Distance from the truth, which may have an error, in joint standard errors."""
    return abs(gain.value - truth) / math.hypot(gain.error, error)


def unit(size):
    return torch.eye(size, dtype=torch.float64)


class Reader:
    """Saboteurs: f(theta, x) made from the exact log p of a world."""

    designs, trained = (), True

    def __init__(self, world, change):
        self.world, self.change = world, change
        self.axes, self.x_shape = world.parameters, world.x_shape

    def observe(self, x, design=None):
        look = self.world.observe(x, design)
        return lambda theta: self.change(look(theta), theta, x)


# Closed forms


@pytest.mark.parametrize("n", [1, 7])
@pytest.mark.parametrize("matrix", [[[1.0, 0.0], [1.0, 1.0]], [[2.0, -1.0]], [[1.0], [0.5], [3.0]]])
def test_linear_gaussian_gain(matrix, n):
    world = LinearGaussian(matrix=matrix, prior_std=1.7)
    dims, rows = len(matrix[0]), len(matrix)
    found = linear_gaussian_gain(matrix, world.variance / n * unit(rows), 1.7**2 * unit(dims))
    assert found.value == pytest.approx(float(world.information_gain(n)), abs=1e-9)
    assert found.value != pytest.approx(float(world.information_gain(n + 1)), abs=1e-9), "saboteur: one more event"
    assert (found.error, found.direction, found.flags) == (0.0, "none", ())


def test_linear_gaussian_gain_with_correlated_noise_and_belief():
    """By the determinants of the covariances of x, with theta known and not."""
    generator = torch.Generator().manual_seed(1)
    matrix, a, b = (torch.randn(3, 3, generator=generator).double() for _ in range(3))
    noise, belief = a @ a.T + torch.eye(3), b @ b.T
    wanted = 0.5 * float(torch.logdet(noise + matrix @ belief @ matrix.T) - torch.logdet(noise))
    assert linear_gaussian_gain(matrix, noise, belief).value == pytest.approx(wanted, abs=1e-9)
    assert linear_gaussian_gain(matrix, 1.01 * noise, belief).value != pytest.approx(wanted, abs=1e-9)


def test_linear_gaussian_gain_needs_matrices_that_fit():
    with pytest.raises(InputError, match=r"matrix \(1, 1\), noise \(2, 2\), covariance \(1, 1\): expected"):
        linear_gaussian_gain([[1.0]], torch.eye(2), [[1.0]])


# The read-out


@pytest.mark.parametrize(("drop", "rows", "gain"), [(15, 20, 0.188064), (25, 16, 0.858864)])
def test_galton_board_is_summed_over_labels(drop, rows, gain):
    known = galton(drop, rows)
    assert known.gain == pytest.approx(gain, abs=5e-7)
    found = read_out(known)
    assert found.value == pytest.approx(gain, abs=2e-6) and found.error < 5e-4 and found.simulations == 0
    assert found.value != pytest.approx(galton(drop, rows - 1).gain, abs=2e-6), "saboteur: a row less"
    drawn = roll(reader(BOARD), BOARD, WIDE, known.design, n=1024, inner=256, seed=1)
    value, error = drawn.estimate(lambda log_sum, mean, inner: mean[:, 0] - log_sum + math.log(inner), corrected=True)
    assert abs(value - gain) < 4 * error < abs(1.3 * value - gain), "simulated instead"


KNOWN = {
    "one event": (lambda: asymmetry(50.0), 0.0104134, 0.0),
    "20 events": (lambda: asymmetry_of_runs(50.0, 20), 0.1760, 0.0005),
    "epidemic": (lambda: death(0.5439, 2.6781), 0.983271, 0.0),
    "one count": (lambda: death(1.0793), 0.807131, 0.0),
    "line": (lambda: linear(CLEAR), 2 * 0.5 * math.log(3), 0.0),
    "lines": (lambda: linear(CLEAR, 4), 2 * 0.5 * math.log(9), 0.0),
}
by_known = pytest.mark.parametrize(("make", "gain", "error"), KNOWN.values(), ids=KNOWN)


@by_known
def test_read_out(make, gain, error):
    known = make()
    assert known.gain == pytest.approx(gain, abs=1e-6)
    found = read_out(known, n=2048, inner=256)
    assert pull(found, gain, error) < 4 < pull(found, 1.3 * gain, error), found
    assert found.direction == "none" and found.simulations == 2048 and found.flags == ()
    assert found.evaluations == 2048 * 257 + 16 * 129 and found.seconds > 0, "and a look at 16 experiments first"


@by_known
def test_bracket_holds(make, gain, error):
    known = make()
    low, high = bracket(known.simulator, known.prior, known.design, n=1024, inner=256)
    assert low.value < gain + 3 * math.hypot(low.error, error) and high.value > gain - 3 * math.hypot(high.error, error)
    assert pull(low, gain, error) < 4 and pull(high, gain, error) < 4, "and they are close"
    assert (low.direction, high.direction, low.method) == ("lower", "upper", "sPCE") and low.flags == high.flags == ()
    alone = contrastive_bound(known.simulator, known.simulator, known.prior, known.design, n=1024, inner=256)
    assert alone.value == low.value and alone.ceiling == pytest.approx(math.log(257))
    assert nested_bound(known.simulator, known.prior, known.design, n=1024, inner=256).value == high.value


def test_where_x_says_nothing():
    for found in (*bracket(TOY, TOY.prior, [45.0]), posterior_gain(TOY, TOY, TOY.prior, [45.0])):
        assert abs(found.value) < 1e-12 and found.flags == ()
    assert read_out(galton(15, 1)).value == pytest.approx(0, abs=1e-12) and read_out(galton(15, 1)).flags == ()


def test_one_seed_is_one_experiment():
    first, again, other = (read_out(linear(CLEAR), n=64, inner=64, seed=seed) for seed in (1, 1, 2))
    assert first.value == again.value != other.value and first.error == again.error
    values = {
        phi: torch.tensor([read_out(asymmetry(phi), n=64, inner=32, seed=k).value for k in range(30)])
        for phi in (49, 50)
    }
    difference = values[50] - values[49]
    assert difference.std() < 0.5 * (values[50] - values[49].roll(1)).std(), "designs share their random numbers"


def test_belief_may_be_a_posterior_on_a_grid():
    """What a grid of the normal prior says is what the prior says."""
    edges = [torch.linspace(-6, 6, 241).double()] * 2
    centre = (edges[0][1:] + edges[0][:-1]) / 2
    density = Normal(0.0, 1.0).log_prob(centre)
    belief = GridPosterior(CLEAR.parameters, edges, density[:, None] + density, verdicts={})
    found = posterior_gain(CLEAR, CLEAR, belief, n=2048, inner=512)
    assert pull(found, math.log(3)) < 4 < pull(found, 1.2 * math.log(3))
    narrow = Independent(Normal(torch.zeros(2).double(), torch.full((2,), 0.1).double()), 1)
    assert pull(posterior_gain(CLEAR, CLEAR, narrow), math.log(1.02)) < 4 < pull(found, math.log(1.02))


def test_an_estimator_of_one_event_reads_runs():
    runs = Events(TOY, 20)
    assert (
        posterior_gain(TOY, runs, TOY.prior, PHI, n=200).value
        == posterior_gain(runs, runs, TOY.prior, PHI, n=200).value
    )
    assert posterior_gain(TOY, TOY, TOY.prior, PHI, n=200).value < 0.05


# Bounds of what is wrong


WRONG = {
    "half of it": lambda value, theta, x: 0.5 * value,
    "twice": lambda value, theta, x: 2 * value,
    "a slope": lambda value, theta, x: value + 2 * theta.sum(-1),
    "noise": lambda value, theta, x: value + torch.sin(37 * theta[..., 0] * x[..., 0]),
    "of x alone": lambda value, theta, x: value + 10 * x[..., 0].cos(),
}


@pytest.mark.filterwarnings("ignore:EIG bound")
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_lower_bound_of_a_wrong_f(change):
    truth, wrong = math.log(3), Reader(CLEAR, change)
    found = contrastive_bound(wrong, CLEAR, CLEAR.prior, n=2048, inner=512)
    assert found.value < truth + 3 * found.error and found.direction == "lower" and found.method == "contrastive bound"
    exact = contrastive_bound(CLEAR, CLEAR, CLEAR.prior, n=2048, inner=512)
    free = change is WRONG["of x alone"]
    assert found.value == pytest.approx(exact.value, abs=1e-9) if free else found.value < exact.value - 3 * found.error
    assert pull(posterior_gain(wrong, CLEAR, CLEAR.prior, n=2048, inner=512), truth) > 4 or free, "what it certifies"


def test_saboteur_an_f_that_remembers_the_rows():
    """On the rows it was trained on, the bound is none."""
    kept = roll(reader(CLEAR), CLEAR, CLEAR.prior, None, n=1024, inner=256, seed=0)
    known = {tuple(x.tolist()): theta for x, theta in zip(kept.rows.x, kept.theta, strict=True)}

    def remember(value, theta, x):
        own = torch.stack([known.get(tuple(row.tolist()), torch.zeros(2)) for row in x[:, 0]])[:, None]
        return -5000 * ((theta - own) ** 2).sum(-1)

    cheat = Reader(CLEAR, remember)
    with pytest.warns(SbiWarning, match="ceiling"):
        found = contrastive_bound(cheat, CLEAR, CLEAR.prior, n=1024, inner=256)
    assert found.value > math.log(3) + 3 * found.error
    with pytest.warns(SbiWarning, match="below zero"):
        fresh = contrastive_bound(cheat, CLEAR, CLEAR.prior, n=1024, inner=256, seed=1)
    assert fresh.value < math.log(3) + 3 * fresh.error, "on others it is"


def test_an_upper_bound_needs_the_exact_likelihood():
    """A wrong f would be on the wrong side of it."""
    found = roll(reader(Reader(CLEAR, WRONG["half of it"])), CLEAR, CLEAR.prior, None, n=2048, inner=128, seed=0)
    value, error = found.estimate(lambda log_sum, mean, inner: found.own - log_sum + math.log(inner))
    assert value < math.log(3) - 3 * error
    black = FunctionSimulator(lambda theta, rng: theta + rng.normal(size=theta.shape), CLEAR.parameters)
    for call in (nested_bound, bracket):
        with pytest.raises(InputError, match="states no exact log_likelihood"):
            call(black, CLEAR.prior)


# Latents


def test_latents_say_more():
    known = linear(CLEAR)
    joint = float(linear_gaussian_gain(torch.eye(2), 0.25 * torch.eye(2), torch.eye(2)).value)
    found = latent_bound(CLEAR, known.prior, n=2048, inner=256)
    assert pull(found, joint) < 4 < pull(found, known.gain) and found.value > known.gain - 3 * found.error
    for other in (galton(15, 20), death(0.5439, 2.6781)):
        upper = latent_bound(other.simulator, other.prior, other.design, n=1024, inner=256)
        assert upper.value > other.gain - 3 * upper.error and upper.direction == "upper"
    assert latent_bound(EPIDEMIC, EPIDEMIC.prior, [0.5, 2.0]).value - 3 * found.error > death(0.5, 2.0).gain


@pytest.mark.parametrize(("world", "design"), [(TOY, PHI), (Events(TOY, 20), PHI), (LinearGaussian.benchmark(), None)])
def test_without_latents_it_is_the_nested_bound(world, design):
    found = latent_bound(world, world.prior, design, n=256, inner=64)
    assert found.value == pytest.approx(nested_bound(world, world.prior, design, n=256, inner=64).value, abs=1e-9)
    assert latent_bound(CLEAR, CLEAR.prior, n=256).value != pytest.approx(nested_bound(CLEAR, CLEAR.prior, n=256).value)


def test_latent_bound_needs_gold():
    black = FunctionSimulator(lambda theta, rng: theta, [Parameter("a", 0, 1)])
    with pytest.raises(MissingGold, match="latent_bound needs joint ratios, and simulator 'FunctionSimulator'"):
        latent_bound(black, black.prior)


# What is flagged


NARROW = LinearGaussian(5, latent_std=0.02, noise_std=0.02)


def test_f83_bound_that_is_none():
    """NaN is an error; below zero, above its upper partner, or at the ceiling of so few contrasts is flagged aloud."""
    broken = Reader(CLEAR, lambda value, theta, x: torch.where(theta[..., 0] > 2, torch.nan, value))
    for call in (contrastive_bound, posterior_gain):
        with pytest.raises(InputError, match=r"EIG bound: the log density of \d+ of (16|64) experiments is NaN"):
            call(broken, CLEAR, CLEAR.prior, n=64, inner=64)
    with pytest.warns(SbiWarning, match=r"EIG bound .*below zero"):
        negative = contrastive_bound(Reader(CLEAR, lambda value, theta, x: -value), CLEAR, CLEAR.prior)
    with pytest.warns(SbiWarning, match=r"EIG bound .*ceiling"):
        ceiling = contrastive_bound(NARROW, NARROW, NARROW.prior, inner=64)
    low, high = bracket(CLEAR, CLEAR.prior)
    crossed = bracketed(replace(low, value=high.value + 1), high)
    for found in (negative, ceiling, *crossed):
        assert all(name in found.flags[0] for name in ("EIG", "bound"))
    assert low.flags == high.flags == (), "saboteur: what is in order says nothing"


def test_ceiling_is_far_below_the_gain():
    with pytest.warns(SbiWarning, match="Raise inner"):
        low, high = bracket(NARROW, NARROW.prior, inner=64)
    truth = float(NARROW.information_gain())
    assert low.value <= low.ceiling == pytest.approx(math.log(65)) and low.ceiling < truth / 3 < high.value
    assert "ceiling" in low.flags[0] and high.flags == () and high.value > truth - 3 * high.error
    enough = contrastive_bound(CLEAR, CLEAR, CLEAR.prior, inner=64)
    assert enough.flags == (), "saboteur: a gain of 1.1 nats"


def test_posteriors_that_are_not_resolved_are_flagged():
    (flag,) = posterior_gain(NARROW, NARROW, NARROW.prior, n=64, inner=64).flags
    assert "only 1.0 matter to an experiment" in flag and flag.startswith("EIG: of 64 thetas")
    (flag,) = posterior_gain(NARROW, NARROW, NARROW.prior, n=512, inner=512).flags
    assert "matter" in flag, "and f is not blamed"
    assert posterior_gain(CLEAR, CLEAR, CLEAR.prior, n=64, inner=128).flags == ()
    assert "matter" in latent_bound(NARROW, NARROW.prior, n=64, inner=64).flags[0]


@pytest.mark.parametrize("name", ["half of it", "a slope", "of x alone"])
def test_wrong_f_is_told_by_its_posterior_means(name):
    flags = posterior_gain(Reader(CLEAR, WRONG[name]), CLEAR, CLEAR.prior, n=512, inner=512).flags
    assert any("f is wrong somewhere" in flag for flag in flags) == (name != "of x alone")
