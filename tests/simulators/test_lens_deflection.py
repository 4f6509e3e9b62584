import lenses_by_hand as by_hand
import numpy as np
import pytest
import torch
from scipy.integrate import quad

from sbi_core.simulators import StrongLensing
from sbi_core.simulators.lens_cosmology import Host
from sbi_core.simulators.lens_deflection import Bender, deflectors, direct_deflection
from sbi_core.simulators.lens_mesh import Mesh
from sbi_core.simulators.subhalos import Subhalos

FULL = StrongLensing()
AXIS = (torch.arange(64, dtype=torch.float64) - 31.5) * 0.1


def at(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def hosts(n, sigma_v=225.0, z_l=10**-0.25, offset=(0.05, -0.12)):
    return Host(*(torch.full((n,), value, dtype=torch.float64) for value in (sigma_v, z_l, *offset)))


def one(mass, x, y):
    return Subhalos(torch.zeros(1, dtype=torch.int64), at(mass), at(x), at(y))


@pytest.mark.parametrize("mass", [1e7, 1e9, 1e11])
def test_deflection_is_that_of_the_slow_computation(mass):
    lens, halo = by_hand.Lens(), one(mass, 0.33, -0.71)
    dx, dy = np.meshgrid(AXIS.numpy() - 0.33, AXIS.numpy() + 0.71)
    value = direct_deflection(AXIS, 1, halo, *deflectors(hosts(1), halo))[0].numpy()
    assert np.allclose(value, lens.bend(mass, dx, dy), rtol=1e-9, atol=1e-16)
    published = direct_deflection(AXIS, 1, halo, *deflectors(hosts(1), halo, as_published=True))[0].numpy()
    assert np.allclose(published, lens.bend(mass, dx, dy, between=lens.far - lens.near), rtol=1e-9, atol=1e-16)
    assert not np.allclose(published, value, rtol=0.1)


def test_convergence_is_the_projected_density():
    """Half the divergence of the deflection is Sigma / Sigma_crit, Sigma the density integrated along the line."""
    mass, lens, halo = 1e10, by_hand.Lens(), one(1e10, 0.0, 0.0)
    c = by_hand.concentration(mass)
    radius = by_hand.scale_radius(mass)
    rho = mass / (4 * np.pi * radius**3 * (np.log1p(c) - c / (1 + c)))
    critical = by_hand.C**2 / (4 * np.pi * by_hand.G) * lens.far / (lens.near * lens.between)
    strength, scale = deflectors(hosts(1), halo)
    for theta in (0.05, 0.3, float(scale), 2.0):
        step = 1e-4 * theta
        near = torch.tensor([theta - step, theta, theta + step, -step, 0.0, step], dtype=torch.float64)
        bent = direct_deflection(near, 1, halo, strength, scale)[0]
        divergence = (bent[0, 4, 2] - bent[0, 4, 0] + bent[1, 5, 1] - bent[1, 3, 1]) / (2 * step)
        x = theta / float(scale)
        density = 2 * quad(lambda s, x=x: 1 / (np.hypot(x, s) * (1 + np.hypot(x, s)) ** 2), 0, np.inf)[0]
        assert float(divergence) / 2 == pytest.approx(density * rho * radius / critical, rel=1e-5)


def test_deflection_moves_with_the_halo():
    halo, moved = one(1e9, 0.2, 0.1), one(1e9, 0.5, 0.1)
    value, other = (direct_deflection(AXIS, 1, h, *deflectors(hosts(1), h))[0] for h in (halo, moved))
    assert torch.allclose(value[:, :, :-3], other[:, :, 3:], atol=1e-15)
    turned = one(1e9, 0.1, 0.2)
    other = direct_deflection(AXIS, 1, turned, *deflectors(hosts(1), turned))[0]
    assert torch.allclose(value[0], other[1].T, atol=1e-15)


def test_host_is_an_isothermal_sphere():
    host = hosts(2)
    bent = FULL._bender.host(host).double()
    x, y = torch.meshgrid(AXIS, AXIS, indexing="xy")
    assert torch.allclose(torch.hypot(bent[:, 0], bent[:, 1]), host.einstein_radius[0], rtol=1e-6)
    assert float((bent[:, 0] * y - bent[:, 1] * x).abs().max()) < 1e-5 and bool((bent[:, 0] * x > 0).all())


def crowd(n, seed, *, lenses=3, masses=(1e7, 1e9), reach=2.9):
    generator = torch.Generator().manual_seed(seed)
    unit = torch.rand(3, n, generator=generator, dtype=torch.float64)
    low, high = np.log(masses)
    lens = torch.arange(lenses).repeat_interleave(-(-n // lenses))[:n]
    return Subhalos(lens, torch.exp(low + (high - low) * unit[0]), *((2 * unit[1:] - 1) * reach))


def test_mesh_is_exact_at_its_nodes():
    """A halo on a node, with a tabulated scale radius, is bent by its kernel alone."""
    mesh = Mesh(64, 0.1, 128, 0.03, 2.0, 7)
    x, y, scale = at(0.55, -1.25), at(-0.35, 2.95), mesh.radii[[1, 4]].exp()
    lens, strength = torch.tensor([0, 1]), at(1e-3, 2e-3)
    value = mesh.deflection(2, lens, x, y, strength, scale)
    exact = direct_deflection(AXIS, 2, Subhalos(lens, strength, x, y), strength, scale)
    assert float((value - exact).abs().max() / exact.abs().max()) < 1e-5


@pytest.mark.parametrize("size", [128, 192, 256])
def test_mesh_far_from_a_halo(size):
    """Beyond five points the error is a part in a thousand, whatever the halo's scale radius, anywhere on the mesh."""
    mesh = Mesh(64, 0.1, size, 0.03, 2.0, 7)
    generator = torch.Generator().manual_seed(1)
    unit = torch.rand(3, 60, generator=generator, dtype=torch.float64)
    x, y = (2 * unit[:2] - 1) * mesh.reach
    scale, lens = torch.exp(np.log(0.03) + unit[2] * np.log(66.0)), torch.arange(60)
    strength = torch.ones_like(scale)
    value = mesh.deflection(60, lens, x, y, strength, scale).double()
    exact = direct_deflection(AXIS, 60, Subhalos(lens, strength, x, y), strength, scale)
    apart = torch.hypot(AXIS[None, None] - x[:, None, None], AXIS[None, :, None] - y[:, None, None])
    error = (value - exact).norm(dim=1) / exact.norm(dim=1)
    assert float(error[apart > 0.5].max()) < 2e-3
    moved = mesh.deflection(60, lens, x + 0.01, y, strength, scale).double()
    assert float(((moved - exact).norm(dim=1) / exact.norm(dim=1))[apart > 0.5].max()) > 2e-3, "saboteur: moved"


def test_heavy_light_few_and_far_together():
    """All paths through which subhalos go add up to the direct sum."""
    some = crowd(60, 1).joined(crowd(5, 2, masses=(5e10, 2e11))).joined(crowd(6, 3, reach=12.0))
    host = hosts(5, sigma_v=300.0, z_l=0.3)
    bent = FULL._bender.subhalos(host, some).double()
    exact = direct_deflection(AXIS, 5, some, *deflectors(host, some))
    assert bool((bent[3:] == 0).all()) and bool((exact[3:] == 0).all())

    def error(part):
        return float((FULL._bender.subhalos(host, part).double() - exact).square().mean().sqrt() / exact.abs().max())

    assert error(some) < 1.5e-4
    for saboteur in (some.mass < 1e11, some.x.abs() < 6, some.mass > 2e7):
        assert error(some[saboteur]) > 3e-4


def image_error(world, host, subhalos):
    """Error of the expected image in units of the noise, against a direct sum in float64, (M, P, P)."""
    camera, axis = world._camera, world._bender.axis
    bent = direct_deflection(axis, len(host), subhalos, *deflectors(host, subhalos))
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    bent += host.einstein_radius[:, None, None, None] * torch.stack([x, y]) / torch.hypot(x, y)
    source = [place[:, None, None] for place in (host.source_x, host.source_y)]
    spread = camera.spread.double()
    exact = camera.bin(spread @ camera.light(x - bent[:, 0] - source[0], y - bent[:, 1] - source[1]) @ spread.T)
    return (world.expected_image(host, subhalos).double() - exact) / exact.sqrt()


CORNERS = {  # theta, sigma_v, z_l, images
    "fiducial": ((0.05, -0.9), 225.0, 10**-0.25, 10),
    "most": ((0.2, -1.5), 225.0, 10**-0.25, 1),
    "heaviest": ((0.2, -0.5), 225.0, 10**-0.25, 10),
    "near": ((0.2, -0.9), 225.0, 0.15, 4),
    "far": ((0.2, -0.9), 250.0, 1.0, 2),
    "large": ((0.2, -0.7), 325.0, 0.3, 1),
}


def image_of(world, corner, seed, times=1):
    theta, sigma_v, z_l, n = CORNERS[corner]
    n, generator = n * times, torch.Generator().manual_seed(seed)
    offset = 0.2 * torch.randn(2, n, generator=generator, dtype=torch.float64)
    host = Host(*(torch.full((n,), value, dtype=torch.float64) for value in (sigma_v, z_l)), *offset)
    return host, world.draw_subhalos(at(*theta).expand(n, 2), host, generator)


@pytest.mark.parametrize("corner", CORNERS)
def test_image_error_is_below_a_hundredth_of_the_noise(corner):
    error = image_error(FULL, *image_of(FULL, corner, 1))
    assert 0 < float(error.square().mean().sqrt()) < 0.01 and float(error.abs().max()) < 0.2


@pytest.mark.parametrize("size", [0.2, 0.4])
def test_image_error_with_large_pixels(monkeypatch, size):
    """Light halos need a finer mesh than the image."""
    world = StrongLensing(n_pixels=32, pixel_size=size)
    assert world._bender.between == {0.2: 3, 0.4: 5}[size]
    errors = [image_error(world, *image_of(world, corner, 1)) for corner in CORNERS]
    assert max(float(error.square().mean().sqrt()) for error in errors) < 0.01
    monkeypatch.setattr("sbi_core.simulators.lens_deflection._FINEST", size)
    world = StrongLensing(n_pixels=32, pixel_size=size)
    assert float(image_error(world, *image_of(world, "most", 1)).square().mean().sqrt()) > 0.02, "saboteur"


def test_wide_coarse_images_are_summed_directly():
    world = StrongLensing(n_pixels=180, pixel_size=0.4)
    assert world._bender.meshes == ()
    assert float(image_error(world, *image_of(world, "heaviest", 1)).abs().max()) < 1e-3


def test_image_error_saboteur():
    """Two kernels instead of six, and light subhalos left out, are not good enough."""
    host, subhalos = image_of(FULL, "most", 1)
    bender = Bender(64, 0.1, 1e7)
    object.__setattr__(bender, "meshes", tuple(Mesh(64, 0.1, k * 64, 0.02, 3.0, 2) for k in (2, 3, 4)))
    for broken in (bender.subhalos(host, subhalos), FULL._bender.subhalos(host, subhalos[subhalos.mass > 2e7])):
        world = StrongLensing()
        world._bender = type("Broken", (), {"axis": AXIS, "host": bender.host, "subhalos": lambda *_, b=broken: b})()
        assert float(image_error(world, host, subhalos).square().mean().sqrt()) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"m_min": 1e6}, {"m_min": 1e8, "m_calibration": 1e7}])
def test_image_error_in_many_images(options):
    world, errors = StrongLensing(**options), []
    for corner in CORNERS:
        errors.append(image_error(world, *image_of(world, corner, 2, 1 if "m_min" in options else 4)).flatten())
    generator = torch.Generator().manual_seed(3)
    host = world.draw_hosts(40, generator)
    theta = torch.rand(40, 2, generator=generator, dtype=torch.float64) * at(0.199, 1.0) + at(0.001, -1.5)
    errors.append(image_error(world, host, world.draw_subhalos(theta, host, generator)).flatten())
    assert max(float(error.square().mean().sqrt()) for error in errors) < 0.01
