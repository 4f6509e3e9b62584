"""Whether chains agree, and how many independent draws they are worth."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

R_HAT, ENOUGH = 1.01, 400
"""Vehtari, Gelman, Simpson, Carpenter & Burkner, arXiv:1903.08008: R-hat at most, effective draws at least."""


@dataclass(frozen=True)
class Convergence:
    """Of the chains of R problems, arrays (R, D).

    Attributes:
        r_hat: rank-normalised, split and folded (arXiv:1903.08008, section 4.1).
        bulk: effective number of draws for means.
        tail: the same for the 5% and 95% quantiles, the smaller.
    """

    r_hat: np.ndarray
    bulk: np.ndarray
    tail: np.ndarray

    @property
    def good(self) -> bool:
        """Whether all chains agree and their draws are enough."""
        return bool((self.r_hat <= R_HAT).all() and self.effective >= ENOUGH)

    @property
    def effective(self) -> float:
        """The least effective number of draws."""
        return float(min(self.bulk.min(), self.tail.min()))

    def __str__(self) -> str:
        agree = "agree" if self.good else "DISAGREE" if (self.r_hat > R_HAT).any() else "agree, too few draws"
        worst = float(self.r_hat.max())
        return f"{agree}: R-hat {worst:.3f}, effective draws {self.bulk.min():.0f} (bulk), {self.tail.min():.0f} (tail)"


def convergence(draws: Tensor) -> Convergence:
    """Of draws (C, N, R, D) of at least two chains."""
    from arviz_stats.base import array_stats  # takes seconds to import

    array = draws.numpy(force=True)
    axes = {"chain_axis": 0, "draw_axis": 1}
    r_hat = array_stats.rhat(array, method="rank", **axes)
    bulk = array_stats.ess(array, method="bulk", **axes)
    tail = array_stats.ess(array, method="tail", prob=(0.05, 0.95), **axes)
    return Convergence(*(np.nan_to_num(found, nan=worst) for found, worst in ((r_hat, np.inf), (bulk, 0), (tail, 0))))
