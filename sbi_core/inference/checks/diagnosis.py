"""What all checks of an estimator's posteriors say together."""

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sbi_core.errors import SbiError
from sbi_core.inference.checks.check import Check
from sbi_core.inference.checks.coverage import LEVELS
from sbi_core.inference.checks.ranks import Curve
from sbi_core.inference.checks.repair import Recalibration
from sbi_core.inference.posterior import Posterior


class CalibrationError(SbiError):
    """The posteriors contradict the simulations (see `diagnose`)."""


@dataclass(frozen=True)
class Diagnosis:
    """All checks of one run, and the verdict.

    Attributes:
        checks: one by one.
        curves: distributions of ranks and the closure's ROC, with their bands, for plots.
        ranks: of each parameter's truth among the draws, uniform on (0, 1) if all is well, (N, D).
        credibility: level of the smallest region of highest density that holds the truth, (N,).
        pairs: N.
        recalibration: levels to quote so that coverage holds.
        false_alarm: probability that right posteriors fail any check.
        seed: fixes everything random.
        spread: how far trainings of an ensemble lie apart; "unchecked" for a single one.
        notes: what a careful reader should know beside the checks, in sentences.
    """

    checks: tuple[Check, ...]
    curves: tuple[Curve, ...]
    ranks: Tensor
    credibility: Tensor
    pairs: int
    recalibration: Recalibration
    false_alarm: float
    seed: int
    spread: str = "unchecked"
    notes: tuple[str, ...] = ()

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that found something wrong."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def flags(self) -> tuple[str, ...]:
        """What a careful reader should know, in sentences: notes, checks that did not pass, and the repair offered."""
        flags = [*self.notes, *(str(check) for check in self.checks if check.passed is not True)]
        if any(check.name.startswith("coverage") for check in self.failed):
            quoted = ", ".join(f"{self.recalibration.level(v):.3g} for {v:g}" for v in (0.68, 0.9, 0.95))
            flags.append(f"coverage fails; regions hold the truth at these levels instead (`recalibrated`): {quoted}")
        return tuple(flags)

    @property
    def verdict(self) -> str:
        """One sentence."""
        open_ = sum(check.passed is None for check in self.checks)
        note = f"; {open_} could not say" if open_ else ""
        gain = next((check.text for check in self.checks if check.name == "information gained"), "")
        if self.passed:
            return f"{len(self.checks) - open_} checks passed on {self.pairs} pairs{note}; {gain}"
        names = dict.fromkeys(check.name for check in self.failed)
        worst = "; ".join(str(check) for check in self.failed[:2])
        many = f"{len(self.failed)} of {len(self.checks)} checks failed on {self.pairs} pairs{note}"
        return f"{many}: {', '.join(names)}. {worst}"

    @property
    def calibration(self) -> str:
        """The verdict with the word that a result carries before it: "passed" or "FAILED"."""
        return f"{'passed' if self.passed else 'FAILED'}: {self.verdict}"

    def annotate(self, posterior: Posterior) -> Posterior:
        """A copy of a posterior of this estimator that carries this verdict on its coverage."""
        found = copy.copy(posterior)
        found.verdicts = {**posterior.verdicts, "coverage": self.calibration, "spread of trainings": self.spread}
        if not self.passed:
            found.flags = (*posterior.flags, f"calibration failed: {self.verdict}")
        return found

    def recalibrated(self, posterior: Posterior) -> Posterior:
        """A copy of a posterior of this estimator whose regions hold the truth as often as they claim."""
        return self.recalibration(posterior)

    def raise_if_failed(self) -> None:
        """Raise `CalibrationError` with the verdict if a check failed."""
        if not self.passed:
            raise CalibrationError(self.verdict)

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file."""
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "pairs": self.pairs,
            "seed": self.seed,
            "false_alarm": self.false_alarm,
            "spread of trainings": self.spread,
            "flags": list(self.flags),
            "checks": [check.to_json() for check in self.checks],
            "curves": [curve.to_json() for curve in self.curves],
            "recalibration": self.recalibration.to_json(LEVELS),
        }

    def __str__(self) -> str:
        return "\n".join([self.calibration, *map(str, self.checks), *self.flags])
