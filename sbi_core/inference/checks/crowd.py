"""A crowd of simulated rows, and how far from it another row stands."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from sbi_core.inference.checks.check import Check
from sbi_core.inference.checks.tails import FEWEST, Tail
from sbi_core.seeding import seeded

KEPT = 1000
"""Rows that are kept for the distance to neighbours."""

DIRECTIONS = 64
"""Principal directions that are kept; what is left counts as one."""

NEIGHBOUR = 5
"""The distance to which neighbour is taken."""

TESTS = ("columns", "distance", "neighbours")

_BULK = 4.0


@dataclass(frozen=True)
class Crowd:
    """What is kept of rows of C columns, and three tests of whether another row could be one of them.

    - columns: the smallest tail probability of a column, times 2 C (Bonferroni);
    - distance: the Mahalanobis distance from the mean, too large or too small;
    - neighbours: the distance to the fifth nearest of 1,000 kept rows, in whitened units.

    One half of the rows gives the scales, the whitening and the neighbours; a p-value of a distance is its rank among
    those of the other half (split conformal prediction: Papadopoulos et al., ECML 2002), so that it is right whatever
    the rows look like. Beyond nearly all rows generalised Pareto tails go on (see `Tail`).

    Attributes:
        state: plain tensors: rows (), ends (2, C), share (), tails (2, 3, C), shift and scale and mean (C,),
            whitening (C, R), rest (), kept (K, R), distances (2, M).
    """

    state: Mapping[str, Tensor]

    @classmethod
    def of(cls, columns: Tensor, held: Tensor | None = None) -> Self:
        """Keep what matters of columns (N, C) and held (M, C), the half for the ranks; without it N are split."""
        if held is None:
            with seeded(0):
                order = torch.randperm(len(columns))
            columns, held = columns[order[: len(order) // 2]], columns[order[len(order) // 2 :]]
        whole = torch.cat([columns, held])
        ends = torch.stack([whole.amin(0), whole.amax(0)])
        below, above = Tail.of(-whole), Tail.of(whole)
        tails = torch.stack([torch.stack([tail.start, tail.scale, tail.shape]) for tail in (below, above)])
        state = {"rows": torch.tensor(len(whole)), "ends": ends, "share": above.share, "tails": tails}
        some = columns if len(columns) else whole
        left, middle, right = torch.quantile(some, torch.tensor([0.16, 0.5, 0.84]).double(), dim=0)
        scale = torch.where(right > left, (right - left) / 2, some.std(0, correction=0))
        state |= {"shift": middle, "scale": torch.where((scale > 0) & (ends[1] > ends[0]), scale, torch.inf)}
        crowd = cls(state)
        unit = crowd.standard(some)
        state |= {"mean": unit.mean(0), **_whitening(unit)}
        state["kept"] = crowd.whitened(some[:KEPT])[0].float()
        state["distances"] = torch.stack(crowd._distances(held)).sort(1).values
        return crowd

    def standard(self, columns: Tensor) -> Tensor:
        """Standard units (N, C) of columns (N, C), which grow only logarithmically beyond 4; 0 in constant columns."""
        unit = (columns - self.state["shift"]) / self.state["scale"]
        bulk = unit.clamp(-_BULK, _BULK)
        return bulk + torch.log1p((unit - bulk).abs()).copysign(unit - bulk)

    def whitened(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Principal components of columns (N, C), (N, R), and the squared length of what is left, in its unit, (N,)."""
        unit = self.standard(columns) - self.state["mean"]
        whitening = self.state["whitening"]
        basis = whitening / whitening.norm(dim=0).clamp(min=1e-300)
        left = (unit.square().sum(1) - (unit @ basis).square().sum(1)).clamp(min=0.0)
        return unit @ whitening, left / self.state["rest"]

    def probabilities(self, columns: Tensor, *, near: bool = True) -> dict[str, Tensor]:
        """P-values of columns (N, C), test -> (N,); NaN where too few rows are known.

        Without `near`, a distance from the mean that is too small is nothing strange.
        """
        if int(self.state["rows"]) < 4 * FEWEST:
            return {name: torch.full((len(columns),), torch.nan) for name in TESTS}
        worst = (2 * columns.shape[1] * self._tails(columns).amin(1)).clamp(max=1.0)
        far, apart = self._distances(columns)
        known = self.state["distances"]
        distance = rank_of(known[0], far)
        if near:
            distance = (2 * torch.minimum(distance, rank_of(-known[0].flip(0), -far))).clamp(max=1.0)
        return dict(zip(TESTS, (worst, distance, rank_of(known[1], apart)), strict=True))

    def check(
        self, columns: Tensor, names: Sequence[str], level: float, *, what: str = "row", tests: Sequence[str] = TESTS
    ) -> list[Check]:
        """Test columns (N, C), that have names, each row at level / N, with as many checks as `tests`."""
        found, level = self.probabilities(columns), level / max(1, len(columns))
        return [self._judge(name, found[name], columns, names, level, what) for name in tests]

    def _judge(self, name: str, p: Tensor, columns: Tensor, names: Sequence[str], level: float, what: str) -> Check:
        if bool(p.isnan().any()):
            return Check(name, "", math.nan, (level, 1.0), None, f"only {int(self.state['rows'])} simulated {what}s")
        row = int(p.argmin())
        least, passed = float(p[row]), bool((p >= level).all())
        where = f"{what} {row}: " if len(p) > 1 else ""
        share = f"{least:.2g}" if least > 0 else "none"
        if name != "columns":
            far = "far from the others" if name == "neighbours" else "far from, or near to, the mean"
            return Check(name, "", least, (level, 1.0), passed, f"{where}as {far} as {share} of simulated {what}s")
        k = int(self._tails(columns[[row]])[0].argmin())
        low, high, value = float(self.state["ends"][0, k]), float(self.state["ends"][1, k]), float(columns[row, k])
        each = level / columns.shape[1] / 2
        below, above = (float(self._tail(side).quantile(each)[k]) for side in (0, 1))
        text = (
            f"{where}{names[k]} is {value:.5g}, simulated were {low:.5g} to {high:.5g}; {share} of simulated {what}s "
            "have any column so far out"
        )
        return Check(name, names[k], value, (-below, above), passed, text)

    def _tail(self, side: int) -> Tail:
        return Tail(self.state["share"], *self.state["tails"][side])

    def _tails(self, columns: Tensor) -> Tensor:
        """The smaller of the two tail probabilities of columns (N, C), (N, C)."""
        return torch.minimum(self._tail(0).probability(-columns), self._tail(1).probability(columns))

    def _distances(self, columns: Tensor) -> list[Tensor]:
        """From the mean, and to a neighbour, of columns (N, C): (N,) each."""
        white, left = self.whitened(columns)
        kept = self.state["kept"]
        nearest = min(NEIGHBOUR, len(kept))
        near = [
            torch.cdist(part, kept).topk(nearest, largest=False).values[:, -1] for part in white.float().split(1000)
        ]
        return [(white.square().sum(1) + left).sqrt(), torch.cat([torch.zeros(0), *near]).double()]


