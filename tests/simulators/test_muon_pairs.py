import math
from pathlib import Path

import matplotlib.pyplot as plt
import muons_by_hand as by_hand
import pytest
import torch
from measures import z_of_mean

from sbi_core import Events, GoldError, InputError, MissingGold, Store, UniformPrior, check_gold, joint_score, simulate
from sbi_core.simulators import MuonPairs

OFF = {"radiation": False, "flips": False, "smearing": 0.0}
BARE = MuonPairs(**OFF, window=None)
POLARISED = MuonPairs(polarised=True, positron_polarisation=0.3)
HALF = (0.0, 0.95)


def at(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


STANDARD = at(0.23153, 1.0)


def energies(world):
    return UniformPrior(world.designs)


def test_photon_alone():
    energy = at(60, 91.1876, 130)[:, None]
    exact = 4 * math.pi / 127.95**2 / 3 / energy[:, 0] ** 2 * 0.38938e9
    assert torch.allclose(BARE.cross_section(at(0.23, 0.0), energy), exact, rtol=1e-12)
    assert torch.allclose(BARE.rate(at(0.23, 0.0), energy), exact, rtol=1e-12)
    assert not torch.allclose(BARE.cross_section(at(0.23, 0.01), energy), exact, rtol=1e-3)


def test_published_numbers():
    energy = at(91.1876, 80, 88, 89.4, 93, 100)[:, None]
    assert float(BARE.rate(STANDARD, energy[0])) == pytest.approx(1984, abs=0.5)
    asymmetry = BARE.forward_backward_asymmetry(STANDARD, energy)
    published = at(0.01610, -0.7267, -0.2834, -0.1526, 0.1769, 0.5906)
    assert torch.allclose(asymmetry, published, atol=5e-5) and float(asymmetry[0]) == pytest.approx(0.01610, abs=5e-6)
    assert not torch.allclose(BARE.forward_backward_asymmetry(STANDARD + 1e-3, energy), published, atol=5e-5)


@pytest.mark.parametrize("positron", [0.0, 0.3, -1.0])
def test_differential_cross_section(positron):
    world = MuonPairs(**OFF, window=None, polarised=True, positron_polarisation=positron)
    rows = simulate(world, 20, seed=1, design=energies(world), progress=False)
    value = world.log_likelihood(rows.theta, rows.x, rows.design).exp() * world.rate(rows.theta, rows.design)
    for k in range(20):
        (energy, electron), c = rows.design[k].tolist(), float(rows.x[k, 0])
        exact = by_hand.d_sigma(c, energy**2, rows.theta[k], electron, positron)
        assert float(value[k]) == pytest.approx(exact, rel=1e-12)
        assert float(value[k]) != pytest.approx(by_hand.d_sigma(-c, energy**2, rows.theta[k], electron, positron))


def test_unpolarised_is_the_mean_of_both_polarisations():
    world, energy = MuonPairs(polarised=True), at(60, 88, 91, 130)
    both = [world.rate(STANDARD, torch.stack([energy, torch.full_like(energy, p)], 1)) for p in (-0.8, 0.8)]
    assert torch.allclose((both[0] + both[1]) / 2, MuonPairs().rate(STANDARD, energy[:, None]), rtol=1e-12)
    assert not torch.allclose(both[0], both[1], rtol=1e-2)
    fixed = MuonPairs(polarisation=0.8).rate(STANDARD, energy[:, None])
    assert torch.allclose(fixed, both[1], rtol=1e-12)


@pytest.mark.parametrize("window", [(-0.95, 0.95), HALF, (-0.3, 1.2)])
def test_fiducial_cross_section_is_that_of_quadrature(window):
    world = MuonPairs(window=window, polarised=True, positron_polarisation=0.3)
    rows = simulate(world, 8, seed=1, design=energies(world), progress=False)
    value = world.rate(rows.theta, rows.design)
    for k in range(8):
        energy, electron = rows.design[k].tolist()
        exact = by_hand.fiducial(rows.theta[k], energy**2, window, 0.02, electron, 0.3)
        assert float(value[k]) == pytest.approx(exact, rel=1e-10)


def test_window_shares_out_the_cross_section():
    parts = [MuonPairs(window=w).rate(STANDARD) for w in ((-2.0, -0.2), (-0.2, 0.4), (0.4, 2.0))]
    assert float(sum(parts)) == pytest.approx(float(MuonPairs(window=None).cross_section(STANDARD)), rel=1e-10)


def test_score_of_the_fiducial_cross_section():
    """What forgetting it costs, 0 < c < .95 at 89 GeV: E[t] is off by (-2.27, .24)."""
    theta = STANDARD.clone().requires_grad_()
    share = torch.log(MuonPairs(**OFF, window=HALF).rate(theta) / BARE.rate(theta))
    assert torch.allclose(torch.autograd.grad(share, theta)[0], at(-2.27, 0.24), atol=0.006)


class Forgetful(MuonPairs):
    """Saboteur: divides by the whole cross-section."""

    def log_joint(self, theta, x, z, design):
        whole = self.rate(theta, design).log() - self.cross_section(theta, design).log()
        return super().log_joint(theta, x, z, design) + whole


def test_mean_score_needs_the_fiducial_cross_section():
    settings = {**OFF, "window": HALF}
    rows = simulate(MuonPairs(**settings), 20_000, seed=1, proposal=STANDARD, progress=False)
    assert z_of_mean(joint_score(MuonPairs(**settings), rows)) < 4
    wrong = joint_score(Forgetful(**settings), rows)
    assert z_of_mean(wrong) > 4, "saboteur"
    assert z_of_mean(wrong, at(-2.2692, 0.2350)) < 4


WORLDS = {
    "default": MuonPairs(),
    "asymmetric": MuonPairs(window=HALF),
    "polarised": POLARISED,
    "no radiation": MuonPairs(radiation=False),
    "no smearing": MuonPairs(smearing=0.0, window=HALF),
    "bare": BARE,
}


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS)
def test_gold_passes(world):
    rows = simulate(world, 10_000, seed=1, design=energies(world), progress=False)
    check_gold(world, rows).raise_if_failed()
    assert rows.x.shape == (10_000, 2) and rows.z.shape == (10_000, 2 if world.radiation else 1)
    low, high = world.window or (-2, 2)
    assert (rows.x[:, 0] > low).all() and (rows.x[:, 0] < high).all()


