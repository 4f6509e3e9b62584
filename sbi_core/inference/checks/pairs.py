"""Truths with posterior draws beside them: what every check of calibration reads."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from tqdm import tqdm

from sbi_core.errors import InputError
from sbi_core.inference.cells import COARSE, grid_posterior
from sbi_core.inference.grid import GridPosterior
from sbi_core.inference.hamilton import advance, temper
from sbi_core.inference.sampling import log_evidence
from sbi_core.inference.target import Target
from sbi_core.inference.trainings import Trainings, mixed, trainings
from sbi_core.parameters import Parameter
from sbi_core.priors import check_prior, describe
from sbi_core.seeding import block_seed, one_thread, seeded

DRAWS = 99
"""Posterior draws for each x: a rank is then one of a hundred."""

PARTICLES, SETTLE = 256, 60
"""Where chains are needed: the population of each problem from which draws are taken, and rounds that they go on.

Tails of narrow, bent posteriors are thin in a small population (SLCP: a fifth less beyond 2.5 in theta_5), and ranks
see that; so many rounds more restore them."""

_Method = Callable[..., tuple[Tensor, Tensor]]

ROWS = {"grid": 100, "chains": 100, "direct": 1000}
"""Problems at once."""


@dataclass(frozen=True)
class Pairs:
    """N pairs (theta, x) of the prior and the simulator, and L draws of q(theta | x) for each.

    If q is the posterior, the truth and the draws of a row are exchangeable: any statistic of the truth is as likely
    to have any rank among that of the draws.

    Attributes:
        parameters: the D axes of theta.
        theta: the truths, (N, D).
        x: what was simulated at them, (N, *event), or (N, n, *event) for sets.
        draws: of the posterior at each x, (N, L, D).
        log_q: log density of the posterior at the truth, nats (N,).
        log_q_draws: the same at the draws, (N, L).
        log_prior: log density of the prior at the truth, nats (N,).
        method: how the draws were made, "grid", "chains" or "direct".
        sets: whether x are sets of observations.
    """

    parameters: tuple[Parameter, ...]
    theta: Tensor
    x: Tensor
    draws: Tensor
    log_q: Tensor
    log_q_draws: Tensor
    log_prior: Tensor
    method: str = ""
    sets: bool = False

    def __len__(self) -> int:
        return len(self.theta)


def posterior_draws(
    estimator: Any,
    prior: Distribution,
    theta: Tensor,
    x: Tensor,
    *,
    design: Tensor | None = None,
    n_events: Tensor | None = None,
    iid: bool = False,
    method: str = "auto",
    n: int = DRAWS,
    particles: int = PARTICLES,
    seed: int = 0,
    time_limit: float = 600.0,
    progress: bool = False,
) -> Pairs:
    """Draw from the posterior of every x.

    "grid" for up to two parameters, "direct" from an estimator that draws, relative to its own prior, and beyond that
    "chains": the population that `infer` starts its chains from (see `hamilton`), which needs no other warm-up.

    Args:
        estimator: as `infer` takes it.
        prior: event shape (D,).
        theta: the truths, (N, D).
        x: one observation each, (N, *event), or with `iid` a set of them, (N, n, *event).
        design: (N, K), or (N, n, K).
        n_events: (N,), or (N, n).
        iid: sum the log likelihood over the set.
        method: "grid", "chains", "direct", or "auto".
        n: draws for each x, L.
        particles: of each problem, for "chains".
        seed: fixes the draws.
        time_limit: seconds for all.
        progress: whether to show a bar.

    Raises:
        InputError: for what `infer` refuses, a method that does not serve, or when time is over.
    """
    axes: tuple[Parameter, ...] = getattr(estimator, "axes", None) or estimator.parameters
    check_prior(prior, axes)
    method = _method(method, estimator, prior, len(axes), iid)
    until, parts = time.monotonic() + time_limit, []
    options = {"n": n, "particles": max(particles, n), "until": until}
    size = max(1, ROWS[method] // len(trainings(estimator)))
    with one_thread(), torch.no_grad(), tqdm(total=len(theta), desc="posteriors", disable=not progress) as bar:
        for number, rows in enumerate(torch.arange(len(theta)).split(size)):
            if time.monotonic() > until:
                raise InputError(
                    f"diagnose: the time limit of {time_limit:g} s came after {bar.n} of {len(theta)} posteriors. "
                    "Raise time_limit, or lower n."
                )
            given = {name: v[rows] for name, v in (("design", design), ("n_events", n_events)) if v is not None}
            with seeded(block_seed(seed, number)):
                observed = Trainings(estimator, x[rows], iid=iid, batch=True, **given)
                parts.append(_mixed_draws(observed, prior, theta[rows].double(), _METHODS[method], options))
            bar.update(len(rows))
    draws, log_q = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    return Pairs(axes, theta.double(), x, draws, log_q[:, 0], log_q[:, 1:], prior.log_prob(theta.double()), method, iid)


def _method(method: str, estimator: Any, prior: Distribution, dims: int, iid: bool) -> str:
    draws = not iid and all(
        hasattr(one, "log_posterior") and describe(prior) == describe(one.proposal) for one in trainings(estimator)
    )
    if method == "auto":
        return "direct" if draws else "grid" if dims <= 2 else "chains"
    if method not in _METHODS:
        raise InputError(f"method = {method!r}: expected one of {', '.join(map(repr, ('auto', *_METHODS)))}.")
    if method == "grid" and dims not in COARSE:
        raise InputError(f"theta has {dims} parameters; a grid serves at most {max(COARSE)}. Use method='chains'.")
    if method == "direct" and not draws:
        raise InputError(
            f"method='direct': {type(estimator).__name__} does not draw from the posterior of this prior, one "
            "observation each. Use method='auto'."
        )
    return method


def _mixed_draws(
    observed: Trainings, prior: Distribution, theta: Tensor, method: _Method, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Draws (R, L, D) of the mixture of M trainings' posteriors, and its log density at truth and draws, (R, 1 + L)."""
    each, log_evidence = method(observed, prior, **options)
    each, log_evidence = (found.unflatten(0, (-1, len(theta))) for found in (each, log_evidence))
    member = torch.randint(len(each), (1, *each.shape[1:3], 1)).expand(1, *each.shape[1:])
    draws = each.gather(0, member)[0]
    every = torch.cat([theta[:, None], draws], 1)
    value = observed.log_likelihood(every).reshape(*log_evidence.shape, -1) - log_evidence[..., None]
    return draws, prior.log_prob(every) + mixed(value)


