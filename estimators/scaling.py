"""The one place that scales: inputs of networks, in float64 before the cast to float32, and the score term."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

_BULK = 6.0
"""Standard units beyond which inputs grow only logarithmically, so that a wild row cannot blow up the network."""


class Scaler(nn.Module):
    """u = (v - median) / half the 16-84% range, per column; identity in the bulk, logarithmic beyond 6 units.

    The location and spread are quantiles, so outliers do not move them; they are kept and applied in float64, so
    1e9 + signal loses nothing. Constant columns become 0 and are listed by `constant`.

    Args:
        width: number of columns W.
    """

    shift: Tensor
    scale: Tensor
    used: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(width, dtype=torch.float64))
        self.register_buffer("used", torch.ones(width, dtype=torch.bool))

    def adapt(self, values: Tensor) -> None:
        """Learn location and spread from rows (N, W)."""
        rows = values.detach().cpu().to(torch.float64).numpy()
        low, middle, high = np.quantile(rows, [0.16, 0.5, 0.84], axis=0)
        scale = (high - low) / 2
        spread = rows.max(0) - rows.min(0)
        narrow = (scale == 0) & (spread > 0)  # mostly one value: fall back to the mean absolute deviation
        scale = np.where(narrow, np.abs(rows - middle).mean(0), scale)
        self.used.copy_(torch.from_numpy(spread > 0))
        self.shift.copy_(torch.from_numpy(middle))
        self.scale.copy_(torch.from_numpy(np.where(spread > 0, scale, 1.0)))

    @property
    def constant(self) -> list[int]:
        """Columns without any spread."""
        return [int(k) for k in (~self.used).nonzero().flatten()]

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
        unit = (values.to(torch.float64) - self.shift) / self.scale
        size = unit.abs()
        tail = _BULK + torch.log1p((size - _BULK).clamp(min=0.0))
        unit = torch.where(size > _BULK, unit.sign() * tail, unit)
        return torch.where(self.used, unit, 0.0).to(torch.float32)


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
    def of(cls, theta: Tensor, score: Tensor) -> "ScoreScale":
        """Measure it on rows theta (N, D) with joint score (N, D)."""
        units = torch.stack([theta.mean(0), theta.std(0, correction=0).clamp(min=1e-300)])
        unit = (theta - units[0]) / units[1]
        centres = unit[torch.linspace(0, len(theta) - 1, max(1, min(128, len(theta) // 20))).long()]
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
