"""Are the posteriors of an estimator true? All checks of calibration in one run."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.campaign import simulate
from sbi_core.columns import to_column
from sbi_core.errors import InputError
from sbi_core.inference.checks.check import Check
from sbi_core.inference.checks.closure import closure, exchange, log_ratios
from sbi_core.inference.checks.coverage import coverage, information, reference_ranks
from sbi_core.inference.checks.diagnosis import Diagnosis
from sbi_core.inference.checks.pairs import DRAWS, Pairs, posterior_draws
from sbi_core.inference.checks.predictive import REPLICATES, predictive
from sbi_core.inference.checks.ranks import Curve, compared, credibility, normal_scores, ranks
from sbi_core.inference.checks.repair import Recalibration
from sbi_core.inference.checks.two_sample import classifier, moments, scored
from sbi_core.inference.infer import infer
from sbi_core.parameters import match, names
from sbi_core.priors import describe
from sbi_core.seeding import block_seed, fresh_seed, one_thread, seeded
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator

PAIRS = 1000
"""Pairs (theta, x) by default: errors of a tenth in width, or of a sixth of a standard deviation in place, are seen."""

FEWEST = 100
"""Pairs below which nothing is said."""

FALSE_ALARM = 0.002
"""Probability that right posteriors fail any check of a run."""

SPREAD = 50
"""Pairs on which the members of an ensemble are compared."""


def check_pairs(pairs: Pairs, *, seed: int = 0, false_alarm: float = FALSE_ALARM) -> Diagnosis:
    """All checks that need no more than truths with draws beside them (see `diagnose`)."""
    return _judge(pairs, [], [], [], seed=seed, false_alarm=false_alarm, kinds=6)


def diagnose(
    estimator: Any,
    source: Any,
    *,
    prior: Distribution | None = None,
    n: int = PAIRS,
    iid: int | None = None,
    design: Any = None,
    x_obs: Any = None,
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
        design: as `simulate` takes it.
        x_obs: an observation, event-shaped, or (iid, *event): also check there.
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
    simulator = source if isinstance(source, Simulator) else None
    axes = getattr(estimator, "axes", None) or estimator.parameters
    _check(axes, source, simulator, n, iid, false_alarm)
    flags: list[str] = []
    if simulator is not None:
        prior = simulator.prior if prior is None else prior
        rows = _simulated(simulator, prior, n, iid, design, _seed(seed, 0), progress)
    else:
        rows, prior = _held_out(estimator, source, prior, n, flags)
    theta, x, given = _shaped(rows, iid, flags)
    if len(theta) < FEWEST:
        raise InputError(f"{len(theta)} pairs, expected at least {FEWEST}: fewer say nothing about coverage.")
    options: dict[str, Any] = {"iid": iid is not None, "method": method, "n": draws, "time_limit": time_limit}
    pairs = posterior_draws(estimator, prior, theta, x, **given, **options, seed=_seed(seed, 1), progress=progress)
    kinds = 6 + (iid is None) + (iid is None and simulator is not None) + (x_obs is not None and simulator is not None)
    share = false_alarm / kinds
    checks: list[Check] = []
    curves: list[Curve] = []
    local = None
    with seeded(_seed(seed, 2)), one_thread():
        if iid is None:
            checks += exchange(estimator, pairs, share, **given)
            if simulator is not None:
                found, curve = _closure(estimator, simulator, pairs, n, design, share, _seed(seed, 3))
                checks += found
                curves += [] if curve is None else [curve]
    if x_obs is not None:
        x_obs = to_column("x_obs", x_obs)
        setting = None if design is None else to_column("design", design)
        there = infer(estimator, prior, x_obs, design=setting, iid=iid is not None, seed=_seed(seed, 4))
        flags += [f"at x_obs: {flag}" for flag in there.flags]
        with seeded(_seed(seed, 5)):
            local = there.sample(torch.Size([max(replicates, PAIRS)]))
        if simulator is not None and replicates:
            sets = x_obs if iid is not None else x_obs[None]
            checks.append(predictive(simulator, local[:replicates], sets, share, design=setting, seed=_seed(seed, 6)))
    flags += [getattr(estimator, "caveat", "")]
    spread = _spread(estimator, prior, pairs, given, {**options, "seed": _seed(seed, 7)})
    found_all = _judge(
        pairs, checks, curves, flags, seed=seed, false_alarm=false_alarm, kinds=kinds, x_obs=x_obs, local=local
    )
    return replace(found_all, spread=spread)


def _judge(
    pairs: Pairs,
    checks: list[Check],
    curves: list[Curve],
    flags: list[str],
    *,
    seed: int,
    false_alarm: float,
    kinds: int,
    x_obs: Tensor | None = None,
    local: Tensor | None = None,
) -> Diagnosis:
    share, about = false_alarm / kinds, names(pairs.parameters)
    with seeded(_seed(seed, 8)), one_thread():
        each = torch.stack([ranks(pairs.theta[:, k], pairs.draws[..., k]) for k in range(len(about))], 1)
        level, near = credibility(pairs), reference_ranks(pairs)
        by_rank, rank_curves = compared("ranks", about, each, share / 2)
        by_point, point_curves = compared("TARP", ("",), near[:, None], share)
        covered = coverage(level, share)
        checks = [
            information(pairs, share),
            *by_rank,
            *normal_scores(about, each, share / 2),
            *covered,
            *by_point,
            *moments(data := scored(pairs, x_obs, local), share),
            classifier(data, share),
            *checks,
        ]
        _, level_curves = compared("credibility", ("",), level[:, None], share)
    recalibration = Recalibration(level.sort().values)
    flags = [*filter(None, flags), *(str(check) for check in checks if check.passed is not True)]
    if any(check.passed is False for check in covered):
        quoted = ", ".join(f"{recalibration.level(v):.3g} for {v:g}" for v in (0.68, 0.9, 0.95))
        flags.append(f"coverage fails; regions hold the truth at these levels instead (`recalibrated`): {quoted}")
    return Diagnosis(
        tuple(checks),
        (*rank_curves, *level_curves, *point_curves, *curves),
        each,
        level,
        len(pairs),
        recalibration,
        "unchecked",
        tuple(flags),
        false_alarm,
        seed,
    )


def _check(axes: Any, source: Any, simulator: Simulator | None, n: int, iid: int | None, false_alarm: float) -> None:
    where, known = (
        ("the simulator", simulator.parameters) if simulator is not None else ("source", source.info.parameters)
    )
    if match(axes, known, where) != list(range(len(axes))) and simulator is not None:
        raise InputError(f"{where} has the parameters {names(known)} in another order than {names(axes)}.")
    if whole := [axis.name for axis in axes if axis.integer]:
        raise InputError(f"parameters {whole} take whole numbers only; posteriors of real ones are served.")
    if n < FEWEST:
        raise InputError(f"n = {n}, expected at least {FEWEST} pairs: fewer say nothing about coverage.")
    if iid is not None and (iid < 1 or simulator is None):
        raise InputError(f"iid = {iid}: sets of observations at one theta need the simulator as source, and a number.")
    if not 0 < false_alarm < 1:
        raise InputError(f"false_alarm = {false_alarm}: expected a probability.")


def _seed(seed: int, block: int) -> int:
    """A stream of its own: the seed of training, given here too, must not bring back the rows of training."""
    return int(block_seed(seed, 2**20 + block).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _simulated(
    simulator: Simulator, prior: Distribution, n: int, iid: int | None, design: Any, seed: int, progress: bool
) -> Simulations:
    if iid is None:
        proposal: Any = prior
    else:
        with seeded(seed):
            proposal = prior.sample(torch.Size([n])).double().repeat_interleave(iid, 0)
    made: Simulations = simulate(
        simulator, n * (iid or 1), proposal=proposal, design=design, seed=seed, progress=progress
    )
    return made


def _held_out(
    estimator: Any, source: Any, prior: Distribution | None, n: int, flags: list[str]
) -> tuple[Simulations, Distribution]:
    """The rows, checked against what the estimator says about its training, and their prior."""
    rows: Simulations = source[:n]
    rows = rows.reordered(estimator.axes) if hasattr(estimator, "axes") else rows
    proposal = rows.info.proposal
    if proposal is None and prior is None:
        raise InputError("prior: the rows do not say which density theta was drawn from. Give prior=...")
    if proposal is not None and prior is not None and describe(proposal) != describe(prior):
        raise InputError(
            f"prior: the rows were drawn from {proposal!r}, not from {prior!r}; calibration holds over "
            "the density that theta was drawn from. Leave the prior out, or give the simulator as source."
        )
    made = getattr(estimator, "provenance", None) or {}
    same = made.get("campaign_seed") is not None and made["campaign_seed"] == rows.info.seed
    if same and len(source) == sum(made["rows"]):
        raise InputError(
            f"source: these are the {len(source)} rows of training (campaign seed {rows.info.seed}), on which "
            "posteriors look better than they are. Give rows that were left out, or the simulator."
        )
    if same:
        flags.append("the rows come from the campaign of training; that none of them was in training is unchecked")
    elif made.get("campaign_seed") is None or rows.info.seed is None:
        flags.append("whether training has seen these rows is unchecked")
    found = prior if prior is not None else proposal
    assert found is not None
    return rows, found


def _shaped(rows: Simulations, iid: int | None, flags: list[str]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Valid rows as theta (N, D), x (N, *event) or sets (N, iid, *event), and their designs and numbers of events."""
    good, theta = rows.valid, rows.theta
    given = {name: v for name, v in (("design", rows.design), ("n_events", rows.n_events)) if v is not None}
    x = rows.x
    if iid is not None:
        good, theta, x = good.reshape(-1, iid).all(1), theta[::iid], x.unflatten(0, (-1, iid))
        given = {name: value.unflatten(0, (-1, iid)) for name, value in given.items()}
    if not bool(good.all()):
        flags.append(f"{int((~good).sum())} of {len(good)} pairs were left out: the simulator failed there")
    return theta[good], x[good], {name: value[good] for name, value in given.items()}


