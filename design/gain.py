"""What an experiment would teach, as one record for every way of estimating it."""

import math
from dataclasses import dataclass, replace

from sbi_core.errors import InputError

LOWER, UPPER, NONE = "lower", "upper", "none"

ROUNDING = 1e-9
"""What sums of log densities may be wrong by, nats: where x says nothing, errors are as small."""


@dataclass(frozen=True)
class Gain:
    """An estimate of a utility at one design, by default the expected information gain I(theta; x | design).

    Attributes:
        value: nats, or the utility's own unit.
        error: its standard error, of the outer and the inner draws together.
        direction: "lower" or "upper" if the expectation of the estimate is a bound of that side, else "none".
        method: what made it.
        ceiling: what a contrastive bound cannot exceed, log(L + 1) nats; infinite for others.
        simulations: calls of the simulator.
        evaluations: log densities evaluated.
        seconds: wall time.
        excess: I(theta; x, z | design) - I(theta; x | design), nats, where it is known.
        flags: what a careful reader should know, in sentences.
    """

    value: float
    error: float
    direction: str
    method: str
    ceiling: float = math.inf
    simulations: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    excess: float | None = None
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        found = []
        if not (math.isfinite(self.value) and math.isfinite(self.error)):
            found.append(f"EIG bound '{self.method}' is {self.value} +- {self.error}, not finite.")
        elif self.value < -3 * self.error - ROUNDING:
            found.append(f"EIG bound '{self.method}' is {self.value:.3g} +- {self.error:.2g}: below zero.")
        if self.value > self.ceiling - math.log(2):
            found.append(
                f"EIG bound '{self.method}' is {self.value:.3g} of at most {self.ceiling:.3g} nats: the ceiling of so "
                "few contrasts, and the gain may be far above it. Raise inner."
            )
        object.__setattr__(self, "flags", (*self.flags, *(text for text in found if text not in self.flags)))

    def __str__(self) -> str:
        side = {LOWER: ">= ", UPPER: "<= ", NONE: ""}[self.direction]
        return f"{side}{self.value:.4g} +- {self.error:.2g} ({self.method})"


def bracketed(lower: Gain, upper: Gain) -> tuple[Gain, Gain]:
    """The two sides of one quantity, flagged if they contradict each other.

    >>> low, high = Gain(0.5, 0.01, "lower", "sPCE"), Gain(0.4, 0.01, "upper", "sNMC")
    >>> bracketed(low, high)[0].flags[0]
    'EIG bound: the lower one, 0.5 +- 0.01, is above the upper one, 0.4 +- 0.01.'
    """
    if lower.direction != LOWER or upper.direction != UPPER:
        raise InputError(f"expected a lower and an upper bound, got '{lower.direction}' and '{upper.direction}'.")
    if lower.value - upper.value <= 3 * math.hypot(lower.error, upper.error) + ROUNDING:
        return lower, upper
    text = (
        f"EIG bound: the lower one, {lower.value:.3g} +- {lower.error:.2g}, is above the upper one, "
        f"{upper.value:.3g} +- {upper.error:.2g}."
    )
    return replace(lower, flags=(*lower.flags, text)), replace(upper, flags=(*upper.flags, text))
