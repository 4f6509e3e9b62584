"""The sampling methods of `infer`: chains, importance sampling, and the direct draws of a posterior flow."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbi_core.inference.convergence import ENOUGH, convergence
from sbi_core.inference.hamilton import PARTICLES, Kernel, advance, temper
from sbi_core.inference.mixture import Mixture
from sbi_core.inference.target import Points, Target

FIRST = 100
"""Draws of each chain before its convergence is looked at for the first time."""


@dataclass(frozen=True)
class Drawn:
    """What a method found.

    Attributes:
        theta: (C, N, R, D).
        log_weight: (C, N, R), or `None`.
        log_evidence: log of the integral of prior times likelihood, nats (R,), and its standard error (R,).
        verdicts: what was checked.
        flags: what a careful reader should know.
    """

    theta: Tensor
    log_weight: Tensor | None
    log_evidence: tuple[Tensor, Tensor]
    verdicts: dict[str, str] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)


def chains(target: Target, *, chains: int, n: int | None, time_limit: float) -> Drawn:
    """Hamiltonian chains, as long as they need to agree.

    Args:
        target: what is sampled.
        chains: of each problem; of one alone nothing can be said.
        n: draws of each chain; by default until R-hat is at most 1.01 and 400 draws are effective.
        time_limit: seconds; what was drawn by then is returned, and says so.
    """
    until = time.monotonic() + time_limit
    points, kernel = temper(target, max(PARTICLES, chains), until)
    log_evidence = evidence(target, kernel.mixture)
    state = points.take(torch.rand(target.rows, points.u.shape[1]).argsort(1)[:, :chains])
    kept: list[Tensor] = []
    size, flags = FIRST if n is None else n, []
    while True:
        state, late = _advance(target, state, kernel, size - len(kept), kept, until)
        draws = torch.stack(kept).permute(2, 0, 1, 3)  # (C, N, R, D)
        found = convergence(draws) if chains > 1 and len(kept) >= 8 else None
        if late or n is not None or found is None or found.good:
            break
        size *= 2
    if late:
        flags.append(f"the time limit of {time_limit:g} s ended the chains after {len(kept)} draws each")
    said = "unchecked: R-hat needs at least 2 chains of 8 draws" if found is None else f"{chains} chains {found}"
    if found is None or not found.good:
        flags.append(f"the chains cannot be trusted yet: {said}")
    return Drawn(draws, None, log_evidence, {"chains": said}, flags)


def _advance(
    target: Target, state: Points, kernel: Kernel, rounds: int, kept: list[Tensor], until: float
) -> tuple[Points, bool]:
    """Draw so many rounds more into `kept`, theta (R, C, D) each; whether time ran out."""
    for _ in range(rounds):
        if kept and time.monotonic() > until:
            return state, True
        state, _, _ = advance(target, state, kernel)
        kept.append(target.theta(state.u))
    return state, False


def evidence(target: Target, mixture: Mixture, n: int = 2000) -> tuple[Tensor, Tensor]:
    """log of the mean of target over mixture, by n draws: nats (R,) and its standard error (R,)."""
    log_weight = _log_weight(target, mixture, n)[1]
    return _log_mean(log_weight)


def _log_mean(log_weight: Tensor) -> tuple[Tensor, Tensor]:
    n = log_weight.shape[1]
    top = log_weight.amax(1, keepdim=True)
    part = (log_weight - top).exp()
    mean = part.mean(1)
    return mean.log() + top[:, 0], part.std(1) / n**0.5 / mean


def _log_weight(target: Target, mixture: Mixture, n: int) -> tuple[Tensor, Tensor]:
    """n draws u (R, n, D) of the mixture and what each must count, nats (R, n)."""
    u = mixture.sample(n)
    at = target(u)
    return u, (at.before + at.value - mixture.log_prob(u)).nan_to_num(-torch.inf, torch.inf, -torch.inf)


def importance(target: Target, *, n: int | None, time_limit: float) -> Drawn:
    """Importance sampling from a mixture fitted to a tempered population: weighted, independent draws."""
    n = n or 10_000
    points, _ = temper(target, PARTICLES, time.monotonic() + time_limit)
    u, log_weight = _log_weight(target, Mixture(points.u), n)
    weight = torch.softmax(log_weight, 1)
    effective = 1 / weight.square().sum(1)
    least = float(effective.min())
    said = f"{least:.0f} of {n} draws are effective"
    flags = [] if least >= ENOUGH else [f"importance sampling: only {said}"]
    theta = target.theta(u).permute(1, 0, 2)[None]
    return Drawn(theta, log_weight.T[None], _log_mean(log_weight), {"importance sampling": said}, flags)


METHODS: dict[str, Callable[..., Drawn]] = {"hmc": chains, "importance": importance}
