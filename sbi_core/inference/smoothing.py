"""Densities of draws, for pictures."""

import torch
from torch import Tensor

REACH = 4.0
"""Bandwidths beyond the outermost draws that are still shown."""


def smoothed(draws: Tensor, weight: Tensor, low: Tensor, high: Tensor, cells: int) -> tuple[list[Tensor], Tensor]:
    """Kernel estimate of the density of weighted draws, on a grid, reflected where the parameter has an end.

    The kernel is normal, its width by Scott's rule for n effective draws in d dimensions, sd * n^(-1 / (d + 4)), sd
    not above what a normal density would have whose densest quarter is as wide, so that separated modes stay separate.
    It flattens narrow peaks all the same: this is for pictures, numbers are read from the draws.

    Args:
        draws: (S, d).
        weight: (S,), summing to one.
        low: least possible values (d,), perhaps infinite.
        high: largest possible values (d,), perhaps infinite.
        cells: at least so many to an axis; more if the kernel is narrow, up to four times as many.

    Returns:
        Cell centres, d of (G,), and the density there, (G, ...).
    """
    from scipy.ndimage import gaussian_filter1d

    dims = draws.shape[1]
    bandwidth = _spread(draws, weight) * float(1 / weight.square().sum()) ** (-1 / (dims + 4))
    ends = [
        torch.maximum(draws.amin(0) - REACH * bandwidth, low),
        torch.minimum(draws.amax(0) + REACH * bandwidth, high),
    ]
    width = (ends[1] - ends[0]).clamp(min=1e-300)
    counts = [int(min(max(cells, 3 * float(w / b)), 4 * cells)) for w, b in zip(width, bandwidth, strict=True)]
    edges = [
        torch.linspace(float(a), float(a + w), n + 1, dtype=torch.float64)
        for a, w, n in zip(ends[0], width, counts, strict=True)
    ]
    mass = torch.histogramdd(draws, edges, weight=weight).hist.numpy()
    for axis, (n, w, b) in enumerate(zip(counts, width, bandwidth, strict=True)):
        mass = gaussian_filter1d(mass, float(b / w) * n, axis=axis, mode="reflect")
    volume = float(torch.stack([w / n for w, n in zip(width, counts, strict=True)]).prod())
    return [(edge[1:] + edge[:-1]) / 2 for edge in edges], torch.from_numpy(mass / mass.sum() / volume)


def _spread(draws: Tensor, weight: Tensor) -> Tensor:
    """The smaller of the standard deviation and the shortest interval with a quarter of the draws / 0.637, (d,)."""
    sd = (weight @ (draws - weight @ draws).square()).sqrt()
    ordered, order = draws.T.contiguous().sort(1)
    below = weight[order].cumsum(1)
    until = torch.searchsorted(below, below + 0.25).clamp(max=len(draws) - 1)
    width = torch.where(below + 0.25 <= 1, ordered.gather(1, until) - ordered, torch.inf).amin(1)
    found = torch.where(width > 0, torch.minimum(sd, width / 0.637), sd)
    return found.clamp(min=1e-12 * draws.abs().amax(0).clamp(min=1.0))
