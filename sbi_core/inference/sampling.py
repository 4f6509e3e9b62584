"""The sampling methods of `infer`: chains, importance sampling, and the direct draws of a posterior flow."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sbi_core.inference.convergence import ENOUGH, Convergence, convergence
from sbi_core.inference.hamilton import PARTICLES, Kernel, advance, propose, refit, temper
from sbi_core.inference.mixture import Mixture
from sbi_core.inference.target import Points, Target

CHAINS, FIRST = 20, 100
"""Chains of each problem, and draws of each before its convergence is looked at for the first time."""

CHEAP, MANY = 128, 1024
"""Jumps to a round of all chains that cost little more than one, and jumps of several rounds valued together."""

RENEWED, REST = 0.95, 4
"""Share of chains that jumps renew in a round, from which on there is a trajectory in every fourth round only."""

ROUNDING = 1e-4
"""Nats by which the weights of draws may differ and count as equal: what single precision leaves."""


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


def chains(target: Target, *, chains: int | None, n: int | None, time_limit: float) -> Drawn:
    """Hamiltonian chains, as long as they need to agree.

    Args:
        target: what is sampled.
        chains: of each problem, 20 by default; of one alone nothing can be said.
        n: draws of each chain; by default until R-hat is at most 1.01 and 400 draws are effective.
        time_limit: seconds; what was drawn by then is returned, and says so.
    """
    until, chains = time.monotonic() + time_limit, chains or CHAINS
    points, kernel = temper(target, max(PARTICLES, chains), until)
    evidence = log_evidence(target, kernel.mixture)
    state = points.take(torch.rand(target.rows, points.u.shape[1]).argsort(1)[:, :chains])
    kept: list[Tensor] = []
    size, flags, fresh = FIRST if n is None else min(n, FIRST), [], chains * FIRST >= PARTICLES
    while True:
        state, late = _advance(target, state, kernel, size - len(kept), kept, until)
        draws = torch.stack([target.theta(u) for u in kept]).permute(2, 0, 1, 3)  # (C, N, R, D)
        found = judged(draws)
        good = found is None or found.good
        if late or (good if n is None else size == n):
            break
        if fresh and not good:
            state, kernel = refit(target, state, kernel, torch.cat(kept, 1))
            kept, size = [], FIRST // 2
        fresh, size = False, 2 * size if n is None else n
    if late:
        flags.append(f"the time limit of {time_limit:g} s ended the chains after {len(kept)} draws each")
    return of_chains(draws, found, evidence, flags)


def judged(draws: Tensor) -> Convergence | None:
    """Whether chains (C, N, R, D) agree; `None` if that cannot be said of so few."""
    return convergence(draws) if draws.shape[0] > 1 and draws.shape[1] >= 8 else None


def of_chains(
    draws: Tensor, found: Convergence | None, evidence: tuple[Tensor, Tensor], flags: Sequence[str] = ()
) -> Drawn:
    """What chains (C, N, R, D) drew, with their verdict and the log evidence, nats (R,), and its error (R,)."""
    said = "unchecked: R-hat needs at least 2 chains of 8 draws" if found is None else f"{len(draws)} chains {found}"
    if found is None or not found.good:
        flags = [*flags, f"the chains cannot be trusted yet: {said}"]
    return Drawn(draws, None, evidence, {"chains": said}, list(flags))


def _advance(
    target: Target, state: Points, kernel: Kernel, rounds: int, kept: list[Tensor], until: float
) -> tuple[Points, bool]:
    """Draw so many rounds more into `kept`, u (R, C, D) each; whether time ran out."""
    chains, every = state.u.shape[1], state.value.numel()
    tries = max(kernel.tries, CHEAP // every)
    together = max(1, MANY // (every * tries))
    rest = REST if kernel.renewed(tries) > RENEWED else 1
    for number in range(rounds):
        if kept and time.monotonic() > until:
            return state, True
        if number % together == 0:
            jumps = propose(target, kernel.mixture, together * tries * chains)
        own = torch.arange(tries * chains) + number % together * tries * chains
        state, _, _ = advance(target, state, kernel, jumps=jumps.take(own), moves=number % rest == 0)
        kept.append(state.u)
    return state, False


def log_evidence(target: Target, mixture: Mixture, n: int = 2000) -> tuple[Tensor, Tensor]:
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
    return _weighted(target.theta(u), log_weight, "importance sampling")


def direct(target: Target, *, n: int | None, time_limit: float, draw: Callable[[int], tuple[Tensor, Tensor]]) -> Drawn:
    """Draws of a posterior flow q, each counting prior * likelihood / q: the same if it was trained on this prior.

    Args:
        target: prior times likelihood, of which the flow's share is q / its proposal.
        n: draws, by default 10,000.
        time_limit: not needed; nothing here is repeated until it fits.
        draw: n -> theta (R, n, D) of q and log q there, nats (R, n).
    """
    theta, log_q = draw(n or 10_000)
    log_weight = (target.log_density(theta) - log_q).nan_to_num(-torch.inf, torch.inf, -torch.inf)
    return _weighted(theta, log_weight, "direct draws")


def _weighted(theta: Tensor, log_weight: Tensor, name: str) -> Drawn:
    """Draws theta (R, n, D) with weights, nats (R, n), and how many of them are effective."""
    n = theta.shape[1]
    least = float(1 / torch.softmax(log_weight, 1).square().sum(1).max())
    said = f"{least:.0f} of {n} draws are effective"
    flags = [] if least >= ENOUGH else [f"{name}: only {said}"]
    equal = float((log_weight.amax(1) - log_weight.amin(1)).max()) < ROUNDING
    kept = None if equal else log_weight.T[None]
    return Drawn(theta.transpose(0, 1)[None], kept, _log_mean(log_weight), {name: said}, flags)
