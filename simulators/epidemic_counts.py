"""How many of those who are ill are counted: binomial thinning, or with more spread than that."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Reporting:
    """x of n are counted: Binomial(n, p) with p = share, or p drawn anew for each count from Beta(a, b) of that mean.

    a + b = 1 / dispersion - 1, so p has the variance dispersion share (1 - share), and x that of the binomial times
    1 + (n - 1) dispersion.

    Attributes:
        share: probability of being counted, above 0, at most 1.
        dispersion: correlation of two of the n being counted, 0 to below 1.
    """

    share: float
    dispersion: float

    @property
    def shape(self) -> tuple[float, float] | None:
        """a and b; `None` where p is always the share."""
        if not self.dispersion or self.share == 1:
            return None
        both = 1 / self.dispersion - 1
        return self.share * both, (1 - self.share) * both

    def draw(self, true: Tensor, rng: np.random.Generator) -> Tensor:
        """Counts of true numbers (*), as (*), float64."""
        if self.share == 1:
            return true.to(torch.float64)
        chance = self.share if self.shape is None else rng.beta(*self.shape, size=tuple(true.shape))
        return torch.from_numpy(rng.binomial(true.numpy().astype(np.int64), chance)).to(torch.float64)

    def log_prob(self, x: Tensor, true: Tensor) -> Tensor:
        """log probability that x of `true` are counted, (*), broadcasting; minus infinity where that cannot be."""
        can = (x >= 0) & (x <= true) & (x == x.round())
        x, missed = torch.where(can, x, 0.0), torch.where(can, true - x, 0.0)
        ways = -_log_beta(x + 1, missed + 1) - (x + missed + 1).log()
        if self.shape is None:
            share = torch.tensor(self.share, dtype=torch.float64)
            chance = torch.xlogy(x, share) + torch.xlogy(missed, 1 - share)
        else:
            a, b = torch.tensor(self.shape, dtype=torch.float64)
            chance = _log_beta(x + a, missed + b) - _log_beta(a, b)
        return torch.where(can, ways + chance, -torch.inf)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
