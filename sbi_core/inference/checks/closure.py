"""Does the learned ratio turn simulations at one theta into simulations at another?"""

import math
from typing import Any

import torch
from torch import Tensor

from sbi_core.campaign import simulate
from sbi_core.inference.checks.check import Check
from sbi_core.inference.checks.pairs import Pairs
from sbi_core.inference.checks.ranks import Curve
from sbi_core.inference.checks.truths import columns
from sbi_core.inference.checks.two_sample import normal_columns
from sbi_core.parameters import names
from sbi_core.simulator import Simulator

FEWEST = 100.0
"""Effective rows below which a reweighted sample says nothing."""

TYPICAL = 1.5
"""Nats of log ratio at which most can be learned from one x about its truth."""

LARGEST = 50.0
"""Nats at which log ratios are cut where only their sign still counts."""

STEPS, SHARE = 30, 0.8
"""Halvings of the way from one theta to the other, at most, and the share of reweighted rows that must count.

With fewer, weights are so skewed that their mean is far from normal."""

PLACES = 50
"""Points of the curve that is kept."""


def log_ratios(estimator: Any, theta: Tensor, other: Tensor, x: Tensor, **given: Tensor) -> Tensor:
    """f(other, x) - f(theta, x) in nats, theta and other (N, D), x (N, *event), as (N,)."""
    look = estimator.observe(x, **given)
    found: Tensor = look(other).double() - look(theta).double()
    return found


def exchange(estimator: Any, pairs: Pairs, false_alarm: float, **given: Tensor) -> list[Check]:
    """E[r] = 1 in a form that is bounded, on the pairs themselves.

    Truths are paired, theta with theta', by a tree over them that does not know their x. With
    l = f(theta, x) - f(theta', x), x was drawn at theta and not at theta' with probability sigmoid(l), hence
    E[a sigmoid(-l)] = 0 for every a that changes sign when the two are exchanged: l itself, which sees a likelihood too
    steep or too flat, and theta' - theta, which sees a shifted one. Of the sizes of the tree's cells the largest is
    taken at which l is mostly below `TYPICAL`; |l| does not know which of the two was the truth, so that this is fair.

    Args:
        estimator: as `infer` takes it.
        pairs: N of them.
        false_alarm: of all these tests together.
        given: design (N, K) and n_events (N,) where x has such.
    """
    order = _tree(pairs.theta / pairs.theta.std(0), torch.arange(len(pairs)))
    place = torch.arange(len(pairs))
    size = 1 << (len(pairs) - 1).bit_length()
    while True:
        size //= 2
        left = place[(place & size == 0) & (place + size < len(pairs))]
        row, other = order[torch.stack([left, left + size])], order[torch.stack([left + size, left])]  # (2, P)
        theta, contrast = pairs.theta[row.flatten()], pairs.theta[other.flatten()]
        some = {name: value[row.flatten()] for name, value in given.items()}
        with torch.no_grad():
            log_ratio = -log_ratios(estimator, theta, contrast, pairs.x[row.flatten()], **some)
        log_ratio = log_ratio.nan_to_num(nan=LARGEST).clamp(-LARGEST, LARGEST)
        if size == 1 or float(log_ratio.abs().median()) < TYPICAL:
            break
    apart = (contrast - theta) / pairs.theta.std(0)
    against = torch.cat([log_ratio[:, None], apart], 1) * torch.sigmoid(-log_ratio)[:, None]
    against = against.unflatten(0, (2, -1)).sum(0)  # the two rows of a pair know of each other
    far = float(-torch.special.ndtri(torch.tensor(false_alarm / (2 * against.shape[1])).double()))
    checks = []
    for name, terms in zip(("", *names(pairs.parameters)), against.unbind(-1), strict=True):
        mean, error = float(terms.mean()), float(terms.std()) / len(terms) ** 0.5
        z = mean / error if error > 0 else 0.0
        what = "ratio slope" if not name else "ratio mean"
        shape = "" if name or abs(z) <= far else ": log ratios are too small" if z > 0 else ": log ratios are too large"
        said = f"E[a sigmoid(-l)] is {mean:.3g}, {z:+.1f} standard errors from 0{shape}"
        checks.append(Check(what, name, mean, (-far * error, far * error), abs(z) <= far, said))
    return checks


def _tree(theta: Tensor, index: Tensor) -> Tensor:
    """Rows of theta (N, D) in an order in which cells of 2^k neighbours lie side by side, from their index (N,)."""
    if len(index) < 2:
        return index
    half = 1 << ((len(index) - 1).bit_length() - 1)
    here = theta[index]
    index = index[here[:, (here.amax(0) - here.amin(0)).argmax()].argsort()]
    return torch.cat([_tree(theta, index[:half]), _tree(theta, index[half:])])