def _direct(observed: Trainings, prior: Distribution, *, n: int, particles: int, until: float) -> tuple[Tensor, Tensor]:
    """Draws (M R, L, D), and the log evidence (M R)."""
    return observed.direct(n)[0], torch.zeros(observed.rows, dtype=torch.float64)


def _grid(observed: Trainings, prior: Distribution, *, n: int, particles: int, until: float) -> tuple[Tensor, Tensor]:
    edges, density, _ = grid_posterior(observed.axes, prior, observed.log_likelihood, observed.each[0].rows)
    edges = [edge.repeat(len(observed.each), 1) for edge in edges]
    posterior = GridPosterior(observed.axes, edges, density, verdicts={})
    draws = posterior.sample(torch.Size([n])).transpose(0, 1)
    top, best = density.flatten(1).max(1)
    return draws, top - posterior.grid()[1].flatten(1).gather(1, best[:, None])[:, 0]


def _chains(observed: Trainings, prior: Distribution, *, n: int, particles: int, until: float) -> tuple[Tensor, Tensor]:
    target = Target(prior, observed, observed.rows, observed.at_once)
    points, kernel = temper(target, particles, until)
    points = points.take(torch.rand(points.value.shape).argsort(1)[:, :n])
    for _ in range(SETTLE):
        points, _, _ = advance(target, points, kernel)
    return target.theta(points.u), log_evidence(target, kernel.mixture)[0]


_METHODS = {"direct": _direct, "grid": _grid, "chains": _chains}
