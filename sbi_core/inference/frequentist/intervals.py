"""Where a curve lies below its critical value: intervals, perhaps of several pieces."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """One connected piece of a confidence set.

    Attributes:
        low: its lower end.
        high: its upper end.
        low_open: whether it is the range that ends there and not the set.
        high_open: the same of the upper end.
        low_error: Monte Carlo standard error of the end, from toys or simulated expectations; 0 without them.
        high_error: the same of the upper end.
        low_training: standard deviation of the end over an ensemble's members; `None` if unchecked.
        high_training: the same of the upper end.
    """

    low: float
    high: float
    low_open: bool = False
    high_open: bool = False
    low_error: float = 0.0
    high_error: float = 0.0
    low_training: float | None = None
    high_training: float | None = None

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def to_json(self) -> dict[str, Any]:
        """Plain data for a file."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{'<' if self.low_open else '['}{self.low:.4g}, {self.high:.4g}{'>' if self.high_open else ']'}"


def crossings(excess: Tensor) -> Tensor:
    """Numbers k (K,) of the gaps between neighbours k and k + 1 of excess (G,) in which it changes sign."""
    inside = excess <= 0
    return (inside[1:] != inside[:-1]).nonzero()[:, 0]


def pieces(at: Tensor, excess: Tensor, error: Tensor | None = None) -> tuple[Interval, ...]:
    """The set where excess <= 0, between grid points by straight lines.

    Args:
        at: increasing, (G,); its ends are those of the range.
        excess: statistic minus critical value, (G,).
        error: Monte Carlo standard error of the excess, (G,).
    """
    inside = (excess <= 0).tolist()
    found, start = [], None
    for k in range(len(inside)):
        if inside[k] and start is None:
            start = (float(at[0]), True, 0.0) if k == 0 else (*_end(at, excess, error, k, k - 1),)
        if inside[k] and (k + 1 == len(inside) or not inside[k + 1]):
            stop = (float(at[k]), True, 0.0) if k + 1 == len(inside) else _end(at, excess, error, k, k + 1)
            if start is not None:
                found.append(Interval(start[0], stop[0], start[1], stop[1], start[2], stop[2]))
            start = None
    return tuple(found)


def _end(at: Tensor, excess: Tensor, error: Tensor | None, within: int, out: int) -> tuple[float, bool, float]:
    """Where the line from a point within to its neighbour out crosses zero, that it is closed, and its error."""
    rise = float(excess[out] - excess[within])
    share = float(-excess[within]) / rise if rise < float("inf") else 0.0
    gap = float(at[out] - at[within])
    spread = 0.0 if error is None or rise == float("inf") else float(torch.lerp(error[within], error[out], share))
    return float(at[within]) + share * gap, False, spread / rise * abs(gap)


def with_training(own: Sequence[Interval], members: Sequence[Sequence[Interval]]) -> tuple[Interval, ...]:
    """The same intervals with the spread of their ends over members that have as many pieces; else unchecked."""
    same = [m for m in members if len(m) == len(own)]
    if len(same) < 2 or len(same) < len(members):
        return tuple(own)
    low = torch.tensor([[piece.low for piece in m] for m in same]).double().std(0).tolist()
    high = torch.tensor([[piece.high for piece in m] for m in same]).double().std(0).tolist()
    return tuple(replace(piece, low_training=a, high_training=b) for piece, a, b in zip(own, low, high, strict=True))


def open_flags(name: str, sets: Mapping[float, Sequence[Interval]], ends: tuple[float, float]) -> list[str]:
    """A sentence for each set that is empty, in pieces, or cut off at the ends of the range or of the toys' grid."""
    found = []
    for level, each in sets.items():
        what = f"the set of '{name}' at {level:.1%}"
        if len(each) != 1:
            found.append(f"{what} has {len(each)} pieces" if each else f"{what} is empty")
        cut = [] if not each else [("low", each[0].low_open, each[0].low - ends[0])]
        cut += [] if not each else [("high", each[-1].high_open, ends[1] - each[-1].high)]
        for side, is_open, gap in cut:
            if is_open:
                where = "range" if gap < 1e-9 * (ends[1] - ends[0]) else "grid of toys, and may go on,"
                found.append(f"{what} ends with the {where} at the {side} end")
    return found
