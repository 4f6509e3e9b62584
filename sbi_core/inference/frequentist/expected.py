"""What an experiment will be able to say: limits from the expectation of the log likelihood."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.distributions import Distribution

from sbi_core.columns import to_column
from sbi_core.errors import InputError
from sbi_core.inference.frequentist.intervals import pieces
from sbi_core.inference.frequentist.maximum import Box, values
from sbi_core.inference.frequentist.profile import Problem
from sbi_core.inference.frequentist.rates import extended
from sbi_core.inference.frequentist.record import Limits
from sbi_core.inference.frequentist.sets import Sets
from sbi_core.inference.frequentist.toys import Plan
from sbi_core.inference.frequentist.wilks import asked_levels, asymptotic, interest, quantile
from sbi_core.inference.observed import auxiliary
from sbi_core.parameters import Parameter
from sbi_core.seeding import fresh_seed, one_thread, seeded


def expected_limits(
    estimator: Any,
    simulator: Any,
    theta: Any,
    *,
    of: Sequence[str] | str | None = None,
    events: int = 1,
    simulations: int = 10_000,
    design: Any = None,
    constraints: Mapping[Any, Distribution] | None = None,
    level: float | Sequence[float] = (0.683, 0.95),
    rate: Any = None,
    exposure: float = 1.0,
    seed: int | None = None,
) -> Limits:
    """Wilks' sets of an experiment in which everything comes out as expected at one theta.

    The log likelihood is its expectation, n E[log p(x | theta') | theta], by the mean over simulations; the number of
    events and the auxiliary measurements are their expectations (the Asimov data set of arXiv:1007.1727, without
    binning). Its width is that of a typical experiment; its Monte Carlo error is stated at each end.

    Args:
        estimator: what reads the events.
        simulator: what draws them.
        theta: the truth, (D,).
        of: parameters of interest; by default all.
        events: n; with a rate it follows from that.
        simulations: events drawn for the expectation.
        design: of all events, (K,).
        constraints: auxiliary measurements, whose distributions are moved so that their means are the truth.
        level: of confidence.
        rate: as in `limits`.
        exposure: as in `limits`.
        seed: of the simulations.

    Raises:
        InputError: for arguments that do not fit.
    """
    axes: tuple[Parameter, ...] = getattr(estimator, "axes", None) or estimator.parameters
    box, columns, levels = Box.of(axes), interest(of, axes), asked_levels(level)
    truth = to_column("theta", theta)
    if truth.shape != (len(axes),) or bool(((truth < box.low) | (truth > box.high)).any()):
        raise InputError(f"theta = {truth.tolist()}, expected {len(axes)} numbers inside the parameters' ranges.")
    setting = None if design is None else to_column("design", design)
    if setting is not None and setting.ndim != 1:
        raise InputError("expected_limits: all events must have the same design, (K,).")
    poisson = extended(estimator, simulator, rate, exposure, setting)
    expected = float(events) if poisson is None else float(poisson.mean(truth))
    seed = fresh_seed() if seed is None else seed
    plan = Plan(estimator, box, columns, simulations, setting, None, None, simulator)
    plan.check()
    with seeded(seed), one_thread():
        drawn = plan.draw(truth, 1)
        shift = tuple(truth[k] - measured.mean for k, measured in auxiliary(constraints, axes))
        weight = torch.full((simulations,), expected / simulations).double()
        toys = replace(drawn, weight=weight, shift=tuple(s[None] for s in shift))
        sets = Sets(estimator, toys, poisson=poisson, constraints=constraints)
        problem = Problem(sets, box, columns, sets.at_once, sets.pairs)
        found = asymptotic(problem, axes, levels, seed)
        off = 2 * (found.log_likelihood - float(values(sets, truth[None, None])))
        return _with_errors(found, sets, off * simulations / expected, simulations)


def _with_errors(found: Limits, sets: Sets, off: float, simulations: int) -> Limits:
    """The limits with the Monte Carlo error of their ends, and how far the best fit lies from the truth."""
    from scipy.stats import chi2  # slow to import

    intervals = dict(found.intervals)
    if intervals:
        error = sets.error(found.theta, found.best_fit)
        intervals = {level: pieces(found.grid[0], found.q - quantile(level, 1), error) for level in intervals}
    p = float(chi2.sf(off, len(found.best_fit)))
    verdicts = {
        **found.verdicts,
        "coverage": "expected, asymptotic (Wilks), unchecked by toys",
        "expectation": f"from {simulations} simulations; the truth has p = {p:.2g} for their own best fit",
    }
    flags = found.flags
    if p < 1e-4:
        flags = (
            *flags,
            f"the best fit of the expectation is not the truth (p = {p:.1g}): the likelihood is biased",
        )
    return replace(found, method="expected", intervals=intervals, verdicts=verdicts, flags=flags)
