"""Confidence sets of a run's parameters, one by one."""

from dataclasses import replace
from typing import Any

from sbi_core.errors import InputError
from sbi_core.inference import limits
from sbi_core.results import Results


def with_limits(results: Results, estimator: Any, *, iid: bool, method: str, toys: int, time_limit: float) -> Results:
    """The results with confidence sets of each parameter, the others at their best.

    Args:
        results: with x_obs, and for toys with the simulator.
        estimator: that gave them.
        iid: whether x_obs are independent draws at one theta.
        method: of `limits`.
        toys: at each point.
        time_limit: seconds for each parameter; a set that needs more is left out, and a note says so.
    """
    x_obs = results.x_obs if iid or results.x_obs is None else results.x_obs[0]
    found, notes = {}, []
    options: dict[str, Any] = {"iid": iid, "method": method, "seed": results.seed, "time_limit": time_limit}
    if method != "profile":
        options |= {"simulator": results.simulator, "toys": toys}
    for name in (parameter.name for parameter in results.parameters):
        try:
            found[name] = limits(estimator, x_obs, of=[name], **options)
        except InputError as error:
            notes.append(f"limits of {name}: none, {error}")
    return replace(results, limits=found, notes=(*results.notes, *notes))
