"""Toys: sets of events drawn at a theta as the experiment would have seen them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.random import SeedSequence
from torch import Tensor
from torch.distributions import Cauchy, Distribution, Laplace, MultivariateNormal, Normal, StudentT

from sbi_core.errors import InputError
from sbi_core.inference.frequentist.maximum import Box, Maximum, climb, information, values
from sbi_core.inference.frequentist.rates import Extended
from sbi_core.inference.frequentist.reweighting import Reweighted
from sbi_core.inference.frequentist.sets import Sets, Toys
from sbi_core.inference.observed import auxiliary
from sbi_core.seeding import torch_generator

ROWS = 200_000
"""Events simulated together."""

TOGETHER, TOYS = 50_000, 10_000
"""Events, and toys, that are read together."""

FINE, SCAN = 1025, 8
"""Thetas at which all toys are looked at: of one parameter where x takes few values; else of each parameter."""

FEW = 2000
"""Events that show how wide the likelihood is."""

GAIN = 1e-5
"""Nats below which a toy's maximum need not be known."""

LOCATIONS = (Normal, MultivariateNormal, StudentT, Laplace, Cauchy)
"""Distributions that say how far a measured value lies from the true one, wherever that is."""


@dataclass(frozen=True)
class Plan:
    """What one toy is.

    Attributes:
        estimator: what reads it.
        box: where theta may be.
        of: columns of the parameters of interest.
        events: independent events in it; of one `Events` run the whole run is one.
        design: (K,), or one for each event, (n, K).
        poisson: draws the number of events anew, if there is a rate.
        constraints: auxiliary measurements, which are drawn anew as well.
        simulator: draws events; `None` if only stored ones are used.
        source: stored simulations to draw events from instead.
    """

    estimator: Any
    box: Box
    of: tuple[int, ...]
    events: int
    design: Tensor | None = None
    poisson: Extended | None = None
    constraints: Mapping[Any, Distribution] | None = None
    simulator: Any = None
    source: Reweighted | None = None

    def check(self) -> None:
        """Raise `InputError` if toys cannot be drawn."""
        if self.simulator is None and self.source is None:
            raise InputError("toys need simulator=..., or rows=... with simulations to reweight.")
        if self.source is not None:
            self.source.check(self.design)
        for name, measured in (self.constraints or {}).items():
            if not isinstance(measured, LOCATIONS):
                raise InputError(
                    f"constraints: toys draw the auxiliary measurement of {name!r} anew, which needs a distribution of "
                    f"a distance ({', '.join(d.__name__ for d in LOCATIONS)}), got {type(measured).__name__}."
                )

    def draw(self, theta: Tensor, n: int) -> Toys:
        """n toys at theta (D,), from torch's global random state."""
        if self.poisson is None:
            count = torch.full((n,), self.events)
        else:
            count = torch.poisson(self.poisson.mean(theta).expand(n)).long()
        index = torch.repeat_interleave(torch.arange(n), count)
        design = self.design if self.design is None or self.design.ndim == 1 else self.design.repeat(n, 1)
        if self.source is not None:
            x, seen = self.source.events(theta, len(index)), None
        else:
            x, seen = self._simulate(theta, len(index), design)
        return Toys(x, index, n, design, seen, shift=self._measured_anew(theta, n))

    def _simulate(self, theta: Tensor, total: int, design: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """x (E, *event) and, of runs, their numbers of events (E,)."""
        generator = torch_generator(SeedSequence(int(torch.randint(2**62, ()))))
        rows = max(total, 1)  # of no events the shape is needed
        designs = None if design is None else design.expand(rows, -1)
        parts, counts = list[Tensor](), list[Tensor]()
        for start in range(0, rows, ROWS):
            some = slice(start, min(start + ROWS, rows))
            setting = None if designs is None else designs[some]
            x, z = self.simulator.sample(theta.expand(some.stop - start, -1), setting, generator)
            if not bool(torch.isfinite(x).all()):
                raise InputError(f"toys: simulator '{self.simulator.name}' failed (NaN) at theta = {theta.tolist()}.")
            parts.append(x)
            if getattr(self.estimator, "needs_n_events", False):
                counts.append(self.simulator.count(z))
        return torch.cat(parts)[:total], torch.cat(counts)[:total] if counts else None

    def _measured_anew(self, theta: Tensor, n: int) -> tuple[Tensor, ...]:
        """How far n further auxiliary measurements lie from the ones that were made."""
        axes = getattr(self.estimator, "axes", None) or self.estimator.parameters
        found = auxiliary(self.constraints, axes)
        return tuple(theta[columns] - measured.sample(torch.Size([n])).double() for columns, measured in found)

    def read(self, toys: Toys) -> Sets:
        """The log likelihoods of toys."""
        return Sets(self.estimator, toys, poisson=self.poisson, constraints=self.constraints)

    def size(self, theta: Tensor) -> float:
        """Expected number of events in a toy at theta (D,), at least 1."""
        return max(1.0, float(self.events) if self.poisson is None else float(self.poisson.mean(theta)))


@dataclass(frozen=True)
class Statistics:
    """What R toys say about psi at which they were made.

    Attributes:
        q: -2 [max_nu log L(psi, nu) - max log L], (R,).
        estimate: best fit of the parameters of interest, (R, k).
    """

    q: Tensor
    estimate: Tensor


def toy_statistics(plan: Plan, theta: Tensor, n: int) -> Statistics:
    """Draw n toys at theta (D,) and compare theta's parameters of interest with the best fit of each."""
    covariance, parts, done = _typical_covariance(plan, theta), list[Statistics](), 0
    together = max(1, min(TOYS, int(TOGETHER / plan.size(theta))))
    while done < n:
        some = min(n - done, together)
        parts.append(statistics(plan, plan.read(plan.draw(theta, some)), theta, covariance))
        done += some
    return Statistics(torch.cat([p.q for p in parts]), torch.cat([p.estimate for p in parts]))


def statistics(plan: Plan, sets: Sets, theta: Tensor, covariance: Tensor | None = None) -> Statistics:
    """The likelihood ratio of theta's parameters of interest, theta (D,), to the best fit of each set.

    Args:
        plan: of which the sets are.
        sets: what is judged.
        theta: (D,).
        covariance: of the best fits, (D, D), if known: it saves steps.
    """
    of, dims = list(plan.of), len(theta)
    at_psi = sets.shared(theta[None])[:, 0]
    if dims == 1 and sets.counted:
        best = _on_a_line(sets, plan.box)
    else:
        options: dict[str, Any] = {"at_once": sets.at_once, "covariance": covariance, "gain": GAIN}
        points = torch.cat([theta[None], plan.box.spread(SCAN * dims)])
        start = points[sets.shared(points).argmax(1)][:, None]
        best = climb(sets, start, plan.box, **options)
        if len(of) < dims:
            start = torch.stack([theta.expand(sets.rows, -1), best.theta[:, 0]], 1)
            start[..., of] = theta[of]
            first = Maximum(start, values(sets, start, sets.at_once)).best().theta
            at_psi = climb(sets, first, plan.box, fixed=of, **options).value[:, 0]
    top = torch.maximum(best.value[:, 0], at_psi)
    return Statistics((2 * (top - at_psi)).clamp(min=0.0), best.theta[:, 0, of])


def _typical_covariance(plan: Plan, theta: Tensor) -> Tensor | None:
    """Inverse of the mean information of a few toys at theta (D,), (D, D); `None` if there is none."""
    sets = plan.read(plan.draw(theta, max(1, int(FEW / plan.size(theta)))))
    if len(theta) == 1 and sets.counted:
        return None

    def mean(at: Tensor) -> Tensor:
        return sets(at.expand(sets.rows, -1, -1)).mean(0, keepdim=True)

    matrix = information(mean, theta, plan.box)
    return torch.linalg.inv(matrix) if bool((torch.linalg.eigvalsh(matrix) > 0).all()) else None


def _on_a_line(sets: Sets, box: Box) -> Maximum:
    """The best fit of one parameter from a fine table and a parabola through the three highest points, (R, 1, 1)."""
    line = torch.linspace(float(box.low[0]), float(box.high[0]), FINE).double()
    gap = line[1] - line[0]
    value = sets.shared(line[:, None])
    top = value.argmax(1, keepdim=True)
    middle = top.clamp(1, FINE - 2)
    left, here, right = (value.gather(1, middle + k) for k in (-1, 0, 1))
    bend = left + right - 2 * here
    bent = bend < 0
    away = torch.where(bent, (left - right) / (2 * torch.where(bent, bend, 1.0)), top - middle).clamp(-1.0, 1.0)
    peak = here + away * (right - left) / 2 + away**2 * bend / 2
    at = line[middle] + away * gap
    usable = peak.isfinite() & (peak >= value.gather(1, top))
    at, peak = torch.where(usable, at, line[top]), torch.where(usable, peak, value.gather(1, top))
    found = Maximum(at[..., None], peak)
    if bool((bend < -0.04).any()):  # too narrow for the table
        again = climb(sets, found.theta, box, at_once=sets.at_once)
        found = Maximum(torch.cat([found.theta, again.theta], 1), torch.cat([found.value, again.value], 1)).best()
    return found
