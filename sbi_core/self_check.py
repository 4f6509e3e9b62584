"""Whether a run's posteriors are true: `diagnose`, within what simulating more may cost."""

import copy
import math
import time
from dataclasses import replace
from typing import Any

from torch.distributions import Distribution

from sbi_core.campaign import simulate
from sbi_core.errors import InputError
from sbi_core.inference import diagnose
from sbi_core.results import Results
from sbi_core.simulator import Simulator


def with_checks(
    results: Results, estimator: Any, prior: Distribution, *, iid: bool, pairs: int, time_limit: float
) -> Results:
    """The results with a diagnosis, and the verdict on coverage in their posterior.

    Args:
        results: with a posterior, and the simulator if there is one.
        estimator: that gave it.
        prior: of theta, event shape (D,).
        iid: whether sets as large as the observation are checked.
        pairs: of theta and x, or of theta and sets; 0 for none.
        time_limit: seconds; what would take longer stays unchecked, and says so.
    """
    world, posterior = results.simulator, results.posterior
    if not pairs:
        return _unchecked(results, "checks.pairs is 0")
    if world is None:
        return _unchecked(results, "it takes fresh simulations, and there is no simulator")
    count = len(results.x_obs) if iid and results.x_obs is not None else 1
    needed = _seconds(world, prior, pairs * count, results.seed)
    if needed > time_limit:
        return _unchecked(results, f"{pairs * count:,} simulations would take about {needed:.0f} s; see checks")
    options: dict[str, Any] = {"n": pairs, "iid": count if iid else None, "seed": results.seed, "progress": False}
    try:
        found = diagnose(estimator, world, prior=prior, time_limit=time_limit, **options)
    except InputError as error:
        return _unchecked(results, str(error))
    return replace(results, posterior=found.annotate(posterior), diagnosis=found)


def _unchecked(results: Results, why: str) -> Results:
    posterior = copy.copy(results.posterior)
    posterior.verdicts = {**posterior.verdicts, "coverage": f"unchecked: {why}"}
    return replace(results, posterior=posterior)


def _seconds(world: Simulator, prior: Distribution, rows: int, seed: int | None) -> float:
    """About how long so many simulations take, from one block of them."""
    begun = time.perf_counter()
    simulate(world, 1, proposal=prior, seed=seed, progress=False)
    return (time.perf_counter() - begun) * math.ceil(rows / world.rows_per_seed)
