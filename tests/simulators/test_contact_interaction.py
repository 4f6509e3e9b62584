import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import beta

from sbi_core import InputError, infer
from sbi_core.simulators import ContactInteraction
from sbi_core.simulators.contact_interaction import OPERATORS, _density
from sbi_core.simulators.electroweak import ALPHA, GAMMA_Z, M_Z, legendre

PROCESS = ContactInteraction(["lq1", "lq3", "eu"], reach=0.3)


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


THETA = torch.tensor([[0.0, 0.0, 0.0], [0.2, -0.1, 0.3], [-0.3, 0.3, -0.2]], dtype=torch.float64)
TEV, PICOBARN, SIN2 = 1000.0, 0.3893794e9, 0.23153


def by_hand(theta, m, c, flavour):
    """d sigma / dc in pb of one quark and antiquark, c between quark and mu-: the formula with complex numbers."""
    s, total = (m * TEV) ** 2, 0.0
    charge, isospin = ((2 / 3, 0.5), (-1 / 3, -0.5))[flavour]
    for quark in "LR":
        for lepton in "LR":
            g_q = (isospin if quark == "L" else 0) - charge * SIN2
            g_l = (-0.5 if lepton == "L" else 0) + SIN2
            z = g_q * g_l / (SIN2 * (1 - SIN2)) / (s - M_Z**2 + 1j * M_Z * GAMMA_Z)
            contact = 0.0
            for value, name in zip(theta, PROCESS.operators, strict=True):
                where, up, down = OPERATORS[name]
                contact += value * 1e-6 * (up, down)[flavour] * (where == quark + lepton)
            amplitude = 4 * math.pi * ALPHA * (-charge / s + z) + contact
            total += abs(amplitude) ** 2 * (1 + c if quark == lepton else 1 - c) ** 2
    return PICOBARN * s / (384 * math.pi) * total


def test_weight_is_the_amplitude_squared():
    """Weights of the same event at two thetas have the ratio of the formula, whatever generated it."""
    made = PROCESS.generate(300, THETA, seed=1)
    for k in range(0, 300, 37):
        log_m, c, _, flavour, side, _ = made.latents[k].tolist()
        exact = [by_hand(theta, math.exp(log_m), side * c, int(flavour)) for theta in THETA.tolist()]
        found = made.weights[k] / made.weights[k, 0]
        assert torch.allclose(found, at(*exact) / exact[0], rtol=1e-9)
        wrong = [by_hand(theta, math.exp(log_m), -side * c, int(flavour)) for theta in THETA.tolist()]
        assert not torch.allclose(found, at(*wrong) / wrong[0], rtol=1e-6), "saboteur: other side"


def test_photon_alone_is_the_textbook():
    """4 pi alpha^2 Q^2 / (9 s), far from the Z: what is left of the formula without it."""
    both = [by_hand((0, 0, 0), 0.005, c, 0) for c in np.linspace(-1, 1, 2001)]
    assert np.trapezoid(both, dx=1e-3) == pytest.approx(PICOBARN * 4 * math.pi * ALPHA**2 * 4 / 9 / (9 * 25), rel=5e-3)


def test_partons_obey_the_sum_rules():
    for up, quarks in ((True, 2), (False, 1)):
        flag = torch.tensor(up)

        def valence(x, flag=flag):
            return float(_density(at(x), flag, valence=True) - _density(at(x), flag, valence=False))

        assert quad(valence, 0, 1, limit=200)[0] == pytest.approx(quarks, rel=1e-4)
    momentum = quad(lambda x: x * float(_density(torch.tensor(x), torch.tensor(False), valence=False)), 0, 1)[0]
    assert momentum == pytest.approx(0.1939875 * beta(0.9, 7), rel=1e-6)


