"""From a log likelihood and a prior to a posterior."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.columns import to_column
from sbi_core.errors import InputError, SbiWarning, nearest
from sbi_core.inference.cells import COARSE, COARSEST, grid_posterior, resolution
from sbi_core.inference.checks.familiar import recognise
from sbi_core.inference.grid import GridPosterior
from sbi_core.inference.nuts import nuts
from sbi_core.inference.posterior import Posterior
from sbi_core.inference.samples import SamplePosterior
from sbi_core.inference.sampling import Drawn, chains, direct, importance
from sbi_core.inference.target import Target
from sbi_core.inference.trainings import Trainings, mixed
from sbi_core.parameters import Parameter, match, positions
from sbi_core.priors import check_prior
from sbi_core.seeding import fresh_seed, one_thread, seeded

METHODS: dict[str, Callable[..., Drawn]] = {"hmc": chains, "nuts": nuts, "importance": importance, "direct": direct}
"""Those that draw."""

AUTO = 2
"""Parameters up to which the grid is chosen by itself."""


def infer(
    estimator: Any,
    prior: Distribution,
    x_obs: Any,
    *,
    design: Any = None,
    n_events: Any = None,
    iid: bool = False,
    batch: bool = False,
    constraints: Mapping[Any, Distribution] | None = None,
    of: Sequence[str] | None = None,
    method: str = "auto",
    n: int | None = None,
    chains: int | None = None,
    seed: int | None = None,
    time_limit: float = 60.0,
) -> Posterior:
    """Posterior of theta given an observation: prior times exp(log likelihood).

    | method | parameters | what it is |
    |---|---|---|
    | "grid" | at most 3 | the density on cells, exactly normalised |
    | "hmc" | any | Hamiltonian chains from a tempered population, until R-hat is at most 1.01 |
    | "nuts" | any | chains of Pyro's NUTS, one after the other, as a second opinion; one observation |
    | "importance" | any, best below 10 | independent draws of a mixture fitted to such a population, weighted |
    | "direct" | any | draws of a posterior flow, weighted if it was trained on another prior; one observation |
    | "auto" | | "grid" for up to 2 parameters; beyond, "direct" where that serves, else "hmc" |

    Args:
        estimator: anything with `log_likelihood` and `observe`: a trained estimator, or a simulator that knows its
            exact likelihood.
        prior: event shape (D,).
        x_obs: one observation, event-shaped; with `iid` several independent ones at the same theta, (n, *event); with
            `batch` one posterior per row, (B, *event); with both (B, n, *event).
        design: the design of the observation, (K,), or one per row of x_obs: (n, K), (B, K) or (B, n, K); with both
            `iid` and `batch` also one per problem, (B, K).
        n_events: how many events of x_obs (n_max, ...) count, or one number for each run; not needed if x_obs is the
            events alone, (n, ...) with n below n_max.
        iid: sum the log likelihood (in float64) over a leading axis.
        batch: treat a leading axis as separate problems.
        constraints: auxiliary measurements, name -> distribution of that parameter, or tuple of names -> distribution
            of their vector; they count once, however many observations there are.
        of: names of the parameters that the result is about; the others are integrated out.
        method: see above.
        n: draws, of each chain or in all; by default as many as the method needs.
        chains: of "hmc" (20 by default) and "nuts" (4); of a single one nothing can be said about its convergence.
        seed: of draws; `None` takes a fresh one. It is recorded as `posterior.seed`.
        time_limit: seconds. Chains that are stopped by it say so; a grid is not of use before it is done.

    Returns:
        A distribution with event shape (D,) and batch shape (B,) or (). That of an ensemble is the mixture of its
        members' posteriors, (1/M) sum_m q_m(theta | x), wider than they are where they disagree (Hermans et al.,
        arXiv:2110.06581); `members` are these, and how far they lie apart is among the `verdicts`. Where the estimator
        remembers which x were simulated, an x_obs unlike them is the first of the `flags`, and an `SbiWarning` before
        the answer.

    Raises:
        InputError: for an x_obs of another shape, not finite, or other than x in training where that was constant; a
            prior of another length; a method that does not serve; a time limit that comes before there is any answer.
    """
    for name, value in (("n", n), ("chains", chains), ("time_limit", time_limit)):
        if value is not None and not value > 0:
            raise InputError(f"{name} = {value}: expected a positive number.")
    asked: dict[str, Any] = {
        "design": design,
        "n_events": n_events,
        "iid": iid,
        "batch": batch,
        "constraints": constraints,
    }
    axes: tuple[Parameter, ...] = getattr(estimator, "axes", None) or estimator.parameters
    _check_prior(prior, axes)
    if of is not None:
        positions(of, axes)
    _check_method(method, len(axes))
    observed = Trainings(estimator, x_obs, **asked)
    method = _chosen(method, len(axes), estimator, observed)
    seed = fresh_seed() if seed is None else seed
    known, strange = recognise(estimator, observed.each[0].x, observed.each[0].n_events)
    if strange:
        warnings.warn(strange, SbiWarning, stacklevel=2)
    posterior: Posterior
    try:
        with seeded(seed), one_thread():
            if method == "grid":
                posterior = _on_a_grid(axes, prior, observed, batch, time.monotonic() + time_limit)
            else:
                target = Target(prior, observed, observed.rows, observed.at_once)
                own: dict[str, Any] = {"importance": {}, "direct": {"draw": observed.direct}}
                drawn = METHODS[method](target, n=n, time_limit=time_limit, **own.get(method, {"chains": chains}))
                posterior = _of_draws(axes, prior, observed, drawn, batch)
    except InputError as error:
        raise type(error)(f"{error} {strange}".strip()) from None
    posterior = posterior if of is None else posterior.marginal(of)
    caveat = getattr(estimator, "caveat", "")
    for one in (*posterior.members, posterior):
        one.seed, one.x_obs = seed, to_column("x_obs", x_obs)
        one.flags = (*filter(None, [strange]), *one.flags, *filter(None, [caveat]))
        one.verdicts = {
            **one.verdicts,
            "spread of trainings": _spread(one),
            "coverage": "unchecked",
            "x_obs inside the simulated range": known,
        }
    return posterior


def _check_prior(prior: Distribution, axes: Sequence[Parameter]) -> None:
    check_prior(prior, axes)
    if named := getattr(prior, "parameters", None):
        order = match(axes, named, "the prior")
        if order != list(range(len(order))):
            raise InputError(
                f"the prior's parameters {[p.name for p in named]} are in another order than {[p.name for p in axes]}."
            )
    if whole := [axis.name for axis in axes if axis.integer]:
        raise InputError(f"parameters {whole} take whole numbers only; posteriors of real ones are served.")


def _check_method(method: str, dims: int) -> None:
    known = ("auto", "grid", *METHODS)
    if method not in known:
        raise InputError(f"method = {method!r} is unknown: {nearest(method, known)}")
    if method == "grid" and dims not in COARSE:
        raise InputError(f"theta has {dims} parameters; a grid serves at most {max(COARSE)}. Use method='hmc'.")


def _chosen(method: str, dims: int, estimator: Any, observed: Trainings) -> str:
    if method == "direct" and not observed.is_direct:
        raise InputError(
            f"method = 'direct' needs a posterior flow and a single observation at a time; {type(estimator).__name__} "
            "with this x_obs is not that. Use method='hmc'."
        )
    if method != "auto":
        return method
    return "grid" if dims <= AUTO else "direct" if observed.is_direct else "hmc"


def _on_a_grid(
    axes: tuple[Parameter, ...], prior: Distribution, observed: Trainings, batch: bool, until: float
) -> GridPosterior:
    look = partial(observed.log_likelihood, until=until)
    edges, density, flags = grid_posterior(axes, prior, look, observed.each[0].rows)
    if not torch.isfinite(density.flatten(1).max(1).values).all():
        raise InputError("the likelihood of x_obs is zero, or not a number, everywhere in the prior.")
    least = float(resolution(density).min())
    found = f"{least:.0f} cells per standard deviation"
    if least < COARSEST:
        found = f"too coarse: {least:.1f} cells per sd"
        flags.append(f"the grid is {found}; method='hmc' needs none")
    said: dict[str, Any] = {"verdicts": {"normalisation": "exact on the grid", "resolution": found}, "flags": flags}
    each = density.unflatten(0, (len(observed.each), -1))
    if not batch:
        edges, each = [edge[0] for edge in edges], each[:, 0]
    members = [GridPosterior(axes, edges, one, **said) for one in each]
    if len(members) == 1:
        return members[0]
    posterior = GridPosterior(axes, edges, mixed(torch.stack([one.grid()[1] for one in members])), **said)
    posterior.members = members
    return posterior


def _of_draws(
    axes: tuple[Parameter, ...], prior: Distribution, observed: Trainings, drawn: Drawn, batch: bool
) -> SamplePosterior:
    split = (len(observed.each), observed.each[0].rows)
    theta = drawn.theta.unflatten(2, split)  # (C, N, M, R, D)
    log_weight = None
    if drawn.log_weight is not None:
        log_weight = (drawn.log_weight - drawn.log_weight.flatten(0, 1).logsumexp(0)).unflatten(2, split)
    log_evidence, error = drawn.log_evidence
    support: Any = prior.support
    worst = float(error.max())
    value = f", {float(log_evidence[0]):.3f}" if len(log_evidence) == 1 and not batch else ""
    known = f"log evidence known to {worst:.2g} nats{value}" if math.isfinite(worst) else "unchecked"

    def of(some: slice) -> SamplePosterior:
        """The mixture of what some of the trainings found; their draws alternate."""
        draws = theta[:, :, some].flatten(1, 2)
        weight = None if log_weight is None else log_weight[:, :, some].flatten(1, 2)
        evidence = log_evidence.unflatten(0, split)[some, :, None]
        if not batch:
            draws, weight = draws[:, :, 0], None if weight is None else weight[:, :, 0]

        def log_density(value: Tensor) -> Tensor:
            value = value.to(torch.float64)
            inside = support.check(value)
            value = torch.where(inside[..., None], value, draws[0, 0])
            rows = value.reshape(-1, split[1], value.shape[-1]).transpose(0, 1)  # (R, G, D)
            found = mixed(torch.stack([look(rows) for look in observed.each[some]]) - evidence)
            return torch.where(inside, prior.log_prob(value) + found.T.reshape(inside.shape), -torch.inf)

        return SamplePosterior(
            axes,
            draws,
            support=support,
            log_density=log_density,
            log_weight=weight,
            verdicts={"normalisation": known, **drawn.verdicts},
            flags=drawn.flags,
        )

    posterior = of(slice(None))
    if split[0] > 1:
        posterior.members = [of(slice(m, m + 1)) for m in range(split[0])]
    return posterior


def _spread(posterior: Posterior) -> str:
    """How far the means of an ensemble's members lie apart, at worst."""
    if not posterior.members:
        return "unchecked"
    apart = torch.stack([member.mean for member in posterior.members]).std(0) / posterior.stddev
    return f"{float(apart.max()):.2g} posterior sd between the means of {len(posterior.members)} trainings"
