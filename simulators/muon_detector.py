"""What a detector makes of a pair of muons: mistaken charges, smearing, a window; and the exact inverse of all that."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.special import ndtr

from sbi_core.errors import InputError
from sbi_core.simulators.electroweak import MOST, legendre, log_radiation, panels, propagators, radiated

FARTHEST = -0.5 * math.log1p(-MOST)
"""Largest rapidity y of a pair, after the hardest radiation."""

_REACH = 9.0  # standard deviations of smearing that count
_ROOT = math.sqrt(2 * math.pi)


def halves(c: Tensor) -> Tensor:
    """(1 +- c)^2, (*, 2), at c (*)."""
    return torch.stack([(1 + c) ** 2, (1 - c) ** 2], -1)


@dataclass(frozen=True)
class Detector:
    """(c, y) -> (c_obs, y_obs): c changes sign with probability .01 + .03 c^4, both are smeared, c_obs is selected.

    Args:
        flips: whether c changes sign.
        smearing: standard deviation of the normal noise of both; may be 0.
        window: the two ends of the range of c_obs that is kept, or `None` for all.
    """

    flips: bool
    smearing: float
    window: tuple[float, ...] | None

    def __post_init__(self) -> None:
        if not 0 <= self.smearing < math.inf:
            raise InputError(f"smearing = {self.smearing}, expected a standard deviation, at least 0.")
        if len(self.ends) != 2 or not self.ends[0] < self.ends[1]:
            raise InputError(f"window = {self.window}, expected its two ends, the lower one first, or None.")
        if float(self.integral(*self.ends).sum()) < 0.005:
            raise InputError(f"window = {self.window} keeps less than a thousandth of the events. Widen it.")

    @property
    def ends(self) -> tuple[float, ...]:
        """The two ends of the window."""
        return (-math.inf, math.inf) if self.window is None else self.window

    def see(self, c: Tensor, y: Tensor, flip: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_obs, y_obs and whether the event is kept (*), for c, y, uniform numbers `flip` (*), normal ones (2, *)."""
        c_obs = torch.where(flip < self.flip_chance(c), -c, c) + self.smearing * noise[0]
        return c_obs, y + self.smearing * noise[1], (c_obs > self.ends[0]) & (c_obs < self.ends[1])

    def flip_chance(self, c: Tensor) -> Tensor:
        """Probability (*) that c (*) changes sign; the same for -c."""
        return (0.01 + 0.03 * c**4) * self.flips

    def flipped(self, c: Tensor) -> Tensor:
        """(1 +- c)^2 after the change of sign, (*, 2), at c (*)."""
        lost = 4 * c * self.flip_chance(c)
        return halves(c) + torch.stack([-lost, lost], -1)

    def kept(self, c: Tensor, low: float, high: float) -> Tensor:
        """Probability (*) that smearing brings c (*), its sign changed or not, between low and high."""
        if self.smearing == 0:
            return ((c > low) & (c < high)).to(torch.float64)
        return ndtr((high - c) / self.smearing) - ndtr((low - c) / self.smearing)

    def integral(self, low: float, high: float) -> Tensor:
        """Integrals (2,) of (1 +- c)^2 over all events seen between low and high."""
        if low >= high:
            return torch.zeros(2, dtype=torch.float64)
        c, weights = self._rule(-1.0, 1.0, (low, high))
        return (weights * self.kept(c, low, high)) @ self.flipped(c)

    def angles(self, *, latent: bool) -> tuple[Tensor, Tensor]:
        """(1 +- c)^2 (Q, 2) and weights (Q,) that sum over kept events: as seen at c_obs, or `latent`, at c."""
        low, high = self.ends
        if latent:
            c, weights = self._rule(-1.0, 1.0, (low, high, -low, -high))
            flip = self.flip_chance(c)
            return halves(c), weights * ((1 - flip) * self.kept(c, low, high) + flip * self.kept(-c, low, high))
        most = 1 + _REACH * self.smearing
        c, weights = self._rule(max(low, -most), min(high, most), (-1.0, 1.0))
        numbers, factor = self.angle_density(c)
        return numbers, weights * factor.exp()

    def boosts(self, s: Tensor, *, latent: bool) -> tuple[Tensor, Tensor]:
        """Propagators (Q, 3) and weights (Q,) that sum over events at s (): as seen at y_obs, or `latent`, at x."""
        if latent or self.smearing == 0:
            return radiated(panels(s, 16), s, 16)[1:]
        most = FARTHEST + _REACH * self.smearing
        edges = torch.linspace(0, most, math.ceil(most / min(self.smearing, 0.02)) + 1, dtype=torch.float64)
        y, weights = legendre(edges, 8)
        numbers, factor = self.boost_density(y, s.expand_as(y))
        return numbers, 2 * weights * factor.exp()

    def _rule(self, low: float, high: float, ends: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        """Nodes and weights (Q,) from low to high for functions with smeared steps at `ends`."""
        steps = {end + k * _REACH * self.smearing for end in ends for k in (-1, 0, 1)}
        edges = sorted({low, high, *(min(max(step, low), high) for step in steps)})
        return legendre(torch.tensor(edges, dtype=torch.float64), 48)

    def angle_density(self, c_obs: Tensor) -> tuple[Tensor, Tensor]:
        """(1 +- c)^2 as seen at c_obs (N,): numbers (N, 2) and the logarithm of what multiplies them, (N,)."""
        outside = (c_obs < self.ends[0]) | (c_obs > self.ends[1])
        near = c_obs.clamp(-1, 1)
        if self.smearing == 0:
            return self.flipped(near), torch.where(outside | (c_obs != near), -torch.inf, 0.0)
        reach = _REACH * self.smearing
        c, weights = legendre(torch.stack([(near - reach).clamp(min=-1), (near + reach).clamp(max=1)], -1), 48)
        weights = weights * self._normal(c_obs[:, None] - c, c_obs - near)
        return (weights[..., None] * self.flipped(c)).sum(-2), self._log_normal(c_obs - near, outside)

    def boost_density(self, y_obs: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Propagators after radiation as seen at y_obs (N,), s (N,): (N, 3) and the logarithm of their factor, (N,).

        Without smearing the factor is f(x) dx / dy / 2; it diverges at y_obs = 0.
        """
        y = y_obs.abs()
        near = y.clamp(max=FARTHEST)
        if self.smearing == 0:
            log_x = torch.log(-torch.expm1(-2 * near))
            factor = log_radiation(log_x, s) - 2 * near
            return propagators(s * torch.exp(-2 * near)), torch.where(y != near, -torch.inf, factor)
        reach = _REACH * self.smearing
        low, high = (near - reach).clamp(min=0), (y + reach).clamp(max=FARTHEST)
        count = max(8, math.ceil(min(2 * reach, FARTHEST) / 0.036))  # the Z is .027 wide in y
        grid = torch.cat([torch.tensor([0, 1 / 16, 1 / 4]), torch.arange(1, count + 1)]).double() / count
        x, energy, weights = radiated(-torch.expm1(-2 * torch.lerp(low[:, None], high[:, None], grid)), s, 16)
        at = -0.5 * torch.log1p(-x)
        other = 1 + torch.exp(-2 * y[:, None] * at / self.smearing**2)  # from the other beam
        weights = weights * self._normal(y[:, None] - at, y - near) * other / 2
        return (weights[..., None, :] @ energy)[..., 0, :], self._log_normal(y - near)

    def rest_density(self, y_obs: Tensor) -> Tensor:
        """log p(y_obs) (*) of a pair at rest; 0 at y_obs = 0 where nothing is smeared."""
        return self._log_normal(y_obs) if self.smearing else torch.where(y_obs == 0, 0.0, -torch.inf)

    def _normal(self, off: Tensor, least: Tensor) -> Tensor:
        """Normal density (N, Q) at distances `off`, over that at the least distance (N,)."""
        return torch.exp((least[:, None] ** 2 - off**2) / (2 * self.smearing**2))

    def _log_normal(self, off: Tensor, outside: Tensor | None = None) -> Tensor:
        value = -0.5 * (off / self.smearing) ** 2 - math.log(self.smearing * _ROOT)
        return value if outside is None else torch.where(outside, -torch.inf, value)
