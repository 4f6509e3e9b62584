"""Is an observation one that was simulated?"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.random import SeedSequence
from torch import Tensor
from torch.nn.functional import one_hot

from sbi_core.columns import to_column
from sbi_core.errors import InputError
from sbi_core.inference.checks.check import Check
from sbi_core.inference.checks.crowd import TESTS, Crowd
from sbi_core.inference.checks.familiar import FALSE_ALARM, MOST, Familiar, reader
from sbi_core.inference.checks.sets import FROM_SIMULATOR, LARGEST, Sets, draw_sets, gather_sets
from sbi_core.inference.checks.summaries import summaries_of, summary_names
from sbi_core.inference.observed import in_shape
from sbi_core.seeding import fresh_seed, one_thread, torch_generator
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator

COLUMNS = 20
"""Columns of x up to which a set is looked at column by column; of more, at so many principal components."""

FEWEST = 10
"""Rows from which a set is looked at as a set."""


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
        estimator: a trained one.
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
    rows = None if simulations is None else _rows(simulations)
    known = getattr(estimator, "familiar", None) if rows is None else None
    if rows is None and known is None:
        raise InputError(
            "simulations is missing, and the estimator remembers none. Give simulations=..., or the estimator "
            "of a finished fit."
        )
    with one_thread(), torch.no_grad():
        seen = reader(estimator)
        if rows is not None:
            known = Familiar.of(rows.x, rows.n_events, categories=rows.info.categories, seen=seen)
        found = to_column("x_obs", x_obs)
        bad = ~torch.isfinite(found)
        if bool(bad.any()):
            first = bad.nonzero()[0].tolist()
            what = "NaN" if bool(found.isnan().any()) else "infinite"
            text = f"{what} in {int(bad.sum())} of {found.numel()} places, first at {first}; nothing else was checked"
            return ObservationCheck(
                (Check("finite", "", float(bad.sum()), (0.0, 0.0), False, text),), false_alarm, seed
            )
        x, count = in_shape(found, known.event, known, iid, batch, n_events)
        event, leading = x.shape[iid + batch :], x.shape[: iid + batch]
        flat, each = x.reshape(-1, *event), None if count is None else count.reshape(-1)
        as_set = iid and leading[-1] > 1
        checks = known.check(flat, each, seen=seen, false_alarm=false_alarm / (1 + as_set))
        if as_set:
            world = _World(known, rows, simulator, design)
            checks += world.check(flat, each, leading[-1], level=false_alarm / 2, seed=seed)
    return ObservationCheck(tuple(checks), false_alarm, seed)


def _rows(simulations: Any) -> Simulations:
    """The usable ones of the first `MOST` simulations."""
    rows: Simulations = simulations[: min(MOST, len(simulations))]
    rows = rows[rows.valid]
    if not len(rows):
        raise InputError("simulations: 0 valid rows, expected at least 1.")
    return rows


@dataclass(frozen=True)
class _World:
    """What sets are compared with."""

    known: Familiar
    rows: Simulations | None
    simulator: Simulator | None
    design: Any

    def check(self, x: Tensor, n_events: Tensor | None, n: int, *, level: float, seed: int) -> list[Check]:
        """Test sets x (B n, *event), n_events (B n,) of n rows each."""
        labels = "labels" in self.known.state
        if n < FEWEST:
            return _unsaid(f"{n} rows are too few to be looked at as a set, {FEWEST} are enough", level)
        if self.rows is None:
            return _unsaid("sets of rows at one theta need simulations=...", level)
        if self.simulator is not None:
            sets, used = self._drawn(n, seed), n
        elif self.design is not None and to_column("design", self.design).ndim > 1:
            return _unsaid("the rows of the set have designs of their own", level)
        else:
            theta = self.rows.theta if self.rows.design is None else torch.cat([self.rows.theta, self.rows.design], 1)
            used = min(n, LARGEST)
            z = self._view(self.rows.x, self.rows.n_events)
            sets = gather_sets(theta, z, used, adjust_spread=not labels, seed=seed)
        if sets.unresolved:
            return _unsaid(sets.unresolved, level)
        names = self._names()
        mine = self._view(x, n_events).reshape(-1, n, sets.first.shape[2])
        mine = mine[:, torch.linspace(0, n - 1, used).long()]
        if labels:
            numbers = [each.mean(1) for each in (sets.first, sets.second, mine)]
            names, tests = [f"share of {name}" for name in names], TESTS[1:]
        else:
            spacing = self.simulator is not None or self._continuous()
            numbers = [summaries_of(each, spacing=spacing) for each in (sets.first, sets.second, mine)]
            names, tests = summary_names(names, spacing=spacing), TESTS
        crowd = Crowd.of(*numbers[:2])
        found = crowd.check(numbers[2], names, level / len(tests), what="set", tests=tests)
        return [replace(check, name=f"{check.name} of the set") for check in found]

    def _drawn(self, n: int, seed: int) -> Sets:
        """Sets of n rows from the simulator, at thetas of the stored rows."""
        assert self.rows is not None and self.simulator is not None
        some = torch.randperm(len(self.rows), generator=torch_generator(SeedSequence(seed)))[:FROM_SIMULATOR]
        theta, design = self.rows.theta[some], None if self.rows.design is None else self.rows.design[some]
        if self.design is not None:
            design = to_column("design", self.design).double().expand(len(theta), -1)
        x, n_events = draw_sets(self.simulator, theta, design, n, seed=seed)
        whole = x.flatten(1).isfinite().all(1).reshape(-1, n).all(1)
        z = self._view(x.nan_to_num(), n_events).reshape(len(theta), n, -1)[whole]
        return Sets(*z.tensor_split(2))

    def _view(self, x: Tensor, n_events: Tensor | None) -> Tensor:
        """What is compared of rows x (N, *event), n_events (N,) in a set, (N, C)."""
        if "labels" in self.known.state:
            return one_hot(x.flatten().long(), len(self.known.state["labels"])).double()
        crowd, columns = self.known.crowd(), self.known.columns(x, n_events)
        if columns.shape[1] <= COLUMNS:
            return crowd.standard(columns)
        white, left = crowd.whitened(columns)
        size = (white.square().sum(1) + left).log1p()
        return torch.cat([white[:, : COLUMNS - 2], left.log1p()[:, None], size[:, None]], 1)

    def _names(self) -> list[str]:
        state = self.known.state
        if "labels" in state:
            return [f"label {k}" for k in range(len(state["labels"]))]
        names = self.known.names()
        wide = min(COLUMNS - 2, self.known.crowd().state["whitening"].shape[1])
        return names if len(names) <= COLUMNS else [*(f"component {k}" for k in range(wide)), "remainder", "distance"]

    def _continuous(self) -> bool:
        """Whether hardly any number of a column comes twice, so that moved rows are not told by being single."""
        assert self.rows is not None
        columns = self.known.columns(
            self.rows.x[:1000], self.rows.n_events if self.rows.n_events is None else self.rows.n_events[:1000]
        )
        single = [len(column.unique()) / len(column) for column in columns.T]
        return all(share > 0.5 for share in single if share * len(columns) > 1)


def _unsaid(why: str, level: float) -> list[Check]:
    return [Check("set", "", math.nan, (level, 1.0), None, why)]