@pytest.mark.parametrize("window", [HALF, (-0.4, 0.95)])
def test_gold_that_forgets_the_window_fails(window):
    rows = simulate(MuonPairs(window=window), 10_000, seed=1, progress=False)
    check_gold(MuonPairs(window=window), rows).raise_if_failed()
    with pytest.raises(GoldError):
        check_gold(Forgetful(window=window), rows).raise_if_failed()


@pytest.mark.parametrize("options", [{"n": 300}, {"luminosity": 0.3}], ids=["fixed", "poisson"])
def test_gold_of_runs(options):
    """A run is sharp enough for the tests of ratios, which one event is not."""
    runs = simulate(Events(MuonPairs(window=HALF), **options), 300, seed=1, progress=False)
    report = check_gold(Events(MuonPairs(window=HALF), **options), runs)
    report.raise_if_failed()
    assert [test.passed for test in report.rows if test.name == "ratio bounded"] == [True, True]
    with pytest.raises(GoldError):
        check_gold(Events(Forgetful(window=HALF), **options), runs).raise_if_failed()


def test_number_of_events_is_that_of_the_rate():
    world = MuonPairs(window=HALF)
    runs = simulate(Events(world, luminosity=0.1), 400, seed=1, proposal=STANDARD, design=at(92.0), progress=False)
    mean, wrong = (0.1 * float(world.rate(STANDARD, at(energy))) for energy in (92.0, 92.2))
    assert z_of_mean(runs.n_events, mean) < 4 < z_of_mean(runs.n_events, wrong)


class Still(MuonPairs):
    """Saboteur: the fiducial cross-section is taken for one that does not know the design."""

    def log_joint(self, theta, x, z, design):
        return super().log_joint(theta, x, z, design) + self.rate(theta, design).log()


def test_mean_design_score_is_zero():
    rows = simulate(POLARISED, 20_000, seed=1, design=energies(POLARISED), progress=False)
    for world, good in ((POLARISED, True), (Still(polarised=True, positron_polarisation=0.3), False)):
        leaf = rows.design.clone().requires_grad_()
        score = torch.autograd.grad(world.log_joint(rows.theta, rows.x, rows.z, leaf).sum(), leaf)[0]
        each = z_of_mean(score), z_of_mean(score * (rows.design - rows.design.mean(0)))
        assert world.design_score and (max(each) < 4) == good and (min(each) > 4) != good


def test_log_joint_keeps_every_term_with_the_design():
    rows = simulate(POLARISED, 12, seed=2, design=energies(POLARISED), progress=False)
    here = POLARISED.log_joint(rows.theta, rows.x, rows.z, rows.design)
    there = POLARISED.log_joint(rows.theta, rows.x, rows.z, rows.design.flip(0))

    def exact(k, design, radiates):
        (energy, electron), (c, log_x), theta = design.tolist(), rows.z[k].tolist(), rows.theta[k]
        s, eta = energy**2, by_hand.eta(energy**2)
        value = by_hand.d_sigma(c, s * (1 - math.exp(log_x)), theta, electron, 0.3)
        value /= by_hand.fiducial(theta, s, electron=electron, positron=0.3)
        return math.log(value) + radiates * (math.log(eta) - eta * math.log(0.9) + eta * log_x)

    for radiates, good in ((1, True), (0, False)):
        difference = at(
            *(exact(k, rows.design[k], radiates) - exact(k, rows.design[-1 - k], radiates) for k in range(12))
        )
        assert torch.allclose(here - there, difference, atol=1e-9) == good


