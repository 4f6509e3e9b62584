"""Confidence sets whose critical values come from toys instead of the chi-squared law."""

import itertools
import math
from dataclasses import replace

import torch
from torch import Tensor

from sbi_core.errors import InputError
from sbi_core.inference.frequentist.intervals import open_flags, pieces
from sbi_core.inference.frequentist.neyman import Belt, belt
from sbi_core.inference.frequentist.profile import Problem, profile_grid
from sbi_core.inference.frequentist.record import Limits, edge_flags
from sbi_core.inference.frequentist.toys import Plan

FINER = {1: 16, 2: 3}
"""Steps of q to one step of the toys' grid, by the number of parameters of interest."""

WIDE = (-3.0, -1.5, 0.0, 1.5, 3.0)
"""Standard deviations by which nuisance parameters are moved from their best."""

LEFT_OUT = 0.0027
"""Probability that a normal one lies farther out; it is added to each level and p-value (Berger & Boos)."""


def by_toys(
    problem: Problem,
    plan: Plan,
    found: Limits,
    *,
    method: str,
    toys: int,
    points: int,
    nuisance: str,
    time_limit: float,
) -> Limits:
    """Replace the critical values of a profile by those of toys.

    Args:
        problem: the observation's likelihood.
        plan: what a toy is.
        found: the profile with Wilks' sets, which say where psi is in question.
        method: "feldman_cousins" or "neyman".
        toys: at each point.
        points: per axis.
        nuisance: "profile" or "unconditional".
        time_limit: seconds.

    Raises:
        InputError: for more nuisance parameters than can be varied, or out of time.
    """
    of, dims = list(problem.of), len(problem.of)
    central = method == "neyman"
    if central and dims > 1:
        raise InputError("method='neyman' orders toys by a signed root, of one parameter. For two: 'feldman_cousins'.")
    theta, q = _grid(problem, found, (points - 1) * FINER[dims] + 1)
    coarse = (slice(None, None, FINER[dims]),) * dims
    grid = theta[coarse].shape[:-1]
    varied = nuisance == "unconditional" and bool(problem.nuisance)
    belts, flags = _belts(problem, plan, found, theta[coarse], toys, varied, central, time_limit)
    lost = LEFT_OUT * len(problem.nuisance) if varied else 0.0
    statistic = q.sqrt() * torch.where(found.best_fit[of[0]] < theta[..., of[0]], -1.0, 1.0) if central else q
    every = [one.p_value(statistic[coarse].reshape(-1, 1)) for one in belts]
    p, worst = torch.stack([one[0] for one in every]).max(0)
    p_error = torch.stack([one[1] for one in every]).gather(0, worst[None])[0]
    critical, errors, sets, regions = {}, {}, {}, {}
    for level in found.levels:
        each = _widest([one.critical(min(level + lost, 1.0)) for one in belts])
        ends, error = (_finer(part, grid, q.shape) for part in each)
        critical[level], errors[level] = (ends, error) if central else (ends[..., 1], error[..., 1])
        below, above = ends[..., 0] - statistic, statistic - ends[..., 1]
        excess = torch.maximum(below, above)
        if dims == 1:
            sets[level] = pieces(theta[:, of[0]], excess, torch.where(below > above, error[..., 0], error[..., 1]))
        else:
            regions[level] = excess <= 0
    said = f"by {min(one.toys for one in belts)} toys at each of {math.prod(grid)} points"
    if varied:
        said += f", at {len(belts)} settings of the nuisance parameters, the worst of which counts"
    elif problem.nuisance:
        said += ", at the nuisance parameters that fit the observation best (profile construction: not exact)"
    return replace(
        found,
        method=method,
        grid=(theta[:, of[0]],) if dims == 1 else (theta[:, 0, of[0]], theta[0, :, of[1]]),
        theta=theta,
        q=q,
        critical=critical,
        critical_error=errors,
        intervals=sets,
        regions=regions,
        p_value=(p + lost).clamp(max=1.0).reshape(grid),
        p_error=p_error.reshape(grid),
        belt=belts[len(belts) // 2],
        verdicts={**found.verdicts, "coverage": said},
        flags=(
            *edge_flags(found.parameters, problem.box.edges(found.best_fit)),
            *flags,
            *open_flags(found.of[0], sets, (float(problem.box.low[of[0]]), float(problem.box.high[of[0]]))),
        ),
    )


def _belts(
    problem: Problem,
    plan: Plan,
    found: Limits,
    theta: Tensor,
    toys: int,
    varied: bool,
    central: bool,
    time_limit: float,
) -> tuple[list[Belt], list[str]]:
    """Toys at theta (*grid, D), or at each of several settings of the nuisance parameters around it, and flags."""
    shifts = _shifts(problem, found) if varied else torch.zeros(1, theta.shape[-1]).double()
    flat, belts, flags = theta.reshape(-1, theta.shape[-1]), list[Belt](), dict[str, None]()
    for shift in shifts:
        at = torch.minimum(torch.maximum(flat + shift, problem.box.low), problem.box.high)
        made, stopped = belt(plan, at, toys, central=central, time_limit=time_limit / len(shifts))
        belts.append(made)
        flags |= dict.fromkeys(stopped)
    return belts, list(flags)


def _grid(problem: Problem, found: Limits, points: int) -> tuple[Tensor, Tensor]:
    """theta (*grid, D) and q (*grid) over the box in which psi is in question at the highest level."""
    of = list(problem.of)
    inside = found.q <= 2 * float(found.critical[max(found.levels)]) + 4
    where = found.theta[inside][:, of]
    ends = where.amin(0), where.amax(0)
    axes = [torch.linspace(float(a), float(b), points).double() for a, b in zip(*ends, strict=True)]
    psi = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    flat = found.theta.reshape(-1, found.theta.shape[-1])
    width = problem.box.width[of]
    theta = flat[torch.cdist(psi.reshape(-1, len(of)) / width, flat[:, of] / width).argmin(1)].clone()
    theta[:, of] = psi.reshape(-1, len(of))
    theta, value = profile_grid(problem, theta.reshape(*psi.shape[:-1], -1), found.covariance)
    return theta, (2 * (found.log_likelihood - value)).clamp(min=0.0)


def _shifts(problem: Problem, found: Limits) -> Tensor:
    """Moves of the nuisance parameters from their best, (M, D)."""
    nuisance = problem.nuisance
    if len(nuisance) > 2:
        raise InputError(
            f"nuisance='unconditional' serves one or two nuisance parameters, here are {len(nuisance)}. Use 'profile'."
        )
    sd = found.error[nuisance]
    sd = torch.where(sd.isfinite(), sd, problem.box.width[nuisance] / 6)
    shifts = torch.zeros(len(WIDE) ** len(nuisance), len(problem.box.low)).double()
    shifts[:, nuisance] = torch.tensor(list(itertools.product(WIDE, repeat=len(nuisance)))).double() * sd
    return shifts


def _widest(each: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The lowest low ends and highest high ends (G, 2) of acceptance regions, with their errors (G, 2)."""
    ends = torch.stack([one[0] for one in each])
    error = torch.stack([one[1] for one in each])
    at = torch.stack([ends[..., 0].argmin(0), ends[..., 1].argmax(0)], -1)[None]
    return ends.gather(0, at)[0], error.gather(0, at)[0]


def _finer(value: Tensor, coarse: torch.Size, fine: torch.Size) -> Tensor:
    """Values (G, 2) at the points of a coarse grid, by straight lines on a finer one, (*fine, 2)."""
    mode = "linear" if len(coarse) == 1 else "bilinear"
    table = value.reshape(*coarse, 2).movedim(-1, 0)[None].nan_to_num(0.0, torch.inf, -torch.inf)
    infinite = table.isinf()
    smooth = torch.nn.functional.interpolate(table.where(~infinite, 0.0), size=fine, mode=mode, align_corners=True)
    touched = torch.nn.functional.interpolate(infinite.double(), size=fine, mode=mode, align_corners=True) > 0
    sign = torch.tensor([-torch.inf, torch.inf]).double().reshape(2, *[1] * len(coarse))
    return torch.where(touched[0], sign, smooth[0]).movedim(0, -1)
