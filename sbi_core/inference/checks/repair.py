"""Levels to quote so that regions hold the truth as often as they should."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sbi_core.errors import InputError
from sbi_core.inference.posterior import Posterior


@dataclass(frozen=True)
class Recalibration:
    """Split conformal levels (Vovk, Gammerman & Shafer 2005; Lei et al., arXiv:1604.04173) from N held-out pairs.

    The region of highest density with the level that this map gives holds the truth with probability at least the
    nominal one, averaged over prior, simulator and held-out pairs, and at most 1 / (N + 1) more; of any posterior,
    however wrong. At one x, or theta, nothing is guaranteed.

    Attributes:
        levels: sorted `credibility` of the truths, (N,).
    """

    levels: Tensor

    def level(self, nominal: float) -> float:
        """The level to quote for a nominal one: the ceil((N + 1) nominal)-th of the truths' levels, or 1."""
        if not 0 < nominal < 1:
            raise InputError(f"level {nominal}: expected a number between 0 and 1.")
        rank = math.ceil((len(self.levels) + 1) * nominal - 1e-9)
        return float(self.levels[rank - 1]) if rank <= len(self.levels) else 1.0

    def __call__(self, posterior: Posterior) -> Posterior:
        """A copy whose `contains` uses these levels, and whose verdicts say so; `threshold` and draws stay."""
        found = copy.copy(posterior)
        found.levels = self.level
        said = f"recalibrated by {len(self.levels)} held-out pairs: regions quoted at 90% are those of {{:.3g}}"
        found.verdicts = {**posterior.verdicts, "coverage": said.format(self.level(0.9))}
        return found

    def to_json(self, nominal: Sequence[float]) -> dict[str, Any]:
        """Plain data for a file: the level for each nominal one."""
        return {"pairs": len(self.levels), "levels": {f"{value:g}": self.level(value) for value in nominal}}
