"""Posteriors of one to three parameters on a grid: exactly normalised, nothing sampled."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from sbi_core.inference.posterior import Posterior
from sbi_core.parameters import Parameter


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
        return tuple(centres(edge) for edge in self._edges), self._log_mass - self._log_cell

    def mass(self) -> Tensor:
        """Probability of each cell, (*, G, ...)."""
        return self._log_mass.exp()

    def axis_mass(self, axis: int) -> Tensor:
        """Probability of the cells along one axis, (*, G)."""
        mass = self.mass()
        others = [k - len(self._edges) for k in range(len(self._edges)) if k != axis]
        return mass.sum(others) if others else mass

    def _marginal(self, kept: list[int]) -> "GridPosterior":
        dims = len(self._edges)
        gone = [k - dims for k in range(dims) if k not in kept]
        mass = self.mass().sum(gone) if gone else self.mass()
        leading, rest = mass.ndim - len(kept), sorted(kept)
        mass = mass.permute(*range(leading), *(leading + rest.index(k) for k in kept))
        edges = [self._edges[k] for k in kept]
        axes = [self.parameters[k] for k in kept]
        log_density = mass.log() - _outer([edge.diff(dim=-1).log() for edge in edges])
        return GridPosterior(axes, edges, log_density, verdicts=self.verdicts, flags=self.flags)

    def curve(self, k: int) -> tuple[Tensor, Tensor]:
        """Density of parameter k: cell centres (G,) and density (G,)."""
        (points,), log_density = self._marginal([k]).grid()
        return points, log_density.exp()

    def surface(self, j: int, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Joint density of parameters j and k: cell centres (G,), (H,), density (G, H)."""
        (across, up), log_density = self._marginal([j, k]).grid()
        return across, up, log_density.exp()

    @property
    def mode(self) -> Tensor:
        """Centre of the cell of highest density, (*, D)."""
        density, leading = self.grid()[1], len(self.batch_shape)
        best = torch.unravel_index(density.flatten(leading).argmax(-1), density.shape[leading:])
        each = [centres(edge).gather(-1, at[..., None])[..., 0] for edge, at in zip(self._edges, best, strict=True)]
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
        each = [(self.axis_mass(k) * centres(edge)).sum(-1) for k, edge in enumerate(self._edges)]
        return torch.stack(each, -1)

    @property
    def variance(self) -> Tensor:
        """Posterior variance of each parameter, (*, D)."""
        each = []
        for k, edge in enumerate(self._edges):
            offset = centres(edge) - self.mean[..., k, None]
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

    def from_unit(self, unit: Tensor) -> Tensor:
        """Quantiles of each axis given those before it: points of the unit cube (*, D) become theta (*, D); no batches.

        Uniform points then have this distribution, and evenly spread ones stay so (Rosenblatt, Ann. Math. Stat. 23
        (1952) 470).
        """
        shape, unit, mass = unit.shape, unit.reshape(-1, unit.shape[-1]), self.mass()
        cells: list[Tensor] = []
        theta: list[Tensor] = []
        for k, edge in enumerate(self._edges):
            along = mass.flatten(k + 1).sum(-1) if k + 1 < mass.ndim else mass
            along = along[tuple(cells)].expand(len(unit), -1)
            below = torch.nn.functional.pad(along.cumsum(1) / along.sum(1, keepdim=True), (1, 0))
            at = unit[:, k : k + 1].contiguous()
            cell = (torch.searchsorted(below, at, right=True) - 1).clamp(0, along.shape[1] - 1)
            low, high = below.gather(1, cell), below.gather(1, cell + 1)
            share = ((at - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
            theta.append(edge[cell] + share * edge.diff()[cell])
            cells.append(cell[:, 0])
        return torch.cat(theta, 1).reshape(shape)

    def _quantile(self, axis: int, level: float) -> Tensor:
        mass, edge = self.axis_mass(axis), self._edges[axis]
        below = torch.cat([torch.zeros_like(mass[..., :1]), mass.cumsum(-1)], -1)
        target = torch.full_like(mass[..., :1], level)
        cell = (torch.searchsorted(below, target) - 1).clamp(0, mass.shape[-1] - 1)
        share = (target - below.gather(-1, cell)) / mass.gather(-1, cell).clamp(min=1e-300)
        edge = edge.expand(*mass.shape[:-1], -1)
        return (edge.gather(-1, cell) + share.clamp(0, 1) * edge.diff(dim=-1).gather(-1, cell))[..., 0]


def centres(edge: Tensor) -> Tensor:
    """Cell centres (*, G) of edges (*, G + 1)."""
    return (edge[..., 1:] + edge[..., :-1]) / 2


def _outer(axes: Sequence[Tensor]) -> Tensor:
    """The sum of axes (*, G) at every cell, (*, G, ...)."""
    dims = len(axes)
    each = [axis.reshape(*axis.shape[:-1], *(-1 if j == k else 1 for j in range(dims))) for k, axis in enumerate(axes)]
    return sum(each[1:], each[0])