def integral(process, theta, nodes):
    """Cross-section by quadrature over what the generator draws."""
    low, high = (math.log(end / TEV) for end in process.mass)
    log_m, on_m = legendre(torch.linspace(low, high, 9, dtype=torch.float64), nodes)
    c, on_c = legendre(at(-1.0, 1.0), 6)
    total = 0.0
    for sign in (-1, 1):
        reach = math.log(process.sqrt_s / TEV) - log_m
        y, on_y = legendre(torch.stack([torch.zeros_like(reach), sign * reach], -1), 3 * nodes)
        for flavour in (0.0, 1.0):
            for side in (-1.0, 1.0):
                grid = [
                    log_m[:, None, None],
                    c,
                    y[:, :, None],
                    torch.tensor(flavour),
                    torch.tensor(side),
                    torch.ones(1),
                ]
                latents = torch.stack(torch.broadcast_tensors(*(axis.double() for axis in grid)), -1)
                weight = process.weight(theta, latents)
                total += torch.einsum("m,my,c,myc->", on_m, on_y.abs(), on_c, weight)
    return float(total)


@pytest.mark.parametrize("theta", THETA)
def test_rate_is_the_integral_of_the_weight(theta):
    exact = integral(PROCESS, theta, 12)
    assert float(PROCESS.rate(theta)) == pytest.approx(exact, rel=1e-8)
    assert integral(PROCESS, theta, 10) == pytest.approx(exact, rel=1e-8), "the quadrature has converged"
    assert float(PROCESS.rate(theta + 1e-4)) != pytest.approx(exact, rel=1e-6)


@pytest.fixture(scope="module")
def events():
    return PROCESS.generate(100_000, THETA, seed=2)


def z_of_sum(terms, expected):
    """Distance of sums over events (N, ...) from what is expected, in standard errors: N is large, so sqrt(sum w^2)."""
    return float(((terms.sum(0) - expected).abs() / terms.square().sum(0).sqrt()).max())


@pytest.mark.parametrize("negative", [0.0, 0.3])
def test_weights_sum_to_cross_sections(negative):
    made = PROCESS.generate(100_000, THETA, seed=3, negative=negative)
    assert z_of_sum(made.weights, PROCESS.rate(THETA)) < 4
    assert z_of_sum(made.weights, 1.05 * PROCESS.rate(THETA)) > 4, "saboteur: 5% more"
    share = (made.weights < 0).double().mean(0)
    assert float((share - negative / 2).abs().max()) < 4 * math.sqrt(0.15 * 0.85 / 1e5) and (share == share[0]).all()


@pytest.fixture(scope="module")
def shares():
    """Probabilities of bins of ln m and of c at each theta by quadrature, [(T, 8), (T, 6)]."""
    (log_m, on_m), (c, on_c) = legendre(LOG_M, 4), legendre(COS, 12)
    look = PROCESS.observe(torch.stack(torch.broadcast_tensors(log_m[:, None], c), -1))
    each = torch.stack([look(theta).exp() * on_m[:, None] * on_c for theta in THETA])
    return [each.sum(2).reshape(3, 8, -1).sum(2), each.sum(1).reshape(3, 6, -1).sum(2)]


LOG_M = torch.linspace(math.log(0.3) - 0.4, math.log(4.0) + 0.4, 41, dtype=torch.float64)
COS = at(-1.0, -0.9, -0.5, 0.0, 0.5, 0.9, 1.0)


@pytest.mark.parametrize("k", range(3))
def test_likelihood_is_that_of_the_events(k, events, shares):
    """Shares of bins of either number of x: the density against weighted events; it is normalised."""
    weight, rate = events.weights[:, k], PROCESS.rate(THETA[k])
    for exact, column, edges in ((shares[0], 0, LOG_M[::5].contiguous()), (shares[1], 1, COS)):
        assert torch.allclose(exact.sum(1), torch.ones(3).double(), atol=1e-8)
        place = torch.bucketize(events.x[:, column].contiguous(), edges[1:-1])
        inside = torch.nn.functional.one_hot(place, len(edges) - 1) * weight[:, None]
        often = exact[k] > 1e-3
        assert z_of_sum(inside[:, often], (rate * exact[k])[often]) < 4
        assert z_of_sum(inside[:, often], (rate * exact[k - 1])[often]) > 4, "saboteur: another theta"


