"""A lens computed the slow way: one halo after the other, integrals by scipy, nothing shared with the simulator."""

import numpy as np
from scipy.integrate import quad

H0, OMEGA, C = 67.74, 0.3075, 299792.458
G = 4.300917270e-6
ARCSEC = np.pi / 648000
RHO = 3 * 0.07**2 / (8 * np.pi * G)
POLYNOMIAL = (37.5153, -1.5093, 1.636e-2, 3.66e-4, -2.89237e-5, 5.32e-7)


def distance(z_from, z_to):
    """Angular diameter distance in kpc."""
    length = quad(lambda z: 1 / np.sqrt(OMEGA * (1 + z) ** 3 + 1 - OMEGA), z_from, z_to, epsabs=0, epsrel=1e-12)[0]
    return 1e3 * C / H0 * length / (1 + z_to)


def concentration(mass):
    return sum(a * np.log(0.7 * mass) ** k for k, a in enumerate(POLYNOMIAL))


def scale_radius(mass):
    return (3 * mass / (800 * np.pi * RHO)) ** (1 / 3) / concentration(mass)


def share_within(x):
    """Projected mass of an NFW halo inside x scale radii over 4 pi rho_s r_s^3: its density integrated along the line.

    The mass in a cylinder is that of the sphere and, beyond, the part 1 - sqrt(1 - (x / r)^2) of each shell.
    """
    sphere = quad(lambda r: r / (1 + r) ** 2, 0, x, epsabs=0, epsrel=1e-12)[0]

    def beyond(v):
        u = np.exp(v)  # x / r
        return (x / (x + u)) ** 2 * u**2 / (1 + np.sqrt(1 - u * u))

    return sphere + sum(quad(beyond, v, v + 2, epsabs=0, epsrel=1e-11)[0] for v in np.arange(-50.0, 0.0, 2.0))


class Lens:
    def __init__(self, sigma_v=225.0, z_l=10**-0.25, offset=(0.0, 0.0)):
        self.mass = 1e12 * 10 ** (0.09 + 3.48 * np.log10(sigma_v / 100))
        self.near, self.far, self.between = distance(0, z_l), distance(0, 1.5), distance(z_l, 1.5)
        self.radius = 4 * np.pi * (sigma_v / C) ** 2 * self.between / self.far / ARCSEC
        self.offset = offset
        c = concentration(self.mass)
        self.region_mass = (
            share_within(2 * self.radius * ARCSEC * self.near / scale_radius(self.mass))
            / (np.log1p(c) - c / (1 + c))
            * self.mass
        )

    def bend(self, mass, dx, dy, *, between=None):
        """Deflection in arcsec at dx, dy from a halo: 4 G M(R) / (c^2 R) D_ls / D_s."""
        r = np.hypot(dx, dy)
        x, c = r * ARCSEC * self.near / scale_radius(mass), concentration(mass)
        root = np.sqrt(np.abs(1 - x * x))
        f = np.where(x < 1, np.arctanh(root * (x < 1)) / root, np.arctan(root) / root)
        inside = mass * (np.log(x / 2) + f) / (np.log1p(c) - c / (1 + c))
        between = self.between if between is None else between
        angle = 4 * G * inside / (C**2 * r * ARCSEC * self.near) * between / self.far / ARCSEC
        return angle * dx / r, angle * dy / r

    def deflection(self, axis, masses, xs, ys):
        """(2, P, P): columns along x."""
        x, y = np.meshgrid(axis, axis)
        total = self.radius * np.stack([x, y]) / np.hypot(x, y)
        for mass, x0, y0 in zip(masses, xs, ys, strict=True):
            total += np.stack(self.bend(mass, x - x0, y - y0))
        return total

    def light(self, axis, masses, xs, ys):
        """Counts of points before the point spread, for pixels of .1 arcsec."""
        x, y = np.meshgrid(axis, axis)
        bent = self.deflection(axis, masses, xs, ys)
        return exponential(np.hypot(x - bent[0] - self.offset[0], y - bent[1] - self.offset[1]))


def exponential(r):
    """Counts in a pixel of .1 arcsec of a disk of magnitude 23, half of it inside .2 arcsec, and of the sky."""
    b = 1.6783469900166605
    shape = np.exp(-b * r / 0.2)
    whole = 2 * np.pi * quad(lambda t: t * np.exp(-b * t / 0.2), 0, 20)[0]
    return 1610 * 0.01 * (10 ** (0.4 * 2.5) * shape / whole + 10 ** (0.4 * 3.0))


def log_probability(theta, log_masses, region_mass, floor, top, calibrated_from):
    """log p of a population, subhalo by subhalo, everything normalised by quadrature in ln m."""
    f_sub, beta = theta

    def integral(power, low):
        middle = power * np.log(low * top) / 2  # else numbers are too large
        value = quad(lambda t: np.exp(power * t - middle), np.log(low), np.log(top), epsabs=0, epsrel=1e-13, limit=200)
        return np.log(value[0]) + middle

    log_number = integral(beta, floor)
    log_expected = np.log(f_sub * region_mass) + log_number - integral(beta + 1, calibrated_from)
    each = [(beta - 1) * t - log_number for t in log_masses]
    return len(log_masses) * log_expected - np.exp(log_expected) + sum(each)
