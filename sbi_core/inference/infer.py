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
from sbi_core.inference.observed import Observed
from sbi_core.inference.posterior import Posterior
from sbi_core.inference.samples import SamplePosterior
from sbi_core.inference.sampling import Drawn, chains, direct, importance
from sbi_core.inference.target import Target
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
        A distribution with event shape (D,) and batch shape (B,) or (); of an ensemble also the posterior of each
        member, as `members`, and how far they lie apart among the `verdicts`. Where the estimator remembers which x
        were simulated, an x_obs unlike them is the first of the `flags`, and an `SbiWarning` before the answer.

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
    observed = Observed(estimator, x_obs, **asked)
    method = _chosen(method, len(axes), estimator, observed)
    seed = fresh_seed() if seed is None else seed
    known, strange = recognise(estimator, observed.x, observed.n_events)
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
    posterior.flags = (*filter(None, [strange]), *posterior.flags, *filter(None, [getattr(estimator, "caveat", "")]))
    posterior = posterior if of is None else posterior.marginal(of)
    posterior.seed, posterior.x_obs = seed, to_column("x_obs", x_obs)
    drawn_so: dict[str, Any] = {
        "of": of,
        "method": method,
        "n": n,
        "chains": chains,
        "seed": seed,
        "time_limit": time_limit,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SbiWarning)  # what is strange about x_obs was said
        posterior.members = tuple(
            infer(member, prior, x_obs, **asked, **drawn_so) for member in getattr(estimator, "members", ())
        )
    posterior.verdicts = {
        **posterior.verdicts,
        "spread of trainings": _spread(posterior),
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


def _chosen(method: str, dims: int, estimator: Any, observed: Observed) -> str:
    if method == "direct" and not observed.is_direct:
        raise InputError(
            f"method = 'direct' needs a posterior flow and a single observation at a time; {type(estimator).__name__} "
            "with this x_obs is not that. Use method='hmc'."
        )
    if method != "auto":
        return method
    return "grid" if dims <= AUTO else "direct" if observed.is_direct else "hmc"


def _on_a_grid(
    axes: tuple[Parameter, ...], prior: Distribution, observed: Observed, batch: bool, until: float
) -> GridPosterior:
    look = partial(observed.log_likelihood, until=until)
    edges, density, flags = grid_posterior(axes, prior, look, observed.rows)
    if not torch.isfinite(density.flatten(1).max(1).values).all():
        raise InputError("the likelihood of x_obs is zero, or not a number, everywhere in the prior.")
    least = float(resolution(density).min())
    if not batch:
        edges, density = [edge[0] for edge in edges], density[0]
    posterior = GridPosterior(axes, edges, density, verdicts={}, flags=flags)
    found = (
        f"{least:.0f} cells per standard deviation" if least >= COARSEST else f"too coarse: {least:.1f} cells per sd"
    )
    posterior.verdicts = {"normalisation": "exact on the grid", "resolution": found}
    if least < COARSEST:
        posterior.flags = (*flags, f"the grid is {found}; method='hmc' needs none")
    return posterior


def _of_draws(
    axes: tuple[Parameter, ...], prior: Distribution, observed: Observed, drawn: Drawn, batch: bool
) -> SamplePosterior:
    log_evidence, error = drawn.log_evidence
    support: Any = prior.support
    theta, log_weight = drawn.theta, drawn.log_weight
    if not batch:
        theta, log_weight = theta[:, :, 0], None if log_weight is None else log_weight[:, :, 0]

    def log_density(value: Tensor) -> Tensor:
        value = value.to(torch.float64)
        inside = support.check(value)
        value = torch.where(inside[..., None], value, theta[0, 0])
        rows = value.reshape(-1, observed.rows, value.shape[-1]).transpose(0, 1)  # (R, G, D)
        found = (observed(rows) - log_evidence[:, None]).T.reshape(inside.shape)
        return torch.where(inside, prior.log_prob(value) + found, -torch.inf)

    worst = float(error.max())
    said = f"log evidence known to {worst:.2g} nats" + (f", {float(log_evidence[0]):.3f}" if not batch else "")
    return SamplePosterior(
        axes,
        theta,
        support=support,
        log_density=log_density,
        log_weight=log_weight,
        verdicts={"normalisation": said if math.isfinite(worst) else "unchecked", **drawn.verdicts},
        flags=drawn.flags,
    )


def _spread(posterior: Posterior) -> str:
    """How far the means of an ensemble's members lie apart, at worst."""
    if not posterior.members:
        return "unchecked"
    apart = torch.stack([member.mean for member in posterior.members]).std(0) / posterior.stddev
    return f"{float(apart.max()):.2g} posterior sd between the means of {len(posterior.members)} trainings"