def _whitening(unit: Tensor) -> dict[str, Tensor]:
    """Principal directions of unit (N, C) over the sd of each, `whitening` (C, R), and mean variance of the `rest`.

    Correlations are shrunk by (C / N)^2, so that few rows do not make directions without any variance.
    """
    wide = unit.shape[1]
    covariance = torch.cov(unit.T, correction=0).reshape(wide, wide)
    shrunk = min(1.0, (wide / len(unit)) ** 2)
    value, vector = torch.linalg.eigh((1 - shrunk) * covariance + shrunk * covariance.diag().diag())
    value, vector = value.flip(0), vector.flip(1)
    used = value > 1e-9 * value[:1].clamp(min=1e-300)
    top = used & (torch.arange(wide) < DIRECTIONS)
    rest = value[used & ~top]
    return {
        "whitening": vector[:, top] / value[top].sqrt(),
        "rest": rest.mean() if len(rest) else torch.tensor(torch.inf).double(),
    }


def rank_of(known: Tensor, value: Tensor) -> Tensor:
    """Share of known (K,), ascending, that is at least value (N,), counting it; beyond most of them by a tail, (N,)."""
    rank = (1 + len(known) - torch.searchsorted(known, value.contiguous())) / (1 + len(known))
    tail = Tail.of(known[:, None]).probability(value[:, None])[:, 0]
    return torch.where(tail < 1, tail, rank)
