"""Is the gold true? Identities that joint ratios and joint scores must satisfy, tested on simulations.

A test is a mean that must vanish, divided by its standard error; one that rests on a few rows is not counted as passed
or failed but as unreliable.
"""

from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from sbi_core.errors import GoldError, InputError, MissingGold
from sbi_core.gold import log_joint
from sbi_core.gold_identities import TOLERANCE, Identity, identities
from sbi_core.seeding import block_seed, seeded
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator

ROWS = 10_000
"""Simulations made for a check when none are given."""

MAX_ROWS = 20_000

FALSE_ALARM = 1e-4
"""Probability that clean gold fails, all tests together."""

_FEWEST = 60.0
"""Effective rows below which a mean says nothing; of bounded terms, half as many."""


@dataclass(frozen=True)
class GoldTest:
    """One test.

    Attributes:
        name: which identity.
        parameter: which axis of theta it is about; for ratios of stored contrasts "ratio".
        statistic: what must vanish.
        z: the statistic in standard errors (for deterministic comparisons: relative error / tolerance).
        rows: effective number of rows it rests on.
        passed: `None` if it rests on too few rows.
        text: the identity and the result in words.
    """

    name: str
    parameter: str
    statistic: float
    z: float
    rows: float
    passed: bool | None
    text: str


@dataclass(frozen=True)
class GoldCheck:
    """All tests of one check, and the verdict."""

    rows: tuple[GoldTest, ...]
    simulations: int

    @property
    def passed(self) -> bool:
        """Whether no test failed."""
        return all(test.passed is not False for test in self.rows)

    @property
    def verdict(self) -> str:
        """One sentence."""
        failed = [test for test in self.rows if test.passed is False]
        if failed:
            worst = max(failed, key=lambda test: abs(test.z))
            at_fault = sorted({test.parameter for test in failed}, key=lambda p: (p == "ratio", p))
            what = " and ".join(sorted({"ratio" if "ratio" in test.name else "score" for test in failed}))
            return (
                f"the joint {what} contradicts the simulations for parameter {', '.join(at_fault)}: {len(failed)} of "
                f"{len(self.rows)} tests fail on {self.simulations} rows; worst: {worst.text}"
            )
        weak = sum(test.passed is None for test in self.rows)
        note = f"; {weak} rest on too few rows to count" if weak else ""
        largest = max((abs(test.z) for test in self.rows), default=0.0)
        return f"{len(self.rows) - weak} tests on {self.simulations} rows passed, largest |z| = {largest:.1f}{note}"

    def raise_if_failed(self) -> None:
        """Raise `GoldError` with the verdict if a test failed."""
        if not self.passed:
            raise GoldError(self.verdict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "simulations": self.simulations,
            "tests": [asdict(test) for test in self.rows],
        }