def closure(
    estimator: Any,
    simulator: Simulator,
    here: Tensor,
    there: Tensor,
    n: int,
    design: Any,
    false_alarm: float,
    seed: int,
) -> tuple[list[Check], list[Curve]]:
    """Simulate n rows here (D,), and n on the way there (D,), as far as most of the reweighted count; see below."""
    base = simulate(simulator, n, proposal=here, design=design, seed=seed, progress=False)
    base = base[base.valid]
    at, given = here.expand(len(base), -1), columns(estimator, base)
    with torch.no_grad():
        for _ in range(STEPS):
            log_ratio = log_ratios(estimator, at, there.expand(len(base), -1), base.x, **given)
            if effective(log_ratio) >= SHARE * len(base):
                break
            there = (here + there) / 2
    other = simulate(simulator, n, proposal=there, design=design, seed=seed + 1, progress=False)
    checks, curve = reweighted(log_ratio, base.x, other[other.valid].x, false_alarm)
    return checks, [] if curve is None else [curve]


def effective(log_ratio: Tensor) -> float:
    """How many of the rows count that are weighted with the exponentials of log ratios (N,)."""
    return float((2 * log_ratio.logsumexp(0) - (2 * log_ratio).logsumexp(0)).exp())


def reweighted(log_ratio: Tensor, x0: Tensor, x1: Tensor, false_alarm: float) -> tuple[list[Check], Curve | None]:
    """Rows simulated at theta0, each counted exp(f(theta1, x) - f(theta0, x)) times, against rows simulated at theta1.

    E[r] = 1 over the first; and a classifier (least squares on columns of x, their squares and products), fitted to one
    half of the rows, must not tell the weighted from the others on the other half: area under its ROC curve 1/2, with
    the standard error of a weighted Mann-Whitney statistic (Cranmer, Pavez & Louppe, arXiv:1506.02169, section 5).

    Args:
        log_ratio: f(theta1, x0) - f(theta0, x0), nats (N,).
        x0: simulated at theta0, (N, *event).
        x1: simulated at theta1, (M, *event).
        false_alarm: of both tests together.
    """
    weight = log_ratio.double().exp()
    count = effective(log_ratio.double())
    if not count >= FEWEST:
        said = f"only {count:.0f} of {len(weight)} reweighted rows count"
        return [Check("ratio closure", "", math.nan, (0.0, 1.0), None, said)], None
    far = float(-torch.special.ndtri(torch.tensor(false_alarm / 4).double()))
    mean, error = float(weight.mean()), float(weight.std()) / len(weight) ** 0.5
    said = f"E[r] is {mean:.3f} +- {error:.3f}, {count:.0f} effective of {len(weight)} rows"
    checks = [
        Check("ratio mean of closure", "", mean, (1 - far * error, 1 + far * error), abs(mean - 1) <= far * error, said)
    ]
    score = _residual(weight, x0, x1)
    left, right, counted = score[0][1::2], score[1][1::2], weight[1::2] / weight[1::2].mean()
    below = _share_below(left, counted, right)  # of the weighted rows, for each of the others
    above = 1 - _share_below(right, torch.ones_like(right), left)
    area = float(below.mean())
    variance = float(below.var()) / len(right) + float((counted * (above - area)).var()) / len(left)
    ends = 0.5 - far * variance**0.5, 0.5 + far * variance**0.5
    said = f"area under the ROC curve of a residual classifier {area:.3f}, band {ends[0]:.3f} to {ends[1]:.3f}"
    checks.append(Check("ratio closure", "", area, ends, ends[0] <= area <= ends[1], said))
    at = torch.quantile(torch.cat([left, right]), torch.linspace(1, 0, PLACES).double())
    false = 1 - _share_below(left, counted, at)
    true = 1 - _share_below(right, torch.ones_like(right), at)
    curve = Curve("ratio closure", "", *(tuple(v.tolist()) for v in (false, true, false, false)))
    return checks, curve


def _residual(weight: Tensor, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
    """Values at x0 (N,) and x1 (M,) of a classifier fitted to every other row."""
    columns = normal_columns(torch.cat([x0.double().flatten(1), x1.double().flatten(1)]))
    first, second = torch.triu_indices(columns.shape[1], columns.shape[1])
    terms = torch.cat([torch.ones(len(columns), 1).double(), columns, columns[:, first] * columns[:, second]], 1)
    seen = torch.cat([torch.arange(len(v)) % 2 == 0 for v in (x0, x1)])
    label = torch.cat([torch.zeros(len(x0)), torch.ones(len(x1))]).double()
    count = torch.cat([weight / weight.mean(), torch.ones(len(x1)).double()]) * seen
    ridge = 1e-3 * len(columns) * torch.eye(terms.shape[1]).double()
    fitted = torch.linalg.solve((terms * count[:, None]).T @ terms + ridge, terms.T @ (count * label))
    value = terms @ fitted
    return value[: len(x0)], value[len(x0) :]


def _share_below(values: Tensor, weight: Tensor, at: Tensor) -> Tensor:
    """Weighted share of values (N,) below each of `at` (M,), ties counting half, as (M,)."""
    ordered, order = values.sort()
    total = torch.cat([torch.zeros(1).double(), weight[order].double().cumsum(0)])
    left, right = torch.searchsorted(ordered, at.contiguous()), torch.searchsorted(ordered, at.contiguous(), right=True)
    return (total[left] + total[right]) / 2 / total[-1]
