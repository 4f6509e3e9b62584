"""What a posterior predicts of another observation like the one it was made from."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_core.errors import InputError
from sbi_core.inference.checks.check import Check
from sbi_core.inference.checks.copies import copies
from sbi_core.inference.checks.crowd import TESTS, Crowd, rank_of
from sbi_core.inference.checks.features import WIDEST, features_of, names_of
from sbi_core.seeding import derived_seed, one_thread
from sbi_core.simulator import Simulator

DOUBTFUL, WRONG = 0.05, 0.01
"""p below which it is doubtful that x_obs is as predicted, and below which it is said not to be."""

FEWEST = 100
"""Replicates below which nothing is said."""

QUANTILES = (0.025, 0.16, 0.5, 0.84, 0.975)

_AT_ONCE = 50_000


@dataclass(frozen=True)
class Predicted:
    """Replicates of an observation, and where the observation lies among them.

    Attributes:
        names: of the C statistics.
        observed: their values in x_obs, (C,).
        bands: their quantiles at `QUANTILES` among the replicates, (5, C).
        p: share of replicates that are as strange as x_obs.
        checks: the tests of all statistics together, each by itself.
        replicates: simulated copies of the observation.
        alike: whether all statistics are numbers of one kind, to be drawn on one axis.
        failed: share of their rows that the simulator failed at, and that were drawn again.
    """

    names: tuple[str, ...]
    observed: Tensor
    bands: Tensor
    p: float
    checks: tuple[Check, ...]
    replicates: int
    alike: bool
    failed: float = 0.0

    @property
    def passed(self) -> bool | None:
        """Whether x_obs lies where it was predicted; `None` if that is doubtful."""
        return True if self.p >= DOUBTFUL else False if self.p < WRONG else None

    @property
    def verdict(self) -> str:
        """One sentence."""
        worst = min(self.checks, key=lambda check: check.value)
        outside = int(((self.observed < self.bands[0]) | (self.observed > self.bands[-1])).sum())
        bands = f"{outside} of {len(self.names)} outside their 95% band"
        said = {True: "passed: x_obs lies among", None: "doubtful: x_obs against", False: "NOT as predicted by"}
        again = f"; {self.failed:.2g} of their rows failed, and were drawn again" if self.failed else ""
        found = f"p = {self.p:.2g} ({worst.text}); {bands}{again}"
        return f"{said[self.passed]} {self.replicates:,} replicates, {found}"

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file."""
        return {
            "passed": self.passed,
            "p": self.p,
            "verdict": self.verdict,
            "replicates": self.replicates,
            "failed": self.failed,
            "checks": [check.to_json() for check in self.checks],
            "names": list(self.names),
            "observed": self.observed.tolist(),
            "bands": {f"{level:g}": band.tolist() for level, band in zip(QUANTILES, self.bands, strict=True)},
        }


def replicate(
    simulator: Simulator,
    theta: Tensor,
    x_obs: Tensor,
    *,
    seed: int,
    failing: float | None = None,
    time_limit: float | None = None,
) -> Predicted:
    """Simulate x_obs again at draws of its posterior, and say whether it could be one of the copies.

    A posterior predictive check (Gelman, Meng & Stern, Statistica Sinica 6 (1996) 733). The statistics are the numbers
    of a single observation (what stands for them if they are many, see `features_of`); of a set, the mean and standard
    deviation of each, and of class labels how often each came. All of them together take the three tests of `Crowd`:
    the most extreme one, the distance from the mean and the distance from other replicates, in whitened units, which
    see what no statistic shows by itself. One half of the replicates makes the crowd; p is the rank of the smallest of
    the three p-values of x_obs among those of the other half.

    A right posterior is called doubtful about once in twenty times, once in ten at most (Meng, Ann. Stat. 22 (1994)
    1142). Where it has learned a statistic from x_obs, p is
    nearer to 1 than a uniform number: fewer alarms are false, but faults that another theta makes up for stay unseen.

    Args:
        simulator: draws the replicates.
        theta: draws of the posterior at x_obs, (R, D).
        x_obs: the set, (n, *event).
        seed: fixes the replicates.
        failing: share of the rows that may raise an error, or take too long; a hundredth by default.
        time_limit: seconds for a row; see `simulate`.

    Raises:
        InputError: if fewer than 100 replicates could be simulated.
        SimulatorError: if more rows fail than may.
    """
    n, event = len(x_obs), tuple(x_obs.shape[1:])
    labels = simulator.categories
    parts, failed = [], 0.0
    with one_thread():
        for k, some in enumerate(theta.split(max(1, _AT_ONCE // n))):
            options: dict[str, Any] = {"failing": failing, "time_limit": time_limit}
            sets, whole, lost = copies(simulator, some, n, seed=derived_seed(seed, k), **options)
            failed += lost * len(some) / len(theta)
            if bool(whole.any()):
                parts.append(_statistics(sets[whole], labels))
        count = sum(map(len, parts))
        if count < FEWEST:
            raise InputError(
                f"of {len(theta)} replicates of {n} rows {count} could be simulated, expected at least {FEWEST}: the "
                f"simulator failed at {failed:.1%} of the rows, and again when asked again."
            )
        found = torch.cat(parts)
        observed = _statistics(x_obs[None], labels)
        names = _names(event, n, labels)
        crowd, other = Crowd.of(found[::2]), found[1::2]
        each, least = crowd.probabilities(observed, near=False), _strangeness(crowd, other).sort().values
        p = float(rank_of(least, _strangeness(crowd, observed)))
    checks = tuple(_judged(test, float(each[test])) for test in TESTS)
    bands = torch.quantile(found, torch.tensor(QUANTILES, dtype=torch.float64), dim=0)
    alike = labels is not None or (n == 1 and math.prod(event) <= WIDEST)
    return Predicted(names, observed[0], bands, p, checks, len(found), alike, failed)


def _strangeness(crowd: Crowd, statistics: Tensor) -> Tensor:
    """Minus the log of the smallest p-value of rows (N, C), (N,); to be near to the mean is nothing strange."""
    each = torch.stack(list(crowd.probabilities(statistics, near=False).values()))
    return -each.amin(0).clamp(min=1e-300).log()


def _statistics(sets: Tensor, labels: int | None) -> Tensor:
    """Of sets (R, n, *event): counts of labels; the numbers of single rows; means and standard deviations, (R, C)."""
    count, n = sets.shape[:2]
    if labels is not None:
        return torch.nn.functional.one_hot(sets.reshape(count, n).long(), labels).sum(1).double()
    rows = features_of(sets.flatten(0, 1), sets.shape[2:]).reshape(count, n, -1)
    return rows[:, 0] if n == 1 else torch.cat([rows.mean(1), rows.std(1)], 1)


def _names(event: tuple[int, ...], n: int, labels: int | None) -> tuple[str, ...]:
    if labels is not None:
        return tuple(f"label {k}" for k in range(labels))
    columns = names_of(event)
    return tuple(columns) if n == 1 else tuple(f"{what} of {name}" for what in ("mean", "sd") for name in columns)


def _judged(test: str, p: float) -> Check:
    what = {
        "columns": "have a statistic so far out",
        "distance": "lie so far from their mean",
        "neighbours": "lie so far from their neighbours",
    }
    level = WRONG / len(TESTS)
    return Check(test, "", p, (level, 1.0), p >= level, f"{p:.2g} of them {what[test]}")
