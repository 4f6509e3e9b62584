"""Are (theta, x) with the true theta and with a drawn one the same? Only such a test sees a returned prior.

Both tests read normal scores of theta and of x, and rest on one fact: if q is the posterior, the truth and the draws of
a row are exchangeable.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from sbi_core.errors import InputError
from sbi_core.inference.checks.check import Check
from sbi_core.inference.checks.pairs import Pairs
from sbi_core.inference.checks.ranks import ranks

WIDEST = 8
"""Columns of x that are looked at, or as many principal components if there are more."""

FEWEST = 5
"""Pairs to a feature, at least; with fewer, later components of x are left out."""

CANDIDATES = 19
"""Draws of each x that are exchanged with the truth."""

MOST = 20_000
"""Exchanges, at most."""

HIDDEN, STEPS, RATE, DECAY = 32, 200, 0.01, 1e-3
"""Width of the classifier's two hidden layers, its training steps, their size, and weight decay."""


@dataclass(frozen=True)
class Scored:
    """Pairs as normal scores: what the tests read.

    Attributes:
        theta: truths and draws, the truth first, (N, 1 + L, D).
        x: columns of x, (N, P).
        local: draws at x_obs, (M, D), and x_obs, (P,); `None` without it.
    """

    theta: Tensor
    x: Tensor
    local: tuple[Tensor, Tensor] | None = None


def scored(pairs: Pairs, x_obs: Tensor | None = None, local: Tensor | None = None) -> Scored:
    """Each column of theta and of x by its rank among all; x_obs (*event) and draws there, local (M, D), among them.

    Of sets of observations the mean and the standard deviation of each column count.
    """
    n, every, dims = len(pairs), torch.cat([pairs.theta[:, None], pairs.draws], 1), pairs.theta.shape[1]
    theta, x = every.flatten(0, 1), pairs.x.double()
    if x_obs is not None and local is not None:
        theta, x = torch.cat([theta, local.double()]), torch.cat([x, x_obs.double()[None]])
    if pairs.sets:
        x = torch.cat([x.mean(1), x.std(1, correction=0)], 1)
    score, theta = normal_columns(x.flatten(1)), _normal(theta)
    within = None if local is None else (theta[-len(local) :], score[-1])
    return Scored(theta[: n * every.shape[1]].reshape(n, -1, dims), score[:n], within)


def normal_columns(x: Tensor) -> Tensor:
    """Columns of x (N, K) that vary as normal scores of unit variance, (N, P), or as many principal components."""
    varies = x.std(0) > 0
    if not bool(varies.any()):
        raise InputError("x is the same in all pairs: there is nothing to learn about theta, nor to check.")
    score = _normal(x[:, varies])
    if score.shape[1] > WIDEST:
        score = score @ torch.linalg.svd(score, full_matrices=False).Vh[:WIDEST].T
    return score / score.std(0)


def _normal(columns: Tensor) -> Tensor:
    """Normal scores of columns (N, K), equal for equal values."""
    each = []
    for column in columns.unbind(-1):
        ordered, column = column.sort().values, column.contiguous()
        middle = (torch.searchsorted(ordered, column) + torch.searchsorted(ordered, column, right=True)) / 2
        each.append(torch.special.ndtri(middle.double() / len(column)))
    return torch.stack(each, -1)


def _features(theta: Tensor, x: Tensor) -> Tensor:
    """theta_d, theta_d theta_e and theta_d x_p of theta (*, D) and x (*, P) side by side, (*, K)."""
    first, second = torch.triu_indices(theta.shape[-1], theta.shape[-1])
    mixed = (theta[..., :, None] * x[..., None, :]).flatten(-2)
    return torch.cat([theta, mixed, theta[..., first] * theta[..., second]], -1)


