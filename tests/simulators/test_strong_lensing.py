import math
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from measures import z_of_mean

from sbi_core import Events, InputError, MissingGold, Store, UniformPrior, check_gold, joint_score, simulate
from sbi_core.simulators import StrongLensing
from sbi_core.simulators.lens_cosmology import Host
from sbi_core.simulators.subhalos import Subhalos


def at(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


FULL, MINI, PUBLISHED = StrongLensing(), StrongLensing("mini"), StrongLensing(conventions="paper2019")
FIDUCIAL = at(0.05, -0.9)
HOST = Host(at(225.0), at(10**-0.25), at(0.1), at(-0.05))


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


class WithoutImages(StrongLensing):
    """Hosts and subhalos alone, which is all that gold knows: 100 times as fast."""

    def _light(self, host, subhalos):
        for first in range(0, len(host), 16):
            yield torch.ones(len(host[first : first + 16]), self.n_pixels, self.n_pixels)


def latents(n, seed, proposal=None, **options):
    world = WithoutImages(n_pixels=8, **options)
    return world, simulate(world, n, seed=seed, proposal=proposal, progress=False)


def test_presets():
    assert FULL.x_shape == (64, 64) and MINI.x_shape == (32, 32) and not FULL.is_exact
    for world in (FULL, MINI):
        rows = simulate(world, 3, seed=1, progress=False)
        assert rows.x.shape == (3, *world.x_shape) and rows.x.dtype == torch.float32 and rows.z.shape == (3, 6)
        assert bool((rows.x == rows.x.round()).all()) and bool((rows.x >= 0).all())
    assert (rows.z[:, 2] == 225).all() and torch.allclose(rows.z[:, 3], at(10**-0.25))
    assert isinstance(FULL.prior, UniformPrior)
    assert FULL.prior.low.tolist() == [0.001, -1.5] and FULL.prior.high.tolist() == [0.2, -0.5]


def test_expected_number_of_subhalos():
    for options, number in (
        ({}, 90.14),
        ({"conventions": "paper2019"}, 100.22),
        ({"m_min": 1e8, "m_calibration": 1e7}, 11.337),
        ({"m_min": 1e8}, 11.337),  # a higher floor leaves f_sub its meaning
        ({"preset": "mini"}, 2.1594),
    ):
        world = StrongLensing(**options)
        assert float(world.expected_subhalos(FIDUCIAL, HOST)) == pytest.approx(number, abs=5e-3)
    fixed = StrongLensing(sigma_v=225, z_l=10**-0.25)
    information = fixed.fisher_information(FIDUCIAL, latent=True).flatten().tolist()
    assert information == pytest.approx([36055, -8416, -8416, 2075], abs=0.7)


def test_latents_are_those_of_the_subhalos():
    host = FULL.draw_hosts(50, generator(2))
    theta = FIDUCIAL.expand(50, 2)
    subhalos = FULL.draw_subhalos(theta, host, generator(3))
    assert bool((subhalos.mass >= 1e7).all()) and bool((subhalos.mass <= 0.01 * host.mass[subhalos.lens]).all())
    away = torch.hypot(subhalos.x, subhalos.y) / host.region[subhalos.lens]
    assert float(away.max()) <= 1 and z_of_mean(away**2, 0.5) < 4, "uniform in the disk"
    assert z_of_mean(away, 0.5) > 4, "saboteur: uniform in radius"
    number = FULL.expected_subhalos(theta, host)
    pull = (subhalos.counts(50) - number) / number.sqrt()
    assert z_of_mean(pull) < 4 and z_of_mean(pull**2, 1) < 4
    x, z = FULL.sample(theta, None, generator(4))
    source = generator(4)
    again = FULL.draw_hosts(50, source)
    same = FULL.draw_subhalos(theta, again, source)
    assert torch.equal(z[:, 0], same.counts(50)) and torch.equal(z[:, 2:], again.columns)
    assert torch.allclose(z[:, 1], torch.stack([same.mass[same.lens == k].log().sum() for k in range(50)]))
    pull = (x - FULL.expected_image(again, same)) / FULL.expected_image(again, same).sqrt()
    assert z_of_mean(pull.flatten(1).mean(1)) < 4 and z_of_mean(pull.flatten(1).square().mean(1), 1) < 4
    other = (x - FULL.expected_image(host, same)) / FULL.expected_image(host, same).sqrt()
    assert z_of_mean(other.flatten(1).square().mean(1), 1) > 4, "saboteur: other hosts"


def test_hosts_are_drawn_as_said():
    host = FULL.draw_hosts(40_000, generator())
    assert float(host.z_l.max()) <= 1 and float(host.sigma_v.min()) >= 50
    assert z_of_mean(host.sigma_v, 225.0438) < 4  # 50 phi(3.5) / Phi(3.5) above 225
    excess = 0.25 * math.exp(-0.5) / math.sqrt(2 * math.pi) / 0.8413447  # of a normal truncated one sigma above
    assert z_of_mean(host.z_l.log10(), -0.25 - excess) < 4 < z_of_mean(host.z_l.log10(), -0.25)
    offset = torch.stack([host.source_x, host.source_y], 1)
    assert z_of_mean(offset) < 4 and z_of_mean(offset**2, 0.04) < 4
    fixed = StrongLensing("mini", offset=(0.1, -0.2)).draw_hosts(3, generator())
    assert fixed.columns.tolist() == [[225, 10**-0.25, 0.1, -0.2]] * 3


def test_rows_depend_on_the_seed_alone(tmp_path):
    short, long = (simulate(MINI, n, seed=1, progress=False) for n in (130, 250))
    assert torch.equal(short.x, long.x[:130]) and torch.equal(short.z, long.z[:130])
    stored = simulate(MINI, 130, seed=1, store=tmp_path / "store", chunk_rows=100, progress=False)
    assert isinstance(stored, Store) and torch.equal(stored[:].x, short.x)
    sent = pickle.loads(pickle.dumps(MINI))  # as to a worker
    assert torch.equal(simulate(sent, 130, seed=1, progress=False).x, short.x)
    assert not torch.equal(simulate(MINI, 130, seed=2, progress=False).x, short.x)


def test_gold_passes_with_images():
    for world, n in ((MINI, 1000), (FULL, 200)):
        check_gold(world, simulate(world, n, seed=1, progress=False)).raise_if_failed()


class Crowded(WithoutImages):
    """Saboteur: without 1 / m(c) in gold, with it in what is drawn."""

    def log_joint(self, theta, x, z, design):
        return WithoutImages(n_pixels=8, conventions="paper2019").log_joint(theta, x, z, design)


class Uncalibrated(WithoutImages):
    """Saboteur: as if f_sub counted what is drawn."""

    def log_joint(self, theta, x, z, design):
        wrong = WithoutImages(n_pixels=8, m_min=self.m_min, m_calibration=self.m_min)
        return wrong.log_joint(theta, x, z, design)


@pytest.mark.parametrize(
    "options", [{}, {"m_min": 1e8, "m_calibration": 1e7}, {"m_min": 1e9, "sigma_v": 225.0, "z_l": 0.5}]
)
def test_gold_passes(options):
    world, rows = latents(4000, 1, **options)
    check_gold(world, rows).raise_if_failed()
    if not options:
        assert not check_gold(Crowded(n_pixels=8), rows).passed
    if "m_calibration" in options:
        assert not check_gold(Uncalibrated(n_pixels=8, **options), rows).passed


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11, 12, 13])
@pytest.mark.parametrize("preset", ["full", "mini", "catalogue"])
def test_gold_passes_at_length(preset, seed):
    world = StrongLensing(preset)
    check_gold(world, simulate(world, 10_000, seed=seed, progress=False)).raise_if_failed()


