"""Negative weights: how many there are, and cell resampling, which does without them and keeps every cross-section."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbi_core.errors import InputError

ROUNDING = 1e-6
"""A weight below zero by less than this share of the event's largest is rounding: files keep 6 to 8 digits."""

_CHUNK, _WIDE = 2000, 0.5
_FIRST, _MORE = 8, 4


@dataclass(frozen=True)
class Negatives:
    """What of the weights is negative, at thetas that fill the parameters' ranges.

    Attributes:
        events: those with a negative weight somewhere (N,).
        given: those of them with a negative weight at a benchmark (N,); the others are positive at all.
        share: the largest share of the summed |w| that is negative.
        at: the theta (D,) where it is.
    """

    events: Tensor
    given: Tensor
    share: float
    at: Tensor


@dataclass(frozen=True)
class Cells:
    """What cell resampling did.

    Attributes:
        cells: how many were grown, one around each event that was still negative.
        merged: events in any of them.
        events: all events.
        size: median distance from the middle of a cell to its farthest event, in standard deviations of x.
        largest: the largest such distance.
        wide: share of all events that are in cells reaching beyond half a standard deviation.
    """

    cells: int
    merged: int
    events: int
    size: float
    largest: float
    wide: float

    def __str__(self) -> str:
        return (
            f"{self.cells} cells hold {self.merged} of {self.events} events ({self.merged / self.events:.1%}) and "
            f"reach {self.size:.2g} standard deviations of x (median; at most {self.largest:.2g})"
        )


def find_negatives(coefficients: Tensor, weights: Tensor, table: Tensor, points: Tensor) -> Negatives:
    """Look for events with w_i(theta_t) = sum_c m_c(theta_t) W_ic < 0.

    Args:
        coefficients: W (N, C).
        weights: at the benchmarks, (N, B).
        table: m_c(theta_t), (T, C).
        points: theta_t (T, D).
    """
    worst, total, below = [], torch.zeros(len(table)).double(), torch.zeros(len(table)).double()
    for part in coefficients.split(_CHUNK):
        values = part @ table.T
        least, most = values.aminmax(dim=1)
        worst.append(least < -ROUNDING * torch.maximum(most, -least))
        total += values.sum(0)
        below -= values[least < 0].clamp(max=0).sum(0)
    events, share = torch.cat(worst), torch.nan_to_num(below / (total + 2 * below))
    given = events & (weights < -ROUNDING * weights.abs().amax(1, keepdim=True)).any(1)
    return Negatives(events, given, float(share.max()), points[int(share.argmax())])


def merge_cells(coefficients: Tensor, x: Tensor, table: Tensor, seeds: Tensor) -> tuple[Tensor, Cells]:
    """Give events near each other their common mean weight until no weight is negative.

    Around each negative event, the most negative first, a cell grows by the event nearest in x (Euclid's distance, each
    number of x in units of its standard deviation) until its summed weight is positive at every theta of the table; all
    its events then have the cell's mean coefficients. Sums of weights, in all and over regions larger than the cells,
    are kept at every theta. The idea is Andersen & Maier's (arXiv:2109.07851), who resample one weight; here it is a
    polynomial, and must be positive everywhere.

    Args:
        coefficients: W (N, C).
        x: (N, ...).
        table: m_c(theta_t), (T, C).
        seeds: events with a negative weight, (N,).

    Returns:
        Coefficients (N, C), and what was done.

    Raises:
        InputError: if the sum of all weights is negative at some theta.
    """
    from scipy.spatial import cKDTree

    if bool((coefficients.sum(0) @ table.T <= 0).any()):
        raise InputError(
            "weights: their sum is not positive at every theta of the parameters' ranges. Narrow the ranges."
        )
    flat = x.flatten(1).double()
    scale = flat.std(0)
    places = (flat / torch.where(scale > 0, scale, 1.0)).numpy()
    tree, new, monomials = cKDTree(places), coefficients.numpy().copy(), table.T.numpy().copy()
    reach, sizes = np.zeros(len(new)), []
    order = seeds.nonzero()[:, 0].numpy()
    depth = (new[order] @ monomials).min(1)
    for seed in order[np.argsort(depth, kind="stable")]:
        if (new[seed] @ monomials).min() >= 0:
            continue  # an earlier cell has taken it in
        members = _grow(tree, places, new, monomials, int(seed))
        new[members] = new[members].mean(0)
        sizes.append(float(np.linalg.norm(places[members] - places[seed], axis=1).max()))
        reach[members] = np.maximum(reach[members], max(sizes[-1], 1e-300))
    size, largest = (float(np.median(sizes)), max(sizes)) if sizes else (0.0, 0.0)
    merged, wide = int((reach > 0).sum()), float((reach > _WIDE).mean())
    return torch.from_numpy(new), Cells(len(sizes), merged, len(new), size, largest, wide)


def _grow(tree: object, places: np.ndarray, weights: np.ndarray, monomials: np.ndarray, seed: int) -> np.ndarray:
    """Events of the smallest ball around one whose summed weight is positive at every theta."""
    count = _FIRST
    while True:
        count = min(count, len(places))
        _, near = tree.query(places[seed], count)  # type: ignore[attr-defined]
        near = np.concatenate([[seed], near[near != seed]])  # among events at one place it may not come first
        sums = np.cumsum(weights[near], 0) @ monomials
        enough = (sums >= 0).all(1)
        if enough.any() or count == len(places):
            return near[: int(enough.argmax()) + 1] if enough.any() else near
        count *= _MORE
