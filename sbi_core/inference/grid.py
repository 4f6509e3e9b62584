"""Posteriors of one to three parameters on a grid: exactly normalised, nothing sampled."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from sbi_core.errors import InputError
from sbi_core.inference.posterior import Posterior
from sbi_core.parameters import Parameter

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


class GridPosterior(Posterior):
    """Density constant on the cells of a grid, so that it integrates to one exactly; event shape (D,).

    Args:
        parameters: the D axes of theta.
        edges: cell edges of each axis, D tensors (*, G + 1).
        log_density: any multiple of the density at the cell centres, in nats, (*, G, ...), one axis for each of theta.
        verdicts: what was checked.
        flags: what a careful reader should know.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        edges: Sequence[Tensor],
        log_density: Tensor,
        *,
        verdicts: Mapping[str, str],
        flags: Sequence[str] = (),
    ) -> None:
        self.parameters = tuple(parameters)
        self.verdicts = dict(verdicts)
        self.flags = tuple(flags)
        self._edges = tuple(edge.to(torch.float64) for edge in edges)
        dims = len(self._edges)
        batch = log_density.shape[: log_density.ndim - dims]
        widths = [edge.diff(dim=-1) for edge in self._edges]
        self._log_cell = _outer([width.log() for width in widths])
        flat = (log_density.to(torch.float64) + self._log_cell).flatten(len(batch))
        self._log_mass = (flat - flat.logsumexp(-1, keepdim=True)).reshape(log_density.shape)
        super().__init__(batch_shape=batch, event_shape=torch.Size([dims]), validate_args=False)

    def __repr__(self) -> str:
        return f"GridPosterior({', '.join(p.name for p in self.parameters)}; {tuple(self._log_mass.shape)} cells)"

    @property
    def support(self) -> constraints.Constraint:
        """The box of the grid."""
        low = torch.stack([edge[..., 0] for edge in self._edges], -1)
        high = torch.stack([edge[..., -1] for edge in self._edges], -1)
        return constraints.independent(constraints.interval(low, high), 1)

    def grid(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """Cell centres of each axis, D of (*, G), and the log density (nats) there, (*, G, ...)."""
        return tuple(_centres(edge) for edge in self._edges), self._log_mass - self._log_cell

    def mass(self) -> Tensor:
        """Probability of each cell, (*, G, ...)."""
        return self._log_mass.exp()

    def axis_mass(self, axis: int) -> Tensor:
        """Probability of the cells along one axis, (*, G)."""
        mass = self.mass()
        others = [k - len(self._edges) for k in range(len(self._edges)) if k != axis]
        return mass.sum(others) if others else mass

    def marginal(self, names: Sequence[str]) -> "GridPosterior":
        """The density of the named parameters, the others integrated out."""
        dims, kept = len(self._edges), self._columns(names)
        gone = [k - dims for k in range(dims) if k not in kept]
        mass = self.mass().sum(gone) if gone else self.mass()
        leading, rest = mass.ndim - len(kept), sorted(kept)
        mass = mass.permute(*range(leading), *(leading + rest.index(k) for k in kept))
        edges = [self._edges[k] for k in kept]
        axes = [self.parameters[k] for k in kept]
        log_density = mass.log() - _outer([edge.diff(dim=-1).log() for edge in edges])
        return GridPosterior(axes, edges, log_density, verdicts=self.verdicts, flags=self.flags)

    @property
    def mode(self) -> Tensor:
        """Centre of the cell of highest density, (*, D)."""
        density, leading = self.grid()[1], len(self.batch_shape)
        best = torch.unravel_index(density.flatten(leading).argmax(-1), density.shape[leading:])
        each = [_centres(edge).gather(-1, at[..., None])[..., 0] for edge, at in zip(self._edges, best, strict=True)]
        return torch.stack(each, -1)

    def threshold(self, level: float) -> Tensor:
        """Log density, nats (*), above which `level` of the probability lies: where the highest-density region ends."""
        leading = len(self.batch_shape)
        density, mass = self.grid()[1].flatten(leading), self.mass().flatten(leading)
        ordered, order = density.sort(-1, descending=True)
        enough = (mass.gather(-1, order).cumsum(-1) < level).sum(-1, keepdim=True).clamp(max=density.shape[-1] - 1)
        return ordered.gather(-1, enough)[..., 0]

    @property
    def mean(self) -> Tensor:
        """Posterior mean, (*, D)."""
        each = [(self.axis_mass(k) * _centres(edge)).sum(-1) for k, edge in enumerate(self._edges)]
        return torch.stack(each, -1)

    @property
    def variance(self) -> Tensor:
        """Posterior variance of each parameter, (*, D)."""
        each = []
        for k, edge in enumerate(self._edges):
            offset = _centres(edge) - self.mean[..., k, None]
            each.append((self.axis_mass(k) * (offset**2 + edge.diff(dim=-1) ** 2 / 12)).sum(-1))
        return torch.stack(each, -1)

    def credible_interval(self, level: float = 0.683) -> tuple[Tensor, Tensor]:
        """Equal-tailed interval of each parameter at a level: ends (*, D)."""
        tail = (1 - level) / 2
        low = torch.stack([self._quantile(k, tail) for k in range(len(self._edges))], -1)
        high = torch.stack([self._quantile(k, 1 - tail) for k in range(len(self._edges))], -1)
        return low, high

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density (nats) at value (*, D), as (*); minus infinity outside the grid."""
        value = value.to(torch.float64)
        shape = torch.broadcast_tensors(value[..., 0], torch.empty(self.batch_shape))[0].shape
        density = (self._log_mass - self._log_cell).expand(*shape, *self._log_mass.shape[len(self.batch_shape) :])
        inside = torch.ones(shape, dtype=torch.bool)
        for k, edge in enumerate(self._edges):
            edge = edge.expand(*shape, -1).contiguous()
            at = value[..., k].expand(shape)
            inside &= (at >= edge[..., 0]) & (at <= edge[..., -1])
            cell = torch.searchsorted(edge, at[..., None].contiguous(), right=True) - 1
            cell = cell.clamp(0, edge.shape[-1] - 2)
            size = density.shape[len(shape) + 1 :]
            index = cell.reshape(*shape, 1, *(1 for _ in size)).expand(*shape, 1, *size)
            density = density.gather(len(shape), index).squeeze(len(shape))
        return torch.where(inside, density, -torch.inf)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  (torch's own signature)
        """Draw (*sample_shape, *, D): a cell, then a point in it."""
        count = math.prod(sample_shape)
        mass = self._log_mass.exp().reshape(max(1, math.prod(self.batch_shape)), -1)
        cells = torch.multinomial(mass, max(count, 1), replacement=True)[:, :count].T.reshape(
            *sample_shape, *self.batch_shape
        )
        places = torch.unravel_index(cells, self._log_mass.shape[len(self.batch_shape) :])
        drawn = []
        for place, edge in zip(places, self._edges, strict=True):
            edge = edge.expand(*cells.shape, -1)
            low = edge.gather(-1, place[..., None])[..., 0]
            high = edge.gather(-1, place[..., None] + 1)[..., 0]
            drawn.append(low + (high - low) * torch.rand(cells.shape, dtype=torch.float64))
        return torch.stack(drawn, -1)

    def _quantile(self, axis: int, level: float) -> Tensor:
        mass, edge = self.axis_mass(axis), self._edges[axis]
        below = torch.cat([torch.zeros_like(mass[..., :1]), mass.cumsum(-1)], -1)
        target = torch.full_like(mass[..., :1], level)
        cell = (torch.searchsorted(below, target) - 1).clamp(0, mass.shape[-1] - 1)
        share = (target - below.gather(-1, cell)) / mass.gather(-1, cell).clamp(min=1e-300)
        edge = edge.expand(*mass.shape[:-1], -1)
        return (edge.gather(-1, cell) + share.clamp(0, 1) * edge.diff(dim=-1).gather(-1, cell))[..., 0]


def grid_posterior(
    parameters: Sequence[Parameter], prior: Distribution, log_likelihood: Callable[[Tensor], Tensor], rows: int
) -> tuple[list[Tensor], Tensor, list[str]]:
    """Evaluate prior times likelihood on a coarse grid, then on a fine one around what is not negligible.

    Args:
        parameters: the D axes of theta.
        prior: event shape (D,).
        log_likelihood: theta (rows, G, D) -> nats (rows, G).
        rows: observations, each with a posterior of its own.

    Returns:
        Edges, D of (rows, G + 1), the log density at the cell centres, (rows, G, ...), and flags.
    """
    dims = len(parameters)
    edges = [
        torch.linspace(low, high, COARSE[dims] + 1, dtype=torch.float64).expand(rows, -1)
        for low, high in _range(parameters, prior)
    ]
    for _ in range(ZOOMS):
        used = _used(_evaluate(edges, prior, log_likelihood), cautious=True)
        closer = [_zoom(edge, _along(used, k), COARSE[dims]) for k, edge in enumerate(edges)]
        shrunk = [bool((_width(new) < _width(old) / 2).any()) for new, old in zip(closer, edges, strict=True)]
        edges = closer
        if not any(shrunk):
            break
    used = _used(_evaluate(edges, prior, log_likelihood), cautious=False)
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
    """Log density at the cell centres, (rows, G, ...)."""
    sizes = [edge.shape[1] - 1 for edge in edges]
    place = torch.unravel_index(torch.arange(math.prod(sizes)), tuple(sizes))
    theta = torch.stack([_centres(edge)[:, index] for edge, index in zip(edges, place, strict=True)], -1)
    value = log_likelihood(theta) + prior.log_prob(theta)
    return value.nan_to_num(-torch.inf, -torch.inf, -torch.inf).reshape(-1, *sizes)


def _used(density: Tensor, *, cautious: bool) -> Tensor:
    """Which cells (rows, G, ...) may hold what is not negligible.

    With caution a cell is given what it would have if the density rose once more as it does between the cell and its
    neighbours: of a cell wider than the posterior, the centre says little.
    """
    rise = torch.zeros_like(density)
    for axis in range(1, density.ndim) if cautious else ():
        change = density.diff(dim=axis).abs().nan_to_num(nan=0.0, posinf=0.0)
        none = torch.zeros_like(density.narrow(axis, 0, 1))
        rise += torch.maximum(torch.cat([change, none], axis), torch.cat([none, change], axis))
    top = density.flatten(1).max(1).values.reshape(-1, *(1,) * (density.ndim - 1))
    return (density + rise >= top - NEGLIGIBLE[density.ndim - 1]) & density.isfinite()


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
    base = getattr(support, "base_constraint", support)
    low, high = getattr(base, "lower_bound", None), getattr(base, "upper_bound", None)
    if low is not None and high is not None:
        ends = [torch.as_tensor(end, dtype=torch.float64).expand(len(parameters)) for end in (low, high)]
    else:
        ends = [prior.mean + sign * WIDE * prior.stddev for sign in (-1, 1)]
        floor = -torch.inf if low is None else torch.as_tensor(low)
        ends[0] = torch.maximum(ends[0], torch.as_tensor(floor, dtype=ends[0].dtype))
    if not all(bool(torch.isfinite(end).all()) for end in ends):
        raise InputError(
            "the prior has no finite range, nor a finite mean and standard deviation, on which a grid could be laid; "
            "give one that has, such as UniformPrior(parameters)."
        )
    return [(float(a), float(b)) for a, b in zip(*ends, strict=True)]


def _centres(edge: Tensor) -> Tensor:
    return (edge[..., 1:] + edge[..., :-1]) / 2


def _outer(axes: Sequence[Tensor]) -> Tensor:
    """The sum of axes (*, G) at every cell, (*, G, ...)."""
    dims = len(axes)
    each = [axis.reshape(*axis.shape[:-1], *(-1 if j == k else 1 for j in range(dims))) for k, axis in enumerate(axes)]
    return sum(each[1:], each[0])