def check_gold(simulator: Simulator | None, simulations: Any = None, *, seed: int = 0) -> GoldCheck:
    """Test joint scores and joint ratios against the simulations they belong to.

    With t the joint score at a row's own theta and r = p(x, z | theta') / p(x, z | theta), for rows drawn at theta:

    - score mean: E[t | theta] = 0, also weighted with theta;
    - Fisher information: E[t_d^2 + d t_d / d theta_d] = 0 (Bartlett's second identity), as a difference of E[t_d r] at
      two near theta', which holds where log p has a kink in theta, too;
    - moments: d/dtheta E[phi] = E[phi t], integrated by parts over the proposal, for features phi of x and z;
    - ratio mean: E[r] = 1 at near theta', and E[log r] <= 0 for stored ones;
    - ratio bounded: E_1[r / (1 + r)] = E_0[1 / (1 + r)], with labels exchanged between near pairs;
    - finite difference: t is the slope of log_joint, and stored gold is what log_joint says.

    Args:
        simulator: where gold comes from; `None` to test stored columns alone.
        simulations: rows with z, or with stored `joint_score`, or `theta_alt` and `joint_log_ratio`; made here if
            not given. Of more than 20,000 rows a random 20,000 are used.
        seed: of everything random here.

    Returns:
        The tests with their z-scores and a verdict; all together raise a false alarm with probability 1e-4.

    Raises:
        MissingGold: if there is nothing to check.
    """
    if simulations is None:
        from sbi_core.campaign import simulate

        if simulator is None:
            raise InputError("check_gold needs a simulator, or simulations with stored gold.")
        simulations = simulate(simulator, ROWS, seed=seed, progress=False)
    rows = _usable(simulations, seed)
    live = simulator if simulator is not None and simulator.has_gold and _has_latents(simulator, rows) else None
    if live is not None:
        rows = rows.reordered(live.parameters, live.designs)
    if live is None and rows.joint_score is None and rows.joint_log_ratio is None:
        if simulator is None:
            why = "no simulator"
        else:
            lacks = "has a log_joint, but not the z it needs" if simulator.has_gold else "has no log_joint"
            why = f"simulator '{simulator.name}' {lacks}"
        raise MissingGold(
            f"nothing to check: {why}, and the simulations store neither joint_score nor joint_log_ratio."
        )
    found = [test for group in identities(live, rows, seed) for test in group]
    limit = NormalDist().inv_cdf(1 - FALSE_ALARM / (2 * len(found)))
    return GoldCheck(tuple(_judge(identity, limit) for identity in found), len(rows))


def _judge(identity: Identity, limit: float) -> GoldTest:
    passed: bool | None
    if identity.terms is None:
        passed = identity.error < 1.0
        text = f"{identity.name} for '{identity.parameter}': relative error {identity.error * TOLERANCE:.2g}"
        return GoldTest(
            identity.name, identity.parameter, identity.error * TOLERANCE, identity.error, 0.0, passed, text
        )
    z, rows = _significance(identity.terms)
    z = max(z, 0.0) if identity.one_sided else z
    mean = float(identity.terms.mean())
    passed = None if rows < (_FEWEST / 2 if identity.bounded else _FEWEST) else abs(z) < limit
    text = f"{identity.name} for '{identity.parameter}': mean {mean:.3g}, z = {z:.1f}"
    return GoldTest(identity.name, identity.parameter, mean, z, rows, passed, text)


def _significance(terms: Tensor) -> tuple[float, float]:
    """Mean of terms (N,) in standard errors, corrected for skewness, and the effective number of rows.

    Hall, J. R. Stat. Soc. B 54 (1992) 221: z + a z^2 / 3 + a^2 z^3 / 27 + a / 6 with a = skewness / sqrt(N) is normal
    to second order; without it heavy tails would raise false alarms.
    """
    if not torch.isfinite(terms).all():
        return float("inf"), float("inf")
    spread = terms.std(correction=0)
    if spread == 0:
        return 0.0, 0.0
    unit = (terms - terms.mean()) / spread
    z = terms.mean() / spread * len(terms) ** 0.5
    a = unit.pow(3).mean() / len(terms) ** 0.5
    rows = len(terms) / unit.pow(4).mean()
    return float(z + a * z**2 / 3 + a**2 * z**3 / 27 + a / 6), float(rows)


def _has_latents(simulator: Simulator, rows: Simulations) -> bool:
    """Whether log_joint can be evaluated on these rows (it may need a z that was not kept)."""
    try:
        log_joint(simulator, rows[:1], rows.theta[:1])
    except (MissingGold, AssertionError, TypeError):
        return False
    return True


def _usable(simulations: Any, seed: int) -> Simulations:
    rows: Simulations = simulations[:]
    rows = rows if bool(rows.valid.all()) else rows[rows.valid]
    if len(rows) < 2:
        raise InputError(f"simulations: {len(rows)} valid rows, expected at least 2 for a check.")
    if len(rows) > MAX_ROWS:
        with seeded(block_seed(seed, 2)):
            rows = rows[torch.randperm(len(rows))[:MAX_ROWS]]
    return rows
