"""Masses of subhalos: a truncated power law, how many there are, and log p of a population in closed form.

m has density proportional to m^(beta - 1) between a and b. With s = beta + k, the middle q = ln sqrt(a b), the width
L = ln(b / a) and u = s L / 2,

    J_k = integral of m^(beta - 1 + k) = e^(s q) L sinh(u) / u,
    L_k = mean of ln m under m^(beta - 1 + k) = q + (L / 2) (coth u - 1 / u),
    V_k = variance of it = (L / 2)^2 (1 / u^2 - 1 / sinh^2 u),

regular at s = 0, where series take over. In a region that holds the mass M_w of the host, the share f of which is in
subhalos between a_c and b (the range of calibration), the number of subhalos above the floor a is Poisson with

    lambda = f M_w J_0(a, b) / J_1(a_c, b).
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sbi_core.errors import InputError

_SMALL = 0.1
_LOG_SINHC = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250)
"""Series of ln(sinh u / u) in powers of u^2."""


def log_sinhc(u: Tensor) -> Tensor:
    """ln(sinh u / u) (*) at u (*), with gradients that are finite everywhere."""
    near = u.abs() < _SMALL
    square, series = torch.where(near, u, 0.0) ** 2, torch.zeros_like(u)
    for coefficient in reversed(_LOG_SINHC):
        series = (series + coefficient) * square
    far = torch.where(near, 1.0, u).abs()
    return torch.where(near, series, far + torch.log(-torch.expm1(-2 * far) / (2 * far)))


def log_integral(s: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """ln of the integral of m^(s - 1) (*) between masses with logarithms `low` and `high` (*), at s (*)."""
    return s * (low + high) / 2 + torch.log(high - low) + log_sinhc(s * (high - low) / 2)


def mean_log_mass(s: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Mean (*) of ln m under m^(s - 1) between logarithms `low` and `high` (*), at s (*)."""
    half = (high - low) / 2
    u = s * half
    near = u.abs() < _SMALL
    series = torch.zeros_like(u)
    for k, coefficient in reversed(list(enumerate(_LOG_SINHC))):
        series = series * u**2 + 2 * (k + 1) * coefficient
    far = torch.where(near, 1.0, u)
    return (low + high) / 2 + half * torch.where(near, series * u, 1 / torch.tanh(far) - 1 / far)


