"""Whether a run's posteriors are true, and predict what was observed, within what simulating more may cost."""

import copy
import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.distributions import Distribution

from sbi_core.campaign import simulate
from sbi_core.errors import SbiError, SbiWarning
from sbi_core.events import Events
from sbi_core.inference import diagnose
from sbi_core.inference.checks.replicates import FEWEST, replicate
from sbi_core.results import Results
from sbi_core.seeding import derived_seed, seeded
from sbi_core.simulator import Simulator

PREDICTIVE = "posterior predictive"
"""The check that says whether the posterior predicts what was observed."""


def with_checks(
    results: Results,
    estimator: Any,
    prior: Distribution,
    *,
    iid: bool,
    pairs: int,
    time_limit: float,
    replicates: int = 0,
    rows: Mapping[str, Any] | None = None,
) -> Results:
    """The results with a diagnosis and with replicates of the observation, and both verdicts in their posterior.

    Args:
        results: with a posterior, and the simulator if there is one.
        estimator: that gave it.
        prior: of theta, event shape (D,).
        iid: whether sets as large as the observation are checked.
        pairs: of theta and x, or of theta and sets; 0 for none.
        time_limit: seconds for each of the two; what would take longer stays unchecked, and says so.
        replicates: simulated copies of the observation, fewer if these take longer; 0 for none.
        rows: how replicates are simulated: `failing` and `time_limit` of `replicate`.
    """
    results = _diagnosed(results, estimator, prior, iid=iid, pairs=pairs, time_limit=time_limit)
    return _replicated(results, replicates, time_limit, rows or {})


def _diagnosed(
    results: Results, estimator: Any, prior: Distribution, *, iid: bool, pairs: int, time_limit: float
) -> Results:
    world, posterior = results.simulator, results.posterior
    if not pairs:
        return _unchecked(results, "checks.pairs is 0")
    if world is None:
        return _unchecked(results, "it takes fresh simulations, and there is no simulator")
    count = len(results.x_obs) if iid and results.x_obs is not None else 1
    options: dict[str, Any] = {"n": pairs, "iid": count if iid else None, "seed": results.seed, "progress": False}
    try:
        needed = _seconds(world, prior, pairs * count, results.seed, time_limit)
        if needed > time_limit:
            return _unchecked(results, f"{pairs * count:,} simulations would take about {needed:.0f} s; see checks")
        found = diagnose(estimator, world, prior=prior, time_limit=time_limit, **options)
    except SbiError as error:
        return _unchecked(results, str(error))
    return replace(results, posterior=found.annotate(posterior), diagnosis=found)


def _replicated(results: Results, replicates: int, time_limit: float, rows: Mapping[str, Any]) -> Results:
    """The results with a posterior predictive check."""
    world, posterior, x_obs = results.simulator, results.posterior, results.x_obs
    if not replicates:
        return _unchecked(results, "checks.replicates is 0", PREDICTIVE)
    if world is None or x_obs is None:
        return _unchecked(results, "it takes fresh simulations, and there is no simulator", PREDICTIVE)
    if (len(x_obs) == 1 and world.categories is not None) or isinstance(world, Events):
        return _unchecked(results, "replicates are compared of numbers, and of sets of labels", PREDICTIVE)
    seed = derived_seed(results.seed or 0, 2**22)
    try:
        needed = _seconds(world, posterior, FEWEST * len(x_obs), results.seed, time_limit, rows.get("time_limit"))
        if needed > time_limit:
            return _unchecked(results, f"{FEWEST} replicates would take about {needed:.0f} s; see checks", PREDICTIVE)
        count = min(replicates, max(FEWEST, int(FEWEST * time_limit / max(needed, 1e-9))))
        with seeded(seed):
            theta = posterior.sample(torch.Size([count])).double()
        found = replicate(world, theta, x_obs, seed=seed, **rows)
    except SbiError as error:
        return _unchecked(results, str(error), PREDICTIVE)
    posterior = copy.copy(posterior)
    posterior.verdicts = {**posterior.verdicts, PREDICTIVE: found.verdict}
    if not found.passed:
        posterior.flags = (*posterior.flags, f"the posterior does not predict x_obs: {found.verdict}")
    return replace(results, posterior=posterior, predicted=found)


def _unchecked(results: Results, why: str, check: str = "coverage") -> Results:
    posterior = copy.copy(results.posterior)
    posterior.verdicts = {**posterior.verdicts, check: f"unchecked: {why}"}
    return replace(results, posterior=posterior)


def _seconds(
    world: Simulator,
    prior: Distribution,
    rows: int,
    seed: int | None,
    time_limit: float,
    row_limit: float | None = None,
) -> float:
    """About how long so many simulations take: a first block with all that is done once, and the others.

    What a block takes by itself is the difference of two calls; the second is not made if the first took too long.
    """
    per_seed = world.rows_per_seed
    blocks = math.ceil(rows / per_seed)

    def taken(n: int) -> float:
        begun = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SbiWarning)  # of failed rows
            simulate(world, n, proposal=prior, seed=seed, max_failures=n, time_limit=row_limit, progress=False)
        return time.perf_counter() - begun

    first = taken(1)
    if blocks == 1 or first > time_limit:
        return first * blocks
    more = min(blocks - 1, max(1, int(0.1 * time_limit / first)))
    return first + (blocks - 1) * max(taken(1 + more * per_seed) - first, 0.0) / more
