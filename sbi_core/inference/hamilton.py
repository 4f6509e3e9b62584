"""Hamiltonian Monte Carlo for many chains of many problems at once, from a population tempered out of the prior.

The population (sequential Monte Carlo, Del Moral, Doucet & Jasra 2006) finds the posterior from anywhere in the prior,
in all its modes, and says how wide it is, so that chains start where they belong and need no other warm-up. The chains
(Duane et al. 1987; Neal, arXiv:1206.1901) then move by trajectories of random length, and every round propose to jump
to draws of a mixture fitted to the population: only jumps give separated modes their weights.
"""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from sbi_core.errors import InputError
from sbi_core.inference.mixture import Mixture, centre_and_factor
from sbi_core.inference.target import Points, Target

PARTICLES, CANDIDATES = 512, 8
"""Population of each problem, at least, and times as many draws of the prior at the start."""

ROUNDS, LAST_ROUNDS, REFIT = 2, 20, 5
"""Rounds at each heat and at the end, and how many there lie between two fits of the kernel."""

ACCEPTED = 0.8
"""Share of trajectories that the step size aims to have accepted."""

PARTS, SETTLING = 20, 10
"""Parts of a mixture that is fitted to draws of chains, and rounds that tune the rest of the kernel then."""

TRIES = 5
"""Jumps to a round of chains, at most."""

LENGTH, LEAPS = math.pi / 2, (3, 32)
"""Length of a trajectory in units of the posterior's width; its steps at most where jumps are easy, and at all."""


@dataclass(frozen=True)
class Kernel:
    """How chains move: a jump to the mixture, then a trajectory.

    Attributes:
        mixture: fitted to a population.
        factor: of the population's covariance of u, (R, D, D).
        step: step size of trajectories in units of it, (R, 1).
        jumps: share of the jumps that were accepted, (R,).
    """

    mixture: Mixture
    factor: Tensor
    step: Tensor
    jumps: Tensor

    @property
    def leaps(self) -> int:
        """Steps of a trajectory: for `LENGTH`, but about as many as two accepted jumps cost, in the middle problem."""
        needed, worth = LENGTH / float(self.step.median()), 2 / max(float(self.jumps.median()), 1e-9)
        return math.ceil(min(needed, max(worth, LEAPS[0]), LEAPS[1]))

    @property
    def tries(self) -> int:
        """Jumps to a round: for one that is accepted, in the middle problem."""
        return max(1, min(round(1 / max(float(self.jumps.median()), 1e-9)), TRIES))

    def renewed(self, tries: int) -> float:
        """Share of chains that so many jumps renew, in the worst problem."""
        return 1 - float((1 - self.jumps.clamp(0, 1)).max()) ** tries

    def refitted(self, points: Points) -> "Kernel":
        """The same step size for another population."""
        return Kernel(Mixture(points.u), centre_and_factor(points.u)[1], self.step, self.jumps)

    def tuned(self, jumps: Tensor, accepted: Tensor) -> "Kernel":
        """Take note of acceptances (R,) of the last round: the step size moves towards the wanted one."""
        change = (1.5 * (accepted - ACCEPTED)).clamp(-0.7, 0.3)
        step = (self.step * change[:, None].exp()).clamp(1e-6, 1.8)
        return Kernel(self.mixture, self.factor, step, 0.8 * self.jumps + 0.2 * jumps)


class OutOfTime(InputError):
    """The time limit came before there was anything to report."""