def variance_log_mass(s: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Variance (*) of ln m under m^(s - 1) between logarithms `low` and `high` (*), at s (*)."""
    half = (high - low) / 2
    u = s * half
    near = u.abs() < _SMALL
    series = torch.zeros_like(u)
    for k, coefficient in reversed(list(enumerate(_LOG_SINHC))):
        series = series * u**2 + 2 * (k + 1) * (2 * k + 1) * coefficient
    far = torch.where(near, 1.0, u).clamp(-300, 300)
    return half**2 * torch.where(near, series, 1 / far**2 - 1 / torch.sinh(far) ** 2)


def draw_log_mass(unit: Tensor, s: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """ln m (*) at shares `unit` (*) of the distribution m^(s - 1) between logarithms `low` and `high`, at s (*)."""
    width = high - low
    grow = s * width
    flat = grow.abs() < 1e-6
    safe = torch.where(flat, 1.0, s)
    steep = torch.log1p(unit * torch.expm1(safe * width)) / safe
    return low + torch.where(flat, unit * width * (1 + grow * (1 - unit) / 2), steep)


@dataclass(frozen=True)
class MassFunction:
    """The law of a population of subhalos.

    Args:
        floor: lightest mass that is drawn, in solar masses.
        calibrated_from: lower end of the range of masses that f_sub counts; the upper end is that of the masses.
    """

    floor: float
    calibrated_from: float

    def log_expected(self, theta: Tensor, log_region: Tensor, log_top: Tensor) -> Tensor:
        """ln lambda (*) at theta (*, 2), the logarithms of the region's mass and of the heaviest subhalo's (*)."""
        f_sub, beta = theta.unbind(-1)
        low, calibrated = self._ends(log_top)
        drawn = log_integral(beta, low, log_top)
        return torch.log(f_sub) + log_region + drawn - log_integral(beta + 1, calibrated, log_top)

    def log_probability(self, theta: Tensor, n: Tensor, total: Tensor, log_region: Tensor, log_top: Tensor) -> Tensor:
        """ln p(n, masses | theta) = n ln lambda - lambda + (beta - 1) S - n ln J_0 (*), S the sum of ln m (*)."""
        beta = theta[..., 1]
        low, _ = self._ends(log_top)
        log_expected = self.log_expected(theta, log_region, log_top)
        each = log_expected - log_integral(beta, low, log_top)
        return n * each - log_expected.exp() + (beta - 1) * total

    def score(self, theta: Tensor, n: Tensor, total: Tensor, log_region: Tensor, log_top: Tensor) -> Tensor:
        """Gradient (*, 2) of `log_probability` in theta (*, 2), in closed form.

        t_f = (n - lambda) / f_sub; t_beta = (n - lambda) (L_0(a) - L_1(a_c)) + S - n L_0(a).
        """
        f_sub, beta = theta.unbind(-1)
        low, calibrated = self._ends(log_top)
        mean = mean_log_mass(beta, low, log_top)
        excess = n - self.log_expected(theta, log_region, log_top).exp()
        tilt = mean - mean_log_mass(beta + 1, calibrated, log_top)
        return torch.stack([excess / f_sub, excess * tilt + total - n * mean], -1)

    def information(self, theta: Tensor, log_region: Tensor, log_top: Tensor) -> Tensor:
        """Fisher information (*, 2, 2) of n and the masses at theta (*, 2).

        lambda ((1 / f^2, d / f), (d / f, d^2 + V_0)), d = L_0(a) - L_1(a_c).
        """
        f_sub, beta = theta.unbind(-1)
        low, calibrated = self._ends(log_top)
        tilt = mean_log_mass(beta, low, log_top) - mean_log_mass(beta + 1, calibrated, log_top)
        spread = variance_log_mass(beta, low, log_top)
        across = tilt / f_sub
        rows = [
            torch.stack([torch.ones_like(tilt) / f_sub**2, across], -1),
            torch.stack([across, tilt**2 + spread], -1),
        ]
        return self.log_expected(theta, log_region, log_top).exp()[..., None, None] * torch.stack(rows, -2)

    def _ends(self, log_top: Tensor) -> tuple[Tensor, Tensor]:
        low = torch.full_like(log_top, math.log(self.floor))
        return low, torch.full_like(log_top, math.log(self.calibrated_from))


@dataclass(frozen=True)
class Subhalos:
    """Subhalos of several lenses in one list; lists of numbers will do.

    Attributes:
        lens: number of the lens that each belongs to, (S,), int64.
        mass: in solar masses, (S,), float64.
        x: in arcsec from the centre of the lens, (S,), float64.
        y: the other coordinate, (S,), float64.

    Raises:
        InputError: if the lists differ in length.

    Example:
        >>> Subhalos(lens=[0, 0], mass=[1e9, 3e8], x=[0.7, 0.0], y=[0.0, -0.7])[:1].mass
        tensor([1.0000e+09], dtype=torch.float64)
    """

    lens: Tensor
    mass: Tensor
    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        for name in ("lens", "mass", "x", "y"):
            kind = torch.int64 if name == "lens" else torch.float64
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=kind))
        shapes = [tuple(column.shape) for column in (self.lens, self.mass, self.x, self.y)]
        if len(set(shapes)) > 1 or len(shapes[0]) != 1:
            raise InputError(f"Subhalos: lens, mass, x and y have shapes {shapes}, expected (S,) of one length S.")

    def __len__(self) -> int:
        return len(self.mass)

    def __getitem__(self, which: Tensor | slice) -> "Subhalos":
        return Subhalos(self.lens[which], self.mass[which], self.x[which], self.y[which])

    def joined(self, other: "Subhalos") -> "Subhalos":
        """These and others, sorted by lens."""
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("lens", "mass", "x", "y"))
        return Subhalos(*map(torch.cat, pairs)).sorted()

    def sorted(self) -> "Subhalos":
        """The same, sorted by lens."""
        return self if bool((self.lens.diff() >= 0).all()) else self[self.lens.argsort(stable=True)]

    def between(self, first: int, last: int) -> "Subhalos":
        """Those of lenses from `first` to before `last`, which becomes number 0 and so on; they must be sorted."""
        some = self[slice(*torch.searchsorted(self.lens, torch.tensor([first, last])).tolist())]
        return replace(some, lens=some.lens - first)

    def counts(self, lenses: int) -> Tensor:
        """Number of subhalos of each of the lenses (M,), float64."""
        return torch.bincount(self.lens, minlength=lenses).to(torch.float64)

    def totals(self, values: Tensor, lenses: int) -> Tensor:
        """Sum of values (S,) over the subhalos of each of the lenses, (M,)."""
        return torch.zeros(lenses, dtype=torch.float64).index_add_(0, self.lens, values)
