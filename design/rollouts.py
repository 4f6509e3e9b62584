"""Experiments rolled out at one design, each seen by every theta of an inner set: the sums that all gains read."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.campaign import simulate
from sbi_core.design.belief import points
from sbi_core.design.readers import AT_ONCE, WIDE, Reader, check_same
from sbi_core.errors import InputError
from sbi_core.priors import check_prior
from sbi_core.seeding import one_thread
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator

BLOCKS = 16
"""Parts of the inner set, whose differences tell what error it brings."""

ENOUGH = 20
"""Experiments for each control variate, below which its slope is too uncertain."""

WORSE = 0.7
"""Control variates are given up if the error without them is less than this part of that with them.

Of two errors that are much the same the smaller is not the better: it is rather the one found too small.
"""

SEVERAL = 8
"""Experiments, all with the same x, at which a design is said to teach nothing."""

Term = Callable[[Tensor, Tensor, int], Tensor]
"""log sum_l p (M,), posterior mean of log p, theta and theta^2 (M, 1 + 2 D), L -> (M,)."""


@dataclass(frozen=True)
class Rollouts:
    """M experiments and L thetas, in B blocks, of the same belief.

    Attributes:
        theta: what made each experiment, (M, D).
        rows: the experiments.
        own: log p(x_m | theta_m), nats (M,).
        log_sum: log of the sum over a block of p(x_m | theta_l), nats (M, B).
        mean: under weights p(x_m | theta_l) in a block, of log p, theta and theta^2, (M, B, 1 + 2 D).
        log_square: log of the sum over a block of p^2, nats (M, B).
        before: mean of theta and theta^2 over a block, (B, 2 D).
        inner: thetas in all, L.
        evaluations: log densities evaluated.
        seconds: wall time.
    """

    theta: Tensor
    rows: Simulations
    own: Tensor
    log_sum: Tensor
    mean: Tensor
    log_square: Tensor
    before: Tensor
    inner: int
    evaluations: int
    seconds: float

    def without(self, block: int | None = None) -> tuple[Tensor, Tensor, int]:
        """log sum_l p (M,), posterior mean of log p, theta and theta^2 (M, 1 + 2 D), L; one block left out if asked."""
        kept = [b for b in range(self.log_sum.shape[1]) if b != block]
        log_sum = self.log_sum[:, kept]
        whole = log_sum.logsumexp(1)
        weight = (log_sum - whole[:, None]).exp()
        mean = (weight[..., None] * self.mean[:, kept]).nan_to_num().sum(1)
        return whole, mean, self.inner * len(kept) // self.log_sum.shape[1]

    def estimate(
        self, term: Term, *, drawn: bool = True, corrected: bool = False, controlled: bool = False
    ) -> tuple[float, float]:
        """Mean over the experiments of a term, and its standard error, from both sets of thetas.

        The inner set is common to all experiments, so its error does not average out over them: it is found by the
        jackknife over blocks, and added to that of the mean over experiments. Of evenly spread thetas both are rather
        too large. An experiment that a single block explains has no jackknife, and is left at its term.

        Args:
            term: what is averaged.
            drawn: whether the experiments are draws, and not all that there are.
            corrected: whether to take off the bias of order 1 / L, as the jackknife knows it (Quenouille, Biometrika 43
                (1956) 353). Not for bounds, which it would no longer be.
            controlled: whether to take off what the term shares with the posterior means of theta and theta^2, whose
                average over experiments is known: the belief's own, if f is right (see `balance`). Control variates
                with slopes from the same experiments, whose bias is of order 1 / M; not where L is far below M, which
                they make worse.

        Raises:
            InputError: for a term that is not finite.
        """
        each = term(*self._parts[0])
        if bad := int((~torch.isfinite(each)).sum()):
            raise InputError(
                f"EIG bound: {bad} of {len(each)} terms are not finite. By the log density none of the inner thetas "
                "could have made these x (raise inner), or not even their own."
            )
        left = [torch.where(value.isfinite(), value, each) for value in (term(*part) for part in self._parts[1:])]
        plain = _jackknifed([(value, None) for value in (each, *left)], drawn, corrected)
        if not controlled or len(each) < ENOUGH * self.before.shape[1]:
            return plain
        better = _jackknifed(list(zip((each, *left), self._off, strict=True)), drawn, corrected)
        return plain if plain[1] < WORSE * better[1] else better

    def balance(self) -> float:
        """p-value of "posterior means of theta and theta^2 average to the belief's own": below 1e-4, f is wrong.

        Hotelling's T^2, as chi-squared, with the errors of both sets of thetas.
        """
        off, left = self._off[0], torch.stack([part.mean(0) for part in self._off[1:]])
        scale = off.std(0).clamp(min=1e-300)
        off, left = off / scale, left / scale
        inner = (len(left) - 1) * torch.cov(left.T, correction=0)
        spread, mean = torch.atleast_2d(torch.cov(off.T) / len(off) + inner), off.mean(0)
        statistic = float(mean @ torch.linalg.pinv(spread, rtol=1e-9, hermitian=True) @ mean)
        return float(torch.special.gammaincc(torch.tensor(off.shape[1] / 2), torch.tensor(statistic / 2)))

    @cached_property
    def _parts(self) -> list[tuple[Tensor, Tensor, int]]:
        """`without` no block, and each."""
        return [self.without(block) for block in (None, *range(len(self.before)))]

    @cached_property
    def _off(self) -> list[Tensor]:
        """Posterior means of theta and theta^2 less those of the belief, (M, 2 D), without no block, and each."""
        before = [self.before.mean(0), *((self.before.sum(0) - self.before) / (len(self.before) - 1))]
        return [part[1][:, 1:] - mean for part, mean in zip(self._parts, before, strict=True)]

    def effective(self) -> float:
        """How many thetas of the inner set matter to an experiment, in the harmonic mean: (sum p)^2 / sum p^2.

        One over it is what the bias of posteriors goes with (Kong, Liu & Wong, JASA 89 (1994) 278).
        """
        return float(1 / (self.log_square.logsumexp(1) - 2 * self.log_sum.logsumexp(1)).exp().mean())


def roll(
    read: Reader,
    simulator: Simulator,
    prior: Distribution,
    design: Any,
    *,
    n: int,
    inner: int,
    seed: int,
) -> Rollouts:
    """Simulate n experiments at a design, their thetas spread over the belief, and see them with `inner` other thetas.

    One seed gives the same thetas and the same stream of random numbers at every design.

    Raises:
        InputError: for fewer than 2 experiments, a prior of other parameters, or rows that are not finite.
    """
    if n < 2:
        raise InputError(f"n = {n}: expected at least 2 experiments.")
    started = time.monotonic()
    others = inner_set(simulator, prior, inner, seed)
    return see(read, experiments(simulator, points(prior, n, seed), design, seed), others, started)


def inner_set(simulator: Simulator, prior: Distribution, inner: int, seed: int) -> Tensor:
    """Thetas (L, D) of the belief to see experiments with, L the largest multiple of `BLOCKS` up to inner.

    Raises:
        InputError: for a prior of other parameters, or too small a set.
    """
    check_prior(prior, simulator.parameters)
    check_same("parameters of the prior", getattr(prior, "parameters", ()), simulator.parameters)
    if inner < 2 * BLOCKS:
        raise InputError(f"inner = {inner}: expected at least {2 * BLOCKS} thetas.")
    return points(prior, inner - inner % BLOCKS, seed, 1)


def experiments(simulator: Simulator, theta: Tensor, design: Any, seed: int) -> Simulations:
    """One experiment at each theta (M, D), all at a design (K,), or at one each (M, K).

    Raises:
        InputError: if some row is not finite, or all are the same.
    """
    at = None if design is None else torch.as_tensor(design, dtype=torch.float64)
    rows: Simulations = simulate(simulator, len(theta), proposal=theta, design=at, seed=seed, progress=False)
    if bad := int((rows.status != 1).sum()):
        raise InputError(f"{bad} of {len(rows)} experiments are NaN or infinite.")
    seen = [column for column in (rows.x, rows.n_events) if column is not None]
    if len(rows) >= SEVERAL and (at is None or at.ndim == 1) and all(bool((c == c[0]).all()) for c in seen):
        raise InputError(f"x is the same in all {len(rows)} experiments at this design: it teaches nothing.")
    return rows


@torch.no_grad()
def see(read: Reader, rows: Simulations, others: Tensor, started: float | None = None) -> Rollouts:
    """Evaluate M rows at their own theta, and at all of others (L, D), in parts that fit into memory."""
    started = time.monotonic() if started is None else started
    if not len(others) or len(others) % BLOCKS:
        raise InputError(f"others: {len(others)} thetas, expected a multiple of {BLOCKS}.")
    numbers = min(rows.x[0].numel(), WIDE)
    if rows.n_events is not None:
        numbers = int(rows.n_events.max()) * min(rows.x[0, 0].numel(), WIDE)
    parts = []
    with one_thread():
        for index in torch.arange(len(rows)).split(max(1, AT_ONCE // len(others))):
            some = rows[index]
            look, most = read(some), max(1, AT_ONCE // (max(1, numbers) * len(index)))
            value = torch.empty((len(index), len(others)), dtype=torch.float64)
            for found, part in zip(value.split(most, 1), others.split(most), strict=True):
                found.copy_(look(part[None]))  # kept one by one, the parts would leave holes in the memory
            parts.append((look(some.theta[:, None])[:, 0], *_sums(value, others)))
    own, log_sum, mean, log_square = (torch.cat(part) for part in zip(*parts, strict=True))
    if bad := int((own.isnan() | log_sum.isnan().any(1)).sum()):
        raise InputError(f"EIG bound: the log density of {bad} of {len(rows)} experiments is NaN.")
    evaluations = len(rows) * (len(others) + 1)
    before = torch.cat([others, others**2], 1).unflatten(0, (BLOCKS, -1)).mean(1)
    return Rollouts(
        rows.theta, rows, own, log_sum, mean, log_square, before, len(others), evaluations, time.monotonic() - started
    )


def _sums(value: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over blocks of thetas (L, D) of log p (m, L): `log_sum`, `mean` and `log_square` of `Rollouts`.

    Blocks are pieces in a row, which are evenly spread themselves where the thetas are.
    """
    value, theta = value.unflatten(1, (BLOCKS, -1)), theta.unflatten(0, (BLOCKS, -1))
    log_sum = value.logsumexp(2)
    weight = (value - log_sum[..., None]).exp().nan_to_num()
    logs = (weight * torch.where(weight > 0, value, 0.0)).sum(2, keepdim=True)
    moments = weight.transpose(0, 1) @ torch.cat([theta, theta**2], 2)
    return log_sum, torch.cat([logs, moments.transpose(0, 1)], 2), (2 * value).logsumexp(2)


def _jackknifed(parts: Sequence[tuple[Tensor, Tensor | None]], drawn: bool, corrected: bool) -> tuple[float, float]:
    """Mean and error of values (M,) that have control variates (M, C) or none: in all, and without each block."""
    (value, rest), *left = (_mean(*part) for part in parts)
    means = torch.stack([mean for mean, _ in left])
    bias = (len(left) - 1) * (means.mean() - value)
    inner = (len(left) - 1) * means.var(correction=0)
    outer = rest.var() / len(rest) if drawn else torch.zeros_like(inner)
    return float(value - bias if corrected else value), float((outer + inner).sqrt())


def _mean(value: Tensor, off: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean () of values (M,), and the values, less what they share with controls (M, C) whose true average is 0."""
    if off is None:
        return value.mean(), value
    off = off / off.std(0).clamp(min=1e-300)
    centred = off - off.mean(0)
    slope = torch.linalg.lstsq(centred, (value - value.mean())[:, None], driver="gelsd").solution[:, 0]
    return value.mean() - off.mean(0) @ slope, value - centred @ slope
