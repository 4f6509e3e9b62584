"""e+ e- -> gamma/Z -> mu+ mu- at tree level, and what the beams radiate before they meet.

    d sigma / dc = sum_(i = +, -) (1 +- c)^2 sum_(k = 0, 1, 2) C_ik(theta) L_k(s),

C the `couplings` and L the `propagators`: all that an event says about theta = (sin2_theta_w, g_f) is six numbers.
If the beams radiate the fraction x of s, s (1 - x) is left; x < .9 has density f(x) = eta x^(eta - 1) / .9^eta, so
that u = (x / .9)^eta is uniform. Sums over x are Gauss and Legendre's in panels of u: smooth at x = 0, where f is not,
and with nodes that do not move with s, so that gradients in s are those of the sum.

Energies in GeV, cross-sections in pb; float64 throughout; differentiable in theta, s and polarisation. The electroweak
input, the scheme and its names are those of the Z resonance at LEP (Physics Reports 427 (2006) 257, chapter 1).
"""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

M_Z, GAMMA_Z, G_F = 91.1876, 2.4952, 1.1663787e-5
ALPHA, ALPHA_0, M_ELECTRON = 1 / 127.95, 1 / 137.036, 0.51099895e-3
PICOBARN = 0.38938e9
"""1 GeV^-2 in pb."""

MOST = 0.9
"""Largest radiated fraction of s."""

LOWEST, HIGHEST = 60.0, 130.0
"""Range of sqrt(s)."""

_K = math.sqrt(2) * G_F * M_Z**2 / (math.pi * ALPHA)
_POLE, _WIDTH = M_Z**2, M_Z * GAMMA_Z
_CELLS, _ORDER = 140, 12


def couplings(theta: Tensor, electron: Tensor, positron: float) -> Tensor:
    """C (*, 6) at theta (*, 2) for the polarisations P- (*) and P+ of the beams.

    A_ij = 1 + g_f chi g_i g_j with g_L = -1/2 + sin2_theta_w and g_R = sin2_theta_w, so that |A_ij|^2 = 1 + 2 h Re chi
    + h^2 |chi|^2 with h = g_f g_i g_j. Forward, with (1 + c)^2, goes a = w_LR |A_LL|^2 + w_RL |A_RR|^2, backward
    b = (w_LR + w_RL) |A_LR|^2; w_LR = (1 - P-) (1 + P+), w_RL = (1 + P-) (1 - P+).
    """
    right, strength = theta.to(torch.float64).unbind(-1)
    h = strength[..., None] * _products(right)
    return _mixed(torch.stack([torch.ones_like(h), 2 * h, h**2], -1), electron, positron)


def coupling_slopes(theta: Tensor, electron: Tensor, positron: float) -> Tensor:
    """Gradient (*, 2, 6) of the `couplings` in theta (*, 2)."""
    right, strength = theta.to(torch.float64)[..., None].unbind(-2)
    products = _products(right[..., 0])
    turn = torch.cat([2 * right - 1, 2 * right, 2 * right - 0.5], -1)
    slope = torch.stack([strength * turn, products], -2)
    h = (strength * products)[..., None, :]
    return _mixed(torch.stack([torch.zeros_like(slope), 2 * slope, 2 * h * slope], -1), electron[..., None], positron)


def _products(right: Tensor) -> Tensor:
    """g_i g_j (*, 3) for LL, RR and LR at g_R (*)."""
    left = right - 0.5
    return torch.stack([left**2, right**2, left * right], -1)


def _mixed(each: Tensor, electron: Tensor, positron: float) -> Tensor:
    """Of terms (*, 3, 3) for LL, RR and LR, those forward and backward, (*, 6)."""
    w_lr, w_rl = ((1 - electron) * (1 + positron))[..., None], ((1 + electron) * (1 - positron))[..., None]
    ll, rr, lr = each.unbind(-2)
    return torch.cat([w_lr * ll + w_rl * rr, (w_lr + w_rl) * lr], -1)


def propagators(s: Tensor) -> Tensor:
    """L (*, 3) = pi alpha^2 / (8 s) (1, Re chi, |chi|^2) in pb at s (*), chi = K s / (s - MZ^2 + i MZ GammaZ)."""
    off = s - _POLE
    photon = PICOBARN * math.pi * ALPHA**2 / (8 * s)
    z = photon * _K * s / (off**2 + _WIDTH**2)
    return torch.stack([photon, z * off, _K * z * s], -1)


def outer(angle: Tensor, energy: Tensor) -> Tensor:
    """Six numbers (*, 6) for `couplings`: of the angle (*, 2), for + and -, times of the energy (*, 3)."""
    return (angle[..., :, None] * energy[..., None, :]).flatten(-2)


def dot(first: Tensor, second: Tensor) -> Tensor:
    """Sum over the last axis of (*, 6) times (*, 6), as (*), without the product of their axes in memory."""
    return torch.einsum("...k,...k->...", first, second)


def exponent(s: Tensor) -> Tensor:
    """eta (*) = (2 alpha0 / pi) (ln(s / m_e^2) - 1) at s (*)."""
    return (2 * ALPHA_0 / math.pi) * (torch.log(s / M_ELECTRON**2) - 1)


