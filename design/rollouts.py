"""Experiments rolled out at one design, each seen by every theta of an inner set: the sums that all gains read."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.campaign import simulate
from sbi_core.design.belief import points
from sbi_core.errors import InputError
from sbi_core.events import Events, RunLikelihood
from sbi_core.gold import log_joint
from sbi_core.parameters import names
from sbi_core.seeding import one_thread
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator

BLOCKS = 16
"""Parts of the inner set, whose differences tell what error it brings."""

AT_ONCE = 2_000_000
"""Log densities of one event that are evaluated together."""

SEVERAL = 8
"""Experiments, all with the same x, at which a design is said to teach nothing."""

Reader = Callable[[Simulations, Tensor], Tensor]
"""Rows (m, ...) and thetas (m or 1, l, D) -> log density of each row at each theta, nats (m, l)."""


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

    def estimate(self, term: Callable[[Tensor, Tensor, int], Tensor]) -> tuple[float, float]:
        """Mean over the experiments of a term, and its standard error, from both sets of thetas.

        The inner set is common to all experiments, so its error does not average out over them: it is found by the
        jackknife over blocks, and added to that of the mean over experiments.

        Args:
            term: log_sum (M,), mean (M, 1 + 2 D), L -> (M,).
        """
        each = term(*self.without())
        if not bool(torch.isfinite(each).all()):
            raise InputError(
                f"EIG bound: {int((~torch.isfinite(each)).sum())} of {len(each)} terms are not finite. Raise inner, "
                "if no theta of the inner set could have made some x."
            )
        blocks = self.log_sum.shape[1]
        left = torch.stack([term(*self.without(b)).mean() for b in range(blocks)])
        inner = (blocks - 1) * left.var(correction=0)
        outer = each.var() / len(each) if len(each) > 1 else each.new_zeros(())
        return float(each.mean()), float((outer + inner).sqrt())

    def effective(self) -> float:
        """How many thetas of the inner set matter to an experiment, in the median: (sum p)^2 / sum p^2."""
        return float((2 * self.log_sum.logsumexp(1) - self.log_square.logsumexp(1)).exp().median())


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
        InputError: for fewer than 2 experiments or `BLOCKS` thetas, or rows that are not finite.
    """
    if n < 2 or inner < 2 * BLOCKS:
        raise InputError(f"n = {n}, inner = {inner}: expected at least 2 and {2 * BLOCKS}.")
    started = time.monotonic()
    rows = experiments(simulator, points(prior, n, seed), design, seed)
    others = points(prior, inner - inner % BLOCKS, seed, 1)
    return see(read, rows, others, started)


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
    events = max(1, rows.x[0].numel() if rows.n_events is not None else 1)
    size = max(1, min(len(rows), AT_ONCE // (events * 256)))
    parts = []
    with one_thread():
        for index in torch.arange(len(rows)).split(size):
            some = rows[index]
            own = read(some, some.theta[:, None])[:, 0]
            blocks = [_block(read, some, block, max(1, AT_ONCE // (events * len(index)))) for block in _dealt(others)]
            parts.append((own, *(torch.stack(each, 1) for each in zip(*blocks, strict=True))))
    own, log_sum, mean, log_square = (torch.cat(part) for part in zip(*parts, strict=True))
    if bool(own.isnan().any() | log_sum.isnan().any()):
        raise InputError("EIG bound: a log density is NaN.")
    evaluations = len(rows) * (len(others) + 1)
    return Rollouts(
        rows.theta, rows, own, log_sum, mean, log_square, len(others), evaluations, time.monotonic() - started
    )


def _dealt(others: Tensor) -> tuple[Tensor, ...]:
    """Blocks of a low-discrepancy sequence: pieces in a row are evenly spread themselves."""
    return others.chunk(BLOCKS)


def _block(read: Reader, rows: Simulations, theta: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """log sum p (m,), mean under p of log p, theta and theta^2 (m, 1 + 2 D), and log sum p^2 (m,), over a block."""
    value = torch.cat([read(rows, part[None]) for part in theta.split(size)], 1).double()
    log_sum = value.logsumexp(1)
    weight = (value - log_sum[:, None]).exp().nan_to_num()
    logs = (weight * torch.where(weight > 0, value, 0.0)).sum(1, keepdim=True)
    mean = torch.cat([logs, weight @ theta, weight @ theta**2], 1)
    return log_sum, mean, (2 * value).logsumexp(1)


def reader(estimator: Any) -> Reader:
    """What an estimator, or a simulator that knows its exact likelihood, says about rows; equal x are seen once."""

    def read(rows: Simulations, theta: Tensor) -> Tensor:
        design, place = rows.design, None
        if design is not None and bool((design == design[0]).all()):
            design = design[:1]
        if len(theta) == 1 and (design is None or len(design) == 1):
            unique, place = torch.unique(_seen(rows), dim=0, return_inverse=True)
            first = torch.full((len(unique),), len(rows)).scatter_reduce(0, place, torch.arange(len(rows)), "amin")
            rows = rows[first]
        counts = {"n_events": rows.n_events[:, None]} if rows.n_events is not None and _counts(estimator) else {}
        look = estimator.observe(rows.x[:, None], None if design is None else design[:, None], **counts)
        value: Tensor = look(theta).expand(len(rows), theta.shape[1]).double()
        return value if place is None else value[place]

    return read


def _seen(rows: Simulations) -> Tensor:
    """All that an estimator reads of rows at one design, (m, W)."""
    columns = [rows.x.flatten(1).double()]
    return torch.cat(columns if rows.n_events is None else [*columns, rows.n_events[:, None].double()], 1)


def joint_reader(simulator: Simulator) -> Reader:
    """log p(x, z | theta) of rows with their latents."""

    def read(rows: Simulations, theta: Tensor) -> Tensor:
        m, count = len(rows), theta.shape[1]
        index = torch.arange(m).repeat_interleave(count)
        flat = theta.expand(m, count, -1).reshape(m * count, -1)
        return log_joint(simulator, rows[index], flat).reshape(m, count)

    return read


def _counts(estimator: Any) -> bool:
    return bool(getattr(estimator, "needs_n_events", False) or getattr(estimator, "counted", False))


def of_runs(estimator: Any, simulator: Simulator) -> Any:
    """The estimator, or what it says about runs if it was trained on single events of them.

    Raises:
        InputError: unless both speak of the same parameters in the same order, and the same designs.
    """
    pairs = [("parameters", getattr(estimator, "axes", None) or estimator.parameters, simulator.parameters)]
    pairs.append(("designs", getattr(estimator, "designs", ()), simulator.designs))
    for what, mine, its in pairs:
        if mine and names(mine) != names(its):
            raise InputError(
                f"{what} of {type(estimator).__name__} are {names(mine)}, those of simulator '{simulator.name}' "
                f"{names(its)}: expected the same."
            )
    if not isinstance(simulator, Events) or estimator is simulator:
        return estimator
    shape = getattr(estimator, "x_shape", None)
    whole = getattr(estimator, "counted", False) or (shape is not None and tuple(shape) != simulator.x_event)
    return estimator if whole else RunLikelihood(simulator, estimator)