def temper(target: Target, particles: int, until: float) -> tuple[Points, Kernel]:
    """A population at the posterior, (R, particles, D), and the kernel that fits it.

    From draws of the prior through prior * L^heat; each heat is such that half the population counts.

    Args:
        target: what is sampled.
        particles: of each problem.
        until: the time (`time.monotonic`) at which to give up.

    Raises:
        OutOfTime: with the heat that was reached.
        InputError: if the likelihood is zero, or not a number, in all draws of the prior.
    """
    points = target(target.draw(CANDIDATES * particles), 0.0)
    if not points.value.isfinite().any(1).all():
        raise InputError("the likelihood of x_obs is zero, or not a number, everywhere in the prior.")
    rows, dims = target.rows, points.u.shape[-1]
    heat = torch.zeros(rows, 1, dtype=torch.float64)
    kernel: Kernel | None = None
    while bool((heat < 1).any()):
        if time.monotonic() > until:
            raise OutOfTime(
                f"infer: the time limit came at heat {float(heat.min()):.2g} of 1 on the way from the prior to the "
                "posterior. Raise time_limit, or lower the number of chains."
            )
        rise = _rise(points.value, 1 - heat, particles // 2)
        heat = torch.where(heat + rise > 1 - 1e-9, 1.0, heat + rise)
        points = points.take(_resampled(torch.softmax(rise * points.value, 1), particles))
        points = target(points.u, heat)  # slopes at the new heat
        if kernel is None:
            step = torch.full((rows, 1), dims**-0.25, dtype=torch.float64)
            kernel = Kernel(Mixture(points.u), centre_and_factor(points.u)[1], step, torch.full((rows,), 0.2))
        else:
            kernel = kernel.refitted(points)
        for _ in range(ROUNDS):
            points, kernel = _tuned_round(target, points, kernel, heat)
    assert kernel is not None
    for k in range(LAST_ROUNDS):
        kernel = kernel.refitted(points) if k % REFIT == 0 else kernel
        points, kernel = _tuned_round(target, points, kernel, 1.0)
    return points, kernel.refitted(points)


def refit(target: Target, points: Points, kernel: Kernel, u: Tensor) -> tuple[Points, Kernel]:
    """Learn from what chains at points (R, C, D) drew, u (R, N, D); these draws must not be kept."""
    kernel = Kernel(Mixture(u, components=PARTS), centre_and_factor(u)[1], kernel.step, kernel.jumps)
    for _ in range(SETTLING):
        points, kernel = _tuned_round(target, points, kernel, 1.0)
    return points, kernel


def _tuned_round(target: Target, points: Points, kernel: Kernel, heat: Tensor | float) -> tuple[Points, Kernel]:
    points, jumps, accepted = advance(target, points, kernel, heat)
    return points, kernel.tuned(jumps, accepted)


def advance(
    target: Target,
    points: Points,
    kernel: Kernel,
    heat: Tensor | float = 1.0,
    *,
    jumps: "Jumps | None" = None,
    moves: bool = True,
) -> tuple[Points, Tensor, Tensor]:
    """One round of every chain, jumps and a trajectory: points (R, C, D), and acceptances (R,) of the two.

    That the kernel was fitted to the population that it moves is of no account for the population's shape, and for
    chains it is fixed.

    Args:
        target: what is sampled.
        points: where the chains are.
        kernel: how they move.
        heat: (R, 1).
        jumps: a multiple of C, by default C new ones.
        moves: whether there is a trajectory.
    """
    jumps = jumps or propose(target, kernel.mixture, points.u.shape[1], heat)
    points, share = _jump(points, kernel.mixture, jumps, heat)
    if not moves:
        return points, share, torch.zeros_like(share)
    points, accepted = _trajectory(target, points, kernel, heat)
    return points, share, accepted


@dataclass(frozen=True)
class Jumps:
    """Draws of the mixture, wherever the chains are; so those of many rounds can be valued together.

    Attributes:
        points: (R, N, D).
        weight: log of target over mixture there, nats (R, N).
    """

    points: Points
    weight: Tensor

    def take(self, index: Tensor) -> "Jumps":
        """Those at index (n,)."""
        index = index.expand(len(self.weight), -1)
        return Jumps(self.points.take(index), self.weight.gather(1, index))


def propose(target: Target, mixture: Mixture, n: int, heat: Tensor | float = 1.0) -> Jumps:
    """Draw and value n jumps for each problem."""
    points = target(mixture.sample(n), heat)
    return Jumps(points, _weight(points, mixture, heat))


def _weight(points: Points, mixture: Mixture, heat: Tensor | float) -> Tensor:
    return points.before + heat * points.value - mixture.log_prob(points.u)


def _trajectory(target: Target, points: Points, kernel: Kernel, heat: Tensor | float) -> tuple[Points, Tensor]:
    """Leapfrog in coordinates in which the posterior has unit width, by steps of random size."""
    leaps = kernel.leaps
    size = torch.minimum(kernel.step, torch.tensor(LENGTH / leaps)) * (0.5 + 0.5 * torch.rand(kernel.step.shape))
    size = size[..., None]  # (R, 1, 1)
    momentum = torch.randn_like(points.u)
    at, here = points, _energy(points, momentum, heat)
    push = size * (at.slope @ kernel.factor)
    for _ in range(leaps):
        momentum = momentum + push / 2
        at = target(at.u + size * (momentum @ kernel.factor.mT), heat)
        push = size * (at.slope @ kernel.factor)
        momentum = momentum + push / 2
    accepted, chance = _accepted(here - _energy(at, momentum, heat))
    return points.where(accepted, at), chance


def _jump(points: Points, mixture: Mixture, jumps: Jumps, heat: Tensor | float) -> tuple[Points, Tensor]:
    """Independence Metropolis, C of the jumps at a time."""
    here, share = _weight(points, mixture, heat), torch.zeros(len(points.u), dtype=torch.float64)
    parts = torch.arange(jumps.weight.shape[1]).split(points.u.shape[1])
    for index in parts:
        new = jumps.take(index)
        accepted, chance = _accepted(new.weight - here)
        points, here = points.where(accepted, new.points), torch.where(accepted, new.weight, here)
        share += chance / len(parts)
    return points, share


def _accepted(log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Metropolis: which proposals (R, C) are accepted, and the mean probability (R,) of that."""
    log_ratio = log_ratio.nan_to_num(-torch.inf, torch.inf, -torch.inf).clamp(max=0.0)
    return torch.rand_like(log_ratio).log() < log_ratio, log_ratio.exp().mean(1)


def _energy(points: Points, momentum: Tensor, heat: Tensor | float) -> Tensor:
    return momentum.square().sum(-1) / 2 - points.before - heat * points.value


def _rise(value: Tensor, most: Tensor, wanted: float) -> Tensor:
    """The largest rises in heat (R, 1), up to `most`, after which at least `wanted` of the points (R, N) count."""

    def effective(rise: Tensor) -> Tensor:
        weight = torch.softmax(rise * value, 1)
        return 1 / weight.square().sum(1, keepdim=True)

    value = value.clamp(min=float(value[value.isfinite()].min()) - 1e3) if not value.isfinite().all() else value
    low, high = torch.zeros_like(most), most.clone()
    for _ in range(50):
        middle = torch.where(effective(high) >= wanted, high, (low + high) / 2)
        good = effective(middle) >= wanted
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return torch.maximum(low, torch.minimum(most, torch.tensor(1e-9)))


def _resampled(weight: Tensor, n: int) -> Tensor:
    """Systematic resampling: n indices for each problem, (R, n), in random order."""
    at = (torch.arange(n, dtype=torch.float64) + torch.rand(len(weight), 1, dtype=torch.float64)) / n
    found = torch.searchsorted(weight.cumsum(1), at).clamp(max=weight.shape[1] - 1)
    return found.gather(1, torch.rand(found.shape).argsort(1))
