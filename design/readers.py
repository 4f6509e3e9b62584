"""Who looks at experiments: estimators, exact simulators, or the joint density of x and latents."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sbi_core.errors import InputError
from sbi_core.events import Events, RunLikelihood
from sbi_core.gold import log_joint
from sbi_core.parameters import Parameter, names
from sbi_core.simulations import Simulations
from sbi_core.simulator import LogLikelihood, Simulator

AT_ONCE, WIDE = 400_000, 64
"""Numbers that are seen with thetas together; of one event so many at most, as what is wider is embedded before."""

Reader = Callable[[Simulations], LogLikelihood]
"""Rows (m, ...), looked at once: thetas (m or 1, l, D) -> log density of each row at each theta, nats (m, l)."""


def reader(estimator: Any) -> Reader:
    """What an estimator, or a simulator that knows its exact likelihood, says about rows; equal x are seen once."""

    def looked_at(rows: Simulations) -> LogLikelihood:
        design, count = rows.design, rows.n_events
        if design is not None:
            design = (design[:1] if bool((design == design[0]).all()) else design)[:, None]
        counts = {"n_events": count[:, None]} if count is not None and _counts(estimator) else {}
        look: LogLikelihood = estimator.observe(rows.x[:, None], design, **counts)
        return look

    def read(rows: Simulations) -> LogLikelihood:
        columns = [rows.x.flatten(1), *(c for c in (rows.n_events, rows.design) if c is not None)]
        seen = torch.cat([column.reshape(len(rows), -1).double() for column in columns], 1)
        unique, place = torch.unique(seen, dim=0, return_inverse=True)
        every = once = looked_at(rows)
        if len(unique) < len(rows):
            first = torch.full((len(unique),), len(rows)).scatter_reduce(0, place, torch.arange(len(rows)), "amin")
            once = looked_at(rows[first])

        def look(theta: Tensor) -> Tensor:
            if len(theta) == 1 and once is not every:
                return once(theta).expand(len(unique), theta.shape[1])[place].double()
            return every(theta).expand(len(rows), theta.shape[1]).double()

        return look

    return read


def joint_reader(simulator: Simulator) -> Reader:
    """log p(x, z | theta) of rows with their latents."""

    def read(rows: Simulations) -> LogLikelihood:
        width = sum(column[0].numel() for column in (rows.x, rows.z) if column is not None)
        size = max(1, AT_ONCE // max(1, width))

        def look(theta: Tensor) -> Tensor:
            m, count = len(rows), theta.shape[1]
            index = torch.arange(m).repeat_interleave(count)
            flat = theta.expand(m, count, -1).reshape(m * count, -1)
            value = torch.empty(m * count, dtype=torch.float64)
            for found, some, part in zip(*(column.split(size) for column in (value, index, flat)), strict=True):
                found.copy_(log_joint(simulator, rows[some], part))
            return value.reshape(m, count)

        return look

    return read


def check_exact(simulator: Simulator) -> None:
    """Raise `InputError` unless a simulator knows its likelihood."""
    if not simulator.is_exact:
        raise InputError(
            f"simulator '{simulator.name}' states no exact log_likelihood, and one is needed. Train an estimator for "
            "posterior_gain and contrastive_bound."
        )


def check_same(what: str, named: Sequence[Parameter], expected: Sequence[Parameter]) -> None:
    """Raise `InputError` unless axes, if there are any, have the expected names in the same order."""
    if named and names(named) != names(expected):
        raise InputError(f"{what} are {names(named)}, those of the simulator {names(expected)}: expected the same.")


def _counts(estimator: Any) -> bool:
    return bool(getattr(estimator, "needs_n_events", False) or getattr(estimator, "counted", False))


def of_runs(estimator: Any, simulator: Simulator) -> Any:
    """The estimator, or what it says about runs if it was trained on single events of them.

    Raises:
        InputError: unless it is trained or exact, and both speak of the same parameters and designs in the same order.
    """
    if isinstance(estimator, Simulator):
        check_exact(estimator)
    if not bool(getattr(estimator, "trained", True)):
        raise InputError(f"{type(estimator).__name__} is not trained; give the estimator of a Fit.")
    kind = type(estimator).__name__
    check_same(f"parameters of {kind}", getattr(estimator, "axes", None) or estimator.parameters, simulator.parameters)
    check_same(f"designs of {kind}", getattr(estimator, "designs", ()), simulator.designs)
    if not isinstance(simulator, Events) or estimator is simulator:
        return estimator
    shape = getattr(estimator, "x_shape", None)
    whole = isinstance(estimator, Events) or getattr(estimator, "counted", False)
    whole = whole or (shape is not None and tuple(shape) != simulator.x_event)
    return estimator if whole else RunLikelihood(simulator, estimator)