def _closure(
    estimator: Any, simulator: Simulator, pairs: Pairs, n: int, design: Any, share: float, seed: int
) -> tuple[list[Check], Curve | None]:
    """From the middle of the truths towards one of them, as far as half of the reweighted rows count."""
    here = pairs.theta.median(0).values
    there = pairs.theta[0]
    base = simulate(simulator, n, proposal=here, design=design, seed=seed, progress=False)
    base = base[base.valid]
    given = {name: v for name, v in (("design", base.design), ("n_events", base.n_events)) if v is not None}
    with torch.no_grad():
        for _ in range(30):
            log_ratio = log_ratios(estimator, here.expand(len(base), -1), there.expand(len(base), -1), base.x, **given)
            effective = (2 * log_ratio.logsumexp(0) - (2 * log_ratio).logsumexp(0)).exp()
            if float(effective) >= len(base) / 2:
                break
            there = (here + there) / 2
    other = simulate(simulator, n, proposal=there, design=design, seed=seed + 1, progress=False)
    return closure(log_ratio, base.x, other[other.valid].x, share)


def _spread(estimator: Any, prior: Distribution, pairs: Pairs, given: dict[str, Any], options: dict[str, Any]) -> str:
    """How far the posterior means of an ensemble's members lie apart."""
    members = list(getattr(estimator, "members", ()))
    if not members:
        return "unchecked"
    some = {name: value[:SPREAD] for name, value in given.items()}
    found = [
        posterior_draws(m, prior, pairs.theta[:SPREAD], pairs.x[:SPREAD], **some, **options).draws for m in members
    ]
    apart = torch.stack([draws.mean(1) for draws in found]).std(0) / pairs.draws[:SPREAD].std(1).clamp(min=1e-300)
    said = f"{float(apart.median()):.2g} posterior sd between the means of {len(members)} trainings"
    return f"{said} (median over {len(apart)} observations; at most {float(apart.max()):.2g})"