def test_joint_score_is_the_closed_form():
    world, rows = latents(500, 3)
    host = Host(*rows.z[:, 2:].unbind(-1))
    exact = world._masses.score(rows.theta, rows.z[:, 0], rows.z[:, 1], *world._limits(host))
    assert torch.allclose(joint_score(world, rows), exact, rtol=1e-9, atol=1e-7)
    for beta in (-1.0, -1.0 + 1e-12, -0.5):
        at_beta = torch.stack([rows.theta[:, 0], torch.full((500,), beta, dtype=torch.float64)], 1)
        assert bool(joint_score(world, rows, at_beta).isfinite().all())


def test_information_is_the_mean_over_hosts():
    world, rows = latents(10_000, 5, proposal=FIDUCIAL, m_min=1e8, m_calibration=1e7)
    score = joint_score(world, rows)
    exact = world.fisher_information(FIDUCIAL, latent=True)
    host = Host(*rows.z[:, 2:].unbind(-1))
    each = world._masses.information(rows.theta, *world._limits(host))
    assert z_of_mean(each, exact.flatten()) < 4 and z_of_mean(each, 1.06 * exact.flatten()) > 4
    assert z_of_mean(score) < 4 and z_of_mean(score[:, :, None] * score[:, None], exact.flatten()) < 4


