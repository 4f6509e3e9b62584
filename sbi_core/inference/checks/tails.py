"""How unlikely a number beyond nearly all others is: generalised Pareto tails."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

FEWEST = 10
"""Exceedances from which a tail is known; twenty times as many rows are needed."""

MOST = 200


@dataclass(frozen=True)
class Tail:
    """P(v > start + y) = share (1 + shape y / scale)^(-1 / shape), for each of C columns.

    The shape is never below 0 (an exponential), so that a column that seems to end does not make all beyond impossible.

    Attributes:
        share: of the rows beyond the start, ().
        start: where the tail begins, (C,).
        scale: its unit, (C,); 0 where the largest rows are all equal.
        shape: (C,).
    """

    share: Tensor
    start: Tensor
    scale: Tensor
    shape: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Fit to the largest of values (N, C), a twentieth and at most 200 of them.

        Zhang & Stephens, Technometrics 51 (2009) 316: the posterior mean of b = -shape / scale over a grid, under a
        prior that the data set; then the shape is that of highest likelihood given b.
        """
        n = len(values)
        k = min(max(n // 20, FEWEST), MOST)
        top = values.double().topk(min(k + 1, n), 0).values
        start, excess = top[-1], (top[:-1] - top[-1]).flip(0)  # ascending, (k, C)
        mean, quartile, last = excess.mean(0), excess[(k + 2) // 4 - 1], excess[-1]
        fits = quartile > 1e-6 * last
        cells = 30 + int(k**0.5)
        grid = 1 - (cells / (torch.arange(cells).double() + 0.5)).sqrt()
        b = torch.where(fits, 1 / last + grid[:, None] / (3 * quartile), -1.0)  # (G, C)
        unit = torch.where(fits, excess, 1.0)
        shape = torch.stack([torch.log1p(-at * unit).mean(0) for at in b])
        height = k * (torch.log(-b / shape) - shape - 1)
        best = (torch.softmax(height.nan_to_num(-torch.inf), 0) * b).sum(0)
        found = torch.log1p(-best * unit).mean(0)
        heavy = fits & (found > 0)
        shape = torch.where(heavy, found, 0.0)
        return cls(torch.tensor(k / n).double(), start, torch.where(heavy, -found / best, mean), shape)

    def probability(self, values: Tensor) -> Tensor:
        """Probability of a larger number than each of values (*, C), (*, C); 1 before the tail begins."""
        y = values.double() - self.start
        y = torch.where(y > 2**-22 * self.start.abs(), y, 0.0)  # the same number in float32
        unit = torch.where(self.scale > 0, y / self.scale, torch.where(y > 0, torch.inf, 0.0))
        heavy = torch.log1p(self.shape * unit) / self.shape.clamp(min=1e-12)
        survival = torch.exp(-torch.where(self.shape > 1e-9, heavy, unit))
        return torch.where(y > 0, self.share * survival, 1.0)

    def quantile(self, probability: float) -> Tensor:
        """The number (C,) with so small a probability beyond it; the start for larger ones."""
        ratio = torch.log(self.share / probability).clamp(min=0.0)
        y = torch.where(self.shape > 1e-9, torch.expm1(self.shape * ratio) / self.shape.clamp(min=1e-12), ratio)
        return self.start + self.scale * y
