"""What is remembered of the simulated x, so that a strange one is known when it comes."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sbi_core.inference.checks.check import Check
from sbi_core.inference.checks.features import features_of, names_of
from sbi_core.inference.checks.tails import FEWEST, Tail
from sbi_core.seeding import seeded

MOST, NUMBERS = 20_000, 2e7
"""Rows that are looked at, and numbers in them, at most."""

KEPT = 1000
"""Rows that are kept for the distance to neighbours."""

DIRECTIONS = 64
"""Principal directions that are kept; what is left counts as one."""

NEIGHBOUR = 5
"""The distance to which neighbour is taken."""

_BULK = 4.0


@dataclass(frozen=True)
class Familiar:
    """Columns of x, or of what stands for it (see `features_of`): how far out, and how far from each other, rows lie.

    Half of the rows give the scales, the whitening and the neighbours; the distances of the other half are what a new
    one is compared with (split conformal prediction, Vovk et al. 2005), so no model of x need be right. Beyond the
    last of them a generalised Pareto tail goes on (see `Tail`).

    Attributes:
        state: plain tensors, all there is: `shift`, `scale`, `ends`, `tails`, `whitening`, `kept`, ... .
    """

    state: Mapping[str, Tensor]

    @classmethod
    def of(
        cls,
        x: Tensor,
        n_events: Tensor | None = None,
        *,
        categories: int | None = None,
        seen: Callable[[Tensor, Tensor | None], Tensor] | None = None,
    ) -> Self:
        """Remember rows x (N, *event), of which n_events (N,) count; of more than 20,000 some that lie evenly.

        Args:
            x: finite.
            n_events: of runs of events.
            categories: x is a class label below this number.
            seen: what an embedding makes of x and n_events, (N, F).
        """
        most = min(MOST, int(NUMBERS / math.prod(x.shape[1:]))) if x.numel() > 0 else 0
        some = torch.linspace(0, len(x) - 1, min(len(x), max(most, KEPT))).double().long()
        x, n_events = x[some].detach().cpu(), None if n_events is None else n_events[some].cpu()
        state = {"event": torch.tensor(x.shape[1:]).long()}
        if categories is not None:
            return cls({**state, "labels": torch.bincount(x.flatten().long(), minlength=categories)})
        state["counted"] = torch.tensor(n_events is not None)
        state |= _remember(features_of(x, x.shape[1:], n_events))
        if seen is not None:
            few = torch.arange(min(len(x), 2 * KEPT)).split(500)
            with torch.no_grad():
                parts = [seen(x[at], None if n_events is None else n_events[at]) for at in few]
            deep = _remember(torch.cat(parts).cpu().double())
            state |= {f"seen.{name}": value for name, value in deep.items()}
        return cls(state)

    def probabilities(
        self, x: Tensor, n_events: Tensor | None = None, seen: Callable[[Tensor, Tensor | None], Tensor] | None = None
    ) -> dict[str, Tensor]:
        """What share of simulated rows is as strange as each of x (N, *event), n_events (N,): test -> (N,)."""
        x = x.detach().cpu()
        n_events = self._count(x, n_events)
        if "labels" in self.state:
            count = self.state["labels"].double()
            unseen = ((count == 1).sum() + 1) / (count.sum() + 1)  # Good, Biometrika 40 (1953) 237
            found = count[x.flatten().long()]
            return {"label": torch.where(found > 0, 1.0, unseen)}
        columns = features_of(x, x.shape[1:], n_events)
        found_in = _look(self.state, columns)
        if seen is not None and "seen.shift" in self.state:
            deep = {name.removeprefix("seen."): v for name, v in self.state.items() if name.startswith("seen.")}
            with torch.no_grad():
                looked = _look(deep, seen(x, n_events).cpu().double())
            found_in |= {f"{name} in the embedding": p for name, p in looked.items() if name != "columns"}
        return found_in

    def check(
        self,
        x: Tensor,
        n_events: Tensor | None = None,
        *,
        seen: Callable[[Tensor, Tensor | None], Tensor] | None = None,
        false_alarm: float = 1e-3,
    ) -> list[Check]:
        """Say whether rows x (N, *event), of which n_events (N,) count, lie where simulated ones did, each by itself.

        Args:
            x: finite.
            n_events: of runs of events.
            seen: as it was given to `of`.
            false_alarm: probability that one row or more of N simulated ones fails one test or more.
        """
        n_events = self._count(x, n_events)
        found = self.probabilities(x, n_events, seen)
        level = false_alarm / len(found) / len(x)
        return [self._judge(name, p, level, x, n_events) for name, p in found.items()]

    def _count(self, x: Tensor, n_events: Tensor | None) -> Tensor | None:
        """Events in each of x (N, n_max, ...): all, unless it is said; `None` where x is no run of events."""
        if not bool(self.state.get("counted", False)):
            return None
        return torch.full((len(x),), x.shape[1]) if n_events is None else n_events.cpu()

    def _judge(self, name: str, p: Tensor, level: float, x: Tensor, n_events: Tensor | None) -> Check:
        row = int(p.argmin())
        least, failed = float(p[row]), int((p < level).sum())
        passed: bool | None = failed == 0
        where = f"row {row}: " if len(x) > 1 else ""
        share = f"{least:.2g} of the simulated rows" if least > 0 else "none of the simulated rows"
        if name == "label":
            label, rows = int(x.flatten()[row]), int(self.state["labels"].sum())
            new = least < 1
            text = f"{where}label {label} " + (f"never came in {rows} simulated rows" if new else "was simulated")
            return Check("label", "", least, (level, 1.0), None if new and passed else passed, text)
        if p.isnan().any():
            return Check(name, "", math.nan, (level, 1.0), None, f"only {int(self.state['rows'])} simulated rows")
        if name == "columns":
            return self._judge_column(
                least, level, x[row : row + 1], None if n_events is None else n_events[[row]], where
            )
        text = f"{where}as far from the others as {share}"
        return Check(name, "", least, (level, 1.0), passed, text)

    def _judge_column(self, p: float, level: float, x: Tensor, n_events: Tensor | None, where: str) -> Check:
        shape = tuple(self.state["event"].tolist())
        value = features_of(x, shape, n_events)[0]
        k = int(_column_probability(self.state, value[None])[0].argmin())
        about = names_of(shape, counted=bool(self.state["counted"]))[k]
        low, high = (float(end[k]) for end in self.state["ends"])
        tails = [_tail(self.state, side) for side in (0, 1)]
        each = level / len(value) / 2
        band = -float(tails[0].quantile(each)[k]), float(tails[1].quantile(each)[k])
        share = f"{p:.2g}" if p > 0 else "none"
        text = (
            f"{where}{about} is {float(value[k]):.5g}, simulated were {low:.5g} to {high:.5g}; {share} of the rows "
            "have any column so far out"
        )
        return Check("columns", about, float(value[k]), band, p >= level, text)


def _tail(state: Mapping[str, Tensor], side: int) -> Tail:
    return Tail(state["share"], *state["tails"][side])


def _remember(columns: Tensor) -> dict[str, Tensor]:
    """The state for columns (N, C)."""
    n = len(columns)
    low, high = columns.amin(0), columns.amax(0)
    state = {"rows": torch.tensor(n), "ends": torch.stack([low, high])}
    below, above = Tail.of(-columns), Tail.of(columns)
    state["share"] = above.share
    state["tails"] = torch.stack([torch.stack([t.start, t.scale, t.shape]) for t in (below, above)])
    with seeded(0):
        order = torch.randperm(n)
    half = columns[order[: n // 2]]
    levels = torch.tensor([0.16, 0.5, 0.84]).double()
    left, middle, right = torch.quantile(half, levels, dim=0) if len(half) else columns[:1].expand(3, -1)
    scale = torch.where(right > left, (right - left) / 2, half.std(0))
    state |= {"shift": middle, "scale": torch.where((scale > 0) & (high > low), scale, torch.inf)}
    unit = _standard(state, half)
    state["mean"] = unit.mean(0)
    covariance = torch.cov(unit.T, correction=0).reshape(len(scale), len(scale))
    shrunk = len(scale) / (len(scale) + len(half))
    covariance = (1 - shrunk) * covariance + shrunk * covariance.diag().diag()
    value, vector = torch.linalg.eigh(covariance)
    value, vector = value.flip(0), vector.flip(1)
    used = value > 1e-9 * value[0].clamp(min=1e-300)
    top = used & (torch.arange(len(value)) < DIRECTIONS)
    state["whitening"] = vector[:, top] / value[top].sqrt()
    state["rest"] = value[used & ~top].mean() if bool((used & ~top).any()) else torch.tensor(torch.inf).double()
    state["kept"] = _whiten(state, half[:KEPT])[0].float()
    state["distances"] = torch.stack(_distances(state, columns[order[n // 2 :]])).sort(1).values
    return state


def _standard(state: Mapping[str, Tensor], columns: Tensor) -> Tensor:
    """Standard units (N, C), that grow only logarithmically beyond 4; 0 in constant columns."""
    unit = (columns - state["shift"]) / state["scale"]
    bulk = unit.clamp(-_BULK, _BULK)
    return bulk + torch.log1p((unit - bulk).abs()).copysign(unit - bulk)


def _whiten(state: Mapping[str, Tensor], columns: Tensor) -> tuple[Tensor, Tensor]:
    """Principal components of variance 1, (N, R), and the squared length of what is left, in its own unit, (N,)."""
    unit = _standard(state, columns) - state["mean"]
    white = unit @ state["whitening"]
    basis = state["whitening"] / state["whitening"].norm(dim=0).clamp(min=1e-300)
    left = (unit.square().sum(1) - (unit @ basis).square().sum(1)).clamp(min=0.0)
    return white, left / state["rest"]


def _distances(state: Mapping[str, Tensor], columns: Tensor) -> list[Tensor]:
    """Distance from the mean, and to a neighbour, of columns (N, C): (N,) each."""
    white, left = _whiten(state, columns)
    kept = state["kept"]
    far = (white.square().sum(1) + left).sqrt()
    near = [
        torch.cdist(part, kept).topk(min(NEIGHBOUR, len(kept)), largest=False).values[:, -1]
        for part in white.float().split(1000)
    ]
    return [far, torch.cat(near).double()]


def _column_probability(state: Mapping[str, Tensor], columns: Tensor) -> Tensor:
    """The smaller of the two tails of each column, (N, C); 0 for another value of a constant one."""
    return torch.minimum(_tail(state, 0).probability(-columns), _tail(state, 1).probability(columns))


def _look(state: Mapping[str, Tensor], columns: Tensor) -> dict[str, Tensor]:
    """P-values of columns (N, C): test -> (N,), NaN where too few rows are known."""
    if int(state["rows"]) < 4 * FEWEST:
        return {name: torch.full((len(columns),), torch.nan) for name in ("columns", "distance", "neighbours")}
    each = _column_probability(state, columns)
    found = {"columns": (2 * columns.shape[1] * each.amin(1)).clamp(max=1.0)}
    far, near = _distances(state, columns)
    known = state["distances"]
    below = _rank(-known[0].flip(0), -far)
    found["distance"] = (2 * torch.minimum(_rank(known[0], far), below)).clamp(max=1.0)
    found["neighbours"] = _rank(known[1], near)
    return found


def _rank(known: Tensor, value: Tensor) -> Tensor:
    """Share of known (K,), ascending, that is at least value (N,); beyond most of them by a tail."""
    rank = (1 + len(known) - torch.searchsorted(known, value.contiguous())) / (1 + len(known))
    tail = Tail.of(known[:, None]).probability(value[:, None])[:, 0]
    return torch.where(tail < 1, tail, rank)


def reader(estimator: Any) -> Callable[[Tensor, Tensor | None], Tensor] | None:
    """What an estimator's embedding makes of x (N, *event) and n_events (N,); `None` if it has none."""
    return estimator.seen if getattr(estimator, "embedding", None) is not None else None


def recognise(estimator: Any, x: Tensor, n_events: Tensor | None) -> tuple[str, str]:
    """Whether an estimator knows observations such as x (N, *event), of which n_events (N,) count: verdict and flag.

    The flag is empty if nothing is wrong, or nothing known.
    """
    known = getattr(estimator, "familiar", None)
    if known is None:
        return "unchecked", ""
    found = known.check(x, n_events, seen=reader(estimator))
    failed = [check for check in found if check.passed is False]
    if failed:
        said = "; ".join(f"{check.name}: {check.text}" for check in failed)
        return f"NOT inside: {said}", f"x_obs is not like what was simulated, and no answer can be trusted: {said}"
    if all(check.passed is None for check in found):
        return f"unchecked: {found[0].text}", ""
    return f"{'all inside' if len(x) > 1 else 'inside'}, by {', '.join(check.name for check in found)}", ""