def test_published_gold_lacks_the_normaliser_of_redraws():
    """Where few heavy subhalos hold much of the mass, drawing anew above w M shifts the mean score."""
    theta = at(0.2, -0.5)
    small = {"sigma_v": 100.0, "z_l": 0.9}  # 4% are drawn anew
    world, rows = latents(10_000, 1, proposal=theta, conventions="paper2019", **small)
    assert z_of_mean(joint_score(world, rows)) > 4
    host = StrongLensing(**small).draw_hosts(200, generator())
    drawn = PUBLISHED.draw_subhalos(theta.expand(200, 2), host, generator())
    assert bool((drawn.totals(drawn.mass, 200) <= host.region_mass(as_published=True)).all())
    assert bool((drawn.lens.diff() >= 0).all())
    drawn = FULL.draw_subhalos(theta.expand(200, 2), host, generator())
    assert not bool((drawn.totals(drawn.mass, 200) <= host.region_mass(as_published=True)).all())
    world, rows = latents(10_000, 1, proposal=theta, **small)
    assert z_of_mean(joint_score(world, rows)) < 4


def test_published_images():
    rows = simulate(PUBLISHED, 4, seed=1, progress=False)
    assert rows.x.shape == (4, 64, 64) and not bool((rows.x == rows.x.round()).all()), "noise before the point spread"
    assert PUBLISHED._bender.step == pytest.approx(6.4 / 63) and float(PUBLISHED._bender.axis[0]) == pytest.approx(-3.2)
    one = Subhalos(torch.zeros(1, dtype=torch.int64), at(1e11), at(0.6), at(0.3))
    changes = []
    for world in (FULL, PUBLISHED):
        none = one[torch.zeros(0, dtype=torch.int64)]
        changes.append(float((world.expected_image(HOST, one) - world.expected_image(HOST, none)).abs().sum()))
    assert changes[1] < 0.75 * changes[0], "D_s - D_l is .55 of D_ls here"


@pytest.mark.parametrize("world", [FULL, MINI], ids=["full", "mini"])
def test_a_subhalo_changes_the_image_near_it(world):
    host = Host(at(225.0), at(10**-0.25), at(0.0), at(0.0))
    on_ring = Subhalos(torch.zeros(1, dtype=torch.int64), at(3e9), at(0.0), host.einstein_radius)
    none = on_ring[on_ring.mass < 0]
    plain, disturbed = (world.expected_image(host, some)[0].double() for some in (none, on_ring))
    assert torch.allclose(plain, plain.T, rtol=1e-4) and torch.allclose(plain, plain.flip(0), rtol=1e-4)
    change = disturbed - plain
    assert torch.allclose(change, change.flip(1), atol=0.02) and not torch.allclose(change, change.flip(0), atol=1)
    assert float((change.abs() / plain.sqrt()).max()) > 0.6, "not far below the noise of a pixel"
    sizes = []
    for mass in (1e7, 1e8, 1e9, 1e10):
        other = world.expected_image(host, Subhalos(on_ring.lens, at(mass), on_ring.x, on_ring.y))[0]
        sizes.append(float(((other - plain) ** 2 / plain).sum()))
    assert sizes[0] < sizes[1] < 1 < 5 < sizes[2] < sizes[3], "10^9 solar masses can be seen"


