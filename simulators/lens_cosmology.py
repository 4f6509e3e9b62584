"""Distances, halos and hosts of a gravitational lens.

Lengths in kpc, masses in solar masses, velocities in km/s, angles in arcsec; float64 throughout. Distances are those of
flat LCDM with H0 = 67.74 km/s/Mpc, Omega_m = .3075 (Planck 2015, arXiv:1502.01589); halos are defined with respect to
a critical density with h = .7 that does not change with redshift, and so is their concentration.

A halo is that of Navarro, Frenk & White (NFW): mass m inside r_200, where the mean density is 200 rho_c, scale radius
r_s = r_200 / c, and projected mass inside R of m g(R / r_s) / m(c), with

    g(x) = ln(x / 2) + F(x),  F = arctanh(sqrt(1 - x^2)) / sqrt(1 - x^2), arctan(sqrt(x^2 - 1)) / sqrt(x^2 - 1) above 1,
    m(c) = ln(1 + c) - c / (1 + c).

Sources: Wright & Brainerd, ApJ 534 (2000) 34 (projection); Meneghetti et al., astro-ph/0102341 (deflection).
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

H0, OMEGA_M, LIGHT = 67.74, 0.3075, 299792.458
G_NEWTON = 4.300917270e-6
"""kpc (km/s)^2 per solar mass."""

HALO_H = 0.7
RHO_C = 3 * (HALO_H / 10) ** 2 / (8 * math.pi * G_NEWTON)
"""Critical density for h = .7 in solar masses per kpc^3."""

ARCSEC = math.pi / 648_000
Z_SOURCE = 1.5

_CONCENTRATION = (37.5153, -1.5093, 1.636e-2, 3.66e-4, -2.89237e-5, 5.32e-7)
_NODES, _WEIGHTS = map(torch.from_numpy, np.polynomial.legendre.leggauss(32))


def comoving_distance(z: Tensor) -> Tensor:
    """Comoving distance (*) in kpc to redshifts z (*), c / H0 times the integral of 1 / E from 0 to z."""
    half = z.to(torch.float64)[..., None] / 2
    e = torch.sqrt(OMEGA_M * (1 + half * (1 + _NODES)) ** 3 + 1 - OMEGA_M)
    return 1e3 * LIGHT / H0 * (half * _WEIGHTS / e).sum(-1)


def angular_diameter_distance(z: Tensor, behind: Tensor | None = None) -> Tensor:
    """Angular diameter distance (*) in kpc to z (*), or from z to what is `behind` it (*)."""
    if behind is None:
        return comoving_distance(z) / (1 + z)
    return (comoving_distance(behind) - comoving_distance(z)) / (1 + behind)


def concentration(mass: Tensor) -> Tensor:
    """c_200 (*) at redshift 0 of masses (*): a polynomial of fifth order in ln(h m).

    Source: Sanchez-Conde & Prada, MNRAS 442 (2014) 2271, eq. 1.
    """
    x, value = torch.log(HALO_H * mass), torch.zeros_like(mass)
    for coefficient in reversed(_CONCENTRATION):
        value = value * x + coefficient
    return value


def contained(c: Tensor) -> Tensor:
    """m(c) (*) = ln(1 + c) - c / (1 + c), the mass inside c scale radii, of c (*)."""
    return torch.log1p(c) - c / (1 + c)


def scale_radius(mass: Tensor) -> Tensor:
    """r_s (*) in kpc of NFW halos of masses (*)."""
    return (mass / (4 / 3 * math.pi * 200 * RHO_C)) ** (1 / 3) / concentration(mass)


def projected(x: Tensor) -> Tensor:
    """g(x) = ln(x / 2) + F(x) (*), x (*) > 0, without loss of digits where x is small or near 1.

    With s = sqrt(1 - x^2) below 1, g = [x^2 / (1 + s) ln(2 / x) + ln((1 + s) / 2)] / s; near 1, F = 1 + s^2 / 3 + s^4 /
    5 + s^6 / 7.
    """
    log, q = torch.log(x / 2), (1 - x) * (1 + x)
    root = q.abs().clamp(min=1e-4).sqrt()
    less = x.clamp(max=1.0) ** 2 / (1 + root)  # 1 - s
    below = (torch.log1p(-less / 2) - less * log) / root
    value = torch.where(x < 1, below, log + torch.atan(root) / root)
    return torch.where(q.abs() < 1e-4, log + 1 + q * (1 / 3 + q * (1 / 5 + q / 7)), value)


@dataclass(frozen=True)
class Host:
    """Lens galaxies and what stands behind them, one a row.

    Attributes:
        sigma_v: velocity dispersion in km/s, (M,).
        z_l: redshift, (M,).
        source_x: where the source would be seen without the lens, in arcsec from its centre, (M,).
        source_y: the other coordinate, (M,).
    """

    sigma_v: Tensor
    z_l: Tensor
    source_x: Tensor
    source_y: Tensor

    def __len__(self) -> int:
        return len(self.sigma_v)

    def __getitem__(self, rows: Tensor | slice) -> "Host":
        return Host(self.sigma_v[rows], self.z_l[rows], self.source_x[rows], self.source_y[rows])

    @property
    def columns(self) -> Tensor:
        """All four numbers as (M, 4)."""
        return torch.stack([self.sigma_v, self.z_l, self.source_x, self.source_y], -1)

    @property
    def mass(self) -> Tensor:
        """M_200 (M,) = 10^12 10^(.09 + 3.48 log10(sigma_v / 100)) (Zahid, Sohn & Geller, arXiv:1804.04492)."""
        return 1e12 * 10**0.09 * (self.sigma_v / 100) ** 3.48

    @property
    def distance(self) -> Tensor:
        """D_l (M,) in kpc."""
        return angular_diameter_distance(self.z_l)

    @property
    def einstein_radius(self) -> Tensor:
        """4 pi (sigma_v / c)^2 D_ls / D_s (M,) in arcsec, of a singular isothermal sphere."""
        source = torch.full_like(self.z_l, Z_SOURCE)
        shares = angular_diameter_distance(self.z_l, source) / angular_diameter_distance(source)
        return 4 * math.pi * (self.sigma_v / LIGHT) ** 2 * shares / ARCSEC

    @property
    def region(self) -> Tensor:
        """Radius (M,) in arcsec of the disk that subhalos are drawn in, two Einstein radii."""
        return 2 * self.einstein_radius

    def focus(self, *, as_published: bool = False) -> Tensor:
        """4 G D_ls / (c^2 D_l D_s) (M,), the squared Einstein radius of a solar mass in arcsec^2.

        `as_published` takes D_s - D_l for D_ls.
        """
        near, far = self.distance, angular_diameter_distance(torch.full_like(self.z_l, Z_SOURCE))
        between = far - near if as_published else angular_diameter_distance(self.z_l, torch.full_like(near, Z_SOURCE))
        return 4 * G_NEWTON / LIGHT**2 * between / (near * far) / ARCSEC**2

    def region_mass(self, *, as_published: bool = False) -> Tensor:
        """Mass w M_200 (M,) of the host's halo seen inside the region; `as_published` lacks the factor 1 / m(c)."""
        y = self.region * ARCSEC * self.distance / scale_radius(self.mass)
        whole = projected(y) * self.mass
        return whole if as_published else whole / contained(concentration(self.mass))
