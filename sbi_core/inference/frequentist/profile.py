"""The profile likelihood: the nuisance parameters at their best for each value of the parameters of interest."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sbi_core.inference.frequentist.intervals import crossings
from sbi_core.inference.frequentist.maximum import Box, Maximum, Surface, climb, information, maxima, values

COARSE, LOCAL = 65, 41
"""Points over the whole range of one parameter, and within `REACH` standard deviations of each maximum."""

REACH = 4.5

FINER, HALVINGS = 7, 3
"""Points that are put into each gap with a crossing, and how often."""

PLANE, PLANE_FINE, MANY = 49, 193, 1000
"""Points per axis for two parameters; where there is no nuisance parameter and fewer than so many are in the region."""

NUISANCE, AFFORDABLE = 16, 10**6
"""Evenly spread values of the nuisance parameters that climbs may start from, besides the best fit's; pairs of theta
and x that may be evaluated to choose among them."""

SAME = 1e-6
"""Nats by which a neighbour's nuisance parameters must be better to climb again from them."""


@dataclass(frozen=True)
class Problem:
    """One log likelihood and what is asked of it.

    Attributes:
        surface: theta (1, G, D) -> nats (1, G).
        box: the ranges.
        of: columns of the parameters of interest.
        at_once: thetas that are evaluated together.
        pairs: of theta and x, in the evaluation of one theta.
    """

    surface: Surface
    box: Box
    of: tuple[int, ...]
    at_once: int = 10**5
    pairs: int = 1

    @property
    def nuisance(self) -> list[int]:
        """The other columns."""
        return [k for k in range(len(self.box.low)) if k not in self.of]


@dataclass(frozen=True)
class BestFit:
    """The maximum of the likelihood.

    Attributes:
        theta: (D,).
        value: log likelihood there, nats.
        covariance: inverse of the observed information, (D, D); NaN where that is not positive definite.
        edges: -1 or 1 where theta lies on the low or high edge of the range, (D,).
        others: distinct lower maxima, (M, D), and their values (M,).
        agree: how many of how many climbs ended in the best one.
    """

    theta: Tensor
    value: float
    covariance: Tensor
    edges: Tensor
    others: Maximum
    agree: tuple[int, int]


def best_fit(problem: Problem) -> BestFit:
    """Maximum likelihood inside the ranges, by climbs from many starts.

    Raises:
        InputError: if the likelihood is zero everywhere.
    """
    found = maxima(problem.surface, problem.box, problem.at_once)
    return described(problem, found)


def described(problem: Problem, found: Maximum) -> BestFit:
    """The best of some climbs (1, S, D), the distinct others, and the curvature at the best."""
    box = problem.box
    order = found.value[0].argsort(descending=True)
    theta, value = found.theta[0, order], found.value[0, order]
    distinct = [0]
    for k in range(1, len(order)):
        apart = ((theta[k] - theta[distinct]) / box.width).abs().amax(-1)
        if bool((apart > 1e-2).all()) and value[k].isfinite():
            distinct.append(k)
    matrix = information(problem.surface, theta[0], box)
    edges = box.edges(theta[0])
    covariance = torch.full_like(matrix, torch.nan)
    if bool((torch.linalg.eigvalsh(matrix) > 0).all()):
        covariance = torch.linalg.inv(matrix)
    agree = int((value > value[0] - 0.01).sum())
    others = Maximum(theta[None, distinct[1:]], value[None, distinct[1:]])
    return BestFit(theta[0], float(value[0]), covariance, edges, others, (agree, len(order)))


@dataclass(frozen=True)
class Profile:
    """max_nu log L(psi, nu) on a grid of psi of k parameters.

    Attributes:
        theta: psi with the best nuisance parameters, (*grid, D).
        value: log likelihood there, nats (*grid).
        best: the maximum.
    """

    theta: Tensor
    value: Tensor
    best: BestFit

    @property
    def q(self) -> Tensor:
        """-2 [max_nu log L(psi, nu) - max log L], (*grid)."""
        return (2 * (self.best.value - self.value)).clamp(min=0.0)


