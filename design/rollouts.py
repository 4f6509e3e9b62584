"""Experiments rolled out at one design, and what an estimator says of them at every theta of an inner set."""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.campaign import simulate
from sbi_core.design.belief import from_unit, points
from sbi_core.design.estimates import Rollouts
from sbi_core.design.importance import Near
from sbi_core.design.readers import AT_ONCE, WIDE, Reader, check_same
from sbi_core.errors import InputError
from sbi_core.priors import check_prior
from sbi_core.seeding import one_thread
from sbi_core.simulations import Simulations
from sbi_core.simulator import LogLikelihood, Simulator

BLOCKS = 16
"""Parts of the inner set, whose differences tell what error it brings."""

PILOT, MATTER = 16, 1 / 6
"""Experiments that are looked at first; and the share of thetas that must matter to them, or others are drawn nearer.

Where more of them matter, a common set is better: what it is off by is off in all experiments alike, and control
variates take it off.
"""

SEVERAL = 8
"""Experiments, all with the same x, at which a design is said to teach nothing."""

Pair = tuple[Tensor, Tensor]


def roll(
    read: Reader,
    simulator: Simulator,
    prior: Distribution,
    design: Any,
    *,
    n: int,
    inner: int,
    seed: int,
    near: bool = False,
) -> Rollouts:
    """Simulate n experiments at a design, their thetas spread over the belief, and see them with `inner` other thetas.

    One seed gives the same thetas and the same stream of random numbers at every design. With `near`, half of the other
    thetas are drawn where an experiment's posterior is, if that is much narrower than the belief (see `importance`).

    Raises:
        InputError: for fewer than 2 experiments, a prior of other parameters, or rows that are not finite.
    """
    if n < 2:
        raise InputError(f"n = {n}: expected at least 2 experiments.")
    started = time.monotonic()
    others = inner_set(simulator, prior, inner, seed)
    rows = experiments(simulator, points(prior, n, seed), design, seed)
    half = len(others) // (2 * BLOCKS) * BLOCKS
    if not near or half < 2 * BLOCKS or from_unit(prior) is None:
        return see(read, rows, others, started)
    pilot = see(read, rows[:PILOT], others[:half])
    if not pilot.effective() >= MATTER * half:  # NaN where none of them could have made an experiment
        found = see(read, rows, others[:half], started, near=Near(prior, half, len(others) - half, seed))
    else:
        found = see(read, rows, others, started)
    return replace(found, evaluations=found.evaluations + pilot.evaluations)


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
def see(
    read: Reader, rows: Simulations, others: Tensor, started: float | None = None, *, near: Near | None = None
) -> Rollouts:
    """Evaluate M rows at their own theta, at all of others (L, D), and at those near them, in parts that fit."""
    started = time.monotonic() if started is None else started
    if not len(others) or len(others) % BLOCKS:
        raise InputError(f"others: {len(others)} thetas, expected a multiple of {BLOCKS}.")
    numbers = min(rows.x[0].numel(), WIDE)
    if rows.n_events is not None:
        numbers = int(rows.n_events.max()) * min(rows.x[0, 0].numel(), WIDE)
    parts, drawn = [], 0 if near is None else near.drawn
    with one_thread():
        for index in torch.arange(len(rows)).split(max(1, AT_ONCE // len(others))):
            some = rows[index]
            look, most = read(some), max(1, AT_ONCE // (max(1, numbers) * len(index)))
            value = _seen(look, others[None], len(some), most)
            sums = _sums(value, others)
            if near is not None:
                theta, log_weight = near(value, index)
                extra = _seen(look, theta, len(some), most)
                sums = _weighted((value, extra), (others[None], theta), log_weight)
            parts.append((look(some.theta[:, None])[:, 0], *sums))
    own, log_sum, mean, log_square = (torch.cat(part) for part in zip(*parts, strict=True))
    if bad := int((own.isnan() | log_sum.isnan().any(1)).sum()):
        raise InputError(f"EIG bound: the log density of {bad} of {len(rows)} experiments is NaN.")
    inner = len(others) + drawn
    belief = others if near is None else near.belief
    before = torch.cat([belief, belief**2], 1).unflatten(0, (BLOCKS, -1)).mean(1)
    evaluations, seconds = len(rows) * (inner + 1), time.monotonic() - started
    return Rollouts(rows.theta, rows, own, log_sum, mean, log_square, before, inner, evaluations, seconds)


def _seen(look: LogLikelihood, theta: Tensor, rows: int, most: int) -> Tensor:
    """log p of rows at thetas (rows or 1, L, D), so many thetas at once, as (rows, L)."""
    value = torch.empty((rows, theta.shape[1]), dtype=torch.float64)
    for found, part in zip(value.split(most, 1), theta.split(most, 1), strict=True):
        found.copy_(look(part))  # kept one by one, the parts would leave holes in the memory
    return value


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


def _weighted(values: Pair, thetas: Pair, log_weights: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """As `_sums`, of two sets of thetas (m or 1, L, D), each of whose log p (m, L) has a log weight."""
    value, log_weight = (
        torch.cat([part.unflatten(1, (BLOCKS, -1)) for part in pair], 2) for pair in (values, log_weights)
    )
    theta = torch.cat([part.expand(len(value), -1, -1).unflatten(1, (BLOCKS, -1)) for part in thetas], 2)
    whole = value + log_weight
    log_sum = whole.logsumexp(2)
    weight = (whole - log_sum[..., None]).exp().nan_to_num()
    logs = (weight * torch.where(weight > 0, value, 0.0)).sum(2, keepdim=True)
    moments = [(weight[..., None] * power).sum(2) for power in (theta, theta**2)]
    return log_sum, torch.cat([logs, *moments], 2), (2 * whole).logsumexp(2)