def test_likelihood_is_quadratic_in_theta_and_observed_once():
    x = PROCESS.generate(50, THETA, seed=4).x
    look = PROCESS.observe(x[:, None])
    assert torch.allclose(look(THETA), PROCESS.log_likelihood(THETA, x[:, None]), atol=1e-12)
    line = torch.linspace(-0.3, 0.3, 7, dtype=torch.float64)[:, None] * at(1.0, -0.5, 0.7)
    density = look(line).exp() * PROCESS.rate(line)  # (50, 7)
    assert density.diff(n=3).abs().max() < 1e-12 < 1e-4 < density.diff(n=2).abs().max()


def test_posterior_finds_the_truth():
    process = ContactInteraction(["lq3"], reach=0.2)
    made = process.generate(20_000, [[0.05]], seed=5)
    drawn = torch.multinomial(made.weights[:, 0], 300, generator=torch.Generator().manual_seed(1))
    posterior = infer(process, process.prior, made.x[drawn], iid=True)
    assert abs(float(posterior.mean) - 0.05) < 4 * float(posterior.variance) ** 0.5 < 0.1


def test_particles_have_what_was_drawn():
    made = PROCESS.generate(200, THETA, seed=6)
    table = PROCESS.particles(made.latents, seed=1)
    p = table[:, :, 6:10]
    assert table.shape == (200, 4, 13)
    assert np.allclose(p[:, :2].sum(1), p[:, 2:].sum(1), atol=1e-9), "momentum is conserved"
    assert np.abs(p[..., 3] ** 2 - (p[..., :3] ** 2).sum(-1)).max() < 1e-6 * (p[..., 3] ** 2).max(), "no masses"
    pair = p[:, 2:].sum(1)
    muons = p[:, 2:]
    rapidity = 0.5 * np.log((muons[..., 3] + muons[..., 2]) / (muons[..., 3] - muons[..., 2]))
    ahead = np.sign(pair[:, 2])
    log_m, c, y, flavour, side, _ = made.latents.numpy().T
    assert np.allclose(0.5 * np.log(pair[:, 3] ** 2 - (pair[:, :3] ** 2).sum(1)), log_m + math.log(TEV), atol=1e-9)
    assert np.allclose(np.tanh((rapidity[:, 0] - rapidity[:, 1]) / 2 * ahead), c, atol=1e-7)
    assert np.allclose(rapidity.mean(1), y, atol=1e-7)
    assert (np.abs(table[:, 0, 0]) == np.where(flavour == 0, 2, 1)).all() and (table[:, 0, 0] > 0).all()
    assert (np.sign(p[:, 0, 2]) == side * ahead).all()
    assert (np.argmax(p[:, :2, 3], 1) == np.where(side > 0, 0, 1)).all(), "the side is that of the faster parton"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"operators": ["lq2"]}, "operator 'lq2' is not known; did you mean 'lq3' or 'lq1'"),
        ({"operators": []}, "expected different operators"),
        ({"mass": (500.0, 400.0)}, "0 < low < high < sqrt_s"),
        ({"resolution": (0.0, 0.1)}, "two positive resolutions"),
    ],
)
def test_settings_that_make_no_process_are_refused(options, text):
    with pytest.raises(InputError, match=text):
        ContactInteraction(**options)


@pytest.mark.parametrize(
    ("n", "benchmarks", "text"),
    [
        (0, THETA, "n = 0 events, expected at least 1"),
        (5, [0.0, 0.0, 0.0], r"benchmarks have shape \(3,\), expected \(B, 3\)"),
        (5, [[0.0]], r"benchmarks have shape \(1, 1\), expected \(B, 3\)"),
    ],
)
def test_events_that_are_none_are_refused(n, benchmarks, text):
    with pytest.raises(InputError, match=text):
        PROCESS.generate(n, benchmarks, seed=1)


def test_cosines_that_cannot_be_have_no_density():
    found = PROCESS.log_likelihood(THETA[0], torch.tensor([[0.0, 1.0], [0.0, -1.5], [0.0, 0.999]]))
    assert found.isneginf().tolist() == [True, True, False] and bool(found[2].isfinite())


def test_too_many_negative_weights_are_refused():
    with pytest.raises(InputError, match="expected a share from 0 to below"):
        PROCESS.generate(10, THETA, seed=1, negative=0.5)
