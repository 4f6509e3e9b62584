"""Experiments rolled out at one design, and what an estimator says of them at every theta of an inner set."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.campaign import simulate
from sbi_core.design.belief import points
from sbi_core.design.estimates import Rollouts
from sbi_core.errors import InputError
from sbi_core.events import Events, RunLikelihood
from sbi_core.gold import log_joint
from sbi_core.parameters import Parameter, names
from sbi_core.priors import check_prior
from sbi_core.seeding import one_thread
from sbi_core.simulations import Simulations
from sbi_core.simulator import LogLikelihood, Simulator

BLOCKS = 16
"""Parts of the inner set, whose differences tell what error it brings."""

AT_ONCE, WIDE = 400_000, 64
"""Numbers that are seen with thetas together; of one event so many at most, as what is wider is embedded before."""

SEVERAL = 8
"""Experiments, all with the same x, at which a design is said to teach nothing."""

Reader = Callable[[Simulations], LogLikelihood]
"""Rows (m, ...), looked at once: thetas (m or 1, l, D) -> log density of each row at each theta, nats (m, l)."""


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


def reader(estimator: Any) -> Reader:
    """What an estimator, or a simulator that knows its exact likelihood, says about rows; equal x are seen once."""

    def looked_at(rows: Simulations) -> LogLikelihood:
        design, count = rows.design, rows.n_events
        if design is not None:
            design = (design[:1] if bool((design == design[0]).all()) else design)[:, None]
        counts = {"n_events": count[:, None]} if count is not None and _counts(estimator) else {}
        look: LogLikelihood = estimator.observe(rows.x[:, None], design, **counts)
        return look

    def read(rows: Simulations) -> LogLikelihood:
        columns = [rows.x.flatten(1), *(c for c in (rows.n_events, rows.design) if c is not None)]
        seen = torch.cat([column.reshape(len(rows), -1).double() for column in columns], 1)
        unique, place = torch.unique(seen, dim=0, return_inverse=True)
        every = once = looked_at(rows)
        if len(unique) < len(rows):
            first = torch.full((len(unique),), len(rows)).scatter_reduce(0, place, torch.arange(len(rows)), "amin")
            once = looked_at(rows[first])

        def look(theta: Tensor) -> Tensor:
            if len(theta) == 1 and once is not every:
                return once(theta).expand(len(unique), theta.shape[1])[place].double()
            return every(theta).expand(len(rows), theta.shape[1]).double()

        return look

    return read


def joint_reader(simulator: Simulator) -> Reader:
    """log p(x, z | theta) of rows with their latents."""

    def read(rows: Simulations) -> LogLikelihood:
        width = sum(column[0].numel() for column in (rows.x, rows.z) if column is not None)
        size = max(1, AT_ONCE // max(1, width))

        def look(theta: Tensor) -> Tensor:
            m, count = len(rows), theta.shape[1]
            index = torch.arange(m).repeat_interleave(count)
            flat = theta.expand(m, count, -1).reshape(m * count, -1)
            value = torch.empty(m * count, dtype=torch.float64)
            for found, some, part in zip(*(column.split(size) for column in (value, index, flat)), strict=True):
                found.copy_(log_joint(simulator, rows[some], part))
            return value.reshape(m, count)

        return look

    return read


def check_exact(simulator: Simulator) -> None:
    """Raise `InputError` unless a simulator knows its likelihood."""
    if not simulator.is_exact:
        raise InputError(
            f"simulator '{simulator.name}' states no exact log_likelihood, and one is needed. Train an estimator for "
            "posterior_gain and contrastive_bound."
        )


def check_same(what: str, named: Sequence[Parameter], expected: Sequence[Parameter]) -> None:
    """Raise `InputError` unless axes, if there are any, have the expected names in the same order."""
    if named and names(named) != names(expected):
        raise InputError(f"{what} are {names(named)}, those of the simulator {names(expected)}: expected the same.")


def _counts(estimator: Any) -> bool:
    return bool(getattr(estimator, "needs_n_events", False) or getattr(estimator, "counted", False))


def of_runs(estimator: Any, simulator: Simulator) -> Any:
    """The estimator, or what it says about runs if it was trained on single events of them.

    Raises:
        InputError: unless it is trained or exact, and both speak of the same parameters and designs in the same order.
    """
    if isinstance(estimator, Simulator):
        check_exact(estimator)
    if not bool(getattr(estimator, "trained", True)):
        raise InputError(f"{type(estimator).__name__} is not trained; give the estimator of a Fit.")
    kind = type(estimator).__name__
    check_same(f"parameters of {kind}", getattr(estimator, "axes", None) or estimator.parameters, simulator.parameters)
    check_same(f"designs of {kind}", getattr(estimator, "designs", ()), simulator.designs)
    if not isinstance(simulator, Events) or estimator is simulator:
        return estimator
    shape = getattr(estimator, "x_shape", None)
    whole = isinstance(estimator, Events) or getattr(estimator, "counted", False)
    whole = whole or (shape is not None and tuple(shape) != simulator.x_event)
    return estimator if whole else RunLikelihood(simulator, estimator)
