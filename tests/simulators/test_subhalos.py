import lenses_by_hand as by_hand
import numpy as np
import pytest
import torch
from measures import z_of_mean
from scipy.integrate import quad
from scipy.stats import kstest

from sbi_core import InputError
from sbi_core.simulators.lens_cosmology import Host
from sbi_core.simulators.subhalos import (
    MassFunction,
    Subhalos,
    draw_log_mass,
    log_integral,
    log_sinhc,
    mean_log_mass,
    variance_log_mass,
)

SLOPES = [-1.5, -1.0 - 1e-9, -1.0, -0.9, -0.02, -1e-7, 0.0, 1e-9, 0.013, 0.5, 1.0]
LOW, HIGH = np.log(1e7), np.log(2e11)


def at(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def moments(power):
    """Integral of e^(power t), mean and variance of t by quadrature; the integral over its middle value."""
    middle = power * (LOW + HIGH) / 2

    def over(weight):
        options = {"epsabs": 0, "epsrel": 1e-12, "limit": 200}
        return quad(lambda t: weight(t) * np.exp(power * t - middle), LOW, HIGH, **options)[0]

    whole = over(lambda t: 1.0)
    mean = over(lambda t: t) / whole
    return np.log(whole) + middle, mean, over(lambda t: (t - mean) ** 2) / whole


@pytest.mark.parametrize("power", SLOPES)
def test_moments_are_those_of_quadrature(power):
    exact = moments(power)
    for function, value in zip((log_integral, mean_log_mass, variance_log_mass), exact, strict=True):
        assert float(function(at(power), at(LOW), at(HIGH))) == pytest.approx(value, rel=1e-11)
        assert float(function(at(power + 0.01), at(LOW), at(HIGH))) != pytest.approx(value, rel=1e-11)


def test_series_meets_the_closed_form():
    """No step where the one takes over from the other, nor in slope and curvature."""
    u = torch.linspace(0.0999, 0.1001, 2001, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(log_sinhc(u).sum(), u, create_graph=True)[0]
    curve = torch.autograd.grad(slope.sum(), u)[0]
    steps = slope.detach().diff()
    assert float(steps.max() / steps.min()) == pytest.approx(1, abs=1e-3)
    at_u = u.detach()
    assert float((curve - 1 / at_u**2 + 1 / at_u.sinh() ** 2).abs().max()) < 1e-9
    ends = at(-300.0, 0.0, 300.0).requires_grad_()
    assert torch.autograd.grad(log_sinhc(ends).sum(), ends)[0].tolist() == pytest.approx([-1 + 1 / 300, 0, 1 - 1 / 300])


@pytest.mark.parametrize("power", SLOPES)
def test_masses_follow_the_power_law(power):
    unit = torch.rand(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = draw_log_mass(unit, at(power).expand(20_000), at(LOW).expand(20_000), at(HIGH).expand(20_000))
    assert float(drawn.min()) >= LOW and float(drawn.max()) <= HIGH

    def share(slope):
        return lambda t: np.expm1(slope * (t - LOW)) / np.expm1(slope * (HIGH - LOW))

    slope = power if abs(power) > 1e-6 else 1e-6
    assert kstest(drawn.numpy(), share(slope)).pvalue > 1e-3
    assert kstest(drawn.numpy(), share(slope + 0.1)).pvalue < 1e-3, "saboteur: another slope"
    mean, variance = (f(at(power), at(LOW), at(HIGH)) for f in (mean_log_mass, variance_log_mass))
    assert z_of_mean(drawn, mean) < 4 and z_of_mean((drawn - mean) ** 2, variance) < 4


def test_ends_of_the_range():
    ends = draw_log_mass(at(0.0, 1.0, 0.0, 1.0), at(-0.9, -0.9, 0.0, 0.0), at(LOW).expand(4), at(HIGH).expand(4))
    assert torch.allclose(ends, at(LOW, HIGH, LOW, HIGH), atol=1e-10)


CALIBRATED = [(1e7, 1e7), (1e8, 1e7), (1e9, 1e9), (1e7, 1e6)]


def population(floor, n=60):
    """A population in a host, as the simulator and as the slow computation see it."""
    lens = by_hand.Lens()
    generator = np.random.default_rng(3)
    log_masses = generator.uniform(np.log(floor), np.log(0.01 * lens.mass), n)
    zero = at(0.0)
    host = Host(at(225.0), at(10**-0.25), zero, zero)
    return lens, log_masses, host.region_mass().log(), (0.01 * host.mass).log()


@pytest.mark.parametrize(("floor", "calibrated_from"), CALIBRATED)
@pytest.mark.parametrize("beta", [-1.5, -1.2, -1.0, -0.9, -0.5])
def test_probability_and_score_are_those_of_a_sum_over_subhalos(floor, calibrated_from, beta):
    lens, log_masses, region, top = population(floor)
    law, n, total = MassFunction(floor, calibrated_from), at(len(log_masses)), at(log_masses.sum())

    def exact(f_sub, beta):
        theta = f_sub, beta
        return by_hand.log_probability(theta, log_masses, lens.region_mass, floor, 0.01 * lens.mass, calibrated_from)

    theta = at(0.05, beta)[None]
    value = law.log_probability(theta, n, total, region, top)
    assert float(value) == pytest.approx(exact(0.05, beta), rel=1e-8)
    assert float(value) != pytest.approx(exact(0.05, beta + 1e-5), rel=1e-8), "saboteur: another slope"
    leaf = theta.clone().requires_grad_()
    slope = torch.autograd.grad(law.log_probability(leaf, n, total, region, top).sum(), leaf)[0]
    assert torch.allclose(law.score(theta, n, total, region, top), slope, rtol=1e-10, atol=1e-8)
    for k, step in enumerate((1e-4 * 0.05, 1e-4)):
        ends = [exact(0.05 + m * step * (k == 0), beta + m * step * (k == 1)) for m in (-2, -1, 1, 2)]
        by_difference = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * step)
        assert float(slope[0, k]) == pytest.approx(by_difference, rel=1e-6, abs=1e-4)


def test_score_of_one_subhalo_in_closed_form():
    """The two ratios of integrals that make up t_beta, by quadrature, to 1e-8."""
    lens, log_masses, region, top = population(1e8)
    law, n, total = MassFunction(1e8, 1e7), at(len(log_masses)), at(log_masses.sum())
    high = np.log(0.01 * lens.mass)

    def integral(power, low, weight):
        return quad(lambda t: weight(t) * np.exp(power * (t - high)), low, high, epsabs=0, epsrel=1e-13, limit=200)[0]

    def mean(power, low):
        return integral(power, low, lambda t: t) / integral(power, low, lambda t: 1.0)

    first, second = mean(-0.9, np.log(1e8)), mean(0.1, np.log(1e7))
    ratio = integral(-0.9, np.log(1e8), lambda t: 1.0) / integral(0.1, np.log(1e7), lambda t: 1.0)
    expected = 0.05 * lens.region_mass / (0.01 * lens.mass) * ratio
    exact = [
        (60 - expected) / 0.05,
        (60 - expected) * (first - second) + log_masses.sum() - 60 * first,
    ]
    assert law.score(at(0.05, -0.9)[None], n, total, region, top)[0].tolist() == pytest.approx(exact, rel=1e-8)
    wrong = MassFunction(1e8, 1e8).score(at(0.05, -0.9)[None], n, total, region, top)[0].tolist()
    assert wrong != pytest.approx(exact, rel=1e-3), "saboteur: calibrated on what is drawn"


def test_information_is_the_variance_of_the_score():
    _, _, region, top = population(1e7)
    law, theta = MassFunction(1e8, 1e7), at(0.05, -0.9)
    generator = torch.Generator().manual_seed(2)
    rows = 20_000
    expected = law.log_expected(theta[None], region, top).exp()
    n = torch.poisson(expected.expand(rows), generator=generator)
    lens = torch.arange(rows).repeat_interleave(n.long())
    unit = torch.rand(len(lens), generator=generator, dtype=torch.float64)
    low = at(np.log(1e8)).expand_as(unit)
    drawn = draw_log_mass(unit, theta[1].expand_as(unit), low, top.expand_as(unit))
    total = torch.zeros(rows, dtype=torch.float64).index_add_(0, lens, drawn)
    score = law.score(theta.expand(rows, 2), n, total, region.expand(rows), top.expand(rows))
    assert z_of_mean(score) < 4
    exact = law.information(theta[None], region, top)[0]
    assert z_of_mean(score[:, :, None] * score[:, None, :], exact.flatten()) < 4
    assert z_of_mean(score[:, :, None] * score[:, None, :], 1.05 * exact.flatten()) > 4, "saboteur"


def test_published_numbers():
    """The fiducial host, with and without 1 / m(c)."""
    host = Host(at(225.0), at(10**-0.25), at(0.0), at(0.0))
    law, theta, top = MassFunction(1e7, 1e7), at(0.05, -0.9)[None], (0.01 * host.mass).log()
    for published, number, information in (
        (False, 90.14, [36055, -8416, -8416, 2075]),
        (True, 100.22, [40088, -9357, -9357, 2307]),
    ):
        region = host.region_mass(as_published=published).log()
        assert float(law.log_expected(theta, region, top).exp()) == pytest.approx(number, abs=5e-3)
        assert law.information(theta, region, top).flatten().tolist() == pytest.approx(information, abs=0.7)


def test_list_of_subhalos():
    some = Subhalos(torch.tensor([2, 0, 2, 1]), at(1.0, 2.0, 3.0, 4.0), at(0.0, 1.0, 2.0, 3.0), at(4.0, 5.0, 6.0, 7.0))
    assert len(some) == 4 and some.counts(4).tolist() == [1, 1, 2, 0]
    assert some.totals(some.mass, 4).tolist() == [2, 4, 4, 0]
    ordered = some.sorted()
    assert ordered.mass.tolist() == [2, 4, 1, 3] and ordered.y.tolist() == [5, 7, 4, 6] and ordered.sorted() is ordered
    last = ordered.between(1, 3)
    assert last.lens.tolist() == [0, 1, 1] and last.mass.tolist() == [4, 1, 3]
    assert some[some.mass < 3].joined(last).lens.tolist() == [0, 0, 1, 1, 2]


def test_lists_of_different_length_are_refused():
    with pytest.raises(InputError, match=r"Subhalos: lens, mass, x and y have shapes .*, expected \(S,\)"):
        Subhalos([0, 0], [1e9], [0.0, 0.1], [0.0, 0.1])
    with pytest.raises(InputError, match="expected"):
        Subhalos(0, 1e9, 0.0, 0.0)
