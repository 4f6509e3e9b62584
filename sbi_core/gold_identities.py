"""The identities that true gold satisfies, each as terms whose mean must vanish.

The pairs (theta, theta') of the ratio tests are near ones, chosen here if the simulator has a `log_joint`, and
down-weighted by their distance if they were stored.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from sbi_core.gold import joint_log_ratio, joint_score, log_joint
from sbi_core.gold_terms import crossfit, features, less_linear, local_size, standard
from sbi_core.parameters import names
from sbi_core.priors import UniformPrior
from sbi_core.seeding import block_seed
from sbi_core.simulations import Simulations
from sbi_core.simulator import Simulator

_STEP = 0.3
"""Distance of the near contrasts, in units of one over the typical size of the joint score."""

_SMALL_STEP = 0.1
"""The same for the Fisher information: so far that some rows are moved past a kink of log p, if there is one."""

_BOTH_SIDES = {-2: 1, -1: -8, 1: 8, 2: -1}
_ONE_SIDE = {0: -25, 1: 48, 2: -36, 3: 16, 4: -3}
"""Number of steps -> weight: 12 times the slope along a step, to fourth order."""

TOLERANCE = 1e-5
"""Largest relative difference from log_joint and its slope."""


@dataclass(frozen=True)
class Identity:
    """One thing that true gold satisfies.

    Attributes:
        name: which identity.
        parameter: which axis of theta it is about, or "ratio".
        terms: one number a row (N,), whose mean must vanish; `None` for an exact comparison.
        error: of an exact comparison, in units of `TOLERANCE`.
        one_sided: only a positive mean is wrong.
        bounded: no term is far out, so that fewer rows tell.
    """

    name: str
    parameter: str
    terms: Tensor | None = None
    error: float = 0.0
    one_sided: bool = False
    bounded: bool = False


def identities(live: Simulator | None, rows: Simulations, seed: int) -> Iterator[list[Identity]]:
    """Yield the tests that these rows allow, group by group; `live` is a simulator whose log_joint can be evaluated."""
    score = rows.joint_score if rows.joint_score is not None else joint_score(live, rows) if live else None
    if score is not None:
        size = local_size(rows.theta, score)
        yield _score_means(rows, score / size)
        yield _moments(rows, score)
        if live is not None:
            yield _slopes(live, rows, size)
            yield _information(live, rows, size)
            yield _near_ratios(live, rows, size, seed)
    if rows.joint_log_ratio is not None:
        yield _stored_ratios(live, rows, score)


def _score_means(rows: Simulations, score: Tensor) -> list[Identity]:
    weights = [torch.ones(len(rows)).to(score), *standard(rows.theta).T]
    labels = ["", *(f" weighted with {name}" for name in names(rows.info.parameters))]
    return [
        Identity(f"score mean{label}", parameter, score[:, d] * weight)
        for d, parameter in enumerate(names(rows.info.parameters))
        for weight, label in zip(weights, labels, strict=True)
        if weight.any()
    ]


def _information(live: Simulator, rows: Simulations, size: Tensor) -> list[Identity]:
    """E[t_d r | theta] = 0, t_d and r = p(x, z | theta') / p(x, z | theta) at theta' = theta + step less theta - step.

    Over 2 step, this is E[t_d^2 + d t_d/d theta_d] = 0 for small steps. It holds for any, and so where t_d jumps, too,
    and its slope, 0 or not, says nothing.
    """
    score, support = joint_score(live, rows), _support(live, rows)
    tests = []
    for d, parameter in enumerate(names(live.parameters)):
        step, inside = torch.zeros_like(rows.theta), torch.zeros(len(rows), dtype=torch.bool)
        for part in (1, 0.1, 0.01, 0.001):  # what theta alone decides leaves the mean at 0
            shorter = _along(d, part * _SMALL_STEP / size)
            fits = ~inside & support.check(rows.theta + shorter) & support.check(rows.theta - shorter)
            step, inside = torch.where(fits[:, None], shorter, step), inside | fits
        both = [rows.theta + torch.where(inside[:, None], k * step, 0.0) for k in (1, -1)]
        weighted = [
            joint_score(live, rows, at)[:, d] * joint_log_ratio(live, rows, at, rows.theta).exp() for at in both
        ]
        terms = torch.where(inside, weighted[0] - weighted[1], 0.0) / (2 * step[:, d]).clamp(min=1e-300)
        terms = torch.where(terms.abs() < TOLERANCE * score[:, d] ** 2, 0.0, terms)  # where p is linear in theta_d
        if not bool(terms.any()):
            continue
        terms = less_linear(terms, rows.theta, score)
        terms = terms * (size[:, d] / local_size(rows.theta, terms[:, None])[:, 0]) ** 2
        tests.append(Identity("score: Fisher information", parameter, terms))
    return tests


def _moments(rows: Simulations, score: Tensor) -> list[Identity]:
    """E[phi (g t_d + d g + g d log p)] + E[g d phi] = 0, d = d/d theta_d, p the proposal, g zero at its edge.

    phi(x, z, theta) is a feature less its linear trend in theta, which moves the trend into the last term.
    """
    edge = _edge(rows)
    if edge is None:
        return []
    tests = []
    for label, feature in features(rows):
        level, trend = crossfit(rows.theta, feature)
        residual = feature - level
        for d, parameter in enumerate(names(rows.info.parameters)):
            weight, slope = edge[0][:, d], edge[1][:, d]
            terms = residual * (weight * score[:, d] + slope) - weight * trend[:, d]
            tests.append(Identity(f"score moment of {label}", parameter, terms))
    return tests


def _edge(rows: Simulations) -> tuple[Tensor, Tensor] | None:
    """g and d g + g d log p of the proposal for each axis, (N, D) each; None where that is not known."""
    proposal = rows.info.proposal
    if isinstance(proposal, UniformPrior):
        if bool(proposal.integer.any()):
            return None
        width = proposal.high - proposal.low
        unit = (rows.theta - proposal.low) / width
        return 4 * unit * (1 - unit), 4 * (1 - 2 * unit) / width
    everywhere = (constraints.real_vector, constraints.independent(constraints.real, 1))
    if proposal is None or str(proposal.support) not in map(str, everywhere):
        return None
    theta = rows.theta.clone().requires_grad_()
    slope = torch.autograd.grad(proposal.log_prob(theta).sum(), theta)[0]
    return torch.ones_like(slope), slope


def _near_ratios(live: Simulator, rows: Simulations, size: Tensor, seed: int) -> list[Identity]:
    """E[r] = 1 at theta' = theta +- step along each axis, and the bounded form, for pairs inside the prior."""
    tests = []
    generator = np.random.default_rng(block_seed(seed, 1))
    sign = torch.from_numpy(generator.choice([-1.0, 1.0], len(rows))).to(size)
    score = joint_score(live, rows)
    score_size = size.square().mean(0).sqrt()
    for d, parameter in enumerate(names(live.parameters)):
        near = _along(d, sign[:, None] * _STEP / size)
        excess = torch.expm1(_log_ratio_inside(live, rows, near))
        tests.append(Identity("ratio mean", parameter, less_linear(excess, rows.theta, sign[:, None] * score)))
        if isinstance(rows.info.proposal, UniformPrior):
            tests += _pairs(live, rows, _along(d, (sign[:, None] / score_size).expand_as(size)), parameter)
    return tests


def _pairs(live: Simulator, rows: Simulations, step: Tensor, parameter: str) -> list[Identity]:
    """Bounded forms for pairs with exchangeable labels, with l = log p(x, z | theta) - log p(x, z | theta').

    E[a sigmoid(-l)] = 0 for every a that changes sign when the labels are exchanged: the sign of theta' - theta, and l
    itself.
    """
    back = -_log_ratio_inside(live, rows, step)
    used = (back != 0) & back.isfinite()
    chance = torch.sigmoid(-back)
    score = joint_score(live, rows) * torch.where(used, step.sum(1).sign(), 0.0)[:, None]
    balance = less_linear(torch.where(used, back, 0.0) * chance, rows.theta, score)
    sign = torch.where(used, step.sum(1).sign() * chance, 0.0)
    return [
        Identity("ratio bounded", parameter, sign, bounded=True),
        Identity("ratio bounded, weighted with itself", parameter, balance),
    ]


def _log_ratio_inside(live: Simulator, rows: Simulations, step: Tensor) -> Tensor:
    """log p(x, z | theta + step) - log p(x, z | theta), (N,); 0 where theta + step has left the proposal."""
    inside = _support(live, rows).check(rows.theta + step)
    other = torch.where(inside[:, None], rows.theta + step, rows.theta)
    return joint_log_ratio(live, rows, other, rows.theta)


def _support(live: Simulator, rows: Simulations) -> Any:
    return (live.prior if rows.info.proposal is None else rows.info.proposal).support


def _along(axis: int, step: Tensor) -> Tensor:
    """Keep one axis of a step (N, D)."""
    return step * (torch.arange(step.shape[1]) == axis)


def _stored_ratios(live: Simulator | None, rows: Simulations, score: Tensor | None) -> list[Identity]:
    """The same for stored contrasts, one term a row: near pairs weigh most."""
    assert rows.joint_log_ratio is not None and rows.theta_alt is not None  # they come together
    log_r = -rows.joint_log_ratio
    bad = ~torch.isfinite(log_r)
    shift = rows.theta_alt - rows.theta[:, None]
    pull = (shift * score[:, None]).sum(-1) if score is not None else torch.zeros_like(log_r)
    spread = _pair_variance(log_r, shift, score)
    weight = torch.where(bad, 0.0, 1.0 / (torch.expm1(spread.clamp(max=20.0)) + 0.05))
    excess = torch.where(bad, 0.0, torch.expm1(log_r.clamp(max=50.0)) - pull)
    tests = [Identity("ratio mean of stored contrasts", "ratio", (weight * excess).mean(1))]
    bounded = torch.nan_to_num(log_r, nan=0.0).clamp(-20.0, 20.0)
    tests.append(
        Identity(
            "mean log ratio of stored contrasts, at most 0", "ratio", bounded.mean(1), one_sided=True, bounded=True
        )
    )
    if live is not None:
        truth = torch.stack(
            [joint_log_ratio(live, rows, rows.theta_alt[:, k], rows.theta) for k in range(log_r.shape[1])], 1
        )
        error = torch.where(bad | ~torch.isfinite(truth), 0.0, log_r - truth).abs().max()
        tests.append(Identity("ratio of stored contrasts against log_joint", "ratio", error=float(error) / TOLERANCE))
    return tests


def _slopes(live: Simulator, rows: Simulations, size: Tensor) -> list[Identity]:
    """The score, or the stored one, against a central difference of log_joint, less what the step itself changes."""
    every = max(1, len(rows) // 1000)
    few, size = rows[::every], size[::every]
    score = joint_score(live, few) if few.joint_score is None else few.joint_score
    tests = []
    for d, parameter in enumerate(names(live.parameters)):
        steps = [_along(d, h / torch.maximum(size, score.abs())) for h in (1e-4, 2.5e-5)]
        scale = torch.maximum(size, score.abs())[:, d]
        error = _slope_error(live, few, score[:, d], steps)[0] / scale
        off = error > TOLERANCE
        if bool(off.any()):  # perhaps next to a kink, which is on one side only
            sides = ([sign * step[off] for step in steps] for sign in (1, -1))
            sided = [_slope_error(live, few[off], score[off, d], side, _ONE_SIDE) for side in sides]
            (ahead, doubt), (behind, other) = sided
            error[off] = torch.where(doubt < other, ahead, behind) / scale[off]
        worst = float(error.max()) / TOLERANCE
        tests.append(Identity("score against the finite difference of log_joint", parameter, error=worst))
    return tests


@torch.no_grad()
def _slope_error(
    live: Simulator, rows: Simulations, score: Tensor, steps: list[Tensor], weights: dict[int, int] = _BOTH_SIDES
) -> tuple[Tensor, Tensor]:
    """How far a score (N,) is from the slope of log_joint along the finer of two steps (N, D), beyond a doubt; that."""
    coarse, fine = (
        sum(w * log_joint(live, rows, rows.theta + k * step) for k, w in weights.items()) / (12 * step.sum(1))
        for step in steps
    )
    doubt = 3 * (fine - coarse).abs()
    return ((fine - score).abs() - doubt).clamp(min=0), doubt


def _pair_variance(log_r: Tensor, shift: Tensor, score: Tensor | None) -> Tensor:
    """Rough variance of log r for each pair: shift^T I shift, I from the scores or from a fit to log_r^2."""
    if score is not None:
        information = score.T @ score / len(score)
        return torch.einsum("ncd,de,nce->nc", shift, information, shift)
    squares = shift.square().flatten(0, 1)
    target = torch.where(torch.isfinite(log_r), log_r, 0.0).square().clamp(max=4.0).flatten()
    weight = 1 / squares.sum(-1).clamp(min=1e-300)
    fitted = torch.linalg.lstsq(squares * weight[:, None], (target * weight)[:, None], driver="gelsd").solution
    return (squares @ fitted.clamp(min=0.0)).reshape(log_r.shape)
