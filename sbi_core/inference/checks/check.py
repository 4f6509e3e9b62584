"""What one check of a result says."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """A statistic, the band in which it lies if nothing is wrong, and the verdict.

    Attributes:
        name: which check, "coverage at 90%" for instance.
        about: which parameter or column it is about; "" for all together.
        value: the statistic.
        band: where the statistic lies if nothing is wrong, but for the stated rate of false alarms.
        passed: `None` if it rests on too little to say.
        text: the finding in words, with the numbers.
    """

    name: str
    about: str
    value: float
    band: tuple[float, float]
    passed: bool | None
    text: str

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file."""
        return asdict(self)

    def __str__(self) -> str:
        said = {True: "passed", False: "FAILED", None: "unchecked"}[self.passed]
        return f"{self.name}{f' of {self.about}' if self.about else ''}: {said}: {self.text}"
