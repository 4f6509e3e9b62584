"""The one place that scales: inputs of networks, in float64 before the cast to float32, and the score term."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor, nn

from sbi_core.estimators.symmetries import averaged

_BULK = 6.0
"""Standard units beyond which inputs grow only logarithmically, so that a wild row cannot blow up the network."""

_WILD = 1e30
"""Standard units at which inputs end, so that float32 can hold them."""

ENOUGH = 1_000_000
"""Numbers from which a quantile is read, at most; of more, so many are drawn."""

_AT_ONCE = 4_000_000
"""Numbers that are held in float64 at a time."""


class Scaler(nn.Module):
    """u = (v - median) / half the 16-84% range, per column; identity in the bulk, logarithmic beyond 6 units.

    The location and spread are quantiles, so outliers do not move them; they are kept and applied in float64, so
    1e9 + signal loses nothing. Constant columns become 0 and are listed by `constant`.

    Args:
        shape: number of columns W, or the shape of what one row holds.
        pooled: its axes along which all numbers share one location and spread: pixels of a channel, events of a run.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shape: int | Sequence[int], pooled: Sequence[int] = ()) -> None:
        super().__init__()
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.pooled = tuple(sorted({axis % len(self.shape) for axis in pooled}))
        cells = [1 if axis in self.pooled else side for axis, side in enumerate(self.shape)]
        self.register_buffer("shift", torch.zeros(cells, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(cells, dtype=torch.float64))

    @property
    def used(self) -> Tensor:
        """Which columns are not constant, bool."""
        return self.scale < torch.inf

    def adapt(self, values: Tensor, present: Tensor | None = None, *, symmetry: str = "none") -> None:
        """Learn location and spread from rows (N, *shape), or from those numbers where present (N, *shape) is true.

        Both are averaged over a group in `SYMMETRIES`, so that scaling leaves a symmetry of what follows as it is.

        Where a location has more than `ENOUGH` numbers, or all have more than a hundred times that, some drawn at
        random give the quantiles.
        """
        values = values.detach().cpu()
        table = self._table(values)
        chosen = None if present is None else self._table(present.cpu())[..., 0].flatten().nonzero()[:, 0]
        wide, numbers = table.shape[1], table.shape[:2].numel() if chosen is None else len(chosen)
        enough = min(ENOUGH, max(10_000, 100 * ENOUGH // max(1, table.shape[2])))
        if numbers > enough:
            drawn = torch.randint(numbers, (enough,), generator=torch.Generator().manual_seed(0))
            chosen = drawn if chosen is None else chosen[drawn]
        found = []
        for columns in table.split(max(1, _AT_ONCE // max(1, min(numbers, enough))), -1):
            part = columns.flatten(0, 1) if chosen is None else columns[chosen // wide, chosen % wide]
            found.append(_location(part.to(torch.float64).numpy()))
        shift, scale = (torch.from_numpy(np.concatenate(each)).view_as(self.shift) for each in zip(*found, strict=True))
        low, high = self._ends(values, present)
        self.shift.copy_(averaged(shift, symmetry))
        scale = torch.where(high > low, torch.where(scale > 0, scale, (high - low).double()), torch.inf)
        self.scale.copy_(averaged(scale, symmetry))

    def far(self, values: Tensor, present: Tensor | None = None) -> Tensor:
        """Which rows (N, *shape) hold a number so far out that a Cauchy tail would hardly reach it, (N,), bool.

        That is, beyond 1000 n standard units, with n the numbers that share a location.
        """
        reach = 1e3 * values.numel() / self.shift.numel() * self.scale
        low, high = (end.to(self.shift) for end in self._ends(values, present))
        if not bool((self.used & ((self.shift - low > reach) | (high - self.shift > reach))).any()):
            return torch.zeros(len(values), dtype=torch.bool)
        found = []
        for rows in torch.arange(len(values)).split(1000):
            out = ((values[rows].to(self.shift) - self.shift).abs() > reach) & self.used
            found.append((out if present is None else out & present[rows]).flatten(1).any(1))
        return torch.cat(found)

    def _table(self, values: Tensor) -> Tensor:
        """(N, *shape) as (N, P, W): P numbers share one of W locations."""
        axes = [axis + 1 for axis in self.pooled]
        moved = values.movedim(axes, list(range(1, len(axes) + 1)))
        return moved.reshape(len(values), prod(values.shape[axis] for axis in axes), self.shift.numel())

    def _ends(self, values: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """Smallest and largest number of each location, in the shape of `shift`."""
        axes = (0, *(axis + 1 for axis in self.pooled))
        low, high = values, values
        if present is not None:
            low, high = (values.masked_fill(~present, end) for end in (torch.inf, -torch.inf))
        return low.amin(axes, keepdim=True)[0], high.amax(axes, keepdim=True)[0]

    @property
    def constant(self) -> list[int]:
        """Columns without any spread; where numbers are pooled, the places among what is left."""
        return [int(k) for k in (~self.used).flatten().nonzero()[:, 0]]

    def log_slope(self, values: Tensor) -> Tensor:
        """log du/dv of every number, (*, W), float64; 0 in constant columns."""
        size = ((values.to(torch.float64) - self.shift) / self.scale).abs()
        slope = -torch.log(self.scale) - torch.log1p((size - _BULK).clamp(min=0.0))
        return torch.where(self.used, slope, 0.0)

    def inverse(self, unit: Tensor) -> Tensor:
        """Values (*, W) of scaled ones, float64; constant columns get their constant."""
        unit = unit.to(torch.float64)
        size = unit.abs()
        far = unit.sign() * (_BULK + torch.expm1((size - _BULK).clamp(min=0.0)))
        values = self.shift + self.scale * torch.where(size > _BULK, far, unit)
        return torch.where(self.used, values, self.shift)

    def forward(self, values: Tensor) -> Tensor:
        """Scale values (*, W) to float32 (*, W)."""
        unit = ((values.to(torch.float64) - self.shift) / self.scale).to(torch.float32)
        bulk = unit.clamp(-_BULK, _BULK)
        if unit.device.type == "cpu" and torch.equal(unit, bulk):  # a GPU would have to wait for the answer
            return unit
        beyond = (unit - bulk).clamp(-_WILD, _WILD)
        return bulk + torch.log1p(beyond.abs()).copysign(beyond)


def _location(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and half the 16-84% range of rows (n, W), (W,) each."""
    if not len(rows):
        return np.zeros(rows.shape[1]), np.ones(rows.shape[1])
    low, middle, high = np.quantile(rows, [0.16, 0.5, 0.84], axis=0)
    scale = (high - low) / 2
    # mostly one value: fall back to the mean absolute deviation
    return middle, np.where(scale == 0, np.abs(rows - middle).mean(0), scale)


@dataclass(frozen=True)
class ScoreScale:
    """The unit of the score term: w(theta) |W (grad_theta f - t)|^2 / D has mean 1 for f = 0.

    W whitens the joint score t; w is one number for each cell of theta, 1 over the mean of |W t|^2 / D there. The
    cells are the nearest of up to 128 rows, at least 20 rows to a cell on average. A row's own t has no part in the
    mean that its own w is made from: where t is skewed, that would bias its conditional mean.

    Attributes:
        whitening: W, (D, D). Directions in which the score is always zero are left out.
        centres: theta of the cells in standard units, (M, D).
        units: shift and scale of the standard units, (2, D).
        total: sum of |W t|^2 / D over the rows of a cell, (M,).
        count: rows of a cell, (M,).
        cell: the cell of each row it was measured on, (N,).
        size: |W t|^2 / D of each row, (N,).
    """

    whitening: Tensor
    centres: Tensor
    units: Tensor
    total: Tensor
    count: Tensor
    cell: Tensor
    size: Tensor

    @classmethod
    def of(cls, theta: Tensor, score: Tensor, importance: Tensor | None = None) -> "ScoreScale":
        """Measure it on rows theta (N, D) with joint score (N, D), or on rows with weights (N,) of mean 1."""
        if importance is not None:
            score = importance.sqrt()[:, None] * score
        spread = theta.std(0, correction=0).clamp(min=1e-300)
        constant = (theta == theta[0]).all(0)  # as every column is where all rows stand for one theta
        units = torch.stack([theta.mean(0), torch.where(constant, 1.0, spread)])
        unit = (theta - units[0]) / units[1]
        centres = unit[torch.linspace(0, len(theta) - 1, max(1, min(128, len(theta) // 20))).long()].unique(dim=0)
        cell = _nearest(unit, centres)
        count = torch.bincount(cell, minlength=len(centres)).double()
        weight = torch.ones_like(theta[:, 0])
        for _ in range(2):
            whitening = _whitening(weight.sqrt()[:, None] * score)
            size = (score @ whitening.T).square().mean(1)
            total = torch.zeros_like(count).index_add_(0, cell, size)
            scale = cls(whitening, centres, units, total, count, cell, size)
            weight = scale.weight(theta)
        return scale

    def weight(self, theta: Tensor, *, own: bool = False) -> Tensor:
        """w at theta (N, D), (N,); `own` if these are the rows it was measured on, wherever their theta is now."""
        cell = _nearest((theta - self.units[0]) / self.units[1], self.centres)
        mine = (cell == self.cell).double() if own else torch.zeros_like(theta[:, 0])
        total, count = self.total[cell] - mine * self.size if own else self.total[cell], self.count[cell] - mine
        typical = (self.total / self.count.clamp(min=1)).median()  # a tenth of a row: no cell may come out as zero
        return (count + 0.1) / (total + 0.1 * typical).clamp(min=1e-300)


def _nearest(unit: Tensor, centres: Tensor) -> Tensor:
    return torch.cat([torch.cdist(rows, centres).argmin(1) for rows in unit.split(8192)])


def _whitening(score: Tensor) -> Tensor:
    """C^(-1/2) of the second moment C (D, D), in units of each axis first, so that 1e-20 is no zero."""
    unit = score.square().mean(0).sqrt()
    unit = torch.where(unit > 0, unit, torch.ones_like(unit))
    values, vectors = torch.linalg.eigh((score / unit).T @ (score / unit) / len(score))
    inverse = torch.where(values > 1e-9, values.clamp(min=1e-9).rsqrt(), 0.0)
    return (vectors * inverse) @ vectors.T / unit
