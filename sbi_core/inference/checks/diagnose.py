"""Are the posteriors of an estimator true? All checks of calibration in one run."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.columns import to_column
from sbi_core.errors import InputError
from sbi_core.inference.checks.calibration import FALSE_ALARM, KINDS, calibrate
from sbi_core.inference.checks.check import Check
from sbi_core.inference.checks.closure import closure, exchange
from sbi_core.inference.checks.diagnosis import Diagnosis
from sbi_core.inference.checks.pairs import DRAWS, Pairs, posterior_draws
from sbi_core.inference.checks.predictive import REPLICATES, predictive
from sbi_core.inference.checks.ranks import Curve
from sbi_core.inference.checks.truths import Truths, from_rows, from_simulator
from sbi_core.inference.infer import infer
from sbi_core.seeding import block_seed, fresh_seed, one_thread, seeded
from sbi_core.simulator import Simulator

PAIRS = 1000
"""Pairs by default: a width that is off by a sixth is seen, or a place by an eighth of a standard deviation."""

FEWEST = 100
"""Pairs below which nothing is said."""

SPREAD = 50
"""Pairs on which the members of an ensemble are compared."""


def diagnose(
    estimator: Any,
    source: Any,
    *,
    prior: Distribution | None = None,
    n: int = PAIRS,
    iid: int | None = None,
    design: Any = None,
    x_obs: Any = None,
    design_obs: Any = None,
    method: str = "auto",
    draws: int = DRAWS,
    replicates: int = REPLICATES,
    false_alarm: float = FALSE_ALARM,
    seed: int | None = None,
    time_limit: float = 600.0,
    progress: bool = True,
) -> Diagnosis:
    """Compare the posteriors of an estimator with the thetas that made x, on n pairs of prior and simulator.

    | kind of check | sees |
    |---|---|
    | ranks, normal scores | each parameter: shifted, too narrow, too wide |
    | coverage | regions that hold the truth too seldom or too often |
    | TARP | the same in the space of all parameters, without densities |
    | information | a posterior worse than the prior |
    | two samples, moments and classifier | whatever depends on x: a returned prior, exchanged parameters |
    | ratio | a likelihood too steep, too flat or shifted, without any sampler |
    | closure | simulations at one theta reweighted to another (needs the simulator) |
    | at x_obs | the same locally, and replicates of x_obs |

    Each kind that is run gets an equal share of `false_alarm`, and each of its tests an equal share of that.

    Args:
        estimator: as `infer` takes it.
        source: the simulator, from which n fresh pairs are drawn, and as many at each of two thetas for the closure; or
            rows that training has not seen, of which the first n count.
        prior: event shape (D,); by default the simulator's, or the proposal of the rows, which it must be.
        n: pairs.
        iid: observations at each theta, whose log likelihoods add; by default one.
        design: as `simulate` takes it, for n rows, or n sets of `iid` rows.
        x_obs: an observation, event-shaped, or with `iid` (iid, *event): also check there.
        design_obs: its design, (K,); by default `design`, if that is one.
        method: of the posteriors, see `posterior_draws`.
        draws: for each x.
        replicates: of x_obs, simulated at draws of its posterior; 0 for none.
        false_alarm: probability that right posteriors fail any check.
        seed: of everything random; `None` takes a fresh one and records it.
        time_limit: seconds for all posteriors.
        progress: whether to show bars.

    Raises:
        InputError: for rows of training, other parameters, too few pairs, or what `infer` refuses.
    """
    seed = fresh_seed() if seed is None else seed
    streams = _streams(seed)
    simulator = source if isinstance(source, Simulator) else None
    axes = getattr(estimator, "axes", None) or estimator.parameters
    x_obs = None if x_obs is None else to_column("x_obs", x_obs)
    _check(axes, simulator, n, iid, x_obs, false_alarm)
    if simulator is not None:
        made = {"iid": iid, "design": design, "seed": streams[0], "progress": progress}
        truths = from_simulator(estimator, simulator, axes, prior, n, **made)
    else:
        truths = from_rows(estimator, source, axes, prior, n)
    if len(truths.theta) < FEWEST:
        raise InputError(f"{len(truths.theta)} pairs, expected at least {FEWEST}: fewer say nothing about coverage.")
    options: dict[str, Any] = {"iid": iid is not None, "method": method, "n": draws, "time_limit": time_limit}
    every = {**truths.given, **options, "progress": progress, "seed": streams[1]}
    pairs = posterior_draws(estimator, truths.prior, truths.theta, truths.x, **every)

    ratios = iid is None
    more = ratios + (ratios and simulator is not None) + (x_obs is not None and simulator is not None)
    share = false_alarm / (KINDS + more)
    notes = [*truths.notes, *filter(None, [getattr(estimator, "caveat", "")])]
    checks: list[Check] = []
    curves: list[Curve] = []
    local = None
    with seeded(streams[2]), one_thread():
        if ratios:
            checks += exchange(estimator, pairs, share, **truths.given)
        if ratios and simulator is not None:
            middle = pairs.theta.median(0).values
            closed = closure(estimator, simulator, middle, pairs.theta[0], n, design, share, streams[3])
            checks += closed[0]
            curves += closed[1]
    if x_obs is not None:
        setting = design if design_obs is None else design_obs
        setting = None if setting is None else to_column("design_obs", setting)
        there = infer(estimator, truths.prior, x_obs, design=setting, iid=iid is not None, seed=streams[4])
        notes += [f"at x_obs: {flag}" for flag in there.flags]
        with seeded(streams[5]):
            local = there.sample(torch.Size([max(replicates, PAIRS)]))
        if simulator is not None and replicates:
            sets = x_obs if iid is not None else x_obs[None]
            checks.append(predictive(simulator, local[:replicates], sets, share, design=setting, seed=streams[6]))
    found = calibrate(pairs, seed=streams[7], false_alarm=false_alarm, more=more, x_obs=x_obs, local=local)
    return replace(
        found,
        checks=(*found.checks, *checks),
        curves=(*found.curves, *curves),
        notes=tuple(notes),
        spread=_spread(estimator, truths, pairs, {**options, "seed": streams[8]}),
        seed=seed,
    )


def _check(
    axes: Any, simulator: Simulator | None, n: int, iid: int | None, x_obs: Tensor | None, false_alarm: float
) -> None:
    if whole := [axis.name for axis in axes if axis.integer]:
        raise InputError(f"parameters {whole} take whole numbers only; posteriors of real ones are served.")
    if n < FEWEST:
        raise InputError(f"n = {n}, expected at least {FEWEST} pairs: fewer say nothing about coverage.")
    if iid is not None and (iid < 1 or simulator is None):
        raise InputError(f"iid = {iid}: sets of observations at one theta need the simulator as source, and a number.")
    if iid is not None and x_obs is not None and len(x_obs) != iid:
        raise InputError(
            f"x_obs has {len(x_obs)} rows, expected iid = {iid}: calibration is that of sets of that size."
        )
    if not 0 < false_alarm < 1:
        raise InputError(f"false_alarm = {false_alarm}: expected a probability.")


def _streams(seed: int) -> list[int]:
    """Seeds of nine streams: the seed of training, given here too, must not bring back the rows of training."""
    return [int(word >> np.uint64(1)) for word in block_seed(seed, 2**20).generate_state(9, np.uint64)]


def _spread(estimator: Any, truths: Truths, pairs: Pairs, options: dict[str, Any]) -> str:
    """How far the posterior means of an ensemble's members lie apart."""
    members = list(getattr(estimator, "members", ()))
    if not members:
        return "unchecked"
    rows = slice(min(SPREAD, len(pairs)))
    options |= {name: value[rows] for name, value in truths.given.items()}
    found = [posterior_draws(m, truths.prior, truths.theta[rows], truths.x[rows], **options).draws for m in members]
    apart = torch.stack([draws.mean(1) for draws in found]).std(0) / pairs.draws[rows].std(1).clamp(min=1e-300)
    said = f"{float(apart.median()):.2g} posterior sd between the means of {len(members)} trainings"
    return f"{said} (median over {len(apart)} observations; at most {float(apart.max()):.2g})"
