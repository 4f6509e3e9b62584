"""What `limits` returns: every number with its verdict, every curve with its grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sbi_core.errors import InputError
from sbi_core.inference.frequentist.intervals import Interval
from sbi_core.inference.frequentist.neyman import Belt
from sbi_core.parameters import Parameter


@dataclass(frozen=True)
class Limits:
    """Best fit, test statistic over the parameters of interest, and confidence sets.

    Attributes:
        parameters: all D axes of theta.
        of: names of the k parameters of interest.
        method: "profile", "neyman" or "feldman_cousins".
        best_fit: theta of highest likelihood in the ranges, (D,).
        covariance: inverse of the observed information there, (D, D); NaN on an edge.
        log_likelihood: at the best fit, nats up to a term without theta.
        grid: values of each parameter of interest, k of (G_k,).
        theta: these with the best nuisance parameters, (G, D) or (G_1, G_2, D).
        q: -2 [max_nu log L(psi, nu) - max log L], (G,) or (G_1, G_2).
        levels: of confidence.
        critical: for each level what q must not exceed, () or with toys as q; of "neyman" the lower and upper end
            for the signed root of q, (G, 2).
        critical_error: its Monte Carlo error.
        intervals: for each level the pieces of the set, for one parameter of interest.
        regions: for each level whether a grid point is in the set, (G_1, G_2), for two.
        p_value: by toys, of the points of `belt`, (P,) or (P, P); `None` without toys.
        p_error: its Monte Carlo error.
        belt: the toys, which are made on a coarser grid than that of q, (P * P, D) for two parameters of interest.
        verdicts: what was checked; "unchecked" where nothing was.
        flags: what a careful reader should know, in sentences.
        seed: of everything random.
        members: the limits of an ensemble's members one by one.
    """

    parameters: tuple[Parameter, ...]
    of: tuple[str, ...]
    method: str
    best_fit: Tensor
    covariance: Tensor
    log_likelihood: float
    grid: tuple[Tensor, ...]
    theta: Tensor
    q: Tensor
    levels: tuple[float, ...]
    critical: Mapping[float, Tensor]
    critical_error: Mapping[float, Tensor]
    intervals: Mapping[float, tuple[Interval, ...]]
    regions: Mapping[float, Tensor]
    p_value: Tensor | None
    p_error: Tensor | None
    belt: Belt | None
    verdicts: Mapping[str, str]
    flags: tuple[str, ...]
    seed: int
    members: "Sequence[Limits]" = field(default=())

    @property
    def error(self) -> Tensor:
        """Standard error of each parameter by the observed information, (D,)."""
        return self.covariance.diagonal().sqrt()

    def interval(self, level: float | None = None) -> tuple[Interval, ...]:
        """The pieces of the confidence set at a level, the first by default.

        Raises:
            InputError: for a level that was not asked for, or two parameters of interest.
        """
        level = self.levels[0] if level is None else level
        if level not in self.intervals:
            raise InputError(f"level = {level}: known are {sorted(self.intervals)}.")
        return self.intervals[level]

    def summary(self) -> dict[str, Any]:
        """Plain data: best fit, errors, intervals, verdicts, flags."""
        named = zip(self.parameters, self.best_fit.tolist(), self.error.tolist(), strict=True)
        return {
            "method": self.method,
            "of": list(self.of),
            "best_fit": {
                p.name: {"value": value, "error": error if error == error else None} for p, value, error in named
            },
            "log_likelihood": self.log_likelihood,
            "intervals": {str(level): [piece.to_json() for piece in found] for level, found in self.intervals.items()},
            "share_of_grid": {str(level): float(inside.double().mean()) for level, inside in self.regions.items()},
            "verdicts": dict(self.verdicts),
            "flags": list(self.flags),
            "seed": self.seed,
        }

    def __repr__(self) -> str:
        found = "; ".join(
            f"{level:.1%}: {' and '.join(map(str, pieces)) or 'empty'}" for level, pieces in self.intervals.items()
        )
        return f"Limits({', '.join(self.of)}; {self.method}; {found or 'regions of two parameters'})"


def edge_flags(parameters: Sequence[Parameter], edges: Tensor) -> list[str]:
    """A sentence for each parameter whose best fit lies on an edge, edges (D,)."""
    return [
        f"the best fit of '{p.name}' lies on the {'low' if at < 0 else 'high'} edge of its range, "
        f"{p.low if at < 0 else p.high:g}: q does not follow the chi-squared law there"
        for p, at in zip(parameters, edges.tolist(), strict=True)
        if at
    ]
