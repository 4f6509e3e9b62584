"""A catalogue of subhalos instead of an image: an oracle, for its likelihood is exact.

A subhalo of mass m, l = log10 m, is found with probability

    eps(m) = Phi((l - log10 m_half) / width),

independently of the others, and its mass measured as y = l + error * N(0, 1), in dex. The measured masses are a Poisson
process with intensity per dex

    mu(y) = lambda times the integral of p(m | beta) eps(m) N(y; l, error) over l,   Lambda = integral of mu,

so that the probability density of n masses in the order they were found is exp(-Lambda) / n! times the product of mu.
Integrals are Gauss and Legendre's in panels of three times the error or the width, whichever is less.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.stats import poisson
from torch import Tensor

from sbi_core.errors import SimulatorError
from sbi_core.simulators.subhalos import MassFunction, Subhalos, log_integral, mean_log_mass

_ORDER = 12
_ROWS, _NUMBERS = 100, 1_000_000  # catalogues at once, and pairs of a theta and a mass
_REACH = 9.0  # standard deviations of the error that count
_OVERFLOW = 1e-12
_TEN = math.log(10)


@dataclass(frozen=True)
class Catalogue:
    """What is found of the subhalos of one host, and how well.

    Args:
        masses: their law.
        log_region: logarithm of the host's mass in the region.
        log_top: logarithm of the heaviest subhalo's mass.
        m_half: mass in solar masses at which half are found.
        width: of the rise of the efficiency, in dex.
        error: standard deviation of the measured masses, in dex.
        low: least theta of the prior.
        high: largest theta of the prior.
    """

    masses: MassFunction
    log_region: float
    log_top: float
    m_half: float
    width: float
    error: float
    low: tuple[float, ...]
    high: tuple[float, ...]

    @cached_property
    def n_max(self) -> int:
        """Places of a catalogue: more are found with probability below 1e-12 at any theta of the prior."""
        slopes = torch.linspace(self.low[1], self.high[1], 41, dtype=torch.float64)
        most = self.expected(torch.stack([torch.full_like(slopes, self.high[0]), slopes], -1)).max()
        return int(poisson.isf(_OVERFLOW, float(most))) + 1

    def efficiency(self, log10_mass: Tensor) -> Tensor:
        """Probability (*) that a subhalo is found, at log10 of its mass (*)."""
        away = (log10_mass - math.log10(self.m_half)) / self.width
        return torch.special.log_ndtr(away).exp()  # ndtr itself is 0 below -8.3

    def sample(self, subhalos: Subhalos, rows: int, generator: torch.Generator) -> Tensor:
        """Draw catalogues x (rows, n_max), log10 of measured masses and zeros behind them, float64."""
        log10_mass = subhalos.mass.log10()
        found = torch.rand(len(subhalos), generator=generator, dtype=torch.float64) < self.efficiency(log10_mass)
        noise = torch.randn(len(subhalos), generator=generator, dtype=torch.float64)
        lens, measured = subhalos.lens[found], (log10_mass + self.error * noise)[found]
        count = torch.bincount(lens, minlength=rows)
        if int(count.max()) > self.n_max:
            raise SimulatorError(
                f"StrongLensing: {int(count.max())} subhalos found in one catalogue, expected at most {self.n_max}, "
                "which holds all but 1e-12 at any theta in the parameters' ranges. Keep theta there."
            )
        place = torch.arange(len(lens)) - (count.cumsum(0) - count)[lens]
        x = torch.zeros(rows, self.n_max, dtype=torch.float64)
        x[lens, place] = measured
        return x

    def expected(self, theta: Tensor) -> Tensor:
        """Lambda (*), the expected number of subhalos that are found, at theta (*, 2)."""
        return (self._spectrum(theta) @ self._found).mul(self._scale(theta).exp())

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log p(x | theta) (*), theta (*, 2), x (*, n_max)."""
        return self._over(theta, x, self._log_likelihood)

    def score(self, theta: Tensor, x: Tensor) -> Tensor:
        """Gradient (*, 2) of log p(x | theta), theta (*, 2), x (*, n_max).

        t_f = (n - Lambda) / f_sub; t_beta = sum of (E[ln m | y] - L_1) - Lambda (E[ln m | found] - L_1).
        """
        return self._over(theta, x, self._score)

    def information(self, theta: Tensor) -> Tensor:
        """Fisher information (*, 2, 2) of a catalogue at theta (*, 2): mu times the squared gradient of ln mu."""
        ends = float(self._log10_mass[0]) - _REACH * self.error, float(self._log10_mass[-1]) + _REACH * self.error
        y, weights = _panels(*ends, 2 * self.error)
        spectrum, kernel = self._spectrum(theta), self._kernel(y).T
        mu = spectrum @ kernel
        slope = (spectrum * self._log10_mass * _TEN) @ kernel / mu - self._calibration(theta)[..., None]
        slopes = torch.stack([(1 / theta[..., 0, None]).expand_as(slope), slope], -2)
        weight = (weights * mu * self._scale(theta).exp()[..., None])[..., None, :]
        return (slopes * weight) @ slopes.mT

    @cached_property
    def _nodes(self) -> tuple[Tensor, Tensor]:
        return _panels(math.log10(self.masses.floor), self.log_top / _TEN, 3 * min(self.error, self.width))

    @property
    def _log10_mass(self) -> Tensor:
        """Nodes in log10 m, (Q,)."""
        return self._nodes[0]

    @cached_property
    def _found(self) -> Tensor:
        """Weights of the nodes times the efficiency, (Q,)."""
        return self._nodes[1] * self.efficiency(self._log10_mass)

    def _kernel(self, y: Tensor) -> Tensor:
        """Density (*, Q) per dex of measured log10 masses y (*) from each node, with its weight and efficiency."""
        away = (y[..., None] - self._log10_mass) / self.error
        return torch.exp(-(away**2) / 2) * (self._found / (self.error * math.sqrt(2 * math.pi)))

    def _spectrum(self, theta: Tensor) -> Tensor:
        """m^beta at the nodes, over that in the middle of the range, (*, Q)."""
        middle = (self._log10_mass[0] + self._log10_mass[-1]) / 2
        return torch.exp(theta[..., 1, None] * _TEN * (self._log10_mass - middle))

    def _scale(self, theta: Tensor) -> Tensor:
        """Logarithm (*) of what `_spectrum` must be multiplied with to be the number of subhalos per dex."""
        f_sub, beta = theta.unbind(-1)
        top = torch.tensor(self.log_top, dtype=torch.float64)
        low = torch.tensor(math.log(self.masses.calibrated_from), dtype=torch.float64)
        middle = (self._log10_mass[0] + self._log10_mass[-1]) / 2 * _TEN
        return torch.log(f_sub * _TEN) + self.log_region + beta * middle - log_integral(beta + 1, low, top)

    def _calibration(self, theta: Tensor) -> Tensor:
        """L_1 (*), the slope of -`_scale` in beta but for the middle, which cancels."""
        low = torch.tensor(math.log(self.masses.calibrated_from), dtype=torch.float64)
        return mean_log_mass(theta[..., 1] + 1, low, torch.tensor(self.log_top, dtype=torch.float64))

    def _log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """log p (*, R) at theta (R, 2), or (T, 1, 2) for all pairs, and x (R, n_max)."""
        row, mu, _ = self._found_masses(theta, x)
        n = (x > 0).sum(-1).to(torch.float64)
        sums = mu.new_zeros(*mu.shape[:-1], len(x)).index_add(-1, row, mu.log())
        return sums + n * self._scale(theta) - self.expected(theta) - torch.lgamma(n + 1)

    def _score(self, theta: Tensor, x: Tensor) -> Tensor:
        """Score (*, R, 2) at theta (R, 2), or (T, 1, 2) for all pairs, and x (R, n_max)."""
        row, mu, weighted = self._found_masses(theta, x)
        sums = mu.new_zeros(*mu.shape[:-1], len(x)).index_add(-1, row, weighted / mu.clamp(min=1e-300))
        tilt, n, expected = self._calibration(theta), (x > 0).sum(-1), self.expected(theta)
        spectrum = self._spectrum(theta)
        found = (spectrum * self._log10_mass * _TEN) @ self._found / (spectrum @ self._found)
        return torch.stack([(n - expected) / theta[..., 0], sums - n * tilt - expected * (found - tilt)], -1)

    def _found_masses(self, theta: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of each of the E masses of x (R, n_max) its row, mu without `_scale`, mu times the mean of ln m, (*, E)."""
        row, place = torch.nonzero(x > 0, as_tuple=True)
        kernel, spectrum = self._kernel(x[row, place]), self._spectrum(theta)
        if theta.ndim == 3:
            both = (spectrum[:, 0], spectrum[:, 0] * self._log10_mass * _TEN)
            return row, both[0] @ kernel.T, both[1] @ kernel.T
        each = spectrum[row] * kernel
        return row, each.sum(-1), (each @ self._log10_mass) * _TEN

    def _over(self, theta: Tensor, x: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Apply a function to theta (*, 2) and x (*, n_max): pair by pair, or to all pairs where those are few more."""
        theta, x = theta.to(torch.float64), x.to(torch.float64)
        shape = torch.broadcast_shapes(theta.shape[:-1], x.shape[:-1])
        thetas, rows = theta.reshape(-1, 2), x.reshape(-1, x.shape[-1])
        which = [torch.arange(len(own)).reshape(part.shape[:-1]) for own, part in ((thetas, theta), (rows, x))]
        at, of = (index.expand(shape).flatten() for index in which)
        if len(thetas) * len(rows) > 4 * len(at):
            pairs = zip(at.split(_ROWS), of.split(_ROWS), strict=True)
            values = torch.cat([function(thetas[some], rows[same]) for some, same in pairs])
        else:
            values = torch.cat([self._grid(thetas, some, function) for some in rows.split(_ROWS)], 1)[at, of]
        return values.reshape((*shape, *values.shape[1:]))

    @staticmethod
    def _grid(theta: Tensor, x: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Values (T, R, ...) for all pairs of theta (T, 2) and x (R, n_max)."""
        together = max(1, _NUMBERS // max(1, int((x > 0).sum())))
        return torch.cat([function(some[:, None], x) for some in theta.split(together)])


def _panels(low: float, high: float, widest: float) -> tuple[Tensor, Tensor]:
    """Nodes and weights (Q,) of Gauss and Legendre's rule from low to high, in panels at most `widest` wide."""
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(_ORDER))
    edges = torch.linspace(low, high, math.ceil((high - low) / widest) + 1, dtype=torch.float64)
    half = edges.diff()[:, None] / 2
    return (edges[:-1, None] + half * (1 + nodes)).flatten(), (half * weights).flatten()