def test_unsorted_subhalos_make_the_same_images():
    host = MINI.draw_hosts(20, generator())
    some = MINI.draw_subhalos(at(0.2, -1.2).expand(20, 2), host, generator(2))
    order = torch.randperm(len(some), generator=generator(3))
    assert torch.allclose(MINI.expected_image(host, some), MINI.expected_image(host, some[order]), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "ful"}, "did you mean 'full'"),
        ({"conventions": "paper"}, "did you mean 'paper2019'"),
        ({"preset": "mini", "conventions": "paper2019"}, "know no oversampling = 2"),
        ({"preset": "catalogue", "conventions": "paper2019"}, "know no catalogues"),
        ({"m_min": 1e10}, r"m_min = .*, expected 1 to 1e\+09 solar masses"),
        ({"m_min": "1e8"}, "m_min = 1e8, expected"),
        ({"m_calibration": -1.0}, "m_calibration = -1.0, expected"),
        ({"z_l": 1.5}, r"z_l = 1.5, expected 0.01 to 1 \(the source is at 1.5\)"),
        ({"sigma_v": 20.0}, "sigma_v = 20.0, expected 50 to 500 km/s"),
        ({"n_pixels": 33}, "n_pixels = 33 times oversampling = 1 is 33, expected an even number"),
        ({"oversampling": 10}, "n_pixels = 64 times oversampling = 10 is 640, expected .* up to 512"),
        ({"n_pixels": 32.5}, "n_pixels = 32.5, expected a whole number"),
        ({"oversampling": 0}, "oversampling = 0, expected 1 to 16"),
        ({"offset": (0.1,)}, r"offset = \(0.1,\), expected two coordinates"),
        ({"m_half": 1e9}, "preset 'full' has no m_half"),
        ({"preset": "catalogue", "n_pixels": 64}, "preset 'catalogue' has no n_pixels"),
        ({"preset": "catalogue", "error": 0.0}, "error = 0.0, expected 0.01 to 2 dex"),
        ({"preset": "catalogue", "error": 1.2}, r"m_min = 1e\+08 with error = 1.2 dex, expected at least 2.51e\+08"),
        ({"pixel_size": 0.6}, "pixel_size = 0.6, expected 0.01 to 0.5 arcsec"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(InputError, match=f"StrongLensing: .*{message}"):
        StrongLensing(**options)


def test_population_of_lenses_is_a_run_of_events():
    world = Events(StrongLensing("mini", n_pixels=8), 5)
    runs = simulate(world, 10, seed=1, proposal=FIDUCIAL, progress=False)
    assert runs.x.shape == (10, 5, 8, 8)
    each = MINI.log_joint(runs.theta.repeat_interleave(5, 0), None, runs.z[..., :6].reshape(50, 6), None)
    assert torch.allclose(world.log_joint(runs.theta, runs.x, runs.z, None), each.reshape(10, 5).sum(1), atol=1e-9)


def test_subhalos_of_hosts_that_are_not_there():
    with pytest.raises(InputError, match="subhalos belong to lenses 0 to 3, expected 0 to 0, as many as hosts"):
        MINI.expected_image(HOST, Subhalos([0, 3], [1e9, 1e9], [0.1, 0.2], [0.0, 0.0]))
    none = MINI.expected_image(HOST, Subhalos([], [], [], []))
    assert none.shape == (1, 32, 32) and bool((none > 0).all())


def test_what_images_do_not_know():
    x = torch.zeros(32, 32)
    for call in (MINI.log_likelihood, MINI.score, lambda theta, x: MINI.fisher_information(theta)):
        with pytest.raises(NotImplementedError, match="not known for images"):
            call(FIDUCIAL, x)
    with pytest.raises(InputError, match="makes no images"):
        StrongLensing("catalogue").expected_image(HOST, None)
    with pytest.raises(MissingGold, match="'StrongLensing'"):
        MINI.log_joint(FIDUCIAL[None], None, None, None)


def test_pictures_are_drawn():
    from matplotlib.figure import Figure

    for preset, n in (("mini", 8), ("mini", 1), ("catalogue", 5), ("catalogue", 1)):
        axes, world = Figure().subplots(), StrongLensing(preset)
        world.draw(axes, simulate(world, n, seed=1, progress=False))
        assert axes.has_data() and len(axes.images) in (0, n)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from Linux")
def test_memory_is_bounded():
    """A block of rows with 9,300 subhalos each adds less than 400 MB."""
    code = """
import re, torch
from sbi_core.simulators import StrongLensing
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
world, theta = StrongLensing(sigma_v=325, z_l=0.3), torch.tensor([[0.05, -0.9], [0.2, -1.5]]).double()
world.sample(theta[:1].expand(10, 2), None, torch.Generator())
before = peak()
_, z = world.sample(theta[1:].expand(world.rows_per_seed, 2), None, torch.Generator())
print(float(z[:, 0].mean()), peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    subhalos, added = map(float, run.stdout.split())
    assert subhalos > 9000 and 20 < added < 400
