"""Electron-positron annihilation into muons once more, straight from the formulas and with scipy's quadrature."""

import math
from itertools import pairwise

import numpy as np
from scipy.integrate import quad

MZ, GAMMA, ALPHA, G_F, PB = 91.1876, 2.4952, 1 / 127.95, 1.1663787e-5, 0.38938e9


def halves(s, theta, electron=0.0, positron=0.0):
    """a and b of d sigma / dc = (pi alpha^2 / 8 s) [a (1 + c)^2 + b (1 - c)^2]."""
    chi = math.sqrt(2) * G_F * MZ**2 / (math.pi * ALPHA) * s / (s - MZ**2 + 1j * MZ * GAMMA)
    s2w, g_f = map(float, theta)
    coupling = {"L": -0.5 + s2w, "R": s2w}

    def square(i, j):
        return abs(1 + g_f * chi * coupling[i] * coupling[j]) ** 2

    w_lr, w_rl = (1 - electron) * (1 + positron), (1 + electron) * (1 - positron)
    return w_lr * square("L", "L") + w_rl * square("R", "R"), (w_lr + w_rl) * square("L", "R")


def d_sigma(c, s, theta, electron=0.0, positron=0.0):
    """pb."""
    a, b = halves(s, theta, electron, positron)
    return PB * math.pi * ALPHA**2 / (8 * s) * (a * (1 + c) ** 2 + b * (1 - c) ** 2)


def eta(s):
    return 2 / (137.036 * math.pi) * (math.log(s / 0.51099895e-3**2) - 1)


def normal(t, width):
    return math.exp(-0.5 * (t / width) ** 2) / (width * math.sqrt(2 * math.pi))


def below(t, width):
    return 0.5 * math.erfc(-t / (width * math.sqrt(2)))


def flip(c):
    return 0.01 + 0.03 * c**4


def over_radiation(function, s, at=()):
    """Mean of function(x) over f(x); in u = (x / .9)^eta, cut at the Z and at the x given."""
    power = eta(s)
    cuts = [x for x in (*at, *((s - MZ**2 + k * MZ * GAMMA) / s for k in (-8, -2, 0, 2, 8))) if 0 < x < 0.9]
    edges = np.unique([0, 0.05, 0.3, *(((x / 0.9) ** power) for x in cuts), 1])
    parts = [
        quad(lambda u: function(0.9 * u ** (1 / power)), low, high, epsabs=0, epsrel=1e-11, limit=200)[0]
        for low, high in pairwise(edges)
    ]
    return sum(parts)


def over_angle(function, window, smearing):
    """Integral over c in [-1, 1] of a function with steps as wide as the smearing at the ends of a window."""
    cuts = [end + k * smearing for end in window for k in (-9, -3, 0, 3, 9)]
    edges = np.unique([-1, *(c for c in cuts if -1 < c < 1), 1])
    return sum(quad(function, low, high, epsabs=0, epsrel=1e-11)[0] for low, high in pairwise(edges))


def fiducial(theta, s, window=(-0.95, 0.95), smearing=0.02, electron=0.0, positron=0.0):
    """pb, with radiation, flips, smearing and window."""

    def seen(c):
        return below(window[1] - c, smearing) - below(window[0] - c, smearing)

    def kept(c):
        return (1 - flip(c)) * seen(c) + flip(c) * seen(-c)

    plus, minus = (over_angle(lambda c, k=k: (1 + k * c) ** 2 * kept(c), window, smearing) for k in (1, -1))

    def left(x):
        a, b = halves(s * (1 - x), theta, electron, positron)
        return PB * math.pi * ALPHA**2 / (8 * s * (1 - x)) * (a * plus + b * minus)

    return over_radiation(left, s)


def density(theta, x, s, window=(-0.95, 0.95), smearing=0.02, electron=0.0, positron=0.0):
    """p(c_obs, y_obs | theta) with everything on."""
    c_obs, y_obs = map(float, x)

    def seen(c, k):
        smear = [normal(c_obs - sign * c, smearing) for sign in (1, -1)]
        return (1 + k * c) ** 2 * ((1 - flip(c)) * smear[0] + flip(c) * smear[1])

    plus, minus = (over_angle(lambda c, k=k: seen(c, k), (c_obs, -c_obs), smearing) for k in (1, -1))

    def left(x):
        y = -0.5 * math.log1p(-x)
        a, b = halves(s * (1 - x), theta, electron, positron)
        boost = (normal(y_obs - y, smearing) + normal(y_obs + y, smearing)) / 2
        return boost * PB * math.pi * ALPHA**2 / (8 * s * (1 - x)) * (a * plus + b * minus)

    near = [abs(y_obs) + k * smearing for k in (-9, -6, -3, -1, 0, 1, 3, 6, 9)]
    value = over_radiation(left, s, [1 - math.exp(-2 * y) for y in near if y > 0])
    return value / fiducial(theta, s, window, smearing, electron, positron)