def test_design_score_is_a_slope():
    rows = simulate(POLARISED, 200, seed=2, design=energies(POLARISED), progress=False)
    centre = rows.design * at(0.99, 0.99) + at(0.95, 0.0)
    leaf = centre.clone().requires_grad_()
    score = torch.autograd.grad(POLARISED.log_joint(rows.theta, rows.x, rows.z, leaf).sum(), leaf)[0]
    for axis, step in enumerate((at(1e-4, 0.0), at(0.0, 1e-5))):
        high, low = (POLARISED.log_joint(rows.theta, rows.x, rows.z, centre + k * step) for k in (1, -1))
        assert torch.allclose((high - low) / (2 * step.sum()), score[:, axis], rtol=1e-6, atol=1e-6)


def test_latents_keep_what_is_small():
    """x falls far below what float32 holds, and s (1 - x) then is s to the last bit."""
    world = MuonPairs()
    rows = simulate(world, 50_000, seed=1, progress=False)
    log_x = rows.z[:, 1]
    assert rows.z.dtype == rows.x.dtype == torch.float64
    assert log_x.isfinite().all() and (log_x <= math.log(0.9)).all() and log_x.min() < math.log(1e-46)
    assert joint_score(world, rows).isfinite().all()


def test_rows_are_those_of_the_store(tmp_path: Path):
    made = simulate(POLARISED, 1500, seed=1, design=energies(POLARISED), progress=False)
    simulate(POLARISED, 700, seed=1, design=energies(POLARISED), store=tmp_path / "muons.zarr", progress=False)
    simulate(POLARISED, 1500, seed=1, design=energies(POLARISED), store=tmp_path / "muons.zarr", progress=False)
    again = Store(tmp_path / "muons.zarr")[:]
    assert torch.equal(again.x, made.x) and torch.equal(again.z, made.z) and len(made.x[:, 0].unique()) == 1500


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sqrt_s": 59.0}, "sqrt_s = 59 GeV, expected 60 to 130 GeV"),
        ({"polarisation": 1.2}, "polarisation = 1.2, expected -1 to 1"),
        ({"positron_polarisation": math.nan}, "positron_polarisation = nan"),
        ({"polarisation": -1.0, "positron_polarisation": -1.0}, "do not annihilate"),
        ({"smearing": -0.1}, "smearing = -0.1"),
        ({"smearing": math.nan}, "smearing = nan"),
        ({"window": (0.5, 0.5)}, "the lower one first"),
        ({"window": (0.5,)}, "its two ends"),
        ({"window": (1.5, 2.0)}, "less than a thousandth"),
    ],
)
def test_world_that_is_none_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        MuonPairs(**options)


@pytest.mark.parametrize(
    ("theta", "design", "words"),
    [
        ((0.3, 1.0), (90.0, 0.0), "theta: sin2_theta_w = 0.3, expected 0.2 to 0.26"),
        ((0.23, math.nan), (90.0, 0.0), "theta: g_f = nan"),
        ((0.23, 1.0), (131.0, 0.0), "design: sqrt_s = 131 GeV, expected 60 to 130 GeV. Keep to this range"),
        ((0.23, 1.0), (math.nan, 0.0), "design: sqrt_s = nan GeV"),
        ((0.23, 1.0), (90.0, -1.1), "design: polarisation = -1.1"),
        ((0.23, 1.0), (90.0,), r"design has shape \(5, 1\), expected \(\*, 2\)"),
    ],
)
def test_rows_that_are_none_are_refused(theta, design, words):
    theta, design = (at(*numbers).expand(5, -1) for numbers in (theta, design))
    with pytest.raises(InputError, match=words):
        POLARISED.sample(theta, design, torch.Generator())


def test_beams_that_do_not_annihilate_are_refused():
    world = MuonPairs(polarised=True, positron_polarisation=1.0)
    assert world.rate(STANDARD, at(90.0, -1.0)) > 0
    with pytest.raises(InputError, match="do not annihilate"):
        world.rate(STANDARD, at(90.0, 1.0))


def test_latents_are_needed_for_gold():
    with pytest.raises(MissingGold, match="'MuonPairs'"):
        BARE.log_joint(torch.zeros(1, 2), None, None, None)


@pytest.mark.parametrize("world", [MuonPairs(), POLARISED, BARE], ids=["default", "polarised", "bare"])
@pytest.mark.parametrize("design", [False, True])
def test_picture(world, design):
    """Histograms and curves of up to three groups; each curve is a density."""
    rows = simulate(world, 500, seed=1, design=energies(world) if design else None, progress=False)
    axes = plt.figure().subplots()
    world.draw(axes, rows)
    assert len(axes.lines) == (3 if design else 1)
    for line in axes.lines:
        c, density = line.get_data()
        assert float(torch.trapezoid(torch.as_tensor(density), torch.as_tensor(c))) == pytest.approx(1, abs=0.01)
    plt.close("all")