def moments(data: Scored, false_alarm: float) -> list[Check]:
    """Means and products of theta and x at the truths against those at the draws, and the same at x_obs.

    With phi the features, s the sum over rows of phi(truth, x) - mean phi(draws, x) and S its covariance, T = s S^-1 s;
    this is the classifier, linear in phi, that tells truths from draws best. At x_obs, b = S^-1 s and T = the variance
    of b phi(theta, x_obs) over draws there (the local test of Linhart, Gramfort & Rodrigues, arXiv:2306.03580, with
    this classifier). Both p-values by exchanging the truth with a draw of its row at random, hence exact.
    """
    n, dims = len(data.x), data.theta.shape[-1]
    room = n // FEWEST - dims - dims * (dims + 1) // 2
    width = max(1, min(data.x.shape[1], room // dims))
    theta = data.theta[:, : 1 + CANDIDATES]
    phi = _features(theta, data.x[:, None, :width].expand(*theta.shape[:2], -1))
    phi = phi - phi.mean(1, keepdim=True)
    covariance = torch.einsum("nlk,nlj->kj", phi, phi) / phi.shape[1]
    covariance += 1e-6 * covariance.diagonal().mean() * torch.eye(len(covariance))
    whitening = torch.linalg.inv(torch.linalg.cholesky(covariance))
    phi = (phi @ whitening.T).float()
    tests = 1 if data.local is None else 2
    many = min(MOST, math.ceil(4 * tests / false_alarm))
    total = torch.zeros(many, phi.shape[-1])
    for row in phi:
        total += row[torch.randint(len(row), (many,))]
    total = torch.cat([phi[:, 0].sum(0)[None], total])
    alpha = false_alarm / tests
    checks = [_exchanged("two samples of (theta, x), moments", total.square().sum(1), alpha)]
    if data.local is not None:
        draws, x_obs = data.local
        there = _features(draws, x_obs[:width].expand(len(draws), -1)) @ whitening.T
        there = (there - there.mean(0)).float() / len(there) ** 0.5
        checks.append(_exchanged("two samples at x_obs, moments", (total @ there.T).square().sum(1), alpha))
    return checks


def _exchanged(name: str, statistic: Tensor, false_alarm: float) -> Check:
    """Whether the first of statistics (B + 1,) is among the largest."""
    many = len(statistic)
    p = float((statistic >= statistic[0]).sum()) / many
    last = float(statistic[1:].sort().values[min(many - 2, math.ceil((1 - false_alarm) * many) - 1)])
    said = f"p = {p:.2g} among {many - 1} random exchanges of truth and draw"
    passed = p >= false_alarm if p * many > 1 or false_alarm * many > 1 else None
    return Check(name, "", float(statistic[0]), (0.0, last), passed, said if passed is not None else f"{said}; too few")


def classifier(data: Scored, false_alarm: float) -> Check:
    """A network that picks the truth from a truth and a draw, trained on half of the pairs and tested on the other.

    The value is the share of held-out truths that it prefers to a draw, .5 if q is the posterior: a classifier
    two-sample test of (theta, x) (Lopez-Paz & Oquab, arXiv:1610.06545). Of the ranks of its held-out values among those
    of all draws (a learned test quantity in the sense of Modrak et al., arXiv:2211.02383) the mean normal score is
    normal; the smaller p-value of the two halves counts twice.
    """
    n = len(data.x)
    order = torch.randperm(n)
    shares, scores = [], []
    for held, seen in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        value = _preference(data, seen, held)
        rank = ranks(value[:, 0], value[:, 1:])
        shares.append(float(rank.mean()))
        scores.append(float(torch.special.ndtri(rank).mean()) * len(held) ** 0.5)
    p = min(1.0, 2 * float(torch.special.ndtr(torch.tensor(-max(scores)).double())))
    share = sum(shares) / 2
    far = 0.5 + float(-torch.special.ndtri(torch.tensor(false_alarm / 2).double())) / (12 * n / 2) ** 0.5
    said = f"a network prefers {share:.1%} of the truths that it has not seen to draws, p = {p:.2g}"
    return Check("two samples of (theta, x), classifier", "", share, (0.0, far), p >= false_alarm, said)


def _preference(data: Scored, seen: Tensor, held: Tensor) -> Tensor:
    """Train on the rows seen; the network's values at truths and draws of the rows held, (H, 1 + L)."""
    rows = torch.cat([data.theta, data.x[:, None].expand(-1, data.theta.shape[1], -1)], -1).float()
    parts = [nn.Linear(rows.shape[-1], HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 1)]
    network, train = nn.Sequential(*parts), rows[seen]
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    with torch.enable_grad():
        for _ in range(STEPS):
            other = torch.randint(1, train.shape[1], (len(train),))
            both = torch.stack([train[:, 0], train[torch.arange(len(train)), other]], 1)
            value = network(both)[..., 0]
            loss = softplus(value[:, 1] - value[:, 0]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        found: Tensor = network(rows[held])[..., 0]
    return found
