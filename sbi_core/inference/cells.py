"""Where a grid is laid, and how fine: cells around whatever of prior times likelihood is not negligible."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_core.errors import InputError
from sbi_core.inference.grid import centres
from sbi_core.parameters import Parameter
from sbi_core.priors import bounds

COARSE = {1: 512, 2: 64, 3: 24}
FINE = {1: 1024, 2: 128, 3: 64}
"""Cells per axis, by dimension: while looking for the region that holds the posterior, and in it."""

COARSEST, MOST = 4, 2**20
"""Cells to a standard deviation below which a grid is made finer, and cells in all to which it is."""

ZOOMS = 8
"""How often the grid is laid anew around what it found, at most."""

NEGLIGIBLE = {1: 25.0, 2: 25.0, 3: 12.0}
"""Nats below the maximum at which a cell is left out of the fine grid."""

WIDE = 8.0
"""Standard deviations of an unbounded prior that the grid spans."""


def grid_posterior(
    parameters: Sequence[Parameter], prior: Distribution, log_likelihood: Callable[[Tensor], Tensor], rows: int
) -> tuple[list[Tensor], Tensor, list[str]]:
    """Evaluate prior times likelihood on a coarse grid, then on a fine one around what is not negligible.

    Args:
        parameters: the D axes of theta.
        prior: event shape (D,).
        log_likelihood: theta (rows, G, D) -> nats (M * rows, G), of M estimators for the same observations.
        rows: observations, each with a grid of its own, which covers what any of the M finds.

    Returns:
        Edges, D of (rows, G + 1), the log density at the cell centres, (M * rows, G, ...), and flags.
    """
    dims = len(parameters)
    edges = [
        torch.linspace(low, high, COARSE[dims] + 1, dtype=torch.float64).expand(rows, -1)
        for low, high in _range(parameters, prior)
    ]
    for _ in range(ZOOMS):
        used = _used(_evaluate(edges, prior, log_likelihood), rows, cautious=True)
        closer = [_zoom(edge, _along(used, k), COARSE[dims]) for k, edge in enumerate(edges)]
        shrunk = [bool((_width(new) < _width(old) / 2).any()) for new, old in zip(closer, edges, strict=True)]
        edges = closer
        if not any(shrunk):
            break
    used = _used(_evaluate(edges, prior, log_likelihood), rows, cautious=False)
    cells = FINE[dims]
    edges = [_zoom(edge, _along(used, k), cells) for k, edge in enumerate(edges)]
    density = _evaluate(edges, prior, log_likelihood)
    while float(resolution(density).min()) < COARSEST and rows * (2 * cells) ** dims <= MOST:
        cells *= 2
        edges = [_finer(edge, cells) for edge in edges]
        density = _evaluate(edges, prior, log_likelihood)
    flags = []
    best = torch.unravel_index(density.flatten(1).argmax(1), density.shape[1:])
    for place, edge, (low, high), parameter in zip(best, edges, _range(parameters, prior), parameters, strict=True):
        place = place.reshape(-1, rows)
        at_edge = ((place == 0) & (edge[:, 0] <= low)) | ((place == cells - 1) & (edge[:, -1] >= high))
        if bool(at_edge.any()):
            flags.append(f"the posterior of '{parameter.name}' is highest at the edge of the prior")
    return edges, density, flags


def resolution(density: Tensor) -> Tensor:
    """How many cells a standard deviation spans, with the other parameters fixed, along each axis (D, rows).

    Of a normal density whose logarithm (nats) changes by d between neighbouring cells on average: (2 / pi)^(1/2) / d.
    A cell adds a twelfth of its square to a variance.

    Args:
        density: log density at the cell centres, (rows, G, ...).
    """
    mass = density.flatten(1).softmax(1).reshape(density.shape)
    found = []
    for axis in range(1, density.ndim):
        change = density.diff(dim=axis).abs()
        weight = mass.narrow(axis, 0, change.shape[axis]) * change.isfinite()
        total = (weight * change.nan_to_num(0.0, 0.0, 0.0)).flatten(1).sum(1)
        found.append(math.sqrt(2 / math.pi) * weight.flatten(1).sum(1) / total.clamp(min=1e-9))
    return torch.stack(found)


def _evaluate(edges: Sequence[Tensor], prior: Distribution, log_likelihood: Callable[[Tensor], Tensor]) -> Tensor:
    """Log density at the cell centres, (M * rows, G, ...)."""
    sizes = [edge.shape[1] - 1 for edge in edges]
    place = torch.unravel_index(torch.arange(math.prod(sizes)), tuple(sizes))
    theta = torch.stack([centres(edge)[:, index] for edge, index in zip(edges, place, strict=True)], -1)
    value = log_likelihood(theta).reshape(-1, *theta.shape[:2]) + prior.log_prob(theta)
    return value.nan_to_num(-torch.inf, -torch.inf, -torch.inf).reshape(-1, *sizes)


def _used(density: Tensor, rows: int, *, cautious: bool) -> Tensor:
    """Which cells (rows, G, ...) may hold what is not negligible in any of M log densities (M * rows, G, ...).

    With caution a cell is given what it would have if the density rose once more as it does between the cell and its
    neighbours: of a cell wider than the posterior, the centre says little.
    """
    rise = torch.zeros_like(density)
    for axis in range(1, density.ndim) if cautious else ():
        change = density.diff(dim=axis).abs().nan_to_num(nan=0.0, posinf=0.0)
        none = torch.zeros_like(density.narrow(axis, 0, 1))
        rise += torch.maximum(torch.cat([change, none], axis), torch.cat([none, change], axis))
    top = density.flatten(1).max(1).values.reshape(-1, *(1,) * (density.ndim - 1))
    used = (density + rise >= top - NEGLIGIBLE[density.ndim - 1]) & density.isfinite()
    return used.unflatten(0, (-1, rows)).any(0)


def _along(used: Tensor, axis: int) -> Tensor:
    """Whether any cell is used, (rows, G), at each place along one axis."""
    others = [k + 1 for k in range(used.ndim - 1) if k != axis]
    return used.any(others) if others else used


def _zoom(edge: Tensor, used: Tensor, cells: int) -> Tensor:
    """New edges over the used cells of an axis, (rows, G + 1) and (rows, G), one cell wider on each side."""
    size = used.shape[1]
    number = torch.arange(size)
    first = torch.where(used, number, size).min(1).values.sub(1).clamp(min=0, max=size - 1)
    last = torch.where(used, number, -1).max(1).values.add(2).clamp(min=1, max=size)
    low, high = (edge.gather(1, end[:, None]) for end in (first, last))
    return _finer(torch.cat([low, high], 1), cells)


def _finer(edge: Tensor, cells: int) -> Tensor:
    """Edges of so many equal cells between the ends of an axis, (rows, G + 1)."""
    return edge[:, :1] + _width(edge) * torch.linspace(0, 1, cells + 1, dtype=torch.float64)


def _width(edge: Tensor) -> Tensor:
    return edge[:, -1:] - edge[:, :1]


def _range(parameters: Sequence[Parameter], prior: Distribution) -> list[tuple[float, float]]:
    """The part of each axis where the prior lives: its support, or eight standard deviations about its mean."""
    support: Any = prior.support
    ends = bounds(support, len(parameters))
    if not all(bool(end.isfinite().all()) for end in ends):
        near = [(prior.mean + sign * WIDE * prior.stddev).double() for sign in (-1, 1)]
        ends = torch.maximum(ends[0], near[0]), torch.minimum(ends[1], near[1])
    if not all(bool(torch.isfinite(end).all()) for end in ends):
        raise InputError(
            "the prior has no finite range, nor a finite mean and standard deviation, on which a grid could be laid; "
            "give one that has, such as UniformPrior(parameters)."
        )
    return [(float(a), float(b)) for a, b in zip(*ends, strict=True)]