def log_radiation(log_x: Tensor, s: Tensor) -> Tensor:
    """log f(x) (*) at log x (*) and s (*)."""
    eta = exponent(s)
    return eta.log() - eta * math.log(MOST) + (eta - 1) * log_x


def legendre(edges: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Gauss and Legendre's rule in each of the P panels between edges (*, P + 1): nodes and weights (*, P order)."""
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(order))
    length = edges.diff()[..., None] / 2
    return (edges[..., :-1, None] + length * (1 + nodes)).flatten(-2), (length * weights).flatten(-2)


@torch.no_grad()
def panels(s: Tensor, count: int) -> Tensor:
    """Edges in x (*, count + 1), 0 to .9, even in asinh((s (1 - x) - MZ^2) / MZ GammaZ): they resolve the Z."""
    ends = torch.asinh((torch.stack([s, (1 - MOST) * s], -1) - _POLE) / _WIDTH)
    inner = torch.lerp(ends[..., :1], ends[..., 1:], torch.linspace(0, 1, count + 1, dtype=torch.float64)[1:-1])
    x = 1 - (_POLE + _WIDTH * torch.sinh(inner)) / s[..., None]
    return torch.nn.functional.pad(torch.nn.functional.pad(x, (1, 0)), (0, 1), value=MOST)


@torch.no_grad()
def to_unit(x: Tensor, s: Tensor) -> Tensor:
    """u (*, P) at fractions x (*, P) and s (*)."""
    return (x / MOST) ** exponent(s)[..., None]


def radiated(edges: Tensor, s: Tensor, order: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes x (*, Q), propagators after radiation (*, Q, 3) and weights f(x) dx (*, Q) for panels of x (*, P + 1)."""
    u, weights = legendre(to_unit(edges, s), order)
    x = MOST * u ** (1 / exponent(s))[..., None]
    return x, propagators(s[..., None] * (1 - x)), weights


def mean_propagators(s: Tensor) -> Tensor:
    """Mean (*, 3) of the propagators over the radiation at s (*): piecewise polynomials in sqrt(s), good to 1e-11."""
    place = (s.sqrt() - LOWEST) * (_CELLS / (HIGHEST - LOWEST))
    cell = place.detach().long().clamp(0, _CELLS - 1)
    t, mean = (2 * (place - cell) - 1)[..., None], torch.zeros(3, dtype=torch.float64)
    for coefficients in _table():
        mean = mean * t + coefficients[cell]
    return mean


@cache
@torch.inference_mode(False)  # what is kept must serve gradients later
def _table() -> Tensor:
    """Coefficients (_ORDER, _CELLS, 3), highest power first, of the mean propagators in each cell of sqrt(s).

    The Z is 1.25 GeV away from the real axis and a cell .5 GeV wide, so that Chebyshev's nodes converge by a
    factor of 10 with each.
    """
    t = torch.cos(math.pi * (torch.arange(_ORDER, dtype=torch.float64) + 0.5) / _ORDER)
    cell = torch.arange(_CELLS, dtype=torch.float64)[:, None]
    s = (LOWEST + (HIGHEST - LOWEST) * (cell + (1 + t) / 2) / _CELLS) ** 2
    _, energy, weights = radiated(panels(s, 16), s, 24)
    mean = (weights[..., None] * energy).sum(-2)
    return torch.linalg.solve(torch.linalg.vander(t), mean).flip(1).transpose(0, 1).contiguous()


class Envelope:
    """A step function of u above sum_k weight_k L_k(s (1 - x(u))), from which x is drawn by rejection, exactly.

    In a panel L_0 is largest at the lowest energy left, |chi|^2 / s where it is nearest to its only maximum, and
    |Re chi| <= (1 + |chi|^2) / 2.

    Args:
        weights: (M, 3), the first and the last not negative.
        s: (M,).
        count: panels.
    """

    def __init__(self, weights: Tensor, s: Tensor, count: int = 16) -> None:
        x = panels(s, count)
        left = s[:, None] * (1 - x)
        nearest = left.new_tensor(math.hypot(_POLE, _WIDTH)).clamp(left[:, 1:], left[:, :-1])
        photon, mixed, z = weights[:, None].unbind(-1)
        extra = mixed.abs() / 2
        self.s = s
        self.u = to_unit(x, s)
        self.top = (photon + extra) * propagators(left[:, 1:])[..., 0] + (z + extra) * propagators(nearest)[..., 2]
        self.mass = (self.top * self.u.diff()).cumsum(-1)

    def draw(self, rows: Tensor, panel: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """log x and the envelope's height, (R, T) each, for rows (R,) and two uniform numbers in [0, 1), (R, T)."""
        mass = self.mass[rows]
        at = torch.searchsorted(mass, panel * mass[:, -1:], right=True).clamp(max=mass.shape[1] - 1)
        low, high = self.u[rows].gather(1, at), self.u[rows].gather(1, at + 1)
        log_u = torch.log(high - (high - low) * inside)
        return math.log(MOST) + log_u / exponent(self.s[rows])[:, None], self.top[rows].gather(1, at)
