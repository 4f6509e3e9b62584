"""What else an experiment may be wanted for: a narrow posterior or a tight limit of one parameter."""

import math
import time
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.design.belief import points
from sbi_core.design.gain import NONE, Gain
from sbi_core.design.information import INNER, OUTER, doubts
from sbi_core.design.readers import of_runs, reader
from sbi_core.design.rollouts import roll
from sbi_core.errors import InputError
from sbi_core.events import Events, RunLikelihood
from sbi_core.inference.frequentist.expected import expected_limits
from sbi_core.parameters import positions
from sbi_core.simulator import Simulator


def expected_width(
    estimator: Any,
    simulator: Simulator,
    prior: Distribution,
    design: Any = None,
    *,
    of: str,
    n: int = OUTER,
    inner: int = INNER,
    seed: int = 0,
) -> Gain:
    """How much narrower one parameter is expected to get: sd(theta_k) - E_x sd(theta_k | x), in its unit.

    All other parameters are integrated out, so an experiment that only teaches about nuisances counts for nothing. Read
    out as in `posterior_gain`, with the same control variates.

    Args:
        estimator: as in `posterior_gain`.
        simulator: as in `posterior_gain`.
        prior: the belief, event shape (D,).
        design: (K,), or `None`.
        of: name of the parameter.
        n: experiments to simulate.
        inner: thetas to see each with.
        seed: fixes all.

    Raises:
        InputError: for an unknown parameter, or what `posterior_gain` refuses.
    """
    (k,) = positions([of], simulator.parameters)
    dims = len(simulator.parameters)
    found = roll(reader(of_runs(estimator, simulator)), simulator, prior, design, n=n, inner=inner, seed=seed)
    before = points(prior, inner, seed, 1)[:, k].std()

    def term(log_sum: Tensor, mean: Tensor, count: int) -> Tensor:
        variance = mean[:, 1 + dims + k] - mean[:, 1 + k] ** 2
        return before - variance.clamp(min=0).sqrt()

    flags = doubts(found)
    value, error = found.estimate(term, corrected=True, controlled=not flags)
    return Gain(
        value,
        error,
        NONE,
        f"expected width of {of}",
        simulations=n,
        evaluations=found.evaluations,
        seconds=found.seconds,
        flags=flags,
    )


def expected_limit_width(
    estimator: Any,
    simulator: Simulator,
    prior: Distribution,
    design: Any = None,
    *,
    of: str,
    level: float = 0.683,
    thetas: int = 16,
    events: int = 4000,
    seed: int = 0,
) -> Gain:
    """How much narrower than the belief's central interval the expected confidence interval of one parameter is.

    E_theta[width of the Wilks interval of the Asimov data set at theta] is taken from the width of the belief, in the
    parameter's unit; the other parameters are profiled. See `expected_limits`.

    Args:
        estimator: of one event, also as `RunLikelihood`, or an exact simulator.
        simulator: of one event, or `Events` of a fixed number or a luminosity.
        prior: the belief, event shape (D,).
        design: (K,), or `None`.
        of: name of the parameter.
        level: of both intervals.
        thetas: of the belief.
        events: simulated for the expectation at each theta.
        seed: fixes all.

    Raises:
        InputError: for an unknown parameter, fewer than 2 thetas, or what `expected_limits` refuses.
    """
    if thetas < 2:
        raise InputError(f"thetas = {thetas}, expected at least 2: the error is read from their spread.")
    started = time.monotonic()
    (k,) = positions([of], simulator.parameters)
    one, options = simulator, {}
    if isinstance(simulator, Events):
        one, options = simulator.simulator, _run(simulator, design)
        estimator = estimator.estimator if isinstance(estimator, RunLikelihood) else estimator
        estimator = one if estimator is simulator else estimator
    drawn = points(prior, 4096, seed, 1)[:, k]
    tail = (1 - level) / 2
    before = float(drawn.quantile(1 - tail) - drawn.quantile(tail))
    widths = []
    for theta in points(prior, thetas, seed):
        found = expected_limits(
            estimator, one, theta, of=of, simulations=events, design=design, level=level, seed=seed, **options
        )
        widths.append(sum(piece.high - piece.low for piece in found.intervals[level]))
    each = before - torch.tensor(widths, dtype=torch.float64)
    error = float(each.std() / math.sqrt(thetas))
    calls, seconds = thetas * events, time.monotonic() - started
    return Gain(float(each.mean()), error, NONE, f"expected limit width of {of}", simulations=calls, seconds=seconds)


def _run(runs: Events, design: Any) -> dict[str, Any]:
    """How many events `expected_limits` is to expect."""
    if runs.luminosity is not None:
        return {"rate": runs.simulator.rate, "exposure": runs.luminosity}  # type: ignore[attr-defined]
    if callable(runs.n):
        if design is None:
            raise InputError(f"design is needed: in '{runs.name}' the number of events is a function of it.")
        at = torch.as_tensor(design, dtype=torch.float64)
        return {"events": int(runs.n(at[None])[0])}
    return {"events": runs.n}
