"""Does the learned ratio turn simulations at one theta into simulations at another?"""

import math
from typing import Any

import torch
from torch import Tensor

from sbi_core.inference.checks.check import Check
from sbi_core.inference.checks.pairs import Pairs
from sbi_core.inference.checks.ranks import Curve
from sbi_core.inference.checks.two_sample import normal_columns
from sbi_core.parameters import names

FEWEST = 100.0
"""Effective rows below which a reweighted sample says nothing."""

LARGEST = 50.0
"""Nats at which log ratios are cut where only their sign still counts."""

PLACES = 50
"""Points of the curve that is kept."""


def log_ratios(estimator: Any, theta: Tensor, other: Tensor, x: Tensor, **given: Tensor) -> Tensor:
    """f(other, x) - f(theta, x) in nats, theta and other (N, D), x (N, *event), as (N,)."""
    look = estimator.observe(x, **given)
    found: Tensor = look(other).double() - look(theta).double()
    return found


def exchange(estimator: Any, pairs: Pairs, false_alarm: float, **given: Tensor) -> list[Check]:
    """E[r] = 1 in a form that is bounded, on the pairs themselves.

    With theta' another pair's truth and l = f(theta, x) - f(theta', x), x was drawn at theta and not at theta' with
    probability sigmoid(l), hence E[a sigmoid(-l)] = 0 for every a that changes sign when the two are exchanged: l
    itself, which sees a likelihood too steep or too flat, and theta' - theta, which sees a shifted one.

    Args:
        estimator: as `infer` takes it.
        pairs: N of them.
        false_alarm: of all these tests together.
        given: design (N, K) and n_events (N,) where x has such.
    """
    other = pairs.theta[(torch.arange(len(pairs)) + torch.randint(1, len(pairs), (1,))) % len(pairs)]
    with torch.no_grad():
        look = estimator.observe(pairs.x, **given)
        log_ratio = (look(pairs.theta).double() - look(other).double()).nan_to_num(nan=math.inf)
    log_ratio = log_ratio.clamp(-LARGEST, LARGEST)
    apart = (other - pairs.theta) / pairs.theta.std(0)
    against = torch.cat([log_ratio[:, None], apart], 1) * torch.sigmoid(-log_ratio)[:, None]
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


def closure(log_ratio: Tensor, x0: Tensor, x1: Tensor, false_alarm: float) -> tuple[list[Check], Curve | None]:
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
    effective = float(weight.sum() ** 2 / weight.square().sum())
    if not effective >= FEWEST:
        said = f"only {effective:.0f} of {len(weight)} reweighted rows count"
        return [Check("ratio closure", "", math.nan, (0.0, 1.0), None, said)], None
    far = float(-torch.special.ndtri(torch.tensor(false_alarm / 4).double()))
    mean, error = float(weight.mean()), float(weight.std()) / len(weight) ** 0.5
    said = f"E[r] is {mean:.3f} +- {error:.3f}, {effective:.0f} effective of {len(weight)} rows"
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