def profiled(problem: Problem, theta: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Climb in the nuisance parameters from theta (G, D), and from an evenly spread start where that is higher.

    Args:
        problem: what is profiled.
        theta: (G, D).
        covariance: of theta at the best fit, (D, D).

    Returns:
        theta (G, D) and log likelihood (G,).
    """
    nuisance = problem.nuisance
    if not nuisance:
        return theta, values(problem.surface, theta[None], problem.at_once)[0]
    options: dict[str, Any] = {"fixed": problem.of, "at_once": problem.at_once, "covariance": covariance}
    found = climb(problem.surface, theta[None], problem.box, **options)
    starts = min(NUISANCE, AFFORDABLE // (problem.pairs * len(theta)))
    if starts:
        tried = theta[:, None].repeat(1, starts, 1)
        tried[..., nuisance] = problem.box.spread(starts)[:, nuisance]
        scanned = values(problem.surface, tried.flatten(0, 1)[None], problem.at_once)[0].reshape(-1, starts)
        again = climb(problem.surface, tried[torch.arange(len(tried)), scanned.argmax(1)][None], problem.box, **options)
        higher = again.value > found.value
        theta = torch.where(higher[..., None], again.theta, found.theta)
        found = Maximum(theta, torch.where(higher, again.value, found.value))
    return found.theta[0], found.value[0]


def started(problem: Problem, psi: Tensor, best: BestFit) -> Tensor:
    """psi (*grid, k) with the nuisance parameters that a normal law around the best fit gives it, (*grid, D)."""
    of, nuisance = list(problem.of), problem.nuisance
    theta = best.theta.expand(*psi.shape[:-1], -1).clone()
    theta[..., of] = psi
    if nuisance and bool(best.covariance.isfinite().all()):
        slope = torch.linalg.solve(best.covariance[of][:, of], best.covariance[of][:, nuisance])  # (k, D - k)
        theta[..., nuisance] += (psi - best.theta[of]) @ slope
    return torch.minimum(torch.maximum(theta, problem.box.low), problem.box.high)


def profile_grid(problem: Problem, theta: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Profile on a grid: theta (*grid, D) with the best nuisance parameters, and log likelihood (*grid).

    Each point starts from the nuisance parameters it comes with; where a neighbour's turn out to be better, it climbs
    again from those. The covariance (D, D) at the best fit saves steps.
    """
    grid, of = theta.shape[:-1], list(problem.of)
    flat, value = profiled(problem, theta.reshape(-1, theta.shape[-1]), covariance)
    theta, value = flat.reshape(theta.shape), value.reshape(grid)
    nuisance = problem.nuisance
    for _ in range(20 if nuisance else 0):
        before = value
        for axis, step in itertools.product(range(len(grid)), (1, -1)):
            borrowed = theta.clone()
            borrowed[..., nuisance] = theta.roll(step, axis)[..., nuisance]
            there = values(problem.surface, borrowed.reshape(1, -1, theta.shape[-1]), problem.at_once).reshape(grid)
            better = there > value + SAME
            if bool(better.any()):
                again = climb(
                    problem.surface,
                    borrowed[better][None],
                    problem.box,
                    fixed=of,
                    at_once=problem.at_once,
                    covariance=covariance,
                )
                theta, value = theta.clone(), value.clone()
                theta[better], value[better] = again.theta[0], again.value[0]
        if bool((value <= before + SAME).all()):
            break
    return theta, value


def profile_line(problem: Problem, best: BestFit, levels: Sequence[float]) -> Profile:
    """Profile of one parameter over its range, finer near maxima and where q crosses one of the levels."""
    of = problem.of[0]
    low, high = float(problem.box.low[of]), float(problem.box.high[of])
    sd = best.covariance[of, of].sqrt().nan_to_num((high - low) / 20)
    centres = [best.theta[of], *best.others.theta[0, :, of]]
    local = [centre + float(sd) * torch.linspace(-REACH, REACH, LOCAL).double() for centre in centres]
    psi = torch.cat([torch.linspace(low, high, COARSE).double(), *local, torch.stack(centres)])
    psi = psi[(psi >= low) & (psi <= high)].unique()
    theta, value = profile_grid(problem, started(problem, psi[:, None], best), best.covariance)
    best = _improved(problem, best, theta, value)
    for number in range(2 + HALVINGS):
        q = 2 * (best.value - value)
        if number < 2:  # pieces that the grid may have stepped over
            dips = ((q[1:-1] <= q[:-2]) & (q[1:-1] <= q[2:])).nonzero()[:, 0]
            gaps = torch.cat([dips, dips + 1]).unique()
        else:
            gaps = torch.cat([crossings(q - level) for level in levels]).unique()
        if not len(gaps):
            continue
        share = torch.arange(1, FINER + 1).double() / (FINER + 1)
        new = torch.lerp(theta[gaps, None], theta[gaps + 1, None], share[:, None]).flatten(0, 1)
        new_theta, new_value = profiled(problem, new, best.covariance)
        order = torch.cat([theta[:, of], new_theta[:, of]]).argsort()
        theta, value = torch.cat([theta, new_theta])[order], torch.cat([value, new_value])[order]
        best = _improved(problem, best, theta, value)
    return Profile(theta, value, best)


def profile_plane(problem: Problem, best: BestFit, level: float) -> Profile:
    """Profile of two parameters over a box that holds where q is at most the level, (PLANE, PLANE) or finer."""
    of = list(problem.of)
    low, high = problem.box.low[of], problem.box.high[of]
    sd = best.covariance.diagonal()[of].sqrt()
    reach = (level**0.5 + 0.5) * torch.where(sd.isfinite(), sd, (high - low) / 20)
    ends, points = (low, high), PLANE
    for _ in range(6):
        profile = _on_a_plane(problem, best, ends, points)
        best, inside = profile.best, profile.q <= level
        cell = (ends[1] - ends[0]) / (points - 1)
        where = torch.cat([profile.theta[inside][:, of], best.theta[None, of]])
        wanted = (
            torch.maximum(torch.minimum(where.amin(0) - 2 * cell, best.theta[of] - reach), low),
            torch.minimum(torch.maximum(where.amax(0) + 2 * cell, best.theta[of] + reach), high),
        )
        small = bool((wanted[1] - wanted[0] > 0.7 * (ends[1] - ends[0])).all())
        if small and bool(((wanted[0] >= ends[0] - 1e-9) & (wanted[1] <= ends[1] + 1e-9)).all()):
            break
        ends = wanted
    if not problem.nuisance and int(inside.sum()) < MANY:
        profile = _on_a_plane(problem, best, ends, PLANE_FINE)
    return profile


def _on_a_plane(problem: Problem, best: BestFit, ends: tuple[Tensor, Tensor], points: int) -> Profile:
    """Profile of two parameters between ends (2,), points to each axis."""
    axes = [torch.linspace(float(a), float(b), points).double() for a, b in zip(*ends, strict=True)]
    psi = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    theta, value = profile_grid(problem, started(problem, psi, best), best.covariance)
    return Profile(theta, value, _improved(problem, best, theta, value))


def _improved(problem: Problem, best: BestFit, theta: Tensor, value: Tensor) -> BestFit:
    """The best fit, or a better one from the best point of a profile (*grid, D)."""
    top = int(value.flatten().argmax())
    if float(value.flatten()[top]) <= best.value + SAME:
        return best
    start = theta.reshape(1, -1, theta.shape[-1])[:, [top]]
    again = climb(problem.surface, start, problem.box, at_once=problem.at_once)
    others = Maximum(
        torch.cat([again.theta, best.theta[None, None], best.others.theta], 1),
        torch.cat([again.value, torch.tensor([[best.value]]).double(), best.others.value], 1),
    )
    return described(problem, others)
