"""Ranks of truths among posterior draws: uniform if the posterior is right, whatever the problem."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_core.inference.checks.check import Check
from sbi_core.inference.checks.pairs import Pairs

POINTS = 50
"""Places at which an empirical distribution is compared with the uniform one."""


@dataclass(frozen=True)
class Curve:
    """A distribution function to be drawn with its band.

    Attributes:
        name: what it is.
        about: which parameter; "" for all together.
        at: where it is compared, K numbers from 0 to 1.
        value: what was found there.
        low: where the simultaneous band begins if nothing is wrong.
        high: where it ends.
    """

    name: str
    about: str
    at: tuple[float, ...]
    value: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file."""
        return asdict(self)


def ranks(truth: Tensor, draws: Tensor) -> Tensor:
    """(b + U (e + 1)) / (L + 1), with b of the L draws (N, L, ...) below the truth (N, ...) and e equal to it.

    U is uniform, from torch's global random state, so that the result (N, ...) is exactly uniform on (0, 1) if truth
    and draws of a row are exchangeable.
    """
    below, equal = ((draws < truth[:, None]).sum(1), (draws == truth[:, None]).sum(1))
    return (below + torch.rand(truth.shape, dtype=torch.float64) * (equal + 1)) / (draws.shape[1] + 1)


def credibility(pairs: Pairs) -> Tensor:
    """Level of the smallest region of highest density that holds the truth, (N,): uniform if q is the posterior."""
    return ranks(-pairs.log_q, -pairs.log_q_draws)


def band(n: int, false_alarm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Simultaneous band of the empirical distribution of n independent uniform numbers.

    Pointwise binomial quantiles at gamma / 2 and 1 - gamma / 2, with the gamma at which the whole curve stays inside
    with probability 1 - false_alarm; that is the product of the Markov chain of counts from place to place
    (Sailynoja, Burkner & Vehtari, arXiv:2103.10522, section 2.3), exact.

    Returns:
        Places z, and counts at each, the lowest and the highest that are inside; `POINTS` - 1 of each.
    """
    from scipy.optimize import brentq
    from scipy.stats import binom

    at = np.arange(1, POINTS) / POINTS

    def ends(log_gamma: float) -> tuple[np.ndarray, np.ndarray]:
        tail = math.exp(log_gamma) / 2
        return np.asarray(binom.ppf(tail, n, at), int), np.asarray(binom.isf(tail, n, at), int)

    def leaves(log_gamma: float) -> float:
        return _leaves(n, at, *ends(log_gamma)) - false_alarm

    widest, narrowest = math.log(false_alarm / POINTS), math.log(false_alarm)
    gamma = brentq(leaves, widest, narrowest, xtol=0.01) if leaves(widest) < 0 < leaves(narrowest) else widest
    gamma = gamma if leaves(gamma) <= 0 else gamma - 0.02
    return (at, *ends(gamma))


def _leaves(n: int, at: np.ndarray, low: np.ndarray, high: np.ndarray) -> float:
    """Probability that counts of n uniform numbers below `at` are somewhere below `low` or above `high`."""
    from scipy.special import gammaln

    log_factorial = gammaln(np.arange(n + 1) + 1.0)
    counts, chance, left = np.array([0]), np.array([1.0]), 0.0
    for z, before, first, last in zip(at, [0.0, *at[:-1]], low, high, strict=True):
        share = (z - before) / (1 - before)
        new = np.arange(first, last + 1)
        more, rest = new - counts[:, None], n - new
        possible = more >= 0
        more = np.where(possible, more, 0)
        log_step = log_factorial[n - counts][:, None] - log_factorial[more] - log_factorial[rest]
        step = np.exp(log_step + more * math.log(share) + rest * math.log1p(-share)) * possible
        moved = chance @ step
        left += max(0.0, chance.sum() - moved.sum())
        counts, chance = new, moved
    return left


def compared(name: str, about: Sequence[str], ranked: Tensor, false_alarm: float) -> tuple[list[Check], list[Curve]]:
    """Columns of numbers (N, K) against the uniform distribution, each with a `false_alarm` / K band."""
    n = len(ranked)
    at, low, high = band(n, false_alarm / len(about))
    checks, curves = [], []
    for k, word in enumerate(about):
        count = np.searchsorted(np.sort(ranked[:, k].numpy()), at, side="right")
        outside = (count < low) | (count > high)
        worst = int(np.argmax(np.maximum(low - count, count - high)))
        share, ends = count[worst] / n, (low[worst] / n, high[worst] / n)
        where = f"at {at[worst]:.2f} it is {share:.3f}, band {ends[0]:.3f} to {ends[1]:.3f}"
        said = f"the distribution of {n} ranks leaves its band at {outside.sum()} of {len(at)} places"
        checks.append(
            Check(name, word, float(share), ends, not bool(outside.any()), f"{said}; nearest the end: {where}")
        )
        curves.append(Curve(name, word, *(tuple(map(float, v)) for v in (at, count / n, low / n, high / n))))
    return checks, curves


def normal_scores(about: Sequence[str], ranked: Tensor, false_alarm: float) -> list[Check]:
    """Mean and variance of the normal scores of ranks (N, K): 0 and 1, where a shifted or a wrong width is not.

    Their tails make them see small errors of location and width that distribution functions miss. Bands are exact:
    the mean of n scores is normal, the sum of squares chi-squared.
    """
    from scipy.stats import chi2, norm

    n, tail = len(ranked), false_alarm / (4 * len(about))
    checks = []
    for k, word in enumerate(about):
        score = norm.ppf(ranked[:, k].clamp(1e-9, 1 - 1e-9).numpy())
        mean, width = float(score.mean()), float(np.mean(score**2))
        far = float(norm.isf(tail) / math.sqrt(n))
        ends = float(chi2.ppf(tail, n) / n), float(chi2.isf(tail, n) / n)
        said = f"the truths lie {mean:+.3f} posterior sd from the draws on average; band -{far:.3f} to {far:.3f}"
        checks.append(Check("mean of normal scores", word, mean, (-far, far), abs(mean) <= far, said))
        what = "narrow" if width > 1 else "wide"
        said = f"{width:.3f}, band {ends[0]:.3f} to {ends[1]:.3f}: posteriors {width**-0.5:.2f} times their due width"
        passed = ends[0] <= width <= ends[1]
        said += "" if passed else f", too {what}, or shifted"
        checks.append(Check("variance of normal scores", word, width, ends, passed, said))
    return checks
