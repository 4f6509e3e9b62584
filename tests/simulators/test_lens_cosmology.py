import lenses_by_hand as by_hand
import numpy as np
import pytest
import torch

from sbi_core.simulators.lens_cosmology import (
    ARCSEC,
    RHO_C,
    Host,
    angular_diameter_distance,
    comoving_distance,
    concentration,
    contained,
    projected,
    scale_radius,
)


def at(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def hosts(sigma_v, z_l):
    zero = torch.zeros(len(z_l), dtype=torch.float64)
    return Host(sigma_v, z_l, zero, zero)


FIDUCIAL = hosts(at(225.0), at(10**-0.25))


def test_distances_are_those_of_quadrature():
    z = at(0.01, 0.1, 10**-0.25, 1.0)
    exact = at(*(by_hand.distance(0, value) for value in z.tolist()))
    assert torch.allclose(angular_diameter_distance(z), exact, rtol=1e-11)
    behind = angular_diameter_distance(z, torch.full_like(z, 1.5))
    exact = at(*(by_hand.distance(value, 1.5) for value in z.tolist()))
    assert torch.allclose(behind, exact, rtol=1e-11)
    assert float(comoving_distance(at(1e-6))) == pytest.approx(1e-3 * 299792.458 / 67.74, rel=1e-5)  # Hubble's law
    as_published = angular_diameter_distance(at(1.5)) - angular_diameter_distance(z)
    assert not torch.allclose(behind, as_published, rtol=0.1), "saboteur: D_s - D_l"


def test_concentration_is_that_of_the_polynomial():
    """At h m = 1 solar mass it is its first coefficient, at h m = e the sum of all six; 10^12 / h by hand."""
    assert float(concentration(at(1 / 0.7))) == pytest.approx(37.5153, rel=1e-12)
    assert float(concentration(at(np.e / 0.7))) == pytest.approx(36.022698, abs=2e-6)
    hand = 37.5153 - 41.7035 + 12.49042 + 7.72097 - 16.85938 + 8.56833
    assert float(concentration(at(1e12 / 0.7))) == pytest.approx(hand, abs=3e-5)
    assert float(concentration(at(1e12))) != pytest.approx(hand, abs=2e-3), "saboteur: without h"


def test_halo_has_its_mass_within_200_times_the_critical_density():
    mass = at(1e7, 1e10, 1e13)
    radius = scale_radius(mass) * concentration(mass)
    assert torch.allclose(mass / (4 / 3 * np.pi * radius**3), at(200 * RHO_C), rtol=1e-12)
    assert pytest.approx(136.0, abs=0.1) == RHO_C  # 2.775e11 h^2 solar masses per Mpc^3


def test_projected_mass_is_that_of_quadrature():
    x = torch.logspace(-6, 3, 31, dtype=torch.float64)
    x = torch.cat([x, at(1 - 1e-3, 1 - 6e-5, 1 - 4e-5, 1 - 1e-9, 1.0, 1 + 1e-9, 1 + 4e-5, 1 + 6e-5, 1 + 1e-3)])
    exact = at(*(by_hand.share_within(value) for value in x.tolist()))
    assert torch.allclose(projected(x), exact, rtol=2e-9)
    assert not torch.allclose(projected(x * 1.001), exact, rtol=1e-5)
    single = projected(x.to(torch.float32)).double()
    assert torch.allclose(single, projected(x.to(torch.float32).double()), rtol=3e-5)
    assert float(projected(at(1.0))) == pytest.approx(1 - np.log(2), abs=1e-14)
    steps = projected(1 + torch.linspace(-2e-4, 2e-4, 4001, dtype=torch.float64)).diff()
    assert float(steps.max() / steps.min()) == pytest.approx(1, abs=1e-3), "smooth at 1"


def test_fiducial_host():
    """The issue's host: .76 arcsec, 2e13 solar masses, of which 1.3 per cent are seen inside two Einstein radii."""
    hand = by_hand.Lens()
    assert float(FIDUCIAL.einstein_radius) == pytest.approx(hand.radius, rel=1e-11)
    assert float(FIDUCIAL.einstein_radius) == pytest.approx(0.75921, abs=5e-6)
    assert float(FIDUCIAL.mass) == pytest.approx(hand.mass, rel=1e-12)
    assert float(FIDUCIAL.region_mass()) == pytest.approx(hand.region_mass, rel=1e-8)
    assert float(FIDUCIAL.region_mass() / FIDUCIAL.mass) == pytest.approx(0.01335, abs=5e-6)
    bare = FIDUCIAL.region_mass(as_published=True)
    assert float(bare / FIDUCIAL.region_mass()) == pytest.approx(float(contained(concentration(FIDUCIAL.mass))))


def test_einstein_radius_scales_with_the_square_of_the_velocity():
    two = hosts(at(150.0, 300.0), at(0.5, 0.5))
    assert float(two.einstein_radius[1] / two.einstein_radius[0]) == pytest.approx(4, rel=1e-12)
    assert float(two.mass[1] / two.mass[0]) == pytest.approx(2**3.48, rel=1e-12)


def test_focus_is_the_squared_einstein_radius_of_a_solar_mass():
    """A point of 10^12 solar masses at z = .56 has a ring of 1.6 arcsec."""
    host = by_hand.Lens()
    hand = 4 * by_hand.G * host.between / (by_hand.C**2 * host.near * host.far) / ARCSEC**2
    assert float(FIDUCIAL.focus()) == pytest.approx(hand, rel=1e-11)
    published = 4 * by_hand.G * (host.far - host.near) / (by_hand.C**2 * host.near * host.far) / ARCSEC**2
    assert float(FIDUCIAL.focus(as_published=True)) == pytest.approx(published, rel=1e-11)
    assert published < 0.6 * hand


def test_rows_of_hosts():
    some = hosts(at(200.0, 225.0, 250.0), at(0.3, 10**-0.25, 0.5))
    assert len(some[1:]) == 2 and torch.equal(some[1:2].columns, FIDUCIAL.columns)
    assert some.columns.shape == (3, 4)
