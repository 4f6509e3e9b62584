"""Is an observation one that was simulated?"""

from dataclasses import dataclass
from typing import Any

import torch

from sbi_core.columns import to_column
from sbi_core.errors import InputError
from sbi_core.inference.checks.check import Check
from sbi_core.inference.checks.familiar import FALSE_ALARM, MOST, Familiar, Reader, reader
from sbi_core.inference.checks.set_test import set_test
from sbi_core.inference.observed import in_shape
from sbi_core.seeding import fresh_seed, one_thread
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator


@dataclass(frozen=True)
class ObservationCheck:
    """What was found about an observation.

    Attributes:
        checks: one by one.
        false_alarm: probability that an observation that was simulated fails.
        seed: of everything random here.
    """

    checks: tuple[Check, ...]
    false_alarm: float
    seed: int

    @property
    def passed(self) -> bool | None:
        """Whether no check failed; `None` if none could say anything."""
        said = {check.passed for check in self.checks}
        return False if False in said else True if True in said else None

    @property
    def flags(self) -> tuple[str, ...]:
        """What is strange about the observation, in sentences."""
        return tuple(
            f"x_obs is not like what was simulated: {c.name}: {c.text}" for c in self.checks if c.passed is False
        )

    @property
    def verdict(self) -> str:
        """One sentence."""
        named = {said: [check for check in self.checks if check.passed is said] for said in (True, False, None)}
        left = "".join(f"; unchecked: {check.name}: {check.text}" for check in named[None][:1])
        if named[False]:
            found = "; ".join(f"{check.name}: {check.text}" for check in named[False])
            return f"NOT like what was simulated: {found}{left}"
        if not named[True]:
            return left.removeprefix("; ") or "unchecked"
        return f"like what was simulated, by {', '.join(check.name for check in named[True])}{left}"

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "false_alarm": self.false_alarm,
            "seed": self.seed,
            "checks": [check.to_json() for check in self.checks],
        }


def check_observation(
    x_obs: Any,
    simulations: Any = None,
    *,
    estimator: Any = None,
    simulator: Simulator | None = None,
    design: Any = None,
    n_events: Any = None,
    iid: bool = False,
    batch: bool = False,
    false_alarm: float = 2 * FALSE_ALARM,
    seed: int | None = None,
) -> ObservationCheck:
    """Say whether an observation could be one of the simulations.

    Each row by itself: the tail probability of its most extreme column; its distance from the mean and from its
    neighbours among simulated rows, in whitened units, which see what no column shows; the same in the output of the
    estimator's embedding (see `Crowd`, `Familiar`).

    With `iid`, from 10 rows on, the set as a whole: its means, spreads, shapes, correlations and distances of rows are
    compared, by the same three tests, with those of sets at one theta each, with thetas as they were simulated. The
    sets come from the simulator, if it is given; else from stored rows with thetas near each other, and where these lie
    too far apart for that, the set is unchecked (see `gather_sets`).

    Args:
        x_obs: as `infer` takes it, but NaN is a finding here, not an error.
        simulations: rows or a store; not needed if the estimator remembers its own (sets then need a simulator).
        estimator: a trained one, for its embedding and its memory.
        simulator: where whole sets come from; 1,000 times n rows are drawn.
        design: the design of the observation, (K,), or of each row. It is fixed in a set from the simulator; all else
            is compared with rows of all designs.
        n_events: how many events of each run count, as `infer` takes it.
        iid: the rows of x_obs (n, *event) are draws at one theta.
        batch: a leading axis counts observations, each checked; the false alarms are those of all together.
        false_alarm: probability that one check or more fails for an x_obs that was simulated.
        seed: of everything random here; `None` takes a fresh one, which is recorded.

    Raises:
        InputError: for an x_obs of another shape, or nothing to compare it with.

    Example:
        >>> from sbi_core import simulate
        >>> from sbi_core.simulators import LinearGaussian
        >>> data = simulate(LinearGaussian(2), 1000, seed=1, progress=False)
        >>> check_observation([0.5, 20.0], data, seed=1).passed
        False
    """
    seed = fresh_seed() if seed is None else seed
    found = to_column("x_obs", x_obs)
    bad = ~torch.isfinite(found)
    if bool(bad.any()):
        what = "NaN" if bool(found.isnan().any()) else "infinite"
        where = f"{int(bad.sum())} of {found.numel()} places, first at {bad.nonzero()[0].tolist()}"
        check = Check("finite", "", float(bad.sum()), (0.0, 0.0), False, f"{what} in {where}; no more was checked")
        return ObservationCheck((check,), false_alarm, seed)
    rows = None if simulations is None else _rows(simulations)
    seen = reader(estimator)
    with one_thread(), torch.no_grad():
        known = _known(rows, estimator, seen)
        x, count = in_shape(found, known.event, known, iid, batch, n_events)
        leading, event = x.shape[: iid + batch], x.shape[iid + batch :]
        x, count = x.reshape(-1, *event), None if count is None else count.reshape(-1)
        as_set = iid and leading[-1] > 1
        checks = known.check(x, count, seen=seen, false_alarm=false_alarm / (1 + as_set))
        if as_set:
            test = set_test(known, rows, leading[-1], simulator=simulator, design=design, seed=seed)
            checks += test.check(x, count, false_alarm=false_alarm / 2)
    return ObservationCheck(tuple(checks), false_alarm, seed)


def _known(rows: Simulations | None, estimator: Any, seen: Reader | None) -> Familiar:
    if rows is not None:
        return Familiar.of(rows.x, rows.n_events, categories=rows.info.categories, seen=seen)
    known: Familiar | None = getattr(estimator, "familiar", None)
    if known is None:
        raise InputError(
            "simulations is missing, and the estimator remembers none. Give simulations=..., or the estimator of a "
            "finished fit."
        )
    return known


def _rows(simulations: Any) -> Simulations:
    """The usable ones of the first `MOST` simulations."""
    rows: Simulations = simulations[: min(MOST, len(simulations))]
    rows = rows[rows.valid]
    if not len(rows):
        raise InputError("simulations: 0 valid rows, expected at least 1.")
    return rows
