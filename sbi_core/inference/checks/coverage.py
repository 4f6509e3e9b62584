"""Do regions of posterior probability hold the truth as often as they claim, and do they say more than the prior?"""

import math

import torch
from torch import Tensor

from sbi_core.inference.checks.check import Check
from sbi_core.inference.checks.pairs import Pairs
from sbi_core.inference.checks.ranks import ranks

LEVELS = (0.5, 0.68, 0.8, 0.9, 0.95)
"""Levels at which coverage is stated."""


def coverage(level: Tensor, false_alarm: float, levels: tuple[float, ...] = LEVELS) -> list[Check]:
    """Share of truths inside the regions of highest density, from the `credibility` of each truth (N,).

    Binomial bands, all levels together leaving them with probability `false_alarm` at most (expected coverage:
    Hermans et al., arXiv:2110.06581).
    """
    from scipy.stats import binom

    n, tail, checks = len(level), false_alarm / (2 * len(levels)), []
    for nominal in levels:
        held = int((level <= nominal).sum())
        low, high = int(binom.ppf(tail, n, nominal)), int(binom.isf(tail, n, nominal))
        said = f"{held / n:.1%} of {n} truths are inside, band {low / n:.1%} to {high / n:.1%}"
        passed = low <= held <= high
        said += "" if passed else ": overconfident" if held < low else ": wider than need be"
        checks.append(Check(f"coverage at {nominal:.0%}", "", held / n, (low / n, high / n), passed, said))
    return checks


def reference_ranks(pairs: Pairs) -> Tensor:
    """Share of draws nearer to a random point than the truth is, (N,): uniform if q is the posterior.

    TARP (Lemos, Coogan, Hezaveh & Perreault-Levasseur, arXiv:2302.03026) with another pair's truth as the point, and
    distances in standard deviations of the truths.
    """
    unit = pairs.theta.std(0).clamp(min=1e-300)
    point = pairs.theta[_elsewhere(len(pairs))]
    truth = ((pairs.theta - point) / unit).square().sum(-1)
    draws = ((pairs.draws - point[:, None]) / unit).square().sum(-1)
    return ranks(truth, draws)


def _elsewhere(n: int) -> Tensor:
    """A random other row for each of n rows, (n,)."""
    return (torch.arange(n) + torch.randint(1, n, (n,))) % n


def information(pairs: Pairs, false_alarm: float) -> Check:
    """Mean of log q(theta | x) - log p(theta) at the truths, in nats: what x tells about theta, through q.

    Without it a posterior equal to the prior passes every test of coverage. It fails where it is below zero beyond its
    noise, and is unchecked where it cannot be told from zero.
    """
    from scipy.stats import norm

    gain = pairs.log_q - pairs.log_prior
    q, p = float(pairs.log_q.mean()), float(pairs.log_prior.mean())
    if not bool(gain.isfinite().all()):
        lost = int((~gain.isfinite()).sum())
        said = f"q is zero, or not a number, at {lost} of {len(gain)} truths"
        return Check("information gained", "", -math.inf, (0.0, math.inf), False, said)
    mean, error = float(gain.mean()), float(gain.std()) / len(gain) ** 0.5
    far = float(norm.isf(false_alarm / 2)) * error
    passed = True if mean > far else False if mean < -far else None
    said = f"mean log q(theta) is {q:.3f}, the prior's {p:.3f}: {mean:.3f} +- {error:.3f} nats gained"
    said += "" if passed else ", no more than noise" if passed is None else ", worse than the prior"
    return Check("information gained", "", mean, (far, math.inf), passed, said)
