"""Is a learned ratio a ratio? Its calibration on held-out simulations of two thetas."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sbi_core.columns import to_column
from sbi_core.errors import InputError, nearest
from sbi_core.inference.checks.check import Check
from sbi_core.inference.frequentist.maximum import Box
from sbi_core.inference.frequentist.toys import Plan
from sbi_core.parameters import Parameter
from sbi_core.seeding import fresh_seed, one_thread, seeded

MAPS = ("none", "histogram", "isotonic")

FEWEST = 30.0
"""Effective rows below which E[r] says nothing."""

FALSE_ALARM = 1e-4
"""Probability that a ratio without fault fails a check."""


@dataclass(frozen=True)
class Steps:
    """log r as a step function of the learned log ratio s.

    Attributes:
        edges: where it steps, (B - 1,), increasing.
        log_ratio: between them, nats (B,).
        error: its standard error, (B,).
    """

    edges: Tensor
    log_ratio: Tensor
    error: Tensor

    def __call__(self, s: Tensor) -> Tensor:
        """Calibrated log r (*) at s (*)."""
        return self.log_ratio[torch.searchsorted(self.edges, s.contiguous())]


@dataclass(frozen=True)
class RatioCalibration:
    """What s = f(theta0, x) - f(theta1, x) is worth, for one pair of thetas.

    Attributes:
        theta0: of the numerator, (D,).
        theta1: of the denominator, (D,).
        maps: "histogram" and "isotonic", fitted to the first half of the simulations.
        s0: s of the other half, of x at theta0, (N,).
        s1: the same of x at theta1, (N,).
        checks: of s itself ("none") and of both maps, on the other half.
        seed: of the simulations.
    """

    theta0: Tensor
    theta1: Tensor
    maps: dict[str, Steps]
    s0: Tensor
    s1: Tensor
    checks: tuple[Check, ...]
    seed: int

    @property
    def passed(self) -> bool:
        """Whether the learned ratio needs no map."""
        return all(check.passed is not False for check in self.checks if check.about == "none")

    def log_ratio(self, s: Tensor, kind: str = "isotonic") -> Tensor:
        """Calibrated log p(x | theta0) / p(x | theta1), nats (*), of learned s (*).

        Raises:
            InputError: for an unknown kind.
        """
        if kind not in MAPS:
            raise InputError(f"kind = {kind!r} is unknown: {nearest(kind, MAPS)}")
        return s if kind == "none" else self.maps[kind](s.double())

    def reliability(self, bins: int = 20, kind: str = "none") -> tuple[Tensor, Tensor, Tensor]:
        """Predicted and found log ratio of bins of equal content, and the error of the latter, (B,) each."""
        found = histogram(self.s0, self.s1, bins)
        s = torch.cat([self.s0, self.s1])
        place = torch.searchsorted(found.edges, s)
        p = torch.sigmoid(self.log_ratio(s, kind))
        mean = torch.stack([p[place == k].mean() for k in range(len(found.log_ratio))])
        return torch.logit(mean), found.log_ratio, found.error


def histogram(s0: Tensor, s1: Tensor, bins: int) -> Steps:
    """log of the ratio of two histograms of s, s0 (N,) and s1 (M,), with bins of equal content together."""
    s = torch.cat([s0, s1]).sort().values
    inner = s[torch.linspace(0, len(s) - 1, bins + 1).long()[1:-1]].unique()
    edges = inner[inner < s[-1]]
    counts = [
        torch.bincount(torch.searchsorted(edges, part.contiguous()), minlength=len(edges) + 1) for part in (s0, s1)
    ]
    return _steps(edges, counts[0].double(), counts[1].double())


def isotonic(s0: Tensor, s1: Tensor) -> Steps:
    """log of p / (1 - p), p the share of s0 (N,) among s0 and s1 (M,) as a rising step function of s."""
    from scipy.optimize import isotonic_regression  # slow to import

    s, place = torch.cat([s0, s1]).unique(return_inverse=True)
    first = torch.bincount(place[: len(s0)], minlength=len(s)).double()
    second = torch.bincount(place[len(s0) :], minlength=len(s)).double()
    found = isotonic_regression((first / (first + second)).numpy(), weights=(first + second).numpy())
    starts = torch.from_numpy(np.asarray(found.blocks[1:-1], dtype=np.int64))
    block = torch.zeros(len(s), dtype=torch.long)
    block[starts] = 1
    block = block.cumsum(0)
    counts = [torch.zeros(len(starts) + 1).double().index_add_(0, block, part) for part in (first, second)]
    return _steps((s[starts - 1] + s[starts]) / 2, counts[0], counts[1])


def _steps(edges: Tensor, first: Tensor, second: Tensor) -> Steps:
    """Half a count is added to each number, so that none is zero."""
    ratio = ((first + 0.5) / first.sum()).log() - ((second + 0.5) / second.sum()).log()
    return Steps(edges, ratio, (1 / (first + 0.5) + 1 / (second + 0.5)).sqrt())


def calibrate_ratio(
    estimator: Any,
    simulator: Any,
    theta0: Any,
    theta1: Any,
    *,
    n: int = 20_000,
    bins: int = 20,
    design: Any = None,
    seed: int | None = None,
) -> RatioCalibration:
    """Calibrate s = f(theta0, x) - f(theta1, x) on new simulations at the two thetas, and check it before and after.

    The ratio of the densities of s at the two thetas is the likelihood ratio if s is a function of it at all (Cranmer,
    Pavez & Louppe, arXiv:1506.02169, section 3). Half of the simulations gives the maps: a histogram, and isotonic
    regression of the label (p / (1 - p)). The other half checks that

    - E[r | theta1] = 1, with the effective number of rows it rests on;
    - among x with about the same r a share r / (1 + r) is from theta0: chi-squared over bins;
    - log(share / (1 - share)) = a + b log r with a = 0 and b = 1, which sees a scale or a shift before the bins do
      (score test; Cox, Biometrika 45 (1958) 562).

    Args:
        estimator: f, anything with `observe`.
        simulator: draws x.
        theta0: of the numerator, (D,).
        theta1: of the denominator, (D,).
        n: simulations at each theta.
        bins: of the histogram and of the check.
        design: (K,).
        seed: of the simulations.

    Raises:
        InputError: for arguments that do not fit.
    """
    axes: tuple[Parameter, ...] = getattr(estimator, "axes", None) or estimator.parameters
    pair = [to_column(name, value) for name, value in (("theta0", theta0), ("theta1", theta1))]
    for name, theta in zip(("theta0", "theta1"), pair, strict=True):
        if theta.shape != (len(axes),):
            raise InputError(f"{name} has shape {tuple(theta.shape)}, expected ({len(axes)},).")
    if n < 50 * bins or bins < 2:
        raise InputError(f"n = {n} and bins = {bins}: expected at least 2 bins, and 50 simulations for each.")
    setting = None if design is None else to_column("design", design)
    seed = fresh_seed() if seed is None else seed
    plan = Plan(estimator, Box.of(axes), (0,), n, setting, simulator=simulator)
    plan.check()
    with seeded(seed), one_thread(), torch.no_grad():
        s = []
        for theta in pair:
            toys = plan.draw(theta, 1)
            options = {} if toys.n_events is None else {"n_events": toys.n_events}
            look = estimator.observe(toys.x, setting, **options)
            s.append((look(pair[0]) - look(pair[1])).double())
    half = n // 2
    maps = {"histogram": histogram(s[0][:half], s[1][:half], bins), "isotonic": isotonic(s[0][:half], s[1][:half])}
    s0, s1 = s[0][half : 2 * half], s[1][half : 2 * half]
    checks = []
    for kind in MAPS:
        r0, r1 = (part if kind == "none" else maps[kind](part) for part in (s0, s1))
        checks += [_mean_of_ratio(kind, r1), _reliability(kind, s0, s1, r0, r1, bins), _slope(kind, r0, r1)]
    return RatioCalibration(pair[0], pair[1], maps, s0, s1, tuple(checks), seed)


def _mean_of_ratio(kind: str, log_ratio: Tensor) -> Check:
    """E[r | theta1] = 1 of log r (N,); a map that comes from as many rows doubles the variance."""
    r = log_ratio.exp()
    mean, effective = float(r.mean()), float(r.sum() ** 2 / r.square().sum())
    error = float(r.std()) * math.sqrt((1 if kind == "none" else 2) / len(r))
    text = f"{mean:.4g} +- {error:.2g}, from {effective:.0f} effective of {len(r)} rows"
    passed = None if effective < FEWEST else abs(mean - 1) <= 4 * error
    return Check("E[r | theta1]", kind, mean, (1 - 4 * error, 1 + 4 * error), passed, text)


def _reliability(kind: str, s0: Tensor, s1: Tensor, r0: Tensor, r1: Tensor, bins: int) -> Check:
    """Chi-squared of the numbers of x from theta0 in bins of s against the sums of r / (1 + r)."""
    from scipy.stats import chi2  # slow to import

    edges = histogram(s0, s1, bins).edges
    place = torch.searchsorted(edges, torch.cat([s0, s1]))
    p = torch.sigmoid(torch.cat([r0, r1]))
    label = torch.cat([torch.ones_like(s0), torch.zeros_like(s1)])
    found, wanted, variance = (
        torch.zeros(len(edges) + 1).double().index_add_(0, place, part) for part in (label, p, p * (1 - p))
    )
    usable = variance > 5
    number = int(usable.sum())
    value = float(((found - wanted)[usable] ** 2 / variance[usable]).sum()) / (1 if kind == "none" else 2)
    limit = float(chi2.isf(FALSE_ALARM, max(number, 1)))
    text = f"chi-squared {value:.1f} in {number} bins, at most {limit:.1f}"
    return Check("share of theta0 at given r", kind, value, (0.0, limit), value < limit if number else None, text)


def _slope(kind: str, r0: Tensor, r1: Tensor) -> Check:
    """Score test of a = 0 and b = 1 in the logistic regression of the label on log r, (N,) and (M,)."""
    from scipy.stats import chi2  # slow to import

    r = torch.cat([r0, r1])
    label = torch.cat([torch.ones_like(r0), torch.zeros_like(r1)])
    p, terms = torch.sigmoid(r), torch.stack([torch.ones_like(r), r])
    push = terms @ (label - p)
    inverse = torch.linalg.pinv((terms * (p * (1 - p))) @ terms.T, rtol=1e-9)
    change = inverse @ push
    value = float(push @ change) / (1 if kind == "none" else 2)
    limit = float(chi2.isf(FALSE_ALARM, 2))
    text = f"a = {float(change[0]):.2g}, b = {1 + float(change[1]):.3g}; chi-squared {value:.1f}, at most {limit:.1f}"
    return Check("slope of log r", kind, value, (0.0, limit), value < limit, text)
