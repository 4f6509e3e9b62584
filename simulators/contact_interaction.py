"""Muon pairs at a proton collider with contact interactions: weighted events, and the exact likelihood of them all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_core.errors import InputError, nearest
from sbi_core.parameters import Parameter
from sbi_core.priors import UniformPrior
from sbi_core.simulator import LogLikelihood
from sbi_core.simulators.electroweak import ALPHA, GAMMA_Z, M_Z, PICOBARN, legendre
from sbi_core.simulators.morphing import Monomials, propose_benchmarks

SIN2 = 0.23153
"""Sine squared of the weak mixing angle."""

OPERATORS: Mapping[str, tuple[str, float, float]] = {
    "lq1": ("LL", 1.0, 1.0),
    "lq3": ("LL", -1.0, 1.0),
    "eu": ("RR", 1.0, 0.0),
    "ed": ("RR", 0.0, 1.0),
    "lu": ("RL", 1.0, 0.0),
    "ld": ("RL", 0.0, 1.0),
    "qe": ("LR", 1.0, 1.0),
}
"""Chirality of quark and lepton, and the sign for up and for down quarks, of each four-fermion operator."""

_CHIRALITIES = (("L", "L"), ("R", "R"), ("L", "R"), ("R", "L"))
_CHARGE, _ISOSPIN = (2 / 3, -1 / 3), (0.5, -0.5)


@dataclass(frozen=True)
class Generated:
    """Weighted events: what a generator and a detector simulation leave behind.

    Attributes:
        x: ln(m_obs / TeV) and c_obs, (N, 2), float64.
        weights: at each benchmark, in pb, (N, B): their sums are the cross-sections.
        benchmarks: (B, D).
        latents: ln(m / TeV), c along the boost, rapidity y, flavour (0 up, 1 down), side (1 if the quark is the parton
            with the larger momentum, else -1), and the weight (with its sign) per unit of cross-section; (N, 6).
    """

    x: Tensor
    weights: Tensor
    benchmarks: Tensor
    latents: Tensor


class ContactInteraction:
    """p p -> gamma/Z/contact -> mu+ mu- at tree level, seen with finite resolution; x = (ln(m_obs / TeV), c_obs).

    theta holds coefficients C / Lambda^2 in TeV^-2 of four-fermion operators C / Lambda^2 (q gamma^mu q)(l gamma_mu l).
    For a quark of chirality i and a lepton of chirality j the amplitude is linear in theta,

        A_ij = 4 pi alpha Q_q Q_l / s + g_i g_j / (s - MZ^2 + i MZ GammaZ) + C_ij,    g = e (T3 - Q sin2) / (sin cos),

    and with c the cosine between the quark and the mu- in the pair's rest frame, colours averaged,

        d sigma / dc = s / (384 pi) [(|A_LL|^2 + |A_RR|^2) (1 + c)^2 + (|A_LR|^2 + |A_RL|^2) (1 - c)^2]:

    every event's weight is quadratic in theta (Eichten, Lane & Peskin, Phys. Rev. Lett. 50 (1983) 811; the operators
    are those of arXiv:1008.4884). Parton densities are the valence and sea quarks of the benchmark of
    hep-ph/0204316, at their input scale, without evolution: right in shape, not meant for predictions. d sigma/(dm dy)
    is 2 m / S times quark(x1) antiquark(x2) + antiquark(x1) quark(x2), x = m e^(+-y) / sqrt(S).

    Nobody sees which parton was the quark. c_obs is taken along the pair's own motion, where the quark mostly goes, and
    atanh(c_obs), half the rapidity between the muons, has normal noise, as has ln m_obs.

    The likelihood is exact to 1e-9: one-dimensional quadratures make it a polynomial in theta. It answers as estimators
    do (`log_likelihood`, `observe`), so that `infer` and `limits` read it.

    Args:
        operators: names among lq1, lq3, eu, ed, lu, ld, qe; the axes of theta.
        reach: theta goes from -reach to reach, in TeV^-2.
        mass: least and largest true m in GeV.
        sqrt_s: energy of the collider in GeV.
        resolution: standard deviation of the noise of ln m and of atanh c.

    Raises:
        InputError: for settings that make no process.

    Example:
        >>> process = ContactInteraction(["lq3"])
        >>> round(float(process.rate(torch.zeros(1))), 4), round(float(process.rate(torch.ones(1) / 5)), 4)
        (0.375, 0.7834)
    """

    x_shape = (2,)

    def __init__(
        self,
        operators: Sequence[str] = ("lq1", "lq3"),
        *,
        reach: float = 0.5,
        mass: tuple[float, float] = (300.0, 4000.0),
        sqrt_s: float = 13_000.0,
        resolution: tuple[float, float] = (0.05, 0.1),
    ) -> None:
        for name in operators:
            if name not in OPERATORS:
                raise InputError(f"operator '{name}' is not known; {nearest(name, OPERATORS)}")
        fits = len(mass) == len(resolution) == 2 and 0 < mass[0] < mass[1] < sqrt_s and min(resolution) > 0
        if not fits or not operators or len(set(operators)) < len(operators) or reach <= 0:
            raise InputError(
                f"operators {list(operators)}, reach {reach}, mass {mass}, resolution {resolution}, sqrt_s {sqrt_s}: "
                "expected different operators, a positive reach, 0 < low < high < sqrt_s and two positive resolutions."
            )
        self.operators = tuple(operators)
        self.mass, self.sqrt_s, self.resolution = tuple(mass), sqrt_s, tuple(resolution)
        self.parameters = tuple(
            Parameter(f"c_{name}", -reach, reach, unit="TeV^-2", latex=rf"C_{{{name}}}/\Lambda^2") for name in operators
        )
        self._monomials = Monomials(self.parameters, 2)
        self._log_m, step = legendre(self._edges(), 8)
        self._by_mass = self._spectra(self._log_m) * step[:, None, None]  # (Q, 2 shapes, C)
        self._total = 8 / 3 * self._by_mass.sum((0, 1))

    @property
    def prior(self) -> UniformPrior:
        """Uniform on the ranges, event shape (D,)."""
        return UniformPrior(self.parameters)

    def benchmarks(self) -> Tensor:
        """The standard model and points around it that determine the weights, (B, D)."""
        return propose_benchmarks(self.parameters, 2, fixed=torch.zeros(1, len(self.parameters)))

    def rate(self, theta: Tensor, design: Tensor | None = None) -> Tensor:
        """Cross-section in pb at theta (*, D), as (*)."""
        return self._monomials(theta) @ self._total

    def log_likelihood(self, theta: Tensor, x: Tensor, design: Tensor | None = None) -> Tensor:
        """Exact log p(x | theta), theta (*, D), x (*, 2), broadcasting to (*)."""
        return self.observe(x)(theta)

    def observe(self, x: Tensor, design: Tensor | None = None) -> LogLikelihood:
        """Read x (*, 2) once; return the function theta (*, D) -> log p(x | theta) (*)."""
        log_m, c = x.to(torch.float64).unbind(-1)
        noise = (log_m[..., None] - self._log_m) / self.resolution[0]
        kernel = torch.exp(-(noise**2) / 2) / (math.sqrt(2 * math.pi) * self.resolution[0])
        numbers = torch.einsum("...q,qac,...a->...c", kernel, self._by_mass, self._angles(c))

        def log_p(theta: Tensor) -> Tensor:
            monomials = self._monomials(theta)
            return ((monomials * numbers).sum(-1) / (monomials @ self._total)).log()

        return log_p

    def weight(self, theta: Tensor, latents: Tensor) -> Tensor:
        """Weight (*) in pb of events (*, 6), as in `Generated.latents`, at theta (*, D), from the amplitudes."""
        log_m, c, y, flavour, side, each = latents.unbind(-1)
        same, opposite = self._helicities(log_m, theta)
        up = flavour == 0
        even, odd = (torch.where(up, value[..., 0], value[..., 1]) for value in (same, opposite))
        shape = even * (1 + side * c) ** 2 + odd * (1 - side * c) ** 2
        return each * shape * self._partons(log_m, y, up, side)

    def generate(self, n: int, benchmarks: Any = None, *, seed: int, negative: float = 0.0) -> Generated:
        """Draw weighted events with importance sampling, and smear them.

        m follows m^-2, which falls less fast than the cross-section; c, y, flavour and side are uniform: weights vary.

        Args:
            n: events N.
            benchmarks: (B, D); by default those of `benchmarks`.
            seed: of everything random.
            negative: largest share of negative weights, near c = 1, as a next-to-leading order generator makes them: an
                event has weight -w with probability p = negative (1 + c) / 2, else +w, times 1 / (1 - 2 p).

        Raises:
            InputError: for no events, a share of a half or more, and benchmarks of another shape.
        """
        if n < 1:
            raise InputError(f"n = {n} events, expected at least 1.")
        if not 0 <= negative < 0.5:
            raise InputError(f"negative = {negative}, expected a share from 0 to below 0.5.")
        rng = np.random.default_rng(seed)
        unit = torch.from_numpy(rng.random((7, n)))
        low, high = (1 / end for end in self.mass)
        log_m = -torch.log(low + (high - low) * unit[0])
        steps = torch.exp(-log_m) / (low - high)  # density of ln m
        c, reach = 2 * unit[1] - 1, math.log(self.sqrt_s) - log_m
        y, flavour, side = reach * (2 * unit[2] - 1), (unit[3] < 0.5).double(), 2 * (unit[4] < 0.5).double() - 1
        chance = negative * (1 + c) / 2
        sign = torch.where(unit[5] < chance, -1.0, 1.0) / (1 - 2 * chance)
        each = sign * 2 * 2 * 2 * 2 * reach / (n * steps)
        log_m = log_m - math.log(1000.0)
        latents = torch.stack([log_m, c, y, flavour, side, each], -1)
        points = self.benchmarks() if benchmarks is None else torch.as_tensor(benchmarks, dtype=torch.float64)
        if points.ndim != 2 or points.shape[1] != len(self.operators):
            raise InputError(f"benchmarks have shape {tuple(points.shape)}, expected (B, {len(self.operators)}).")
        weights = self.weight(points, latents[:, None])
        noise = torch.from_numpy(rng.standard_normal((2, n)))
        seen = torch.tanh(torch.atanh(c) + self.resolution[1] * noise[1])
        return Generated(torch.stack([log_m + self.resolution[0] * noise[0], seen], -1), weights, points, latents)

    def particles(self, latents: Tensor, *, seed: int) -> np.ndarray:
        """Partons and muons of events (N, 6) before the detector, as `write_lhe` wants them: (N, 4, 13).

        Beams along z, the azimuth uniform; the quark comes with colour 501, mu- before mu+.
        """
        log_m, c, y, flavour, side = (column.numpy() for column in latents[:, :5].unbind(-1))
        half, ahead, phi = 500 * np.exp(log_m), np.where(y < 0, -1.0, 1.0), np.random.default_rng(seed).random(len(y))
        phi, along, down = 2 * np.pi * phi, ahead * side, 1 + (flavour == 0)  # 2 is up, 1 is down
        table = np.zeros((len(y), 4, 13))
        table[:, :, 0] = np.stack([down, -down, np.full_like(down, 13), np.full_like(down, -13)], 1)
        table[:, :, 1] = [-1, -1, 1, 1]
        table[:, 2:, 2:4], table[:, 0, 4], table[:, 1, 5], table[:, :, 12] = [1, 2], 501, 501, 9.0
        across = half * np.sqrt(1 - c**2)
        for k, cosine in enumerate((along, -along, ahead * c, -ahead * c)):
            slope, energy = half * cosine, half
            table[:, k, 8] = slope * np.cosh(y) + energy * np.sinh(y)
            table[:, k, 9] = energy * np.cosh(y) + slope * np.sinh(y)
        for k, sign in ((2, 1.0), (3, -1.0)):
            table[:, k, 6], table[:, k, 7] = sign * across * np.cos(phi), sign * across * np.sin(phi)
        return table

    def _edges(self) -> Tensor:
        """Panels of ln(m / TeV), each shorter than the resolution."""
        low, high = (math.log(end / 1000) for end in self.mass)
        count = math.ceil((high - low) / min(self.resolution[0], 0.2))
        return torch.linspace(low, high, count + 1, dtype=torch.float64)

    def _helicities(self, log_m: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """|A_LL|^2 + |A_RR|^2 and |A_LR|^2 + |A_RL|^2 times s / (384 pi), in pb, for up and down quarks, (*, 2)."""
        s = torch.exp(2 * log_m)[..., None] * 1e6
        charge = 4 * math.pi * ALPHA
        weak = charge / (SIN2 * (1 - SIN2))
        propagator = 1 / torch.complex(s - M_Z**2, torch.full_like(s, M_Z * GAMMA_Z))
        theta = theta.to(torch.float64)
        squares = []
        for quark, lepton in _CHIRALITIES:
            own = [(_ISOSPIN[q] if quark == "L" else 0.0) - _CHARGE[q] * SIN2 for q in range(2)]
            muon = (-0.5 if lepton == "L" else 0.0) + SIN2
            contact = theta.new_zeros(*theta.shape[:-1], 2)
            for k, name in enumerate(self.operators):
                if OPERATORS[name][0] == quark + lepton:
                    contact = contact + theta[..., k, None] * torch.tensor(OPERATORS[name][1:], dtype=torch.float64)
            photon = -charge * torch.tensor(_CHARGE, dtype=torch.float64) / s
            z = weak * muon * torch.tensor(own, dtype=torch.float64) * propagator
            squares.append((photon + z.real + contact * 1e-6) ** 2 + z.imag**2)
        factor = PICOBARN * s / (384 * math.pi)
        return factor * (squares[0] + squares[1]), factor * (squares[2] + squares[3])

    def _partons(self, log_m: Tensor, y: Tensor, up: Tensor, side: Tensor) -> Tensor:
        """2 m^2 / S quark antiquark (*), d sigma / (d ln m dy dc) over d sigma / dc; side says which has more."""
        root = torch.exp(log_m) * (1000 / self.sqrt_s)
        more, less = root * torch.exp(y.abs()), root * torch.exp(-y.abs())
        quark, anti = torch.where(side > 0, more, less), torch.where(side > 0, less, more)
        return 2 * root**2 * _density(quark, up, valence=True) * _density(anti, up, valence=False)

    def _spectra(self, log_m: Tensor) -> Tensor:
        """Coefficients (Q, 2, C) of (1 + c)^2 and (1 - c)^2 along the boost in d sigma / (d ln m dc), at ln m (Q,)."""
        reach = math.log(self.sqrt_s / 1000) - log_m
        y, step = legendre(torch.stack([torch.zeros_like(reach), reach], -1), 60)
        points = self.benchmarks()
        inverse = torch.linalg.pinv(self._monomials(points))
        same, opposite = self._helicities(log_m[:, None], points)  # (Q, B, 2)
        total = torch.zeros(())
        for side in (1.0, -1.0):
            for q in range(2):
                up, sides = torch.full_like(y, q) == 0, torch.full_like(y, side)
                luminosity = 2 * (step * self._partons(log_m[:, None], y, up, sides)).sum(-1)
                pair = torch.stack([same[..., q], opposite[..., q]][:: int(side)], 1)  # (Q, 2, B)
                total = total + luminosity[:, None, None] * pair
        return total @ inverse.T

    def _angles(self, c: Tensor) -> Tensor:
        """Densities (*, 2) of c_obs (*) from (1 + c)^2 and from (1 - c)^2: normal noise in atanh c; 0 if |c| >= 1."""
        nodes, weights = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(40))
        inside = c.abs() < 1
        c = torch.where(inside, c, 0.0)
        t = torch.tanh(torch.atanh(c)[..., None] + self.resolution[1] * nodes)
        each = weights / math.sqrt(2 * math.pi) * (1 - t**2)
        density = torch.stack([(each * (1 + t) ** 2).sum(-1), (each * (1 - t) ** 2).sum(-1)], -1)
        return torch.where(inside[..., None], density / (1 - c**2)[..., None], 0.0)


def _density(x: Tensor, up: Tensor, *, valence: bool) -> Tensor:
    """Number density (*) of a quark (valence and sea) or antiquark of momentum fraction x (*); 0 from x = 1 on."""
    x = x.clamp(max=1.0)
    sea = 0.1939875 * x**-1.1 * (1 - x) ** 6
    sea = torch.where(up, (1 - x) * sea, sea)
    if not valence:
        return sea
    return sea + torch.where(up, 5.107200 * x**-0.2 * (1 - x) ** 3, 3.064320 * x**-0.2 * (1 - x) ** 4)
