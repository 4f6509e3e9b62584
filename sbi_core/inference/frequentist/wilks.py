"""Sets that are right for large samples, away from edges: Wilks' theorem."""

from collections.abc import Sequence

import torch

from sbi_core.errors import InputError
from sbi_core.inference.frequentist.intervals import open_flags, pieces
from sbi_core.inference.frequentist.profile import Problem, best_fit, profile_line, profile_plane
from sbi_core.inference.frequentist.record import Limits, edge_flags
from sbi_core.parameters import Parameter, positions

COARSEST = 50
"""Points of the grid in a region below which it is said that they are few."""


def interest(of: Sequence[str] | str | None, axes: Sequence[Parameter]) -> tuple[int, ...]:
    """Columns of the parameters of interest, all by default.

    Raises:
        InputError: for an unknown name, or more than two.
    """
    names = [of] if isinstance(of, str) else [a.name for a in axes] if of is None else of
    columns = tuple(positions(names, axes))
    if len(columns) > 2:
        raise InputError(
            f"of = {list(names)}: limits serves one or two parameters of interest. Name them with of=[...]."
        )
    return columns


def asked_levels(level: float | Sequence[float]) -> tuple[float, ...]:
    """One level or several.

    Raises:
        InputError: unless they lie between 0 and 1.
    """
    levels = tuple(float(one) for one in (level if isinstance(level, Sequence) else [level]))
    if not levels or not all(0 < one < 1 for one in levels):
        raise InputError(f"level = {level}: expected numbers between 0 and 1.")
    return levels


def quantile(level: float, dims: int) -> float:
    """Of the chi-squared distribution with so many degrees of freedom."""
    from scipy.stats import chi2  # slow to import

    return float(chi2.ppf(level, dims))


def asymptotic(problem: Problem, axes: Sequence[Parameter], levels: Sequence[float], seed: int) -> Limits:
    """Profile likelihood, and the sets that follow if q has a chi-squared distribution (Wilks, 1938).

    Args:
        problem: the observation's likelihood.
        axes: all parameters.
        levels: of confidence.
        seed: to be recorded.
    """
    of, dims = problem.of, len(problem.of)
    wilks = {level: quantile(level, dims) for level in levels}
    best = best_fit(problem)
    if dims == 1:
        profile = profile_line(problem, best, list(wilks.values()))
    else:
        profile = profile_plane(problem, best, max(wilks.values()))
    best, q = profile.best, profile.q
    names = tuple(axes[k].name for k in of)
    grid = (profile.theta[:, of[0]],) if dims == 1 else (profile.theta[:, 0, of[0]], profile.theta[0, :, of[1]])
    sets = {level: pieces(grid[0], q - c) for level, c in wilks.items()} if dims == 1 else {}
    regions = {level: q <= c for level, c in wilks.items()} if dims == 2 else {}
    flags = edge_flags(axes, best.edges) + open_flags(names[0], sets, (float(grid[0][0]), float(grid[0][-1])))
    flags += [
        f"the region at {level:.1%} holds only {int(inside.sum())} points of the grid"
        for level, inside in regions.items()
        if inside.sum() < COARSEST
    ]
    return Limits(
        parameters=tuple(axes),
        of=names,
        method="profile",
        best_fit=best.theta,
        covariance=best.covariance,
        log_likelihood=best.value,
        grid=grid,
        theta=profile.theta,
        q=q,
        levels=tuple(levels),
        critical={level: torch.tensor(c).double() for level, c in wilks.items()},
        critical_error={level: torch.tensor(0.0).double() for level in levels},
        intervals=sets,
        regions=regions,
        p_value=None,
        p_error=None,
        belt=None,
        verdicts={
            "maximum": f"{best.agree[0]} of {best.agree[1]} climbs ended within .01 nats of the best",
            "coverage": f"asymptotic (Wilks, chi-squared of {dims}), unchecked by toys",
            "spread of trainings": "unchecked",
            "x_obs inside the simulated range": "unchecked",
        },
        flags=tuple(flags),
        seed=seed,
    )
