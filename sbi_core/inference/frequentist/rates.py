"""How many events there are says something too: the extended likelihood."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import torch
from torch import Tensor

from sbi_core.columns import to_column
from sbi_core.errors import InputError
from sbi_core.parameters import Parameter

Rate = Callable[[Tensor, Tensor | None], Tensor]
"""theta (*, D), design (K,) or `None` -> expected events per unit of exposure, (*)."""


@dataclass(frozen=True)
class Extended:
    """log of the Poisson probability of n events, n log mu - mu with mu = exposure * rate(theta, design).

    Barlow, Nucl. Instrum. Meth. A 297 (1990) 496.

    Attributes:
        rate: expected events per unit of exposure.
        exposure: luminosity, time, or whatever multiplies the rate.
        design: of all events.
    """

    rate: Rate
    exposure: float
    design: Tensor | None = None

    def mean(self, theta: Tensor) -> Tensor:
        """Expected number of events at theta (*, D), (*)."""
        return self.exposure * self.rate(theta, self.design).to(torch.float64)

    def __call__(self, theta: Tensor, count: Tensor) -> Tensor:
        """Nats (R, G) at theta (R, G, D) for numbers of events count (R, 1)."""
        mean = self.mean(theta)
        return count * mean.clamp(min=1e-300).log() - mean


def extended(estimator: Any, simulator: Any, rate: Any, exposure: float, design: Tensor | None) -> Extended | None:
    """The Poisson term for `rate`: `None` for no such term, `True` for the simulator's, or a function.

    Raises:
        InputError: if there is no rate to take, or the term is counted already.
    """
    if rate is None or rate is False:
        return None
    if getattr(estimator, "needs_n_events", False):
        raise InputError(f"rate: {type(estimator).__name__} reads whole runs, whose likelihood counts events already.")
    if not exposure > 0:
        raise InputError(f"exposure = {exposure}: expected a positive number.")
    if design is not None and design.ndim > 1:
        raise InputError("rate: all events must have the same design, (K,).")
    if rate is not True:
        if not callable(rate):
            raise InputError(f"rate = {rate!r}: expected True, or a function rate(theta, design).")
        return Extended(rate, exposure, design)
    owner = next((one for one in (simulator, estimator) if hasattr(one, "rate")), None)
    if owner is None:
        raise InputError("rate=True needs a simulator with rate(theta, design); or give a function, see fit_rate.")
    return Extended(owner.rate, exposure, design)


@dataclass(frozen=True)
class FittedRate:
    """exp of a polynomial in theta, fitted to numbers of events by `fit_rate`; call it with (theta, design).

    Attributes:
        centre: middle of the range of theta, (D,).
        half: half of its width, (D,).
        powers: which axes multiply in each term.
        coefficients: (T,).
        covariance: (T, T).
        verdict: whether the polynomial describes the numbers.
        good: whether the deviance is in its band; `None` if nothing can be said.
    """

    centre: Tensor
    half: Tensor
    powers: tuple[tuple[int, ...], ...]
    coefficients: Tensor
    covariance: Tensor
    verdict: str
    good: bool | None

    def __call__(self, theta: Tensor, design: Tensor | None = None) -> Tensor:
        """Events per unit of exposure at theta (*, D), (*)."""
        return (self._terms(theta) @ self.coefficients).exp()

    def log_error(self, theta: Tensor) -> Tensor:
        """Standard error of the log rate at theta (*, D), (*)."""
        terms = self._terms(theta)
        return ((terms @ self.covariance) * terms).sum(-1).sqrt()

    def _terms(self, theta: Tensor) -> Tensor:
        return _terms((theta.to(torch.float64) - self.centre) / self.half, self.powers)


def _terms(unit: Tensor, powers: Sequence[tuple[int, ...]]) -> Tensor:
    """Products of the columns of unit (*, D) that powers name, (*, T)."""
    return torch.stack(
        [math.prod((unit[..., k] for k in axes), start=torch.ones_like(unit[..., 0])) for axes in powers], -1
    )


def fit_rate(
    theta: Any, count: Any, *, parameters: Sequence[Parameter], exposure: float = 1.0, degree: int = 2
) -> FittedRate:
    """Fit log rate(theta) = a polynomial to Poisson numbers of events.

    Maximum likelihood by Newton's method (a Poisson regression with logarithmic link, concave in the coefficients).

    Args:
        theta: (N, D).
        count: events seen at each theta, (N,).
        parameters: the D axes.
        exposure: what one unit of the count stands for.
        degree: of the polynomial.

    Raises:
        InputError: for too few rows, or numbers that are no counts.
    """
    at, seen = to_column("theta", theta), to_column("count", count).to(torch.float64)
    powers = tuple(p for k in range(degree + 1) for p in combinations_with_replacement(range(len(parameters)), k))
    if at.ndim != 2 or at.shape[1] != len(parameters) or seen.shape != at.shape[:1] or len(at) < len(powers):
        raise InputError(
            f"fit_rate: theta {tuple(at.shape)} and count {tuple(seen.shape)}, expected (N, {len(parameters)}) and "
            f"(N,) with N at least {len(powers)} for degree {degree}."
        )
    if bool((seen < 0).any()) or bool((seen != seen.round()).any()) or not bool(seen.sum() > 0):
        raise InputError("fit_rate: count holds values that are no numbers of events, or none at all.")
    ends = torch.tensor([[p.low, p.high] for p in parameters], dtype=torch.float64)
    centre, half = ends.mean(1), (ends[:, 1] - ends[:, 0]) / 2
    terms = _terms((at - centre) / half, powers)
    solve = torch.linalg.solve
    weight = seen + 0.5
    coefficients = solve((terms.T * weight) @ terms, terms.T @ (weight * (weight / exposure).log()))
    for _ in range(50):
        mean = exposure * (terms @ coefficients).exp()
        change = solve((terms.T * mean) @ terms, terms.T @ (seen - mean))
        coefficients = coefficients + change
        if float(change.abs().max()) < 1e-12:
            break
    mean = exposure * (terms @ coefficients).exp()
    good, verdict = _goodness(seen, mean, len(powers))
    return FittedRate(centre, half, powers, coefficients, torch.linalg.inv((terms.T * mean) @ terms), verdict, good)


def _goodness(seen: Tensor, mean: Tensor, terms: int) -> tuple[bool | None, str]:
    """Pearson's chi-squared in its 4-sigma band; its spread is that of Poisson numbers, sqrt(sum(2 + 1 / mean))."""
    spare = len(seen) - terms
    if spare < 5:
        return None, f"unchecked: {spare} numbers of events beyond the {terms} terms of the polynomial"
    chi2 = float(((seen - mean) ** 2 / mean).sum())
    z = (chi2 - spare) / float((2 + 1 / mean).sum().sqrt())
    said = f"chi-squared {chi2:.1f} for {spare} degrees of freedom"
    return abs(z) < 4, said if abs(z) < 4 else f"the polynomial does not describe the numbers of events: {said}"
