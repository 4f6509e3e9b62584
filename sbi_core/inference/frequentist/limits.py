"""From a likelihood to confidence sets."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.columns import to_column
from sbi_core.errors import InputError, SbiWarning, nearest
from sbi_core.inference.checks.familiar import recognise
from sbi_core.inference.frequentist.construction import by_toys
from sbi_core.inference.frequentist.intervals import with_training
from sbi_core.inference.frequentist.maximum import Box
from sbi_core.inference.frequentist.profile import Problem
from sbi_core.inference.frequentist.rates import extended
from sbi_core.inference.frequentist.record import Limits
from sbi_core.inference.frequentist.reweighting import Reweighted
from sbi_core.inference.frequentist.sets import Sets, Toys
from sbi_core.inference.frequentist.toys import Plan
from sbi_core.inference.frequentist.wilks import asked_levels, asymptotic, interest
from sbi_core.inference.observed import Observed
from sbi_core.parameters import Parameter
from sbi_core.seeding import fresh_seed, one_thread, seeded

METHODS = ("profile", "neyman", "feldman_cousins")

NUISANCE = ("profile", "unconditional")

POINTS = {1: 33, 2: 15}
"""Points per axis at which toys are made, by the number of parameters of interest."""


def limits(
    estimator: Any,
    x_obs: Any,
    *,
    of: Sequence[str] | str | None = None,
    method: str = "profile",
    simulator: Any = None,
    rows: Any = None,
    design: Any = None,
    n_events: Any = None,
    iid: bool = False,
    constraints: Mapping[Any, Distribution] | None = None,
    level: float | Sequence[float] = (0.683, 0.95),
    rate: Any = None,
    exposure: float = 1.0,
    n_obs: int | None = None,
    toys: int = 2000,
    points: int | None = None,
    nuisance: str = "profile",
    seed: int | None = None,
    time_limit: float = 60.0,
) -> Limits:
    """Confidence intervals of one parameter, or regions of two, the others at their best or at their worst.

    The test statistic is q(psi) = -2 [max_nu log L(psi, nu) - max log L], the maxima inside the parameters' ranges.

    | method | psi is in the set if | source |
    |---|---|---|
    | "profile" | q is below the quantile of chi-squared: right for large samples only | Wilks 1938 |
    | "feldman_cousins" | q is below the quantile of toys made at psi | arXiv:physics/9711021 |
    | "neyman" | the signed root of q lies between the equal-tailed quantiles of toys made at psi | Neyman 1937 |

    Args:
        estimator: anything with `log_likelihood` and `observe`: a trained estimator, or a simulator that knows its
            exact likelihood. Of an ensemble the members are asked too.
        x_obs: one observation, event-shaped, or with `iid` several independent ones, (n, *event); with a rate n may
            be 0.
        of: name of the parameter of interest, or of two; by default all, if there are no more.
        method: see above.
        simulator: draws the toys.
        rows: simulations with z to draw the toys from instead, by gold reweighting (see `Reweighted`); needs
            `simulator` for its log_joint.
        design: of the observation, (K,), or one per event, (n, K).
        n_events: how many events of x_obs count, for runs of events.
        iid: sum the log likelihood over a leading axis.
        constraints: auxiliary measurements, name -> distribution of that parameter, or tuple of names -> distribution
            of their vector. Toys measure anew.
        level: of confidence, one or several.
        rate: `True` for the simulator's `rate`, or a function of (theta, design), such as `fit_rate` gives: the number
            of events is then Poisson with mean exposure * rate and enters the likelihood and the toys.
        exposure: luminosity, time, or whatever multiplies the rate.
        n_obs: number of events that were seen, if x_obs is not all of them.
        toys: at each point.
        points: per axis at which toys are made.
        nuisance: where toys are made. "profile": at the nuisance parameters that fit the observation best at each psi
            (the profile construction; not exact, often good). "unconditional": at nuisance parameters all around
            these, and the worst counts (Berger & Boos, J. Am. Stat. Assoc. 89 (1994) 1012).
        seed: of toys; `None` takes a fresh one. It is recorded.
        time_limit: seconds for the toys, of each member too. Toys that are stopped by it say so.

    Raises:
        InputError: for an argument that does not fit, or a time limit that comes before there is any answer.
    """
    asked: dict[str, Any] = {
        "method": method,
        "design": design,
        "n_events": n_events,
        "iid": iid,
        "constraints": constraints,
        "level": level,
        "rate": rate,
        "exposure": exposure,
        "n_obs": n_obs,
        "toys": toys,
        "points": points,
        "nuisance": nuisance,
        "time_limit": time_limit,
    }
    axes: tuple[Parameter, ...] = getattr(estimator, "axes", None) or estimator.parameters
    columns = interest(of, axes)
    levels = asked_levels(level)
    _check(method, nuisance, toys, points, time_limit)
    at_design = None if design is None else to_column("design", design)
    poisson = extended(estimator, simulator, rate, exposure, at_design)
    x = to_column("x_obs", x_obs)
    events = len(x) if iid else 1
    observed: Observed | Sets
    known, strange = "unchecked", ""
    if not events and poisson is not None:  # that there is none says something too
        observed = Sets(estimator, Toys(x, torch.zeros(0, dtype=torch.long), 1, at_design), constraints=constraints)
    else:
        observed = Observed(estimator, x, design=design, n_events=n_events, iid=iid, constraints=constraints)
        known, strange = recognise(estimator, observed.x, observed.n_events)
    if strange:
        warnings.warn(strange, SbiWarning, stacklevel=2)
    box = Box.of(axes)
    as_it_is = rows is None or method == "profile" or isinstance(rows, Reweighted)
    source = rows if as_it_is else Reweighted(simulator, rows)
    seed = fresh_seed() if seed is None else seed
    plan = Plan(estimator, box, columns, events, at_design, poisson, constraints, simulator, source)
    if method != "profile":
        plan.check()
    count = torch.tensor([[events if n_obs is None else n_obs]]).double()

    def surface(theta: Tensor) -> Tensor:
        return observed(theta) if poisson is None else observed(theta) + poisson(theta, count)

    problem = Problem(surface, box, columns, observed.at_once, observed.pairs)
    with seeded(seed), one_thread():
        found = asymptotic(problem, axes, levels, seed)
        if method != "profile":
            found = by_toys(
                problem,
                plan,
                found,
                method=method,
                toys=toys,
                points=points or POINTS[len(columns)],
                nuisance=nuisance,
                time_limit=time_limit,
            )
            if source is not None and found.belt is not None:
                said, flags = source.report(found.belt.theta, events)
                found = replace(found, verdicts={**found.verdicts, "toys": said}, flags=(*found.flags, *flags))
    found = replace(
        found,
        verdicts={**found.verdicts, "x_obs inside the simulated range": known},
        flags=(*filter(None, [strange]), *found.flags, *filter(None, [getattr(estimator, "caveat", "")])),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SbiWarning)  # it was said once
        members = tuple(
            limits(member, x_obs, of=found.of, simulator=simulator, seed=seed, rows=source, **asked)
            for member in getattr(estimator, "members", ())
        )
    return _spread(found, members) if members else found


def _spread(found: Limits, members: tuple[Limits, ...]) -> Limits:
    """The limits with those of the members, and how far the members' ends lie apart."""
    sets = {
        level: with_training(own, [member.intervals[level] for member in members])
        for level, own in found.intervals.items()
    }
    apart = torch.stack([member.best_fit for member in members]).std(0)
    said = ", ".join(f"{p.name} {sd:.2g}" for p, sd in zip(found.parameters, apart.tolist(), strict=True))
    verdict = f"standard deviation of the best fits of {len(members)} trainings: {said}"
    flags = found.flags
    if any(piece.low_training is None for own in sets.values() for piece in own):
        flags = (*flags, "the members' sets differ in their number of pieces: the training uncertainty is unchecked")
    return replace(
        found, intervals=sets, members=members, verdicts={**found.verdicts, "spread of trainings": verdict}, flags=flags
    )


def _check(method: str, nuisance: str, toys: int, points: int | None, time_limit: float) -> None:
    for name, value, known in (("method", method, METHODS), ("nuisance", nuisance, NUISANCE)):
        if value not in known:
            raise InputError(f"{name} = {value!r} is unknown: {nearest(value, known)}")
    for name, number, least in (("toys", toys, 100), ("points", 5 if points is None else points, 5)):
        if number < least:
            raise InputError(f"{name} = {number}: expected at least {least}.")
    if not time_limit > 0:
        raise InputError(f"time_limit = {time_limit}: expected a positive number of seconds.")
